//! SELECT where workers have limits: a request waits for its pair, before it has a room or an id and before any
//! worker knows of it.
//!
//! Who is next is fleet's business. Here is how long a request waits, and what ends the wait: its turn, its
//! client, a deadline, or the end of the process.

use std::time::{Duration, Instant};

use pingora_core::Result;
use pingora_proxy::Session;

use super::Proxy;
use super::request::RequestContext;
use crate::client;
use crate::error::ProxyError;
use crate::fleet::{Lease, Refusal, Ticket, Turn};

/// How often a request that waits asks whether time has let a worker back. Everything else tells it.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl Proxy {
    /// SELECT: a pair that has room, now or when it is this request's turn.
    pub(super) async fn lease(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
        stream: bool,
    ) -> Result<Lease> {
        match self.fleet.admit(rand::random, Instant::now(), &ctx.avoid) {
            Ok(Turn::Now(lease)) => Ok(lease),
            // In a box, so that the others do not carry what only those need who wait.
            Ok(Turn::Later(ticket)) => Box::pin(self.wait(session, ctx, stream, ticket)).await,
            Err(Refusal::NoWorker(why)) => Err(ctx.refuse(ProxyError::NoWorker(why))),
            Err(Refusal::QueueFull) => Err(ctx.refuse(ProxyError::QueueFull)),
        }
    }

    async fn wait(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
        stream: bool,
        mut ticket: Ticket,
    ) -> Result<Lease> {
        let begun = Instant::now();
        let (deadline, late) = self.patience(stream, ctx.started(), begun);
        let over = self.departure.over();
        tokio::pin!(over);
        let ended = loop {
            let look = deadline.min(Instant::now() + ASK_AGAIN);
            tokio::select! {
                // Nothing is sent any more when the wait ends in the moment of the turn.
                biased;
                left = client::left(session) => break Err(left),
                () = &mut over => break Err(ctx.refuse(ProxyError::ShuttingDown)),
                lease = ticket.turn() => break Ok(lease),
                () = tokio::time::sleep_until(look.into()) => {
                    if look == deadline {
                        break Err(ctx.refuse(late));
                    }
                    self.fleet.serve_waiting();
                }
            }
        };
        ctx.note_queued(begun.elapsed());
        ended
    }

    /// Until when it may wait, and what it is told then: the deadlines of its answer have begun already.
    fn patience(&self, stream: bool, started: Instant, begun: Instant) -> (Instant, ProxyError) {
        let limits = &self.limits;
        let answer = limits.deadlines(stream, started);
        let first = answer
            .first
            .map(|first| (first, ProxyError::FirstTokenLate(limits.first_token)));
        let total = answer.total.map(|total| (total, ProxyError::Overdue));
        let queue = (begun + limits.queue, ProxyError::QueueTimeout(limits.queue));
        let others = first.into_iter().chain(total);
        others.fold(
            queue,
            |soonest, other| {
                if other.0 < soonest.0 { other } else { soonest }
            },
        )
    }
}
