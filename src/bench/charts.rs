//! The charts of a report: throughput and latencies by concurrency, latencies by percentile.

use hdrhistogram::Histogram;

use super::args::BenchArgs;
use super::compare::Level;
use super::plot::{Chart, Scale, Series};
use super::report::label;
use super::summary::Summary;
use super::tally::Tally;

/// The names of the measured servers in the legends: host and port, with two servers after the words of the table.
pub(super) struct Names {
    server: String,
    direct: String,
}

impl Names {
    pub(super) fn of(args: &BenchArgs) -> Self {
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

pub(super) fn charts(names: &Names, levels: &[Level]) -> Vec<Chart> {
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
            name: format!("{name}, {}", label(&level.load)),
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
