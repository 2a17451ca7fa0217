//! Tests cron schedules on both stores: each tick enqueues one job, even if several processes have the same schedule.

use crate::common::{numbers, on_each_database, on_each_store, panic_quietly, registry, sql, until};
use background_tasks::{AbortReport, RejectReason};
use background_tasks_durable::testing::{advance, drain};
use background_tasks_durable::{CronSchedule, Error, Job, MissedTicks, WorkerOptions};
use serde::{Serialize, Serializer};
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_tick_is_enqueued_once() {
    on_each_database(async |database| {
        let (here, there) = (database.open().await, database.open().await);
        let started = seconds(SystemTime::now());
        let registries = [&here, &there].map(|jobs| {
            let (registry, losses) = registry();
            // On a busy machine, the schedule can be late by more than one tick.
            let schedule = CronSchedule::new("* * * * * *").missed(MissedTicks::All);
            jobs.queue("ticks").cron(&registry, schedule, seconds).unwrap();
            (registry, losses)
        });
        let queue = here.queue::<u64>("ticks");
        until("there are four ticks", async || (queue.counts().await.unwrap().waiting >= 4).then_some(())).await;
        for (registry, losses) in &registries {
            assert_eq!(registry.tasks().iter().filter_map(background_tasks::TaskInfo::name).collect::<Vec<_>>(), ["ticks cron"]);
            assert!(registry.shutdown().await.is_clean(), "the schedule stops: {:?}", losses.all());
        }
        let ended = seconds(SystemTime::now());
        let of = if database.is_postgres { "payload::bigint" } else { "CAST(payload AS INTEGER)" };
        let ticks = numbers(&here, &format!("SELECT {of} AS tick FROM {{jobs}} ORDER BY tick")).await;
        let ticks: Vec<u64> = ticks.into_iter().map(|tick| tick.try_into().unwrap()).collect();
        assert!(ticks.windows(2).all(|pair| pair[0] + 1 == pair[1]), "each tick once: {ticks:?}");
        assert!(ticks[0] >= started - 1 && *ticks.last().unwrap() <= ended, "no tick early: {started} {ticks:?} {ended}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missed_tick_is_enqueued_once_after_restart() {
    on_each_store(async |jobs| {
        // The schedule uses a minute of the day that started less than 5 minutes ago. The next tick is therefore tomorrow.
        let at = |second: u64| (second / 60 % 60, second / 3600 % 24);
        let now = seconds(SystemTime::now());
        let ((minute, hour), tick) = (at(now - 120), (now - 120) / 60 * 60);
        let schedule = format!("0 {minute} {hour} * * *");
        let queue = jobs.queue::<u64>("nightly");
        for _ in 0..2 {
            let (registry, _) = registry();
            queue.cron(&registry, &schedule, seconds).unwrap();
            let is_enqueued = async || (queue.counts().await.unwrap().waiting == 1).then_some(());
            until("the missed tick is enqueued", is_enqueued).await;
            registry.shutdown().await;
        }
        let key = format!("cron {schedule} * {tick}");
        let count = format!("SELECT count(*) FROM {{jobs}} WHERE unique_key = '{key}'");
        assert_eq!(numbers(&jobs, &count).await, [1]);

        // If the last tick is older, the schedule skips it.
        let (minute, hour) = at(now - 420);
        let (registry, _) = registry();
        let others = jobs.queue::<u64>("others");
        others.cron(&registry, &format!("0 {minute} {hour} * * *"), seconds).unwrap();
        // This schedule starts after the schedule above, and enqueues a job.
        others.cron(&registry, &schedule, seconds).unwrap();
        until("the later task has enqueued its job", async || (others.counts().await.unwrap().waiting >= 1).then_some(())).await;
        registry.shutdown().await;
        assert_eq!(others.counts().await.unwrap().waiting, 1);
    })
    .await;
}

/// A process enqueues the job of a tick, and ends before the store contains the tick. The next process starts most of a day later.
#[tokio::test(flavor = "multi_thread")]
async fn tick_that_is_not_stored_is_enqueued_once() {
    on_each_store(async |jobs| {
        let now = seconds(SystemTime::now());
        let (minute, hour) = ((now - 120) / 60 % 60, (now - 120) / 3600 % 24);
        let schedule = format!("0 {minute} {hour} * * *");
        let queue = jobs.queue::<u64>("nightly");
        let schedules = if jobs.sqlite_pool().is_some() { "background_tasks_schedules" } else { "background_tasks.schedules" };
        let stored = format!("SELECT last_tick FROM {schedules} WHERE last_tick > {}", now - 3600);
        for enqueued in [1, 0] {
            let (registry, losses) = registry();
            queue.cron(&registry, &schedule, seconds).unwrap();
            until("the tick is stored", async || numbers(&jobs, &stored).await.first().map(drop)).await;
            assert!(registry.shutdown().await.is_clean(), "{:?}", losses.all());
            assert_eq!(queue.counts().await.unwrap().waiting, enqueued);
            drain(&queue, WorkerOptions::default(), async |_: Job<u64>| Ok::<_, Infallible>(())).await.unwrap();
            sql(&jobs, &format!("UPDATE {schedules} SET last_tick = last_tick - 86400")).await;
            advance(&jobs, Duration::from_hours(23)).await.unwrap();
        }
    })
    .await;
}

/// The last tick of a weekly schedule was missed two days ago.
#[tokio::test(flavor = "multi_thread")]
async fn missed_tick_that_is_too_old_is_reported() {
    on_each_store(async |jobs| {
        let day = seconds(SystemTime::now()) / 86400 - 2;
        let number = (day + 4) % 7; // the first day of the epoch was a Thursday
        let name = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"][usize::try_from(number).unwrap()];
        let schedules = if jobs.sqlite_pool().is_some() { "background_tasks_schedules" } else { "background_tasks.schedules" };
        let (key, last_tick) = (format!("0 0 3 * * {} *", number + 1), (day - 7) * 86400 + 3 * 3600);
        sql(&jobs, &format!("INSERT INTO {schedules} VALUES ('weekly', '{key}', {last_tick})")).await;
        let (registry, losses) = registry();
        let queue = jobs.queue::<u64>("weekly");
        queue.cron(&registry, format!("0 0 3 * * {name}").as_str(), seconds).unwrap();
        until("the tick is reported", async || losses.all().into_iter().next().map(drop)).await;
        registry.shutdown().await;
        let (outcome, task, text) = &losses.all()[0];
        assert_eq!((*outcome, *task), ("failed", "weekly cron"));
        assert!(text.contains(&format!("all ticks of \"0 0 3 * * {name}\" before ")), "{text}");
        assert_eq!((losses.all().len(), queue.counts().await.unwrap().waiting), (1, 0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_schedule_is_rejected() {
    on_each_store(async |jobs| {
        let (registry, losses) = registry();
        let queue = jobs.queue::<u64>("ticks");
        let fields = "expected six fields, starting with seconds, or seven with a year";
        for (schedule, reason) in
            [("", fields), ("0 3 * * *", fields), ("61 * * * * *", "Seconds must be less than 59. ('61' specified.)")]
        {
            let error = queue.cron(&registry, schedule, seconds).unwrap_err();
            assert!(matches!(error, Error::Schedule(_)), "{error:?}");
            assert_eq!(error.to_string(), format!("invalid schedule: {schedule:?}: {reason}"));
        }
        assert_eq!(registry.in_flight(), 0);
        let guard = registry.guard().unwrap();
        let shutdown = registry.shutdown();
        let error = queue.cron(&registry, "* * * * * *", seconds).unwrap_err();
        assert!(matches!(error, Error::Refused(RejectReason::ShuttingDown)), "{error:?}");
        drop(guard);
        shutdown.await;
        let error = queue.cron(&registry, "* * * * * *", seconds).unwrap_err();
        assert!(matches!(error, Error::Refused(RejectReason::Drained)), "{error:?}");
        assert_eq!((losses.all(), queue.counts().await.unwrap().waiting), (vec![], 0));
    })
    .await;
}

/// A payload that cannot be serialized if its number of seconds is even.
struct Odd(u64);

impl Serialize for Odd {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(2) { Err(serde::ser::Error::custom("even")) } else { self.0.serialize(to) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_reported_and_ticks_continue() {
    on_each_store(async |jobs| {
        let (registry, losses) = registry();
        let queue = jobs.queue::<Odd>("ticks");
        queue.cron(&registry, "* * * * * *", |at| Odd(seconds(at))).unwrap();
        until("two ticks are enqueued", async || (queue.counts().await.unwrap().waiting >= 2).then_some(())).await;
        let skipped = |text: &str| {
            let (tick, reason) = text.split_once(" of ").unwrap();
            tick.starts_with("the tick 20") && reason == "\"* * * * * *\" is skipped: cannot serialize as JSON: even"
        };
        assert!(losses.all().iter().any(|(outcome, name, text)| (*outcome, *name) == ("failed", "ticks cron") && skipped(text)));
        // The schedule reports an outage one time, and continues after the outage.
        let reports = || losses.all().iter().filter(|(_, _, text)| !text.ends_with("even")).count();
        sql(&jobs, "ALTER TABLE {jobs} RENAME TO elsewhere").await;
        until("the outage is reported", async || (reports() > 0).then_some(())).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(reports(), 1);
        let start = "the schedule \"* * * * * *\" cannot enqueue its ticks, and retries: incompatible database: ";
        assert!(losses.all().iter().any(|(_, _, text)| text.starts_with(start)), "{:?}", losses.all());
        let is_sqlite = jobs.sqlite_pool().is_some();
        let (elsewhere, name) =
            if is_sqlite { ("elsewhere", "background_tasks_jobs") } else { ("background_tasks.elsewhere", "jobs") };
        sql(&jobs, &format!("ALTER TABLE {elsewhere} RENAME TO {name}")).await;
        let before = queue.counts().await.unwrap().waiting;
        until("the ticks continue", async || (queue.counts().await.unwrap().waiting > before).then_some(())).await;
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn panic_and_abort_do_not_stop_a_schedule() {
    on_each_store(async |jobs| {
        let (registry, losses) = registry();
        let queue = jobs.queue::<u64>("ticks");
        let panics = AtomicBool::new(true);
        let job = move |at| if panics.swap(false, Ordering::Relaxed) { panic_quietly("once") } else { seconds(at) };
        queue.cron(&registry, "* * * * * *", job).unwrap();
        let ticks = async |more_than| (queue.counts().await.unwrap().waiting > more_than).then_some(());
        until("a tick is enqueued after the panic", async || ticks(0).await).await;
        let AbortReport { aborted, not_abortable, .. } = registry.abort();
        assert_eq!((aborted, not_abortable), (0, 1));
        let before = queue.counts().await.unwrap().waiting;
        until("a tick is enqueued after the abort", async || ticks(before + 1).await).await;
        registry.shutdown().await;
        let (outcome, name, text) = &losses.all()[0];
        assert_eq!((losses.all().len(), *outcome, *name), (1, "panicked", "ticks cron"));
        assert!(text.starts_with("the tick 20") && text.ends_with(" of \"* * * * * *\" is skipped: once"), "{text}");
    })
    .await;
}
