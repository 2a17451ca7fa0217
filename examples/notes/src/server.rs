use crate::Exit;
use crate::answer::Notes;
use crate::drain::Drain;
use crate::exit::{log, tell};
use crate::losses::Losses;
use crate::options::Options;
use crate::store::Store;
use background_tasks::{BlockingSpawner, Registry, Spawner};
use background_tasks_host::Page;
use hyper::rt::{Read, Timer, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use indicatif::ProgressBar;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::process;
use std::sync::Arc;
use std::time::Duration;

/// The service, less what its runtime does.
pub struct Server<S, T> {
    notes: Arc<Notes<S>>,
    http: http1::Builder,
    timer: T,
    options: Options,
    /// The drain's.
    bar: ProgressBar,
}

impl<S, T> Server<S, T>
where
    S: Spawner + BlockingSpawner + Clone + Send + Sync + 'static,
    T: Timer + Clone + Send + Sync + 'static,
{
    /// Makes a service from the program's arguments, and has SIGTERM and Ctrl-C begin its shutdown.
    pub fn from_args(spawner: S, timer: T) -> Result<Self, Exit> {
        let options = Options::from_args()?;
        let store = Store::open(&options.dir)
            .map_err(|error| Exit::unusable(format_args!("cannot write to '{}'", options.dir.display()), error))?;
        let bar = ProgressBar::hidden();
        let registry = Registry::builder(spawner).observer(Losses(bar.clone())).inspect().build();
        shut_down_on_signal(registry.clone(), bar.clone()).map_err(|error| Exit::unusable("cannot wait for signals", error))?;
        let mut http = http1::Builder::new();
        http.timer(timer.clone());
        let background = options.page.then(|| Page::new(&registry).serving(&["connection"]));
        let notes = Arc::new(Notes { registry, store: Arc::new(store), background });
        Ok(Self { notes, http, timer, options, bar })
    }

    /// Returns where to listen.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.options.port).into()
    }

    /// Says where the service listens, if it does.
    pub fn announce(&self, bound: io::Result<SocketAddr>) -> Result<(), Exit> {
        let address = bound.map_err(|error| self.cannot_listen(error))?;
        tell(format_args!("listening on http://{address}"));
        Ok(())
    }

    /// Returns why the process ends when the address cannot be bound.
    pub fn cannot_listen(&self, error: io::Error) -> Exit {
        Exit::unusable(format_args!("cannot listen on {}", self.address()), error)
    }

    /// Returns the next connection; `None` once the shutdown has begun.
    ///
    /// That one cannot be accepted (no descriptor is left, the client has gone again) does not end the service.
    pub async fn next<A, I>(&self, accept: impl Fn() -> A) -> Option<I>
    where
        A: Future<Output = io::Result<I>>,
    {
        let signal = self.notes.registry.signal();
        // Asked first: a connection that waits to be accepted would win over the signal, and then the next one.
        while !signal.is_triggered() {
            match signal.run_until_shutdown(accept()).await? {
                Ok(accepted) => return Some(accepted),
                Err(error) => {
                    log(format_args!("no connection was accepted: {error}"));
                    self.timer.sleep(Duration::from_millis(100)).await;
                }
            }
        }
        None
    }

    /// Serves a connection in the background. When the shutdown begins it ends, after the response to the request that it is at.
    pub fn serve<I>(&self, io: I)
    where
        I: Read + Write + Unpin + Send + 'static,
    {
        let notes = self.notes.clone();
        let connection = self.http.serve_connection(io, service_fn(move |request| notes.clone().answer(request)));
        let signal = self.notes.registry.signal();
        self.notes.registry.named("connection").run(async move {
            let mut connection = pin!(connection);
            // A client that breaks off is no failure of ours.
            if signal.run_until_shutdown(connection.as_mut()).await.is_none() {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
        });
    }

    /// Waits until nothing is in flight; aborts what can be aborted when the grace is over.
    pub async fn drain(self) -> Result<(), Exit> {
        let Self { notes, timer, options, bar, .. } = self;
        Drain::new(&notes, &options, bar).run(&timer).await
    }
}

/// The first signal begins the shutdown, the second one leaves.
fn shut_down_on_signal<S: Send + 'static>(registry: Registry<S>, bar: ProgressBar) -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(move || {
        if registry.is_shutting_down() {
            bar.finish_and_clear();
            log(format_args!("left at once, {} in flight", registry.in_flight()));
            process::exit(130);
        }
        registry.shutdown();
    })
}
