//! The notes service on smol.

use background_tasks::SmolSpawner;
use std::process::ExitCode;

use smol::net::TcpListener;
use smol_hyper::rt::{FuturesIo, SmolTimer};

fn main() -> ExitCode {
    let service = notes::run(SmolSpawner, SmolTimer::new(), async |server| {
        let listener = server.listening(TcpListener::bind(server.address()).await, TcpListener::local_addr)?;
        while let Some((stream, _)) = server.next_connection(|| listener.accept()).await {
            server.serve(FuturesIo::new(stream));
        }
        Ok(())
    });
    smol::block_on(service)
}
