//! The tail: what a target adds to the first event of a stream and to each other one, while the machine is busy.
//!
//! Many streams are alive at a time, and each one that ends is followed by another. Events come at parts of the rate at
//! which the cores are full: that one is found at the beginning of the run, with one of the targets, and all targets get
//! the same rates. Each phase of a turn has another one; each turn starts its target anew, because how connections fall to
//! threads is decided when they open.
//!
//! The measurement is not to be what is measured: workers and clients are three threads that do little, and come before all
//! other threads where the system allows it, so that an event is written when it is due and read when it is there. They take
//! their part of the cores, and that part counts as busy. The report has their lateness, and the row of `direct` is the
//! time without a target.
//!
//! | file | what lives there |
//! |---|---|
//! | `workers` | the workers, which put the time into their events |
//! | `clients` | the clients, and what they have seen |
//! | `thread` | the threads of both |
//! | `report` | the tables |

mod clients;
mod report;
mod thread;
mod workers;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::time::sleep;

use super::fleet::Fleet;
use super::targets::{Legs, Running, Target};
use crate::programs::process::{Cpu, cpu_of};
use clients::{Bodies, Clients, Streams};
use thread::Clock;
use workers::Workers;

pub use report::table;

/// Parts of the rate at which the cores are full, in percent.
const LEVELS: [f64; 3] = [50.0, 80.0, 95.0];
/// The rate at which the search for that rate begins, in events per second, and the factor to the next one.
const FIRST_RATE: f64 = 4000.0;
const NEXT_RATE: f64 = 1.3;
/// The cores are full when half of the events pass later than this: the rest of a queue is then carried on and on.
const FULL_MS: f64 = 5.0;
/// Time until a rate that has just been set is measured.
const SETTLING: Duration = Duration::from_millis(700);

/// A workload whose tail is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Streams at rates at which the cores are more and more busy.
    Streams,
    /// A few streams beside long bodies.
    Bodies,
}

/// The workloads by their names.
pub const KINDS: [(&str, Kind); 2] = [("tail", Kind::Streams), ("bodies", Kind::Bodies)];

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Effort {
    /// Streams at a time, of `tail`.
    pub streams: usize,
    /// Events per second of each phase of `tail`; none to find them.
    pub rates: Vec<f64>,
    pub rounds: usize,
    /// Length of a phase.
    pub time: Duration,
    /// Whether it only shows that it works.
    pub short: bool,
}

/// One rate, and whether bodies are sent beside the streams.
#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    pub name: String,
    pub events_per_second: f64,
    pub bodies: bool,
}

/// Quantiles of a latency in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Latency {
    pub count: u64,
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
}

/// One phase of one turn of one target.
#[derive(Debug, Clone, Serialize)]
pub struct Reading {
    pub workload: &'static str,
    pub phase: String,
    pub target: String,
    pub round: usize,
    pub events: u64,
    pub events_per_second: f64,
    /// Part of the time of all cores that target, workers and clients took.
    pub busy_percent: f64,
    /// The part of workers and clients alone.
    pub own_percent: f64,
    /// None for `direct`. The requests of the streams are a part of it.
    pub cpu_us_per_event: Option<f64>,
    pub ttft_ms: Latency,
    pub transit_ms: Latency,
    pub itl_ms: Latency,
    pub body_ms: Latency,
    /// By how much workers sent events later than at their time.
    pub late_ms: Latency,
    pub resident_mb: Option<f64>,
    pub failed: BTreeMap<String, u64>,
}

/// One workload over all targets.
pub struct Tail<'a> {
    pub kind: Kind,
    pub mini_lb: &'a str,
    pub effort: Effort,
}

impl Tail<'_> {
    /// All targets in turn, round by round. Those that fail are said and left out of that turn.
    pub async fn run(
        &self,
        targets: &[Target],
        say: &mut impl FnMut(String),
    ) -> Result<Vec<Reading>, String> {
        let mut targets: Vec<&Target> = targets.iter().collect();
        targets.retain(|target| match target.kind.legs() {
            Legs::Plain => true,
            _ => {
                say(format!(
                    "{} is left out: its requests name a room",
                    target.name
                ));
                false
            }
        });
        let phases = self.phases(&targets, say).await?;
        let mut readings = Vec::new();
        for round in 0..self.effort.rounds {
            for target in &targets {
                match self.turn(target, round, &phases).await {
                    Ok(turn) => readings.extend(turn),
                    Err(error) => say(format!("{}: {error}", target.name)),
                }
            }
            // The order changes, so that no target is always first or always follows the same one.
            if !targets.is_empty() {
                targets.rotate_left(1);
            }
        }
        Ok(readings)
    }

    async fn phases(
        &self,
        targets: &[&Target],
        say: &mut impl FnMut(String),
    ) -> Result<Vec<Phase>, String> {
        let phase = |name: String, events_per_second, bodies| Phase {
            name,
            events_per_second,
            bodies,
        };
        let rates = &self.effort.rates;
        Ok(match self.kind {
            Kind::Bodies => {
                let rate = self.streams() as f64 / 0.02;
                vec![
                    phase("without bodies".to_owned(), rate, false),
                    phase("with bodies".to_owned(), rate, true),
                ]
            }
            Kind::Streams if !rates.is_empty() => {
                let named = |rate: &f64| phase(format!("{rate} events/s"), *rate, false);
                rates.iter().map(named).collect()
            }
            Kind::Streams => {
                // The last one is mini-lb, or what is compared with it.
                let is_program = |target: &&&Target| target.kind.is_program();
                let target = targets
                    .iter()
                    .rfind(is_program)
                    .ok_or("no program is measured")?;
                let full = self.calibrated(target).await?;
                say(format!(
                    "{}: the cores are full at {full:.0} events/s",
                    target.name
                ));
                let named = |level: f64| phase(format!("{level} %"), full * level / 100.0, false);
                LEVELS.map(named).to_vec()
            }
        })
    }

    /// The highest rate that this target sustains: higher and higher ones are tried until one is too high, and some between
    /// the last two.
    async fn calibrated(&self, target: &Target) -> Result<f64, String> {
        let (steps, time) = match self.effort.short {
            true => (1, Duration::from_millis(100)),
            false => (14, Duration::from_secs(1)),
        };
        let turn = self.begin(target).await?;
        let (mut rate, mut sustained, mut too_high) = (FIRST_RATE, None, None);
        for _ in 0..steps {
            let phase = Phase {
                name: String::new(),
                events_per_second: rate,
                bodies: false,
            };
            let reading = turn.phase(self, &phase, target, 0, time).await?;
            match reading.transit_ms.p50 > FULL_MS {
                true => too_high = Some(rate),
                false => sustained = Some(rate),
            }
            rate = match (sustained, too_high) {
                (_, None) => rate * NEXT_RATE,
                (None, Some(high)) => high / 2.0,
                (Some(low), Some(high)) if high / low > 1.1 => f64::midpoint(low, high),
                (Some(_), Some(_)) => break,
            };
        }
        sustained.ok_or_else(|| format!("{} does not sustain {rate:.0} events/s", target.name))
    }

    async fn turn(
        &self,
        target: &Target,
        round: usize,
        phases: &[Phase],
    ) -> Result<Vec<Reading>, String> {
        let turn = self.begin(target).await?;
        let mut readings = Vec::new();
        for phase in phases {
            readings.push(
                turn.phase(self, phase, target, round, self.effort.time)
                    .await?,
            );
        }
        Ok(readings)
    }

    /// Starts the target and its load, and waits until all streams have begun.
    async fn begin(&self, target: &Target) -> Result<Turn, String> {
        let clock = Clock::start();
        let first = !self.effort.short && thread::may_come_first();
        let workers = Workers::start(&clock, first)?;
        let fleet = Fleet::of(workers.prefill.clone(), workers.decode.clone());
        let running = target.start(self.mini_lb, &fleet).await?;
        let streams = self.streams();
        let ramp = Duration::from_millis(if self.effort.short { 50 } else { 1500 });
        // Slow until all have begun.
        workers.set_gap(Duration::from_secs_f64(streams as f64 / 4000.0));
        let bodies = (self.kind == Kind::Bodies).then_some(Bodies {
            bytes: if self.effort.short { 2 << 20 } else { 16 << 20 },
            per_second: if self.effort.short { 20.0 } else { 3.0 },
        });
        let streams = Streams {
            addresses: running.addresses.clone(),
            streams,
            events: 64,
            ramp,
        };
        let (all, deadline) = (streams.streams as u64, Instant::now() + ramp * 10);
        let clients = Clients::start(&clock, streams, bodies, first)?;
        while clients.begun() < all && Instant::now() < deadline {
            sleep(Duration::from_millis(10)).await;
        }
        Ok(Turn {
            clients,
            running,
            workers,
        })
    }

    fn streams(&self) -> usize {
        match (self.kind, self.effort.short) {
            (_, true) => 8,
            (Kind::Streams, false) => self.effort.streams,
            (Kind::Bodies, false) => 100,
        }
    }

    fn name(&self) -> &'static str {
        let named = KINDS.iter().find(|(_, kind)| *kind == self.kind);
        named.map_or("", |(name, _)| name)
    }
}

/// A target with its load. Dropped from the clients on.
struct Turn {
    clients: Clients,
    running: Running,
    workers: Workers,
}

impl Turn {
    async fn phase(
        &self,
        tail: &Tail<'_>,
        phase: &Phase,
        target: &Target,
        round: usize,
        time: Duration,
    ) -> Result<Reading, String> {
        let gap = tail.streams() as f64 / phase.events_per_second;
        self.workers.set_gap(Duration::from_secs_f64(gap));
        self.clients.send_bodies(phase.bodies);
        // An event whose time was set before keeps that time.
        sleep(SETTLING.min(time)).await;
        drop((self.clients.take_seen(), self.workers.take_late()));
        let (begun, own, theirs) = (Instant::now(), own_cpu(), self.cpu());
        sleep(time).await;
        let theirs = theirs.and_then(|before| Some(self.cpu()?.since(before).as_secs_f64()));
        let own = own_cpu().since(own).as_secs_f64();
        let (seen, late) = (self.clients.take_seen(), self.workers.take_late());
        // Last: where the cores are full, the looks at all processes take a while too.
        let seconds = begun.elapsed().as_secs_f64();
        if seen.events == 0 {
            return Err(format!("no event came: {:?}", seen.failed));
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let percent = |cpu: f64| 100.0 * cpu / seconds / cores as f64;
        let memory = self
            .running
            .program
            .as_ref()
            .map(|program| program.memory());
        Ok(Reading {
            workload: tail.name(),
            phase: phase.name.clone(),
            target: target.name.clone(),
            round,
            events: seen.events,
            events_per_second: seen.events as f64 / seconds,
            busy_percent: percent(own + theirs.unwrap_or_default()),
            own_percent: percent(own),
            cpu_us_per_event: theirs.map(|cpu| cpu * 1e6 / seen.events as f64),
            ttft_ms: Latency::of(&seen.ttft),
            transit_ms: Latency::of(&seen.transit),
            itl_ms: Latency::of(&seen.itl),
            body_ms: Latency::of(&seen.bodies),
            late_ms: Latency::of(&late),
            resident_mb: memory.map(|memory| memory.resident as f64 / f64::from(1 << 20)),
            failed: seen.failed,
        })
    }

    fn cpu(&self) -> Option<Cpu> {
        self.running.program.as_ref().map(|program| program.cpu())
    }
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Latency {
        let milliseconds = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e6;
        Latency {
            count: histogram.len(),
            p50: milliseconds(0.5),
            p99: milliseconds(0.99),
            p999: milliseconds(0.999),
        }
    }
}

/// The CPU time of workers and clients, which are threads of this process.
fn own_cpu() -> Cpu {
    cpu_of(&[std::process::id()])
}
