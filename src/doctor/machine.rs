//! The checks without a worker: the configuration, its deadlines beside the engine's, and the open files.

use std::time::Duration;

use super::report::Check;
use crate::config::{Config, RequestLimits};
use crate::server::{affordable_requests, files_for, open_file_limit};

/// How long a leg waits for the other one, on both workers. They can be set, and no endpoint tells them.
/// Source: SGLang 0.5.23 `environ.py` (`SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT`, `SGLANG_DISAGGREGATION_WAITING_TIMEOUT`).
const RENDEZVOUS: Duration = Duration::from_secs(300);

/// The warnings of the configuration, without those that a check of a worker repeats, and the needs of `--daemon`.
pub(super) fn configuration(config: &Config, told: &[&String]) -> Vec<Check> {
    const NAME: &str = "configuration";
    let mut checks: Vec<_> = told
        .iter()
        .map(|warning| Check::warn(NAME, *warning, "see --print-config for where it comes from"))
        .collect();
    if let Err(problems) = config.check_machine() {
        let advice = "the server will not start in the background on this machine";
        let problems = problems.problems.iter();
        checks.extend(problems.map(|problem| Check::fail(NAME, problem.to_string(), advice)));
    }
    if checks.is_empty() {
        let (prefill, decode) = (config.prefill.len(), config.decode.len());
        let message = format!(
            "{prefill} prefill, {decode} decode, to listen on {}",
            config.listen
        );
        checks.push(Check::ok(NAME, message));
    }
    checks
}

/// The deadlines against the time that the engine gives two legs to meet.
pub(super) fn timeouts(limits: &RequestLimits) -> Check {
    const NAME: &str = "timeouts";
    let engine = RENDEZVOUS.as_secs();
    let ours = [
        ("first_token_timeout_secs", limits.first_token_timeout),
        ("request_timeout_secs", limits.request_timeout),
    ];
    let short = ours.iter().find(|(_, timeout)| *timeout <= RENDEZVOUS);
    match short {
        Some((key, timeout)) => Check::warn(
            NAME,
            format!(
                "{key} is {} s, and the two legs of a request may wait {engine} s for each other",
                timeout.as_secs_f64()
            ),
            "a request that the workers would still serve is cut: raise it, or lower \
             SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT and SGLANG_DISAGGREGATION_WAITING_TIMEOUT of the workers",
        ),
        None => Check::ok(
            NAME,
            format!(
                "first token within {} s, response within {} s; the workers give two legs {engine} s to meet by default",
                limits.first_token_timeout.as_secs_f64(),
                limits.request_timeout.as_secs_f64()
            ),
        ),
    }
}

/// The open files that the limits need. `running` is how many requests the decode workers run at once, where they say it.
pub(super) fn open_files(config: &Config, running: Option<u64>) -> Check {
    const NAME: &str = "open_files";
    let Some(limit) = open_file_limit() else {
        return Check::ok(NAME, "there is no limit");
    };
    files(
        limit,
        config.requests.max_inflight_requests,
        config.clients.max_connections,
        affordable_requests(),
        running,
    )
    .unwrap_or_else(|(message, advice, is_problem)| match is_problem {
        true => Check::fail(NAME, message, advice),
        false => Check::warn(NAME, message, advice),
    })
}

/// As [`open_files`], with the limits as values. The error has a message, an advice, and whether it is a problem.
fn files(
    limit: usize,
    inflight: Option<usize>,
    connections: Option<usize>,
    affordable: Option<usize>,
    running: Option<u64>,
) -> Result<Check, (String, &'static str, bool)> {
    const ADVICE: &str = "raise the limit (`ulimit -n`, LimitNOFILE of systemd), or lower the key";
    let requests = inflight.or(affordable).unwrap_or(usize::MAX);
    let (key, needed) = match (inflight, connections) {
        (_, Some(connections)) => ("max_connections", files_for(requests, connections)),
        (Some(requests), None) => ("max_inflight_requests", files_for(requests, requests)),
        (None, None) => ("", 0),
    };
    if needed > limit {
        let message =
            format!("{key} needs about {needed} open files, and {limit} are allowed here");
        return Err((message, ADVICE, true));
    }
    if let Some(running) = running.filter(|running| *running > requests as u64) {
        let message = format!(
            "the decode workers run {running} requests at once, and {requests} are admitted ({limit} open files are \
             allowed here)"
        );
        return Err((
            message,
            "raise the limit (`ulimit -n`, LimitNOFILE of systemd), or max_inflight_requests",
            false,
        ));
    }
    Ok(Check::ok(
        "open_files",
        format!("{limit} are allowed here, and {requests} requests are admitted at once"),
    ))
}

#[cfg(test)]
mod tests {
    use super::super::report::Status;
    use super::*;
    use crate::MiniLbConfig;

    fn limits(key: &str, value: &str) -> RequestLimits {
        let workers = (
            vec![("http://a:1".to_owned(), None)],
            vec!["http://b:1".to_owned()],
        );
        let config = MiniLbConfig::new("h".to_owned(), 0, workers.0, workers.1, 1800);
        match config.set(key, value).resolve() {
            Ok(config) => config.requests,
            Err(problems) => unreachable!("{problems}"),
        }
    }

    #[test]
    fn a_deadline_below_the_engines_is_a_warning() {
        for (key, value, status) in [
            ("first_token_timeout_secs", "600", Status::Ok),
            ("first_token_timeout_secs", "300", Status::Warn),
            ("request_timeout_secs", "60", Status::Warn),
        ] {
            let check = timeouts(&limits(key, value));
            assert_eq!(check.status, status, "{check:?}");
            assert_eq!(
                check.message.contains(key),
                status == Status::Warn,
                "{check:?}"
            );
        }
    }

    #[test]
    fn limits_that_need_more_open_files_are_a_problem() {
        let of = |inflight, connections, running| {
            let ended = files(1024, inflight, connections, Some(174), running);
            ended.map_or_else(|(_, _, is_problem)| Some(is_problem), |_| None)
        };
        assert_eq!(of(None, None, None), None);
        assert_eq!(of(None, None, Some(174)), None);
        assert_eq!(of(None, None, Some(175)), Some(false));
        assert_eq!(of(Some(100), None, Some(100)), None);
        assert_eq!(of(Some(1000), None, None), Some(true));
        assert_eq!(of(None, Some(10_000), None), Some(true));
        assert_eq!(of(Some(10), Some(20), None), None);
    }
}
