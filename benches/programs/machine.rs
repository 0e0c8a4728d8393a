//! The machine and the programs of a measurement.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

/// The machine, mini-lb, and the versions that these programs print.
pub fn machine(programs: &[&'static str]) -> BTreeMap<&'static str, String> {
    let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = file("/proc/cpuinfo");
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let mut machine = BTreeMap::from([
        (
            "cpu",
            model.map_or(String::new(), |(_, model)| model.to_owned()),
        ),
        ("cores", cores.to_string()),
        (
            "kernel",
            file("/proc/sys/kernel/osrelease").trim().to_owned(),
        ),
        ("load", file("/proc/loadavg").trim().to_owned()),
        ("mini-lb", env!("CARGO_PKG_VERSION").to_owned()),
    ]);
    machine.extend(programs.iter().map(|program| (*program, version(program))));
    machine
}

/// The CPU time of all programs so far, and of all cores whether idle or not, in ticks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ticks {
    busy: u64,
    all: u64,
}

impl Ticks {
    /// Source: proc(5), `/proc/stat`.
    pub fn now() -> Ticks {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = stat.lines().next().unwrap_or_default();
        let fields = line.split_whitespace().skip(1).take(8);
        let ticks: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
        let all: u64 = ticks.iter().sum();
        // The fourth is idle time, the fifth that of waiting for a disk.
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        Ticks {
            busy: all - idle,
            all,
        }
    }

    /// Percent of the time since an earlier reading in which the cores were busy.
    pub fn busy_since(self, earlier: Ticks) -> f64 {
        let all = self.all.saturating_sub(earlier.all).max(1);
        100.0 * self.busy.saturating_sub(earlier.busy) as f64 / all as f64
    }
}

/// A machine as text, one line for each value.
pub fn text(machine: &BTreeMap<&'static str, String>) -> String {
    machine
        .iter()
        .map(|(name, value)| format!("{name}: {value}\n"))
        .collect()
}

fn version(program: &str) -> String {
    let output = Command::new(program).arg("-v").output();
    let said = output
        .map(|output| [output.stdout, output.stderr].concat())
        .unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    said.lines().next().unwrap_or("not installed").to_owned()
}
