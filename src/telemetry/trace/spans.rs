//! From the record of a request to its spans. The dates follow from that of the head and from the steps of the record, and no span
//! is longer than the one above it.

use std::borrow::Cow;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::{
    Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::attributes;
use super::context::{Details, LegSpans, Trace};
use crate::error::STREAM_ERROR;
use crate::fleet::{Role, Worker};
use crate::pd::Leg;
use crate::telemetry::record::Times;
use crate::telemetry::{Cause, Legs, Pair, Record};

/// What all spans of a request share.
struct Frame<'a> {
    record: &'a Record,
    trace: &'a Trace,
    details: &'a Details,
    scope: &'a InstrumentationScope,
}

/// One attempt, with what became of its legs.
struct Attempt<'a> {
    pair: &'a Pair,
    spans: LegSpans,
    legs: Legs,
    times: &'a Times,
    /// From 1.
    number: usize,
    sample: Option<usize>,
    /// The worker to blame, where it failed, and why.
    blamed: Option<(Role, Cow<'static, str>)>,
}

/// The spans of a request that is sampled: its own, and those of its legs, unless its samples have had theirs.
pub(super) fn each_of_request(
    record: &Record,
    scope: &InstrumentationScope,
    mut take: impl FnMut(SpanData),
) {
    let Some(frame) = Frame::of(record, scope) else {
        return;
    };
    if record.samples == 0 {
        frame.each_leg(None, &mut take);
    }
    take(frame.request());
}

/// The spans of the legs of a request, or of one of its samples.
pub(super) fn each_leg(
    record: &Record,
    sample: Option<usize>,
    scope: &InstrumentationScope,
    mut take: impl FnMut(SpanData),
) {
    if let Some(frame) = Frame::of(record, scope) {
        frame.each_leg(sample, &mut take);
    }
}

impl<'a> Frame<'a> {
    fn of(record: &'a Record, scope: &'a InstrumentationScope) -> Option<Self> {
        let trace = record.trace.as_deref()?;
        let details = trace.details.as_ref()?;
        Some(Self {
            record,
            trace,
            details,
            scope,
        })
    }

    fn request(&self) -> SpanData {
        let record = self.record;
        let mut attributes = attributes::of_request(record, self.details);
        // The client's own faults are none of this span. Source: semantic conventions, `http/http-spans.md#status`.
        let by_client = (400..500).contains(&record.status) || record.ended.starts_with("client_");
        let failed = record.status >= 500 || (record.ended != "ok" && !by_client);
        let mut status = Status::Unset;
        if failed {
            let ended = match &*record.ended {
                "ok" => record.status.to_string(),
                ended => ended.to_owned(),
            };
            attributes.push(attributes::error_type(ended));
            status = Status::error(record.error.clone().unwrap_or_default());
        }
        let times = &record.times;
        SpanData {
            parent_span_id: self.trace.parent.map_or(SpanId::INVALID, SpanId::from),
            parent_span_is_remote: self.trace.parent.is_some(),
            attributes,
            events: self.parts(),
            status,
            ..self.span(
                self.trace.span,
                SpanKind::Server,
                attributes::request_name(record),
                times.started,
                times.ended,
            )
        }
    }

    /// The end of each part of the time to the first byte, with its duration.
    fn parts(&self) -> SpanEvents {
        let record = self.record;
        let parts: Vec<_> = match record.parts() {
            Some(parts) => parts.iter().collect(),
            None => record.parts_over().collect(),
        };
        let mut at = record.times.started;
        let parts = parts.into_iter().map(|(part, time)| {
            at += time;
            let seconds = KeyValue::new("mini_lb.duration", time.as_secs_f64());
            let part = [KeyValue::new("mini_lb.part", part.name()), seconds];
            self.event("mini_lb.ttft_part", at, part.into())
        });
        events(parts.collect())
    }

    fn each_leg(&self, sample: Option<usize>, take: &mut impl FnMut(SpanData)) {
        let record = self.record;
        for (index, failed) in record.failed.iter().enumerate() {
            let blamed = (failed.worker.role(), failed.cause.into());
            self.attempt(
                Attempt {
                    pair: &failed.pair,
                    spans: failed.spans,
                    legs: failed.legs,
                    times: &failed.times,
                    number: index + 1,
                    sample,
                    blamed: Some(blamed),
                },
                take,
            );
        }
        if let Some(pair) = &record.pair {
            let cut = record.ended.starts_with("decode_") || record.ended == STREAM_ERROR;
            let ended = cut.then(|| (Role::Decode, record.ended.clone()));
            let last = Attempt {
                pair,
                spans: self.trace.legs,
                legs: record.legs,
                times: &record.times,
                number: record.failed.len() + 1,
                sample,
                blamed: ended,
            };
            self.attempt(last, take);
        }
    }

    /// The two legs of an attempt, unless it ended before it was sent.
    fn attempt(&self, attempt: Attempt<'_>, take: &mut impl FnMut(SpanData)) {
        if attempt.spans == LegSpans::default() {
            return;
        }
        let (pair, spans, legs) = (attempt.pair, attempt.spans, attempt.legs);
        if legs.prefill != Leg::Unused {
            take(self.leg(&attempt, &pair.prefill, spans.prefill, legs.prefill));
        }
        take(self.leg(&attempt, &pair.decode, spans.decode, legs.decode));
    }

    fn leg(&self, attempt: &Attempt<'_>, worker: &Worker, span: u64, leg: Leg) -> SpanData {
        let (record, times, role) = (self.record, attempt.times, worker.role());
        let number = attempt.number;
        let mut attributes = attributes::of_leg(record, worker, number, attempt.sample);
        let blamed = attempt
            .blamed
            .as_ref()
            .filter(|(blamed, _)| *blamed == role);
        // Prefill may end behind the response, which needs nothing more of it.
        let outcome = match (leg, role) {
            (Leg::Running, Role::Prefill) if record.ended == "ok" && attempt.blamed.is_none() => {
                "running"
            }
            (Leg::Served, Role::Decode) if blamed.is_none() && record.ended != "ok" => "cancelled",
            _ => attributes::outcome(leg),
        };
        attributes.push(KeyValue::new("mini_lb.outcome", outcome));
        let is_last = number == record.failed.len() + 1;
        if role == Role::Prefill && is_last {
            attributes.extend(attributes::of_choice(record));
        }
        let status = match leg {
            Leg::Rejected(status) | Leg::Aborted(status) => Some(status),
            Leg::Served => Some(200),
            _ => None,
        };
        attributes.extend(status.map(attributes::status));
        let failed = blamed.is_some() || !matches!(leg, Leg::Running | Leg::Served);
        let mut span_status = Status::Unset;
        if failed {
            let rejected = status.filter(|status| *status >= 400);
            let error = match (rejected, blamed) {
                (Some(status), _) => status.to_string(),
                (None, Some((_, cause))) => cause.to_string(),
                (None, None) => outcome.to_owned(),
            };
            span_status = Status::error(error.clone());
            attributes.push(attributes::error_type(error));
        }
        let (head, first, end) = match role {
            Role::Prefill => (times.prefill_head, None, times.prefill_end.or(times.ended)),
            Role::Decode => (times.decode_head, times.decode_first, times.ended),
        };
        let steps = [("mini_lb.head", head), ("mini_lb.first_byte", first)];
        let steps = steps.into_iter();
        let steps = steps.filter_map(|(name, at)| Some(self.event(name, at?, Vec::new())));
        SpanData {
            parent_span_id: self.trace.span.into(),
            attributes,
            events: events(steps.collect()),
            status: span_status,
            ..self.span(
                span,
                SpanKind::Client,
                attributes::leg_name(record, role),
                times.sent.unwrap_or(times.started),
                end,
            )
        }
    }

    fn event(&self, name: &'static str, at: Instant, attributes: Vec<KeyValue>) -> Event {
        Event::new(name, self.date(at), attributes, 0)
    }

    fn span(
        &self,
        id: u64,
        span_kind: SpanKind,
        name: String,
        start: Instant,
        end: Option<Instant>,
    ) -> SpanData {
        let trace = self.trace;
        let state = self.details.state.as_ref().filter(|_| trace.is_continued());
        let state = state.and_then(|state| state.to_str().ok()?.parse::<TraceState>().ok());
        let start_time = self.date(start);
        SpanData {
            span_context: SpanContext::new(
                TraceId::from(trace.trace_id),
                SpanId::from(id),
                TraceFlags::new(trace.flags),
                false,
                state.unwrap_or_default(),
            ),
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind,
            name: name.into(),
            start_time,
            end_time: end.map_or(start_time, |end| self.date(end).max(start_time)),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }

    /// The date of a step, which is none after the end of the request.
    fn date(&self, at: Instant) -> SystemTime {
        let times = &self.record.times;
        let at = at.min(times.ended.unwrap_or(at));
        let since: Duration = at.saturating_duration_since(times.started);
        self.details.began + since
    }
}

fn events(all: Vec<Event>) -> SpanEvents {
    let mut events = SpanEvents::default();
    events.events = all;
    events
}

impl From<Cause> for Cow<'static, str> {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Code(code) => code.into(),
            Cause::Rejected(_) => cause.to_string().into(),
        }
    }
}
