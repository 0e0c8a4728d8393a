//! The benchmark `routing`: the time to first token that comes of a policy. See `trace_replay` for its options and parts.

#![allow(unreachable_pub)] // modules are public to each other

mod programs;
mod trace_replay;

use std::process::ExitCode;

use clap::Parser;
use trace_replay::{Arguments, run};

fn main() -> ExitCode {
    let measured = run(Arguments::parse(), |text| println!("{text}"));
    programs::run_to_its_end("routing", measured)
}
