//! What follows from what the legs have done: another pair, or whose failure the client sees.
//!
//! The table is `pd::verdict`; here it is asked, and obeyed.

use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Instant;

use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_proxy::Session;

use super::request::RequestContext;
use super::session::{CUT, INTERRUPTED, LATE, OVERDUE, STALLED};
use super::{Proxy, has_begun};
use crate::error::{Fault, ProxyError};
use crate::fleet::{RetryBudget, Role, Worker};
use crate::legs::{self, Attempt, ResponseError, evidence};
use crate::net::Failure;
use crate::pd::{Leg, RetryRules, Verdict};

impl Proxy {
    /// The exchange with decode ended before its time: an error of decode, of the client, or an end that the
    /// session made (a failed prefill leg, a deadline).
    pub(super) fn ended_early(
        &self,
        session: &Session,
        ctx: &mut RequestContext,
        mut error: Box<Error>,
        client_reused: bool,
    ) -> Box<Error> {
        if ctx.is_decided(&error) {
            return error;
        }
        error.set_retry(false);
        let fault = match error.etype() {
            etype if *etype == INTERRUPTED => {
                return match self.verdict(ctx) {
                    Ok(Verdict::Retry) => self.again(ctx),
                    _ => self.fail_with_prefill(ctx),
                };
            }
            etype if *etype == CUT => return ctx.refuse(ProxyError::ShuttingDown),
            etype if *etype == LATE => ProxyError::FirstTokenLate(self.limits.first_token),
            etype if *etype == STALLED => ProxyError::Stalled(self.limits.silence),
            etype if *etype == OVERDUE => ProxyError::Overdue,
            _ if *error.esource() == ErrorSource::Downstream => return error,
            _ => {
                let unanswered = ctx.status == 0 && !has_begun(session);
                let reused = client_reused || ctx.exchange().is_ok_and(|e| e.loan.is_reused());
                if unanswered && reused && is_lost(&error) {
                    // The worker closed an idle connection: it has not begun, another one will do.
                    error.set_retry(true);
                    return error;
                }
                let failure = Failure::from_pingora(&error);
                return self.decode_failed(ctx, failure).unwrap_or(error);
            }
        };
        ctx.course.decode(Leg::Failed);
        if let Ok(exchange) = ctx.exchange() {
            exchange.ended_together_badly();
        }
        ctx.refuse(fault)
    }

    /// What follows from what both legs have done. A retry is taken from the budget here.
    pub(super) fn verdict(&self, ctx: &mut RequestContext) -> Result<Verdict> {
        let state = ctx.exchange()?.prefill_state();
        ctx.course.prefill(state);
        let own_rid = ctx.request.as_ref().is_some_and(|r| r.facts.rid.is_some());
        let allowed = RetryRules {
            attempts: self.limits.attempts,
            budget: true,
            own_rid,
        };
        Ok(match ctx.course.verdict(allowed) {
            Verdict::Retry if !self.has_another(ctx)? || !self.budget().take(Instant::now()) => {
                ctx.course.verdict(RetryRules {
                    budget: false,
                    ..allowed
                })
            }
            verdict => verdict,
        })
    }

    /// Whether a retry would reach another worker than the one that is to blame.
    fn has_another(&self, ctx: &mut RequestContext) -> Result<bool> {
        let blamed = ctx.exchange()?.blamed().clone();
        let candidates = self.fleet.of(blamed.role());
        Ok(candidates
            .iter()
            .any(|other| other.id() != blamed.id() && !ctx.avoid.contains(&other.id())))
    }

    /// Decode's leg ended without an answer, or in the middle of one.
    pub(super) fn decode_failed(
        &self,
        ctx: &mut RequestContext,
        failure: Failure,
    ) -> Option<Box<Error>> {
        let leg = legs::failed(&failure);
        ctx.course.decode(leg);
        let verdict = self.verdict(ctx).ok()?;
        let exchange = ctx.exchange.as_mut()?;
        exchange.decode_ended(evidence(leg));
        let url = exchange.decode.url().to_owned();
        Some(match verdict {
            Verdict::Retry => self.again(ctx),
            Verdict::Fail(Role::Prefill) => self.fail_with_prefill(ctx),
            Verdict::Fail(Role::Decode) | Verdict::Respond | Verdict::Wait => {
                ctx.refuse(ProxyError::Leg(Role::Decode, url, failure))
            }
        })
    }

    /// A piece of decode's answer cannot become the client's.
    pub(super) fn spoiled(&self, ctx: &mut RequestContext, spoiled: ResponseError) -> Box<Error> {
        let leg = match &spoiled {
            ResponseError::Rejected(rejection) => Leg::Rejected(rejection.status.as_u16()),
            ResponseError::Merge(_) | ResponseError::TooLong(_) => Leg::Failed,
        };
        ctx.course.decode(leg);
        let verdict = self.verdict(ctx);
        let Ok(exchange) = ctx.exchange() else {
            return ctx.refuse(ProxyError::Internal("an answer without legs".into()));
        };
        exchange.decode_ended(evidence(leg));
        Self::note_pair(exchange, leg);
        let url = exchange.decode.url().to_owned();
        match (verdict, spoiled) {
            (Ok(Verdict::Retry), _) => self.again(ctx),
            (Ok(Verdict::Fail(Role::Prefill)), _) => self.fail_with_prefill(ctx),
            (_, ResponseError::Rejected(rejection)) => {
                ctx.fail(Fault::Rejected(Role::Decode, rejection))
            }
            (_, ResponseError::Merge(error)) => ctx.refuse(ProxyError::Merge(error)),
            (_, ResponseError::TooLong(error)) => {
                let failure = Failure::TooLong(error.limit);
                ctx.refuse(ProxyError::Leg(Role::Decode, url, failure))
            }
        }
    }

    /// Another pair gets the request; the worker that is to blame is avoided.
    pub(super) fn again(&self, ctx: &mut RequestContext) -> Box<Error> {
        let Some(exchange) = ctx.exchange.as_ref() else {
            return ctx.refuse(ProxyError::Internal("a retry without legs".into()));
        };
        let avoid = exchange.blamed().id();
        ctx.again(avoid)
    }

    pub(super) fn fail_with_prefill(&self, ctx: &mut RequestContext) -> Box<Error> {
        let exchange = ctx.exchange.as_ref();
        let fault = exchange.and_then(Attempt::prefill_error);
        if let Some(exchange) = exchange {
            let leg = exchange.prefill_state();
            Self::note_pair(exchange, leg);
            if let Some(error) = self.wrong_key(exchange.prefill(), leg) {
                return ctx.refuse(error);
            }
        }
        match fault {
            Some(fault) => ctx.fail(fault.into()),
            None => ctx.refuse(ProxyError::Internal(
                "prefill failed without a trace".into(),
            )),
        }
    }

    /// The error of a worker that refuses a key of which the client knows nothing: the operator's fault, not the
    /// client's. Where the client's own key went to the worker, the refusal is the client's answer.
    pub(super) fn wrong_key(&self, worker: &Worker, leg: Leg) -> Option<ProxyError> {
        let Leg::Rejected(status @ (401 | 403)) = leg else {
            return None;
        };
        let not_the_clients = worker.authorization().is_some() || self.keys.stay_here();
        not_the_clients
            .then(|| ProxyError::WorkerKey(worker.role(), worker.url().to_owned(), status))
    }

    /// A 500 of one leg is often the other's fault: it counts against the pair as well.
    pub(super) fn note_pair(exchange: &Attempt, leg: Leg) {
        if matches!(leg, Leg::Rejected(500)) {
            exchange.ended_together_badly();
        }
    }

    pub(super) fn budget(&self) -> MutexGuard<'_, RetryBudget> {
        // Nothing panics while the lock is held.
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the other side closed the connection.
fn is_lost(error: &Error) -> bool {
    *error.esource() == ErrorSource::Upstream
        && matches!(
            error.etype(),
            ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed
        )
}
