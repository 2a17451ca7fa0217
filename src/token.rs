use crate::TaskInfo;
use crate::gate::Before;
use crate::panics::Payload;
use crate::shards::{Post, Tally};
use core::fmt::Display;
use core::panic::Location;

#[cfg(feature = "std")]
use crate::{TaskKind, panics, roster::Slot};

/// What is known of some work when it asks to be let in.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) site: &'static Location<'static>,
    #[cfg(feature = "std")]
    pub(crate) name: Option<&'static str>,
    #[cfg(feature = "std")]
    pub(crate) kind: TaskKind,
    /// Its loss begins the shutdown.
    #[cfg(feature = "std")]
    pub(crate) critical: bool,
}

/// What an observer is told of a loss; empty when there is none.
#[cfg(feature = "std")]
pub(crate) type Message = String;
#[cfg(not(feature = "std"))]
pub(crate) type Message = ();

/// How some work ended that was not done.
#[derive(Debug)]
pub(crate) enum Loss {
    Failed(Message),
    #[cfg_attr(not(feature = "std"), expect(dead_code, reason = "nothing catches a panic"))]
    Panicked(Message),
    Abandoned,
    #[cfg(feature = "std")]
    Aborted,
}

/// One piece of work in flight: the shard that it is counted on and the call that started it, or the slot that knows both.
///
/// It does not give its count back by itself: whoever has it must call [`Token::leave`] once, or [`Token::lose`].
#[derive(Clone, Copy)]
pub(crate) struct Token {
    post: &'static Post,
    /// `None` says that the post is a slot, without a look at the post, whose line is the shard's.
    site: Option<&'static Location<'static>>,
}

impl Token {
    #[inline]
    pub(crate) fn new(post: &'static Post, site: &'static Location<'static>) -> Self {
        Self { post, site: Some(site) }
    }

    #[cfg(feature = "std")]
    pub(crate) fn in_slot(post: &'static Post) -> Self {
        Self { post, site: None }
    }

    #[cfg(feature = "std")]
    #[inline]
    pub(crate) fn slot(&self) -> Option<&'static Slot> {
        if self.site.is_some() { None } else { self.post.slot() }
    }

    pub(crate) fn info(&self) -> TaskInfo {
        #[cfg(feature = "std")]
        if let Some(slot) = self.slot() {
            return slot.info();
        }
        TaskInfo::new(self.site.expect("a token without a slot has its call site"), None)
    }

    /// An error as observers are told it, if there are any.
    #[cfg(feature = "std")]
    pub(crate) fn failed(&self, error: &dyn Display) -> Loss {
        if !self.post.core().is_observed() {
            return Loss::Failed(Message::new());
        }
        Loss::Failed(panics::contain(|| error.to_string()).unwrap_or_else(|payload| {
            panics::discard(payload);
            "(an error whose Display panicked)".into()
        }))
    }

    /// A panic as observers are told it, if there are any.
    #[cfg(feature = "std")]
    pub(crate) fn panicked(&self, payload: &Payload) -> Loss {
        let observed = self.post.core().is_observed();
        Loss::Panicked(if observed { panics::message(payload).into() } else { Message::new() })
    }

    #[cfg(not(feature = "std"))]
    #[expect(clippy::unused_self, reason = "nobody observes")]
    pub(crate) fn failed(&self, _: &dyn Display) -> Loss {
        Loss::Failed(())
    }

    #[cfg(not(feature = "std"))]
    #[expect(clippy::unused_self, clippy::trivially_copy_pass_by_ref, reason = "nothing catches a panic")]
    pub(crate) fn panicked(&self, payload: &Payload) -> Loss {
        match *payload {}
    }

    /// Where it is counted.
    #[inline]
    fn tally(&self) -> &'static Tally {
        #[cfg(feature = "std")]
        if let Some(slot) = self.slot() {
            return slot.tally();
        }
        self.post.tally()
    }

    /// Gives the count of work back that was done, and is gone (S2).
    #[inline]
    pub(crate) fn leave(self) {
        #[cfg(feature = "std")]
        if self.site.is_none() {
            return self.leave_slot();
        }
        self.give_back(self.post.tally());
    }

    #[cfg(feature = "std")]
    #[inline(never)]
    fn leave_slot(self) {
        let tally = self.tally();
        self.slot().into_iter().for_each(Slot::end);
        self.give_back(tally);
    }

    #[inline]
    fn give_back(self, tally: &'static Tally) {
        if let Some(before) = tally.gate.leave() {
            self.left(tally, before);
        }
    }

    #[cold]
    fn left(self, tally: &'static Tally, before: Before) {
        let left = tally.gate.left(before);
        self.post.core().left(left);
    }

    /// Records and tells how the work ended that was not done, then gives its count back (S2, S5).
    #[cold]
    #[cfg_attr(not(feature = "std"), expect(clippy::needless_pass_by_value, reason = "it ends here"))]
    pub(crate) fn lose(self, loss: Loss) {
        self.tally().count(&loss);
        #[cfg(feature = "std")]
        self.post.core().lost(&self, loss);
        self.leave();
    }

    /// Whether the call that started it was marked so.
    #[cfg(feature = "std")]
    pub(crate) fn is_critical(&self) -> bool {
        self.slot().is_some_and(Slot::is_critical)
    }
}
