use crate::{Error, Queue};
use background_tasks::{Reason, Registry, Spawner};
use chrono::{DateTime, Utc};
use cron::Schedule;
use futures_timer::Delay;
use serde::Serialize;
use std::panic::Location;
use std::time::{Duration, SystemTime};

/// How late a tick may be enqueued: what a restart takes.
const LATE: Duration = Duration::from_secs(300);

/// The clock may be set while a task sleeps, so it is looked at now and then.
const LOOK: Duration = Duration::from_secs(30);

impl<T: Serialize + Send + 'static> Queue<T> {
    /// Enqueues a job at each tick of a schedule, from a task of the registry, until it shuts down: seconds, minutes, hours, day of the
    /// month, month, day of the week, and if one likes the year, in UTC. `0 0 3 * * *` is every night at three.
    ///
    /// Any number of processes may run the schedule: the job of a tick has the tick as its [key](crate::Enqueue::unique), so it is
    /// enqueued once. When the task starts it looks 5 minutes back, for the tick that passed while the program was restarted.
    /// While the store is away it tries again, and tells it to the registry's observer as a failed task.
    ///
    /// # Errors
    ///
    /// [`Error::Schedule`] if the text is none, and [`Error::Refused`] if the registry does not take the task.
    #[track_caller]
    pub fn cron<S>(
        &self,
        registry: &Registry<S>,
        schedule: &str,
        job: impl Fn(SystemTime) -> T + Send + Sync + 'static,
    ) -> Result<(), Error>
    where
        S: Spawner + Clone + Send + Sync + 'static,
    {
        let at = Location::caller();
        let ticks: Schedule = schedule.parse().map_err(|error| Error::Schedule(format!("{schedule}: {error}")))?;
        let (queue, schedule, signal) = (self.clone(), schedule.to_owned(), registry.signal());
        let name = &*Box::leak(format!("{} cron", self.name).into_boxed_str());
        let others = registry.clone();
        let report = move |error: Error| others.named(name).at(at).run(async move { Err::<(), _>(error) });
        if registry.is_shutting_down() && !registry.is_drained() {
            return Err(Error::Refused(Reason::ShuttingDown));
        }
        let started = registry.named(name).at(at).try_run(async move {
            let run = async {
                let mut last = DateTime::<Utc>::from(SystemTime::now() - LATE);
                // Of those that were missed, the last.
                if let Some(missed) = ticks.after(&last).take_while(|tick| *tick <= Utc::now()).last() {
                    last = missed - Duration::from_secs(1);
                } else {
                    last = Utc::now();
                }
                while let Some(tick) = ticks.after(&last).next() {
                    while let Ok(left) = (tick - Utc::now()).to_std() {
                        Delay::new(left.min(LOOK)).await;
                    }
                    let key = format!("cron {schedule} {}", tick.timestamp());
                    let mut told = false;
                    while let Err(error) = queue.enqueue(job(tick.into())).unique(&key).await {
                        if matches!(error, Error::Encode(_)) {
                            report(error);
                            break; // as it would be for ever
                        }
                        if !std::mem::replace(&mut told, true) {
                            report(error);
                        }
                        Delay::new(Duration::from_secs(1)).await;
                    }
                    last = tick;
                }
            };
            signal.run_until_shutdown(run).await;
        });
        started.map_err(|refused| Error::Refused(refused.reason()))
    }
}
