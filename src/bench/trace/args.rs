//! The arguments of `mini-lb bench` about a trace and about an SLO.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{Cut, Trace, TraceError, Words};
use crate::bench::tally::Slo;

/// Arguments about a trace, and about the bounds of a good request.
#[derive(Debug, Clone, Args)]
pub struct TraceArgs {
    /// Replay the requests of this trace at their times: Mooncake's JSON lines, or Azure's CSV. Responses are streamed,
    /// prompts with equal blocks begin with equal tokens, and --requests bounds their number.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["direct", "rate", "input_bytes", "input_tokens", "output_tokens", "range_ratio"])]
    pub trace: Option<PathBuf>,
    /// Factor on the speed of the trace.
    #[arg(long, value_name = "F", value_parser = above_zero, default_value_t = 1.0, requires = "trace")]
    pub speedup: f64,
    /// Requests at the beginning of the trace that are left out.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "trace")]
    pub skip: usize,
    /// Factor on the lengths of the trace's prompts and responses, for small machines.
    #[arg(long, value_name = "F", value_parser = above_zero, default_value_t = 1.0, requires = "trace")]
    pub token_scale: f64,
    /// Prompts of the trace as token ids, which have its length on every server, or as text, for balancers that compare
    /// nothing else; chat has only text.
    #[arg(long, value_enum, default_value_t = Words::Ids, requires = "trace")]
    pub trace_prompts: Words,
    /// Longest time to first token of a good request, in milliseconds.
    #[arg(long, value_name = "MS", value_parser = above_zero)]
    pub slo_ttft_ms: Option<f64>,
    /// Longest mean time between two events of a good request's stream, in milliseconds.
    #[arg(long, value_name = "MS", value_parser = above_zero)]
    pub slo_itl_ms: Option<f64>,
}

impl TraceArgs {
    /// The trace, if there is one.
    pub(crate) fn load(&self, requests: Option<u64>) -> Result<Option<Trace>, TraceError> {
        let cut = Cut {
            skip: self.skip,
            requests: requests.map_or(usize::MAX, |requests| {
                usize::try_from(requests).unwrap_or(usize::MAX)
            }),
            speedup: self.speedup,
            token_scale: self.token_scale,
        };
        self.trace
            .as_ref()
            .map(|path| Trace::load(path, cut))
            .transpose()
    }

    pub(crate) fn slo(&self) -> Slo {
        let time = |millis: f64| Duration::try_from_secs_f64(millis / 1e3).ok();
        Slo {
            ttft: self.slo_ttft_ms.and_then(time),
            itl: self.slo_itl_ms.and_then(time),
        }
    }
}

fn above_zero(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err("expected a number above 0".to_owned()),
    }
}
