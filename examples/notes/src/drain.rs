use crate::Exit;
use crate::answer::Notes;
use crate::exit::log;
use crate::options::Options;
use background_tasks::{Stragglers, Summary};
use hyper::rt::Timer;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

/// The end of the service, with its progress on stderr: a bar on a terminal, a line a second elsewhere.
pub(crate) struct Drain<'a, S> {
    notes: &'a Notes<S>,
    bar: ProgressBar,
    began: Instant,
    options: &'a Options,
    before: Summary,
}

impl<'a, S> Drain<'a, S> {
    pub(crate) fn new(notes: &'a Notes<S>, options: &'a Options, bar: ProgressBar) -> Self {
        let style = ProgressStyle::with_template("draining [{bar:40}] {pos}/{len} after {elapsed} of {msg}").unwrap();
        let bar = bar.with_style(style.progress_chars("=> ")).with_message(format!("{:?}", options.grace));
        bar.reset_elapsed();
        bar.set_draw_target(ProgressDrawTarget::stderr());
        if !bar.is_hidden() {
            log(""); // the terminal has just shown `^C`
        }
        Self { notes, bar, began: Instant::now(), options, before: notes.registry.summary() }
    }

    pub(crate) async fn run(self, timer: &impl Timer) -> Result<(), Exit> {
        let ended = self.notes.registry.shutdown().or_abort(self.wait(timer), || timer.sleep(self.options.abort)).await;
        self.bar.finish_and_clear();
        self.report(ended)
    }

    /// Shows how it goes on until the grace is over.
    async fn wait(&self, timer: &impl Timer) {
        while let Some(left) = self.options.grace.checked_sub(self.began.elapsed()) {
            self.show(self.notes.registry.in_flight());
            timer.sleep(left.min(self.tick())).await;
        }
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
        let notes = format_args!("{written} note{plural} written");
        let units = format_args!("({notes}; each write, read, request and connection is a unit of work)");
        match ended {
            Ok(summary) if summary.aborted == 0 => {
                log(format_args!("drained in {seconds:.2} s: {summary} {units}"));
                return Ok(());
            }
            Ok(summary) => log(format_args!("aborted the last after {seconds:.2} s: {summary} {units}")),
            Err(stragglers) => log(format_args!("gave up after {seconds:.2} s, {notes}: {stragglers:#}")),
        }
        Err(Exit::LeftBehind)
    }
}
