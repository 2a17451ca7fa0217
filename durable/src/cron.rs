use crate::error::Error;
use crate::outage::{Outage, RESPONSE_TIMEOUT, with_timeout};
use crate::panics;
use crate::queue::Queue;
use crate::tasks::TaskNames;
use background_tasks::{Registry, Spawner};
use chrono::{DateTime, Utc};
use cron::Schedule;
use futures_timer::Delay;
use serde::Serialize;
use std::panic::Location;
use std::time::{Duration, SystemTime};

/// How late a tick may be enqueued. This covers a restart of the program or a short outage of the store.
const MAX_LATENESS: Duration = Duration::from_mins(5);

/// The prefix of the keys of ticks. The stores keep these keys longer than a tick can be late, whatever the retention of the queue.
const KEY_PREFIX: &str = "cron ";

/// The longest sleep. The clock may be set while the task sleeps, so it rechecks the time.
const MAX_SLEEP: Duration = Duration::from_secs(30);

/// The delay before a tick is enqueued again after a failure.
const RETRY_DELAY: Duration = Duration::from_secs(1);

impl<T: Serialize + Send + 'static> Queue<T> {
    /// Starts a task of the registry that enqueues a job at each tick of a schedule, until the registry shuts down.
    ///
    /// The fields of the schedule are seconds, minutes, hours, day of the month, month, day of the week and, optionally, the year, in UTC.
    /// `0 0 3 * * *` is every night at three.
    ///
    /// Any number of processes may run the same schedule. The job of each tick has the schedule and the tick as its
    /// [key](crate::Enqueue::unique_key), so it is enqueued once. Two schedules with the same text on the same queue therefore share
    /// their ticks, even if they create different jobs.
    ///
    /// When the task starts, it also enqueues the last tick of the previous 5 minutes, which the program may have missed while it
    /// restarted. During an outage of the store the task retries, and reports one failed task to the registry's observers. Ticks that are
    /// more than 5 minutes late are skipped, for example after a long outage or when the clock is set forward. If `job` panics, its tick
    /// is skipped and counts as a panicked task.
    ///
    /// # Errors
    ///
    /// [`Error::Schedule`] if the schedule is invalid, and [`Error::Refused`] if the registry rejects the task.
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
        let ticks: Schedule = schedule.parse().map_err(|error: cron::error::Error| {
            // The error has the text, the position and, in its third line, a reason. With too few fields the reason is misleading: most
            // users start with the minutes, but the parser reads them as seconds.
            let (text, fields) = (error.to_string(), schedule.split_whitespace().count());
            let reason = text.lines().nth(2).filter(|_| fields > 5);
            let reason = reason.unwrap_or("expected six fields, starting with seconds, or seven with a year");
            Error::Schedule(format!("{schedule:?}: {reason}"))
        })?;
        let (queue, schedule, signal) = (self.clone(), schedule.to_owned(), registry.signal());
        let names = TaskNames::new(registry, self.name, Location::caller());
        let name = names.leak("cron");
        let (report, report_panic) = (names.report(name), names.report_panic(name));
        names.check_open()?;
        let task = async move {
            let run = async {
                let mut outage = Outage::new(&report);
                // The last tick that passed while the program restarted.
                let now = Utc::now();
                let missed = ticks.after(&(now - MAX_LATENESS)).take_while(|tick| *tick <= now).last();
                let mut last = missed.map_or(now, |missed| missed - Duration::from_secs(1));
                while let Some((tick, time_left)) = next(&ticks, last, Utc::now()) {
                    if !time_left.is_zero() {
                        Delay::new(time_left.min(MAX_SLEEP)).await;
                        continue;
                    }
                    let key = format!("{KEY_PREFIX}{schedule} {}", tick.timestamp());
                    let enqueue = async { queue.enqueue(job(tick.into())).unique_key(&key).await };
                    match panics::catch(with_timeout(RESPONSE_TIMEOUT, enqueue)).await {
                        Ok(Ok(_)) => outage.ended(),
                        // A retry would fail in the same way.
                        Err(payload) => report_panic(payload),
                        Ok(Err(error @ Error::Encode(_))) => report(error),
                        Ok(Err(error)) => {
                            outage.failed(error);
                            Delay::new(RETRY_DELAY).await;
                            continue;
                        }
                    }
                    last = tick;
                }
            };
            signal.run_until_shutdown(run).await;
        };
        let task = names.track(name, task)?;
        names.start(name, task);
        Ok(())
    }
}

/// Returns the tick after the last one that was enqueued, and the time until then. The clock can be set in either direction, so `last` is
/// clamped to the current time.
fn next(ticks: &Schedule, last: DateTime<Utc>, now: DateTime<Utc>) -> Option<(DateTime<Utc>, Duration)> {
    let tick = ticks.after(&last.clamp(now - MAX_LATENESS, now)).next()?;
    Some((tick, (tick - now).to_std().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::{MAX_LATENESS, next};
    use chrono::{DateTime, Utc};
    use cron::Schedule;
    use std::time::{Duration, SystemTime};

    fn at(seconds: u64) -> DateTime<Utc> {
        (SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).into()
    }

    #[test]
    fn clock_change_skips_only_ticks_that_are_too_late() {
        let minutes: Schedule = "0 * * * * *".parse().unwrap();
        let hour = 3600;
        // The clock is not set: the next tick is in the future, due now, or late.
        assert_eq!(next(&minutes, at(hour), at(hour + 1)), Some((at(hour + 60), Duration::from_secs(59))));
        assert_eq!(next(&minutes, at(hour), at(hour + 60)), Some((at(hour + 60), Duration::ZERO)));
        assert_eq!(next(&minutes, at(hour), at(hour + 130)), Some((at(hour + 60), Duration::ZERO)));
        // The clock is set forward from 1970: the minutes in between are skipped.
        let today = 20_000 * 24 * hour + 30;
        assert_eq!(next(&minutes, at(60), at(today)), Some((at(today + 30) - MAX_LATENESS, Duration::ZERO)));
        // The clock is set back: the next tick comes within a minute.
        assert_eq!(next(&minutes, at(today), at(61)), Some((at(120), Duration::from_secs(59))));
    }
}
