/// Spawns on the event loop of the JavaScript that runs this program: of a page, of a worker, of Node.
///
/// It is a [`Spawner`](super::Spawner) and a [`LocalSpawner`](super::LocalSpawner) on `wasm32-unknown-unknown`, through
/// [wasm-bindgen-futures](https://docs.rs/wasm-bindgen-futures). Elsewhere it is neither, and what needs it does not compile. There are no
/// threads for work that blocks, so it is no [`BlockingSpawner`](super::BlockingSpawner).
///
/// Tasks run as microtasks, after the caller has returned to JavaScript; where wasm has threads, on the worker that spawned them. What
/// becomes of them when the page goes away, and of one that panics, [the crate's docs](crate#in-the-browser) say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WasmSpawner;

#[cfg(all(target_family = "wasm", target_os = "unknown"))]
impl super::Spawner for WasmSpawner {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        wasm_bindgen_futures::spawn_local(task);
    }
}

#[cfg(all(target_family = "wasm", target_os = "unknown"))]
impl super::LocalSpawner for WasmSpawner {
    fn spawn_local<F: Future<Output = ()> + 'static>(&self, task: F) {
        wasm_bindgen_futures::spawn_local(task);
    }
}
