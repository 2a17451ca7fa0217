//! Runs the notes service on the runtime smol.

use background_tasks::SmolSpawner;
use std::process::ExitCode;

use smol::net::TcpListener;
use smol_hyper::rt::{FuturesIo, SmolTimer};

fn main() -> ExitCode {
    let service = notes::run(SmolSpawner, SmolTimer::new(), async |server| {
        let listener = server.listening(TcpListener::bind(server.address()).await, TcpListener::local_addr)?;
        server.serve(async move || Ok(FuturesIo::new(listener.accept().await?.0))).await;
        Ok(())
    });
    smol::block_on(service)
}
