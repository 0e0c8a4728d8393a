//! The trials at one worker, and which of them its loss is blamed on.
//!
//! A trial that must be told from all others holds the *seat* of its worker until the response is past its point. A
//! trial that is past it, or whose first loss was of the other role, is at the desk without the seat.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::TrialId;

/// How long the holders of a seat keep all others from it. After that the next suspect may sit down beside them.
pub(in crate::fleet::suspects) const SEAT_LIMIT: Duration = Duration::from_secs(30);

/// How long trials avoid a worker that was lost: until probes or other requests have found out that it is gone.
const LOST_RECENTLY: Duration = Duration::from_secs(5);

/// How long no trial is sent to a worker that was lost. One that dies may still accept connections for a moment, and
/// would take the trial of an innocent request along.
const DYING: Duration = Duration::from_secs(1);

/// The state of one worker for the next trial. The better comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::fleet::suspects) enum Place {
    Free,
    /// Others hold the seat, and the trial may sit down beside them.
    Shared,
    Taken,
    /// The worker was lost some seconds ago, and may still be gone.
    Lost,
    /// The worker was lost a moment ago.
    Dying,
}

/// The part of one trial, or of a request without one, in the loss of its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// It died along with another one, or nothing says that it did not.
    Along,
    /// It held the seat together with others, and one of them may be the reason.
    Shared,
    /// It is the reason.
    Sole,
}

/// The trials at one worker.
#[derive(Debug, Default)]
pub(super) struct Desk {
    pub(super) seat: Option<Seat>,
    /// Trials without the seat.
    pub(super) others: HashSet<TrialId>,
    /// When the worker was lost last, unless it has served a trial since.
    lost: Option<Instant>,
    /// When a trial was last found to be the reason.
    explained: Option<Instant>,
}

/// The trials that have the seat. There is at least one.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) holders: Vec<TrialId>,
    /// When others may sit down beside them in any case.
    until: Instant,
    /// How many may hold it together.
    limit: usize,
    /// Whether one of them has left it, so that no other may sit down.
    closed: bool,
    /// Whether the worker was lost while several held it. The reports of the others are still to come.
    fell: bool,
}

impl Desk {
    /// The state for a trial that may share a seat with others (`joins`), or may not.
    pub(super) fn place(&self, joins: bool, now: Instant) -> Place {
        let lost_within = |time| self.lost.is_some_and(|at| now < at + time);
        match &self.seat {
            _ if lost_within(DYING) => Place::Dying,
            Some(seat) if seat.is_open(joins, now) => Place::Shared,
            Some(_) => Place::Taken,
            None if lost_within(LOST_RECENTLY) => Place::Lost,
            None => Place::Free,
        }
    }

    /// Gives a trial the seat. Where it is free, as many may hold it together as this limit says.
    pub(super) fn sit(&mut self, trial: TrialId, limit: usize, now: Instant) {
        let until = now + SEAT_LIMIT;
        let seat = self.seat.get_or_insert_with(|| Seat {
            holders: Vec::new(),
            until,
            limit,
            closed: false,
            fell: false,
        });
        if now >= seat.until {
            // As if it were free, but that they will not be told apart.
            seat.until = until;
            seat.limit = seat.holders.len() + limit;
            seat.closed = false;
        }
        seat.holders.push(trial);
    }

    /// Notes a trial that does not need the seat.
    pub(super) fn attend(&mut self, trial: TrialId) {
        self.others.insert(trial);
    }

    fn is_seated(&self, trial: TrialId) -> bool {
        let seat = self.seat.as_ref();
        seat.is_some_and(|seat| seat.holders.contains(&trial))
    }

    /// A trial is past its point: it stays without the seat. True when it had it.
    pub(super) fn pass(&mut self, trial: TrialId) -> bool {
        let was_seated = self.is_seated(trial);
        if was_seated {
            self.stand_up(trial);
            self.others.insert(trial);
        }
        was_seated
    }

    /// A trial is over.
    pub(super) fn leave(&mut self, trial: TrialId) {
        self.stand_up(trial);
        self.others.remove(&trial);
    }

    /// The worker has responded to a trial that began then.
    pub(super) fn is_alive(&mut self, begun: Instant) {
        self.lost.take_if(|lost| *lost < begun);
    }

    /// The worker was lost with a request that was sent at this time, on trial or not.
    pub(super) fn lost(&mut self, trial: Option<TrialId>, sent: Instant, now: Instant) -> Part {
        self.lost = Some(now);
        let Some(id) = trial else {
            return Part::Along;
        };
        if let Some(seat) = self.seat.as_mut().filter(|seat| seat.holders.contains(&id)) {
            self.explained = Some(now);
            seat.fell |= seat.holders.len() > 1;
            return if seat.fell { Part::Shared } else { Part::Sole };
        }
        // Sent before the reason of this loss was found: it died along with that one.
        if self.explained.is_some_and(|at| sent <= at) {
            return Part::Along;
        }
        let is_alone = self.is_alone(id);
        self.explained = Some(now);
        if is_alone { Part::Sole } else { Part::Along }
    }

    pub(super) fn is_needed(&self, window: Duration, now: Instant) -> bool {
        let recent = |at: Instant| now < at + window;
        self.seat.is_some()
            || !self.others.is_empty()
            || self.lost.or(self.explained).is_some_and(recent)
    }

    /// Whether this trial without a seat is the only trial here.
    fn is_alone(&self, trial: TrialId) -> bool {
        self.seat.is_none() && self.others.len() == 1 && self.others.contains(&trial)
    }

    fn stand_up(&mut self, trial: TrialId) {
        let Some(seat) = &mut self.seat else { return };
        let before = seat.holders.len();
        seat.holders.retain(|holder| *holder != trial);
        seat.closed |= seat.holders.len() < before;
        self.seat.take_if(|seat| seat.holders.is_empty());
    }
}

impl Seat {
    fn is_open(&self, joins: bool, now: Instant) -> bool {
        now >= self.until || (joins && !self.closed && self.holders.len() < self.limit)
    }
}
