//! The notes service on tokio.

use background_tasks::TokioSpawner;
use notes::{Exit, Server};

use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, runtime::Runtime};

fn main() {
    notes::leave(Runtime::new().expect("threads and a poller").block_on(serve()))
}

async fn serve() -> Result<(), Exit> {
    let server = Server::from_args(TokioSpawner, TokioTimer::new())?;
    let listener = TcpListener::bind(server.address()).await.map_err(|error| server.cannot_listen(error))?;
    server.announce(listener.local_addr())?;
    while let Some((stream, _)) = server.next(|| listener.accept()).await {
        server.serve(TokioIo::new(stream));
    }
    drop(listener);
    server.drain().await
}
