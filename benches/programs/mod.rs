//! Shared by the benchmarks: balancers and simulated workers as programs, their CPU time and memory, and the machine.
//!
//! | file | what lives there |
//! |---|---|
//! | `balancer` | a balancer in front of workers: its command line, its start |
//! | `process` | CPU time and memory of a tree of processes |
//! | `simulated` | simulated workers as a program |
//! | `recorded` | what real workers said about themselves |
//! | `machine` | the machine, and the versions of programs |

#![allow(dead_code, reason = "each benchmark uses its own part")]

pub mod balancer;
pub mod machine;
pub mod process;
pub mod recorded;
pub mod simulated;

use std::fs;
use std::future::Future;
use std::path::Path;
use std::process::ExitCode;

use mini_lb::pd::Engine;
use tokio::signal::unix::{SignalKind, signal};

/// Runs a benchmark on one thread. A signal ends it and the programs that it has started.
pub fn run_to_its_end(name: &str, benchmark: impl Future<Output = Result<(), String>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(async {
            let ended = async {
                let mut terminate = signal(SignalKind::terminate()).ok()?;
                let mut interrupt = signal(SignalKind::interrupt()).ok()?;
                tokio::select! { end = terminate.recv() => end, end = interrupt.recv() => end }
            };
            tokio::select! {
                // Dropping the benchmark ends its programs.
                result = benchmark => result,
                _ = ended => Err("interrupted".to_owned()),
            }
        }),
        Err(error) => Err(error.to_string()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `--target NAME=COMMAND`.
pub fn named_command(text: &str) -> Result<(String, String), String> {
    let (name, command) = text.split_once('=').ok_or("NAME=COMMAND is needed")?;
    Ok((name.to_owned(), command.to_owned()))
}

/// `--engine NAME`.
pub fn engine(text: &str) -> Result<Engine, String> {
    Engine::of_word(text).flatten().ok_or_else(|| {
        format!(
            "expected one of {}",
            Engine::ALL.map(Engine::name).join(", ")
        )
    })
}

/// Writes a file of results.
pub fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
