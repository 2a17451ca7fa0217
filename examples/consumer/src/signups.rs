//! Stores the sign-ups of this server, with the status of each mail, in memory.

use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use uuid::Uuid;

/// The server keeps at most this many sign-ups.
const CAPACITY: usize = 10_000;

/// The status of a mail. Within one attempt, a later status is greater than an earlier status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Waiting,
    Running,
    Retrying,
    Done,
    Dead,
}

/// A message of the queue `mails`: a mail to send.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// The ID of the sign-up. If a worker sends a mail twice, both copies have this ID, so that a mail server can recognize the duplicate.
    pub(crate) id: Uuid,
    pub(crate) to: String,
}

/// A message of the queue `notices`: the new status of a mail.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Notice {
    pub(crate) id: Uuid,
    pub(crate) to: String,
    pub(crate) status: Status,
    pub(crate) attempt: u32,
    pub(crate) error: Option<String>,
}

/// A sign-up and the status of its mail.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Signup {
    pub(crate) id: Uuid,
    pub(crate) address: String,
    pub(crate) status: Status,
    /// Whether the status is final.
    pub(crate) ended: bool,
    /// The number of attempts that have started.
    pub(crate) attempts: u32,
    /// Describes the status to the user in one sentence.
    pub(crate) message: String,
}

#[derive(Clone, Default)]
pub(crate) struct Signups(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    signups: HashMap<Uuid, watch::Sender<Signup>>,
    /// The IDs of the sign-ups in the order of their arrival. The oldest sign-up is first.
    order: VecDeque<Uuid>,
}

impl Signups {
    pub(crate) fn insert(&self, signup: Signup) {
        self.lock().insert(signup);
    }

    /// Returns a receiver for the sign-up and for each later change of its status.
    pub(crate) fn find(&self, id: Uuid) -> Option<watch::Receiver<Signup>> {
        self.lock().signups.get(&id).map(watch::Sender::subscribe)
    }

    /// Stores the status of a notice, if it is later than the stored status. This check is necessary because a broker may deliver a notice
    /// twice, or deliver notices in another order.
    pub(crate) fn apply(&self, notice: Notice) {
        let signup = Signup::new(notice);
        let mut known = self.lock();
        let Some(old) = known.signups.get(&signup.id) else {
            // This server has not stored the sign-up: another server has accepted it, this server has restarted, or this server has removed
            // its oldest sign-ups.
            return known.insert(signup);
        };
        old.send_if_modified(|old| {
            let is_later = signup.rank() > old.rank();
            if is_later {
                *old = signup;
            }
            is_later
        });
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn insert(&mut self, signup: Signup) {
        self.order.push_back(signup.id);
        self.signups.insert(signup.id, watch::Sender::new(signup));
        if self.order.len() > CAPACITY
            && let Some(oldest) = self.order.pop_front()
        {
            self.signups.remove(&oldest);
        }
    }
}

impl Signup {
    pub(crate) fn accepted(id: Uuid, to: String) -> Self {
        Self::new(Notice { id, to, status: Status::Waiting, attempt: 0, error: None })
    }

    fn new(notice: Notice) -> Self {
        let Notice { id, to, status, attempt, error } = notice;
        let error = error.unwrap_or_default();
        let message = match status {
            Status::Waiting => "The mail is about to be sent.".into(),
            Status::Running => "The mail is being sent.".into(),
            Status::Retrying => format!("The mail could not be sent yet: {error}. It will be retried."),
            Status::Done if attempt == 1 => "The mail has been sent.".into(),
            Status::Done => format!("The mail has been sent, at attempt {attempt}."),
            Status::Dead => format!("The mail could not be sent: {error}."),
        };
        Self { id, address: to, status, ended: status >= Status::Done, attempts: attempt, message }
    }

    /// Returns a key that orders the statuses of one mail. A final status has the greatest key, so that no later notice replaces it.
    fn rank(&self) -> (bool, u32, Status) {
        if self.ended { (true, 0, Status::Done) } else { (false, self.attempts, self.status) }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Done => "done",
            Self::Dead => "dead",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_and_repeated_notices_change_nothing() {
        let (signups, id) = (Signups::default(), Uuid::new_v4());
        signups.insert(Signup::accepted(id, "ada@example.com".into()));
        let apply = |attempt, status| {
            signups.apply(Notice { id, to: "ada@example.com".into(), status, attempt, error: None });
            let signup = signups.find(id).unwrap().borrow().clone();
            (signup.attempts, signup.status)
        };
        assert_eq!(apply(1, Status::Retrying), (1, Status::Retrying));
        assert_eq!(apply(1, Status::Running), (1, Status::Retrying));
        assert_eq!(apply(2, Status::Running), (2, Status::Running));
        assert_eq!(apply(2, Status::Done), (2, Status::Done));
        assert_eq!(apply(3, Status::Running), (2, Status::Done));
        assert_eq!(apply(3, Status::Done), (2, Status::Done));
    }

    #[test]
    fn oldest_signup_is_forgotten() {
        let signups = Signups::default();
        let ids: Vec<_> = (0..=CAPACITY).map(|_| Uuid::new_v4()).collect();
        for &id in &ids {
            signups.insert(Signup::accepted(id, "ada@example.com".into()));
        }
        assert!(signups.find(ids[0]).is_none() && signups.find(ids[1]).is_some());
    }
}
