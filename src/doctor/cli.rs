//! The flags of `mini-lb doctor` besides those of the load balancer.

use std::time::Duration;

use clap::{Args, ValueEnum};

/// Arguments of `mini-lb doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Pairs that a short generation is sent through.
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "PAIRS",
        help_heading = "Doctor"
    )]
    pub pairs: Pairs,
    /// Deadline of each check, in seconds.
    #[arg(
        long,
        default_value = "20",
        value_name = "SECONDS",
        value_parser = seconds,
        help_heading = "Doctor"
    )]
    pub timeout: Duration,
    /// Print one JSON document instead of lines.
    #[arg(long, help_heading = "Doctor")]
    pub json: bool,
}

/// The pairs that a generation is sent through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Pairs {
    /// Every prefill worker with every decode worker.
    All,
    /// As few pairs as have every worker in one.
    #[default]
    EachWorker,
    /// None: nothing is generated.
    None,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| *seconds <= 3600.0);
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "expected a number of seconds above 0, at most 3600".to_owned())
}
