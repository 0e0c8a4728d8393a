//! The trace of a request: its ids, what it takes from the client's head, and what each leg gets.
//!
//! `tracestate` and `baggage` are end-to-end fields, which the legs get as the client sent them.
//!
//! Source: W3C Trace Context, sections 3.2 (`traceparent`) and 4 (what a participant does).

use std::time::{Instant, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::Head;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The flag of a trace that is recorded.
const SAMPLED: u8 = 1;
/// The flag of a trace whose id was drawn at random, which every participant passes on. Source: Trace Context level 2.
const RANDOM: u8 = 2;

/// The trace of one request.
#[derive(Clone)]
pub(crate) struct Trace {
    pub(super) trace_id: u128,
    /// The client's span, where it sent one.
    pub(super) parent: Option<u64>,
    /// The span of the request.
    pub(super) span: u64,
    pub(super) flags: u8,
    /// The spans of the present attempt.
    pub(super) legs: LegSpans,
    /// `Some` for a request that is sampled.
    pub(super) details: Option<Details>,
}

/// The spans of the two legs of an attempt; 0 before it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LegSpans {
    pub(super) prefill: u64,
    pub(super) decode: u64,
}

/// What the span of a request has besides its record.
#[derive(Clone)]
pub(super) struct Details {
    /// The date of the head. All dates of a trace follow from it, so that they are in the order of the steps even where
    /// the clock of the system is set meanwhile.
    pub(super) began: SystemTime,
    pub(super) state: Option<HeaderValue>,
    pub(super) host: Option<HeaderValue>,
    pub(super) user_agent: Option<HeaderValue>,
    pub(super) tls: bool,
}

/// What a client says about its own span.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) trace_id: u128,
    span: u64,
    flags: u8,
}

impl Parent {
    /// The client's span; `None` where its head has none, more than one, or one that is not valid.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let only = values.next().filter(|_| values.next().is_none())?;
        Self::parse(only.to_str().ok()?.trim())
    }

    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split('-');
        let version = fields.next().filter(|version| version.len() == 2)?;
        let version = hexadecimal(version).filter(|version| *version != 0xff)?;
        let mut field = |digits: usize| {
            let field = fields.next()?;
            (field.len() == digits).then(|| hexadecimal(field))?
        };
        let (trace_id, span, flags) = (field(32)?, field(16)?, field(2)?);
        // Later versions may have more fields, this one has not.
        if version == 0 && fields.next().is_some() {
            return None;
        }
        (trace_id != 0 && span != 0).then_some(Self {
            trace_id,
            span: span as u64,
            flags: flags as u8,
        })
    }

    pub(super) fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

/// Lower case only, as the specification has it.
fn hexadecimal(digits: &str) -> Option<u128> {
    let valid = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    digits.bytes().all(valid).then_some(())?;
    u128::from_str_radix(digits, 16).ok()
}

/// A new id of a trace.
pub(super) fn id() -> u128 {
    rand::random::<u128>().max(1)
}

fn span_id() -> u64 {
    rand::random::<u64>().max(1)
}

impl Trace {
    /// The trace of a request, sampled where it has details.
    pub(super) fn new(parent: Option<Parent>, trace_id: u128, details: Option<Details>) -> Self {
        let random = parent
            .as_ref()
            .map_or(RANDOM, |parent| parent.flags & RANDOM);
        let sampled = if details.is_some() { SAMPLED } else { 0 };
        Self {
            trace_id,
            parent: parent.map(|parent| parent.span),
            span: span_id(),
            flags: random | sampled,
            legs: LegSpans::default(),
            details,
        }
    }

    /// Whether the trace is the client's. The `tracestate` of another client's trace says nothing about a new one.
    pub(crate) fn is_continued(&self) -> bool {
        self.parent.is_some()
    }

    /// The `traceparent` of prefill's leg and of decode's in the present attempt. One that begins again keeps its spans.
    pub(crate) fn legs(&mut self) -> [HeaderValue; 2] {
        if self.legs == LegSpans::default() {
            self.legs = LegSpans {
                prefill: span_id(),
                decode: span_id(),
            };
        }
        [self.legs.prefill, self.legs.decode].map(|span| self.traceparent(span))
    }

    /// Ends the present attempt, which another one follows.
    pub(crate) fn end_attempt(&mut self) -> LegSpans {
        std::mem::take(&mut self.legs)
    }

    fn traceparent(&self, span: u64) -> HeaderValue {
        let text = format!("00-{:032x}-{span:016x}-{:02x}", self.trace_id, self.flags);
        HeaderValue::try_from(text)
            .unwrap_or_else(|_| unreachable!("hexadecimal digits are a header value"))
    }
}

impl Details {
    pub(super) fn new(head: &Head<'_>, started: Instant) -> Self {
        let now = SystemTime::now();
        let field = |name| head.headers.get(name).cloned();
        Self {
            began: now.checked_sub(started.elapsed()).unwrap_or(now),
            state: field(TRACESTATE),
            host: field(header::HOST),
            user_agent: field(header::USER_AGENT),
            tls: head.tls,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_valid_traceparent_is_read_and_any_other_one_is_none() {
        let parent = Parent::parse(VALID).expect("valid");
        assert_eq!(parent.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!(
            (parent.span, parent.is_sampled()),
            (0x00f0_67aa_0ba9_02b7, true)
        );
        let later = VALID.replacen("00", "cc", 1) + "-more";
        assert_eq!(Parent::parse(&later), Some(parent));
        for wrong in [
            "",
            "00",
            &VALID.replacen("00", "ff", 1),
            &VALID.to_uppercase(),
            &format!("{VALID}-more"),
            &VALID.replace("00f067aa0ba902b7", "0000000000000000"),
            &VALID.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &VALID.replace("-01", "-1"),
            &VALID.replace("-01", "-+1"),
            "00-1-2-01",
        ] {
            assert_eq!(Parent::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn two_traceparents_are_none() {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_static(VALID);
        headers.append(TRACEPARENT, value.clone());
        assert!(Parent::of(&headers).is_some());
        headers.append(TRACEPARENT, value);
        assert_eq!(Parent::of(&headers), None);
    }

    #[test]
    fn each_leg_gets_a_span_of_its_own_and_the_flags_stay() {
        for (sent, flags) in [
            ("-00", "-00"),
            ("-02", "-02"),
            ("-03", "-02"),
            ("-09", "-00"),
        ] {
            let parent = Parent::parse(&VALID.replace("-01", sent));
            let mut trace = Trace::new(parent, 1, None);
            let legs = trace.legs();
            assert_ne!(legs[0], legs[1]);
            assert_eq!(trace.legs(), legs, "an attempt that begins again");
            let leg = legs[0].to_str().expect("hexadecimal");
            assert!(
                leg.ends_with(flags) && Parent::parse(leg).is_some(),
                "{leg}"
            );
            trace.end_attempt();
            assert_ne!(trace.legs(), legs);
        }
    }
}
