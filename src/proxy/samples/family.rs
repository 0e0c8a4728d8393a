//! What the samples of one request share, and what each of them takes from it and reports to it.
//!
//! No hook of Pingora's is here: `request.rs` calls when a sample begins and ends, `dispatch.rs` when its prefill leg is
//! sent.

use std::future::{Future, poll_fn};
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use pingora::http::RequestHeader;
use pingora::protocols::http::subrequest::server::SubrequestHandle;
use pingora::proxy::{PreparedSubrequest, Session};

use super::super::Rules;
use super::super::request::{Body, Request};
use super::super::session::PrefillFailed;
use super::super::timing::Timing;
use super::gathering::Gathering;
use crate::client::Admitted;
use crate::error::Fault;
use crate::fleet::{Siblings, Targets};
use crate::legs::PrefillLeg;
use crate::pd::{Facts, Merge, Route, RoutingKey};
use crate::telemetry::{Record, Telemetry};

/// What each sample is made of.
pub(super) struct Template {
    pub(super) route: Route,
    pub(super) facts: Facts,
    pub(super) key: RoutingKey,
    pub(super) targets: Targets,
    pub(super) head: Arc<RequestHeader>,
    /// Where each sample, and with it the response, says where its time went.
    pub(super) timing: Option<Timing>,
    /// Those of the client's request.
    pub(super) rules: Arc<Rules>,
    /// The client's body without `n`.
    pub(super) body: Bytes,
    /// The space for the fields of the legs, in bytes.
    pub(super) reserve: usize,
}

/// The samples of one request.
pub(super) struct Family {
    template: Template,
    /// The client's request as it was before its samples began.
    record: Record,
    pub(super) gathering: Gathering,
    /// The record of each sample that has ended.
    reports: Vec<OnceLock<Arc<Record>>>,
    siblings: Arc<Siblings>,
}

/// The place of one sample, as it is handed to Pingora with the subrequest.
pub(in crate::proxy) struct Sample {
    pub(super) family: Arc<Family>,
    /// The sample, from 0.
    pub(super) index: usize,
    /// Counts the sample as a live request.
    pub(super) admitted: Option<Admitted>,
}

/// The same while the sample runs.
#[derive(Clone)]
pub(in crate::proxy) struct Seat {
    family: Arc<Family>,
    index: usize,
}

impl Family {
    /// The family of these samples.
    pub(super) fn new(template: Template, record: Record, gathering: Gathering, n: usize) -> Self {
        Self {
            template,
            record,
            gathering,
            reports: (0..n).map(|_| OnceLock::new()).collect(),
            siblings: Arc::default(),
        }
    }

    /// How many they are.
    pub(super) fn samples(&self) -> usize {
        self.reports.len()
    }

    /// The route of the request.
    pub(super) fn route(&self) -> Route {
        self.template.route
    }

    /// Whether the stream takes comments. The clients of `/generate` take every line for data.
    pub(super) fn takes_comments(&self) -> bool {
        self.template.facts.stream && self.template.route != Route::Generate
    }

    /// Whether the responses of both legs of a sample are merged.
    pub(super) fn merges(&self) -> bool {
        self.template.facts.merge != Merge::None
    }

    /// Runs one sample to its end, and takes its response.
    pub(super) async fn run(
        self: Arc<Self>,
        index: usize,
        prepared: PreparedSubrequest,
        handle: SubrequestHandle,
    ) {
        if !self.gathering.turn(index).await {
            return;
        }
        let responding = self.gathering.take(index, handle);
        tokio::join!(prepared.run(), responding);
        self.gathering.ended(index);
    }

    /// Adds what the samples have reported to the record of the client's request.
    pub(super) fn note(&self, record: &mut Record) {
        record.samples = self.samples();
        let ended = || self.reports.iter().filter_map(OnceLock::get);
        // The first byte of the response was the first one of a sample.
        let first = ended().min_by_key(|sample| {
            let at = sample.times.decode_first;
            (at.is_none(), at)
        });
        if let Some(first) = first {
            let times = record.times;
            record.times = first.times;
            record.times.started = times.started;
            record.times.read = times.read;
        }
        record.sampled = ended().cloned().collect();
        for sample in ended() {
            record.attempts = record.attempts.max(sample.attempts);
            record.failed.extend(sample.failed.iter().cloned());
            record.queued = record.queued.max(sample.queued);
            record.rooms += sample.rooms;
            record.events += sample.events;
            record.suspect = record.suspect.max(sample.suspect);
            if sample.error.is_some() {
                record.pair = sample.pair.clone();
            }
        }
    }
}

impl Sample {
    /// The sample that this session is the subrequest of. It is there once.
    pub(in crate::proxy) fn of(session: &mut Session) -> Option<Sample> {
        let user = session.subrequest_ctx.as_mut()?.user_ctx_mut()?;
        let sample = std::mem::replace(user, Box::new(())).downcast::<Sample>();
        sample.ok().map(|sample| *sample)
    }

    /// Where the response of the sample says where its time went.
    pub(in crate::proxy) fn timing(&self) -> Option<Timing> {
        self.family.template.timing.clone()
    }

    /// The rules of the client's request.
    pub(in crate::proxy) fn rules(&self) -> Arc<Rules> {
        self.family.template.rules.clone()
    }

    /// The request and the record that the sample begins with, and what it holds until its end.
    pub(in crate::proxy) fn begin(self) -> (Request, Record, Seat, Option<Admitted>) {
        let template = &self.family.template;
        let mut body = BytesMut::with_capacity(template.body.len() + template.reserve);
        body.extend_from_slice(&template.body);
        let request = Request {
            route: template.route,
            facts: template.facts.clone(),
            key: template.key.clone(),
            targets: template.targets,
            head: template.head.clone(),
            body: Body::Read(body),
        };
        let record = Record {
            sample: Some(self.index),
            ..self.family.record.clone()
        };
        let seat = Seat {
            family: self.family,
            index: self.index,
        };
        (request, record, seat, self.admitted)
    }
}

impl Seat {
    /// The other samples of the same request.
    pub(in crate::proxy) fn siblings(&self) -> &Arc<Siblings> {
        &self.family.siblings
    }

    /// The sample has failed: the client's request gets the fault.
    pub(in crate::proxy) fn fail(&self, fault: Fault) {
        self.family.gathering.fail(fault);
    }

    /// The sample has ended.
    pub(in crate::proxy) fn report(&self, record: &Record, telemetry: &Telemetry) {
        telemetry.sample_finished(self.index, record);
        let _ = self.family.reports[self.index].set(Arc::new(record.clone()));
    }

    /// The failure of a prefill leg, as [`PrefillLeg::failure`] gives it. The other samples learn from the first one
    /// when its leg has succeeded.
    pub(in crate::proxy) fn watch(&self, leg: &PrefillLeg) -> PrefillFailed {
        let mut failure = Box::pin(leg.failure());
        if self.index > 0 {
            return failure;
        }
        let (family, served) = (self.family.clone(), leg.served());
        Box::pin(poll_fn(move |cx| {
            let failed = failure.as_mut().poll(cx);
            if served() {
                family.gathering.prefilled();
            }
            failed
        }))
    }
}
