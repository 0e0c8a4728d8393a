//! The cost of a fault for the client and the other leg, with mini-lb and with other balancers, on this machine.
//!
//! ```text
//! cargo bench --bench faults
//! cargo bench --bench faults -- --engine vllm
//! cargo bench --bench faults -- --rounds 1000 --scenarios "prefill dies,client leaves a stream" --json faults.json
//! ```
//!
//! Workers and clients are sockets of this one process, so a fault, the client's error and the close of the other leg's
//! socket are read from the same clock. The workers respond with recorded responses of real ones. Each scenario
//! has its own workers and balancer, so that no scenario changes the next.
//!
//! | file | what lives there |
//! |---|---|
//! | `scenarios` | the faults, and what is measured of each |
//! | `sequential` | the same for an engine whose decode leg begins when prefill's has ended |
//! | `rounds` | one scenario with one balancer |
//! | `workers` | the workers, and how each of them behaves in a round |
//! | `recorded` | their responses |
//! | `client` | the client |
//! | `report` | the table, JSON |
//! | `support`, `programs` | the raw sockets of the tests; balancers as programs |

mod client;
mod recorded;
mod report;
mod rounds;
mod scenarios;
mod sequential;
mod workers;

use std::path::PathBuf;

use clap::Parser;

use crate::programs::balancer::{TARGET_HELP, with_defaults};
use crate::programs::machine::{machine, text};
use crate::programs::{engine, named_command, write};
use mini_lb::pd::Engine;
use report::Rounds;
use rounds::Target;
use scenarios::Scenario;

/// The command line.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "faults",
    about = "What a fault costs the client and the other leg, with mini-lb and with other balancers",
    after_help = TARGET_HELP
)]
pub struct Arguments {
    /// The engine that the workers play: sglang or vllm.
    #[arg(long, value_name = "NAME", default_value = "sglang", value_parser = engine)]
    pub engine: Engine,
    /// How often each fault happens. A scenario ends after three rounds in which the client hangs for 5 s.
    #[arg(long, default_value_t = 100)]
    pub rounds: usize,
    /// Scenarios by name or prefix of a name; all by default.
    #[arg(long, value_delimiter = ',')]
    pub scenarios: Vec<String>,
    /// Another balancer beside mini-lb.
    #[arg(long, value_name = "NAME=COMMAND", value_parser = named_command)]
    pub target: Vec<(String, String)>,
    /// The mini-lb binary, by default the one that was built with this benchmark.
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_mini-lb"))]
    pub mini_lb: String,
    /// Write all measurements to this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// The flag that cargo passes to every benchmark.
    #[arg(long, hide = true)]
    pub bench: bool,
}

/// Runs the scenarios, and reports failures and the table.
pub async fn run(arguments: Arguments, mut say: impl FnMut(String)) -> Result<(), String> {
    let scenarios = chosen(&arguments)?;
    let mut targets = vec![Target {
        name: "mini-lb".to_owned(),
        // Each round sends the same body, so that the second loss would be answered without a worker.
        command: format!(
            "{} --suspect-window-secs 0",
            with_defaults(arguments.engine)
        ),
    }];
    let others = arguments.target.iter().cloned();
    targets.extend(others.map(|(name, command)| Target { name, command }));
    say(text(&machine(&[])));
    let mut all = Vec::new();
    for scenario in &scenarios {
        for target in &targets {
            let rounds =
                rounds::rounds(scenario, target, &arguments.mini_lb, arguments.rounds).await;
            if let Err(error) = &rounds {
                say(format!("{}: {error}", scenario.name));
            }
            all.push(Rounds {
                scenario: scenario.name,
                target: target.name.clone(),
                rounds,
            });
        }
        // After each one, so that an early end keeps the results so far.
        if let Some(path) = &arguments.json {
            write(path, &format!("{:#}\n", report::as_json(&scenarios, &all)))?;
        }
    }
    let names: Vec<String> = targets.into_iter().map(|target| target.name).collect();
    say(report::table(&scenarios, &names, &all, arguments.rounds));
    Ok(())
}

fn chosen(arguments: &Arguments) -> Result<Vec<Scenario>, String> {
    let names = &arguments.scenarios;
    let all = match arguments.engine {
        Engine::Sglang => scenarios::all(),
        Engine::Vllm => sequential::all(),
    };
    let known = all.iter().map(|scenario| scenario.name);
    if let Some(unknown) = names
        .iter()
        .find(|name| !known.clone().any(|known| known.starts_with(name.as_str())))
    {
        let known = known.collect::<Vec<_>>().join(", ");
        return Err(format!("no scenario {unknown}; there are {known}"));
    }
    let is_chosen = |scenario: &Scenario| {
        names.is_empty()
            || names
                .iter()
                .any(|name| scenario.name.starts_with(name.as_str()))
    };
    Ok(all.into_iter().filter(is_chosen).collect())
}
