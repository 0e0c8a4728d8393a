//! The report for people: one line for each check, in groups, and a summary.
//!
//! A line begins with a sign, so that nothing depends on colours: `ok`, `warn`, `FAIL` or `skip`.

use std::fmt::{self, Display, Formatter};

use super::report::{Check, PairReport, Report, Status};

/// The column in which messages begin, counted from the sign.
const NAME_WIDTH: usize = 20;

/// The lines of a report.
pub(super) struct Text<'a>(pub(super) &'a Report);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let report = self.0;
        group(f, "configuration", &report.configuration)?;
        for worker in &report.workers {
            let title = format!("{} {}", worker.role.name(), worker.url);
            group(f, &title, &worker.checks)?;
        }
        if !(report.pairs.is_empty() && report.fleet.is_empty()) {
            group(f, "pairs", &report.fleet)?;
            for pair in &report.pairs {
                pair_line(f, pair)?;
            }
        }
        writeln!(f, "{}", summary(report))
    }
}

fn group(f: &mut Formatter<'_>, title: &str, checks: &[Check]) -> fmt::Result {
    writeln!(f, "{title}")?;
    for check in checks {
        let name = check.name.replace('_', " ");
        line(f, check, &name)?;
    }
    Ok(())
}

fn pair_line(f: &mut Formatter<'_>, pair: &PairReport) -> fmt::Result {
    let name = format!("{} -> {}", pair.prefill, pair.decode);
    line(f, &pair.check, &name)
}

fn line(f: &mut Formatter<'_>, check: &Check, name: &str) -> fmt::Result {
    let sign = match check.status {
        Status::Ok => "ok",
        Status::Warn => "warn",
        Status::Fail => "FAIL",
        Status::Skip => "skip",
    };
    write!(f, "  {sign:<4}  {name:<NAME_WIDTH$}  {}", check.message)?;
    match &check.advice {
        Some(advice) => writeln!(f, ": {advice}"),
        None => writeln!(f),
    }
}

fn summary(report: &Report) -> String {
    let counts = report.counts();
    let of = |count: usize, one: &str| match count {
        1 => format!("1 {one}"),
        count => format!("{count} {one}s"),
    };
    let verdict = match report.verdict() {
        Status::Fail => "not ready",
        Status::Warn => "ready, with warnings",
        Status::Ok | Status::Skip => "ready",
    };
    let mut summary = format!(
        "{verdict}: {}, {}, {} ok",
        of(counts.fail, "problem"),
        of(counts.warn, "warning"),
        counts.ok
    );
    if counts.skip > 0 {
        summary += &format!(", {} skipped", counts.skip);
    }
    summary
}

#[cfg(test)]
mod tests {
    use super::super::report::WorkerReport;
    use super::*;
    use crate::fleet::Role;

    #[test]
    fn each_check_is_a_line_with_a_sign_in_its_group() {
        let report = Report {
            configuration: vec![Check::ok("timeouts", "fine")],
            workers: vec![WorkerReport {
                role: Role::Decode,
                url: "http://d:1".to_owned(),
                checks: vec![Check::fail("page_size", "16, not 1", "start it with 1")],
            }],
            fleet: Vec::new(),
            pairs: vec![PairReport {
                prefill: "http://p:1".to_owned(),
                decode: "http://d:1".to_owned(),
                check: Check::skip("generation", "not tried"),
                times: None,
            }],
        };
        let expected = "\
configuration
  ok    timeouts              fine
decode http://d:1
  FAIL  page size             16, not 1: start it with 1
pairs
  skip  http://p:1 -> http://d:1  not tried
not ready: 1 problem, 0 warnings, 1 ok, 1 skipped
";
        assert_eq!(Text(&report).to_string(), expected);
    }
}
