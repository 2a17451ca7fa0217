//! Contains the programs under test. Most programs print `ready` when the test may continue. A program that must wait for the test reads
//! a line from stdin.

#[cfg(feature = "tracing")]
use background_tasks::TracingObserver;
use background_tasks::{Observer, Registry, Restart, ShutdownSignal, SmolSpawner, Spawner, TokioSpawner};
use background_tasks_host::{Host, Liveness, StderrObserver, request_stop, shutdown_signal};
#[cfg(unix)]
use fork::Fork;
#[cfg(unix)]
use nix::sys::signal::{SigSet, Signal};
use smol::future::{block_on, pending};
use std::env;
#[cfg(target_os = "linux")]
use std::fs;
use std::fs::File;
use std::future::Future;
use std::io::{Write, stderr, stdin, stdout};
#[cfg(unix)]
use std::os::fd::AsFd;
#[cfg(unix)]
use std::os::unix::process::{CommandExt, ExitStatusExt};
#[cfg(windows)]
use std::os::windows::io::AsHandle;
#[cfg(target_os = "linux")]
use std::path::PathBuf;
use std::process::ExitCode;
#[cfg(unix)]
use std::process::{Command, ExitStatus, exit, id};
use std::thread;
use std::time::Duration;

#[allow(clippy::too_many_lines, reason = "each program has a line")]
pub(crate) fn run(program: &str) -> ExitCode {
    match program {
        "tokio_blocked" => on_tokio(|| blocked(TokioSpawner)),
        "executor_blocked" => executor_blocked(),
        "program_blocked" => program_blocked(),
        "error" => ends_with(Err("broken")),
        "success" => ends_with(Ok(())),
        "panic" => panics(),
        "phases" => phases(),
        "hung_request" => slow_request(pending()),
        "slow_request" => slow_request(released()),
        "hung_phases" => hung_phases(),
        "delayed" => delayed(),
        "run_dropped_in_delay" => run_dropped_in_delay(),
        "pending_in_delay" => block_on(host(&registry(SmolSpawner)).delay(Duration::from_secs(3600)).run(async {
            ready();
            pending::<()>().await;
        })),
        "stalled" => stalled(),
        "stalled_and_critical" => stalled_and_critical(),
        "stalled_in_drain" => stalled_in_drain(),
        "waiting_service" => waiting_service(),
        "stalled_service" => stalled_service(),
        "frozen" => frozen(),
        "shutdown_signal" => shutdown_signal_without_host(),
        "waits" => waits(|host| host),
        "waits_with_sighup" => waits(Host::handle_sighup),
        "signal_before_run" => signal_before_run(),
        "runtime_blocked" => runtime_blocked(),
        "untracked_blocked" => untracked_blocked(|host| host),
        "asked_before_run" => asked_before_run(),
        "stop_on_several_times" => waits(|host| host.stop_on(pending()).stop_on(released()).stop_on(pending())),
        "stop_on_ready_future" => waits(|host| host.stop_on(async {})),
        "stop_on_channel_of_the_program" => stop_on_channel_of_the_program(),
        "untracked_blocked_with_stop_on" => untracked_blocked(|host| host.stop_on(released())),
        "stop_on_panics" => waits(|host| host.stop_on(async { panic!("broken") })),
        "blocked_with_request_stop" => {
            stop_when_released();
            on_tokio(|| blocked(TokioSpawner))
        }
        "request_stop" => requests_stop(),
        #[cfg(all(windows, feature = "windows-service"))]
        "windows_service" => waits(|host| host.windows_service("absent")),
        "http_stop" => http_stop(),
        #[cfg(feature = "tower")]
        "lambda" => lambda(),
        "task_without_webjobs_file" => waits_with_task(|host| host.webjobs_file(false)),
        "host_after_webjobs_host" => host_after_webjobs_host(),
        #[cfg(feature = "tower")]
        "detached_handler" => detached_handler(),
        "pending_task" => pending_task(),
        "shut_down_by_a_task" => shut_down_by_a_task(),
        "critical" => critical(),
        "critical_worker" => critical_worker(),
        "full" => full(),
        "full_with_last_task" => full_with_last_task(),
        "outlives_its_registry" => outlives_its_registry(),
        "main_blocked" => main_blocked(),
        "task" => waits_with_task(|host| host),
        "task_with_sighup" => waits_with_task(Host::handle_sighup),
        "task_after_ignored" => {
            drop(host(&registry(SmolSpawner)).handle_ignored());
            waits_with_task(|host| host)
        }
        "task_with_ignored" => waits_with_task(|host| host.handle_ignored().handle_sighup()),
        #[cfg(unix)]
        "blocked_signals" => blocked_signals(),
        #[cfg(unix)]
        "forked" => forked(|| ()),
        #[cfg(unix)]
        "signal_between_fork_and_run" => forked(signal_self),
        "host_dropped" => host_dropped(),
        "run_dropped_in_drain" => run_dropped_in_drain(),
        "second_host" => second_host(),
        #[cfg(target_os = "linux")]
        "signals_thread" => signals_thread(),
        #[cfg(target_os = "linux")]
        "host_within_host" => host_within_host(),
        #[cfg(target_os = "linux")]
        "hosts_that_have_ended" => hosts_that_have_ended(),
        #[cfg(target_os = "linux")]
        "forgotten_host" => forgotten_host(),
        "host_ends_before_another" => host_ends_before_another(),
        "blocking_read" => blocking_read(),
        "program_pending" => ends_in_drain(pending()),
        "program_fails_in_drain" => ends_in_drain(async { Err("broken") }),
        "program_panics_in_drain" => ends_in_drain(async { panic!("broken") }),
        "program_aborted_by_other_code" => program_aborted_by_other_code(),
        "program_of_aborting_registry" => program_of_aborting_registry(),
        "start_up_blocked" => start_up_blocked(),
        "run_dropped" => run_dropped(),
        "run_dropped_without_signal" => run_dropped_without_signal(),
        "idle" => block_on(host(&Registry::new(())).run(async {})),
        "drain_blocked" => drain_blocked(),
        "rejects" => rejects(|host| host),
        "rejects_and_fails" => rejects(|host| host.fail_if(|summary| summary.rejected > 0)),
        "rejects_before_its_end" => rejects_before_its_end(|host| host),
        "rejects_before_its_end_and_fails" => rejects_before_its_end(|host| host.fail_if(|summary| summary.rejected > 0)),
        "server" => server(&registry(TokioSpawner)),
        "server_without_inspection" => server(&Registry::new(TokioSpawner)),
        "server_and_task" => server_and_task(&registry(TokioSpawner)),
        "server_and_task_without_inspection" => server_and_task(&Registry::new(TokioSpawner)),
        "rejects_and_panics" => rejects(|host| host.fail_if(|_| panic!("broken"))),
        "many_tasks" => many_tasks(),
        "task_without_inspection" => task_without_inspection(),
        #[cfg(feature = "tracing")]
        "traced_many_tasks" => traced(many_tasks),
        #[cfg(feature = "tracing")]
        "traced_blocked_task" => traced(blocks_its_thread),
        #[cfg(feature = "tracing")]
        "traced_stall" => traced(stalled_until_the_signal),
        #[cfg(feature = "tracing")]
        "traced_failure" => traced(|| fails_at_start(TracingObserver)),
        #[cfg(feature = "tracing")]
        "traced_failure_in_drain" => traced(|| fails_in_drain(TracingObserver)),
        #[cfg(feature = "tracing")]
        "traced_failure_without_observer" => traced(|| fails_at_start(StderrObserver)),
        #[cfg(feature = "tracing")]
        "traced_bar" => traced(|| waits_with_task(|host| host)),
        #[cfg(all(feature = "bar", feature = "tracing"))]
        "traced_bar_on_request" => traced(|| waits_with_task(|host| host.progress_bar(true))),
        other => panic!("unknown program {other}"),
    }
}

fn registry<S>(spawner: S) -> Registry<S> {
    Registry::builder(spawner).inspect().observer(StderrObserver).build()
}

/// Returns a registry that has one permit. A task holds the permit until the test releases the task.
fn full_registry() -> Registry<SmolSpawner> {
    let registry = Registry::builder(SmolSpawner).inspect().max_in_flight(1).observer(StderrObserver).build();
    registry.run(released());
    registry
}

/// Returns the value of an environment variable that a test has set, in seconds.
fn seconds(name: &str) -> Option<Duration> {
    env::var(name).ok().map(|time| Duration::from_secs_f64(time.parse().unwrap()))
}

fn host<S>(registry: &Registry<S>) -> Host {
    let mut host = Host::new(registry).grace(seconds("GRACE").unwrap_or(Duration::from_secs(3600)));
    if let Some(timeout) = seconds("MAIN_TIMEOUT") {
        host = host.main_timeout(timeout);
    }
    if let Some(window) = seconds("REPEAT_WINDOW") {
        host = host.repeat_window(window);
    }
    if env::var_os("HELD_STDERR").is_some() {
        std::mem::forget(stderr().lock());
    }
    host
}

fn ready() {
    println!("ready");
}

/// Like [`ready`], but does not lock or flush the buffer of stdout.
fn ready_unbuffered() {
    #[cfg(unix)]
    let stdout = stdout().as_fd().try_clone_to_owned();
    #[cfg(windows)]
    let stdout = stdout().as_handle().try_clone_to_owned();
    File::from(stdout.unwrap()).write_all(b"ready\n").unwrap();
}

/// Waits for a line from the test. The read runs on a thread that the executor does not use.
async fn released() {
    smol::unblock(|| stdin().read_line(&mut String::new()).unwrap()).await;
}

fn block_forever() -> ! {
    loop {
        thread::park();
    }
}

fn on_tokio<F: Future<Output = ExitCode>>(program: impl FnOnce() -> F) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { program().await })
}

/// Starts a task that blocks the only thread of the executor forever.
async fn blocked<S: Spawner>(spawner: S) -> ExitCode {
    let registry = registry(spawner);
    registry.named("blocker").run(async {
        print!("no newline");
        if env::var_os("LOCKED").is_some() {
            std::mem::forget(stdout().lock());
        }
        ready_unbuffered();
        block_forever();
    });
    host(&registry).run(registry.signal()).await
}

fn executor_blocked() -> ExitCode {
    static EXECUTOR: smol::Executor<'static> = smol::Executor::new();
    block_on(EXECUTOR.run(blocked(&EXECUTOR)))
}

/// The program blocks its thread forever, and does not check the shutdown signal.
fn program_blocked() -> ExitCode {
    let registry = registry(SmolSpawner);
    block_on(host(&registry).run(async {
        ready();
        block_forever()
    }))
}

/// Starts a task that ends when the test releases it.
fn start_task(registry: &Registry<SmolSpawner>) {
    registry.named("task").run(async {
        released().await;
        println!("the task has ended");
    });
}

fn ends_with(result: Result<(), &'static str>) -> ExitCode {
    let registry = registry(SmolSpawner);
    start_task(&registry);
    block_on(host(&registry).run(async {
        ready();
        result
    }))
}

fn panics() -> ExitCode {
    let registry = registry(SmolSpawner);
    start_task(&registry);
    block_on(host(&registry).run(async {
        ready();
        panic!("broken")
    }))
}

/// A request is still in flight after shutdown has started. The request then starts a task on the registry of the workers.
fn phases() -> ExitCode {
    let (requests, workers) = (registry(SmolSpawner), registry(SmolSpawner));
    let (signal, open) = (requests.signal(), workers.clone());
    requests.named("request").run(async move {
        signal.await;
        println!("the requests have the signal");
        released().await;
        println!("the request ends, the workers have the signal: {}", open.is_shutting_down());
        let accepted = open.try_run(async { println!("the request's task has ended") }).is_ok();
        println!("its task is accepted: {accepted}");
    });
    let signal = workers.signal();
    workers.named("worker").run(async move {
        signal.await;
        println!("the workers have the signal");
    });
    block_on(host(&requests).then(&workers).run(async {
        ready();
        requests.signal().await;
    }))
}

/// After shutdown has started, a worker of the second phase needs a second to put its job back.
fn slow_request(request: impl Future<Output = ()> + Send + 'static) -> ExitCode {
    let (requests, workers) = (registry(SmolSpawner), registry(SmolSpawner));
    requests.named("request").run(request);
    let signal = workers.signal();
    workers.named("worker").run(async move {
        signal.await;
        smol::Timer::after(Duration::from_secs(1)).await;
        println!("the job is back");
    });
    let host = match seconds("RESERVE") {
        Some(reserve) => host(&requests).then_with_reserve(&workers, reserve),
        None => host(&requests).then(&workers),
    };
    block_on(host.run(async {
        ready();
        requests.signal().await;
    }))
}

fn hung_phases() -> ExitCode {
    let [first, second, third] = ["first", "second", "third"].map(|name| {
        let registry = registry(SmolSpawner);
        registry.named(name).run(pending::<()>());
        registry
    });
    let quarter = Duration::from_millis(250);
    let host = host(&first).then_with_reserve(&second, quarter).then_with_reserve(&third, quarter).grace(4 * quarter);
    block_on(host.run(async {}))
}

/// The program prints the readiness that a load balancer would see.
fn delayed() -> ExitCode {
    let registry = registry(SmolSpawner);
    let host = host(&registry).delay(seconds("DELAY").unwrap());
    let readiness = host.readiness();
    block_on(host.run(async {
        println!("is ready: {}, is shutting down: {}", readiness.is_ready(), registry.is_shutting_down());
        shutdown_signal().await;
        println!("is ready: {}, is shutting down: {}", readiness.is_ready(), registry.is_shutting_down());
        smol::future::or(registry.signal(), released()).await;
        println!("the program ends, is shutting down: {}", registry.is_shutting_down());
    }))
}

fn run_dropped_in_delay() -> ExitCode {
    let registry = registry(SmolSpawner);
    let host = host(&registry).delay(Duration::from_secs(3600));
    let drop_run = async {
        released().await;
        0.into()
    };
    let program = async {
        ready();
        pending::<()>().await;
    };
    block_on(smol::future::or(host.run(program), drop_run));
    println!("dropped");
    block_on(released());
    println!("the registry is shutting down: {}", registry.is_shutting_down());
    7.into()
}

const LIVENESS_TIMEOUT: Duration = Duration::from_millis(100);

/// A task reports no progress until the test releases it. The task `short` has ended, so the host must not report it.
fn stalled() -> ExitCode {
    let registry = registry(SmolSpawner);
    let (short, importer) = (Liveness::new("short", LIVENESS_TIMEOUT), Liveness::new("importer", LIVENESS_TIMEOUT));
    let host = host(&registry).liveness(&short).liveness(&importer);
    drop(short);
    let signal = registry.signal();
    registry.named("importer").run(async move {
        released().await;
        let mut has_signal = false;
        while !has_signal {
            importer.report_progress();
            has_signal = smol::future::or(
                async {
                    signal.clone().await;
                    true
                },
                async {
                    smol::Timer::after(Duration::from_millis(1)).await;
                    false
                },
            )
            .await;
        }
    });
    block_on(host.run(registry.signal()))
}

/// After shutdown has started, the task `importer` reports no progress until the test releases it. The task `finished` ends when shutdown
/// starts, but the program still holds its `Liveness` handle.
fn stalled_in_drain() -> ExitCode {
    let registry = registry(SmolSpawner);
    let timeout = Duration::from_secs(2);
    let [finished, importer] = ["finished", "importer"].map(|name| Liveness::new(name, timeout).critical());
    let host = host(&registry).liveness(&finished).liveness(&importer);
    let work = async |liveness: &Liveness, signal: ShutdownSignal| {
        while signal.run_until_shutdown(smol::Timer::after(Duration::from_millis(10))).await.is_some() {
            liveness.report_progress();
        }
    };
    let (handle, signal) = (finished.clone(), registry.signal());
    registry.named("finished").run(async move { work(&handle, signal).await });
    let signal = registry.signal();
    registry.named("importer").run(async move {
        work(&importer, signal).await;
        released().await;
        drop(importer);
    });
    ready();
    let exit_code = block_on(host.run(registry.signal()));
    drop(finished);
    exit_code
}

/// A task blocks the only thread of the executor forever, so that two handles report no progress. Both timeouts expire at the same time.
fn stalled_and_critical() -> ExitCode {
    on_tokio(async || {
        let registry = Registry::new(TokioSpawner);
        let handles = ["importer", "exporter"].map(|name| Liveness::new(name, LIVENESS_TIMEOUT).critical());
        let host = handles.iter().fold(host(&registry), Host::liveness);
        registry.run(async move {
            std::mem::forget(handles); // the host checks a handle until it is dropped
            block_forever()
        });
        host.run(registry.signal()).await
    })
}

/// A service waits for its next run. A waiting service does not have to report progress.
fn waiting_service() -> ExitCode {
    let registry = registry(SmolSpawner);
    let liveness = Liveness::new("importer", Duration::from_secs(1)).critical();
    let host = host(&registry).liveness(&liveness);
    registry.named("importer").every(Duration::from_secs(3600), move || {
        let liveness = liveness.clone();
        async move { liveness.report_progress() }
    });
    block_on(host.run(async {
        ready();
        registry.signal().await;
    }))
}

/// A run of a service reports no progress, and fails when the test releases it. The next run starts much later.
fn stalled_service() -> ExitCode {
    let registry = registry(SmolSpawner);
    let liveness = Liveness::new("importer", LIVENESS_TIMEOUT);
    let host = host(&registry).liveness(&liveness);
    let restart = Restart::on_failure().backoff(Duration::from_secs(7200), Duration::from_secs(7200));
    registry.named("importer").service(restart, move || {
        let liveness = liveness.clone();
        async move {
            released().await;
            drop(liveness);
            Err::<(), _>("broken")
        }
    });
    block_on(host.run(registry.signal()))
}

/// The task `importer` reports progress whenever the test releases it.
fn frozen() -> ExitCode {
    let registry = registry(SmolSpawner);
    let liveness = Liveness::new("importer", Duration::from_secs(6)).critical();
    let host = host(&registry).liveness(&liveness);
    registry.named("importer").run(registry.signal().run_until_shutdown(async move {
        loop {
            released().await;
            liveness.report_progress();
            println!("reported");
        }
    }));
    block_on(host.run(async {
        ready();
        registry.signal().await;
    }))
}

fn shutdown_signal_without_host() -> ExitCode {
    let signal = shutdown_signal();
    ready();
    block_on(signal.clone());
    println!("triggered");
    block_on(async {
        signal.await;
        shutdown_signal().await;
    });
    7.into()
}

fn waits(configure: fn(Host) -> Host) -> ExitCode {
    let registry = registry(SmolSpawner);
    block_on(configure(host(&registry)).run(async {
        ready();
        registry.signal().await;
    }))
}

#[cfg(windows)]
use testing::raise_ctrl_c as signal_self;

#[cfg(unix)]
fn signal_self() {
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
}

fn signal_before_run() -> ExitCode {
    let registry = registry(SmolSpawner);
    let host = host(&registry);
    signal_self();
    block_on(host.run(registry.signal()))
}

/// Replaces the process by another program, which inherits blocked signals.
#[cfg(unix)]
fn blocked_signals() -> ExitCode {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]).thread_block().unwrap();
    let error = Command::new(env::current_exe().unwrap()).env("PROGRAM", "task_with_sighup").exec();
    panic!("{error}")
}

/// The program creates a host and then forks, as a daemon does. The child runs the host. The parent exits with the exit code of the
/// child.
#[cfg(unix)]
fn forked(before_run: fn()) -> ExitCode {
    let registry = registry(SmolSpawner);
    let host = host(&registry);
    if let Fork::Parent(child) = fork::fork().unwrap() {
        let status = ExitStatus::from_raw(fork::waitpid(child).unwrap());
        return u8::try_from(status.code().unwrap()).unwrap().into();
    }
    before_run();
    // If the test fails and closes stdin, this process must exit.
    thread::spawn(|| {
        let _ = stdin().read_line(&mut String::new());
        exit(3)
    });
    block_on(host.run(async {
        println!("process {}", id());
        registry.signal().await;
    }))
}

/// At its end, `main` drops a runtime. The runtime waits for a blocking task that the registry counts.
fn runtime_blocked() -> ExitCode {
    on_tokio(async || {
        let registry = registry(TokioSpawner);
        let host = host(&registry);
        registry.named("blocker").run_blocking(|| {
            ready();
            block_forever();
        });
        host.run(registry.signal()).await
    })
}

/// At its end, `main` drops a runtime. The runtime waits for blocking work that no registry counts.
fn untracked_blocked(configure: fn(Host) -> Host) -> ExitCode {
    on_tokio(async move || {
        let registry = registry(TokioSpawner);
        let host = configure(host(&registry));
        tokio::task::spawn_blocking(|| {
            ready();
            block_forever();
        });
        host.run(registry.signal()).await
    })
}

/// The process is asked to stop before the host runs. Then its start takes longer than the grace period.
fn asked_before_run() -> ExitCode {
    let is_before_host = env::var_os("BEFORE_HOST").is_some();
    if is_before_host {
        request_stop();
    }
    let registry = registry(SmolSpawner);
    let host = host(&registry);
    if !is_before_host {
        signal_self();
    }
    block_on(shutdown_signal());
    thread::sleep(seconds("GRACE").unwrap() + Duration::from_secs(1));
    ready();
    block_on(host.run(pending::<()>()))
}

/// The future of `stop_on` waits for a message of the program. The program ends without a message.
fn stop_on_channel_of_the_program() -> ExitCode {
    let registry = registry(SmolSpawner);
    start_task(&registry);
    let (sender, receiver) = smol::channel::bounded::<()>(1);
    let host = host(&registry).stop_on(async move { receiver.recv().await.unwrap() });
    let exit_code = block_on(host.run(async move { drop(sender) }));
    let is_asked = block_on(smol::future::poll_once(shutdown_signal())).is_some();
    println!("was asked to stop: {is_asked}");
    exit_code
}

/// The first host watches the file of WebJobs and ends. The second host ignores the file.
fn host_after_webjobs_host() -> ExitCode {
    block_on(host(&registry(SmolSpawner)).run(async {}));
    waits_with_task(|host| host.webjobs_file(false))
}

/// Runs an HTTP server whose handlers are tasks. The handler reads the whole body, and then never ends.
#[cfg(feature = "tower")]
fn detached_handler() -> ExitCode {
    use axum::{Router, body::Bytes, extract::rejection::BytesRejection, routing::post};
    use background_tasks_host::DetachLayer;

    let registry = registry(TokioSpawner);
    let handler = async |body: Result<Bytes, BytesRejection>| {
        println!("has the whole body: {}", body.is_ok());
        pending::<()>().await;
    };
    serve(&registry, Router::new().route("/", post(handler)).layer(DetachLayer::new(&registry).named("order")))
}

/// Starts a thread that calls `request_stop` when the test releases it.
fn stop_when_released() {
    thread::spawn(|| {
        stdin().read_line(&mut String::new()).unwrap();
        request_stop();
    });
}

/// The program itself calls `request_stop` two times.
fn requests_stop() -> ExitCode {
    let registry = registry(SmolSpawner);
    block_on(host(&registry).run(async {
        request_stop();
        registry.signal().await;
        request_stop();
        ready();
        released().await;
    }))
}

/// The recipe on the page `recipes`: an orchestrator stops the service with an HTTP request.
fn http_stop() -> ExitCode {
    use axum::http::StatusCode;
    use axum::{Router, routing::post};

    let stop = async || {
        request_stop();
        StatusCode::ACCEPTED
    };
    serve(&registry(TokioSpawner), Router::new().route("/stop", post(stop)))
}

/// Simulates a runtime of AWS Lambda: it requests an event, handles the event, sends the response, and requests the next event.
#[cfg(feature = "tower")]
fn lambda() -> ExitCode {
    use background_tasks_host::SettleLayer;
    use event_listener::Event;
    use std::sync::Arc;
    use testing::Client;
    use tower::{Service, ServiceBuilder, service_fn};

    async fn request(method: &'static str, path: String) -> String {
        let address = env::var("RUNTIME_API").unwrap().parse().unwrap();
        smol::unblock(move || Client::connect(address).unwrap().request(method, &path, &[]).unwrap().text().to_owned()).await
    }

    let registry = registry(SmolSpawner);
    let tasks = registry.clone();
    let handle_and_respond = service_fn(move |event: String| {
        let responded = Arc::new(Event::new());
        let (listener, name) = (responded.listen(), event.clone());
        tasks.run(async move {
            listener.await;
            smol::Timer::after(Duration::from_millis(300)).await;
            request("POST", format!("/{name}/task-has-ended")).await;
        });
        async move {
            request("POST", format!("/{event}/response")).await;
            responded.notify(1);
            Ok::<_, std::io::Error>(())
        }
    });
    let mut service = ServiceBuilder::new().layer(SettleLayer::new(&registry)).service(handle_and_respond);
    block_on(async {
        loop {
            let event = request("GET", "/next".into()).await;
            service.call(event).await.unwrap();
        }
    })
}

fn pending_task() -> ExitCode {
    let registry = registry(SmolSpawner);
    registry.named("endless").run(pending::<()>());
    block_on(host(&registry).run(async {
        ready();
        registry.signal().await;
    }))
}

fn critical() -> ExitCode {
    let registry = registry(SmolSpawner);
    start_task(&registry);
    registry.named("lease").critical().run(async { Err::<(), _>("lost") });
    block_on(host(&registry).run(registry.signal()))
}

/// A critical task of a later phase is lost while an earlier phase drains.
fn critical_worker() -> ExitCode {
    let (requests, workers) = (registry(SmolSpawner), registry(SmolSpawner));
    let signal = requests.signal();
    workers.named("lease").critical().run(async move {
        signal.await;
        Err::<(), _>("lost")
    });
    let lost = workers.signal();
    requests.run(async move {
        lost.await;
        println!("the workers have the signal");
    });
    block_on(host(&requests).then(&workers).run(async {
        ready();
        requests.signal().await;
    }))
}

/// The registry is full when shutdown starts. The program does not end.
fn full() -> ExitCode {
    let registry = full_registry();
    block_on(host(&registry).run(async {
        ready();
        registry.signal().await;
        println!("triggered");
        pending::<()>().await;
    }))
}

/// The registry is full when shutdown starts. The program waits for a permit, and starts its last task.
fn full_with_last_task() -> ExitCode {
    let registry = full_registry();
    block_on(host(&registry).run(async {
        ready();
        registry.signal().await;
        println!("triggered");
        let last = async { println!("the last task") };
        registry.follow_up().run_when_ready(last).await.map_err(|rejected| rejected.reason())
    }))
}

/// The program shuts its registry down while no task is in flight. The program itself does not end.
fn outlives_its_registry() -> ExitCode {
    let registry = registry(SmolSpawner);
    block_on(host(&registry).run(async {
        drop(registry.shutdown());
        ready();
        pending::<()>().await;
    }))
}

/// After the host has ended, `main` works for longer than the grace period, and then prints `ready`.
fn main_blocked() -> ExitCode {
    block_on(host(&registry(SmolSpawner)).run(async {}));
    thread::sleep(Duration::from_millis(1500));
    ready();
    block_forever()
}

fn waits_with_task(configure: fn(Host) -> Host) -> ExitCode {
    let registry = registry(SmolSpawner);
    let handle = registry.clone();
    registry.named("task").run(async move {
        released().await;
        println!("the task ends, the registry is shutting down: {}", handle.is_shutting_down());
    });
    block_on(configure(host(&registry)).run(async {
        ready();
        registry.signal().await;
    }))
}

/// An observer blocks the thread of the drain forever.
fn drain_blocked() -> ExitCode {
    struct Blocker;
    impl Observer for Blocker {
        fn shutdown_started(&self, _in_flight: usize) {
            block_forever()
        }
    }
    let registry = Registry::builder(SmolSpawner).inspect().observer(Blocker).build();
    registry.named("task").run(pending::<()>());
    block_on(host(&registry).run(async {
        ready();
        registry.signal().await;
    }))
}

fn start_up_blocked() -> ExitCode {
    let _host = host(&registry(SmolSpawner));
    let signal = shutdown_signal();
    ready();
    block_on(signal);
    println!("triggered");
    block_forever()
}

fn run_dropped() -> ExitCode {
    let registry = registry(SmolSpawner);
    let signal = shutdown_signal();
    block_on(smol::future::or(async { assert_eq!(host(&registry).run(pending::<()>()).await, 0.into()) }, async {}));
    ready();
    block_on(signal);
    println!("triggered, the registry is shutting down: {}", registry.is_shutting_down());
    block_on(released());
    7.into()
}

fn run_dropped_without_signal() -> ExitCode {
    let registry = registry(SmolSpawner);
    block_on(smol::future::or(async { assert_eq!(host(&registry).run(pending::<()>()).await, 0.into()) }, async {}));
    ready();
    block_forever()
}

fn host_dropped() -> ExitCode {
    drop(host(&registry(SmolSpawner)));
    ready();
    block_forever()
}

fn run_dropped_in_drain() -> ExitCode {
    let registry = registry(SmolSpawner);
    registry.named("endless").run(pending::<()>());
    let run = async { assert_eq!(host(&registry).run(async {}).await, 0.into()) };
    block_on(smol::future::or(run, released()));
    println!("dropped");
    block_forever()
}

/// After a request to stop, the process runs a second host. The second host runs for longer than the first host's `main_timeout`.
fn second_host() -> ExitCode {
    let first = registry(SmolSpawner);
    block_on(host(&first).main_timeout(Duration::from_secs(2)).run(async {
        ready();
        first.signal().await;
    }));
    let second = registry(SmolSpawner);
    let mut host = host(&second);
    if env::var_os("FORGET").is_some() {
        host = host.forget_stop_request();
    }
    block_on(host.run(async {
        smol::Timer::after(Duration::from_secs(3)).await;
        println!("the second registry is shutting down: {}", second.is_shutting_down());
        second.signal().await;
    }))
}

/// Returns the folders in `/proc` of the threads that have this name.
#[cfg(target_os = "linux")]
fn threads(name: &str) -> Vec<PathBuf> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    tasks.filter(|task| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == name)).collect()
}

/// Waits until at most `len` threads have this name.
#[cfg(target_os = "linux")]
fn wait_for_threads(name: &str, len: usize) {
    testing::poll_until(&name, || threads(name).len() <= len);
}

/// Prints the signals that the thread blocks.
#[cfg(target_os = "linux")]
fn signals_thread() -> ExitCode {
    let _host = host(&registry(SmolSpawner));
    // A new thread sets its name itself.
    let thread = testing::poll_until_some(&"the thread", || threads("signals").pop());
    let status = fs::read_to_string(thread.join("status")).unwrap();
    println!("{}", status.lines().find(|line| line.starts_with("SigBlk:")).unwrap());
    0.into()
}

/// Within the program of a host, another host runs to its end. This host has a short grace period, and on request a short time for `main`.
#[cfg(target_os = "linux")]
fn host_within_host() -> ExitCode {
    let (outer, inner) = (registry(SmolSpawner), registry(SmolSpawner));
    block_on(host(&outer).run(async {
        let host = Host::new(&inner).grace(Duration::from_millis(100));
        if let Some(timeout) = seconds("INNER_MAIN_TIMEOUT") {
            host.main_timeout(timeout).run(async {}).await;
            wait_for_threads("deadline", 0);
        } else {
            host.run(async {}).await;
        }
        ready();
        outer.signal().await;
        if env::var_os("IS_PENDING").is_some() {
            pending::<()>().await;
        }
        // The other thread enforces the deadline of the outer host.
        wait_for_threads("deadline", 1);
    }))
}

#[cfg(target_os = "linux")]
fn hosts_that_have_ended() -> ExitCode {
    for _ in 0..50 {
        block_on(host(&registry(SmolSpawner)).run(async {}));
    }
    for name in ["deadline", "drain", "output"] {
        wait_for_threads(name, 1);
    }
    7.into()
}

#[cfg(target_os = "linux")]
fn forgotten_host() -> ExitCode {
    let registry = registry(SmolSpawner);
    block_on(host(&registry).main_timeout(Duration::from_secs(2)).run(async {
        ready();
        registry.signal().await;
    }));
    drop(Host::new(&registry).forget_stop_request());
    wait_for_threads("deadline", 0);
    7.into()
}

fn host_ends_before_another() -> ExitCode {
    let registry = registry(SmolSpawner);
    let mut other = None;
    block_on(host(&registry).main_timeout(Duration::ZERO).run(async { other = Some(Host::new(&registry)) }));
    7.into()
}

/// At its end, `main` drops a runtime. The runtime waits for a read from stdin.
fn blocking_read() -> ExitCode {
    on_tokio(async || {
        let registry = registry(TokioSpawner);
        let host = host(&registry);
        tokio::task::spawn_blocking(|| stdin().read_line(&mut String::new()));
        host.run(async {
            ready();
            registry.signal().await;
        })
        .await
    })
}

fn ends_in_drain(end: impl Future<Output = Result<(), &'static str>>) -> ExitCode {
    let registry = registry(SmolSpawner);
    block_on(host(&registry).run(async {
        ready();
        registry.signal().await;
        end.await
    }))
}

/// Another thread aborts the task of the program. For example, the dashboard can do the same.
fn program_aborted_by_other_code() -> ExitCode {
    let registry = registry(SmolSpawner);
    let aborts = registry.clone();
    thread::spawn(move || {
        block_on(aborts.signal());
        assert_eq!(aborts.abort().aborted, 1);
    });
    block_on(host(&registry).run(async {
        ready();
        pending::<()>().await;
    }))
}

/// The registry aborts every task that starts. The registry also aborts the task of the program, before the host counts the program as in
/// flight. The guard keeps the registry open.
fn program_of_aborting_registry() -> ExitCode {
    let registry = registry(SmolSpawner);
    let guard = registry.guard().unwrap();
    drop(block_on(registry.shutdown().or_abort(async {}, async || {})));
    block_on(host(&registry).run(async move {
        pending::<()>().await;
        drop(guard);
    }))
}

fn shut_down_by_a_task() -> ExitCode {
    let registry = registry(SmolSpawner);
    let handle = registry.clone();
    registry.run(async move {
        ready();
        released().await;
        drop(handle.shutdown());
        stdout().flush().unwrap();
    });
    block_on(host(&registry).run(registry.signal()))
}

/// The registry is full, so it rejects the task `mail`.
fn rejects(configure: fn(Host) -> Host) -> ExitCode {
    let registry = full_registry();
    registry.named("mail").run(async {});
    block_on(configure(host(&registry)).run(async {
        ready();
        registry.signal().await;
    }))
}

/// Like [`rejects`], but the program ends without a signal while no task is in flight.
fn rejects_before_its_end(configure: fn(Host) -> Host) -> ExitCode {
    let registry = Registry::builder(SmolSpawner).max_in_flight(1).build();
    let guard = registry.guard().unwrap();
    registry.named("mail").run(async {});
    drop(guard);
    block_on(configure(host(&registry)).run(async {}))
}

/// Runs an HTTP server. At the end, the server waits until all its connections are closed.
fn server(registry: &Registry<TokioSpawner>) -> ExitCode {
    let tasks = registry.clone();
    let run = async move || tasks.named("mail").run(async {});
    serve(registry, axum::Router::new().route("/", axum::routing::get(run)))
}

/// Runs the app as the program of a host, and prints the address of its server.
fn serve(registry: &Registry<TokioSpawner>, app: axum::Router) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(host(registry).run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("listening on {}", listener.local_addr()?);
        axum::serve(listener, app).with_graceful_shutdown(registry.signal()).await
    }))
}

fn server_and_task(registry: &Registry<TokioSpawner>) -> ExitCode {
    let _guard = registry.named("queue").guard().unwrap();
    server(registry)
}

fn many_tasks() -> ExitCode {
    let registry = registry(SmolSpawner);
    for name in ["mail", "mail", "upload"] {
        registry.named(name).run(pending::<()>());
    }
    block_on(host(&registry).run(async {
        ready();
        registry.signal().await;
    }))
}

/// The program ends while its task is still in flight.
fn task_without_inspection() -> ExitCode {
    let registry = Registry::new(SmolSpawner);
    registry.named("mail").run(pending::<()>());
    block_on(host(&registry).run(async {
        ready();
        registry.signal().await;
        released().await;
    }))
}

/// Runs a program with a global tracing subscriber.
#[cfg(feature = "tracing")]
fn traced(program: impl FnOnce() -> ExitCode) -> ExitCode {
    tracing::subscriber::set_global_default(events::ToStderr).unwrap();
    program()
}

/// A critical task reports no progress, and ends at the shutdown signal.
#[cfg(feature = "tracing")]
fn stalled_until_the_signal() -> ExitCode {
    let registry = Registry::builder(SmolSpawner).inspect().observer(TracingObserver).build();
    let liveness = Liveness::new("importer", LIVENESS_TIMEOUT).critical();
    let host = host(&registry).liveness(&liveness);
    let signal = registry.signal();
    registry.named("importer").run(async move {
        signal.await;
        drop(liveness);
    });
    block_on(host.run(registry.signal()))
}

/// A task blocks its thread until the process exits.
#[cfg(feature = "tracing")]
fn blocks_its_thread() -> ExitCode {
    let registry = Registry::builder(SmolSpawner).inspect().build();
    let (started, is_blocked) = std::sync::mpsc::channel();
    registry.named("mail").run(async move {
        started.send(()).unwrap();
        block_forever()
    });
    is_blocked.recv().unwrap();
    block_on(host(&registry).run(async {
        ready();
        registry.signal().await;
    }))
}

/// The program fails while a task waits for the shutdown signal.
#[cfg(feature = "tracing")]
fn fails_at_start(observer: impl Observer) -> ExitCode {
    let registry = Registry::builder(SmolSpawner).observer(observer).build();
    registry.run(registry.signal());
    block_on(host(&registry).run(async { Err::<(), _>("broken") }))
}

/// The program fails after shutdown has started, when no other task is in flight.
#[cfg(feature = "tracing")]
fn fails_in_drain(observer: impl Observer) -> ExitCode {
    let registry = Registry::builder(SmolSpawner).observer(observer).build();
    block_on(host(&registry).run(async {
        ready();
        registry.signal().await;
        released().await;
        Err::<(), _>("broken")
    }))
}

#[cfg(feature = "tracing")]
mod events {
    use std::fmt::{Debug, Write};
    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    /// Writes each event to stderr as one line with its level, its target and its fields.
    pub(super) struct ToStderr;

    struct Line(String);

    impl Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            let _ = write!(self.0, " {}={value:?}", field.name());
        }
    }

    impl Subscriber for ToStderr {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, event: &Event<'_>) {
            let mut line = Line(format!("{} {}:", event.metadata().level(), event.metadata().target()));
            event.record(&mut line);
            if line.0.contains("no progress") {
                // A slow output shows whether other threads wait for this line.
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            eprintln!("{}", line.0);
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }
}
