//! What one registry's handles, tasks, signals and waiters share: a gate for each thread (nearly), and what follows when all have drained.
//!
//! Two counts keep a core. `handles` are the registry's clones: when the last one goes, shutdown begins. `holds` are all who may
//! still read or ring: the handles together, the gates until they have drained and rung, and each waiting future. When the last
//! hold goes, the core goes back to the pool. Signals hold nothing: one whose phase is not the core's is triggered.

use crate::bell::Bell;
use crate::gate::{Gate, Left, Refused};
use crate::sync::{AtomicUsize, Ordering, const_unless_loom};
use crate::token::{Call, Loss, Token};
use crate::wakers::Wakers;
use crate::{RejectReason, Summary};
use core::fmt;
use core::panic::Location;

#[cfg(feature = "std")]
use {
    crate::attend::{Asked, Attended, Settings},
    crate::pool,
    crate::roster::{Rosters, Slot},
    core::ptr,
    std::sync::OnceLock,
};

/// Keeps what is written off the lines of what others read or write (two lines, as the prefetcher takes pairs). One shard has no others, and
/// a microcontroller no memory for that.
#[cfg_attr(feature = "std", repr(align(128)))]
pub(crate) struct Line<T>(pub(crate) T);

/// One gate and what its leavers count beside it. Completions need no counter: they are what was accepted less the rest.
pub(crate) struct Tally {
    pub(crate) gate: Gate,
    failed: AtomicUsize,
    panicked: AtomicUsize,
    abandoned: AtomicUsize,
    aborted: AtomicUsize,
    rejected: AtomicUsize,
    #[cfg(feature = "std")]
    core: &'static RegistryState,
}

impl Tally {
    const_unless_loom! {
        const fn new(#[cfg(feature = "std")] core: &'static RegistryState) -> Self {
            Self {
                gate: Gate::new(),
                failed: AtomicUsize::new(0),
                panicked: AtomicUsize::new(0),
                abandoned: AtomicUsize::new(0),
                aborted: AtomicUsize::new(0),
                rejected: AtomicUsize::new(0),
                #[cfg(feature = "std")]
                core,
            }
        }
    }

    /// Relaxed: the Release in `leave` publishes it.
    pub(crate) fn count(&self, loss: &Loss) {
        let count = match loss {
            Loss::Failed(..) => &self.failed,
            Loss::Panicked(..) => &self.panicked,
            Loss::Abandoned => &self.abandoned,
            #[cfg(feature = "std")]
            Loss::Aborted => &self.aborted,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a token points to: its shard's tally, or the slot that it has beside, whose tally counts nothing. On lines of its own (H2),
/// which it fills either way.
#[cfg(feature = "std")]
#[repr(align(128))]
pub(crate) struct Post {
    tally: Tally,
    slot: Option<Slot>,
}

#[cfg(feature = "std")]
impl Post {
    fn shard(core: &'static RegistryState) -> Self {
        Self { tally: Tally::new(core), slot: None }
    }

    /// A slot of a task that `tally` counts.
    pub(crate) fn beside(tally: &Tally, slot: Slot) -> Self {
        Self { tally: Tally::new(tally.core), slot: Some(slot) }
    }

    #[inline]
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    #[inline]
    pub(crate) fn slot(&self) -> Option<&Slot> {
        self.slot.as_ref()
    }

    pub(crate) fn core(&self) -> &'static RegistryState {
        self.tally.core
    }
}

/// Without `std` there are no threads to tell apart: one shard, inside its core.
#[cfg(not(feature = "std"))]
pub(crate) type Post = RegistryState;

/// What many threads write, seldom.
struct Cold {
    handles: AtomicUsize,
    holds: AtomicUsize,
    /// How much of the drain's end is there; see `conclude`.
    drained: AtomicUsize,
    bell: Bell,
    #[cfg(feature = "std")]
    attended: Attended,
    #[cfg(loom)]
    life: crate::sync::Life,
}

/// The shared state of one registry, for [`Registry::in_static`](crate::Registry::in_static).
///
/// ```
/// # #[cfg(feature = "tokio")] {
/// use background_tasks::{RegistryState, Registry, TokioSpawner};
///
/// static STATE: RegistryState = RegistryState::new();
/// static TASKS: Registry<TokioSpawner> = Registry::in_static(&STATE, TokioSpawner);
/// # assert_eq!(TASKS.in_flight(), 0);
/// # }
/// ```
pub struct RegistryState {
    /// Even while open, odd once shutdown has begun; two more for each registry that the pool gives the core to.
    phase: AtomicUsize,
    /// Not one of a static, whose handles nobody counts.
    pooled: bool,
    #[cfg(feature = "std")]
    lanes: OnceLock<Box<[Lane]>>,
    /// What the builder asked for.
    #[cfg(feature = "std")]
    pub(crate) asked: Asked,
    #[cfg(not(feature = "std"))]
    tally: Line<Tally>,
    #[cfg(not(feature = "std"))]
    wakers: Line<Wakers>,
    cold: Line<Cold>,
}

impl fmt::Debug for RegistryState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its shards point back to it.
        f.debug_struct("RegistryState").finish_non_exhaustive()
    }
}

/// One thread's part of a core.
#[cfg(feature = "std")]
pub(crate) struct Lane {
    post: Post,
    wakers: Line<Wakers>,
    rosters: Rosters,
}

#[cfg(not(feature = "std"))]
pub(crate) type Lane = RegistryState;

impl RegistryState {
    const_unless_loom! {
        /// Returns the state of a registry that lives as long as the program.
        ///
        /// It serves one registry, once: after its shutdown it stays drained.
        #[expect(clippy::new_without_default, reason = "it is for statics, where `default` cannot be called")]
        pub const fn new() -> Self {
            Self::with(false)
        }
    }

    const_unless_loom! {
        pub(crate) const fn with(pooled: bool) -> Self {
            Self {
                phase: AtomicUsize::new(0),
                pooled,
                #[cfg(feature = "std")]
                lanes: OnceLock::new(),
                #[cfg(feature = "std")]
                asked: Asked::new(),
                #[cfg(not(feature = "std"))]
                tally: Line(Tally::new()),
                #[cfg(not(feature = "std"))]
                wakers: Line(Wakers::new()),
                cold: Line(Cold {
                    handles: AtomicUsize::new(1),
                    holds: AtomicUsize::new(2),
                    drained: AtomicUsize::new(0),
                    bell: Bell::new(),
                    #[cfg(feature = "std")]
                    attended: Attended::new(),
                    #[cfg(loom)]
                    life: crate::sync::Life::new(),
                }),
            }
        }
    }

    pub(crate) fn bell(&self) -> &Bell {
        &self.cold.0.bell
    }

    /// Counts one more piece of work of which nothing but its call site is known, if this thread's shard accepts it and there is no more
    /// to it (S1).
    #[inline]
    pub(crate) fn enter(&'static self, site: &'static Location<'static>) -> Option<Token> {
        if self.attends_all() {
            return None;
        }
        let lane = self.lane();
        lane.tally().gate.enter().ok().map(|()| Token::new(lane.post(), site))
    }

    /// Counts one more piece of work, or one more refusal.
    #[inline(never)]
    pub(crate) fn enter_otherwise(&'static self, call: Call) -> Result<Token, RejectReason> {
        #[cfg(feature = "std")]
        let entered = self.enter_attended(call);
        #[cfg(not(feature = "std"))]
        let entered = self.pass().map(|lane| Token::new(lane.post(), call.site));
        entered.map_err(|reason| self.refuse(call, reason))
    }

    /// Whether more is to be done for all work than to count it.
    #[cfg(not(feature = "std"))]
    #[expect(clippy::unused_self, reason = "that takes a builder")]
    fn attends_all(&self) -> bool {
        false
    }

    /// Passes the gate of this thread's shard, or of another: work is accepted while anything is in flight on any.
    #[inline]
    pub(crate) fn pass(&'static self) -> Result<&'static Lane, RejectReason> {
        let lane = self.lane();
        match lane.tally().gate.enter_after_a_look() {
            Ok(()) => Ok(lane),
            Err(refused) => self.pass_elsewhere(refused),
        }
    }

    #[cold]
    fn pass_elsewhere(&'static self, refused: Refused) -> Result<&'static Lane, RejectReason> {
        if self.is_drained() {
            return Err(RejectReason::Drained);
        }
        let mut full = refused == Refused::Full;
        for lane in self.lanes() {
            match lane.tally().gate.enter_after_a_look() {
                Ok(()) => return Ok(lane),
                Err(refused) => full |= refused == Refused::Full,
            }
        }
        Err(if full { RejectReason::Full } else { RejectReason::Drained })
    }

    /// Relaxed: a refusal is not ordered with anything but its own thread's look at it.
    #[cold]
    pub(crate) fn refuse(&'static self, call: Call, reason: RejectReason) -> RejectReason {
        self.lane().tally().rejected.fetch_add(1, Ordering::Relaxed);
        #[cfg(feature = "std")]
        self.tell_refusal(call, reason);
        #[cfg(not(feature = "std"))]
        let _ = call;
        reason
    }

    /// Begins the shutdown, or helps one that another thread began: when this returns, every gate is closed.
    pub(crate) fn begin_shutdown(&'static self) {
        // Release: who is triggered sees what came before the shutdown.
        let first = self.phase.fetch_or(1, Ordering::Release) % 2 == 0;
        #[cfg(feature = "std")]
        let in_flight = if first { self.note_beginning() } else { 0 };
        for lane in self.lanes() {
            if lane.tally().gate.close() {
                self.conclude();
            }
        }
        for lane in self.lanes() {
            lane.wakers().wake_all();
        }
        #[cfg(feature = "std")]
        self.send_queue_away();
        if first {
            #[cfg(feature = "std")]
            self.tell(|observer| observer.shutdown_started(in_flight));
            self.conclude();
        }
    }

    /// Sees to what somebody waits for of one who has left.
    pub(crate) fn left(&'static self, left: Left) {
        #[cfg(feature = "std")]
        if left.wanted {
            self.place_left();
        }
        if left.idle {
            self.bell().ring();
        }
        if left.drained {
            self.conclude();
        }
    }

    /// Of all that the drain's end waits for (the last one out of each gate, and the beginning's having been told) the last tells the end,
    /// makes it known, rings, and gives the gates' hold back (S3, L2).
    ///
    /// `AcqRel`: what the other shards' last ones acquired passes on to the last of all, and from it to who reads *drained*.
    fn conclude(&'static self) {
        let drained = &self.cold.0.drained;
        if drained.fetch_add(1, Ordering::AcqRel) == self.lanes().len() {
            #[cfg(feature = "std")]
            self.tell_end();
            drained.fetch_add(1, Ordering::AcqRel);
            self.bell().ring();
            self.let_go();
        }
    }

    /// Acquire: pairs with `conclude`, so that whoever reads *drained* sees every task's end.
    pub(crate) fn is_drained(&'static self) -> bool {
        self.cold.0.drained.load(Ordering::Acquire) == self.lanes().len() + 2
    }

    /// The summary, once it is final.
    pub(crate) fn drained(&'static self) -> Option<Summary> {
        self.is_drained().then(|| self.summary())
    }

    /// Acquire: pairs with `begin_shutdown`.
    #[inline]
    pub(crate) fn phase(&self) -> usize {
        self.phase.load(Ordering::Acquire)
    }

    pub(crate) fn is_shutting_down(&self) -> bool {
        self.phase() % 2 == 1
    }

    pub(crate) fn in_flight(&'static self) -> usize {
        self.lanes().iter().map(|lane| lane.tally().gate.look().in_flight()).sum()
    }

    /// Reads the words before the losses, so that a loss can be missing from *completed* too early, never too late.
    pub(crate) fn summary(&'static self) -> Summary {
        let mut done = 0;
        for lane in self.lanes() {
            let (accepted, seen) = lane.tally().gate.accepted();
            done += accepted.saturating_sub(seen.in_flight() as u64);
        }
        // Relaxed: counted before a `leave` that the looks above have acquired.
        let sum = |count: fn(&Tally) -> &AtomicUsize| -> u64 {
            self.lanes().iter().map(|lane| count(lane.tally()).load(Ordering::Relaxed) as u64).sum()
        };
        let mut summary = Summary {
            failed: sum(|tally| &tally.failed),
            panicked: sum(|tally| &tally.panicked),
            abandoned: sum(|tally| &tally.abandoned),
            aborted: sum(|tally| &tally.aborted),
            rejected: sum(|tally| &tally.rejected),
            completed: 0,
        };
        summary.completed = done.saturating_sub(summary.failed + summary.panicked + summary.abandoned + summary.aborted);
        summary
    }

    /// Asks every gate to ring when it next has nothing in flight.
    pub(crate) fn ask_idle(&'static self) {
        self.lanes().iter().for_each(|lane| lane.tally().gate.ask_idle());
    }

    /// Whether there was an instant with nothing in flight.
    ///
    /// Two looks at all gates: if no count was above zero in the first and nothing was accepted between them, then nothing was in flight
    /// when the first had ended. The flips enclose the looks, so that an *accepted* that came full circle is seen; and whoever flipped it
    /// unseen has not left, so that the second look counts them.
    pub(crate) fn is_idle(&'static self) -> bool {
        let gates = || self.lanes().iter().map(|lane| &lane.tally().gate);
        let flips = || gates().fold(0_usize, |sum, gate| sum.wrapping_add(gate.flips()));
        let look = || {
            gates().map(Gate::look).fold((0, 0_usize), |(in_flight, accepted), seen| {
                (in_flight + seen.in_flight(), accepted.wrapping_add(seen.accepted()))
            })
        };
        loop {
            let flips_before = flips();
            let (in_flight, accepted) = look();
            if in_flight != 0 {
                return false;
            }
            if look() == (0, accepted) && flips() == flips_before {
                return true;
            }
            // Something came and went: look again at once, as nobody may be left to ring.
        }
    }

    /// Relaxed: whoever takes a hold has one, or a handle, already.
    fn hold(&'static self) {
        self.cold.0.holds.fetch_add(1, Ordering::Relaxed);
    }

    /// `AcqRel`: whatever any holder did happened before the core's next life.
    fn let_go(&'static self) {
        #[cfg(loom)]
        self.cold.0.life.let_go();
        if self.cold.0.holds.fetch_sub(1, Ordering::AcqRel) == 1 {
            #[cfg(feature = "std")]
            {
                self.dismiss();
                pool::give_back(self);
            }
        }
    }
}

#[cfg(feature = "std")]
impl RegistryState {
    /// Makes a core fit for its next registry. Nobody else has it, strays of its last life aside: signals that are triggered as its
    /// phase has moved on, and leavers that clear a bit of a gate and then ring, or drain it in the place of who closes it next.
    ///
    /// Relaxed, but for the phase: the pool's mutex hands the core over.
    pub(crate) fn open(&'static self) {
        for lane in self.lanes() {
            let Tally { gate, failed, panicked, abandoned, aborted, rejected, core: _ } = lane.tally();
            gate.reset();
            for count in [failed, panicked, abandoned, aborted, rejected] {
                count.store(0, Ordering::Relaxed);
            }
        }
        let Cold { handles, holds, drained, .. } = &self.cold.0;
        #[cfg(loom)]
        self.cold.0.life.begin();
        handles.store(1, Ordering::Relaxed);
        holds.store(2, Ordering::Relaxed);
        drained.store(0, Ordering::Relaxed);
        // Release: a signal of the last life may read this one, and sees then what came before that life's shutdown.
        let next = (self.phase.load(Ordering::Relaxed) | 1).wrapping_add(1);
        self.phase.store(next, Ordering::Release);
    }

    pub(crate) fn attended(&self) -> &Attended {
        &self.cold.0.attended
    }

    #[inline]
    pub(crate) fn lanes(&'static self) -> &'static [Lane] {
        self.lanes.get_or_init(|| {
            let lane = |_| Lane { post: Post::shard(self), wakers: Line(Wakers::new()), rosters: Rosters::new() };
            (0..threads::shards()).map(lane).collect()
        })
    }

    /// The lane of this thread.
    #[inline]
    pub(crate) fn lane(&'static self) -> &'static Lane {
        match threads::last() {
            Some((core, lane)) if ptr::eq(core, self) => lane,
            _ => self.find_lane(),
        }
    }

    #[inline(never)]
    fn find_lane(&'static self) -> &'static Lane {
        let lanes = self.lanes();
        let lane = &lanes[threads::number() & (lanes.len() - 1)];
        threads::set_last(self, lane);
        lane
    }

    #[cfg(loom)]
    pub(crate) fn close(&self) {
        self.bell().close();
    }
}

#[cfg(feature = "std")]
impl Lane {
    #[inline]
    pub(crate) fn post(&self) -> &Post {
        &self.post
    }

    #[inline]
    pub(crate) fn tally(&self) -> &Tally {
        self.post.tally()
    }

    pub(crate) fn wakers(&self) -> &Wakers {
        &self.wakers.0
    }

    pub(crate) fn rosters(&self) -> &Rosters {
        &self.rosters
    }
}

#[cfg(not(feature = "std"))]
impl RegistryState {
    fn lanes(&'static self) -> &'static [Lane] {
        core::slice::from_ref(self)
    }

    pub(crate) fn lane(&'static self) -> &'static Lane {
        self
    }

    fn post(&'static self) -> &'static Post {
        self
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.tally.0
    }

    pub(crate) fn wakers(&self) -> &Wakers {
        &self.wakers.0
    }

    pub(crate) fn core(&'static self) -> &'static RegistryState {
        self
    }
}

/// Which shard a thread uses, and how many there are.
#[cfg(all(feature = "std", not(loom)))]
mod threads {
    use super::{Lane, RegistryState};
    use core::cell::Cell;
    use core::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::OnceLock;

    /// A power of two, within reason, and several for each core: threads come and go, their numbers are dealt in turn, and two that run at
    /// once on one shard pay for it.
    pub(super) fn shards() -> usize {
        static SHARDS: OnceLock<usize> = OnceLock::new();
        *SHARDS.get_or_init(|| {
            // For this crate's own tests, when they are built.
            let forced = option_env!("BACKGROUND_TASKS_SHARDS").and_then(|n| n.parse().ok());
            let several = || 4 * std::thread::available_parallelism().map_or(1, Into::into);
            forced.unwrap_or_else(several).clamp(1, 128).next_power_of_two()
        })
    }

    thread_local!(static LAST: Cell<Option<(&'static RegistryState, &'static Lane)>> = const { Cell::new(None) });

    /// The lane that this thread has used last, and whose it is: to look there first spares most entries a chain of loads.
    #[inline]
    pub(super) fn last() -> Option<(&'static RegistryState, &'static Lane)> {
        LAST.get()
    }

    pub(super) fn set_last(core: &'static RegistryState, lane: &'static Lane) {
        LAST.set(Some((core, lane)));
    }

    pub(super) fn number() -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed));
        NUMBER.with(|number| *number)
    }
}

/// A model says which of two shards a thread uses, so that each run of it is the same.
#[cfg(loom)]
pub mod threads {
    use super::{Lane, RegistryState};
    use core::cell::Cell;

    thread_local!(static SHARDS: Cell<usize> = const { Cell::new(2) });
    loom::thread_local!(static NUMBER: Cell<usize> = Cell::new(0));

    pub(super) fn last() -> Option<(&'static RegistryState, &'static Lane)> {
        None
    }

    pub(super) fn set_last(_: &'static RegistryState, _: &'static Lane) {}

    pub(super) fn shards() -> usize {
        SHARDS.get()
    }

    pub(super) fn number() -> usize {
        NUMBER.with(Cell::get)
    }

    /// For the models: how many shards the registries of this test have.
    pub fn set_shards(shards: usize) {
        SHARDS.set(shards);
    }

    /// For the models: which shard this thread uses.
    pub fn set_number(number: usize) {
        NUMBER.with(|own| own.set(number));
    }
}

/// One of a registry's handles.
#[derive(Debug)]
pub(crate) struct Handle(&'static RegistryState);

impl Handle {
    #[cfg(feature = "std")]
    pub(crate) fn pooled(settings: Settings) -> Self {
        let core = pool::take();
        core.attend(settings);
        Self(core)
    }

    pub(crate) const fn in_static(core: &'static RegistryState) -> Self {
        Self(core)
    }

    #[inline]
    pub(crate) fn core(&self) -> &'static RegistryState {
        self.0
    }

    pub(crate) fn hold(&self) -> Hold {
        self.0.hold();
        Hold(self.0)
    }
}

impl Clone for Handle {
    /// Relaxed: one is there already.
    fn clone(&self) -> Self {
        if self.0.pooled {
            self.0.cold.0.handles.fetch_add(1, Ordering::Relaxed);
        }
        Self(self.0)
    }
}

impl Drop for Handle {
    /// `AcqRel`: what was done through the other handles happened before the shutdown that the last one begins.
    fn drop(&mut self) {
        if self.0.pooled && self.0.cold.0.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.begin_shutdown();
            self.0.let_go();
        }
    }
}

/// Keeps a core's state readable.
#[derive(Debug)]
pub(crate) struct Hold(&'static RegistryState);

impl Hold {
    pub(crate) fn core(&self) -> &'static RegistryState {
        self.0
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

#[cfg(all(test, feature = "std", not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_as_large_as_its_alignment() {
        assert_eq!(size_of::<Post>(), align_of::<Post>());
    }
}
