//! What mini-lb costs, beside plain proxies and other balancers, on this machine.
//!
//! ```text
//! cargo bench --bench end_to_end -- --short
//! cargo bench --bench end_to_end -- --workloads all --json cost.json --svg .
//! cargo bench --bench end_to_end -- --syscalls --workloads chat-1,chat-64,stream-256
//! cargo bench --bench end_to_end -- --instructions --targets nginx,mini-lb
//! ```
//!
//! One process sends the load and reads the others' CPU time from /proc; workers are simulated and do not think. For
//! each workload all targets run, and are asked in turn over some rounds, so that what else happens on the machine
//! hits all of them. Numbers are medians of the rounds with the lowest and the highest.
//!
//! | file | what lives there |
//! |---|---|
//! | `workloads` | what is asked |
//! | `targets` | who is asked, and its configuration |
//! | `fleet` | the simulated workers, and what they counted |
//! | `measure` | one target under one workload |
//! | `syscalls` | the same under strace |
//! | `instructions` | the same under callgrind |
//! | `report` | tables, JSON, charts |
//! | `programs` | what it shares with the other benchmarks: programs, and what they use |

mod fleet;
mod instructions;
mod measure;
mod report;
mod syscalls;
mod targets;
mod workloads;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::programs::balancer::TARGET_HELP;
use crate::programs::machine::text;
use crate::programs::{named_command, write};
use clap::Parser;
use fleet::Fleet;
use measure::{Effort, Reading, Run};
use report::Start;
use targets::{BUILT_IN, Kind, Running, Target};
use workloads::{Group, Span, Workload};

/// What is measured, and how long.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "end_to_end",
    about = "CPU time, latency and memory of mini-lb beside plain proxies and other balancers",
    after_help = TARGET_HELP
)]
pub struct Arguments {
    /// A few requests in one round: shows that everything works, and measures nothing.
    #[arg(long)]
    pub short: bool,
    /// Workloads by name, or `core` (the main table), `scale` (how cost grows), `all`.
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
    /// One more target.
    #[arg(long, value_name = "NAME=COMMAND", value_parser = named_command)]
    pub target: Vec<(String, String)>,
    /// How often each target has its turn.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Length of a turn.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Count system calls with strace instead.
    #[arg(long)]
    pub syscalls: bool,
    /// Requests under strace.
    #[arg(long, default_value_t = 2000)]
    pub syscall_requests: u64,
    /// Count instructions with valgrind's callgrind instead.
    #[arg(long, conflicts_with = "syscalls")]
    pub instructions: bool,
    /// Requests under callgrind.
    #[arg(long, default_value_t = 500)]
    pub instruction_requests: u64,
    /// Another binary of mini-lb than the one that was built with this.
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_mini-lb"))]
    pub mini_lb: String,
    /// Write everything that was read to this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write charts of how cost grows into this directory.
    #[arg(long, value_name = "DIRECTORY")]
    pub svg: Option<PathBuf>,
    /// Be the target `pingora`: where it listens, and its workers.
    #[arg(long, hide = true, value_delimiter = ',')]
    pub serve_plainly: Vec<SocketAddr>,
    /// What cargo says to every benchmark.
    #[arg(long, hide = true)]
    pub bench: bool,
}

/// Measures, and says each table when it is there.
pub async fn run(arguments: Arguments, mut say: impl FnMut(String)) -> Result<(), String> {
    let workloads = chosen_workloads(&arguments.workloads)?;
    let targets = chosen_targets(&arguments, &mut say)?;
    let names: Vec<String> = targets.iter().map(|target| target.name.clone()).collect();
    let machine = report::machine();
    say(text(&machine));
    let (mut readings, mut starts) = (Vec::new(), Vec::new());
    for workload in &workloads {
        let mut comparison = Comparison {
            arguments: &arguments,
            workload,
            fleet: Fleet::start(&arguments.mini_lb, workload.plan)?,
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
        // After each one: who ends it early keeps what there is.
        if let Some(path) = &arguments.json {
            let json = report::as_json(&workloads, &names, &readings, &starts);
            write(path, &format!("{json:#}\n"))?;
        }
    }
    if arguments.instructions {
        // Times of start say nothing under callgrind.
        return Ok(());
    }
    if !arguments.syscalls {
        say(report::ratios(&workloads, &names, &readings));
    }
    say(report::starts(&names, &starts));
    for (name, chart) in report::charts(&names, &readings) {
        if let Some(directory) = &arguments.svg {
            write(&directory.join(name), &chart.svg_file())?;
        }
    }
    Ok(())
}

/// One workload with its workers.
struct Comparison<'a> {
    arguments: &'a Arguments,
    workload: &'a Workload,
    fleet: Fleet,
    /// How often the workers were asked for their counters.
    asked: u64,
    starts: &'a mut Vec<Start>,
}

impl Comparison<'_> {
    /// Every target in turn, round by round. One that fails is out, and the others go on.
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
            // Nobody is always first, or always behind the same other.
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
                let time = Duration::from_millis(500);
                (1, Effort { time, requests: 64 })
            }
            false => {
                let time = Duration::from_secs_f64(self.arguments.seconds);
                let requests = u64::MAX;
                (self.arguments.rounds, Effort { time, requests })
            }
        }
    }

    /// The target, warm; nothing where each turn starts it anew.
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

    /// So much that every worker has been asked, by every thread. Not in the largest fleets, whose simulated workers
    /// would then have more connections among each other than a process may have.
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
                // While the others had their turns its idle connections have ended.
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

    /// System calls of every target.
    async fn trace(&mut self, targets: &[Target]) -> Result<String, String> {
        let requests = self.arguments.syscall_requests;
        let count = async |run: Run<'_>, running: &Running, asked: &mut u64| {
            run.system_calls(running, requests, asked).await
        };
        let (counts, notes) = self.counted(targets, count).await?;
        let table = syscalls::table(&self.workload.name, self.workload.unit, &counts);
        Ok(notes + &table)
    }

    /// Instructions of every target.
    async fn instructions(&mut self, targets: &[Target]) -> Result<String, String> {
        let requests = self.arguments.instruction_requests;
        let count = async |run: Run<'_>, running: &Running, asked: &mut u64| {
            run.instructions(running, requests, asked).await
        };
        let (counts, notes) = self.counted(targets, count).await?;
        let table = instructions::table(&self.workload.name, self.workload.unit, &counts);
        Ok(notes + &table)
    }

    /// What is counted of each target, with its name, and what is to be said of those that do not start.
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

fn chosen_workloads(names: &[String]) -> Result<Vec<Workload>, String> {
    let all = workloads::all();
    let known: Vec<_> = all.iter().map(|workload| workload.name.as_str()).collect();
    let groups = ["core", "scale", "all"];
    for name in names {
        if !groups.contains(&name.as_str()) && !known.contains(&name.as_str()) {
            return Err(format!(
                "no workload {name}; there are core, scale, all, {}",
                known.join(", ")
            ));
        }
    }
    let is_chosen = |workload: &Workload| {
        names.iter().any(|name| match name.as_str() {
            "all" => true,
            "core" => workload.group == Group::Core,
            "scale" => workload.group == Group::Scale,
            name => workload.name == name,
        })
    };
    Ok(all.into_iter().filter(is_chosen).collect())
}

/// The targets that can be started; the others are said.
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
        match target.is_there() {
            true => targets.push(target),
            false => say(format!("{name} is left out: it is not installed")),
        }
    }
    targets.extend(arguments.target.iter().map(|(name, command)| Target {
        name: name.clone(),
        kind: Kind::Command(command.clone()),
        under_callgrind: arguments.instructions,
    }));
    Ok(targets)
}
