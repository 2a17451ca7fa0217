//! Runs the notes service on the runtime tokio.

use background_tasks::TokioSpawner;
use std::process::ExitCode;

use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, runtime::Runtime};

fn main() -> ExitCode {
    let service = notes::run(TokioSpawner, TokioTimer::new(), async |server| {
        let listener = server.listening(TcpListener::bind(server.address()).await, TcpListener::local_addr)?;
        server.serve(async move || Ok(TokioIo::new(listener.accept().await?.0))).await;
        Ok(())
    });
    Runtime::new().expect("the system provides threads and a poller").block_on(service)
}
