//! Requests that a worker was lost with, so that one of them cannot take down one worker after the other.
//!
//! When the connection to a worker ends before its response does, nothing says whether the request was the reason. The
//! request is remembered as a suspect by the digest of its body. Until its window is over it is sent to another pair
//! as a *trial*: at most once at a time, and at a worker that has no other suspect. A suspect that loses a second
//! worker is refused; one that is served, on trial or not, is forgotten.
//!
//! | file | what it holds |
//! |---|---|
//! | `mod.rs` | [`Suspects`], which the proxy asks: a lock, a flag that says whether to ask at all, a signal |
//! | `book.rs` | the state, and all decisions; no lock and no clock |
//! | `book/desk.rs` | the trials at one worker |
//!
//! As long as no suspect is known, a request costs one relaxed load.

mod book;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::{Members, Worker, WorkerId};
use crate::pd::{Role, Route};
use book::{Book, Place, Seating, TrialId};

/// How long suspects are remembered, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuspectLimits {
    /// From the last loss to the end of the suspicion. Never zero.
    pub window: Duration,
    /// The most suspects that are known at once. Never zero.
    pub capacity: usize,
}

/// What tells two requests apart: the route, and the body as the client sent it, without fields that only the proxy may
/// set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest {
    /// Length of the body, in bytes.
    length: usize,
    hash: [u8; 32],
}

impl Digest {
    /// The digest of a body that comes in pieces.
    pub fn of<'a>(route: Route, pieces: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Sha256::new();
        hash.update(route.path());
        let mut length = 0;
        for piece in pieces {
            length += piece.len();
            hash.update(piece);
        }
        Self {
            length,
            hash: hash.finalize().into(),
        }
    }
}

/// The first four bytes, for the log.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.hash;
        write!(f, "{:08x}", u32::from_be_bytes([a, b, c, d]))
    }
}

/// A worker that was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Its id.
    pub id: WorkerId,
    /// Its role.
    pub role: Role,
    /// Its URL.
    pub url: String,
}

impl From<&Worker> for Lost {
    fn from(worker: &Worker) -> Self {
        Self {
            id: worker.id(),
            role: worker.role(),
            url: worker.url().to_owned(),
        }
    }
}

/// One attempt that ended with the loss of a worker.
#[derive(Debug, Clone, Copy)]
pub struct Loss<'a> {
    /// The prefill worker, the decode worker, or both.
    pub workers: &'a [Lost],
    /// When the attempt was sent.
    pub sent: Instant,
    /// Whether the client had got a byte of the response.
    pub begun: bool,
}

impl Loss<'_> {
    /// How far a later attempt must get to show that it does not end in the same way.
    fn point(&self) -> Point {
        let is_decode = |worker: &Lost| worker.role == Role::Decode;
        match (self.begun, self.workers.iter().any(is_decode)) {
            (true, _) => Point::End,
            (false, true) => Point::FirstByte,
            (false, false) => Point::Prefilled,
        }
    }
}

/// How far the response of a request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// Prefill has responded.
    Prefilled,
    /// The first byte has gone to the client.
    FirstByte,
    /// The response is complete.
    End,
}

/// What is known of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Nothing.
    Clear,
    /// A worker was lost with it.
    Suspect,
    /// A second worker was lost with it.
    Refused(Refusal),
}

/// Why a suspect is not sent to any worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The worker that was lost last.
    pub lost: Option<Lost>,
    /// How often that worker was lost, where it was no other each time; `None` where two workers or more were lost.
    pub times: Option<u32>,
    /// The time until the suspect is forgotten.
    pub left: Duration,
}

impl Refusal {
    /// The time until the suspect is forgotten, in whole seconds, rounded up.
    pub fn left_secs(&self) -> u64 {
        self.left.as_secs_f64().ceil() as u64
    }
}

/// What is known of a request after a loss.
#[derive(Debug, PartialEq, Eq)]
pub struct Judged {
    /// Its standing now.
    pub standing: Standing,
    /// Whether it shared its worker with other suspects. It is then tried once more, as if this attempt had not been.
    pub shared: bool,
}

/// What a suspect waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The end of a trial of an equal request.
    Equal,
    /// Its turn: other suspects have all workers.
    Turn,
    /// A worker of this role that is well and has not failed the request.
    Worker(Role),
}

/// The turn of a suspect.
#[derive(Debug)]
pub enum Turn {
    /// It is no suspect any more.
    Clear,
    /// Now. The trial lasts until it is dropped.
    Now(Trial),
    /// Later: see [`Suspects::changed`].
    Later,
    /// Never.
    Refused(Refusal),
}

/// Totals since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SuspectCounts {
    /// Requests that a worker was lost with.
    pub losses: u64,
    /// Trials of suspects.
    pub trials: u64,
    /// Responses that said that the request is refused.
    pub refusals: u64,
    /// Suspects that are known now.
    pub known: usize,
}

/// The suspects of one balancer.
#[derive(Debug)]
pub struct Suspects {
    /// `None` when no suspect is remembered.
    limits: Option<SuspectLimits>,
    /// Whether any suspect is known.
    watching: AtomicBool,
    book: Mutex<Book>,
    changed: Notify,
    losses: AtomicU64,
    trials: AtomicU64,
    refusals: AtomicU64,
}

impl Suspects {
    /// Without a suspect. `None` remembers none.
    pub fn new(limits: Option<SuspectLimits>) -> Self {
        Self {
            limits,
            watching: AtomicBool::new(false),
            book: Mutex::default(),
            changed: Notify::new(),
            losses: AtomicU64::new(0),
            trials: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
        }
    }

    /// Whether suspects are remembered at all.
    pub fn is_on(&self) -> bool {
        self.limits.is_some()
    }

    /// Whether any suspect may be known. All that a request costs as long as there is none.
    pub fn is_watching(&self) -> bool {
        self.watching.load(Ordering::Relaxed)
    }

    /// Whether a request whose body has this length may be a suspect, so that its digest is needed.
    pub fn may_know(&self, length: usize, now: Instant) -> bool {
        let mut book = self.book();
        book.tidy(now);
        self.watching.store(!book.is_empty(), Ordering::Relaxed);
        book.may_know(length)
    }

    /// What is known of a request. A refusal is counted.
    pub fn standing(&self, digest: &Digest, now: Instant) -> Standing {
        let standing = self.book().standing(digest, now);
        if matches!(standing, Standing::Refused(_)) {
            self.refusals.fetch_add(1, Ordering::Relaxed);
        }
        standing
    }

    /// The workers that a trial of this request must not get, those of `avoid` among them. A suspect that is `overdue`
    /// has waited so long that it shares workers with others.
    ///
    /// # Errors
    /// It must wait. A suspect is not sent to a worker that is set aside, nor to one that it was lost with: that would
    /// fail, or be no trial.
    pub fn avoided(
        &self,
        digest: &Digest,
        members: &Members,
        avoid: &[WorkerId],
        overdue: bool,
        now: Instant,
    ) -> Result<Vec<WorkerId>, Wait> {
        let book = self.book();
        let mut avoided = avoid.to_vec();
        let mut waits = book.is_on_trial(digest).then_some(Wait::Equal);
        for role in [Role::Prefill, Role::Decode] {
            let workers = members.of(role);
            let place = |worker: &Worker| {
                let fit = worker.admits(now) && !avoid.contains(&worker.id());
                fit.then(|| book.place(digest, worker.id(), overdue, now))
            };
            let places: Vec<_> = workers.iter().map(|worker| place(worker)).collect();
            match places.iter().flatten().min() {
                Some(Place::Taken) if book.needs_seat(digest, role) => {
                    waits.get_or_insert(Wait::Turn);
                }
                Some(best) if *best != Place::Dying => {
                    let others = workers.iter().zip(&places);
                    let others = others.filter(|(_, place)| **place != Some(*best));
                    avoided.extend(others.map(|(worker, _)| worker.id()));
                }
                _ if workers.iter().any(|worker| worker.is_usable()) => {
                    return Err(Wait::Worker(role));
                }
                // The choice of a pair says so.
                _ => {}
            }
        }
        waits.map_or(Ok(avoided), Err)
    }

    /// Begins the trial of a request on a prefill worker and a decode worker, unless it has to wait.
    pub fn turn(
        self: &Arc<Self>,
        digest: &Digest,
        pair: [WorkerId; 2],
        overdue: bool,
        now: Instant,
    ) -> Turn {
        let seating = self.book().seat(digest, pair, overdue, now);
        match seating {
            Seating::Clear => Turn::Clear,
            Seating::Wait => Turn::Later,
            Seating::Refused(refusal) => Turn::Refused(refusal),
            Seating::Trial(id) => {
                self.trials.fetch_add(1, Ordering::Relaxed);
                if overdue {
                    // Others may share its worker.
                    self.changed.notify_waiters();
                }
                Turn::Now(Trial(Progress {
                    suspects: self.clone(),
                    id,
                }))
            }
        }
    }

    /// Resolves when something has changed since this call. To be enabled before the state is looked at.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Notes that a request was lost with a worker, and gives what is known of it now. Ends its trial.
    pub fn lost(
        &self,
        digest: &Digest,
        trial: Option<Trial>,
        loss: &Loss<'_>,
        now: Instant,
    ) -> Judged {
        let Some(limits) = self.limits else {
            return Judged {
                standing: Standing::Clear,
                shared: false,
            };
        };
        self.losses.fetch_add(1, Ordering::Relaxed);
        let (standing, shared) = {
            let mut book = self.book();
            let id = trial.as_ref().map(|trial| trial.0.id);
            let judged = book.lost(digest, id, loss, limits, now);
            self.watching.store(true, Ordering::Relaxed);
            judged
        };
        if let Standing::Refused(refusal) = &standing {
            self.refusals.fetch_add(1, Ordering::Relaxed);
            log::warn!(
                "request refused as suspect digest={digest} last_lost={} for_secs={}",
                refusal.lost.as_ref().map_or("-", |lost| &lost.url),
                refusal.left_secs()
            );
        }
        self.changed.notify_waiters();
        Judged { standing, shared }
    }

    /// Notes that a request was served, on trial or not. Neither it nor an equal one is a suspect any more.
    pub fn served(&self, digest: &Digest, now: Instant) {
        let standing = self.book().served(digest, now);
        match standing {
            Standing::Clear => return,
            Standing::Suspect => {}
            Standing::Refused(_) => {
                log::info!("request no longer refused as suspect digest={digest}");
            }
        }
        self.changed.notify_waiters();
    }

    /// Totals since the start.
    pub fn counts(&self) -> SuspectCounts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SuspectCounts {
            losses: count(&self.losses),
            trials: count(&self.trials),
            refusals: count(&self.refusals),
            known: self.book().len(),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Nothing panics while the lock is held.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The trial of a suspect. It ends when this is dropped.
#[derive(Debug)]
pub struct Trial(Progress);

/// Reports how far the response of a trial has come.
#[derive(Debug, Clone)]
pub struct Progress {
    suspects: Arc<Suspects>,
    id: TrialId,
}

impl Progress {
    /// The response has come this far.
    pub fn reached(&self, point: Point) {
        if self.suspects.book().reached(self.id, point) {
            self.suspects.changed.notify_waiters();
        }
    }
}

impl Trial {
    /// For others that report.
    pub fn progress(&self) -> &Progress {
        &self.0
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let Progress { suspects, id } = &self.0;
        suspects.book().ended(*id);
        suspects.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
