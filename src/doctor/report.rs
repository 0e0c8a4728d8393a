//! The result of an examination as values: checks in groups, and the verdict that follows from them.

use crate::fleet::Role;

/// How a check has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// As it should be.
    Ok,
    /// Requests are served, and something will surprise.
    Warn,
    /// Requests fail.
    Fail,
    /// Not looked at, for the reason in the message.
    Skip,
}

impl Status {
    /// The word of the JSON document.
    pub(super) fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "fail",
            Status::Skip => "skip",
        }
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Check {
    /// One of the names in `docs/doctor.md`.
    pub(super) name: &'static str,
    /// How it has ended.
    pub(super) status: Status,
    /// The finding, on one line.
    pub(super) message: String,
    /// The remedy, on one line; `None` where none is needed.
    pub(super) advice: Option<String>,
}

impl Check {
    pub(super) fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self::new(name, Status::Ok, message, None)
    }

    pub(super) fn skip(name: &'static str, message: impl Into<String>) -> Self {
        Self::new(name, Status::Skip, message, None)
    }

    pub(super) fn warn(
        name: &'static str,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new(name, Status::Warn, message, Some(advice.into()))
    }

    pub(super) fn fail(
        name: &'static str,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new(name, Status::Fail, message, Some(advice.into()))
    }

    fn new(
        name: &'static str,
        status: Status,
        message: impl Into<String>,
        advice: Option<String>,
    ) -> Self {
        Self {
            name,
            status,
            message: shown(&message.into()),
            advice: advice.map(|advice| shown(&advice)),
        }
    }
}

/// The checks of one worker.
#[derive(Debug, Clone)]
pub(super) struct WorkerReport {
    /// The list that it stands in.
    pub(super) role: Role,
    /// As configured.
    pub(super) url: String,
    /// In the order in which they were made.
    pub(super) checks: Vec<Check>,
}

/// The generation through one pair.
#[derive(Debug, Clone)]
pub(super) struct PairReport {
    /// The URL of the prefill worker.
    pub(super) prefill: String,
    /// The URL of the decode worker.
    pub(super) decode: String,
    /// The generation.
    pub(super) check: Check,
    /// `None` where there was no complete response.
    pub(super) times: Option<Times>,
}

/// The times of a generation, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Times {
    /// From sending the request to the first event.
    pub(super) ttft_ms: f64,
    /// To the end of the response.
    pub(super) total_ms: f64,
}

/// Everything that was found.
#[derive(Debug, Clone, Default)]
pub(super) struct Report {
    /// The configuration, and this machine.
    pub(super) configuration: Vec<Check>,
    /// Prefill workers first, each list in the order of the configuration.
    pub(super) workers: Vec<WorkerReport>,
    /// Checks of all pairs together.
    pub(super) fleet: Vec<Check>,
    /// The pairs that were looked at.
    pub(super) pairs: Vec<PairReport>,
}

/// How many checks have ended in each way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// [`Status::Ok`].
    pub(super) ok: usize,
    /// [`Status::Warn`].
    pub(super) warn: usize,
    /// [`Status::Fail`].
    pub(super) fail: usize,
    /// [`Status::Skip`].
    pub(super) skip: usize,
}

impl Report {
    /// All checks.
    pub(super) fn checks(&self) -> impl Iterator<Item = &Check> {
        let workers = self.workers.iter().flat_map(|worker| &worker.checks);
        let pairs = self.pairs.iter().map(|pair| &pair.check);
        let first = self.configuration.iter().chain(workers);
        first.chain(&self.fleet).chain(pairs)
    }

    /// How the checks have ended.
    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for check in self.checks() {
            match check.status {
                Status::Ok => counts.ok += 1,
                Status::Warn => counts.warn += 1,
                Status::Fail => counts.fail += 1,
                Status::Skip => counts.skip += 1,
            }
        }
        counts
    }

    /// The worst that was found: `Fail`, `Warn` or `Ok`.
    pub(super) fn verdict(&self) -> Status {
        let counts = self.counts();
        match (counts.fail, counts.warn) {
            (0, 0) => Status::Ok,
            (0, _) => Status::Warn,
            _ => Status::Fail,
        }
    }
}

/// The longest text that is shown, in characters. Words of workers are part of messages.
const LONGEST: usize = 600;

/// A text for a terminal: one line without control characters, which a worker may have sent, of bounded length.
fn shown(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(LONGEST)
        .map(|letter| match letter {
            '\n' | '\r' | '\t' => ' ',
            letter if letter.is_control() => '?',
            letter => letter,
        })
        .collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_check_decides() {
        let mut report = Report::default();
        assert_eq!(report.verdict(), Status::Ok);
        report.configuration.push(Check::skip("timeouts", "a"));
        assert_eq!(report.verdict(), Status::Ok);
        report.fleet.push(Check::warn("pairs", "a", "b"));
        assert_eq!(report.verdict(), Status::Warn);
        report.workers.push(WorkerReport {
            role: Role::Prefill,
            url: "http://h:1".to_owned(),
            checks: vec![Check::fail("role", "a", "b"), Check::ok("key", "a")],
        });
        assert_eq!(report.verdict(), Status::Fail);
        let counts = report.counts();
        let counted = (counts.ok, counts.warn, counts.fail, counts.skip);
        assert_eq!(counted, (1, 1, 1, 1));
    }

    #[test]
    fn words_of_a_worker_cannot_steer_a_terminal() {
        let check = Check::ok("version", "a\x1b[31m\r\nb".to_owned() + &"c".repeat(2000));
        assert!(check.message.starts_with("a?[31m  bccc"), "{check:?}");
        assert!(check.message.ends_with("c...") && check.message.len() < 700);
    }
}
