//! The state of all suspects: which requests a worker was lost with, which of them are tried again and where, and
//! which are refused.
//!
//! What may not live here: locks, hashing, waiting. The time is an argument.
//!
//! A worker that dies takes down every request that it has, and only one of them may be the reason. So each of them is
//! tried once more, and no two of them at the same worker at the same time: a trial holds the *seat* of both of its
//! workers until the response has come as far as the point where the first worker was lost ([`Point`]). A worker that
//! is lost while a trial holds its seat is that trial's second loss, and nobody else's.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::{Digest, Loss, Lost, Point, Refusal, Standing, SuspectLimits};
use crate::fleet::WorkerId;

/// How long a trial keeps its seats at most. After that the next suspect may share its workers.
pub(super) const SEAT_LIMIT: Duration = Duration::from_secs(30);

/// How long trials avoid a worker that was lost: until probes or other requests have found out that it is gone.
const LOST_RECENTLY: Duration = Duration::from_secs(5);

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

/// The state of one worker for the next trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Free,
    /// The worker was lost a moment ago, and may still be gone.
    Lost,
    Taken,
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
    /// Whether it has lost a second worker.
    refused: bool,
    /// The workers that were lost with it: the latest is last.
    lost: Vec<Lost>,
    /// How far a trial must get.
    point: Point,
    /// The trial that is not past its point yet.
    trial: Option<TrialId>,
}

#[derive(Debug)]
struct Trial {
    digest: Digest,
    workers: [WorkerId; 2],
    point: Point,
}

/// The trials at one worker.
#[derive(Debug, Default)]
struct Desk {
    /// The trial that has the seat, and when others may share it.
    seat: Option<(TrialId, Instant)>,
    /// Trials whose response runs on, without the seat.
    others: HashSet<TrialId>,
    /// When the worker was lost last.
    lost: Option<Instant>,
    /// When a trial was last found to be the reason.
    explained: Option<Instant>,
}

impl Desk {
    fn is_taken(&self, now: Instant) -> bool {
        self.seat.is_some_and(|(_, until)| now < until)
    }

    fn is_seated(&self, trial: TrialId) -> bool {
        self.seat.is_some_and(|(holder, _)| holder == trial)
    }

    /// Whether this trial without a seat is the only trial here.
    fn is_alone(&self, trial: TrialId) -> bool {
        self.seat.is_none() && self.others.len() == 1 && self.others.contains(&trial)
    }

    fn remove(&mut self, trial: TrialId) {
        self.seat.take_if(|(holder, _)| *holder == trial);
        self.others.remove(&trial);
    }

    fn is_needed(&self, window: Duration, now: Instant) -> bool {
        let recent = |at: Instant| now < at + window;
        self.seat.is_some() || !self.others.is_empty() || self.lost.is_some_and(recent)
    }
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
            None => Standing::Clear,
            Some(entry) if entry.refused => Standing::Refused(entry.refusal(now)),
            Some(_) => Standing::Suspect,
        }
    }

    /// The state of this worker for the next trial.
    pub(super) fn place(&self, worker: WorkerId, now: Instant) -> Place {
        let lost = |at: Instant| now < at + LOST_RECENTLY;
        match self.desks.get(&worker) {
            Some(desk) if desk.is_taken(now) => Place::Taken,
            Some(desk) if desk.lost.is_some_and(lost) => Place::Lost,
            _ => Place::Free,
        }
    }

    /// Whether a trial of this request is not past its point yet.
    pub(super) fn is_on_trial(&self, digest: &Digest) -> bool {
        self.entries
            .get(digest)
            .is_some_and(|entry| entry.trial.is_some())
    }

    /// Begins the trial of a suspect on these two workers, if both seats are free.
    pub(super) fn seat(
        &mut self,
        digest: &Digest,
        workers: [WorkerId; 2],
        now: Instant,
    ) -> Seating {
        match self.standing(digest, now) {
            Standing::Clear => return Seating::Clear,
            Standing::Refused(refusal) => return Seating::Refused(refusal),
            Standing::Suspect => {}
        }
        let is_taken = |worker: &WorkerId| self.place(*worker, now) == Place::Taken;
        let taken = workers.iter().any(is_taken);
        if taken || self.is_on_trial(digest) {
            return Seating::Wait;
        }
        let Some(entry) = self.entries.get_mut(digest) else {
            return Seating::Clear;
        };
        self.last_trial += 1;
        let id = TrialId(self.last_trial);
        entry.trial = Some(id);
        let trial = Trial {
            digest: *digest,
            workers,
            point: entry.point,
        };
        self.trials.insert(id, trial);
        for worker in workers {
            let desk = self.desks.entry(worker).or_default();
            if let Some((overdue, _)) = desk.seat.replace((id, now + SEAT_LIMIT)) {
                desk.others.insert(overdue);
            }
        }
        Seating::Trial(id)
    }

    /// The response of a trial has come this far. True when that may end the wait of another one.
    pub(super) fn reached(&mut self, id: TrialId, point: Point) -> bool {
        let Some(trial) = self.trials.get(&id) else {
            return false;
        };
        // What prefill does for a request is over when it has responded.
        let [prefill, decode] = trial.workers;
        let is_past = point >= trial.point;
        let frees: &[WorkerId] = match is_past {
            true => &[prefill, decode],
            false if point == Point::Prefilled => &[prefill],
            false => &[],
        };
        let mut freed = false;
        if is_past && let Some(entry) = self.entries.get_mut(&trial.digest) {
            freed |= entry.trial.take_if(|current| *current == id).is_some();
        }
        for worker in frees {
            if let Some(desk) = self.desks.get_mut(worker)
                && desk.seat.take_if(|(holder, _)| *holder == id).is_some()
            {
                desk.others.insert(id);
                freed = true;
            }
        }
        freed
    }

    /// A trial is over, without a loss. `served` says whether its response was complete, which ends the suspicion.
    pub(super) fn ended(&mut self, id: TrialId, served: bool) {
        let Some(digest) = self.leave(id) else {
            return;
        };
        let refused = |entry: &Entry| entry.refused;
        if served && !self.entries.get(&digest).is_some_and(refused) {
            self.forget(&digest);
        }
    }

    /// A request was lost with one worker or both; `trial` is the one that it was on.
    pub(super) fn lost(
        &mut self,
        digest: &Digest,
        trial: Option<TrialId>,
        loss: &Loss<'_>,
        limits: SuspectLimits,
        now: Instant,
    ) -> Standing {
        self.tidy(now);
        self.desks
            .retain(|_, desk| desk.is_needed(limits.window, now));
        let mut blamed = false;
        let mut explained = true;
        for worker in loss.workers {
            let desk = self.desks.entry(worker.id).or_default();
            desk.lost = Some(now);
            match trial {
                Some(id) if desk.is_seated(id) => {
                    desk.explained = Some(now);
                    blamed = true;
                }
                // Sent before the reason of this loss was found: it died along with that one.
                _ if desk.explained.is_some_and(|at| loss.sent <= at) => {}
                Some(id) => {
                    blamed |= desk.is_alone(id);
                    desk.explained = Some(now);
                }
                None => explained &= desk.seat.is_some(),
            }
        }
        if let Some(id) = trial {
            self.leave(id);
        }
        if !self.entries.contains_key(digest) {
            self.make_room(limits.capacity);
            *self.lengths.entry(digest.length).or_default() += 1;
        }
        let until = now + limits.window;
        let entry = self.entries.entry(*digest).or_insert_with(|| Entry {
            until,
            refused: false,
            lost: Vec::new(),
            point: Point::Prefilled,
            trial: None,
        });
        let is_new = |worker: &&Lost| entry.lost.iter().all(|known| known.id != worker.id);
        let another = !entry.lost.is_empty() && loss.workers.iter().any(|worker| is_new(&worker));
        entry.refused |= blamed || (another && !explained);
        entry.until = until;
        entry.point = entry.point.max(loss.point());
        entry.note(loss.workers);
        self.next_end = Some(self.next_end.map_or(until, |end| end.min(until)));
        self.standing(digest, now)
    }

    /// Takes a trial out of the book, and gives its request.
    fn leave(&mut self, id: TrialId) -> Option<Digest> {
        let trial = self.trials.remove(&id)?;
        for worker in trial.workers {
            if let Some(desk) = self.desks.get_mut(&worker) {
                desk.remove(id);
            }
        }
        if let Some(entry) = self.entries.get_mut(&trial.digest) {
            entry.trial.take_if(|current| *current == id);
        }
        Some(trial.digest)
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

impl Entry {
    fn refusal(&self, now: Instant) -> Refusal {
        Refusal {
            lost: self.lost.last().cloned(),
            left: self.until.saturating_duration_since(now),
        }
    }

    /// Keeps the last two.
    fn note(&mut self, workers: &[Lost]) {
        for worker in workers {
            self.lost.retain(|known| known.id != worker.id);
            self.lost.push(worker.clone());
        }
        let excess = self.lost.len().saturating_sub(2);
        self.lost.drain(..excess);
    }
}

#[cfg(test)]
mod random_events;
#[cfg(test)]
mod tests;
