//! The arguments of `mini-lb sim vllm-prefill`, `vllm-decode` and `vllm-single`.

use std::time::Duration;

use clap::Args;

use super::{Connector, FailedLoad, VllmOptions};
use crate::sim::cli::{WorkerArgs, millis};
use crate::sim::{Reported, SimOptions};

/// The listeners and options of a simulated vLLM worker.
#[derive(Debug, Clone, Args)]
pub struct VllmArgs {
    /// What all simulated workers have. Of the flags that name SGLang's own things none has an effect.
    #[command(flatten)]
    pub worker: WorkerArgs,
    /// What only vLLM's have.
    #[command(flatten)]
    pub vllm: VllmKnobs,
}

/// The options of a simulated vLLM worker besides those of all workers.
#[derive(Debug, Clone, Args)]
pub struct VllmKnobs {
    /// How blocks get to another worker.
    #[arg(long, value_enum, default_value_t = VllmOptions::default().connector)]
    pub kv_connector: Connector,
    /// Port of the side channel, with Mooncake of the bootstrap server; with 0 the system chooses one.
    #[arg(long, default_value_t = 0)]
    pub side_channel_port: u16,
    /// Tokens of a block.
    #[arg(long, default_value_t = SimOptions::vllm().reported.page_size, value_parser = clap::value_parser!(u32).range(1..))]
    pub block_size: u32,
    /// How long blocks are held that no decode worker has read, in milliseconds.
    #[arg(long, default_value_t = millis(VllmOptions::default().lease))]
    pub kv_lease_ms: u64,
    /// How long decode tries to reach a side channel, in milliseconds.
    #[arg(long, default_value_t = millis(VllmOptions::default().handshake_timeout))]
    pub handshake_timeout_ms: u64,
    /// What decode does when it cannot read the blocks.
    #[arg(long, value_enum, default_value_t = VllmOptions::default().failed_load)]
    pub kv_load_failure_policy: FailedLoad,
    /// Report cached tokens in `usage`.
    #[arg(long)]
    pub enable_prompt_tokens_details: bool,
    /// Serve /inference/v1/generate and /inference/v1/abort_requests.
    #[arg(long)]
    pub enable_scale_out: bool,
    /// Serve the endpoints of VLLM_SERVER_DEV_MODE=1.
    #[arg(long)]
    pub server_dev_mode: bool,
    /// Version of vLLM that the worker says it has.
    #[arg(long, default_value_t = SimOptions::vllm().reported.version)]
    pub vllm_version: String,
}

impl From<VllmArgs> for SimOptions {
    fn from(args: VllmArgs) -> SimOptions {
        let knobs = args.vllm;
        let options = SimOptions::from(args.worker).of_vllm(VllmOptions {
            connector: knobs.kv_connector,
            lease: Duration::from_millis(knobs.kv_lease_ms),
            handshake_timeout: Duration::from_millis(knobs.handshake_timeout_ms),
            failed_load: knobs.kv_load_failure_policy,
            scale_out: knobs.enable_scale_out,
            dev_mode: knobs.server_dev_mode,
        });
        SimOptions {
            bootstrap_port: knobs.side_channel_port,
            cache_report: options.cache_report || knobs.enable_prompt_tokens_details,
            reported: Reported {
                version: knobs.vllm_version,
                page_size: knobs.block_size,
                ..options.reported
            },
            ..options
        }
    }
}
