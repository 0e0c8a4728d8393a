//! Runs mini-lb for minutes under a mixed load with faults and says whether anything was lost or left behind.
//!
//! ```text
//! cargo build --release --bins --examples
//! cargo run --release --example soak -- --minutes 10 --seed 1
//! ```
//!
//! Two prefill and two decode workers (simulated), which are killed and started again every few seconds; clients
//! that leave early or send what is no request; at the end upgrades of the running process. Exit code 1 when a
//! request was lost, hung or answered wrongly, when a room or a connection was left at a worker, when memory or
//! descriptors grew by more than a tenth, or when anything panicked.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use support::soak;

#[derive(Parser)]
#[command(about = "mini-lb under a mixed load with faults")]
struct Arguments {
    /// How long the load with faults lasts.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Of the choice of requests and faults.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Requests at the same time.
    #[arg(long, default_value_t = 32)]
    clients: usize,
    /// Upgrades of the running process at the end.
    #[arg(long, default_value_t = 20)]
    upgrades: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let example = std::env::current_exe().unwrap_or_default();
    let Some(binary) = example
        .ancestors()
        .nth(2)
        .map(|target| target.join("mini-lb"))
        .filter(|binary| binary.exists())
    else {
        eprintln!("no mini-lb beside the examples: cargo build --release --bins");
        return ExitCode::FAILURE;
    };
    let plan = soak::Plan {
        binary,
        load: Duration::from_secs_f64(arguments.minutes * 60.0),
        report: Duration::from_secs(10),
        kills: Duration::from_secs(7),
        clients: arguments.clients,
        upgrades: arguments.upgrades,
        seed: arguments.seed,
    };
    let begun = Instant::now();
    let say = move |line: String| println!("{:>5}s {line}", begun.elapsed().as_secs());
    let verdict = soak::run(plan, say).await;
    println!("{verdict}");
    match verdict.broken.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
