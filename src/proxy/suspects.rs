//! Suspects on their way through the phases: a loss is noted, and a suspect waits for its turn.
//!
//! Who is a suspect, where it may be tried and when it is refused is decided by `fleet::suspects`. A request hashes its
//! body here, once, and only when a worker was lost with it or a suspect with a body of this length is known.

use std::time::Instant;

use bytes::Bytes;
use pingora::proxy::Session;
use pingora::{Error, Result};

use super::Proxy;
use super::request::{Body, Request, RequestContext};
use super::wait::POLL_INTERVAL;
use crate::client;
use crate::error::{ProxyError, Suspected};
use crate::fleet::suspects::{self, Digest, Loss, Lost, Point, Progress, Standing, Trial};
use crate::fleet::{Lease, Role, Turn};
use crate::pd::Engine;
use crate::telemetry::Suspect;

/// A request that a worker was lost with, now or earlier.
pub(super) struct Suspicion {
    digest: Digest,
    /// The trial that the present attempt is.
    pub(super) trial: Option<Trial>,
    /// The last attempt whose loss was noted; 0 for none.
    noted: u32,
}

impl Suspicion {
    fn new(digest: Digest) -> Self {
        Self {
            digest,
            trial: None,
            noted: 0,
        }
    }

    /// For the leg of prefill, which reports that it has responded.
    pub(super) fn progress(&self) -> Option<Progress> {
        self.trial.as_ref().map(|trial| trial.progress().clone())
    }

    /// These bytes are the first that go to the client, unless they are empty.
    pub(super) fn note_first_byte(&self, out: &Bytes) {
        if let Some(trial) = self.trial.as_ref().filter(|_| !out.is_empty()) {
            trial.progress().reached(Point::FirstByte);
        }
    }

    /// The response was complete.
    pub(super) fn served(self) {
        if let Some(trial) = self.trial {
            trial.served();
        }
    }
}

impl Request {
    /// Length of the client's part of the body, in bytes.
    fn client_len(&self, engine: Engine) -> usize {
        match &self.body {
            Body::Read(body) => engine.client_part(body, &self.facts).map(<[u8]>::len).sum(),
            Body::Sent(injected) => injected.client_part().len(),
        }
    }

    fn digest(&self, engine: Engine) -> Digest {
        match &self.body {
            Body::Read(body) => Digest::of(self.route, engine.client_part(body, &self.facts)),
            Body::Sent(injected) => Digest::of(self.route, [injected.client_part()]),
        }
    }
}

impl Proxy {
    /// Whether the request is a suspect, or could be one.
    pub(super) fn may_be_suspect(&self, ctx: &RequestContext) -> bool {
        let may_be_known = |request: &Request| {
            let length = request.client_len(self.engine);
            self.suspects.may_know(length, Instant::now())
        };
        ctx.suspicion.is_some()
            || (self.suspects.is_watching() && ctx.request.as_ref().is_some_and(may_be_known))
    }

    /// Notes the workers that the present attempt was lost with. The error of a request that is not tried again because
    /// of that; `None` once the response has begun, which then ends in its own way.
    pub(super) fn note_loss(&self, ctx: &mut RequestContext) -> Result<Option<Box<Error>>> {
        let attempt_number = ctx.state.attempt();
        let noted = |found: &Suspicion| found.noted == attempt_number;
        let roles =
            [Role::Prefill, Role::Decode].map(|role| ctx.state.is_lost(role).then_some(role));
        if roles == [None; 2]
            || !self.suspects.is_on()
            || ctx.suspicion.as_deref().is_some_and(noted)
        {
            return Ok(None);
        }
        let attempt = ctx.attempt()?;
        let lost = |role| Lost::from(&**attempt.worker(role));
        let workers: Vec<Lost> = roles.into_iter().flatten().map(lost).collect();
        let now = Instant::now();
        let loss = Loss {
            workers: &workers,
            sent: ctx.record.times.sent.unwrap_or(now),
            begun: ctx.has_begun(),
        };
        let Some(request) = &ctx.request else {
            return Ok(None);
        };
        let new = || Box::new(Suspicion::new(request.digest(self.engine)));
        let suspicion = ctx.suspicion.get_or_insert_with(new);
        suspicion.noted = attempt_number;
        let trial = suspicion.trial.take();
        ctx.record.suspect = Some(Suspect::Lost);
        match self.suspects.lost(&suspicion.digest, trial, &loss, now) {
            Standing::Refused(refusal) if !loss.begun => Ok(Some(ctx.refuse_suspect(refusal))),
            _ => Ok(None),
        }
    }

    /// Selects the pair of a request that may be a suspect. A suspect waits for its turn.
    ///
    /// # Errors
    /// It is refused, as a suspect or for want of a pair; the wait is over, or the client has left.
    pub(super) async fn select_for_suspect(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        let Some(request) = &ctx.request else {
            return Err(ctx.refuse(ProxyError::Internal("nothing to select for".into())));
        };
        let digest = match &ctx.suspicion {
            Some(suspicion) => suspicion.digest,
            None => request.digest(self.engine),
        };
        let begun = Instant::now();
        let mut waited = false;
        loop {
            let changed = self.suspects.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.suspects.standing(&digest, Instant::now()) {
                Standing::Clear => {
                    ctx.suspicion = None;
                    let lease = self.lease(session, ctx, None).await?;
                    ctx.lease = Some(lease);
                    break;
                }
                Standing::Refused(refusal) => return Err(ctx.refuse_suspect(refusal)),
                Standing::Suspect => {}
            }
            if self.try_turn(session, ctx, &digest).await? {
                break;
            }
            waited = true;
            self.wait_for_turn(session, ctx, begun, changed).await?;
        }
        if waited {
            ctx.record.queued += begun.elapsed();
        }
        Ok(())
    }

    /// Leases a pair for the trial of a suspect, and begins it. False when it has to wait.
    async fn try_turn(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
        digest: &Digest,
    ) -> Result<bool> {
        let members = self.fleet.members();
        let avoided = self
            .suspects
            .avoided(digest, &members, &ctx.avoid, Instant::now());
        let Some(avoided) = avoided else {
            return Ok(false);
        };
        let lease = self.lease(session, ctx, Some(avoided)).await?;
        let pair = [lease.prefill.id(), lease.decode.id()];
        match self.suspects.turn(digest, pair, Instant::now()) {
            suspects::Turn::Now(trial) => {
                let new = || Box::new(Suspicion::new(*digest));
                ctx.suspicion.get_or_insert_with(new).trial = Some(trial);
                ctx.record.suspect = Some(Suspect::Tried);
                ctx.lease = Some(lease);
                Ok(true)
            }
            suspects::Turn::Refused(refusal) => Err(ctx.refuse_suspect(refusal)),
            // Looked at anew.
            suspects::Turn::Clear | suspects::Turn::Later => Ok(false),
        }
    }

    async fn lease(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
        avoid: Option<Vec<crate::fleet::WorkerId>>,
    ) -> Result<Lease> {
        match self.admit_to_fleet(ctx, avoid.as_deref())? {
            Turn::Now(lease) => Ok(lease),
            Turn::Later(ticket) => self.wait(session, ctx, ticket).await,
        }
    }

    /// Waits until something about the suspects has changed.
    async fn wait_for_turn(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
        begun: Instant,
        changed: impl Future<Output = ()>,
    ) -> Result<()> {
        let (deadline, _) = self.wait_deadline(ctx, begun);
        // Seats and absences also end by the time alone.
        let look = deadline.min(Instant::now() + POLL_INTERVAL);
        let cut_off = self.shutdown.cut_off();
        tokio::select! {
            biased;
            left = client::interrupted(session) => Err(left),
            () = cut_off => Err(ctx.refuse(ProxyError::ShuttingDown)),
            () = changed => Ok(()),
            () = tokio::time::sleep_until(look.into()) => {
                if look < deadline {
                    return Ok(());
                }
                ctx.record.suspect = Some(Suspect::Refused);
                Err(ctx.refuse(ProxyError::Suspect(Suspected::Waited(begun.elapsed()))))
            }
        }
    }
}

impl RequestContext {
    fn refuse_suspect(&mut self, refusal: suspects::Refusal) -> Box<Error> {
        self.record.suspect = Some(Suspect::Refused);
        self.refuse(ProxyError::Suspect(Suspected::Lost(refusal)))
    }
}
