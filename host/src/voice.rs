//! What is told while the process ends, which nobody who does not read may hold.

use crate::signals::exit_now;
use crate::terminal::bar;
use std::convert::Infallible;
use std::process;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

/// How long lines and the last flush may take when the grace is over.
pub(crate) const TELL: Duration = Duration::from_millis(200);

/// Tells on a thread of its own: who reads may have stopped, for which no drain should wait.
pub(crate) struct Voice {
    says: Option<Sender<Box<dyn FnOnce() + Send>>>,
    /// Whether stderr is a terminal, which shows the bar.
    pub(crate) has_bar: bool,
}

impl Voice {
    pub(crate) fn start() -> Self {
        let (says, said) = channel::<Box<dyn FnOnce() + Send>>();
        let speak = || said.into_iter().for_each(|say| say());
        let thread = thread::Builder::new().name("voice".into()).spawn(speak);
        Self { says: thread.is_ok().then_some(says), has_bar: bar::can_be_shown() }
    }

    pub(crate) fn say(&self, what: impl FnOnce() + Send + 'static) {
        match &self.says {
            Some(says) => drop(says.send(Box::new(what))),
            None => what(),
        }
    }

    /// Waits until all has been told, but for no longer than this.
    pub(crate) fn hush(&self, longest: Duration) {
        let (all, told) = channel::<Infallible>();
        self.say(move || drop(all));
        let _ = told.recv_timeout(longest);
    }
}

/// Ends the process, once this has been said and what the program has printed is flushed, or after this long if nobody reads it.
pub(crate) fn leave(code: u8, longest: Duration, say: impl FnOnce() + Send + 'static) -> ! {
    let exit = move || {
        bar::finish();
        say();
        process::exit(code.into());
    };
    if thread::Builder::new().spawn(exit).is_ok() {
        thread::sleep(longest);
    }
    exit_now(code);
}
