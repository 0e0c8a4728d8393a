//! The state of all suspects: which requests a worker was lost with, which of them are tried again and where, and
//! which are refused.
//!
//! What may not live here: locks, hashing, waiting. The time is an argument.
//!
//! A worker that dies takes down every request that it has, and at most one of them is the reason. So each of them is
//! tried again, and no two of them at the same worker at the same time: a trial holds the *seat* of its worker until the
//! response has come as far as the point where the first worker was lost ([`Point`]). A worker that is lost while one
//! trial holds its seat is the second loss of that trial, and of no other request.
//!
//! Where many died with one worker that takes long. Those that have waited for a while (`overdue`) share a seat, as many
//! as the square root of those that are left, which is the size that needs the fewest rounds if one of them is the reason
//! (source: Dorfman 1943, *The detection of defective members of large populations*). When a worker is lost with such a
//! group, its members are tried alone. So a request that is the reason takes down two workers, or three.
//!
//! Only the loss of a trial can refuse its request: requests with equal bodies that run at the same time at several
//! workers may die with all of them for another reason. And a response that was complete acquits all of them.

mod desk;

use std::collections::HashMap;
use std::time::Instant;

use super::{Digest, Loss, Lost, Point, Refusal, Standing, SuspectLimits};
use crate::fleet::WorkerId;
use crate::pd::Role;
pub(super) use desk::Place;
#[cfg(test)]
pub(super) use desk::SEAT_LIMIT;
use desk::{Desk, Part};

/// How often one worker must have been lost with a request that no other worker was lost with. Twice happens to a worker
/// that restarts and dies again for another reason.
const LOSSES_OF_ONE: u32 = 3;

/// The number of a trial. No other trial has had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct TrialId(u64);

/// What may be done with a suspect now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seating {
    /// It is no suspect any more.
    Clear,
    /// Its trial begins.
    Trial(TrialId),
    /// A seat is taken, or the same request is on trial.
    Wait,
    Refused(Refusal),
}

/// All suspects and trials.
#[derive(Debug, Default)]
pub(super) struct Book {
    entries: HashMap<Digest, Entry>,
    /// How many entries have a body of this length: another length needs no hash.
    lengths: HashMap<usize, usize>,
    trials: HashMap<TrialId, Trial>,
    desks: HashMap<WorkerId, Desk>,
    last_trial: u64,
    /// No entry ends before this.
    next_end: Option<Instant>,
}

/// One suspect.
#[derive(Debug)]
struct Entry {
    /// When it is forgotten.
    until: Instant,
    /// Whether it has lost a second worker, or one worker too often.
    refused: bool,
    /// The workers that were lost with it: the latest is last. Each is there once.
    lost: Vec<Lost>,
    /// How often a worker was lost with it: the first time, and on trial.
    losses: u32,
    /// Whether workers of this role were lost with it: prefill, decode.
    roles: [bool; 2],
    /// How far a trial must get.
    point: Point,
    /// The trial that is not past its point yet.
    trial: Option<TrialId>,
    /// Whether a trial got past its point after the last loss.
    passed: bool,
    /// Whether a worker was lost with a group that it was in, so that it is tried alone.
    alone: bool,
}

#[derive(Debug)]
struct Trial {
    digest: Digest,
    /// Prefill and decode.
    workers: [WorkerId; 2],
    point: Point,
    begun: Instant,
}

impl Book {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.trials.is_empty()
    }

    /// How many suspects are known.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether a body of this length may be a suspect.
    pub(super) fn may_know(&self, length: usize) -> bool {
        self.lengths.contains_key(&length)
    }

    /// Forgets what has ended.
    pub(super) fn tidy(&mut self, now: Instant) {
        if self.next_end.is_none_or(|end| now < end) {
            return;
        }
        let ended: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.until <= now)
            .map(|(digest, _)| *digest)
            .collect();
        for digest in ended {
            self.forget(&digest);
        }
        self.next_end = self.entries.values().map(|entry| entry.until).min();
    }

    /// What is known of a request.
    pub(super) fn standing(&self, digest: &Digest, now: Instant) -> Standing {
        match self.entries.get(digest).filter(|entry| now < entry.until) {
            Some(entry) if entry.refused => Standing::Refused(entry.refusal(now)),
            Some(entry) if !entry.passed => Standing::Suspect,
            _ => Standing::Clear,
        }
    }

    /// Whether a trial of this request needs the seat of its worker of this role.
    pub(super) fn needs_seat(&self, digest: &Digest, role: Role) -> bool {
        let lost = |entry: &Entry| entry.roles[index(role)];
        self.entries.get(digest).is_some_and(lost)
    }

    /// The state of this worker for a trial of this request, which has waited long (`overdue`) or not.
    pub(super) fn place(
        &self,
        digest: &Digest,
        worker: WorkerId,
        overdue: bool,
        now: Instant,
    ) -> Place {
        let joins = overdue && self.entries.get(digest).is_some_and(|entry| !entry.alone);
        let desk = self.desks.get(&worker);
        desk.map_or(Place::Free, |desk| desk.place(joins, now))
    }

    /// Whether a trial of this request is not past its point yet.
    pub(super) fn is_on_trial(&self, digest: &Digest) -> bool {
        self.entries
            .get(digest)
            .is_some_and(|entry| entry.trial.is_some())
    }

    /// Begins the trial of a suspect on a prefill worker and a decode worker, if the seats that it needs are not taken.
    pub(super) fn seat(
        &mut self,
        digest: &Digest,
        workers: [WorkerId; 2],
        overdue: bool,
        now: Instant,
    ) -> Seating {
        match self.standing(digest, now) {
            Standing::Clear => return Seating::Clear,
            Standing::Refused(refusal) => return Seating::Refused(refusal),
            Standing::Suspect => {}
        }
        let taken = ROLES.into_iter().zip(workers).any(|(role, worker)| {
            let place = self.place(digest, worker, overdue, now);
            self.needs_seat(digest, role) && matches!(place, Place::Taken | Place::Dying)
        });
        if taken || self.is_on_trial(digest) {
            return Seating::Wait;
        }
        let group = self.group();
        let Some(entry) = self.entries.get_mut(digest) else {
            return Seating::Clear;
        };
        self.last_trial += 1;
        let id = TrialId(self.last_trial);
        entry.trial = Some(id);
        let limit = if overdue && !entry.alone { group } else { 1 };
        for (worker, needs_seat) in workers.into_iter().zip(entry.roles) {
            let desk = self.desks.entry(worker).or_default();
            match needs_seat {
                true => desk.sit(id, limit, now),
                false => desk.attend(id),
            }
        }
        let trial = Trial {
            digest: *digest,
            workers,
            point: entry.point,
            begun: now,
        };
        self.trials.insert(id, trial);
        Seating::Trial(id)
    }

    /// How many of those that have waited long share a seat.
    fn group(&self) -> usize {
        let waits = |entry: &&Entry| !entry.refused && !entry.passed;
        let left = self.entries.values().filter(waits).count();
        left.isqrt().max(2)
    }

    /// The response of a trial has come this far. True when that may end the wait of another one.
    pub(super) fn reached(&mut self, id: TrialId, point: Point) -> bool {
        let Some(trial) = self.trials.get(&id) else {
            return false;
        };
        // What prefill does for a request is over when it has responded.
        let ([prefill, decode], begun) = (trial.workers, trial.begun);
        let is_past = point >= trial.point;
        let mut freed = false;
        if is_past && let Some(entry) = self.entries.get_mut(&trial.digest) {
            let passed = entry.trial.take_if(|current| *current == id).is_some();
            entry.passed |= passed;
            freed |= passed;
        }
        for (worker, is_alive, is_over) in [
            (prefill, true, true),
            (decode, point > Point::Prefilled, is_past),
        ] {
            let Some(desk) = self.desks.get_mut(&worker) else {
                continue;
            };
            if is_alive {
                desk.is_alive(begun);
            }
            freed |= is_over && desk.pass(id);
        }
        freed
    }

    /// A request was served, on trial or not: neither it nor an equal one is a suspect any more. What was known of it.
    pub(super) fn served(&mut self, digest: &Digest, now: Instant) -> Standing {
        let standing = self.standing(digest, now);
        self.forget(digest);
        standing
    }

    /// A request was lost with one worker or both; `trial` is the one that it was on. What is known of it now, and whether
    /// it shared a seat, so that the loss says little about it.
    pub(super) fn lost(
        &mut self,
        digest: &Digest,
        trial: Option<TrialId>,
        loss: &Loss<'_>,
        limits: SuspectLimits,
        now: Instant,
    ) -> (Standing, bool) {
        self.tidy(now);
        self.desks
            .retain(|_, desk| desk.is_needed(limits.window, now));
        let mut part = Part::Along;
        for worker in loss.workers {
            let desk = self.desks.entry(worker.id).or_default();
            part = part.max(desk.lost(trial, loss.sent, now));
        }
        if let Some(id) = trial {
            self.ended(id);
        }
        if !self.entries.contains_key(digest) {
            self.make_room(limits.capacity);
            *self.lengths.entry(digest.length).or_default() += 1;
        }
        let until = now + limits.window;
        let new = || Entry::new(until);
        let entry = self.entries.entry(*digest).or_insert_with(new);
        entry.lost(part, loss);
        entry.until = until;
        self.next_end = Some(self.next_end.map_or(until, |end| end.min(until)));
        (self.standing(digest, now), part == Part::Shared)
    }

    /// A trial is over.
    pub(super) fn ended(&mut self, id: TrialId) {
        let Some(trial) = self.trials.remove(&id) else {
            return;
        };
        for worker in trial.workers {
            if let Some(desk) = self.desks.get_mut(&worker) {
                desk.leave(id);
            }
        }
        if let Some(entry) = self.entries.get_mut(&trial.digest) {
            entry.trial.take_if(|current| *current == id);
        }
    }

    fn forget(&mut self, digest: &Digest) {
        if self.entries.remove(digest).is_none() {
            return;
        }
        if let Some(count) = self.lengths.get_mut(&digest.length) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&digest.length);
            }
        }
    }

    /// Makes room for one more: of those that are not refused, the one that would be forgotten first goes.
    fn make_room(&mut self, capacity: usize) {
        while self.entries.len() >= capacity.max(1) {
            let first = self
                .entries
                .iter()
                .min_by_key(|(_, entry)| (entry.refused, entry.until))
                .map(|(digest, _)| *digest);
            let Some(first) = first else { return };
            self.forget(&first);
        }
    }
}

/// In the order of all pairs here.
const ROLES: [Role; 2] = [Role::Prefill, Role::Decode];

fn index(role: Role) -> usize {
    match role {
        Role::Prefill => 0,
        Role::Decode => 1,
    }
}

impl Entry {
    /// A suspect that no loss has been noted of yet.
    fn new(until: Instant) -> Self {
        Self {
            until,
            refused: false,
            lost: Vec::new(),
            losses: 0,
            roles: [false; 2],
            point: Point::Prefilled,
            trial: None,
            passed: false,
            alone: false,
        }
    }

    /// Notes a loss that it had this part in.
    fn lost(&mut self, part: Part, loss: &Loss<'_>) {
        let is_blamed = match part {
            Part::Along => false,
            // It had been in such a group before.
            Part::Shared => self.alone,
            Part::Sole => true,
        };
        self.losses += u32::from(is_blamed || self.lost.is_empty());
        self.alone |= part == Part::Shared;
        self.passed = false;
        self.point = self.point.max(loss.point());
        for worker in loss.workers {
            self.roles[index(worker.role)] = true;
            self.lost.retain(|known| known.id != worker.id);
            self.lost.push(worker.clone());
        }
        // Two tell all that is asked.
        let excess = self.lost.len().saturating_sub(2);
        self.lost.drain(..excess);
        self.refused |= is_blamed && (self.lost.len() > 1 || self.losses >= LOSSES_OF_ONE);
    }

    fn refusal(&self, now: Instant) -> Refusal {
        Refusal {
            lost: self.lost.last().cloned(),
            times: (self.lost.len() == 1).then_some(self.losses),
            left: self.until.saturating_duration_since(now),
        }
    }
}

#[cfg(test)]
mod random_events;
#[cfg(test)]
mod tests;
