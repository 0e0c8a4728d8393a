//! Decide: what follows from the state of both legs, and carrying it out.
//!
//! The verdict is `pd::verdict`'s, and asking for it is free. [`Proxy::decide`] asks, and pays: where the verdict allows a
//! retry, there is another worker, and the budget has one left, the attempt ends here and the next one begins.

use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Instant;

use http::StatusCode;
use pingora::{Error, ErrorSource, Result};

use super::request::RequestContext;
use super::{Proxy, Rules, deadlines, session};
use crate::error::{Fault, ProxyError, Timeout};
use crate::fleet::{RetryBudget, Role, Worker};
use crate::legs::{self, Attempt, ResponseError, evidence};
use crate::net::{Failure, LostConnection};
use crate::pd::{Leg, Order, RetryRules, Verdict};
use crate::telemetry::Cause;

/// What happens to the request now.
pub(super) enum Decision {
    /// The attempt goes on.
    Proceed,
    /// The attempt is over, and the client gets the failure of this role's leg.
    Fail(Role),
    /// The attempt is over. This error makes Pingora begin the next one, or ends the request.
    End(Box<Error>),
}

impl Proxy {
    /// Decides what happens next, and begins a retry where one is due.
    pub(super) fn decide(&self, ctx: &mut RequestContext) -> Result<Decision> {
        Self::look_at_legs(ctx)?;
        if let Some(refused) = self.note_loss(ctx)? {
            return Ok(Decision::End(refused));
        }
        Ok(match self.verdict(ctx) {
            Verdict::Wait | Verdict::Respond => Decision::Proceed,
            Verdict::Fail(role) => Decision::Fail(role),
            Verdict::Again(role) if ctx.head_is_out() => Decision::Fail(role),
            // Free: no worker has failed, and it happens to a request once.
            Verdict::Again(role) => {
                let (Some(request), Some(attempt)) = (&ctx.request, &ctx.attempt) else {
                    return Err(ctx.refuse(ProxyError::Internal("nothing to send again".into())));
                };
                let (prefill, decode) = (attempt.prefill(), attempt.decode());
                let (fleet, spread) = (&self.fleet, ctx.record.spread);
                let lease = fleet.lease_again(prefill, spread, decode, &request.key);
                Decision::End(ctx.begin_again(role, lease))
            }
            Verdict::Alone if ctx.head_is_out() => Decision::Fail(Role::Decode),
            Verdict::Alone => match self.budget().take(Instant::now()) {
                true => {
                    // It may have been started anew, as another engine.
                    ctx.attempt()?.prefill().forget_kv_engines();
                    Decision::End(self.begin_alone(ctx)?)
                }
                false => Decision::Fail(Role::Decode),
            },
            Verdict::Retry(role) => {
                let blamed = ctx.attempt()?.worker(role).clone();
                // Suspects are tried one after the other, so that they multiply no load.
                let pays = || ctx.suspicion.is_some() || self.budget().take(Instant::now());
                match self.has_another(ctx, &blamed) && pays() {
                    true => {
                        if self.engine().prefill_is_first() && ctx.state.is_unsent(Role::Decode) {
                            ctx.hand_over();
                        }
                        Decision::End(ctx.retry(blamed))
                    }
                    false => Decision::Fail(role),
                }
            }
        })
    }

    /// Brings the state up to date, which decode's failures reach by themselves.
    fn look_at_legs(ctx: &mut RequestContext) -> Result<()> {
        let prefill = ctx.attempt()?.prefill_state();
        ctx.state.prefill(prefill);
        if ctx.has_begun() {
            ctx.state.commit();
        }
        Ok(())
    }

    /// The verdict on the present attempt. Costs nothing and changes nothing.
    fn verdict(&self, ctx: &RequestContext) -> Verdict {
        let own_rid = ctx.request.as_ref().is_some_and(|r| r.facts.rid.is_some());
        ctx.state.verdict(RetryRules {
            attempts: match (ctx.head_is_out(), ctx.rules.limits.max_attempts()) {
                // The head may be decode's, whose response it no longer is.
                (true, _) => ctx.state.attempt(),
                (false, 1) => 1,
                (false, attempts) => attempts.saturating_add(ctx.uncounted_attempts()),
            },
            own_rid,
            order: match self.engine().prefill_is_first() {
                false => Order::Together,
                true => Order::PrefillFirst {
                    alone: ctx.rules.limits.vllm_decode_alone,
                },
            },
        })
    }

    /// Whether a retry would reach another worker than the one that is to blame. A suspect waits for each worker that was
    /// not lost with it.
    fn has_another(&self, ctx: &RequestContext, blamed: &Worker) -> bool {
        let members = self.fleet.members();
        let candidates = members.of(blamed.role());
        let targets = ctx.request.as_ref().map(|request| request.targets);
        let mut candidates = candidates
            .iter()
            .filter(|other| targets.is_none_or(|targets| targets.admit(other)));
        candidates.any(|other| match &ctx.suspicion {
            None => other.id() != blamed.id() && !ctx.avoid.contains(&other.id()),
            Some(suspicion) if other.id() == blamed.id() => {
                ctx.state.is_unsent(blamed.role()) && !suspicion.lost.contains(&other.id())
            }
            Some(suspicion) => !suspicion.lost.contains(&other.id()),
        })
    }

    /// Decode's leg failed on the wire: no connection, or a lost one.
    pub(super) fn decode_broke(&self, ctx: &mut RequestContext, error: Box<Error>) -> Box<Error> {
        let failure = Failure::from_pingora(&error);
        self.decode_failed(ctx, failure).unwrap_or(error)
    }

    /// Decode's leg ended early: by an error of decode or of the client, or because the session ended it (a failed
    /// prefill leg, a deadline, the shutdown).
    pub(super) fn decode_ended_early(
        &self,
        ctx: &mut RequestContext,
        mut error: Box<Error>,
    ) -> Box<Error> {
        if ctx.is_decided(&error) {
            return error;
        }
        error.set_retry(false);
        let overdue = match error.etype() {
            etype if *etype == session::PREFILL_FAILED => return self.prefill_failed(ctx),
            etype if *etype == session::SHUTTING_DOWN => {
                return ctx.refuse(ProxyError::ShuttingDown);
            }
            etype if *etype == deadlines::DELIVERED => return error,
            etype if *etype == session::END_MISSING => {
                let why = "the stream has no end marker".to_owned();
                return self.decode_failed(ctx, Failure::Lost(why)).unwrap_or(error);
            }
            etype if *etype == session::HEAD_IS_OUT => {
                let status = StatusCode::from_u16(ctx.record.status).unwrap_or_default();
                let failure = Failure::Unusable(status);
                return self.decode_failed(ctx, failure).unwrap_or(error);
            }
            etype if *etype == deadlines::FIRST_TOKEN_TIMEOUT => ctx.first_token_late(),
            etype if *etype == deadlines::STREAM_IDLE_TIMEOUT => {
                Timeout::StreamIdle(ctx.rules.limits.stream_idle_timeout)
            }
            etype if *etype == deadlines::REQUEST_TIMEOUT => ctx.response_late(),
            _ if *error.esource() == ErrorSource::Downstream => return error,
            _ => return self.decode_lost(ctx, error),
        };
        ctx.state.decode(Leg::Failed);
        if let Ok(attempt) = ctx.attempt() {
            attempt.report_pair_failure();
        }
        ctx.refuse(ProxyError::Timeout(overdue))
    }

    /// Decode's connection failed after it had been established.
    fn decode_lost(&self, ctx: &mut RequestContext, mut error: Box<Error>) -> Box<Error> {
        let lost = ctx.attempt.as_ref().map(Attempt::decode_lost);
        match (Failure::from_pingora(&error), lost) {
            (Failure::Lost(_), Some(LostConnection::Untouched)) if !ctx.head_is_out() => {
                // No byte of the request has left, so that the rooms are still unused. Pingora opens another connection.
                error.set_retry(true);
                error
            }
            (Failure::Lost(why), Some(LostConnection::Stale)) => {
                let failure = Failure::Stale(why);
                self.decode_failed(ctx, failure).unwrap_or(error)
            }
            _ => self.decode_broke(ctx, error),
        }
    }

    /// Prefill's leg failed before decode's first byte.
    fn prefill_failed(&self, ctx: &mut RequestContext) -> Box<Error> {
        match self.decide(ctx) {
            Ok(Decision::End(retry)) => retry,
            _ => self.fail_with_prefill(ctx),
        }
    }

    /// Decode's leg failed without a response, or in the middle of one. `None` where there is no attempt.
    pub(super) fn decode_failed(
        &self,
        ctx: &mut RequestContext,
        failure: Failure,
    ) -> Option<Box<Error>> {
        let leg = legs::failed(&failure);
        ctx.state.decode(leg);
        let failure = match ctx.state.is_lost(Role::Decode) {
            true => failure.after_loss(),
            false => failure,
        };
        let attempt = ctx.attempt.as_mut()?;
        attempt.report_decode(evidence(leg));
        let url = attempt.decode().url().to_owned();
        let error = ProxyError::Leg(Role::Decode, url, failure);
        ctx.decode_cause = Some(Cause::Code(error.code().name()));
        Some(match self.decide(ctx).ok()? {
            Decision::End(retry) => retry,
            Decision::Fail(Role::Prefill) => self.fail_with_prefill(ctx),
            Decision::Fail(Role::Decode) | Decision::Proceed => ctx.refuse(error),
        })
    }

    /// A chunk of decode's response cannot be passed on.
    pub(super) fn not_passed(&self, ctx: &mut RequestContext, error: ResponseError) -> Box<Error> {
        let leg = match &error {
            ResponseError::Rejected(rejection) => Leg::Rejected(rejection.status.as_u16()),
            ResponseError::Merge(_) | ResponseError::TooLong(_) | ResponseError::Encoded(_) => {
                Leg::Failed
            }
        };
        ctx.state.decode(leg);
        ctx.decode_cause = rejected(leg);
        let Ok(attempt) = ctx.attempt() else {
            return ctx.refuse(ProxyError::Internal("a response without legs".into()));
        };
        attempt.report_decode(evidence(leg));
        Self::note_pair(attempt, leg);
        let url = attempt.decode().url().to_owned();
        match (self.decide(ctx), error) {
            (Ok(Decision::End(retry)), _) => retry,
            (Ok(Decision::Fail(Role::Prefill)), _) => self.fail_with_prefill(ctx),
            (_, ResponseError::Rejected(rejection)) => {
                ctx.fail(Fault::Rejected(Role::Decode, rejection))
            }
            (_, ResponseError::Merge(error)) => ctx.refuse(ProxyError::Merge(error)),
            (_, ResponseError::TooLong(error)) => {
                let failure = Failure::TooLong(error.limit);
                ctx.refuse(ProxyError::Leg(Role::Decode, url, failure))
            }
            (_, ResponseError::Encoded(failure)) => {
                ctx.refuse(ProxyError::Leg(Role::Decode, url, failure))
            }
        }
    }

    /// The client gets the failure of prefill's leg.
    pub(super) fn fail_with_prefill(&self, ctx: &mut RequestContext) -> Box<Error> {
        let error = ctx.prefill_error();
        if let Some(attempt) = &ctx.attempt {
            let leg = attempt.prefill_state();
            // Where prefill is first, decode has no part in its failure.
            if !self.engine().prefill_is_first() {
                Self::note_pair(attempt, leg);
            }
            if let Some(error) = Self::wrong_key(&ctx.rules, attempt.prefill(), leg) {
                return ctx.refuse(error);
            }
        }
        match error {
            Some(error) => ctx.fail(error.into()),
            None => ctx.refuse(ProxyError::Internal(
                "prefill failed without an error".into(),
            )),
        }
    }

    /// The error of a worker that refuses a key which the client does not know: the operator's fault, not the client's.
    /// Where the client's own key went to the worker, the refusal is the client's response.
    pub(super) fn wrong_key(rules: &Rules, worker: &Worker, leg: Leg) -> Option<ProxyError> {
        let Leg::Rejected(status @ (401 | 403)) = leg else {
            return None;
        };
        let not_the_clients = worker.authorization().is_some() || rules.keys.has_client_keys();
        not_the_clients
            .then(|| ProxyError::WorkerKey(worker.role(), worker.url().to_owned(), status))
    }

    /// A 500 of one leg is often the other's fault, so that it also counts against the pair.
    pub(super) fn note_pair(attempt: &Attempt, leg: Leg) {
        if matches!(leg, Leg::Rejected(500) | Leg::Aborted(_)) {
            attempt.report_pair_failure();
        }
    }

    pub(super) fn budget(&self) -> MutexGuard<'_, RetryBudget> {
        // Nothing panics while the lock is held.
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The cause of a leg that ended with the worker's own error response.
pub(super) fn rejected(leg: Leg) -> Option<Cause> {
    match leg {
        Leg::Rejected(status) => Some(Cause::Rejected(status)),
        _ => None,
    }
}
