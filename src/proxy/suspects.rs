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
use crate::error::{ProxyError, Suspected, Timeout};
use crate::fleet::suspects::{self, Digest, Loss, Lost, Point, Progress, Standing, Trial, Wait};
use crate::fleet::{Lease, Role, Turn, WorkerId};
use crate::pd::Engine;
use crate::telemetry::Suspect;

/// The part of `queue_timeout` after which a suspect shares its worker with others that have waited as long.
const ALONE_FOR: u32 = 4;

/// A request that a worker was lost with, now or earlier.
pub(super) struct Suspicion {
    digest: Digest,
    /// The trial that the present attempt is.
    pub(super) trial: Option<Trial>,
    /// The workers that were lost with this request, which it is not sent to again.
    pub(super) lost: Vec<WorkerId>,
    /// The last attempt that was noted; 0 for none.
    noted: u32,
    /// Attempts that say nothing about the request, and are not counted: no worker got it, or it was lost together with
    /// other suspects.
    uncounted: u32,
    /// Since when it has had no worker that is well, with the attempts in between that no worker got.
    unsent_since: Option<Instant>,
}

/// The wait of a suspect.
struct Waiting {
    begun: Instant,
    /// Since when it has had no worker that is well; `None` where it has one.
    unsent_since: Option<Instant>,
}

impl Suspicion {
    fn new(digest: Digest) -> Self {
        Self {
            digest,
            trial: None,
            lost: Vec::new(),
            noted: 0,
            uncounted: 0,
            unsent_since: None,
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
}

impl Request {
    /// Length of the client's part of the body, in bytes.
    fn client_len(&self, engine: Engine) -> usize {
        match &self.body {
            Body::Read(body) => engine.client_part(body, &self.facts).map(<[u8]>::len).sum(),
            Body::Kept(body) => engine.client_part(body, &self.facts).map(<[u8]>::len).sum(),
            Body::Sent(injected) => injected.client_part().len(),
        }
    }

    fn digest(&self, engine: Engine) -> Digest {
        match &self.body {
            Body::Read(body) => Digest::of(self.route, engine.client_part(body, &self.facts)),
            Body::Kept(body) => Digest::of(self.route, engine.client_part(body, &self.facts)),
            Body::Sent(injected) => Digest::of(self.route, [injected.client_part()]),
        }
    }
}

impl Proxy {
    /// Whether the request is a suspect, or could be one.
    pub(super) fn may_be_suspect(&self, ctx: &RequestContext) -> bool {
        let may_be_known = |request: &Request| {
            let length = request.client_len(self.engine());
            self.suspects.may_know(length, Instant::now())
        };
        ctx.suspicion.is_some()
            || (self.suspects.is_watching() && ctx.request.as_ref().is_some_and(may_be_known))
    }

    /// Notes that the request was served, where one with its body may be a suspect.
    pub(super) fn note_served(&self, ctx: &mut RequestContext) {
        let digest = match (ctx.suspicion.take(), &ctx.request) {
            (Some(suspicion), _) => suspicion.digest,
            (None, Some(request)) if self.may_be_suspect(ctx) => request.digest(self.engine()),
            _ => return,
        };
        self.suspects.served(&digest, Instant::now());
    }

    /// Notes the workers that the present attempt was lost with. The error of a request that is not tried again because
    /// of that; `None` once the response has begun, which then ends in its own way.
    pub(super) fn note_loss(&self, ctx: &mut RequestContext) -> Result<Option<Box<Error>>> {
        let attempt_number = ctx.state.attempt();
        let noted = |found: &Suspicion| found.noted == attempt_number;
        if !self.suspects.is_on() || ctx.suspicion.as_deref().is_some_and(noted) {
            return Ok(None);
        }
        let roles =
            [Role::Prefill, Role::Decode].map(|role| ctx.state.is_lost(role).then_some(role));
        if roles == [None; 2] {
            ctx.note_unsent(attempt_number);
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
        let new = || Box::new(Suspicion::new(request.digest(self.engine())));
        let suspicion = ctx.suspicion.get_or_insert_with(new);
        suspicion.noted = attempt_number;
        suspicion.unsent_since = None;
        let lost = workers.iter().map(|worker| worker.id);
        suspicion.lost.extend(lost);
        let trial = suspicion.trial.take();
        ctx.record.suspect = Some(Suspect::Lost);
        let judged = self.suspects.lost(&suspicion.digest, trial, &loss, now);
        suspicion.uncounted += u32::from(judged.shared);
        match judged.standing {
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
            None => request.digest(self.engine()),
        };
        let mut waiting = Waiting {
            begun: Instant::now(),
            unsent_since: ctx.suspicion.as_ref().and_then(|found| found.unsent_since),
        };
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
            let Err(wait) = self.try_turn(session, ctx, &digest, &waiting).await? else {
                break;
            };
            waited = true;
            waiting.unsent_since = match wait {
                Wait::Worker(_) => waiting.unsent_since.or_else(|| Some(Instant::now())),
                Wait::Turn | Wait::Equal => None,
            };
            self.wait_for(wait, session, ctx, &waiting, changed).await?;
        }
        if waited {
            ctx.record.queued += waiting.begun.elapsed();
        }
        Ok(())
    }

    /// Leases a pair for the trial of a suspect, and begins it, unless it has to wait.
    async fn try_turn(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
        digest: &Digest,
        waiting: &Waiting,
    ) -> Result<std::result::Result<(), Wait>> {
        let members = self.fleet.members();
        let overdue = waiting.begun.elapsed() >= ctx.rules.limits.queue_timeout / ALONE_FOR;
        let avoided = |avoid: &[WorkerId]| {
            let now = Instant::now();
            self.suspects.avoided(digest, &members, avoid, overdue, now)
        };
        let avoided = match (avoided(&ctx.avoid), &ctx.suspicion) {
            // Those that have only refused it, or were full, may be well again.
            (Err(Wait::Worker(_)), Some(suspicion)) => avoided(&suspicion.lost),
            (first, _) => first,
        };
        let avoided = match avoided {
            Ok(avoided) => avoided,
            Err(wait) => return Ok(Err(wait)),
        };
        let lease = self.lease(session, ctx, Some(&avoided)).await?;
        let pair = [lease.prefill.id(), lease.decode.id()];
        if pair.iter().any(|worker| avoided.contains(worker)) {
            // The others are gone since.
            return Ok(Err(Wait::Turn));
        }
        match self.suspects.turn(digest, pair, overdue, Instant::now()) {
            suspects::Turn::Now(trial) => {
                let new = || Box::new(Suspicion::new(*digest));
                let suspicion = ctx.suspicion.get_or_insert_with(new);
                suspicion.trial = Some(trial);
                suspicion.unsent_since = waiting.unsent_since;
                ctx.record.suspect = Some(Suspect::Tried);
                ctx.lease = Some(lease);
                Ok(Ok(()))
            }
            suspects::Turn::Refused(refusal) => Err(ctx.refuse_suspect(refusal)),
            // Looked at anew.
            suspects::Turn::Clear | suspects::Turn::Later => Ok(Err(Wait::Turn)),
        }
    }

    async fn lease(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
        avoid: Option<&[WorkerId]>,
    ) -> Result<Lease> {
        self.pass_gate(session, ctx).await?;
        match self.admit_to_fleet(ctx, avoid)? {
            Turn::Now(lease) => Ok(lease),
            Turn::Later(ticket) => self.wait(session, ctx, ticket).await,
        }
    }

    /// Waits until something about the suspects has changed.
    async fn wait_for(
        &self,
        wait: Wait,
        session: &mut Session,
        ctx: &mut RequestContext,
        waiting: &Waiting,
        changed: impl Future<Output = ()>,
    ) -> Result<()> {
        let since = waiting.unsent_since.unwrap_or(waiting.begun);
        let end = match wait {
            // Its turn comes: no trial keeps its workers for itself for long.
            Wait::Turn => self.response_deadline(ctx),
            Wait::Equal | Wait::Worker(_) => Some(self.wait_deadline(ctx, since)),
        };
        // Seats and absences also end by the time alone.
        let poll = Instant::now() + POLL_INTERVAL;
        let look = end.map_or(poll, |(deadline, _)| deadline.min(poll));
        let cut_off = self.shutdown.cut_off();
        tokio::select! {
            biased;
            left = client::interrupted(session) => return Err(left),
            () = cut_off => return Err(ctx.refuse(ProxyError::ShuttingDown)),
            () = changed => {}
            () = tokio::time::sleep_until(look.into()) => {}
        }
        let Some((_, late)) = end.filter(|(deadline, _)| *deadline <= Instant::now()) else {
            return Ok(());
        };
        let why = match wait {
            _ if !matches!(late, Timeout::Queue(_)) => ProxyError::Timeout(late),
            Wait::Worker(role) => ProxyError::Suspect(Suspected::NoOther(role, since.elapsed())),
            Wait::Turn | Wait::Equal => {
                ctx.record.suspect = Some(Suspect::Refused);
                ProxyError::Suspect(Suspected::Waited(since.elapsed()))
            }
        };
        Err(ctx.refuse(why))
    }
}

impl RequestContext {
    /// Attempts that the limit of retries does not count.
    pub(super) fn uncounted_attempts(&self) -> u32 {
        let suspicion = self.suspicion.as_ref();
        suspicion.map_or(0, |suspicion| suspicion.uncounted)
    }

    /// A trial that no worker got is no trial.
    fn note_unsent(&mut self, attempt: u32) {
        let is_unsent = [Role::Prefill, Role::Decode].map(|role| self.state.is_unsent(role));
        if let Some(suspicion) = self.suspicion.as_mut().filter(|_| is_unsent != [false; 2]) {
            suspicion.noted = attempt;
            suspicion.uncounted += 1;
        }
    }

    fn refuse_suspect(&mut self, refusal: suspects::Refusal) -> Box<Error> {
        self.record.suspect = Some(Suspect::Refused);
        self.refuse(ProxyError::Suspect(Suspected::Lost(refusal)))
    }
}
