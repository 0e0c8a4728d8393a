//! The state of the two legs of one request, and the verdict that follows from it: go on, try another pair, or tell
//! the client which leg failed.
//!
//! What lives here: which leg is to blame, and whether another attempt is allowed; no other file decides either. What
//! may not: sockets, clocks, and the budget that pays for a retry. The proxy reports the progress of the legs
//! ([`RequestState::prefill`], [`RequestState::decode`], [`RequestState::commit`]) and asks [`RequestState::verdict`];
//! asking changes nothing. Each attempt starts both legs anew, with new rooms: a room is never used twice.

use super::Role;

/// The progress of one leg.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leg {
    /// The request has no such leg.
    Unused,
    /// Sent; no response yet.
    Running,
    /// Success: for prefill the whole response, for decode the head of one.
    Served,
    /// A response with this status, which is not a success.
    Rejected(u16),
    /// A response with this status that tells of the end of the other leg: the KV transfer was aborted.
    Aborted(u16),
    /// No response, and the worker cannot have begun, because no connection was established.
    Unsent,
    /// No response; the worker may have begun.
    Lost,
    /// No response on a connection that had been idle: the worker has probably closed it, and may have begun.
    Stale,
    /// No response in time, or one that cannot be used.
    Failed,
}

/// The limits of retries that do not depend on the progress of the legs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryRules {
    /// Attempts of one request in all, at least 1.
    pub attempts: u32,
    /// Whether the request has an id that the client chose. A worker that has seen an id refuses it the second time.
    pub own_rid: bool,
    /// How prefill's leg stands to decode's.
    pub order: Order,
}

/// The order of the legs, where it matters for what may follow from a failure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// Both at once: a failed prefill has cost decode's leg too.
    #[default]
    Together,
    /// Prefill first: while its leg runs, no other worker has the request.
    PrefillFirst {
        /// Whether decode may compute a prompt where its prefill has failed.
        alone: bool,
    },
}

/// The next step that the state of both legs allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is decided.
    Wait,
    /// Decode's response goes to the client.
    Respond,
    /// The same pair may serve the request over new connections, with new rooms. No worker is to blame.
    Again(Role),
    /// Another pair may serve the request; the worker of this role is to blame. Without another pair the request
    /// fails with this role.
    Retry(Role),
    /// The same decode worker may serve the request without a prefill worker.
    Alone,
    /// The client gets this leg's failure.
    Fail(Role),
}

/// Both legs of one request, over all its attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestState {
    prefill: Leg,
    decode: Leg,
    attempt: u32,
    committed: bool,
    /// Whether decode's response has more than a head.
    begun: bool,
    /// Whether a worker may have seen the request in this or an earlier attempt.
    seen: bool,
    /// The leg whose idle connection made this attempt begin again.
    stale: Option<Role>,
    /// Whether an attempt has begun again. It happens once: from then on no connection has been idle.
    again: bool,
    /// Whether decode computes the prompt in this attempt, so that prefill's leg does not matter.
    alone: bool,
}

impl Leg {
    /// Whether the leg has ended without success.
    pub fn is_failure(self) -> bool {
        !matches!(self, Leg::Unused | Leg::Running | Leg::Served)
    }

    /// Whether the request is at fault: every worker would refuse it.
    pub fn is_request_fault(self) -> bool {
        matches!(self, Leg::Rejected(400..=428 | 430..=499))
    }

    /// Whether another worker may serve the request, and the lost work is small.
    fn is_retryable(self) -> bool {
        matches!(
            self,
            Leg::Unsent | Leg::Lost | Leg::Stale | Leg::Rejected(429 | 502 | 503)
        )
    }

    /// Whether the worker may have read the request.
    fn may_have_been_seen(self) -> bool {
        !matches!(self, Leg::Unused | Leg::Unsent)
    }
}

impl Default for RequestState {
    fn default() -> Self {
        Self {
            prefill: Leg::Running,
            decode: Leg::Running,
            attempt: 1,
            committed: false,
            begun: false,
            seen: false,
            stale: None,
            again: false,
            alone: false,
        }
    }
}

impl RequestState {
    /// Reports the progress of prefill's leg.
    pub fn prefill(&mut self, leg: Leg) {
        self.prefill = self.after_stale(Role::Prefill, leg);
    }

    /// Reports the progress of decode's leg.
    pub fn decode(&mut self, leg: Leg) {
        self.decode = self.after_stale(Role::Decode, leg);
    }

    /// A worker that first closes a connection with the request on it, and then refuses a new one, was lost with the
    /// request.
    fn after_stale(&self, role: Role, leg: Leg) -> Leg {
        match leg {
            Leg::Unsent if self.stale == Some(role) => Leg::Lost,
            leg => leg,
        }
    }

    /// Reports that the first byte of decode's response has come. Its head alone does not say that decode generates.
    pub fn begin(&mut self) {
        self.begun = true;
    }

    /// Reports that the first byte goes to the client: from now on there is no other status and no other pair.
    pub fn commit(&mut self) {
        self.committed = true;
    }

    /// Decode computes the prompt: what became of prefill's leg does not matter in this attempt.
    pub fn go_alone(&mut self) {
        self.alone = true;
    }

    /// Whether a byte has gone to the client.
    pub fn is_committed(&self) -> bool {
        self.committed
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// How far decode's leg of this attempt came.
    pub fn decode_leg(&self) -> Leg {
        self.decode
    }

    /// Whether the worker of this role was lost, with the request or at the same time.
    pub fn is_lost(&self, role: Role) -> bool {
        self.leg(role) == Leg::Lost
    }

    /// Whether no connection to the worker of this role was established.
    pub fn is_unsent(&self, role: Role) -> bool {
        self.leg(role) == Leg::Unsent
    }

    fn leg(&self, role: Role) -> Leg {
        match role {
            Role::Prefill => self.prefill,
            Role::Decode => self.decode,
        }
    }

    /// The verdict on what has been reported.
    pub fn verdict(&self, rules: RetryRules) -> Verdict {
        if self.committed {
            // Decode generates, so it has the KV cache, and prefill's leg no longer matters.
            return if self.decode.is_failure() {
                Verdict::Fail(Role::Decode)
            } else {
                Verdict::Respond
            };
        }
        if self.awaits_cause() {
            return Verdict::Wait;
        }
        match self.blamed() {
            Some((role, Leg::Stale)) if self.may_begin_again(rules) => Verdict::Again(role),
            Some((role, leg)) if self.is_retryable(role, leg, rules) && self.may_retry(rules) => {
                Verdict::Retry(role)
            }
            Some((Role::Decode, Leg::Rejected(500))) if self.may_go_alone(rules) => Verdict::Alone,
            Some((role, _)) => Verdict::Fail(role),
            None if self.decode == Leg::Served => Verdict::Respond,
            None => Verdict::Wait,
        }
    }

    /// Starts the next attempt.
    pub fn retry(&mut self) {
        self.seen |= self.is_seen();
        self.prefill = Leg::Running;
        self.decode = Leg::Running;
        self.begun = false;
        self.stale = None;
        self.alone = false;
        self.attempt += 1;
    }

    /// Starts this attempt again, because the idle connection of this leg was closed. The legs must get new connections.
    pub fn begin_again(&mut self, stale: Role) {
        self.seen |= self.is_seen();
        self.prefill = Leg::Running;
        self.decode = Leg::Running;
        self.begun = false;
        self.stale = Some(stale);
        self.alone = false;
        self.again = true;
    }

    /// Whether the legs must get new connections.
    pub fn needs_new_connections(&self) -> bool {
        self.again
    }

    /// Whether prefill tells of the end of decode's leg before that is known. The worker that dies is often heard of
    /// second.
    fn awaits_cause(&self) -> bool {
        let is_open = match self.decode {
            Leg::Running => true,
            Leg::Served => !self.begun,
            _ => false,
        };
        is_open && matches!(self.prefill, Leg::Aborted(_))
    }

    /// The leg to blame. A 4xx wins, because it says what is wrong with the request. Otherwise prefill's failure wins:
    /// decode's is then a symptom, because it waits for a KV cache that does not arrive. But where prefill's is that the
    /// transfer was aborted, that is the symptom, and decode's the cause.
    fn blamed(&self) -> Option<(Role, Leg)> {
        let prefill = (Role::Prefill, self.prefill);
        let decode = (Role::Decode, self.decode);
        match (
            self.prefill.is_failure() && !self.alone,
            self.decode.is_failure(),
        ) {
            (false, false) => None,
            (true, false) => Some(prefill),
            (false, true) => Some(decode),
            (true, true) if matches!(self.prefill, Leg::Aborted(_)) => Some(decode),
            (true, true) if self.decode.is_request_fault() && !self.prefill.is_request_fault() => {
                Some(decode)
            }
            (true, true) => Some(prefill),
        }
    }

    fn may_retry(&self, rules: RetryRules) -> bool {
        self.attempt < rules.attempts && !(rules.own_rid && self.is_seen())
    }

    /// Whether another worker of this role may serve the request. A prefill worker that is first costs only its own time.
    fn is_retryable(&self, role: Role, leg: Leg, rules: RetryRules) -> bool {
        let first = rules.order != Order::Together && role == Role::Prefill;
        leg.is_retryable() || first && !leg.is_request_fault()
    }

    /// Whether a failed computation of decode may have been prefill's fault, whose blocks were gone, so that decode may
    /// compute the prompt.
    fn may_go_alone(&self, rules: RetryRules) -> bool {
        rules.order == Order::PrefillFirst { alone: true }
            && self.prefill == Leg::Served
            && !self.alone
            && rules.attempts > 1
    }

    fn may_begin_again(&self, rules: RetryRules) -> bool {
        !self.again && !rules.own_rid
    }

    /// Whether a worker may have seen the request.
    fn is_seen(&self) -> bool {
        self.seen || self.prefill.may_have_been_seen() || self.decode.may_have_been_seen()
    }
}

#[cfg(test)]
mod tests;
