//! Where the time of a response went, in its head: `Server-Timing`, and the pair by name.
//!
//! A head goes out with the first byte of its body, so that it has all parts but the last one. The configuration says which
//! requests get these fields: the names of workers are not for every client.
//!
//! Source: W3C, Server Timing; W3C, Resource Timing (`Timing-Allow-Origin`).

use std::fmt::Write;

use http::{HeaderName, HeaderValue};
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};

use super::request::RequestContext;
use super::{Proxy, Rules};
use crate::endpoint::{Access, DECODE_WORKER, PREFILL_WORKER, TIMING};
use crate::limits::ServerTiming;
use crate::pd::Leg;

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const TIMING_ALLOW_ORIGIN: HeaderName = HeaderName::from_static("timing-allow-origin");

/// The response to a request says where its time went.
#[derive(Clone)]
pub(super) struct Timing {
    /// The origin of the page that sent the request, where it may read the response.
    origin: Option<HeaderValue>,
}

/// Fields for the head of a response.
pub(super) type TimingFields = Vec<(HeaderName, HeaderValue)>;

impl Proxy {
    /// The timing of this request, where it asks for it and may know, or where the configuration gives it to all.
    pub(super) fn timing(
        &self,
        rules: &Rules,
        head: &RequestHeader,
        by_clients: bool,
    ) -> Option<Timing> {
        let asks = || head.headers.get(TIMING).is_some_and(|value| value == "1");
        let gets = match rules.limits.server_timing {
            ServerTiming::Off => false,
            ServerTiming::Observers => asks() && self.is_observer(rules, head, by_clients),
            ServerTiming::OnRequest => asks(),
            ServerTiming::Always => true,
        };
        gets.then(|| Timing {
            origin: rules.cors.allowed_origin(&head.headers).cloned(),
        })
    }

    /// Whether this request could see the pages for observers, which name all workers.
    fn is_observer(&self, rules: &Rules, head: &RequestHeader, by_clients: bool) -> bool {
        let access = Access::Observers;
        let is_elsewhere = by_clients && self.needs_admin_listener(rules, access);
        !is_elsewhere && rules.keys.check(access, head).is_ok()
    }
}

impl RequestContext {
    /// What the head of the response says by now; `None` where it is to say nothing.
    pub(super) fn timing_fields(&mut self) -> Option<TimingFields> {
        let timing = self.timing.clone()?;
        self.note_legs();
        let mut parts = String::new();
        for (part, time) in self.record.parts_over() {
            let separator = if parts.is_empty() { "" } else { ", " };
            let millis = time.as_secs_f64() * 1e3;
            // Writing to a string does not fail.
            let _ = write!(parts, "{separator}{};dur={millis:.3}", part.name());
        }
        let unused = self.record.legs.prefill == Leg::Unused;
        let urls = self.record.pair.iter().flat_map(|pair| {
            [
                (PREFILL_WORKER, pair.prefill.url().to_owned()),
                (DECODE_WORKER, pair.decode.url().to_owned()),
            ]
        });
        let parts = (!parts.is_empty()).then_some((SERVER_TIMING, parts));
        let urls = urls.filter(|(name, _)| !unused || *name != PREFILL_WORKER);
        let fields = parts.into_iter().chain(urls);
        let fields = fields.filter_map(|(name, text)| Some((name, text.try_into().ok()?)));
        let origin = timing.origin.map(|origin| (TIMING_ALLOW_ORIGIN, origin));
        Some(fields.chain(origin).collect())
    }

    /// Adds these fields to a head that the balancer has made.
    ///
    /// # Errors
    /// None in practice, as in [`add`].
    pub(super) fn add_timing(&mut self, head: &mut ResponseHeader) -> Result<()> {
        let fields = self.timing_fields();
        fields.map_or(Ok(()), |fields| add(head, &fields))
    }
}

/// Adds these fields to a head. A worker's own timing stays beside ours.
///
/// # Errors
/// None in practice: names and values are valid.
pub(super) fn add(head: &mut ResponseHeader, fields: &TimingFields) -> Result<()> {
    for (name, value) in fields {
        if [SERVER_TIMING, TIMING_ALLOW_ORIGIN].contains(name) {
            head.append_header(name, value)?;
        } else {
            head.insert_header(name, value)?;
        }
    }
    Ok(())
}
