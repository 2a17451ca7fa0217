//! Describes how child processes survive Ctrl-C until their tasks have ended.
//!
//! A terminal sends the SIGINT of Ctrl-C to each process of its foreground process group: to the program, and to the child
//! processes of the program. Most child processes end immediately. A task that waits for such a child then fails before the drain
//! can wait for it.
//!
//! To prevent this, start the child in its own process group:
//!
//! ```no_run
//! # #[cfg(all(unix, feature = "smol"))]
//! # fn start(registry: &background_tasks::Registry<background_tasks::SmolSpawner>) {
//! use smol::process::Command;
//! use std::os::unix::process::CommandExt;
//!
//! registry.named("thumbnail").run(async {
//!     let mut command = std::process::Command::new("convert");
//!     command.args(["photo.png", "-resize", "200", "thumbnail.png"]).process_group(0);
//!     let status = Command::from(command).kill_on_drop(true).status().await?;
//!     if status.success() { Ok(()) } else { Err(std::io::Error::other(format!("convert failed: {status}"))) }
//! });
//! # }
//! ```
//!
//! `process_group(0)` creates a process group whose ID is the process ID of the child. The `Command` of tokio has the same
//! method, and can also be made from a `Command` of `std`. On Windows, set the creation flag `CREATE_NEW_PROCESS_GROUP` instead:
//! the child then does not receive Ctrl-C.
//!
//! # What the program must do instead
//!
//! The terminal no longer ends the child, so the program must end it:
//!
//! - End the child if its task is aborted. With `kill_on_drop(true)`, the runtime kills the child when the task's future is
//!   dropped. A blocking closure that has started cannot be aborted. Therefore a closure that waits for a child should check the
//!   [signal](crate::ShutdownSignal::is_triggered) and kill the child.
//! - End the child if the deadline expires. If the process exits while its child runs, the child continues. Wait for the drain of an
//!   [inspected](crate::RegistryBuilder::inspect) registry with [`or_abort`](crate::Shutdown::or_abort), so that the abort drops the
//!   task before the process exits. Without inspection, `or_abort` aborts no task.
//! - Do not let the child read from the terminal. The kernel stops a child that does so while another process group is in the
//!   foreground.
//!
//! # Other senders of signals
//!
//! The process group protects the child only from signals of the terminal:
//!
//! - systemd sends SIGTERM to all processes of a service, and so to the child. `KillMode=mixed` sends SIGTERM only to the main
//!   process.
//! - Docker and Kubernetes send SIGTERM only to process 1 of a container, and so not to the child. When process 1 exits, the kernel
//!   kills all other processes of the container.
