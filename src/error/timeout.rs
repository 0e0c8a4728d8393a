//! The deadlines that workers miss, and what a request was waiting for when one of them passed.

use std::fmt;
use std::time::Duration;

use crate::pd::Leg;

/// A deadline that the workers have missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timeout {
    /// No worker had capacity for this long.
    Queue(Duration),
    /// No byte of a streamed response came for this long.
    FirstToken(Duration, Awaited),
    /// No byte of a running stream came for this long.
    StreamIdle(Duration),
    /// A response that is not streamed was not complete after this long.
    Response(Duration, Awaited),
    /// A streamed response was not complete after this long.
    Stream(Duration),
}

/// What a request was waiting for. With two legs this says where to look: legs that do not meet leave both without a response,
/// and decode's long queue leaves prefill served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// A pair: no leg was under way.
    Pair,
    /// Prefill's response.
    Prefill,
    /// Decode's response, after prefill's.
    DecodeAfterPrefill,
    /// Decode's response, where there is none of prefill.
    Decode,
}

impl Awaited {
    /// That of an attempt whose prefill leg has come this far.
    pub(crate) const fn of(prefill: Leg) -> Self {
        match prefill {
            Leg::Running => Self::Prefill,
            Leg::Served => Self::DecodeAfterPrefill,
            Leg::Unused
            | Leg::Rejected(_)
            | Leg::Aborted(_)
            | Leg::Unsent
            | Leg::Lost
            | Leg::Stale
            | Leg::Failed => Self::Decode,
        }
    }
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pair => ": the request was waiting for a pair",
            Self::Prefill => ": prefill had not responded either",
            Self::DecodeAfterPrefill => ": prefill had responded",
            Self::Decode => "",
        })
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(limit) => write!(
                f,
                "all workers were busy (max_concurrent_requests) for {} s (queue_timeout_secs)",
                limit.as_secs_f64()
            ),
            Self::FirstToken(limit, awaited) => write!(
                f,
                "no token came within {} s (first_token_timeout_secs){awaited}",
                limit.as_secs_f64()
            ),
            Self::StreamIdle(limit) => write!(
                f,
                "decode sent nothing for {} s (stream_idle_timeout_secs)",
                limit.as_secs_f64()
            ),
            Self::Response(limit, awaited) => write!(
                f,
                "the response was not complete within {} s (request_timeout_secs){awaited}",
                limit.as_secs_f64()
            ),
            Self::Stream(limit) => write!(
                f,
                "the stream was not complete within {} s (stream_timeout_secs)",
                limit.as_secs_f64()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_deadline_is_named_and_how_far_prefill_had_come() {
        let limit = Duration::from_secs(5);
        for (prefill, end) in [
            (Leg::Running, ": prefill had not responded either"),
            (Leg::Served, ": prefill had responded"),
            (Leg::Unused, ""),
            (Leg::Lost, ""),
        ] {
            let awaited = Awaited::of(prefill);
            let stream = Timeout::FirstToken(limit, awaited).to_string();
            let text = "no token came within 5 s (first_token_timeout_secs)";
            assert_eq!(stream, format!("{text}{end}"));
            let document = Timeout::Response(limit, awaited).to_string();
            let text = "the response was not complete within 5 s (request_timeout_secs)";
            assert_eq!(document, format!("{text}{end}"));
        }
    }
}
