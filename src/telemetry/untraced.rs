//! What stands in for `trace` in a build without the feature `otel`: no request has a trace.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderValue};

use super::{DroppedSpans, Record};

/// There is none.
pub(crate) enum Tracing {}

/// There is none.
#[derive(Clone)]
pub(crate) enum Trace {}

/// An attempt has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LegSpans;

/// The head of a request, as far as a span has it.
#[allow(dead_code, reason = "nothing reads it in this build")]
pub(crate) struct Head<'a> {
    pub(crate) headers: &'a HeaderMap,
    pub(crate) tls: bool,
}

impl Tracing {
    pub(super) fn new(_endpoint: Option<&str>, _dropped: Arc<DroppedSpans>) -> Option<Self> {
        log::warn!("enable_trace: ignored, this build is without the feature otel");
        None
    }

    pub(super) fn begin(&self, _head: &Head<'_>, _started: Instant) -> Box<Trace> {
        match *self {}
    }

    pub(super) fn finished(&self, _record: &Record) {}

    pub(super) fn sample_finished(&self, _sample: usize, _record: &Record) {}

    pub(super) fn flush(&self) {}
}

impl Trace {
    pub(crate) fn is_continued(&self) -> bool {
        match *self {}
    }

    pub(crate) fn legs(&mut self) -> [HeaderValue; 2] {
        match *self {}
    }

    pub(crate) fn end_attempt(&mut self) -> LegSpans {
        match *self {}
    }
}
