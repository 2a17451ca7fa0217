//! The notes service on async-std.

use background_tasks::AsyncStdSpawner;
use notes::{Exit, Server};

use async_std::{net::TcpListener, task};
use smol_hyper::rt::{FuturesIo, SmolTimer};

fn main() {
    notes::leave(task::block_on(serve()))
}

async fn serve() -> Result<(), Exit> {
    let server = Server::from_args(AsyncStdSpawner, SmolTimer::new())?;
    let listener = TcpListener::bind(server.address()).await.map_err(|error| server.cannot_listen(error))?;
    server.announce(listener.local_addr())?;
    while let Some((stream, _)) = server.next(|| listener.accept()).await {
        server.serve(FuturesIo::new(stream));
    }
    drop(listener);
    server.drain().await
}
