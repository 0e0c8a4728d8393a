//! `mini-lb bench`: from its arguments to the report.

use super::{compare, report};

pub use super::args::{Backend, BenchArgs, Foreign};
pub use super::error::BenchError;
pub use super::trace::TraceArgs;

/// Measures every level and reports the numbers.
///
/// # Errors
/// When the server does not serve the first request, or a file cannot be written.
pub fn run_bench(args: BenchArgs) -> Result<(), BenchError> {
    // One thread: the rest of the machine is for the server.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| BenchError::Io("the runtime".to_owned(), error))?;
    let levels = runtime.block_on(compare::measure(&args))?;
    report::write(&args, &levels)
}
