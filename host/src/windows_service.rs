//! Reports the state of a Win32 service, on Windows with the feature `windows-service`. Reports nothing before a service is registered.

pub(crate) use imp::*;

#[cfg(all(feature = "windows-service", windows))]
mod imp {
    use crate::program::FAILED;
    use crate::signals;
    use crate::sync::lock;
    use crate::terminal::{Level, log};
    use std::io;
    use std::sync::Mutex;
    use std::time::Duration;
    use windows_service::service::{
        ServiceControl, ServiceControlAccept, ServiceExitCode, ServiceState, ServiceStatus, ServiceType,
    };
    use windows_service::service_control_handler::{self, ServiceControlHandlerResult, ServiceStatusHandle};

    /// The wait hint that Windows receives when the service starts. The host announces that it runs within this time.
    const START_WAIT_HINT: Duration = Duration::from_secs(30);

    /// The registered service. `None` if no service is registered, or after the host has reported it as stopped.
    static SERVICE: Mutex<Option<Service>> = Mutex::new(None);

    struct Service {
        handle: ServiceStatusHandle,
        state: ServiceState,
        /// The progress counter of Windows. Increases with each report while the service starts or stops.
        checkpoint: u32,
        /// Whether the program calls `notify_ready` when it is ready.
        waits_for_ready: bool,
    }

    /// The service of one host.
    #[derive(Default)]
    pub(crate) struct HostService {
        is_registered: bool,
        waits_for_ready: bool,
    }

    impl HostService {
        /// Registers the service, and reports to Windows that the service is starting. As soon as the service is running, the controls with
        /// which Windows stops the service ask the process to stop.
        pub(crate) fn register(&mut self, name: &str) -> io::Result<()> {
            let handle = service_control_handler::register(name, on_control).map_err(|error| match error {
                windows_service::Error::Winapi(error) => error,
                error => io::Error::other(error),
            })?;
            let waits_for_ready = self.waits_for_ready;
            *lock(&SERVICE) = Some(Service { handle, state: ServiceState::StartPending, checkpoint: 0, waits_for_ready });
            self.is_registered = true;
            report(ServiceState::StartPending, START_WAIT_HINT, 0);
            Ok(())
        }

        /// Keeps the service in the state "start pending" until [`report_ready`] is called.
        pub(crate) fn wait_for_ready(&mut self) {
            self.waits_for_ready = true;
            if let Some(service) = lock(&SERVICE).as_mut().filter(|_| self.is_registered) {
                service.waits_for_ready = true;
            }
        }

        /// Reports that the program has started, unless [`wait_for_ready`](Self::wait_for_ready) was called.
        pub(crate) fn report_started(&self) {
            if self.is_registered && !self.waits_for_ready {
                report(ServiceState::Running, Duration::ZERO, 0);
            }
        }

        /// Reports that the service has stopped.
        pub(crate) fn report_stopped(&self, exit_code: u8) {
            if self.is_registered {
                report_stopped(exit_code);
            }
        }
    }

    impl Drop for HostService {
        /// Windows waits until a service has reported that it is stopped, even if the program has dropped its host.
        fn drop(&mut self) {
            self.report_stopped(FAILED);
        }
    }

    fn on_control(control: ServiceControl) -> ServiceControlHandlerResult {
        match control {
            ServiceControl::Stop | ServiceControl::Shutdown | ServiceControl::Preshutdown => {
                signals::request_stop_by("the service control manager");
                ServiceControlHandlerResult::NoError
            }
            ServiceControl::Interrogate => ServiceControlHandlerResult::NoError,
            _ => ServiceControlHandlerResult::NotImplemented,
        }
    }

    /// Reports that the program is ready. Has an effect only if [`wait_for_ready`](HostService::wait_for_ready) was called.
    pub(crate) fn report_ready() {
        if lock(&SERVICE).as_ref().is_some_and(|service| service.waits_for_ready) {
            report(ServiceState::Running, Duration::ZERO, 0);
        }
    }

    /// Reports that the service is stopping and has made progress. The next report must follow within `wait_hint`, or Windows can treat the
    /// service as hung.
    pub(crate) fn report_stopping(wait_hint: Duration) {
        report(ServiceState::StopPending, wait_hint, 0);
    }

    /// Reports that the service has stopped, with this exit code. After this report, Windows can end the process.
    pub(crate) fn report_stopped(exit_code: u8) {
        report(ServiceState::Stopped, Duration::ZERO, exit_code);
    }

    fn report(state: ServiceState, wait_hint: Duration, exit_code: u8) {
        let mut registered = lock(&SERVICE);
        let Some(service) = &mut *registered else { return };
        // The shutdown may have started before the program was ready, or the program may have called `notify_ready` two times.
        if state == ServiceState::Running && service.state != ServiceState::StartPending {
            return;
        }
        service.state = state;
        let is_pending = matches!(state, ServiceState::StartPending | ServiceState::StopPending);
        service.checkpoint = if is_pending { service.checkpoint + 1 } else { 0 };
        let controls = ServiceControlAccept::STOP | ServiceControlAccept::SHUTDOWN | ServiceControlAccept::PRESHUTDOWN;
        let status = ServiceStatus {
            service_type: ServiceType::OWN_PROCESS,
            current_state: state,
            controls_accepted: if state == ServiceState::Running { controls } else { ServiceControlAccept::empty() },
            exit_code: match exit_code {
                0 => ServiceExitCode::Win32(0),
                code => ServiceExitCode::ServiceSpecific(code.into()),
            },
            checkpoint: service.checkpoint,
            wait_hint,
            process_id: None,
        };
        let reported = service.handle.set_service_status(status);
        if state == ServiceState::Stopped {
            *registered = None;
        }
        drop(registered);
        if let Err(error) = reported {
            log(Level::Warn, format_args!("failed to report the state of the service: {error}"));
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        /// Only Windows can send the controls shutdown and preshutdown, so this test calls the handler.
        #[test]
        fn controls_that_end_the_service_request_a_stop() {
            for control in [ServiceControl::Stop, ServiceControl::Shutdown, ServiceControl::Preshutdown] {
                signals::forget_stop_request();
                assert!(matches!(on_control(control), ServiceControlHandlerResult::NoError));
                assert!(signals::requested_at().is_some(), "{control:?}");
            }
            signals::forget_stop_request();
            on_control(ServiceControl::Interrogate);
            assert!(signals::requested_at().is_none());
        }
    }
}

#[cfg(not(all(feature = "windows-service", windows)))]
mod imp {
    use std::time::Duration;

    #[derive(Default)]
    pub(crate) struct HostService {}

    #[expect(clippy::unused_self, reason = "the signatures on Windows")]
    impl HostService {
        #[cfg(feature = "windows-service")]
        #[expect(clippy::unnecessary_wraps, reason = "the signature on Windows")]
        pub(crate) fn register(&mut self, _name: &str) -> std::io::Result<()> {
            Ok(())
        }

        #[cfg(feature = "windows-service")]
        pub(crate) fn wait_for_ready(&mut self) {}

        pub(crate) fn report_started(&self) {}

        pub(crate) fn report_stopped(&self, _exit_code: u8) {}
    }

    #[cfg(any(feature = "systemd", feature = "windows-service"))]
    pub(crate) fn report_ready() {}

    pub(crate) fn report_stopping(_wait_hint: Duration) {}

    pub(crate) fn report_stopped(_exit_code: u8) {}
}
