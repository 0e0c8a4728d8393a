//! A request for several samples per prompt (`n > 1`): as many requests for one sample, and one response.
//!
//! | file | what it holds |
//! |---|---|
//! | `mod.rs` | the client's request: what it may ask for, its samples, what its client gets |
//! | `family.rs` | what the samples of a request share, and what each of them takes and reports |
//! | `gathering.rs` | the responses on their way from the samples to the client |
//! | `held.rs` | the body of one of them that waits for the others |
//!
//! Each sample is a subrequest of Pingora's, so that it passes through all hooks of `Proxy` but those that concern the
//! client: it begins with a request that has been let in, read and parsed, has a pair, rooms, ids, retries and deadlines
//! of its own, and ends with a response in a channel, or with a fault that the client's request gets. It sees a client
//! that leaves when the other end of its channel is dropped.
//!
//! All samples run in the task of the client's request: none is awaited by another task, and a piece needs no wake-up
//! of another thread. What bodies hold that wait for a slow client is bounded by [`gathering`].
//!
//! Source: pingora-proxy 0.9.1 `subrequest/mod.rs`, pingora-core 0.9.1 `protocols/http/subrequest/server.rs`.

mod family;
mod gathering;
mod held;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Version;
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use pingora::proxy::Session;
use pingora::proxy::subrequest::Ctx as SubrequestCtx;

use super::Proxy;
use super::request::{Body, Request, RequestContext};
use super::session::{COMMENT, framed};
use crate::client;
use crate::error::{Exhausted, ProxyError};
use crate::legs::is_event_stream;
use crate::pd::Route;
use family::{Family, Template};
pub(super) use family::{Sample, Seat};
use gathering::{Gathering, Output, Recipe};

/// How long samples that have been told to end may take. They only close their connections; one that waits for a
/// connection to be opened is dropped.
const ENDING: Duration = Duration::from_millis(50);

/// How long samples may take whose response the client has.
const TAIL: Duration = Duration::from_secs(5);

/// The length of a prompt, in bytes of the body, from which on the other samples wait until the first one has been
/// prefilled: they then find the prompt in the prefix cache. Samples of a shorter prompt begin at once, because it is
/// cheap to compute again.
const SHARED_PROMPT_BYTES: usize = 2 << 10;

impl Proxy {
    /// Whether requests of this route may have samples.
    pub(super) fn has_samples(route: Option<Route>) -> bool {
        matches!(
            route,
            Some(Route::Generate | Route::ChatCompletions | Route::Completions)
        )
    }

    /// Serves a request that has been read and asks for more than one sample per prompt.
    ///
    /// # Errors
    /// The request is refused, one of its samples has failed, or the client has left.
    pub(super) async fn fan_out(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        let family = Arc::new(self.family(ctx)?);
        let seats = self.seats(ctx, &family)?;
        let Some(spawner) = session.subrequest_spawner.take() else {
            return Err(ctx.refuse(ProxyError::Internal("no samples can be spawned".into())));
        };
        let mut samples: FuturesUnordered<_> = seats
            .into_iter()
            .map(|seat| {
                let index = seat.index;
                let subrequest = SubrequestCtx::builder().user_ctx(Box::new(seat)).build();
                let client = &session.downstream_session;
                let (prepared, handle) = spawner.create_subrequest(client, subrequest);
                family.clone().run(index, prepared, handle)
            })
            .collect();
        let delivered = {
            let delivering = self.deliver(session, ctx, &family);
            tokio::pin!(delivering);
            poll_fn(|cx| {
                while let Poll::Ready(Some(())) = samples.poll_next_unpin(cx) {}
                delivering.as_mut().poll(cx)
            })
            .await
        };
        if delivered.is_err() || family.gathering.is_abandoned() {
            family.gathering.close();
        }
        let mut ending = Box::pin(async move { while samples.next().await.is_some() {} });
        let late = tokio::time::timeout(ENDING, &mut ending).await.is_err();
        if late && !family.gathering.is_closed() {
            // Bounded by TAIL; nothing waits for this task. The client has its response, and workers that are slow with the
            // end of theirs keep their connections.
            tokio::spawn(tokio::time::timeout(TAIL, ending));
        }
        family.note(&mut ctx.record);
        delivered
    }

    /// What the samples of this request share.
    fn family(&self, ctx: &mut RequestContext) -> Result<Family> {
        let Some(request) = ctx.request.take() else {
            return Err(ctx.refuse(ProxyError::Internal("no request to take samples of".into())));
        };
        let Request {
            route,
            facts,
            key,
            targets,
            head,
            body,
        } = request;
        let (n, prompts) = (facts.n, facts.batch.prompts());
        let max_samples = ctx.rules.limits.max_samples;
        if n.saturating_mul(prompts as u64) > max_samples as u64 {
            return Err(ctx.refuse(ProxyError::TooManySamples(n, prompts, max_samples)));
        }
        let n = n as usize;
        let Body::Read(body) = body else {
            return Err(ctx.refuse(ProxyError::Internal("a request was sent before".into())));
        };
        let recipe = Recipe {
            engine: self.engine(),
            route,
            gather: self.engine().gather(route, &facts),
            limit: ctx.rules.limits.max_body_bytes,
        };
        let waits = body.len() / prompts.max(1) >= SHARED_PROMPT_BYTES;
        let body = self.engine().sample_body(route, &body, &facts);
        let facts = match self.engine().parse(route, &body) {
            Ok(facts) => facts,
            Err(error) => return Err(ctx.refuse(ProxyError::Invalid(error))),
        };
        let copies = body.len().saturating_mul(n);
        if ctx.share.as_mut().is_some_and(|share| !share.grow(copies)) {
            return Err(ctx.refuse(ProxyError::Overloaded(Exhausted::Memory)));
        }
        if facts.stream {
            ctx.gather_stream(self.engine().stream_end(route));
        }
        let template = Template {
            route,
            facts,
            key,
            targets,
            head,
            timing: ctx.timing.clone(),
            rules: ctx.rules.clone(),
            body,
            reserve: self.engine().tail_reserve(prompts),
        };
        let gathering = Gathering::new(n, waits, recipe);
        Ok(Family::new(template, ctx.record.clone(), gathering, n))
    }

    /// A seat for each sample, which counts as a request. The first one is counted as the client's request.
    fn seats(&self, ctx: &mut RequestContext, family: &Arc<Family>) -> Result<Vec<Sample>> {
        let n = family.samples();
        if let Some(limit) = ctx
            .rules
            .limits
            .max_inflight_requests
            .filter(|limit| n > *limit)
        {
            return Err(ctx.refuse(ProxyError::MoreSamplesThanRequests(n, limit)));
        }
        let seat = |index| Sample {
            family: family.clone(),
            index,
            admitted: (index > 0).then(|| self.inflight.enter()),
        };
        let seats: Vec<_> = (0..n).map(seat).collect();
        let limit = ctx.rules.limits.max_inflight_requests;
        if limit.is_some_and(|limit| self.inflight.live() > limit) {
            return Err(ctx.refuse(ProxyError::Overloaded(Exhausted::Requests)));
        }
        Ok(seats)
    }

    /// Writes to the client what the samples have for it, until all have ended or one has failed.
    async fn deliver(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
        family: &Family,
    ) -> Result<()> {
        let every = ctx.rules.limits.stream_keepalive;
        let every = every.filter(|_| family.takes_comments());
        let mut last = tokio::time::Instant::from_std(ctx.record.times.started);
        loop {
            // A merge can still fail when a head is there.
            let every = every.filter(|_| ctx.head_is_out() || !family.merges());
            let due = last + every.unwrap_or_default();
            let output = tokio::select! {
                biased;
                left = client::interrupted(session) => return Err(left),
                output = family.gathering.output() => output,
                () = tokio::time::sleep_until(due), if every.is_some() => {
                    self.write_comment(session, ctx).await?;
                    last = tokio::time::Instant::now();
                    continue;
                }
            };
            match output {
                Output::Pieces { head, bytes, end } => {
                    if end && family.gathering.is_abandoned() {
                        ctx.note_failed_end(&bytes);
                    }
                    // After a comment the head is out, and was the balancer's own.
                    let head = head.filter(|_| !ctx.head_is_out());
                    if head
                        .as_ref()
                        .is_some_and(|head| is_event_stream(&head.headers))
                    {
                        ctx.gather_stream(self.engine().stream_end(family.route()));
                    }
                    ctx.note_sent();
                    let body = HttpTask::Body(Some(bytes), end);
                    self.write_body(session, ctx, head, body).await?;
                    if end {
                        return Ok(());
                    }
                    last = tokio::time::Instant::now();
                }
                Output::Failed(fault) => return Err(ctx.fail(*fault)),
            }
        }
    }

    /// Keeps a silent stream alive. The head goes out with the first comment, so that no failure is a status any more.
    pub(super) async fn write_comment(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        let head = match ctx.head_is_out() {
            true => None,
            false => Some(self.stream_head(session, ctx)?),
        };
        ctx.note_comment();
        let body = HttpTask::Body(Some(COMMENT), false);
        self.write_body(session, ctx, head, body).await
    }

    async fn write_body(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
        head: Option<Box<ResponseHeader>>,
        body: HttpTask,
    ) -> Result<()> {
        let mut tasks = Vec::with_capacity(2);
        if let Some(mut head) = head {
            self.announce_shutdown(session);
            for field in [CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION] {
                head.remove_header(&field);
            }
            // The heads of samples answer requests of our own.
            ctx.rules
                .cors
                .apply(&session.req_header().headers, &mut head)?;
            ctx.record.status = head.status.as_u16();
            let old = session.req_header().version == Version::HTTP_10;
            // A stream has no length, even where it arrives whole.
            let more = HttpTask::Body(None, false);
            let next = if ctx.gathers_stream { &more } else { &body };
            let head = framed(head, next, old);
            if old && !head.headers.contains_key(CONTENT_LENGTH) {
                session.set_keepalive(None);
            }
            tasks.push(HttpTask::Header(head, false));
        }
        tasks.push(body);
        let written = session.downstream_session.response_duplex_vec(tasks).await;
        written.map(drop).map_err(|error| error.into_down())
    }
}
