//! The recorded counts, and how far a new count may be from them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::sync::Mutex;

/// Numbers by name.
pub type Counts = BTreeMap<String, f64>;

const FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../cost_baseline/baseline.yaml"
);
const RECORD: &str = "MINI_LB_RECORD_COUNTS";
const HEAD: &str = "\
# What one unit of work costs: one request, or one event of a stream. `of which` says what a number is made of, and
# is not compared. Recorded by MINI_LB_RECORD_COUNTS=1 cargo test --test cost_baseline, instructions by
# MINI_LB_RECORD_COUNTS=1 MINI_LB_COUNT_INSTRUCTIONS=1 cargo test --test benchmarks instructions
";

/// Prefix of a count that is part of another one and is not compared.
const PART: &str = "of which ";

/// The tests of one process write to one file.
static RECORDING: Mutex<()> = Mutex::new(());

type Recorded = BTreeMap<String, Counts>;

/// Compares the counts of a unit with those that were recorded, or records them.
pub fn check(unit: &str, counts: &Counts) {
    if std::env::var_os(RECORD).is_some() {
        return record(unit, counts);
    }
    let recorded = read().remove(unit).unwrap_or_default();
    let far: Vec<_> = counts
        .keys()
        .filter(|name| !name.starts_with(PART))
        .filter_map(|name| {
            let far = distance(unit, name, recorded.get(name).copied(), counts[name])?;
            Some(format!("{name}: {far}"))
        })
        .collect();
    assert!(
        far.is_empty(),
        "{unit}; {}.\n{}If that is right, run the command at the top of tests/cost_baseline/baseline.yaml, and commit the file",
        far.join(", "),
        table(&recorded, counts)
    );
}

/// How far a count may be from the recorded one.
///
/// Timers that expire within the same 10 ms share their allocations, which makes a difference of up to two
/// allocations and some bytes. The runtime polls its sockets once more after every 61 polls of tasks,
/// which is less than 0.2 calls per request. Counts per event vary by less than one call or allocation.
/// Instructions depend on how the C library of the machine copies, and on how many reads a socket needs.
fn slack(unit: &str, name: &str, recorded: f64) -> f64 {
    match name {
        "bytes" => (recorded * 0.01).max(64.0),
        "instructions" => recorded * 0.05,
        "allocations" if !unit.contains("event") => 2.5,
        _ => 0.25,
    }
}

/// In words, when a count is too far from the recorded one.
pub fn distance(unit: &str, name: &str, recorded: Option<f64>, count: f64) -> Option<String> {
    let Some(recorded) = recorded else {
        return Some("not recorded".to_owned());
    };
    let slack = slack(unit, name, recorded);
    if count > recorded + slack {
        return Some("more than recorded".to_owned());
    }
    // An improvement must be recorded, or a later regression would go unnoticed. An optimized build may need less.
    let is_won = count < recorded - slack && cfg!(debug_assertions);
    is_won.then(|| "less than recorded, well done".to_owned())
}

fn table(recorded: &Counts, counts: &Counts) -> String {
    let mut text = format!("{:>12} {:>12}\n", "recorded", "now");
    let names: BTreeMap<_, _> = recorded.iter().chain(counts).collect();
    for name in names.into_keys() {
        let cell = |of: &Counts| of.get(name).copied().map_or("-".to_owned(), number);
        if [recorded, counts].iter().any(|of| is_shown(name, of)) {
            let _ = writeln!(text, "{:>12} {:>12} {name}", cell(recorded), cell(counts));
        }
    }
    text
}

fn is_shown(name: &str, of: &Counts) -> bool {
    of.get(name).is_some_and(|count| *count >= 0.005) || !name.starts_with(PART)
}

fn record(unit: &str, counts: &Counts) {
    let _recording = RECORDING.lock().unwrap();
    let mut all = read();
    all.insert(unit.to_owned(), counts.clone());
    let mut text = HEAD.to_owned();
    for (unit, counts) in &all {
        let _ = writeln!(text, "{unit}:");
        for (name, count) in counts.iter().filter(|(name, _)| is_shown(name, counts)) {
            let _ = writeln!(text, "  {name}: {}", number(*count));
        }
    }
    fs::write(FILE, text).unwrap();
}

/// Without decimals from 1,000 on.
fn number(count: f64) -> String {
    match count >= 1_000.0 {
        true => format!("{count:.0}"),
        false => format!("{count:.2}"),
    }
}

fn read() -> Recorded {
    let text = fs::read_to_string(FILE).unwrap_or_default();
    serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{FILE}: {error}"))
}
