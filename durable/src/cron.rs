use crate::error::Error;
use crate::outage::{Outage, RESPONSE_TIMEOUT, Report, with_timeout};
use crate::panics;
use crate::queue::Queue;
use crate::tasks::TaskNames;
use background_tasks::{Registry, Spawner};
use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use cron::{Schedule, TimeUnitSpec};
use futures_timer::Delay;
use serde::Serialize;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A tick that is at most this late does not count as missed. For example, a short outage of the store can make a tick late.
const MAX_LATENESS: Duration = Duration::from_mins(5);

/// The task of a schedule sleeps for at most this time. It then reads the clock again, because the clock may have been changed.
const MAX_SLEEP: Duration = Duration::from_secs(30);

/// If the task cannot enqueue the job of a tick, it waits for this time and tries again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The task ignores missed ticks that are older than this duration.
const MAX_MISSED: TimeDelta = TimeDelta::days(1);

/// The unique key of a tick is reserved for this period. The period is longer than `MAX_MISSED`, so that no process enqueues the job of a
/// tick a second time. The additional hour allows for clocks that differ.
const KEY_PERIOD: Duration = Duration::from_hours(25);

/// Determines for which missed ticks a job is enqueued late. A tick is a time at which a schedule is due. A tick is missed in two cases: no
/// process ran the schedule at this time, or an outage of the store delayed the tick by more than 5 minutes. See [`CronSchedule::missed`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MissedTicks {
    /// Enqueues the job of the last missed tick, if the tick is less than a day old.
    #[default]
    Last,
    /// Enqueues the jobs of all missed ticks of the last day.
    All,
    /// Enqueues no jobs for missed ticks.
    Skip,
}

/// A schedule for [`Queue::cron`].
///
/// A schedule is a text with six or seven fields: seconds, minutes, hours, day of the month, month, day of the week and, optionally, the
/// year. For example, `0 0 3 * * *` means every night at three. Days of the week must be names, such as `MON-FRI`. Numbers for days of the
/// week are an error, because the number 1 means Sunday in some programs and Monday in others.
#[derive(Clone)]
#[must_use = "pass the schedule to `cron`"]
pub struct CronSchedule {
    text: String,
    zone: Option<String>,
    missed: MissedTicks,
    next: Arc<NextTick>,
}

/// A function that returns the first tick of a schedule after a given time.
type NextTick = dyn Fn(&Schedule, DateTime<Utc>) -> Option<DateTime<Utc>> + Send + Sync;

impl CronSchedule {
    /// Creates a schedule whose times are in UTC. If the text is invalid, [`Queue::cron`] returns an error.
    pub fn new(text: impl Into<String>) -> Self {
        let next = Arc::new(|schedule: &Schedule, time: DateTime<Utc>| schedule.after(&time).next());
        Self { text: text.into(), zone: None, missed: MissedTicks::default(), next }
    }

    /// Sets the time zone of the fields. Default: UTC. The crate `chrono-tz` contains the time zones of the IANA database.
    ///
    /// When the clocks of the zone are set forward, some times do not exist, and ticks at these times do not happen. When the clocks are
    /// set back, some times occur twice, and a tick at such a time happens twice.
    pub fn zone<Z>(mut self, zone: Z) -> Self
    where
        Z: TimeZone + fmt::Debug + Send + Sync + 'static,
    {
        self.zone = Some(format!("{zone:?}"));
        self.next = Arc::new(move |schedule, time| Some(schedule.after(&time.with_timezone(&zone)).next()?.with_timezone(&Utc)));
        self
    }

    /// Sets the policy for missed ticks. Default: [`MissedTicks::Last`]. If the policy skips ticks, the registry's observers receive a
    /// failed task with [`Error::MissedTicks`].
    pub fn missed(mut self, missed: MissedTicks) -> Self {
        self.missed = missed;
        self
    }

    fn parse(&self) -> Result<Ticks, Error> {
        let (text, fields) = (&self.text, self.text.split_whitespace().collect::<Vec<_>>());
        let invalid = |reason: &str| Error::Schedule(format!("{text:?}: {reason}"));
        let schedule: Schedule = text.parse().map_err(|error: cron::error::Error| {
            // The parser's error contains the text, the position and, in its third line, a reason. If fields are missing, this reason is
            // misleading: most users omit the seconds, and the parser then reads the minutes as seconds.
            let error = error.to_string();
            let reason = error.lines().nth(2).filter(|_| fields.len() > 5);
            invalid(reason.unwrap_or("expected six fields, starting with seconds, or seven with a year"))
        })?;
        if fields.get(5).is_some_and(|days| days.contains(|digit: char| digit.is_ascii_digit())) {
            return Err(invalid("name the days of the week, such as MON-FRI, because their numbers are ambiguous"));
        }
        let zone = self.zone.as_ref().map_or_else(String::new, |zone| format!(" {zone}"));
        let key = format!("{}{zone}", canonical(&schedule));
        Ok(Ticks { schedule, key, next: self.next.clone() })
    }
}

impl From<&str> for CronSchedule {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<&String> for CronSchedule {
    fn from(text: &String) -> Self {
        Self::new(text)
    }
}

impl fmt::Debug for CronSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, zone, missed) = (&self.text, &self.zone, &self.missed);
        f.debug_struct("CronSchedule").field("text", text).field("zone", zone).field("missed", missed).finish_non_exhaustive()
    }
}

/// Returns a string that is the same for all spellings of a schedule.
fn canonical(schedule: &Schedule) -> String {
    fn field(values: &impl TimeUnitSpec) -> String {
        if values.is_all() {
            return "*".to_owned();
        }
        values.iter().map(|value| value.to_string()).collect::<Vec<_>>().join(",")
    }
    let seconds_to_hours = [field(schedule.seconds()), field(schedule.minutes()), field(schedule.hours())];
    let dates =
        [field(schedule.days_of_month()), field(schedule.months()), field(schedule.days_of_week()), field(schedule.years())];
    [seconds_to_hours.as_slice(), &dates].concat().join(" ")
}

/// A parsed schedule.
struct Ticks {
    schedule: Schedule,
    key: String,
    next: Arc<NextTick>,
}

impl Ticks {
    fn after(&self, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        (self.next)(&self.schedule, time)
    }

    /// Returns the ticks after `from`, up to and including `to`.
    fn between(&self, from: DateTime<Utc>, to: DateTime<Utc>) -> Vec<DateTime<Utc>> {
        std::iter::successors(self.after(from), |tick| self.after(*tick)).take_while(|tick| *tick <= to).collect()
    }
}

/// Returns the missed ticks whose jobs are enqueued late, and the number of ticks that are skipped.
fn select_missed(mut ticks: Vec<DateTime<Utc>>, missed: MissedTicks) -> (Vec<DateTime<Utc>>, usize) {
    let kept = match missed {
        MissedTicks::All => ticks.len(),
        MissedTicks::Last => ticks.len().min(1),
        MissedTicks::Skip => 0,
    };
    let skipped = ticks.len() - kept;
    (ticks.split_off(skipped), skipped)
}

impl<T: Serialize + Send + 'static> Queue<T> {
    /// Starts a task of the registry that enqueues a job at each tick of a schedule, until the registry shuts down. A tick is a time at
    /// which the schedule is due. The schedule is either a string with a cron expression, in UTC, or a
    /// [`CronSchedule`].
    ///
    /// Any number of processes can run the same schedule. The job of each tick is enqueued only one time, because its [unique
    /// key](crate::Enqueue::unique_key) consists of the schedule and the tick. The key depends on the times of the schedule, not on the
    /// spelling of its text. If two schedules of a queue have the same times, only one job is enqueued at each tick, even if the schedules
    /// create different jobs.
    ///
    /// The store contains the last tick of each schedule. When the task starts, it applies the policy of [`CronSchedule::missed`] to the
    /// ticks that were missed after the stored tick. If no tick of this schedule is stored yet, the policy has no effect. The task then
    /// enqueues a job for the last tick only, and only if this tick is at most 5 minutes old.
    ///
    /// During an outage of the store, the task retries the current tick for up to a day. The task reports the outage to the registry's
    /// observers as one failed task. Other ticks may become due during the outage. If they are more than 5 minutes late when the outage
    /// ends, they count as missed. If `job` panics, the tick is skipped, and the observers receive a panicked task.
    ///
    /// # Examples
    ///
    /// Enqueues a job every night at three:
    ///
    /// ```no_run
    /// # use background_tasks::{Registry, TokioSpawner};
    /// # use background_tasks_durable::{Error, Queue};
    /// # use std::time::SystemTime;
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct Report { day: u64 }
    /// fn nightly(reports: &Queue<Report>, registry: &Registry<TokioSpawner>) -> Result<(), Error> {
    ///     let day = |tick: SystemTime| tick.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86400);
    ///     reports.cron(registry, "0 0 3 * * *", move |tick| Report { day: day(tick) })
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Schedule`] if the schedule is invalid, and [`Error::Refused`] if the registry rejects the task.
    ///
    /// # Panics
    ///
    /// Panics if the registry's spawner panics. For example, `TokioSpawner` panics outside a tokio runtime.
    #[track_caller]
    pub fn cron<S>(
        &self,
        registry: &Registry<S>,
        schedule: impl Into<CronSchedule>,
        job: impl Fn(SystemTime) -> T + Send + Sync + 'static,
    ) -> Result<(), Error>
    where
        S: Spawner + Clone + Send + Sync + 'static,
    {
        let schedule = schedule.into();
        let ticks = schedule.parse()?;
        let (queue, signal) = (self.clone(), registry.signal());
        let names = TaskNames::new(registry, self.name, Location::caller());
        let name = names.leak("cron");
        let (report, report_panic) = (Arc::new(names.report(name)), names.report_panic(name));
        names.check_open()?;
        let task = async move {
            let run = async {
                let text = schedule.text.clone();
                let report_outage: Report = Box::new({
                    let report = report.clone();
                    move |error| report(format!("the schedule {text:?} cannot enqueue its ticks, and retries: {error}").into())
                });
                let mut outage = Outage::new(&report_outage);
                let remember = async |tick: Option<DateTime<Utc>>| {
                    let call = queue.durable.engine.store.last_tick(queue.name, &ticks.key, tick.map(|tick| tick.timestamp()));
                    with_timeout(RESPONSE_TIMEOUT, queue.durable.runtime.enter(call)).await
                };
                let stored = loop {
                    match remember(None).await {
                        Ok(stored) => {
                            outage.ended();
                            break stored.and_then(|seconds| DateTime::from_timestamp(seconds, 0));
                        }
                        Err(error) => {
                            outage.failed(error);
                            Delay::new(RETRY_DELAY).await;
                        }
                    }
                };
                let skipped_tick =
                    |tick: DateTime<Utc>, why: &str| format!("the tick {tick} of {:?} is skipped: {why}", schedule.text);
                let skip = |skipped: usize, before: DateTime<Utc>| {
                    if skipped > 0 {
                        let text = format!("{skipped} ticks of {:?} before {before} are skipped", schedule.text);
                        report(Error::MissedTicks(text).to_string().into());
                    }
                };
                // Returns the ticks of the last day that were missed. Reports older ticks as skipped.
                let missed = |last: DateTime<Utc>, now: DateTime<Utc>, to: DateTime<Utc>| {
                    let from = now - MAX_MISSED;
                    if ticks.after(last).is_some_and(|tick| tick <= from) {
                        let text = format!("all ticks of {:?} before {from} are skipped", schedule.text);
                        report(Error::MissedTicks(text).to_string().into());
                    }
                    select_missed(ticks.between(last.max(from), to), schedule.missed)
                };
                let now = Utc::now();
                let (mut due, skipped) = match stored {
                    Some(last) => missed(last, now, now),
                    None => (select_missed(ticks.between(now - MAX_LATENESS, now), MissedTicks::Last).0, 0),
                };
                skip(skipped, now);
                let mut last = now;
                loop {
                    for tick in std::mem::take(&mut due) {
                        let key = format!("cron {} {}", ticks.key, tick.timestamp());
                        loop {
                            let enqueue = async { queue.enqueue(job(tick.into())).unique_key(&*key).unique_for(KEY_PERIOD).await };
                            match panics::catch(with_timeout(RESPONSE_TIMEOUT, enqueue)).await {
                                Ok(Ok(_)) => outage.ended(),
                                // The function would panic again, so the tick is not retried.
                                Err(payload) => report_panic(skipped_tick(tick, panics::message(&*payload))),
                                Ok(Err(error @ Error::Encode(_))) => report(skipped_tick(tick, &error.to_string()).into()),
                                Ok(Err(error)) => {
                                    outage.failed(error);
                                    if Utc::now() - tick < MAX_MISSED {
                                        Delay::new(RETRY_DELAY).await;
                                        continue;
                                    }
                                    report(skipped_tick(tick, "it is more than a day old").into());
                                }
                            }
                            break;
                        }
                        // If the tick cannot be stored, it counts as missed when the task starts again. The unique key of the tick then
                        // prevents a second job.
                        let _ = remember(Some(tick)).await;
                    }
                    // If the clock was set back, the search for the next tick starts at the new time.
                    last = last.min(Utc::now());
                    let Some(tick) = ticks.after(last) else { return };
                    let now = Utc::now();
                    let time_left = (tick - now).to_std().unwrap_or_default();
                    if !time_left.is_zero() {
                        Delay::new(time_left.min(MAX_SLEEP)).await;
                        continue;
                    }
                    let on_time = now - MAX_LATENESS;
                    let (mut missed, skipped) = missed(last, now, on_time);
                    let current = ticks.between(last.max(on_time), now);
                    let superseded = schedule.missed == MissedTicks::Last && !current.is_empty();
                    let more = if superseded { std::mem::take(&mut missed).len() } else { 0 };
                    skip(skipped + more, on_time);
                    last = current.last().or(missed.last()).copied().unwrap_or(now);
                    due.extend(missed.into_iter().chain(current));
                }
            };
            signal.run_until_shutdown(run).await;
        };
        let task = names.track(name, task)?;
        names.start(name, task);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{CronSchedule, MissedTicks, canonical, select_missed};
    use chrono::{DateTime, FixedOffset, Utc};

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn spellings_of_a_schedule_share_a_key() {
        let key = |text: &str| CronSchedule::new(text).parse().unwrap().key;
        assert_eq!(key("0 0 3 * * MON-WED"), "0 0 3 * * 2,3,4 *");
        for other in ["0 0 3 * * mon,tue,wed", "00  0 3 ? * Mon-Wed *", "0 0 3 1-31 1-12 MON-WED"] {
            assert_eq!(key(other), key("0 0 3 * * MON-WED"), "{other}");
        }
        assert_ne!(key("0 0 3 * * MON-TUE"), key("0 0 3 * * MON-WED"));
        let zone = CronSchedule::new("0 0 3 * * *").zone(FixedOffset::east_opt(3600).unwrap());
        assert_eq!(zone.parse().unwrap().key, "0 0 3 * * * * +01:00");
        assert_eq!(canonical(&"@daily".parse().unwrap()), "0 0 0 * * * *");
    }

    #[test]
    fn zone_moves_the_ticks() {
        let ticks = CronSchedule::new("0 0 3 * * *").zone(FixedOffset::east_opt(7200).unwrap()).parse().unwrap();
        assert_eq!(ticks.after(at("2026-01-01T00:00:00Z")), Some(at("2026-01-01T01:00:00Z")));
    }

    #[test]
    fn numbers_of_days_are_rejected() {
        for days in ["6", "1-5", "MON,3", "*/2"] {
            let error = CronSchedule::new(format!("* * * * * {days}")).parse().err().unwrap();
            assert!(error.to_string().contains("name the days of the week"), "{error}");
        }
        assert!(CronSchedule::new("* * * * * SAT 2030").parse().is_ok());
    }

    #[test]
    fn missed_ticks_follow_the_policy() {
        let ticks = CronSchedule::new("0 0 * * * *").parse().unwrap();
        let all = ticks.between(at("2026-01-01T00:00:00Z"), at("2026-01-01T03:00:00Z"));
        assert_eq!(all, [1, 2, 3].map(|hour| at(&format!("2026-01-01T0{hour}:00:00Z"))));
        assert_eq!(select_missed(all.clone(), MissedTicks::Last), (vec![all[2]], 2));
        assert_eq!(select_missed(all.clone(), MissedTicks::All), (all.clone(), 0));
        assert_eq!(select_missed(all, MissedTicks::Skip), (vec![], 3));
        assert_eq!(select_missed(vec![], MissedTicks::Last), (vec![], 0));
    }
}
