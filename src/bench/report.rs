//! The output of `mini-lb bench`: a table, JSON, an HTML page.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::args::BenchArgs;
use super::compare::Level;
use super::context;
use super::error::BenchError;
use super::html::page;
use super::plot::{Chart, Scale, Series};
use super::prompt::InputLength;
use super::summary::Summary;
use super::table::{columns, number};
use super::tally::Tally;

/// Writes the results to where the command line says.
///
/// # Errors
/// When stdout or a file cannot be written.
pub(crate) fn write(args: &BenchArgs, levels: &[Level]) -> Result<(), BenchError> {
    let rows = rows(levels);
    let to_stdout = args.json.as_deref() == Some(Path::new("-"));
    if !to_stdout {
        let mut text = format!("\nLatencies in milliseconds.\n\n{}", columns(&rows));
        for level in levels {
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
        let page = page(&title, &facts, &rows, &charts(&names, levels));
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
    counts
        .into_iter()
        .chain(latencies(summary).map(number))
        .collect()
}

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
                "concurrency {}, {name}: {count} x {failure}\n",
                level.load.concurrency
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
                "concurrency {}, {name}: requests started {} ms late (p50). The server does not keep up with --rate, \
                 --concurrency is too low, or this machine is overloaded\n",
                level.load.concurrency,
                number(late.p50)
            ));
        }
    }
    text
}

fn facts(args: &BenchArgs) -> Vec<(String, String)> {
    let url = args.server().map(|url| url.to_string()).unwrap_or_default();
    let (size, unit) = match args.input() {
        InputLength::Bytes(bytes) => (bytes, "bytes"),
        InputLength::Tokens(tokens) => (tokens, "tokens"),
    };
    let mut facts = vec![
        ("server", url),
        ("endpoint", args.endpoint().path().to_owned()),
        (
            "streamed",
            if args.streams() { "yes" } else { "no" }.to_owned(),
        ),
        ("prompt", format!("{size} {unit}")),
        ("answer", format!("{} tokens", args.output_tokens)),
    ];
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

/// The names of the measured servers in the legends: host and port, with two servers after the words of the table.
struct Names {
    server: String,
    direct: String,
}

impl Names {
    fn of(args: &BenchArgs) -> Self {
        let server = args.server().map(|url| url.authority.clone());
        let server = server.unwrap_or_default();
        match &args.direct {
            None => Self {
                server,
                direct: String::new(),
            },
            Some(direct) => Self {
                server: format!("server {server}"),
                direct: format!("direct {}", direct.authority),
            },
        }
    }

    /// The servers of a level.
    fn servers<'a>(&self, level: &'a Level) -> impl Iterator<Item = (&str, &'a Tally)> {
        let direct = level.direct.iter().map(|tally| (&*self.direct, tally));
        std::iter::once((&*self.server, &level.server)).chain(direct)
    }
}

const MILLISECONDS: &str = "milliseconds";

fn charts(names: &Names, levels: &[Level]) -> Vec<Chart> {
    let mut charts = Vec::new();
    if levels.len() > 1 {
        charts.push(against_concurrency(
            names,
            levels,
            ("Throughput by concurrency", "answered requests per second"),
            &[("", &|summary| summary.requests_per_second)],
        ));
        charts.push(against_concurrency(
            names,
            levels,
            ("Time to first token by concurrency", MILLISECONDS),
            &[
                (" p50", &|summary| summary.ttft_ms.p50),
                (" p99", &|summary| summary.ttft_ms.p99),
            ],
        ));
    }
    let kinds: [(&str, Of); 3] = [
        ("Time to first token by percentile", |tally| &tally.ttft),
        ("Time between events by percentile", |tally| &tally.gaps),
        ("Time of a whole request by percentile", |tally| {
            &tally.total
        }),
    ];
    for (title, histogram) in kinds {
        if levels
            .iter()
            .any(|level| !histogram(&level.server).is_empty())
        {
            charts.push(by_percentile(names, levels, title, histogram));
        }
    }
    charts
}

/// Selects one of a tally's histograms.
type Of = fn(&Tally) -> &Histogram<u64>;

type Reading<'a> = (&'a str, &'a dyn Fn(&Summary) -> f64);

fn against_concurrency(
    names: &Names,
    levels: &[Level],
    (title, unit): (&str, &str),
    readings: &[Reading<'_>],
) -> Chart {
    let mut series: Vec<Series> = Vec::new();
    for level in levels {
        for (name, tally) in names.servers(level) {
            let summary = Summary::of(tally);
            for (suffix, read) in readings {
                let name = format!("{name}{suffix}");
                let point = (level.load.concurrency as f64, read(&summary));
                match series.iter_mut().find(|series| series.name == name) {
                    Some(series) => series.points.push(point),
                    None => series.push(Series {
                        name,
                        points: vec![point],
                    }),
                }
            }
        }
    }
    Chart {
        title: title.to_owned(),
        y_label: unit.to_owned(),
        x_label: "concurrency, requests".to_owned(),
        x: Scale::Log,
        y: Scale::Linear,
        series,
    }
}

/// The x axis is even in nines: from 99 to 99.9 takes as much room as from 90 to 99.
fn by_percentile(names: &Names, levels: &[Level], title: &str, histogram: Of) -> Chart {
    let nines = |part: f64| -(1.0 - part).log10();
    let marks = [
        (0.0, "0"),
        (0.5, "50"),
        (0.9, "90"),
        (0.99, "99"),
        (0.999, "99.9"),
    ];
    let series = levels.iter().flat_map(|level| {
        names.servers(level).map(move |(name, tally)| Series {
            name: format!("{name}, concurrency {}", level.load.concurrency),
            points: (0..=30)
                .map(|step| {
                    let place = f64::from(step) / 10.0;
                    let value = histogram(tally).value_at_quantile(1.0 - 10_f64.powf(-place));
                    (place, value as f64 / 1e6)
                })
                .collect(),
        })
    });
    Chart {
        title: title.to_owned(),
        y_label: MILLISECONDS.to_owned(),
        x_label: "percentile of the values: 99 is the value that 1 % exceed".to_owned(),
        x: Scale::Marked(
            marks
                .map(|(part, label)| (nines(part), label.to_owned()))
                .to_vec(),
        ),
        y: Scale::Log,
        series: series.collect(),
    }
}

fn write_out(text: &str) -> Result<(), BenchError> {
    let written = io::stdout().write_all(text.as_bytes());
    written.map_err(|error| BenchError::Io("stdout".to_owned(), error))
}

fn write_file(path: &Path, text: &str) -> Result<(), BenchError> {
    fs::write(path, text).map_err(|error| BenchError::Io(path.display().to_string(), error))
}
