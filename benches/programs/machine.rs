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

/// The same as text, one line each.
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
