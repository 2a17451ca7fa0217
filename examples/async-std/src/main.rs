//! Runs the notes service on the runtime async-std.

use background_tasks::AsyncStdSpawner;
use std::process::ExitCode;

use async_std::{net::TcpListener, task};
use smol_hyper::rt::{FuturesIo, SmolTimer};

fn main() -> ExitCode {
    let service = notes::run(AsyncStdSpawner, SmolTimer::new(), async |server| {
        let listener = server.listening(TcpListener::bind(server.address()).await, TcpListener::local_addr)?;
        server.serve(async move || Ok(FuturesIo::new(listener.accept().await?.0))).await;
        Ok(())
    });
    task::block_on(service)
}
