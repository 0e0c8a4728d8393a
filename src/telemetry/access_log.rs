//! One log line for each finished request, in `key=value` fields, and at debug level another one that says when each of its
//! steps happened.
//!
//! Only what the proxy itself knows: no prompt, no header's value, no query.

use std::fmt::{self, Display};
use std::time::Instant;

use http::Version;
use log::Level;

use super::fields::{Fields, Show, Value, log};
use super::{FailedAttempt, Part, Record};
use crate::fleet::Spread;
use crate::pd::{Leg, Route};

/// The targets of the lines, for filters such as `--log-level info,mini_lb::access=off`.
const ACCESS: &str = "mini_lb::access";
const TIMING: &str = "mini_lb::timing";

/// The parts of the time to the first byte, as fields.
const TTFT_PARTS: [&str; Part::ALL.len()] = [
    "ttft_read_ms",
    "ttft_queue_ms",
    "ttft_retry_ms",
    "ttft_send_ms",
    "ttft_prefill_ms",
    "ttft_decode_ms",
    "ttft_relay_ms",
];

/// Writes the lines, unless their targets are filtered out.
pub(super) fn write(record: &Record) {
    log(ACCESS, level(record), &Line::new(record, None));
    log(TIMING, Level::Debug, &Steps::new(record, None));
}

/// Load balancers and schedulers ask every few seconds whether the process is healthy, and only another response than
/// yes is news.
fn level(record: &Record) -> Level {
    match record.is_probe && record.status == 200 {
        true => Level::Debug,
        false => Level::Info,
    }
}

/// Writes the lines of one sample of a request, at debug level.
pub(super) fn write_sample(sample: usize, record: &Record) {
    log(ACCESS, Level::Debug, &Line::new(record, Some(sample)));
    log(TIMING, Level::Debug, &Steps::new(record, Some(sample)));
}

/// When each step happened, in milliseconds from the head of the request, and the sizes. Steps that were not reached are
/// left out. The parts of the time to the first byte follow where the response is a stream.
struct Steps<'a> {
    record: &'a Record,
    sample: Option<usize>,
}

impl<'a> Steps<'a> {
    fn new(record: &'a Record, sample: Option<usize>) -> Self {
        Self { record, sample }
    }
}

impl Fields for Steps<'_> {
    fn phrase(&self) -> &'static str {
        match self.sample {
            None => "request steps",
            Some(_) => "sample steps",
        }
    }

    fn each<'a>(&'a self, show: &mut Show<'_, 'a>) -> fmt::Result {
        let record = self.record;
        show_sample(self.sample, show)?;
        show("request_id", Value::Id(&record.request_id))?;
        show(
            "route",
            Value::Text(record.route.map_or("other", Route::name)),
        )?;
        show("rooms", Value::Number(record.rooms as u64))?;
        show("request_bytes", Value::Number(record.request_bytes as u64))?;
        show("events", Value::Number(record.events))?;
        let times = &record.times;
        let steps: [(&str, Option<Instant>); 9] = [
            ("read_ms", times.read),
            ("selected_ms", times.selected),
            ("sent_ms", times.sent),
            ("prefill_head_ms", times.prefill_head),
            ("prefill_end_ms", times.prefill_end),
            ("decode_head_ms", times.decode_head),
            ("decode_first_ms", times.decode_first),
            ("first_byte_ms", times.first_byte),
            ("ended_ms", times.ended),
        ];
        for (step, at) in steps {
            if let Some(at) = at {
                let since = at.saturating_duration_since(times.started);
                show(step, Value::Time(since))?;
            }
        }
        if let Some(parts) = record.parts() {
            for (name, (_, time)) in TTFT_PARTS.into_iter().zip(parts.iter()) {
                show(name, Value::Time(time))?;
            }
        }
        Ok(())
    }
}

/// The fields of a request. Those that say nothing about it are left out.
struct Line<'a> {
    record: &'a Record,
    sample: Option<usize>,
    failed: Failed<'a>,
}

impl<'a> Line<'a> {
    fn new(record: &'a Record, sample: Option<usize>) -> Self {
        let failed = Failed(&record.failed);
        Self {
            record,
            sample,
            failed,
        }
    }
}

impl Fields for Line<'_> {
    fn phrase(&self) -> &'static str {
        match self.sample {
            None => "request finished",
            Some(_) => "sample finished",
        }
    }

    fn each<'a>(&'a self, show: &mut Show<'_, 'a>) -> fmt::Result {
        let record = self.record;
        show_sample(self.sample, show)?;
        show("request_id", Value::Id(&record.request_id))?;
        if let Some(client) = &record.client {
            show("client", Value::Display(client))?;
        }
        if let Some(key) = &record.key {
            show("key", Value::Text(key))?;
        }
        show("method", Value::Text(record.method.as_str()))?;
        show("path", Value::Text(record.path()))?;
        if record.version != Version::HTTP_11 {
            show("http", Value::Text(record.version()))?;
        }
        show("status", Value::Number(record.status.into()))?;
        show("ended", Value::Text(&record.ended))?;
        if record.samples > 0 {
            show("samples", Value::Number(record.samples as u64))?;
        }
        if let Some(pair) = &record.pair {
            if record.legs.prefill != Leg::Unused {
                show("prefill", Value::Text(pair.prefill.url()))?;
            }
            if let Some(rank) = record.spread.and_then(Spread::rank) {
                show("prefill_rank", Value::Number(rank.into()))?;
            }
            show("decode", Value::Text(pair.decode.url()))?;
        }
        if record.alone {
            show("alone", Value::Text("decode"))?;
        }
        if record.attempts > 1 {
            show("attempts", Value::Number(record.attempts.into()))?;
        }
        if !record.failed.is_empty() {
            show("failed", Value::Display(&self.failed))?;
        }
        if !record.queued.is_zero() {
            show("queued_ms", Value::Time(record.queued))?;
        }
        let times = &record.times;
        show_forecast(record, show)?;
        let parts = [
            ("prefill_ms", times.prefill()),
            ("decode_ms", times.decode()),
            ("ttft_ms", times.first_byte().filter(|_| record.streamed)),
        ];
        for (part, time) in parts {
            if let Some(time) = time {
                show(part, Value::Time(time))?;
            }
        }
        if let Some(suspect) = record.suspect {
            show("suspect", Value::Text(suspect.name()))?;
        }
        if let Some(error) = &record.error {
            show("error", Value::Sentence(error))?;
        }
        show("e2e_ms", Value::Time(times.e2e()))?;
        show("sent_bytes", Value::Number(record.response_bytes as u64))
    }
}

/// What the policy expected of the prefill worker, and what came; the time that came is in `prefill_ms`.
fn show_forecast(record: &Record, show: &mut Show<'_, '_>) -> fmt::Result {
    let Some(forecast) = &record.forecast else {
        return Ok(());
    };
    let expected = forecast.expected();
    let cached = Value::Number(expected.cached_tokens);
    show("expected_cached_tokens", cached)?;
    if let Some(usage) = forecast.usage() {
        if let Some(cached) = usage.cached_tokens {
            show("cached_tokens", Value::Number(cached))?;
        }
        show("prompt_tokens", Value::Number(usage.prompt_tokens))?;
    }
    show("expected_prefill_ms", Value::Time(expected.prefill()))
}

fn show_sample(sample: Option<usize>, show: &mut Show<'_, '_>) -> fmt::Result {
    match sample {
        Some(sample) => show("sample", Value::Number(sample as u64)),
        None => Ok(()),
    }
}

/// The attempts that failed: `prefill_lost@http://10.0.0.1:30000,rejected_503@http://10.0.0.2:30000`.
struct Failed<'a>(&'a [FailedAttempt]);

impl Display for Failed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, FailedAttempt { worker, cause, .. }) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            write!(f, "{separator}{cause}@{}", worker.url())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use http::HeaderValue;

    use super::super::fields::Text;
    use super::super::{Cause, Pair, Suspect};
    use super::*;
    use crate::fleet::{Expected, Forecast, Role, Spread, Worker};
    use crate::pd::Usage;

    fn record() -> Record {
        let started = Instant::now();
        let mut record = Record::new(started);
        record.target = Some(http::uri::PathAndQuery::from_static("/generate?key=sk-1"));
        record.status = 200;
        record.response_bytes = 7;
        record.times.ended = Some(started + Duration::from_millis(12));
        record
    }

    fn line(record: &Record) -> String {
        Text(&Line::new(record, None)).to_string()
    }

    #[test]
    fn a_request_that_met_nothing_unusual_has_a_short_line_without_its_query() {
        assert_eq!(
            line(&record()),
            "request finished request_id=- method=GET path=/generate status=200 ended=ok e2e_ms=12.0 sent_bytes=7"
        );
    }

    #[test]
    fn the_line_names_a_version_of_http_other_than_1_1() {
        for (version, field) in [
            (Version::HTTP_2, " path=/generate http=2 status=200"),
            (Version::HTTP_10, " path=/generate http=1.0 status=200"),
            (Version::HTTP_11, " path=/generate status=200"),
        ] {
            let mut record = record();
            record.version = version;
            let line = line(&record);
            assert!(line.contains(field), "{line}");
        }
    }

    #[test]
    fn a_request_id_is_one_value_whatever_its_characters() {
        for (id, field) in [
            ("job/42:a", "request_id=job/42:a"),
            ("job/42:a=b", r#"request_id="job/42:a=b""#),
            (r#"a"b\c"#, r#"request_id="a\"b\\c""#),
        ] {
            let mut record = record();
            record.request_id = HeaderValue::from_static(id);
            let line = line(&record);
            let begin = format!("request finished {field} method=");
            assert!(line.starts_with(&begin), "{line}");
            let steps = Text(&Steps::new(&record, None)).to_string();
            let begin = format!("request steps {field} route=");
            assert!(steps.starts_with(&begin), "{steps}");
        }
    }

    #[test]
    fn every_field_of_the_line_is_in_the_documents() {
        let (_, documented) = include_str!("../../docs/errors.md")
            .split_once("## The log line of a request")
            .unwrap_or_default();
        let mut record = unusual();
        record.samples = 2;
        record.suspect = Some(Suspect::Tried);
        record.forecast = Some(forecast());
        record.spread = Some(Spread::new(2, 4, 1));
        record.alone = true;
        record.version = Version::HTTP_2;
        let mut fields = HashSet::new();
        let line = Line::new(&record, Some(1));
        let listed = line.each(&mut |name, _| {
            fields.insert(name);
            Ok(())
        });
        assert!(listed.is_ok() && fields.len() == 28, "{fields:?}");
        for field in fields {
            assert!(documented.contains(&format!("`{field}`")), "{field}");
        }
    }

    #[test]
    fn the_parts_have_the_names_of_all_sinks() {
        for (field, part) in TTFT_PARTS.into_iter().zip(Part::ALL) {
            assert_eq!(field, format!("ttft_{}_ms", part.name()));
        }
    }

    /// A prompt of 9,000 tokens that took 2 ms.
    fn forecast() -> Arc<Forecast> {
        let forecast = Forecast::new(Expected {
            prefill_seconds: 0.0031,
            cached_tokens: 4096,
        });
        forecast.serve(Some(Usage {
            prompt_tokens: 9000,
            cached_tokens: Some(4000),
        }));
        Arc::new(forecast)
    }

    #[test]
    fn the_line_says_what_the_policy_expected_beside_what_came() {
        let mut record = unusual();
        assert!(!line(&record).contains("cached"), "{}", line(&record));
        record.forecast = Some(forecast());
        record.spread = Some(Spread::new(2, 4, 1));
        let line = line(&record);
        assert!(line.contains(" prefill_rank=2 decode="), "{line}");
        let expected = "expected_cached_tokens=4096 cached_tokens=4000 prompt_tokens=9000 expected_prefill_ms=3.1 prefill_ms=2.0";
        assert!(line.contains(expected), "{line}");
    }

    /// With all fields but those of samples, suspects, policies that learn and decode alone.
    fn unusual() -> Record {
        let mut record = record();
        record.pair = Some(Pair {
            prefill: Arc::new(Worker::for_tests(Role::Prefill, 1)),
            decode: Arc::new(Worker::for_tests(Role::Decode, 2)),
        });
        record.client = Some(([10, 0, 0, 7], 51234).into());
        record.key = Some("line-3".into());
        record.attempts = 3;
        let causes = [Cause::Code("prefill_unreachable"), Cause::Rejected(503)];
        for (port, cause) in (3..).zip(causes) {
            let worker = Arc::new(Worker::for_tests(Role::Prefill, port));
            record.failed.push(FailedAttempt {
                worker,
                cause,
                pair: record.pair.clone().expect("just set"),
                legs: record.legs,
                times: record.times,
                spans: Default::default(),
            });
        }
        record.queued = Duration::from_millis(3);
        let at = |millis| Some(record.times.started + Duration::from_millis(millis));
        record.times.sent = at(4);
        record.times.prefill_end = at(6);
        record.times.first_byte = at(9);
        record.streamed = true;
        record.ended = "decode_lost".into();
        record.error = Some("a \"quoted\" word".to_owned());
        record
    }

    #[test]
    fn the_line_names_the_pair_the_attempts_the_wait_and_the_error() {
        let record = unusual();
        let line = line(&record);
        let pair = record
            .pair
            .as_ref()
            .map(|pair| (pair.prefill.url(), pair.decode.url()));
        let (prefill, decode) = pair.unwrap_or_default();
        assert_eq!(
            line,
            format!(
                "request finished request_id=- client=10.0.0.7:51234 key=line-3 method=GET path=/generate status=200 ended=decode_lost prefill={prefill} decode={decode} \
                 attempts=3 failed=prefill_unreachable@http://127.0.0.1:3,rejected_503@http://127.0.0.1:4 queued_ms=3.0 prefill_ms=2.0 decode_ms=3.0 ttft_ms=9.0 error=\"a \\\"quoted\\\" word\" e2e_ms=12.0 sent_bytes=7"
            )
        );
    }
}
