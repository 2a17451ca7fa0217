//! The notes service on smol.

use background_tasks::SmolSpawner;
use notes::{Exit, Server};

use smol::net::TcpListener;
use smol_hyper::rt::{FuturesIo, SmolTimer};

fn main() {
    notes::leave(smol::block_on(serve()))
}

async fn serve() -> Result<(), Exit> {
    let server = Server::from_args(SmolSpawner, SmolTimer::new())?;
    let listener = TcpListener::bind(server.address()).await.map_err(|error| server.cannot_listen(error))?;
    server.announce(listener.local_addr())?;
    while let Some((stream, _)) = server.next(|| listener.accept()).await {
        server.serve(FuturesIo::new(stream));
    }
    drop(listener);
    server.drain().await
}
