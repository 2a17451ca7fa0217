//! Connects a child registry with its parent and its root.
//!
//! Until a child has drained, its parent counts the child as one task in flight. The parent also has a list of its children,
//! because a shutdown or an abort of the parent applies to the children too. The root is the ancestor that has no parent.
//!
//! The functions that go through all descendants use a list instead of recursion, because registries can nest to any depth.

use super::lifetime::StateRef;
use super::registry_state::{Family, ListedChild, Lost, Parent, RegistryState};
use super::settings::{ABORTING, LIMITED, LIMITED_BY_ANCESTOR};
use super::token::Token;
use crate::platform::Ordering;
use crate::report::{SpawnInfo, TaskId};
use alloc::vec::Vec;

impl RegistryState {
    /// Makes a child registry. If the parent has drained, the child is already drained.
    ///
    /// If the parent is draining, the signal of the child is already triggered, but the child accepts tasks. The child stays open
    /// until its last handle is dropped, or until its own shutdown is started. Therefore a server that makes a child for each
    /// request can still start the work of its last requests.
    pub(super) fn make_child(&'static self, info: &SpawnInfo, limit: Option<usize>) -> &'static Self {
        let of_parent = if self.is_child() { self.shared().family.with(|family| family.root) } else { None };
        let root = Some(of_parent.unwrap_or_else(|| (self, self.phase() & !1)));
        let child = Self::take_for_child();
        child.settings.set_for_child(&self.settings, limit);
        // If the root has observers, the child keeps a reference to the root, because these observers also receive the rejections
        // of a drained child.
        if let Some((root, _)) = root.filter(|_| child.is_observed()) {
            root.retain();
        }
        let Ok(token) = Token::enter(self, info) else {
            child.shared().family.with(|family| family.root = root);
            child.start_shutdown();
            return child;
        };
        let limiter = match child.settings.has(LIMITED_BY_ANCESTOR) {
            true if self.settings.has(LIMITED) => Some(self),
            true => self.limiting_ancestor(|ancestor| ancestor),
            false => None,
        };
        // As soon as the list contains the child, another thread can shut the parent down, and the child can drain. In this case,
        // `leave_parent` waits for the lock of `family`. It gets the lock after the token of the child was stored.
        let stays_open = child.shared().family.with(|family| {
            let target = token.target();
            let mut stays_open = false;
            let key = target.owner.children().insert(|| {
                // A shutdown of the parent first changes the phase, and then locks the list. Therefore either the shutdown finds
                // the child, or this closure sees the new phase.
                stays_open = self.is_shutting_down();
                ListedChild { state: child, stays_open }
            });
            *family = Family { root, parent: Some(Parent { target, key, limiter }) };
            stays_open
        });
        if stays_open {
            child.start_phase();
        }
        // `start_aborting` first sets the flag of the parent, and then locks the list. Therefore either `start_aborting` finds the
        // child, or this code sees the flag of the parent (invariant L3).
        if self.settings.has(ABORTING) {
            child.settings.start_aborting();
        }
        child
    }

    /// Returns the root: the ancestor that has no parent, or this registry if it has no parent. The observers and the shutdown
    /// policy of a root also apply to its descendants. Returns `None` if this registry is a drained child, and the root's state is
    /// back in the pool or serves another registry.
    ///
    /// Until a child has drained, the child keeps its root's state out of the pool. If the root has observers, the child does so
    /// even after it has drained. If the root has no observers, the root's state may serve another registry after the child has
    /// drained. In this case, the phase of the state has changed.
    pub(super) fn root(&'static self) -> Option<StateRef> {
        if !self.is_child() {
            return Some(StateRef::new(self));
        }
        let (root, phase) = self.shared().family.with(|family| family.root)?;
        StateRef::of_used(root).filter(|_| root.phase() & !1 == phase)
    }

    /// Calls `get` with the ancestor from which the tasks of this child take their permits. Returns `None` if there is no such
    /// ancestor or if this child has drained.
    ///
    /// This function holds the lock of `family` while `get` runs. `leave_parent` takes the same lock before this child leaves its
    /// parent, so the ancestor is still in use.
    pub(super) fn limiting_ancestor<T>(&'static self, get: impl FnOnce(&'static Self) -> T) -> Option<T> {
        self.shared().family.with(|family| family.parent.as_ref()?.limiter.map(get))
    }

    /// Returns the ID of this child in its parent. Returns `None` if this registry is not inspected, is not a child, or has drained.
    ///
    /// This function reads the slot under the lock of `family`. `leave_parent` takes the same lock before the child's token leaves
    /// the parent, so the slot still belongs to the child.
    pub(super) fn id_in_parent(&'static self) -> Option<TaskId> {
        self.shared().family.with(|family| {
            let target = family.parent.as_ref()?.target;
            target.slot.and_then(|slot| target.owner.slots().id(slot))
        })
    }

    /// Adds the counts of a drained child to its parent, and removes the child from the parent's list. Returns the token that
    /// counts the child as in flight in the parent.
    ///
    /// Relaxed is enough for the losses. `summary` reads `folded` and the gate with Acquire. The Release on `folded` and the
    /// Release in `Gate::leave` therefore make the losses visible to `summary`.
    pub(super) fn leave_parent(&'static self) -> Option<Token> {
        if !self.is_child() {
            return None;
        }
        self.shared().family.with(|family| {
            let Parent { target, key, .. } = family.parent.take()?;
            let (parent, child) = (target.owner, self.targets()[0].owner);
            parent.children().remove(key);
            for (sum, count) in parent.losses.iter().zip(&child.losses) {
                let count = count.load(Ordering::Relaxed);
                if count != 0 {
                    sum.fetch_add(count, Ordering::Relaxed);
                }
            }
            // The parent's gate has counted the child itself as an accepted task. A child is not a task, so this line subtracts
            // one.
            let added = child.accepted().wrapping_sub(1);
            if added != 0 {
                parent.folded.fetch_add(added, Ordering::Release);
            }
            Some(Token::from_target(target))
        })
    }

    /// Counts a rejection in this registry. When a child drains, it adds its counts to its parent. If the drained child rejects a
    /// task later, its parent does not learn of this rejection. In this case, this function also counts the rejection in the root.
    pub(super) fn count_rejection(&'static self) {
        if !self.is_child() {
            return self.shard().count(Lost::Rejected);
        }
        // `leave_parent` reads the count of rejections under the same lock.
        let has_left = self.shared().family.with(|family| {
            self.shard().count(Lost::Rejected);
            family.parent.is_none()
        });
        if let Some(root) = if has_left { self.root() } else { None } {
            root.state().shard().count(Lost::Rejected);
        }
    }

    /// Calls `visit` with this registry and with each of its descendants.
    pub(super) fn for_each_in_subtree(&'static self, mut visit: impl FnMut(&'static Self)) {
        visit(self);
        self.for_each_descendant(|_| true, visit);
    }

    /// Calls `visit` with each descendant for which `includes` returns true. No lock is held while `visit` runs. If `includes`
    /// returns false for a child, this function skips the child and its descendants.
    pub(super) fn for_each_descendant(&'static self, includes: fn(&ListedChild) -> bool, mut visit: impl FnMut(&'static Self)) {
        let mut found = Vec::new();
        self.find_children(includes, &mut found);
        while let Some(child) = found.pop() {
            visit(child.state());
            child.state().find_children(includes, &mut found);
        }
    }

    fn find_children(&'static self, includes: fn(&ListedChild) -> bool, found: &mut Vec<StateRef>) {
        for shard in self.shards() {
            shard.children().for_each(|child| {
                if includes(child) {
                    found.push(StateRef::new(child.state));
                }
            });
        }
    }

    /// Returns the number of children that have not drained.
    pub(super) fn child_count(&'static self) -> usize {
        let mut count = 0;
        self.shards().for_each(|shard| shard.children().for_each(|_| count += 1));
        count
    }
}
