//! The output of `mini-lb bench`: a table, JSON, an HTML page.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::args::BenchArgs;
use super::arrivals::Arrivals;
use super::charts::{Names, charts};
use super::compare::Level;
use super::context;
use super::error::BenchError;
use super::html::page;
use super::load::Load;
use super::prompt::InputLength;
use super::summary::Summary;
use super::table::{columns, number};

/// Writes the results to where the command line says.
///
/// # Errors
/// When stdout or a file cannot be written.
pub(crate) fn write(args: &BenchArgs, levels: &[Level]) -> Result<(), BenchError> {
    let rows = rows(levels);
    let to_stdout = args.json.as_deref() == Some(Path::new("-"));
    if !to_stdout {
        let mut text = format!("\nLatencies in milliseconds.\n\n{}", columns(&rows));
        if let Some(workers) = workers(levels) {
            text.push_str(&format!("\n{}", columns(&workers)));
        }
        for level in levels {
            text.push_str(&outcomes(level));
            text.push_str(&failures(level));
        }
        write_out(&text)?;
    }
    if let Some(path) = &args.json {
        let text = format!("{:#}\n", as_json(args, levels));
        match to_stdout {
            true => write_out(&text)?,
            false => write_file(path, &text)?,
        }
    }
    if let Some(path) = &args.html {
        let names = Names::of(args);
        let server = args.server().map(|url| url.authority.clone());
        let title = format!("mini-lb bench of {}", server.unwrap_or_default());
        let mut facts = facts(args);
        let context = context::facts().map(|(name, value)| (name.to_owned(), value));
        facts.extend(context);
        facts.push(("times".to_owned(), "milliseconds".to_owned()));
        for level in levels {
            let lines = outcomes(level);
            let outcomes = lines.lines().filter_map(|line| line.split_once(": "));
            facts.extend(outcomes.map(|(name, value)| (name.to_owned(), value.to_owned())));
        }
        let tables: Vec<_> = std::iter::once(rows).chain(workers(levels)).collect();
        let page = page(&title, &facts, &tables, &charts(&names, levels));
        write_file(path, &page)?;
    }
    Ok(())
}

/// The table: one row for a level, or three with `--direct`.
fn rows(levels: &[Level]) -> Vec<Vec<String>> {
    let head = [
        "concurrency",
        "answered",
        "failed",
        "req/s",
        "tok/s",
        "TTFT p50",
        "p90",
        "p99",
        "ITL p50",
        "p99",
        "E2E p50",
        "p99",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for level in levels {
        let users = level.load.concurrency;
        let server = Summary::of(&level.server);
        let Some(direct) = level.direct.as_ref().map(Summary::of) else {
            rows.push(row(users.to_string(), &server));
            continue;
        };
        rows.push(row(format!("{users} server"), &server));
        rows.push(row(format!("{users} direct"), &direct));
        let added = latencies(&server)
            .into_iter()
            .zip(latencies(&direct))
            .map(|(through, beside)| number(through - beside));
        let mut row = vec![format!("{users} added")];
        row.resize(5, String::new());
        row.extend(added);
        rows.push(row);
    }
    rows
}

fn row(name: String, summary: &Summary) -> Vec<String> {
    let counts = [
        name,
        summary.answered.to_string(),
        summary.failed.to_string(),
        number(summary.requests_per_second),
        number(summary.output_tokens_per_second),
    ];
    let mut latencies = latencies(summary).map(number);
    if summary.events == 0 {
        // Documents have no events, and so no time between two.
        latencies[ITL].fill("–".to_owned());
    }
    counts.into_iter().chain(latencies).collect()
}

/// The places of ITL among the latencies.
const ITL: std::ops::Range<usize> = 3..5;

fn latencies(summary: &Summary) -> [f64; 7] {
    let Summary {
        ttft_ms,
        itl_ms,
        e2e_ms,
        ..
    } = summary;
    [
        ttft_ms.p50,
        ttft_ms.p90,
        ttft_ms.p99,
        itl_ms.p50,
        itl_ms.p99,
        e2e_ms.p50,
        e2e_ms.p99,
    ]
}

/// The prompts of each prefill worker, where responses name theirs.
fn workers(levels: &[Level]) -> Option<Vec<Vec<String>>> {
    let head = [
        "prefill worker",
        "requests",
        "prompt tokens",
        "cached",
        "cached %",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for level in levels {
        for (worker, prompts) in &level.server.by_prefill {
            let name = match levels.len() {
                1 => worker.clone(),
                _ => format!("{}, {worker}", label(&level.load)),
            };
            let mut row = vec![name, prompts.requests.to_string()];
            // Without tokens the responses did not say how many were cached.
            if prompts.tokens > 0 {
                let cached = prompts.cached_tokens;
                row.push(number(prompts.tokens as f64));
                row.push(number(cached as f64));
                row.push(number(percent(cached, prompts.tokens)));
            }
            rows.push(row);
        }
    }
    (rows.len() > 1).then_some(rows)
}

/// The cached tokens and the goodput of a level, a line each where they are known.
fn outcomes(level: &Level) -> String {
    let (mut text, tally, label) = (String::new(), &level.server, label(&level.load));
    let prompts = tally.prompts;
    if prompts.requests > 0 {
        text.push_str(&format!(
            "{label}, cached tokens: {} of {} in prompts ({} %)\n",
            number(prompts.cached_tokens as f64),
            number(prompts.tokens as f64),
            number(percent(prompts.cached_tokens, prompts.tokens))
        ));
    }
    if level.load.slo.is_set() {
        text.push_str(&format!(
            "{label}, goodput: {} requests per second, {} of {} ({} %)\n",
            number(Summary::of(tally).good_per_second),
            tally.good,
            tally.requests(),
            number(percent(tally.good, tally.requests()))
        ));
    }
    text
}

fn percent(part: u64, of: u64) -> f64 {
    100.0 * part as f64 / of.max(1) as f64
}

/// What distinguishes a load from the others of a run.
pub(super) fn label(load: &Load) -> String {
    let users = load.concurrency;
    match load.arrivals {
        Arrivals::AtTimes(_) => format!("trace, concurrency {users}"),
        _ => format!("concurrency {users}"),
    }
}

/// The failures and delays of a level, a line each.
fn failures(level: &Level) -> String {
    let mut text = String::new();
    for (name, tally) in [
        ("server", Some(&level.server)),
        ("direct", level.direct.as_ref()),
    ] {
        let Some(tally) = tally else { continue };
        for (failure, count) in &tally.failed {
            text.push_str(&format!(
                "{}, {name}: {count} x {failure}\n",
                label(&level.load)
            ));
        }
        if let Some(message) = &tally.first_error {
            text.push_str(&format!("  the first response: {message}\n"));
        }
        let late = Summary::of(tally).late_ms;
        // Late requests have longer latencies, and the server is not always the cause. tokio's timer has a resolution
        // of a millisecond, so a delay of up to one is usual.
        if late.p50 > 2.0 {
            text.push_str(&format!(
                "{}, {name}: requests started {} ms late (p50). The server does not keep up with --rate or --speedup, \
                 --concurrency is too low, or this machine is overloaded\n",
                label(&level.load),
                number(late.p50)
            ));
        }
    }
    text
}

fn facts(args: &BenchArgs) -> Vec<(String, String)> {
    let url = args.server().map(|url| url.to_string()).unwrap_or_default();
    let prompts = match (&args.trace.trace, args.input()) {
        (Some(trace), _) => [
            ("trace", trace.display().to_string()),
            (
                "replayed",
                format!(
                    "{} times as fast, lengths times {}",
                    args.trace.speedup, args.trace.token_scale
                ),
            ),
        ],
        (None, input) => {
            let prompt = match input {
                InputLength::Bytes(bytes) => format!("{bytes} bytes"),
                InputLength::Tokens(tokens) => format!("{tokens} tokens"),
            };
            [
                ("prompt", prompt),
                ("answer", format!("{} tokens", args.output_tokens)),
            ]
        }
    };
    let mut facts = vec![
        ("server", url),
        ("endpoint", args.endpoint().path().to_owned()),
        (
            "streamed",
            if args.streams() { "yes" } else { "no" }.to_owned(),
        ),
    ];
    facts.extend(prompts);
    if args.trace.slo().is_set() {
        let bound = |name: &str, bound: Option<f64>| {
            bound.map(|bound| format!("{name} at most {bound} ms"))
        };
        let bounds = [
            bound("TTFT", args.trace.slo_ttft_ms),
            bound("mean ITL", args.trace.slo_itl_ms),
        ];
        let bounds: Vec<_> = bounds.into_iter().flatten().collect();
        facts.push(("good request", bounds.join(", ")));
    }
    if args.rate.is_finite() {
        facts.push(("rate", format!("{} requests per second", args.rate)));
    }
    if let Some(direct) = &args.direct {
        facts.insert(1, ("direct", direct.to_string()));
    }
    facts
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn as_json(args: &BenchArgs, levels: &[Level]) -> Value {
    let levels: Vec<_> = levels
        .iter()
        .map(|level| {
            json!({
                "concurrency": level.load.concurrency,
                "server": Summary::of(&level.server),
                "direct": level.direct.as_ref().map(Summary::of),
            })
        })
        .collect();
    let version = ("mini-lb".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    let facts = facts(args)
        .into_iter()
        .chain([version])
        .map(|(name, value)| (name, value.into()));
    json!({
        "unix_seconds": context::seconds_now(),
        "asked": Value::Object(facts.collect()),
        "levels": levels,
    })
}

fn write_out(text: &str) -> Result<(), BenchError> {
    let written = io::stdout().write_all(text.as_bytes());
    written.map_err(|error| BenchError::Io("stdout".to_owned(), error))
}

fn write_file(path: &Path, text: &str) -> Result<(), BenchError> {
    fs::write(path, text).map_err(|error| BenchError::Io(path.display().to_string(), error))
}
