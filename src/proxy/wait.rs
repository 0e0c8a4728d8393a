//! Select where workers have a limit, or generation is paused: a request waits for its pair before it has rooms and ids,
//! and before any worker knows of it.
//!
//! The order of the requests that wait is `fleet`'s, and whether the gate is closed. How long a request waits, and what ends the wait, is decided here:
//! its turn, its client, a deadline, or the end of the process.

use std::time::{Duration, Instant};

use pingora::Result;
use pingora::proxy::Session;

use super::Proxy;
use super::deadlines::Deadlines;
use super::request::RequestContext;
use super::samples::Seat;
use crate::client;
use crate::error::{Awaited, PausedWait, ProxyError, Timeout};
use crate::fleet::{Lease, Mismatch, NoWorker, Refusal, Role, Selection, Ticket, Turn, WorkerId};

/// How often a waiting request looks whether the time alone has brought a worker back. Every other change is signalled.
pub(super) const POLL_INTERVAL: Duration = Duration::from_secs(1);

impl Proxy {
    /// Selects the pair of the next attempt, unless it has been selected. Waits where all pairs are at their limit.
    ///
    /// # Errors
    /// There is no pair, the wait is over, or the client has left.
    pub(super) async fn select(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        if ctx.lease.is_some() {
            return Ok(());
        }
        if self.may_be_suspect(ctx) {
            Box::pin(self.select_for_suspect(session, ctx)).await?;
        } else {
            self.pass_gate(session, ctx).await?;
            ctx.lease = Some(match self.admit_to_fleet(ctx, None)? {
                Turn::Now(lease) => lease,
                // Boxed, because it is large and rare: the future of every request would carry it.
                Turn::Later(ticket) => Box::pin(self.wait(session, ctx, ticket)).await?,
            });
        }
        ctx.record.times.selected = Some(Instant::now());
        Ok(())
    }

    /// Waits while the gate of the fleet is closed.
    ///
    /// # Errors
    /// As many requests wait as may, the wait is over, or the client has left.
    pub(super) async fn pass_gate(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        if self.fleet.is_closed() {
            // Boxed for the same reason as every other wait.
            Box::pin(self.wait_at_gate(session, ctx)).await?;
        }
        Ok(())
    }

    async fn wait_at_gate(&self, session: &mut Session, ctx: &mut RequestContext) -> Result<()> {
        let begun = Instant::now();
        let again = !ctx.avoid.is_empty();
        let siblings = ctx.seat.as_ref().map(Seat::siblings);
        let Some(mut place) = self.fleet.wait_at_gate(again, siblings) else {
            let why = self.fleet.closed();
            return Err(ctx.refuse(ProxyError::Paused(why, PausedWait::Full)));
        };
        let (deadline, late) = self.wait_deadline(ctx, begun);
        let cut_off = self.shutdown.cut_off();
        tokio::pin!(cut_off);
        let ended = tokio::select! {
            // In this order, so that no leg is sent when the wait ends in the moment in which the gate opens.
            biased;
            left = client::interrupted(session) => Err(left),
            () = &mut cut_off => Err(ctx.refuse(ProxyError::ShuttingDown)),
            () = place.opened() => Ok(()),
            () = tokio::time::sleep_until(deadline.into()) => Err(ctx.refuse(match late {
                Timeout::Queue(limit) => {
                    ProxyError::Paused(self.fleet.closed(), PausedWait::Late(limit))
                }
                late => ProxyError::Timeout(late),
            })),
        };
        ctx.record.queued += begun.elapsed();
        ended
    }

    /// A pair, or a place in the queue. `avoid` replaces the workers that the request avoids by itself.
    pub(super) fn admit_to_fleet(
        &self,
        ctx: &mut RequestContext,
        avoid: Option<&[WorkerId]>,
    ) -> Result<Turn> {
        let Some(request) = &ctx.request else {
            return Err(ctx.refuse(ProxyError::Internal("nothing to select for".into())));
        };
        let wanted = Selection {
            request: &request.key,
            avoid: avoid.unwrap_or(&ctx.avoid),
            siblings: ctx.seat.as_ref().map(Seat::siblings),
            targets: request.targets,
            now: Instant::now(),
        };
        self.fleet.admit(wanted, rand::random).map_err(|refusal| {
            ctx.refuse(match refusal {
                Refusal::NoWorker(NoWorker(role)) => self.no_worker(role),
                Refusal::QueueFull => ProxyError::QueueFull,
            })
        })
    }

    fn no_worker(&self, role: Role) -> ProxyError {
        let mismatched = |mismatch| self.fleet.mismatched(role, mismatch);
        match (mismatched(Mismatch::Engine), mismatched(Mismatch::Role)) {
            (0, 0) => ProxyError::NoWorker(NoWorker(role)),
            (0, workers) => ProxyError::OtherRole(role, workers),
            (workers, _) => ProxyError::OtherEngine(role, workers, self.engine()),
        }
    }

    pub(super) async fn wait(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
        mut ticket: Ticket,
    ) -> Result<Lease> {
        let begun = Instant::now();
        let (deadline, late) = self.wait_deadline(ctx, begun);
        let cut_off = self.shutdown.cut_off();
        tokio::pin!(cut_off);
        let ended = loop {
            let look = deadline.min(Instant::now() + POLL_INTERVAL);
            tokio::select! {
                // In this order, so that no leg is sent when the wait ends in the moment of the turn.
                biased;
                left = client::interrupted(session) => break Err(left),
                () = &mut cut_off => break Err(ctx.refuse(ProxyError::ShuttingDown)),
                lease = ticket.turn() => break Ok(lease),
                () = tokio::time::sleep_until(look.into()) => {
                    if look == deadline {
                        break Err(ctx.refuse(ProxyError::Timeout(late)));
                    }
                    self.fleet.serve_waiting();
                }
            }
        };
        ctx.record.queued += begun.elapsed();
        ended
    }

    /// The end of a wait that began then, and its error. The deadlines of the response run while the request waits.
    pub(super) fn wait_deadline(&self, ctx: &RequestContext, begun: Instant) -> (Instant, Timeout) {
        let limit = ctx.rules.limits.queue_timeout;
        let queue = (begun + limit, Timeout::Queue(limit));
        match self.response_deadline(ctx) {
            Some(other) if other.0 < queue.0 => other,
            _ => queue,
        }
    }

    /// The first deadline of a response that has not begun; `None` without any.
    pub(super) fn response_deadline(&self, ctx: &RequestContext) -> Option<(Instant, Timeout)> {
        let limits = &ctx.rules.limits;
        let stream = ctx
            .request
            .as_ref()
            .is_some_and(|request| request.facts.stream);
        let deadlines = Deadlines::new(limits, stream, ctx.record.times.started);
        let first_token = deadlines.first_token.map(|at| (at, ctx.first_token_late()));
        let total = deadlines.total.map(|at| (at, ctx.response_late()));
        let all = first_token.into_iter().chain(total);
        all.min_by_key(|(at, _)| *at)
    }
}

impl RequestContext {
    /// The error of a stream whose first byte did not come in time.
    pub(super) fn first_token_late(&self) -> Timeout {
        Timeout::FirstToken(self.rules.limits.first_token_timeout, self.awaited())
    }

    /// The error of a response that was not complete in time.
    pub(super) fn response_late(&self) -> Timeout {
        let limits = &self.rules.limits;
        let request = self.request.as_ref();
        match limits.stream_timeout {
            Some(limit) if request.is_some_and(|request| request.facts.stream) => {
                Timeout::Stream(limit)
            }
            _ => Timeout::Response(limits.request_timeout, self.awaited()),
        }
    }

    fn awaited(&self) -> Awaited {
        let attempt = self.attempt.as_ref();
        attempt.map_or(Awaited::Pair, |attempt| {
            Awaited::of(attempt.prefill_state())
        })
    }
}
