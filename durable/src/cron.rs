use crate::worker::{ANSWER, in_time};
use crate::{Error, Queue};
use background_tasks::{Registry, RejectReason, Spawner};
use chrono::{DateTime, Utc};
use cron::Schedule;
use futures_timer::Delay;
use futures_util::FutureExt;
use serde::Serialize;
use std::any::Any;
use std::panic::{AssertUnwindSafe, Location, resume_unwind};
use std::time::{Duration, SystemTime};

/// How late a tick may be enqueued: what a restart takes, or an outage of the store.
const LATE: Duration = Duration::from_mins(5);

/// How the keys of ticks begin. What is done keeps them for longer than a tick can be late, however short the jobs are retained.
const KEY: &str = "cron ";

/// The clock may be set while a task sleeps, so it is looked at now and then.
const LOOK: Duration = Duration::from_secs(30);

impl<T: Serialize + Send + 'static> Queue<T> {
    /// Enqueues a job at each tick of a schedule, from a task of the registry, until it shuts down: seconds, minutes, hours, day of the
    /// month, month, day of the week, and if one likes the year, in UTC. `0 0 3 * * *` is every night at three.
    ///
    /// Any number of processes may run the schedule: the job of a tick has the tick as its [key](crate::Enqueue::unique), so it is
    /// enqueued once. When the task starts it looks 5 minutes back, for the tick that passed while the program was restarted.
    /// While the store is away it tries again, and tells it to the registry's observer as a failed task. Ticks that are later than
    /// 5 minutes, as after a long outage or when the clock is set forward, are left out. Where `job` panics, its tick is left out too,
    /// and counts as a task that panicked.
    ///
    /// So two schedules that read the same are one on the same queue, whatever their jobs are: one of the two is enqueued.
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
        let ticks: Schedule = schedule.parse().map_err(|error: cron::error::Error| {
            // The text, where in it, and why, if there is a reason. Most begin with the minutes, of which the reason speaks as of seconds.
            let (told, fields) = (error.to_string(), schedule.split_whitespace().count());
            let why =
                told.lines().nth(2).filter(|_| fields > 5).unwrap_or("it has six fields, from seconds on, or seven with a year");
            Error::Schedule(format!("{schedule:?}: {why}"))
        })?;
        let (queue, schedule, signal) = (self.clone(), schedule.to_owned(), registry.signal());
        let name = &*Box::leak(format!("{} cron", self.name).into_boxed_str());
        let others = registry.clone();
        let report = move |error: Error| others.named(name).location(at).run(async move { Err::<(), _>(error) });
        let others = registry.clone();
        let panicked = move |payload| {
            let unwind: fn(Box<dyn Any + Send>) = |payload| resume_unwind(payload);
            others.named(name).location(at).run(async move { unwind(payload) });
        };
        if registry.is_shutting_down() && !registry.is_drained() {
            return Err(Error::Refused(RejectReason::ShuttingDown));
        }
        let work = async move {
            let run = async {
                // Of those that passed while the program was restarted, the last.
                let now = Utc::now();
                let missed = ticks.after(&(now - LATE)).take_while(|tick| *tick <= now).last();
                let mut last = missed.map_or(now, |missed| missed - Duration::from_secs(1));
                let mut well = true;
                while let Some((tick, left)) = next(&ticks, last, Utc::now()) {
                    if !left.is_zero() {
                        Delay::new(left.min(LOOK)).await;
                        continue;
                    }
                    let key = format!("{KEY}{schedule} {}", tick.timestamp());
                    let enqueued = in_time(ANSWER, async { queue.enqueue(job(tick.into())).unique(&key).await });
                    match AssertUnwindSafe(enqueued).catch_unwind().await {
                        Ok(Ok(_)) => well = true,
                        // As they would be for ever.
                        Err(payload) => panicked(payload),
                        Ok(Err(error @ Error::Encode(_))) => report(error),
                        Ok(Err(error)) => {
                            if std::mem::replace(&mut well, false) {
                                report(error);
                            }
                            Delay::new(Duration::from_secs(1)).await;
                            continue;
                        }
                    }
                    last = tick;
                }
            };
            signal.run_until_shutdown(run).await;
        };
        // As a worker is: an abort that is no shutdown's cuts jobs, and not what makes them.
        let work = registry.named(name).location(at).track(work).map_err(|refused| Error::Refused(refused.reason()))?;
        registry.spawner().spawn(work);
        Ok(())
    }
}

/// The next tick after the last one that was enqueued, and how long it is until then. The clock can be set in either direction, so what was
/// last counts as it stands now.
fn next(ticks: &Schedule, last: DateTime<Utc>, now: DateTime<Utc>) -> Option<(DateTime<Utc>, Duration)> {
    let tick = ticks.after(&last.clamp(now - LATE, now)).next()?;
    Some((tick, (tick - now).to_std().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::{LATE, next};
    use chrono::{DateTime, Utc};
    use cron::Schedule;
    use std::time::{Duration, SystemTime};

    fn at(seconds: u64) -> DateTime<Utc> {
        (SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).into()
    }

    #[test]
    fn a_clock_that_is_set_costs_at_most_the_ticks_that_are_too_late() {
        let minutes: Schedule = "0 * * * * *".parse().unwrap();
        let hour = 3600;
        // It is as late as it should be, and one that is due is enqueued.
        assert_eq!(next(&minutes, at(hour), at(hour + 1)), Some((at(hour + 60), Duration::from_secs(59))));
        assert_eq!(next(&minutes, at(hour), at(hour + 60)), Some((at(hour + 60), Duration::ZERO)));
        assert_eq!(next(&minutes, at(hour), at(hour + 130)), Some((at(hour + 60), Duration::ZERO)));
        // From 1970 to a day: not every minute in between.
        let today = 20_000 * 24 * hour + 30;
        assert_eq!(next(&minutes, at(60), at(today)), Some((at(today + 30) - LATE, Duration::ZERO)));
        // Back: not silent until that time comes again.
        assert_eq!(next(&minutes, at(today), at(61)), Some((at(120), Duration::from_secs(59))));
    }
}
