//! A soak test: runs mini-lb for minutes under a mixed load with faults and checks that nothing is lost or leaked.
//!
//! ```text
//! cargo build --release --bins --examples
//! cargo run --release --example soak -- --minutes 10 --seed 1
//! ```
//!
//! First a fleet changes under a load: workers are added and removed, restarted after a drain, killed, and switched to the
//! other role, and the configuration is reloaded; only requests that met a killed worker may fail. Then two prefill and two
//! decode workers are simulated, and stopped and started again every few seconds. Some clients leave early or send malformed
//! requests. At the end the running process is upgraded several times. The exit code is 1 when a request got no response or a
//! wrong one, when a room or a connection is left at a worker, when memory or descriptors grew by more than a tenth, or when
//! mini-lb panicked. `--changes 0` and `--minutes 0` leave out a part.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use support::soak;

#[derive(Parser)]
#[command(about = "Runs mini-lb under a mixed load with faults")]
struct Arguments {
    /// Duration of the load with faults in minutes.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Seed of the requests and faults.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Concurrent requests.
    #[arg(long, default_value_t = 32)]
    clients: usize,
    /// Upgrades of the running process after the load.
    #[arg(long, default_value_t = 20)]
    upgrades: usize,
    /// Workers that are added and removed under a load before all that; half as many reloads, a fifth as many restarts, and a
    /// tenth as many switches of a role.
    #[arg(long, default_value_t = 100)]
    changes: usize,
    /// Duration of that load in minutes.
    #[arg(long, default_value_t = 10.0)]
    changes_minutes: f64,
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
        eprintln!("there is no mini-lb beside the examples; run cargo build --release --bins");
        return ExitCode::FAILURE;
    };
    let begun = Instant::now();
    let say = move |line: String| println!("{:>5}s {line}", begun.elapsed().as_secs());
    let minutes = |minutes: f64| Duration::from_secs_f64(minutes * 60.0);
    let mut verdict = soak::Verdict::default();
    if arguments.changes > 0 {
        let changes = soak::changes::Changes {
            binary: binary.clone(),
            time: Some(minutes(arguments.changes_minutes)),
            additions: arguments.changes,
            restarts: arguments.changes / 5,
            kills: arguments.changes / 20,
            flips: arguments.changes / 10,
            reloads: arguments.changes / 2,
            clients: arguments.clients,
        };
        verdict = soak::changes::run(changes, say).await;
        println!("changes: {verdict}");
    }
    if arguments.minutes > 0.0 {
        let plan = soak::Plan {
            binary,
            load: minutes(arguments.minutes),
            report: Duration::from_secs(10),
            kills: Duration::from_secs(7),
            clients: arguments.clients,
            upgrades: arguments.upgrades,
            seed: arguments.seed,
        };
        let mut soaked = soak::run(plan, say).await;
        verdict.broken.append(&mut soaked.broken);
    }
    println!("{verdict}");
    match verdict.broken.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
