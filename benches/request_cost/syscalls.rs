//! System calls of a target under a fixed number of requests, counted by strace.
//!
//! On a shared machine counts say more than times: they are the same everywhere, except that a slowed
//! target finds more data ready at once.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mini_lb::bench::table::{columns, number};

use super::measure::{Effort, Run};
use super::targets::Running;
use super::workloads::Unit;
use crate::programs::process::threads;

/// Calls by name, per unit of work.
pub type Counts = BTreeMap<String, f64>;

/// strace has failed when it has not attached within this time.
const ATTACH: Duration = Duration::from_secs(10);

impl Run<'_> {
    /// Calls per unit; none for a target without a process.
    pub async fn system_calls(
        &self,
        running: &Running,
        requests: u64,
        asked: &mut u64,
    ) -> Result<Option<Counts>, String> {
        let Some(program) = &running.program else {
            return Ok(None);
        };
        let files = tempfile::tempdir().map_err(|error| error.to_string())?;
        let output = files.path().join("counts");
        let pids = program.pids();
        let mut command = Command::new("strace");
        command
            .args(["-c", "-f", "-q", "-U", "calls,name", "-o"])
            .arg(&output);
        for pid in &pids {
            command.args(["-p", &pid.to_string()]);
        }
        let mut strace = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("strace: {error}"))?;
        let attached = wait_until_traced(&pids).await;
        let effort = Effort {
            time: Duration::from_secs(60),
            requests,
        };
        let reading = match attached {
            true => self.measure(running, effort, asked).await,
            false => Err("strace did not attach; is ptrace allowed here?".to_owned()),
        };
        // On an interrupt, strace detaches and writes its table.
        let interrupted = Command::new("kill")
            .args(["-INT", &strace.id().to_string()])
            .status();
        interrupted
            .and_then(|_| strace.wait())
            .map_err(|error| format!("strace: {error}"))?;
        let reading = reading?;
        let table = fs::read_to_string(&output).map_err(|error| format!("strace: {error}"))?;
        Ok(Some(per_unit(&table, reading.units)))
    }
}

/// One column for each target, the most frequent call first.
pub fn table(workload: &str, unit: Unit, targets: &[(String, Counts)]) -> String {
    let unit = match unit {
        Unit::Request => "request",
        Unit::Event => "event",
    };
    let mut names: Vec<&String> = targets
        .iter()
        .flat_map(|(_, counts)| counts.keys())
        .collect();
    names.sort();
    names.dedup();
    let most = |name: &str| {
        let counts = targets.iter().filter_map(|(_, counts)| counts.get(name));
        counts.fold(0.0, |most: f64, count| most.max(*count))
    };
    names.retain(|name| most(name) >= 0.005);
    names.sort_by(|a, b| most(b).total_cmp(&most(a)));
    let head = std::iter::once(format!("{workload}: calls per {unit}"));
    let mut rows = vec![
        head.chain(targets.iter().map(|(name, _)| name.clone()))
            .collect(),
    ];
    for name in names {
        let count =
            |(_, counts): &(String, Counts)| number(counts.get(name).copied().unwrap_or(0.0));
        let mut row = vec![name.clone()];
        row.extend(targets.iter().map(count));
        rows.push(row);
    }
    let mut sums = vec!["all".to_owned()];
    sums.extend(
        targets
            .iter()
            .map(|(_, counts)| number(counts.values().sum())),
    );
    rows.push(sums);
    columns(&rows)
}

/// The lines of `strace -c -U calls,name`: a number and a name.
fn per_unit(table: &str, units: u64) -> Counts {
    let counts = table.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let calls: u64 = words.next()?.parse().ok()?;
        let name = words.next().filter(|name| *name != "total")?;
        Some((name.to_owned(), calls as f64 / units.max(1) as f64))
    });
    counts.collect()
}

async fn wait_until_traced(pids: &[u32]) -> bool {
    let traced = |pid: &u32| {
        threads(*pid).into_iter().all(|thread| {
            let status = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status"));
            let status = status.unwrap_or_default();
            status
                .lines()
                .any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
        })
    };
    let begun = Instant::now();
    while begun.elapsed() < ATTACH {
        if pids.iter().all(traced) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}
