//! The recorded counts, and when one is too far from them.

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

/// A part of a count, which is not compared.
const PART: &str = "of which ";

/// Tests of one process record into one file.
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
        "{unit}; {}.\n{}Where that is right: the command at the top of {FILE}, and commit it",
        far.join(", "),
        table(&recorded, counts)
    );
}

/// How far a count may be from the recorded one.
///
/// Timers of the same 10 ms share what is allocated for them, all of those of a request or none: that is two
/// allocations more or less, and some bytes. The runtime looks at its sockets once more after every 61 polls of tasks,
/// which is less than 0.2 calls for a request. For an event nothing moves by as much as one call or allocation.
/// Instructions are those of whatever the machine's C library takes for copying, and of its luck with sockets.
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
    // What was won is not to be lost again unnoticed. An optimized build may always need less.
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

/// Whole where hundredths say nothing.
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
