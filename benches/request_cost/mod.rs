//! The cost of mini-lb beside plain proxies and other balancers, on this machine.
//!
//! ```text
//! cargo bench --bench end_to_end -- --short
//! cargo bench --bench end_to_end -- --workloads all --json cost.json --svg .
//! cargo bench --bench end_to_end -- --syscalls --workloads chat-1,chat-64,stream-256
//! cargo bench --bench end_to_end -- --instructions --targets nginx,mini-lb
//! cargo bench --bench end_to_end -- --workloads samples --targets mini-lb
//! cargo bench --bench end_to_end -- --workloads tail,bodies --targets direct,nginx,mini-lb
//! cargo bench --bench end_to_end -- --engine vllm --targets direct,nginx,mini-lb
//! ```
//!
//! One process sends the load and reads the targets' CPU time from /proc; workers are simulated and take no time. For
//! each workload all targets run, and take turns over some rounds, so that other load on the machine
//! affects all of them. Numbers are medians over the rounds, with the lowest and the highest.
//!
//! | file | what lives there |
//! |---|---|
//! | `workloads` | the requests |
//! | `targets` | the measured programs and their configuration |
//! | `fleet` | the simulated workers and their counters |
//! | `measure` | one target under one workload |
//! | `syscalls` | the same under strace |
//! | `instructions` | the same under callgrind |
//! | `tail` | what is added to the events of many streams |
//! | `report` | tables, JSON, charts |
//! | `programs` | shared with the other benchmarks: programs, CPU time, memory, the machine |

mod fleet;
mod instructions;
mod measure;
mod report;
mod syscalls;
mod tail;
mod targets;
mod workloads;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::programs::balancer::TARGET_HELP;
use crate::programs::machine::text;
use crate::programs::{engine, named_command, write};
use clap::Parser;
use fleet::Fleet;
use measure::{Effort, Reading, Run};
use mini_lb::pd::Engine;
use report::Start;
use targets::{BUILT_IN, Kind, Running, Target};
use workloads::{Group, Span, Workload};

/// The command line.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "end_to_end",
    about = "CPU time, latency and memory of mini-lb beside plain proxies and other balancers",
    after_help = TARGET_HELP
)]
pub struct Arguments {
    /// One round of a few requests, which shows that everything works and measures nothing.
    #[arg(long)]
    pub short: bool,
    /// The engine of the workers: sglang or vllm. Workloads that it has no endpoint for are left out.
    #[arg(long, value_name = "NAME", default_value = "sglang", value_parser = engine)]
    pub engine: Engine,
    /// Workloads by name, or `core` (the main table), `scale` (how cost grows), `all` (both), `samples` (several samples per
    /// prompt, for mini-lb alone); `tail` (what is added to the events of many streams at 50, 80 and 95 % of the rate
    /// at which the cores are full), `bodies` (the same of a few streams beside long bodies).
    #[arg(long, value_delimiter = ',', default_value = "core")]
    pub workloads: Vec<String>,
    /// Targets by name: direct, direct-legs, nginx, haproxy, pingora, nginx-mirror, mini-lb,
    /// mini-lb-quiet.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "direct,direct-legs,nginx,haproxy,pingora,nginx-mirror,mini-lb"
    )]
    pub targets: Vec<String>,
    /// Another target.
    #[arg(long, value_name = "NAME=COMMAND", value_parser = named_command)]
    pub target: Vec<(String, String)>,
    /// Number of turns of each target.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Length of a turn.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Streams at a time, of `tail`.
    #[arg(long, default_value_t = 2000)]
    pub tail_streams: usize,
    /// Events per second of `tail`, in place of those that are found with the last target.
    #[arg(long, value_delimiter = ',', value_name = "RATE")]
    pub tail_rates: Vec<f64>,
    /// Count system calls with strace instead of measuring times.
    #[arg(long)]
    pub syscalls: bool,
    /// Requests under strace.
    #[arg(long, default_value_t = 2000)]
    pub syscall_requests: u64,
    /// Count instructions with valgrind's callgrind instead of measuring times.
    #[arg(long, conflicts_with = "syscalls")]
    pub instructions: bool,
    /// Requests under callgrind.
    #[arg(long, default_value_t = 500)]
    pub instruction_requests: u64,
    /// The mini-lb binary, by default the one that was built with this benchmark.
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_mini-lb"))]
    pub mini_lb: String,
    /// Write all measurements to this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write charts of the growth of cost into this directory.
    #[arg(long, value_name = "DIRECTORY")]
    pub svg: Option<PathBuf>,
    /// Run as the target `pingora`: the address to listen on, and those of its workers.
    #[arg(long, hide = true, value_delimiter = ',')]
    pub serve_plainly: Vec<SocketAddr>,
    /// The flag that cargo passes to every benchmark.
    #[arg(long, hide = true)]
    pub bench: bool,
}

/// Runs the workloads, and reports each table when it is complete.
pub async fn run(arguments: Arguments, mut say: impl FnMut(String)) -> Result<(), String> {
    let workloads = chosen_workloads(&arguments)?;
    let targets = chosen_targets(&arguments, &mut say)?;
    let names: Vec<String> = targets.iter().map(|target| target.name.clone()).collect();
    let machine = report::machine();
    say(text(&machine));
    let (mut readings, mut starts, mut tails) = (Vec::new(), Vec::new(), Vec::new());
    let write_all = |readings: &[_], starts: &[_], tails: &[_]| match &arguments.json {
        Some(path) => {
            let json = report::as_json(&workloads, &names, readings, starts, tails);
            write(path, &format!("{json:#}\n"))
        }
        None => Ok(()),
    };
    for (name, kind) in tail::KINDS {
        if arguments.workloads.iter().any(|chosen| chosen == name) {
            tails.extend(arguments.tail(kind).run(&targets, &mut say).await?);
            say(tail::table(name, &names, &tails));
            write_all(&readings, &starts, &tails)?;
        }
    }
    for workload in &workloads {
        let mut comparison = Comparison {
            arguments: &arguments,
            workload,
            fleet: Fleet::start(&arguments.mini_lb, arguments.engine, workload.plan)?,
            asked: 0,
            starts: &mut starts,
        };
        if arguments.syscalls {
            say(comparison.trace(&targets).await?);
            continue;
        }
        if arguments.instructions {
            say(comparison.instructions(&targets).await?);
            continue;
        }
        readings.extend(comparison.rounds(&targets, &mut say).await);
        say(report::table(workload, &names, &readings));
        // After each one, so that an early end keeps the results so far.
        write_all(&readings, &starts, &tails)?;
    }
    if arguments.instructions {
        // Start times mean nothing under callgrind.
        return Ok(());
    }
    if !readings.is_empty() {
        say(report::ratios(&workloads, &names, &readings));
        say(report::samples(&names, &readings));
    }
    say(report::starts(&names, &starts));
    for (name, chart) in report::charts(&names, &readings) {
        if let Some(directory) = &arguments.svg {
            write(&directory.join(name), &chart.svg_file())?;
        }
    }
    Ok(())
}

impl Arguments {
    fn tail(&self, kind: tail::Kind) -> tail::Tail<'_> {
        let (rounds, time) = match self.short {
            true => (1, Duration::from_millis(300)),
            false => (self.rounds, Duration::from_secs_f64(self.seconds)),
        };
        tail::Tail {
            kind,
            mini_lb: &self.mini_lb,
            effort: tail::Effort {
                streams: self.tail_streams,
                rates: self.tail_rates.clone(),
                rounds,
                time,
                short: self.short,
            },
        }
    }
}

/// One workload with its workers.
struct Comparison<'a> {
    arguments: &'a Arguments,
    workload: &'a Workload,
    fleet: Fleet,
    /// How often the workers' counters were read.
    asked: u64,
    starts: &'a mut Vec<Start>,
}

impl Comparison<'_> {
    /// Every target in turn, round by round. A target that fails is left out of later rounds.
    async fn rounds(&mut self, targets: &[Target], say: &mut impl FnMut(String)) -> Vec<Reading> {
        let (rounds, effort) = self.effort();
        let mut taking_part = Vec::new();
        for target in targets {
            match self.enter(target).await {
                Ok(running) => taking_part.push((target, running)),
                Err(error) => say(error),
            }
        }
        let mut readings = Vec::new();
        for round in 0..rounds {
            // The order changes, so that no target is always first or always follows the same one.
            if round > 0 && !taking_part.is_empty() {
                taking_part.rotate_left(1);
            }
            let mut failed = Vec::new();
            for (target, running) in &taking_part {
                match self.turn(target, running.as_ref(), round, effort).await {
                    Ok(reading) => readings.push(reading),
                    Err(error) => {
                        failed.push(target.name.clone());
                        say(error);
                    }
                }
            }
            taking_part.retain(|(target, _)| !failed.contains(&target.name));
        }
        readings
    }

    fn effort(&self) -> (usize, Effort) {
        match self.arguments.short {
            true => {
                // The requests end the run, on a slow machine as well.
                let time = Duration::from_secs(10);
                (1, Effort { time, requests: 64 })
            }
            false => {
                let time = Duration::from_secs_f64(self.arguments.seconds);
                let requests = u64::MAX;
                (self.arguments.rounds, Effort { time, requests })
            }
        }
    }

    /// The target, warmed up; none when each turn starts it anew.
    async fn enter(&mut self, target: &Target) -> Result<Option<Running>, String> {
        if target.kind == Kind::NginxMirror && self.workload.has_early_head() {
            return Err(format!(
                "{}: {} is left out, it drops prefill's answer with its head, and prefill gives up",
                self.workload.name, target.name
            ));
        }
        if matches!(self.workload.span, Span::Middle { .. }) {
            return Ok(None);
        }
        let running = self.start(target).await?;
        self.warm_up(target, &running).await?;
        Ok(Some(running))
    }

    /// Enough requests for every thread to have used every worker. Fewer for the largest fleets, whose simulated
    /// workers would open more connections to each other than a process may have.
    async fn warm_up(&self, target: &Target, running: &Running) -> Result<(), String> {
        let requests = self.workload.concurrency + (16 * self.workload.plan.of_each).min(2000);
        self.run_of(target, 0)
            .warm_up(running, requests as u64)
            .await
    }

    async fn turn(
        &mut self,
        target: &Target,
        running: Option<&Running>,
        round: usize,
        effort: Effort,
    ) -> Result<Reading, String> {
        let started;
        let running = match running {
            Some(running) => {
                // Its idle connections have expired during the turns of the others.
                self.warm_up(target, running).await?;
                running
            }
            None => {
                started = self.start(target).await?;
                &started
            }
        };
        let mut asked = self.asked;
        let reading = self
            .run_of(target, round)
            .measure(running, effort, &mut asked)
            .await;
        self.asked = asked;
        reading
    }

    fn run_of<'b>(&'b self, target: &'b Target, round: usize) -> Run<'b> {
        Run {
            workload: self.workload,
            fleet: &self.fleet,
            target: &target.name,
            round,
        }
    }

    /// Counts the system calls of every target.
    async fn trace(&mut self, targets: &[Target]) -> Result<String, String> {
        let requests = self.arguments.syscall_requests;
        let count = async |run: Run<'_>, running: &Running, asked: &mut u64| {
            run.system_calls(running, requests, asked).await
        };
        let (counts, notes) = self.counted(targets, count).await?;
        let table = syscalls::table(&self.workload.name, self.workload.unit, &counts);
        Ok(notes + &table)
    }

    /// Counts the instructions of every target.
    async fn instructions(&mut self, targets: &[Target]) -> Result<String, String> {
        let requests = self.arguments.instruction_requests;
        let count = async |run: Run<'_>, running: &Running, asked: &mut u64| {
            run.instructions(running, requests, asked).await
        };
        let (counts, notes) = self.counted(targets, count).await?;
        let table = instructions::table(&self.workload.name, self.workload.unit, &counts);
        Ok(notes + &table)
    }

    /// The counts of each target with its name, and the errors of those that do not start.
    async fn counted<T>(
        &mut self,
        targets: &[Target],
        count: impl AsyncFn(Run<'_>, &Running, &mut u64) -> Result<Option<T>, String>,
    ) -> Result<(Vec<(String, T)>, String), String> {
        let (mut counts, mut notes) = (Vec::new(), String::new());
        for target in targets {
            let running = match self.enter(target).await {
                Ok(Some(running)) => running,
                Ok(None) => return Err("streams without an end cannot be traced".to_owned()),
                Err(error) => {
                    notes.push_str(&format!("{error}\n"));
                    continue;
                }
            };
            let mut asked = self.asked;
            let counted = count(self.run_of(target, 0), &running, &mut asked).await?;
            self.asked = asked;
            counts.extend(counted.map(|counted| (target.name.clone(), counted)));
        }
        Ok((counts, notes))
    }

    async fn start(&mut self, target: &Target) -> Result<Running, String> {
        let running = target.start(&self.arguments.mini_lb, &self.fleet).await?;
        if let Some(program) = &running.program {
            let binary = match target.kind {
                Kind::MiniLb | Kind::MiniLbQuiet => fs::metadata(&self.arguments.mini_lb).ok(),
                _ => None,
            };
            self.starts.push(Start {
                target: target.name.clone(),
                first_200_ms: running.started_in.as_secs_f64() * 1e3,
                idle_mb: program.memory().resident as f64 / f64::from(1 << 20),
                binary_mb: binary.map(|file| file.len() as f64 / 1e6),
            });
        }
        Ok(running)
    }
}

fn chosen_workloads(arguments: &Arguments) -> Result<Vec<Workload>, String> {
    let names = &arguments.workloads;
    let all = workloads::all(arguments.engine);
    let known: Vec<_> = all.iter().map(|workload| workload.name.as_str()).collect();
    let groups = ["core", "scale", "samples", "all"];
    for name in names {
        let is_tail = arguments.engine == Engine::Sglang
            && tail::KINDS.iter().any(|(known, _)| known == name);
        if !groups.contains(&name.as_str()) && !known.contains(&name.as_str()) && !is_tail {
            return Err(format!(
                "no workload {name}; there are core, scale, samples, all, tail, bodies, {}",
                known.join(", ")
            ));
        }
    }
    let is_chosen = |workload: &Workload| {
        names.iter().any(|name| match name.as_str() {
            // Most targets do not serve samples.
            "all" => workload.group != Group::Samples,
            "core" => workload.group == Group::Core,
            "scale" => workload.group == Group::Scale,
            "samples" => workload.group == Group::Samples,
            name => workload.name == name,
        })
    };
    Ok(all.into_iter().filter(is_chosen).collect())
}

/// The targets that can be started; the others are reported.
fn chosen_targets(
    arguments: &Arguments,
    say: &mut impl FnMut(String),
) -> Result<Vec<Target>, String> {
    let mut targets = Vec::new();
    for name in &arguments.targets {
        let Some((name, kind)) = BUILT_IN.into_iter().find(|(known, _)| known == name) else {
            let known = BUILT_IN.map(|(name, _)| name).join(", ");
            return Err(format!(
                "no target {name}; there are {known}, and --target NAME=COMMAND"
            ));
        };
        let target = Target {
            name: name.to_owned(),
            kind,
            under_callgrind: arguments.instructions,
        };
        if target.needs_rooms() && arguments.engine.prefill_is_first() {
            say(format!(
                "{name} is left out: its legs would be sent at once"
            ));
        } else if target.is_there() {
            targets.push(target);
        } else {
            say(format!("{name} is left out: it is not installed"));
        }
    }
    targets.extend(arguments.target.iter().map(|(name, command)| Target {
        name: name.clone(),
        kind: Kind::Command(command.clone()),
        under_callgrind: arguments.instructions,
    }));
    Ok(targets)
}
