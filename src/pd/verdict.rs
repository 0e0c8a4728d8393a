//! The state of the two legs of one request, and what follows from it: go on, try another pair, or tell the
//! client who failed.
//!
//! A value without sockets and clocks: the corridor reports what it sees ([`RequestState::prefill`],
//! [`RequestState::decode`], [`RequestState::commit`]) and asks [`RequestState::verdict`]. Legs are numbered by attempts; a new
//! attempt starts both anew, with new rooms, because a room names one rendezvous and is never used twice.

use super::Role;

/// What one leg has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leg {
    /// On its way; nothing is known.
    Running,
    /// Answered with success. For prefill: to the end, for decode: the head.
    Served,
    /// Answered with this status, which is not a success.
    Rejected(u16),
    /// No answer, and the worker cannot have begun: no connection came about.
    Unsent,
    /// No answer; the worker may have begun.
    Lost,
    /// No answer in time, or one that cannot be used.
    Failed,
}

/// What is allowed besides what the legs have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryRules {
    /// How many attempts one request may have in all.
    pub attempts: u32,
    /// Whether the budget of retries has room.
    pub budget: bool,
    /// Whether the request carries an id that the client chose: a worker that has seen it once refuses it the
    /// second time.
    pub own_rid: bool,
}

/// What the proxy does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is decided.
    Wait,
    /// Decode's answer goes to the client.
    Respond,
    /// Both legs end, another pair gets the request.
    Retry,
    /// Both legs end, the client is told of this leg's failure.
    Fail(Role),
}

/// The course of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestState {
    prefill: Leg,
    decode: Leg,
    attempt: u32,
    committed: bool,
    /// Whether a worker may have seen the request in this or an earlier attempt.
    seen: bool,
}

impl Leg {
    /// Whether the leg has ended without success.
    pub fn is_failure(self) -> bool {
        !matches!(self, Leg::Running | Leg::Served)
    }

    /// The request itself is at fault: the same on any worker.
    fn is_the_requests_fault(self) -> bool {
        matches!(self, Leg::Rejected(400..=428 | 430..=499))
    }

    /// Another worker may do better, and nothing was computed in vain.
    fn may_be_repeated(self) -> bool {
        matches!(
            self,
            Leg::Unsent | Leg::Lost | Leg::Rejected(429 | 502 | 503)
        )
    }

    /// Whether the worker may have read the request.
    fn may_have_been_seen(self) -> bool {
        self != Leg::Unsent
    }
}

impl Default for RequestState {
    fn default() -> Self {
        Self {
            prefill: Leg::Running,
            decode: Leg::Running,
            attempt: 1,
            committed: false,
            seen: false,
        }
    }
}

impl RequestState {
    /// Prefill's leg has come to this.
    pub fn prefill(&mut self, leg: Leg) {
        self.prefill = leg;
    }

    /// Decode's leg has come to this.
    pub fn decode(&mut self, leg: Leg) {
        self.decode = leg;
    }

    /// The first byte goes to the client: from now on there is no other status and no other pair.
    pub fn commit(&mut self) {
        self.committed = true;
    }

    /// Whether a byte has gone to the client.
    pub fn is_committed(&self) -> bool {
        self.committed
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// What follows from what is known.
    pub fn verdict(&self, allowed: RetryRules) -> Verdict {
        if self.committed {
            // Decode speaks, so it has the KV cache: what becomes of prefill now changes nothing.
            return if self.decode.is_failure() {
                Verdict::Fail(Role::Decode)
            } else {
                Verdict::Respond
            };
        }
        match self.blamed() {
            Some((_, leg)) if leg.may_be_repeated() && self.may_go_again(allowed) => Verdict::Retry,
            Some((role, _)) => Verdict::Fail(role),
            None if self.decode == Leg::Served => Verdict::Respond,
            None => Verdict::Wait,
        }
    }

    /// Starts both legs anew.
    pub fn again(&mut self) {
        self.seen |= self.prefill.may_have_been_seen() || self.decode.may_have_been_seen();
        self.prefill = Leg::Running;
        self.decode = Leg::Running;
        self.attempt += 1;
    }

    /// Whose failure the client sees. A 4xx says what is wrong with the request, so it wins. Otherwise prefill's:
    /// where prefill has failed, decode's failure is a symptom (it waits for a KV cache that never comes).
    fn blamed(&self) -> Option<(Role, Leg)> {
        let prefill = (Role::Prefill, self.prefill);
        let decode = (Role::Decode, self.decode);
        match (self.prefill.is_failure(), self.decode.is_failure()) {
            (false, false) => None,
            (true, false) => Some(prefill),
            (false, true) => Some(decode),
            (true, true)
                if self.decode.is_the_requests_fault() && !self.prefill.is_the_requests_fault() =>
            {
                Some(decode)
            }
            (true, true) => Some(prefill),
        }
    }

    fn may_go_again(&self, allowed: RetryRules) -> bool {
        let seen =
            self.seen || self.prefill.may_have_been_seen() || self.decode.may_have_been_seen();
        self.attempt < allowed.attempts && allowed.budget && !(allowed.own_rid && seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: RetryRules = RetryRules {
        attempts: 2,
        budget: true,
        own_rid: false,
    };

    fn course(prefill: Leg, decode: Leg) -> RequestState {
        let mut course = RequestState::default();
        course.prefill(prefill);
        course.decode(decode);
        course
    }

    #[test]
    fn the_table_before_the_first_byte() {
        use Leg::{Failed, Lost, Rejected, Running, Served, Unsent};
        use Role::{Decode, Prefill};
        use Verdict::{Fail, Respond, Retry, Wait};
        for (prefill, decode, verdict) in [
            (Running, Running, Wait),
            (Served, Running, Wait),
            (Running, Served, Respond),
            (Served, Served, Respond),
            // The request is at fault: never again, and a 4xx explains more than anything else.
            (Rejected(400), Running, Fail(Prefill)),
            (Running, Rejected(422), Fail(Decode)),
            (Rejected(400), Rejected(400), Fail(Prefill)),
            (Rejected(500), Rejected(400), Fail(Decode)),
            (Lost, Rejected(413), Fail(Decode)),
            (Rejected(400), Lost, Fail(Prefill)),
            // Computed in vain once is enough.
            (Rejected(500), Running, Fail(Prefill)),
            (Running, Rejected(500), Fail(Decode)),
            (Rejected(500), Rejected(500), Fail(Prefill)),
            (Rejected(500), Served, Fail(Prefill)),
            (Failed, Running, Fail(Prefill)),
            (Running, Failed, Fail(Decode)),
            // Another pair may do better.
            (Unsent, Running, Retry),
            (Running, Unsent, Retry),
            (Lost, Running, Retry),
            (Lost, Served, Retry),
            (Running, Lost, Retry),
            (Rejected(503), Running, Retry),
            (Running, Rejected(429), Retry),
            (Rejected(502), Rejected(500), Retry),
        ] {
            let course = course(prefill, decode);
            assert_eq!(course.verdict(FREE), verdict, "{prefill:?} {decode:?}");
        }
    }

    #[test]
    fn nothing_is_tried_again_without_allowance() {
        let refused = course(Leg::Unsent, Leg::Running);
        for denied in [
            RetryRules {
                attempts: 1,
                ..FREE
            },
            RetryRules {
                budget: false,
                ..FREE
            },
            RetryRules {
                own_rid: true,
                ..FREE
            },
        ] {
            assert_eq!(
                refused.verdict(denied),
                Verdict::Fail(Role::Prefill),
                "{denied:?}"
            );
        }
        let nobody_saw_it = course(Leg::Unsent, Leg::Unsent);
        let own_rid = RetryRules {
            own_rid: true,
            ..FREE
        };
        assert_eq!(nobody_saw_it.verdict(own_rid), Verdict::Retry);
    }

    #[test]
    fn after_the_first_byte_only_decode_counts_and_nothing_is_tried_again() {
        let mut course = course(Leg::Served, Leg::Served);
        course.commit();
        course.prefill(Leg::Lost);
        assert_eq!(course.verdict(FREE), Verdict::Respond);
        course.decode(Leg::Lost);
        assert_eq!(course.verdict(FREE), Verdict::Fail(Role::Decode));
    }
}
