//! Serves connections as `axum::serve` does, and limits the time in which a client must send the head of a request.

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::pin::pin;
use std::time::Duration;
use tokio::net::TcpListener;

/// The time in which a client must send the head of a request. The connection also closes if it is idle for longer between two requests.
///
/// While it stops, a server waits for each client that has sent half a head, so this time must be shorter than the grace period.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until `end` resolves and all connections have closed.
pub(crate) async fn serve(mut listener: TcpListener, app: Router, end: impl Future<Output = ()>) {
    let mut http = http1::Builder::new();
    // The timeout needs a timer.
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let connections = GracefulShutdown::new();
    let mut end = pin!(end);
    loop {
        tokio::select! {
            // This method of axum retries after an error, such as too many open files.
            (stream, _) = Listener::accept(&mut listener) => {
                let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app.clone()));
                // An error means that the client has disconnected or was too slow.
                tokio::spawn(connections.watch(connection));
            }
            () = &mut end => break,
        }
    }
    drop(listener);
    connections.shutdown().await;
}
