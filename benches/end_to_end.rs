//! The benchmark `end_to_end`: the cost of a request. See `request_cost` for its options and parts.

#![allow(unreachable_pub)] // modules are public to each other

mod programs;
mod request_cost;

use std::process::ExitCode;

use clap::Parser;
use request_cost::{Arguments, run};

/// The allocator of mini-lb, so that Pingora alone is compared with the same one.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let [listen, workers @ ..] = arguments.serve_plainly.as_slice() {
        support::plain_proxy::serve(*listen, workers.to_vec());
    }
    let measured = run(arguments, |text| println!("{text}"));
    programs::run_to_its_end("end_to_end", measured)
}
