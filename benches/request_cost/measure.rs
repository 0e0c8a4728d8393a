//! One target under one workload: CPU time, latencies, memory, and the workers' counters.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use http::header::{HeaderMap, HeaderValue};
use mini_lb::bench::{self, Arrivals, Load, Spacing, Summary, Tally};
use serde::Serialize;

use super::fleet::{Counts, Fleet};
use super::targets::Running;
use super::workloads::{Span, Unit, Workload};

/// Time limit of one request. Streams whose middle is measured may last as long as the load.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The size of a measurement.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    pub time: Duration,
    /// At most.
    pub requests: u64,
}

/// The results of one run of one target.
#[derive(Debug, Clone, Serialize)]
pub struct Reading {
    pub workload: String,
    pub target: String,
    pub round: usize,
    /// Requests, or events.
    pub units: u64,
    /// CPU time of the target per unit; none for a target without a process.
    pub cpu_us_per_unit: Option<f64>,
    /// CPU time of the target, in seconds.
    pub cpu_seconds: Option<f64>,
    /// Length of the measurement.
    pub seconds: f64,
    pub units_per_second: f64,
    pub errors: u64,
    /// Connections that were opened to workers meanwhile, health probes included.
    pub worker_connections: u64,
    /// Rooms that were still open some seconds later.
    pub open_rooms: u64,
    /// Violations of the protocol.
    pub violations: u64,
    pub resident_mb: Option<f64>,
    pub peak_mb: Option<f64>,
    pub latencies: Summary,
}

/// The target and round of a run.
pub struct Run<'a> {
    pub workload: &'a Workload,
    pub fleet: &'a Fleet,
    pub target: &'a str,
    pub round: usize,
}

impl Run<'_> {
    /// Sends the workload to the target. `asked` is how often the workers' counters were read.
    pub async fn measure(
        &self,
        running: &Running,
        effort: Effort,
        asked: &mut u64,
    ) -> Result<Reading, String> {
        let before = self.fleet.settled_counts(asked).await?;
        let span = match self.workload.span {
            Span::Whole => self.whole(running, effort).await?,
            Span::Middle { warm_up } => self.middle(running, effort, warm_up).await?,
        };
        let memory = running.program.as_ref().map(|program| program.memory());
        let after = self.fleet.settled_counts(asked).await?;
        Ok(self.reading(span, memory, before, after))
    }

    /// Requests that are not measured: connections open, caches and tables fill.
    pub async fn warm_up(&self, running: &Running, requests: u64) -> Result<(), String> {
        let effort = Effort {
            time: Duration::from_secs(10),
            requests,
        };
        let tally = bench::run(self.target(running)?, &self.load(effort), |_| {}).await;
        match tally.answered {
            0 => Err(format!(
                "{} answers no request of {}: {:?} {}",
                self.target,
                self.workload.name,
                tally.failed,
                tally.first_error.unwrap_or_default()
            )),
            _ => Ok(()),
        }
    }

    async fn whole(&self, running: &Running, effort: Effort) -> Result<Measured, String> {
        let cpu = Stopwatch::start(running);
        let tally = bench::run(self.target(running)?, &self.load(effort), |_| {}).await;
        let units = match self.workload.unit {
            Unit::Request => tally.answered,
            Unit::Event => tally.events,
        };
        Ok(Measured {
            units,
            cpu: cpu.stop(running),
            seconds: tally.elapsed.as_secs_f64(),
            tally,
        })
    }

    async fn middle(
        &self,
        running: &Running,
        effort: Effort,
        warm_up: Duration,
    ) -> Result<Measured, String> {
        let seen = Rc::new(RefCell::new(Seen::default()));
        let told = seen.clone();
        let load = Load {
            request_timeout: Duration::from_secs(3600),
            // One after the other: streams that begin together send their events together, and a target that is woken
            // once for many events looks cheaper than it is.
            arrivals: Arrivals::AtRate {
                per_second: self.workload.concurrency as f64 / (warm_up / 2).as_secs_f64(),
                spacing: Spacing::Constant,
            },
            ..self.load(Effort {
                time: Duration::from_secs(3600),
                requests: u64::MAX,
            })
        };
        let running_load = bench::run(self.target(running)?, &load, move |tally| {
            let mut told = told.borrow_mut();
            told.events = tally.gaps.len();
            if tally.failures() > told.failed.values().sum() {
                told.failed.clone_from(&tally.failed);
            }
            if std::mem::take(&mut told.asked) {
                told.gaps = Some(tally.gaps.clone());
            }
        });
        let watch = async {
            tokio::time::sleep(warm_up).await;
            let before = gaps(&seen).await;
            let (cpu, begun) = (Stopwatch::start(running), Instant::now());
            let events = seen.borrow().events;
            tokio::time::sleep(effort.time).await;
            let (cpu, seconds) = (cpu.stop(running), begun.elapsed().as_secs_f64());
            let units = seen.borrow().events - events;
            let mut gaps = gaps(&seen).await;
            // Both are of one histogram, the second one later.
            let _ = gaps.subtract(&before);
            (cpu, seconds, units, gaps)
        };
        let (cpu, seconds, units, gaps) = tokio::select! {
            measured = watch => measured,
            tally = running_load => return Err(format!(
                "{}: every stream of {} ended early: {:?}", self.target, self.workload.name, tally.failed
            )),
        };
        Ok(Measured {
            units,
            cpu,
            seconds,
            // No request has ended, so there is no latency but that between events.
            tally: Tally {
                failed: seen.borrow().failed.clone(),
                gaps,
                ..Tally::default()
            },
        })
    }

    fn reading(
        &self,
        measured: Measured,
        memory: Option<crate::programs::process::Memory>,
        before: Counts,
        after: Counts,
    ) -> Reading {
        let units = measured.units.max(1) as f64;
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        Reading {
            workload: self.workload.name.clone(),
            target: self.target.to_owned(),
            round: self.round,
            units: measured.units,
            cpu_us_per_unit: measured.cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / units),
            cpu_seconds: measured.cpu.map(|cpu| cpu.as_secs_f64()),
            seconds: measured.seconds,
            units_per_second: measured.units as f64 / measured.seconds.max(1e-9),
            errors: measured.tally.failures(),
            worker_connections: after.connections.saturating_sub(before.connections),
            open_rooms: after.open_rooms,
            violations: after.violations.saturating_sub(before.violations),
            resident_mb: memory.map(|memory| mebibytes(memory.resident)),
            peak_mb: memory.map(|memory| mebibytes(memory.peak)),
            latencies: Summary::of(&measured.tally),
        }
    }

    fn load(&self, effort: Effort) -> Load {
        Load {
            concurrency: self.workload.concurrency,
            arrivals: match self.workload.rate {
                None => Arrivals::WhenFree,
                Some(per_second) => Arrivals::AtRate {
                    per_second,
                    spacing: Spacing::Constant,
                },
            },
            requests: effort.requests,
            time: effort.time,
            request_timeout: REQUEST_TIMEOUT,
            seed: self.round as u64,
            slo: bench::Slo::default(),
        }
    }

    fn target(&self, running: &Running) -> Result<bench::Target, String> {
        Ok(bench::Target {
            addresses: running.addresses.clone(),
            host: HeaderValue::from_static("target"),
            path: http::Uri::from_static(self.workload.path),
            headers: HeaderMap::new(),
            requests: self.workload.asks(running.legs, self.fleet),
        })
    }
}

/// What is seen of a load while it runs.
#[derive(Default)]
struct Seen {
    events: u64,
    failed: BTreeMap<bench::Failure, u64>,
    /// Whether the gaps between events are asked for, and those once the next event has come.
    asked: bool,
    gaps: Option<Histogram<u64>>,
}

/// All gaps between events so far.
async fn gaps(seen: &RefCell<Seen>) -> Histogram<u64> {
    seen.borrow_mut().asked = true;
    loop {
        tokio::time::sleep(Duration::from_millis(1)).await;
        if let Some(gaps) = seen.borrow_mut().gaps.take() {
            return gaps;
        }
    }
}

struct Measured {
    units: u64,
    cpu: Option<Duration>,
    seconds: f64,
    tally: Tally,
}

struct Stopwatch(Option<crate::programs::process::Cpu>);

impl Stopwatch {
    fn start(running: &Running) -> Stopwatch {
        Stopwatch(running.program.as_ref().map(|program| program.cpu()))
    }

    fn stop(self, running: &Running) -> Option<Duration> {
        let program = running.program.as_ref()?;
        Some(program.cpu().since(self.0?))
    }
}
