//! The benchmark `faults`: the cost of a fault. See `fault_cost` for its options and parts.

#![allow(unreachable_pub)] // modules are public to each other

mod fault_cost;
mod programs;

use std::process::ExitCode;

use clap::Parser;
use fault_cost::{Arguments, run};

fn main() -> ExitCode {
    let measured = run(Arguments::parse(), |text| println!("{text}"));
    programs::run_to_its_end("faults", measured)
}
