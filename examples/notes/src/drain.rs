use crate::Exit;
use crate::answer::Notes;
use crate::exit::log;
use background_tasks::{Stragglers, Summary};
use hyper::rt::Timer;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};

/// The end of the service, with its progress on stderr: a bar on a terminal, a line a second elsewhere.
pub(crate) struct Drain<'a, S> {
    notes: &'a Notes<S>,
    bar: ProgressBar,
    began: Instant,
    grace: Duration,
    before: Summary,
}

impl<'a, S> Drain<'a, S> {
    pub(crate) fn new(notes: &'a Notes<S>, grace: Duration) -> Self {
        let style = ProgressStyle::with_template("draining [{bar:40}] {pos}/{len} after {elapsed} of {msg}").unwrap();
        let bar = ProgressBar::new(0).with_style(style.progress_chars("=> ")).with_message(format!("{grace:?}"));
        if !bar.is_hidden() {
            log(""); // the terminal has just shown `^C`
        }
        Self { notes, bar, began: Instant::now(), grace, before: notes.registry.summary() }
    }

    pub(crate) async fn run(self, timer: &impl Timer) -> Result<(), Exit> {
        self.show(self.notes.registry.in_flight());
        let ended = loop {
            let left = self.grace.saturating_sub(self.began.elapsed());
            match self.notes.registry.shutdown().until(timer.sleep(left.min(self.tick()))).await {
                Err(stragglers) if self.began.elapsed() < self.grace => self.show(stragglers.len()),
                ended => break ended,
            }
        };
        self.bar.finish_and_clear();
        self.report(ended)
    }

    fn tick(&self) -> Duration {
        Duration::from_millis(if self.bar.is_hidden() { 1000 } else { 50 })
    }

    fn show(&self, in_flight: usize) {
        if self.bar.is_hidden() {
            log(format_args!("draining: {in_flight} in flight"));
        } else {
            let done = self.notes.registry.summary().completed.saturating_sub(self.before.completed);
            self.bar.set_length(done + in_flight as u64);
            self.bar.set_position(done);
        }
    }

    fn report(&self, ended: Result<Summary, Stragglers>) -> Result<(), Exit> {
        let seconds = self.began.elapsed().as_secs_f64();
        let written = self.notes.store.written();
        let plural = if written == 1 { "" } else { "s" };
        let units = format_args!("({written} note{plural} written; each write, read, request and connection is a unit of work)");
        match ended {
            Ok(summary) => {
                log(format_args!("drained in {seconds:.2} s: {summary} {units}"));
                Ok(())
            }
            Err(stragglers) => {
                log(format_args!("gave up after {seconds:.2} s: {stragglers} {units}"));
                Err(Exit::Stragglers)
            }
        }
    }
}
