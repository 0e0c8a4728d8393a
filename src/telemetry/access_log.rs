//! One log line for each finished request, in `key=value` fields, and at debug level another one that says when each of its
//! steps happened.
//!
//! Only what the proxy itself knows: no prompt, no header's value, no query.

use std::fmt::{self, Display};
use std::time::{Duration, Instant};

use http::HeaderValue;
use log::Level;

use super::{FailedAttempt, Parts, Record};
use crate::pd::Route;

/// The targets of the lines, for filters such as `--log-level info,mini_lb::access=off`.
const ACCESS: &str = "mini_lb::access";
const TIMING: &str = "mini_lb::timing";

/// Writes the lines, unless their targets are filtered out.
pub(super) fn write(record: &Record) {
    log::log!(target: ACCESS, level(record), "request finished {}", Line(record));
    log::debug!(target: TIMING, "request steps {}", Steps(record));
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
    log::debug!(target: ACCESS, "sample finished sample={sample} {}", Line(record));
    log::debug!(target: TIMING, "sample steps sample={sample} {}", Steps(record));
}

/// When each step happened, in milliseconds from the head of the request, and the sizes. Steps that were not reached are
/// left out. The parts of the time to the first byte follow where the response is a stream.
struct Steps<'a>(&'a Record);

impl Display for Steps<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = self.0;
        let route = record.route.map_or("other", Route::name);
        write!(
            f,
            "request_id={} route={route} rooms={} request_bytes={} events={}",
            Id(&record.request_id),
            record.rooms,
            record.request_bytes,
            record.events,
        )?;
        let times = &record.times;
        let steps: [(&str, Option<Instant>); 9] = [
            ("read", times.read),
            ("selected", times.selected),
            ("sent", times.sent),
            ("prefill_head", times.prefill_head),
            ("prefill_end", times.prefill_end),
            ("decode_head", times.decode_head),
            ("decode_first", times.decode_first),
            ("first_byte", times.first_byte),
            ("ended", times.ended),
        ];
        for (step, at) in steps {
            if let Some(at) = at {
                let since = at.saturating_duration_since(times.started);
                write!(f, " {step}_ms={:.1}", millis(since))?;
            }
        }
        for (part, time) in record.parts().iter().flat_map(Parts::iter) {
            write!(f, " ttft_{}_ms={:.1}", part.name(), millis(time))?;
        }
        Ok(())
    }
}

/// The fields of the line. Those that say nothing about a request are left out.
struct Line<'a>(&'a Record);

impl Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = self.0;
        write!(f, "request_id={}", Id(&record.request_id))?;
        if let Some(client) = record.client {
            write!(f, " client={client}")?;
        }
        if let Some(key) = &record.key {
            write!(f, " key={key}")?;
        }
        write!(
            f,
            " method={} path={} status={} ended={}",
            record.method,
            record.path(),
            record.status,
            record.ended,
        )?;
        if record.samples > 0 {
            write!(f, " samples={}", record.samples)?;
        }
        if let Some(pair) = &record.pair {
            write!(
                f,
                " prefill={} decode={}",
                pair.prefill.url(),
                pair.decode.url()
            )?;
        }
        if record.attempts > 1 {
            write!(f, " attempts={}", record.attempts)?;
        }
        for (index, FailedAttempt { worker, cause }) in record.failed.iter().enumerate() {
            let separator = if index == 0 { " failed=" } else { "," };
            write!(f, "{separator}{cause}@{}", worker.url())?;
        }
        if !record.queued.is_zero() {
            write!(f, " queued_ms={:.1}", millis(record.queued))?;
        }
        let times = &record.times;
        let parts = [
            ("prefill", times.prefill()),
            ("decode", times.decode()),
            ("ttft", times.first_byte().filter(|_| record.streamed)),
        ];
        for (part, time) in parts {
            if let Some(time) = time {
                write!(f, " {part}_ms={:.1}", millis(time))?;
            }
        }
        if let Some(suspect) = record.suspect {
            write!(f, " suspect={}", suspect.name())?;
        }
        if let Some(error) = &record.error {
            write!(f, " error={error:?}")?;
        }
        write!(
            f,
            " e2e_ms={:.1} sent_bytes={}",
            millis(record.times.e2e()),
            record.response_bytes
        )
    }
}

/// A request id as the value of a field. In quotes and escaped where a reader of fields would take it for something else.
struct Id<'a>(&'a HeaderValue);

impl Display for Id<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.to_str() {
            Ok(id) if id.contains(['"', '\\', '=']) => write!(f, "{id:?}"),
            Ok(id) => f.write_str(id),
            Err(_) => f.write_str("-"),
        }
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::super::{Cause, Pair};
    use super::*;
    use crate::fleet::{Role, Worker};

    fn record() -> Record {
        let started = Instant::now();
        let mut record = Record::new(started);
        record.target = Some(http::uri::PathAndQuery::from_static("/generate?key=sk-1"));
        record.status = 200;
        record.response_bytes = 7;
        record.times.ended = Some(started + Duration::from_millis(12));
        record
    }

    #[test]
    fn a_request_that_met_nothing_unusual_has_a_short_line_without_its_query() {
        assert_eq!(
            Line(&record()).to_string(),
            "request_id=- method=GET path=/generate status=200 ended=ok e2e_ms=12.0 sent_bytes=7"
        );
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
            let line = Line(&record).to_string();
            assert!(line.starts_with(&format!("{field} method=")), "{line}");
            let steps = Steps(&record).to_string();
            assert!(steps.starts_with(&format!("{field} route=")), "{steps}");
        }
    }

    #[test]
    fn every_field_of_the_line_is_in_the_documents() {
        let (_, documented) = include_str!("../../docs/errors.md")
            .split_once("## The log line of a request")
            .unwrap_or_default();
        // The fields as the code writes them: `name={...}`, and the times by the names of their parts.
        let (_, code) = include_str!("access_log.rs")
            .split_once("impl Display for Line")
            .unwrap_or_default();
        let (code, _) = code.split_once("\n}\n").unwrap_or_default();
        let parts = ["prefill_ms", "decode_ms", "ttft_ms", "failed"].map(str::to_owned);
        let written = code.split("={").map(|before| {
            let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            let start = before.trim_end_matches(is_name).len();
            before[start..].to_owned()
        });
        let fields: Vec<_> = written.filter(|name| name.len() > 2).chain(parts).collect();
        assert!(fields.len() > 15, "{fields:?}");
        for field in fields.iter().filter(|field| *field != "_ms") {
            assert!(documented.contains(&format!("`{field}`")), "{field}");
        }
    }

    #[test]
    fn the_line_names_the_pair_the_attempts_the_wait_and_the_error() {
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
            record.failed.push(FailedAttempt { worker, cause });
        }
        record.queued = Duration::from_millis(3);
        let at = |millis| Some(record.times.started + Duration::from_millis(millis));
        record.times.sent = at(4);
        record.times.prefill_end = at(6);
        record.times.first_byte = at(9);
        record.streamed = true;
        record.ended = "decode_lost".into();
        record.error = Some("a \"quoted\" word".to_owned());
        let line = Line(&record).to_string();
        let pair = record
            .pair
            .as_ref()
            .map(|pair| (pair.prefill.url(), pair.decode.url()));
        let (prefill, decode) = pair.unwrap_or_default();
        assert_eq!(
            line,
            format!(
                "request_id=- client=10.0.0.7:51234 key=line-3 method=GET path=/generate status=200 ended=decode_lost prefill={prefill} decode={decode} \
                 attempts=3 failed=prefill_unreachable@http://127.0.0.1:3,rejected_503@http://127.0.0.1:4 queued_ms=3.0 prefill_ms=2.0 decode_ms=3.0 ttft_ms=9.0 error=\"a \\\"quoted\\\" word\" e2e_ms=12.0 sent_bytes=7"
            )
        );
    }
}
