use crate::options::{Command, Options};
use background_tasks::{Registry, SmolSpawner};
use background_tasks_host::{Host, StderrObserver, notify_ready};
use smol::Timer;
use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::fs::File;
use std::future::pending;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use windows_service::service::{
    ServiceAccess, ServiceAction, ServiceActionType, ServiceErrorControl, ServiceFailureActions, ServiceFailureResetPeriod,
    ServiceInfo, ServiceStartType, ServiceType,
};
use windows_service::service_manager::{ServiceManager, ServiceManagerAccess};
use windows_service::{define_windows_service, service_dispatcher};

const NAME: &str = "invoices";
/// After the grace period, the host needs less than this time for its last reports.
const REPORT_TIME: Duration = Duration::from_secs(4);

pub(crate) fn main() -> ExitCode {
    let done = match Command::from_args() {
        Command::Install(options) => install(&options),
        Command::Uninstall => uninstall(),
        Command::Console(options) => return run(&options, |host| host, &[]),
        // This call returns when the service has stopped.
        Command::Service(_) => service_dispatcher::start(NAME, ffi_service_main).map_err(Into::into),
    };
    if let Err(error) = done {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        eprintln!("{error}{cause}");
        return 2.into();
    }
    0.into()
}

fn install(options: &Options) -> Result<(), Box<dyn Error>> {
    let manager = ServiceManager::local_computer(None::<&str>, ServiceManagerAccess::CREATE_SERVICE)?;
    let service = ServiceInfo {
        name: NAME.into(),
        display_name: "Invoices".into(),
        service_type: ServiceType::OWN_PROCESS,
        start_type: ServiceStartType::AutoStart,
        error_control: ServiceErrorControl::Normal,
        executable_path: env::current_exe()?,
        launch_arguments: options.service_arguments()?,
        dependencies: Vec::new(),
        account_name: None, // the local system
        account_password: None,
    };
    // A handle that sets a restart action needs the right to start the service.
    let service = manager.create_service(&service, ServiceAccess::CHANGE_CONFIG | ServiceAccess::START)?;
    service.set_description("Sends invoices, and finishes those in flight before it stops")?;
    // When the system shuts down, Windows waits this long until the service has stopped.
    service.set_preshutdown_timeout(options.grace.saturating_add(REPORT_TIME))?;
    // Windows restarts the service a minute after a crash.
    service.update_failure_actions(ServiceFailureActions {
        reset_period: ServiceFailureResetPeriod::After(Duration::from_secs(24 * 60 * 60)),
        reboot_msg: None,
        command: None,
        actions: Some(vec![ServiceAction { action_type: ServiceActionType::Restart, delay: Duration::from_secs(60) }]),
    })?;
    // An exit code other than 0 must have the same effect. Otherwise Windows would not treat it as a failure, because the host reports that
    // the service has stopped. Wine does not support this setting.
    if let Err(error) = service.set_failure_actions_on_non_crash_failures(true) {
        eprintln!("only a crash restarts the service: {error:?}");
    }
    Ok(())
}

fn uninstall() -> Result<(), Box<dyn Error>> {
    let manager = ServiceManager::local_computer(None::<&str>, ServiceManagerAccess::CONNECT)?;
    let service = manager.open_service(NAME, ServiceAccess::STOP | ServiceAccess::DELETE)?;
    // If the service is not running, this call fails, and the error is ignored. If the service is running, Windows deletes it after it has
    // stopped.
    let _ = service.stop();
    service.delete()?;
    Ok(())
}

define_windows_service!(ffi_service_main, service_main);

/// The main function of the service. It returns no exit code, because the host has already reported the exit code to Windows.
#[expect(clippy::needless_pass_by_value, reason = "the macro passes a `Vec`")]
fn service_main(arguments: Vec<OsString>) {
    // `from_args` reads the arguments of the process, and not `arguments`. `main` has already checked them.
    if let Command::Service(options) = Command::from_args() {
        run(&options, |host| host.windows_service(NAME).running_when_ready(), &arguments);
    }
}

/// Runs the program. Only the tests start the service with `arguments`.
fn run(options: &Options, configure: impl FnOnce(Host) -> Host, arguments: &[OsString]) -> ExitCode {
    let has_argument = |expected: &str| arguments.iter().any(|argument| argument == expected);
    let registry = Registry::builder(SmolSpawner).observer(StderrObserver).inspect().build();
    let host = configure(Host::new(&registry).grace(options.grace));
    if has_argument("forget-host") {
        return 0.into(); // drops the host
    }
    if has_argument("slow-start") {
        thread::sleep(Duration::from_secs(3));
    }
    if has_argument("hang") {
        registry.named("hang").run(pending::<()>());
    }
    smol::block_on(host.run(async {
        // A service has no console, so it writes to a file.
        let log = Arc::new(File::create(options.log())?);
        let signal = registry.signal();
        if has_argument("slow-ready") {
            while !options.log().with_extension("ready").exists() {
                Timer::after(Duration::from_millis(10)).await;
            }
        }
        notify_ready(); // Windows shows the state "running" from now on
        if has_argument("hang") {
            signal.await;
            return Ok(());
        }
        let mut number = 0;
        while signal.run_until_shutdown(Timer::after(Duration::from_millis(500))).await.is_some() {
            number += 1;
            registry.named("invoice").run(send(number, log.clone()));
        }
        writeln!(&*log, "{number} invoices were started")?;
        io::Result::Ok(())
    }))
}

/// Simulates the sending of an invoice, which takes three seconds.
async fn send(number: u32, log: Arc<File>) -> io::Result<()> {
    Timer::after(Duration::from_secs(3)).await;
    writeln!(&*log, "invoice {number} is sent")
}
