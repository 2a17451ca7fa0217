//! The programs. Each tells `ready` once its test may begin, and waits for a line where its test decides when it goes on.

use background_tasks::{Registry, SmolSpawner, Spawner, TokioSpawner};
use background_tasks_host::{Host, StderrObserver, terminated};
use smol::future::{block_on, pending};
use std::env;
use std::future::Future;
use std::io::{Write, stdin, stdout};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

pub(crate) fn run(program: &str) -> ExitCode {
    match program {
        "tokio_blocked" => on_tokio(|| blocked(TokioSpawner)),
        "executor_blocked" => executor_blocked(),
        "program_blocked" => program_blocked(),
        "error" => ends_with(Err("broken")),
        "success" => ends_with(Ok(())),
        "panic" => panics(),
        "phases" => phases(),
        "terminated" => terminated_alone(),
        "waits" => waits(|host| host),
        "waits_with_hangup" => waits(Host::hangup),
        "asked_before_run" => asked_before_run(),
        "runtime_hangs" => runtime_hangs(),
        "untracked_hangs" => untracked_hangs(),
        "pending_task" => pending_task(),
        "shut_down_by_a_task" => shut_down_by_a_task(),
        "critical" => critical(),
        "critical_worker" => critical_worker(),
        "full" => full(),
        "drained_by_itself" => drained_by_itself(),
        "main_hangs" => main_hangs(),
        "hangup_with_work" => hangup_with_work(),
        "start_up_hangs" => start_up_hangs(),
        "run_is_dropped" => run_is_dropped(),
        "nothing" => block_on(host(&Registry::new(())).run(async {})),
        other => panic!("there is no program {other}"),
    }
}

fn registry<S>(spawner: S) -> Registry<S> {
    Registry::builder(spawner).inspect().observer(StderrObserver).build()
}

fn host<S>(registry: &Registry<S>) -> Host {
    let grace = env::var("GRACE").map_or(Duration::from_secs(3600), |grace| Duration::from_secs_f64(grace.parse().unwrap()));
    Host::new(registry).grace(grace)
}

fn ready() {
    println!("ready");
}

/// Waits for the test, on a thread that is not the executor's.
async fn released() {
    smol::unblock(|| stdin().read_line(&mut String::new()).unwrap()).await;
}

fn hang() -> ! {
    loop {
        thread::park();
    }
}

fn on_tokio<F: Future<Output = ExitCode>>(program: impl FnOnce() -> F) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { program().await })
}

/// The one thread of the executor is held by a task, for ever.
async fn blocked<S: Spawner>(spawner: S) -> ExitCode {
    let registry = registry(spawner);
    registry.named("blocker").run(async {
        ready();
        print!("no newline");
        if env::var_os("LOCKED").is_some() {
            std::mem::forget(stdout().lock());
        }
        hang();
    });
    host(&registry).run(registry.signal()).await
}

fn executor_blocked() -> ExitCode {
    static EXECUTOR: smol::Executor<'static> = smol::Executor::new();
    block_on(EXECUTOR.run(blocked(&EXECUTOR)))
}

/// It does not look at the signal.
fn program_blocked() -> ExitCode {
    let registry = registry(SmolSpawner);
    block_on(host(&registry).run(async {
        ready();
        hang()
    }))
}

fn late(registry: &Registry<SmolSpawner>) {
    registry.named("late").run(async {
        released().await;
        println!("late work is done");
    });
}

fn ends_with(result: Result<(), &'static str>) -> ExitCode {
    let registry = registry(SmolSpawner);
    late(&registry);
    block_on(host(&registry).run(async {
        ready();
        result
    }))
}

fn panics() -> ExitCode {
    let registry = registry(SmolSpawner);
    late(&registry);
    block_on(host(&registry).run(async {
        ready();
        panic!("broken")
    }))
}

/// A request outlives the signal and then needs a worker.
fn phases() -> ExitCode {
    let (requests, workers) = (registry(SmolSpawner), registry(SmolSpawner));
    let (told, open) = (requests.signal(), workers.clone());
    requests.named("request").run(async move {
        told.await;
        println!("the requests are told");
        released().await;
        println!("the request ends, workers told: {}", open.is_shutting_down());
        let accepted = open.try_run(async { println!("the request's work is done") }).is_ok();
        println!("its work is accepted: {accepted}");
    });
    let told = workers.signal();
    workers.named("worker").run(async move {
        told.await;
        println!("the workers are told");
    });
    block_on(host(&requests).then(&workers).run(async {
        ready();
        requests.signal().await;
    }))
}

/// Without a host.
fn terminated_alone() -> ExitCode {
    let asked = terminated();
    ready();
    block_on(asked.clone());
    println!("asked");
    block_on(async {
        asked.await;
        terminated().await;
    });
    7.into()
}

fn waits(with: fn(Host) -> Host) -> ExitCode {
    let registry = registry(SmolSpawner);
    block_on(with(host(&registry)).run(async {
        ready();
        registry.signal().await;
    }))
}

fn asked_before_run() -> ExitCode {
    let registry = registry(SmolSpawner);
    let host = host(&registry);
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
    block_on(host.run(registry.signal()))
}

/// `main` drops a runtime that waits for its blocking work.
fn runtime_hangs() -> ExitCode {
    on_tokio(async || {
        let registry = registry(TokioSpawner);
        let host = host(&registry);
        registry.named("hangs").run_blocking(|| {
            ready();
            hang();
        });
        host.run(registry.signal()).await
    })
}

/// And for such as no registry knows of.
fn untracked_hangs() -> ExitCode {
    on_tokio(async || {
        let registry = registry(TokioSpawner);
        let host = host(&registry);
        tokio::task::spawn_blocking(|| {
            ready();
            hang();
        });
        host.run(registry.signal()).await
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
    registry.named("lease").critical().run(async { Err("lost") });
    late(&registry);
    block_on(host(&registry).run(registry.signal()))
}

/// A later phase's is lost while an earlier one drains.
fn critical_worker() -> ExitCode {
    let (requests, workers) = (registry(SmolSpawner), registry(SmolSpawner));
    let told = requests.signal();
    workers.named("lease").critical().run(async move {
        told.await;
        Err("lost")
    });
    let lost = workers.signal();
    requests.run(async move {
        lost.await;
        println!("the workers are told");
    });
    block_on(host(&requests).then(&workers).run(async {
        ready();
        requests.signal().await;
    }))
}

/// At the signal there is no place for the program, which does not end.
fn full() -> ExitCode {
    let registry = Registry::builder(SmolSpawner).max_in_flight(1).observer(StderrObserver).build();
    registry.run(released());
    block_on(host(&registry).run(async {
        ready();
        registry.signal().await;
        println!("told");
        pending::<()>().await;
    }))
}

/// It shuts its registry down while nothing is in flight, and does not end.
fn drained_by_itself() -> ExitCode {
    let registry = registry(SmolSpawner);
    block_on(host(&registry).run(async {
        drop(registry.shutdown());
        ready();
        pending::<()>().await;
    }))
}

fn main_hangs() -> ExitCode {
    block_on(host(&registry(SmolSpawner)).run(async {}));
    ready();
    hang()
}

fn hangup_with_work() -> ExitCode {
    let registry = registry(SmolSpawner);
    late(&registry);
    block_on(host(&registry).hangup().run(async {
        ready();
        registry.signal().await;
    }))
}

fn start_up_hangs() -> ExitCode {
    let _host = host(&registry(SmolSpawner));
    let asked = terminated();
    ready();
    block_on(asked);
    println!("asked");
    hang()
}

fn run_is_dropped() -> ExitCode {
    let registry = registry(SmolSpawner);
    block_on(smol::future::or(async { assert_eq!(host(&registry).run(pending::<()>()).await, 0.into()) }, async {}));
    ready();
    block_on(terminated());
    println!("asked, told: {}", registry.is_shutting_down());
    block_on(released());
    7.into()
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
