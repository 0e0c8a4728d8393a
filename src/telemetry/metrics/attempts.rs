//! Attempts: what the legs of each came to for its workers and its pair.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::super::record::Times;
use super::super::{Legs, Pair, Record};
use crate::fleet::{Members, Outcome, WorkerId};
use crate::pd::Leg;

/// What follows from an attempt as a whole for legs that did not end by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    /// The client has its whole response.
    Served,
    /// Decode has reported an error in its stream.
    StreamError,
    Ended,
}

/// Failures by pair.
#[derive(Debug, Default)]
pub(super) struct PairFailures(Mutex<BTreeMap<(WorkerId, WorkerId), u64>>);

impl PairFailures {
    /// Counts one. Pairs with a worker that is no member are forgotten when another pair is added.
    fn note(&self, pair: &Pair, members: &Members) {
        let ids = (pair.prefill.id(), pair.decode.id());
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !failures.contains_key(&ids) {
            failures.retain(|(prefill, decode), _| {
                members.contains(*prefill) && members.contains(*decode)
            });
        }
        *failures.entry(ids).or_default() += 1;
    }

    /// How often each pair has failed.
    pub(super) fn counts(&self) -> BTreeMap<(WorkerId, WorkerId), u64> {
        let failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failures.clone()
    }
}

/// Counts the legs of all attempts of a request, or of a sample. `members` gives those of the fleet.
pub(super) fn note(
    record: &Record,
    failures: &PairFailures,
    members: impl Fn() -> std::sync::Arc<Members>,
) {
    for failed in &record.failed {
        let ended = Attempt::Ended;
        if note_attempt(&failed.pair, failed.legs, &failed.times, ended) {
            failures.note(&failed.pair, &members());
        }
    }
    let Some(pair) = &record.pair else { return };
    let attempt = match &*record.ended {
        "ok" => Attempt::Served,
        crate::error::STREAM_ERROR => Attempt::StreamError,
        _ => Attempt::Ended,
    };
    if note_attempt(pair, record.legs, &record.times, attempt) {
        failures.note(pair, &members());
    }
}

/// Counts both legs of one attempt. Whether one of the workers made it fail.
fn note_attempt(pair: &Pair, legs: Legs, times: &Times, attempt: Attempt) -> bool {
    let time = |end: Option<std::time::Instant>| Some(end?.saturating_duration_since(times.sent?));
    let prefill = prefill_outcome(legs.prefill, attempt);
    let decode = decode_outcome(legs.decode, attempt);
    // The response of a prefill worker may come after decode's: it is not waited for.
    let prefill_end = times.prefill_end.or(times.ended);
    if legs.prefill != Leg::Unused {
        pair.prefill.tally().note(prefill, time(prefill_end));
    }
    pair.decode.tally().note(decode, time(times.ended));
    fails_pair(prefill, legs.prefill) || fails_pair(decode, legs.decode)
}

fn prefill_outcome(leg: Leg, attempt: Attempt) -> Outcome {
    match (leg, attempt) {
        // Decode generates, so that the KV cache has come; the response may be on its way.
        (Leg::Running, Attempt::Served) | (Leg::Served, _) => Outcome::Ok,
        _ => unserved(leg),
    }
}

fn decode_outcome(leg: Leg, attempt: Attempt) -> Outcome {
    match (leg, attempt) {
        (Leg::Served, Attempt::Served) => Outcome::Ok,
        (Leg::Served, Attempt::StreamError) => Outcome::Failed,
        // Its head came, and the rest was not waited for.
        (Leg::Served, Attempt::Ended) => Outcome::Cancelled,
        _ => unserved(leg),
    }
}

fn unserved(leg: Leg) -> Outcome {
    match leg {
        Leg::Rejected(_) => Outcome::Rejected,
        // An error that tells of the end of the other leg.
        Leg::Unused | Leg::Running | Leg::Served | Leg::Aborted(_) => Outcome::Cancelled,
        Leg::Unsent | Leg::Lost | Leg::Stale | Leg::Failed => Outcome::Failed,
    }
}

/// Whether this end of a leg is a failure of its pair. A refusal of the request itself, or because of load, is none.
fn fails_pair(outcome: Outcome, leg: Leg) -> bool {
    match outcome {
        Outcome::Failed => true,
        Outcome::Rejected => matches!(leg, Leg::Rejected(500..=502 | 504..)),
        Outcome::Ok | Outcome::Cancelled => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_leg_comes_to_one_outcome() {
        use Attempt::{Ended, Served, StreamError};
        let legs = |prefill, decode| Legs { prefill, decode };
        for (legs, attempt, outcomes, fails) in [
            (legs(Leg::Served, Leg::Served), Served, ("ok", "ok"), false),
            (legs(Leg::Running, Leg::Served), Served, ("ok", "ok"), false),
            (
                legs(Leg::Served, Leg::Served),
                StreamError,
                ("ok", "failed"),
                true,
            ),
            // The client has left.
            (
                legs(Leg::Running, Leg::Running),
                Ended,
                ("cancelled", "cancelled"),
                false,
            ),
            (
                legs(Leg::Served, Leg::Served),
                Ended,
                ("ok", "cancelled"),
                false,
            ),
            (
                legs(Leg::Lost, Leg::Running),
                Ended,
                ("failed", "cancelled"),
                true,
            ),
            (legs(Leg::Served, Leg::Lost), Ended, ("ok", "failed"), true),
            (
                legs(Leg::Aborted(500), Leg::Failed),
                Ended,
                ("cancelled", "failed"),
                true,
            ),
            (
                legs(Leg::Rejected(500), Leg::Running),
                Ended,
                ("rejected", "cancelled"),
                true,
            ),
            (
                legs(Leg::Rejected(400), Leg::Running),
                Ended,
                ("rejected", "cancelled"),
                false,
            ),
            (
                legs(Leg::Running, Leg::Rejected(503)),
                Ended,
                ("cancelled", "rejected"),
                false,
            ),
            (
                legs(Leg::Unsent, Leg::Unsent),
                Ended,
                ("failed", "failed"),
                true,
            ),
        ] {
            let prefill = prefill_outcome(legs.prefill, attempt);
            let decode = decode_outcome(legs.decode, attempt);
            assert_eq!(
                (prefill.name(), decode.name()),
                outcomes,
                "{legs:?} {attempt:?}"
            );
            let failed = fails_pair(prefill, legs.prefill) || fails_pair(decode, legs.decode);
            assert_eq!(failed, fails, "{legs:?} {attempt:?}");
        }
    }
}
