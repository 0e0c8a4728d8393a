//! The benchmark `faults`: what a fault costs. `fault_cost` says how it is run and what its parts are.

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
