//! The command line of the simulator: `mini-lb sim prefill|decode|single`, and the workers of `mini-lb demo`.
//!
//! Every option of [`SimOptions`] is a flag, with the same default.

use std::io::{self, Write};
use std::net::IpAddr;
use std::time::Duration;

use clap::{Args, Subcommand};

pub use super::vllm::cli::VllmArgs;

use super::chaos::Script;
use super::{Connector, DisconnectNotice, Reported, Role, SimOptions, Worker};

/// Arguments of `mini-lb sim`.
#[derive(Debug, Clone, Args)]
pub struct SimArgs {
    /// The worker's role.
    #[command(subcommand)]
    pub role: SimRole,
}

/// The simulated worker's role.
#[derive(Debug, Clone, Subcommand)]
pub enum SimRole {
    /// A prefill worker: computes prompts and hands their KV cache to decode workers.
    Prefill(WorkerArgs),
    /// A decode worker: takes prompts from prefill workers and generates.
    Decode(WorkerArgs),
    /// An ordinary worker, without disaggregation.
    Single(WorkerArgs),
    /// A vLLM prefill worker: computes prompts, and holds their blocks for decode workers.
    VllmPrefill(VllmArgs),
    /// A vLLM decode worker: reads the blocks of prompts from prefill workers, and generates.
    VllmDecode(VllmArgs),
    /// An ordinary vLLM worker, without a KV connector.
    VllmSingle(VllmArgs),
}

/// The listeners and options of a simulated worker.
#[derive(Debug, Clone, Args)]
pub struct WorkerArgs {
    /// Address to listen on.
    #[arg(long, default_value_t = SimOptions::default().host)]
    pub host: IpAddr,
    /// Port of the API; with 0 the system chooses one.
    #[arg(long, default_value_t = SimOptions::default().port)]
    pub port: u16,
    /// Prefill: port of the registry; with 0 the system chooses one. Decode: the port for a null bootstrap_port, with 0
    /// 8998.
    #[arg(long, default_value_t = SimOptions::default().bootstrap_port)]
    pub disaggregation_bootstrap_port: u16,
    /// Number of workers in this process, for fleets of thousands; all but the first get ports from the system.
    #[arg(long, default_value_t = 1)]
    pub workers: usize,
    /// Options of the workers.
    #[command(flatten)]
    pub knobs: Knobs,
}

/// Arguments of `mini-lb demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Port of the balancer on 127.0.0.1; with 0 the system chooses one.
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// Port of the first worker: prefill workers, decode workers and then the bootstrap servers have consecutive ports.
    /// Without it the system chooses all of them.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub worker_port: Option<u16>,
    /// Number of prefill workers.
    #[arg(long, default_value_t = 2)]
    pub prefills: usize,
    /// Number of decode workers.
    #[arg(long, default_value_t = 2)]
    pub decodes: usize,
    /// Requests that are always on their way, so that there is something to see; 0 for none.
    #[cfg(feature = "bench")]
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub load: usize,
    /// Options of all workers.
    #[command(flatten)]
    pub knobs: Knobs,
}

/// The options of a simulated worker besides its listeners.
#[derive(Debug, Clone, Args)]
pub struct Knobs {
    /// Seed of the toy model; give the same to all workers, as it stands for the weights.
    #[arg(long, default_value_t = SimOptions::default().seed)]
    pub seed: u64,
    /// Time of prefill per prompt token, in microseconds.
    #[arg(long, default_value_t = micros(SimOptions::default().time_per_prompt_token))]
    pub prompt_token_us: u64,
    /// Time of prefill per prompt token and token before it, in nanoseconds: the part of attention.
    #[arg(long, default_value_t = SimOptions::default().attention_ns, value_parser = zero_or_more)]
    pub attention_ns: f64,
    /// Time of one KV transfer, in microseconds.
    #[arg(long, default_value_t = micros(SimOptions::default().transfer_time))]
    pub transfer_us: u64,
    /// Time of decode per output token, in microseconds.
    #[arg(long, default_value_t = micros(SimOptions::default().time_per_output_token))]
    pub output_token_us: u64,
    /// Prompts that are computed concurrently.
    #[arg(long, default_value_t = SimOptions::default().prompts_at_once)]
    pub prompts_at_once: usize,
    /// Upper bound of a forward pass, in prompt tokens. Above 0 there is one pass at a time, first come, first served,
    /// and --prompts-at-once has no effect.
    #[arg(long, default_value_t = SimOptions::default().chunked_prefill_tokens)]
    pub chunked_prefill_tokens: usize,
    /// Compute a prompt that begins as an earlier one from there on, in whole pages of --page-size.
    #[arg(long)]
    pub prefix_cache: bool,
    /// Tokens that fit into the memory of a rank, and so into its prefix cache [default: 512 per --kv-slots].
    #[arg(long, value_name = "N")]
    pub cache_tokens: Option<usize>,
    /// Replicas, each with its own queue and prefix cache; the room chooses one on prefill, and SGLang's requests name it.
    #[arg(long, default_value_t = SimOptions::default().dp_size, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub dp_size: u32,
    /// Groups of attention, each with its own queue and prefix cache; the room chooses one on prefill.
    #[arg(long, default_value_t = SimOptions::default().attn_dp_size, value_parser = clap::value_parser!(u32).range(1..=1024),
        conflicts_with = "dp_size")]
    pub attn_dp_size: u32,
    /// Report cached tokens in `usage` too.
    #[arg(long)]
    pub enable_cache_report: bool,
    /// Let `POST /pd_role_switch` switch the role while nothing runs.
    #[arg(long)]
    pub enable_pd_role_switch: bool,
    /// Requests whose KV cache fits into decode's memory.
    #[arg(long, default_value_t = SimOptions::default().kv_slots)]
    pub kv_slots: usize,
    /// Requests that generate concurrently.
    #[arg(long, default_value_t = SimOptions::default().max_running)]
    pub max_running_requests: usize,
    /// Name of the served model.
    #[arg(long, default_value_t = SimOptions::default().model)]
    pub served_model_name: String,
    /// API key of the ordinary endpoints.
    #[arg(long)]
    pub api_key: Option<String>,
    /// API key of the admin endpoints.
    #[arg(long)]
    pub admin_api_key: Option<String>,
    /// Time after which an idle connection is closed, in milliseconds.
    #[arg(long, default_value_t = millis(SimOptions::default().keep_alive))]
    pub keep_alive_ms: u64,
    /// Factor on the engine's own timeouts, such as 300 s for the rendezvous.
    #[arg(long, default_value_t = SimOptions::default().timers_scale, value_parser = positive)]
    pub timers_scale: f64,
    /// Time of /health, in milliseconds; about 1000 in SGLang.
    #[arg(long, default_value_t = millis(SimOptions::default().health_time))]
    pub health_ms: u64,
    /// Send deltas and not cumulative events on /generate.
    #[arg(long)]
    pub incremental_streaming_output: bool,
    /// Upper bound of prompt and response together, in tokens.
    #[arg(long, default_value_t = SimOptions::default().context_length)]
    pub context_length: usize,
    /// When a worker notices that a client left.
    #[arg(long, value_enum, default_value_t = SimOptions::default().disconnect)]
    pub disconnect: DisconnectNotice,
    /// Number of journal entries kept; with 0 only counters are kept.
    #[arg(long, default_value_t = SimOptions::default().journal_entries)]
    pub journal_entries: usize,
    /// Version of SGLang that the worker says it has.
    #[arg(long, default_value_t = Reported::default().version)]
    pub sglang_version: String,
    /// Model path that the worker says it has.
    #[arg(long, default_value_t = Reported::default().model_path)]
    pub model_path: String,
    /// Page size of the KV cache, in tokens.
    #[arg(long, default_value_t = Reported::default().page_size)]
    pub page_size: u32,
    /// Type of the KV cache that the worker says it has.
    #[arg(long, default_value_t = Reported::default().kv_cache_dtype)]
    pub kv_cache_dtype: String,
    /// Transfer backend that the worker says it has.
    #[arg(long, default_value_t = Reported::default().transfer_backend)]
    pub disaggregation_transfer_backend: String,
    /// Tensor parallel size that the worker says it has.
    #[arg(long, default_value_t = Reported::default().tp_size)]
    pub tp_size: u32,
    /// Pipeline parallel size that the worker says it has.
    #[arg(long, default_value_t = Reported::default().pp_size)]
    pub pp_size: u32,
    /// Script of faults; conf/sim/chaos.yaml is an example with every key.
    #[arg(long, value_name = "FILE", value_parser = |path: &str| Script::load(path))]
    pub chaos: Option<Script>,
}

impl From<WorkerArgs> for SimOptions {
    fn from(args: WorkerArgs) -> SimOptions {
        SimOptions {
            host: args.host,
            port: args.port,
            bootstrap_port: args.disaggregation_bootstrap_port,
            ..args.knobs.into()
        }
    }
}

impl From<Knobs> for SimOptions {
    fn from(knobs: Knobs) -> SimOptions {
        SimOptions {
            seed: knobs.seed,
            time_per_prompt_token: Duration::from_micros(knobs.prompt_token_us),
            attention_ns: knobs.attention_ns,
            transfer_time: Duration::from_micros(knobs.transfer_us),
            time_per_output_token: Duration::from_micros(knobs.output_token_us),
            prompts_at_once: knobs.prompts_at_once,
            chunked_prefill_tokens: knobs.chunked_prefill_tokens,
            prefix_cache: knobs.prefix_cache,
            cache_tokens: knobs.cache_tokens,
            dp_size: knobs.dp_size,
            attn_dp_size: knobs.attn_dp_size,
            cache_report: knobs.enable_cache_report,
            role_switch: knobs.enable_pd_role_switch,
            kv_slots: knobs.kv_slots,
            max_running: knobs.max_running_requests,
            model: knobs.served_model_name,
            api_key: knobs.api_key,
            admin_api_key: knobs.admin_api_key,
            keep_alive: Duration::from_millis(knobs.keep_alive_ms),
            timers_scale: knobs.timers_scale,
            health_time: Duration::from_millis(knobs.health_ms),
            incremental_streaming: knobs.incremental_streaming_output,
            context_length: knobs.context_length,
            disconnect: knobs.disconnect,
            journal_entries: knobs.journal_entries,
            reported: Reported {
                version: knobs.sglang_version,
                model_path: knobs.model_path,
                page_size: knobs.page_size,
                kv_cache_dtype: knobs.kv_cache_dtype,
                transfer_backend: knobs.disaggregation_transfer_backend,
                tp_size: knobs.tp_size,
                pp_size: knobs.pp_size,
            },
            chaos: knobs.chaos.unwrap_or_default(),
            ..SimOptions::default()
        }
    }
}

/// Runs simulated workers until Ctrl-C. Prints a line to stdout for each worker once it serves.
///
/// # Errors
/// When a port cannot be bound, or stdout is closed.
pub async fn run_sim(args: SimArgs) -> io::Result<()> {
    let (role, count, mut options): (Role, usize, SimOptions) = match args.role {
        SimRole::Prefill(args) => (Role::Prefill, args.workers, args.into()),
        SimRole::Decode(args) => (Role::Decode, args.workers, args.into()),
        SimRole::Single(args) => (Role::Ordinary, args.workers, args.into()),
        SimRole::VllmPrefill(args) => (Role::Prefill, args.worker.workers, args.into()),
        SimRole::VllmDecode(args) => (Role::Decode, args.worker.workers, args.into()),
        SimRole::VllmSingle(args) => (Role::Ordinary, args.worker.workers, args.into()),
    };
    let mut workers = Vec::with_capacity(count);
    for _ in 0..count {
        let worker = Worker::start(role, options.clone()).await?;
        writeln!(io::stdout(), "{}", ready_line(&worker))?;
        workers.push(worker);
        options.port = 0;
        if role == Role::Prefill || options.vllm.is_some() {
            // On SGLang's decode it is the port of prefill's registry, and stays.
            options.bootstrap_port = 0;
        }
    }
    tokio::signal::ctrl_c().await?;
    for worker in workers {
        worker.stop().await;
    }
    Ok(())
}

/// Starts the prefill and decode workers of a demo, with consecutive ports from `first_port`, or on ports that the system
/// chooses.
///
/// # Errors
/// When a port cannot be bound, or there are not enough ports from the first one. The port is named.
pub async fn demo_workers(
    (prefills, decodes): (usize, usize),
    first_port: Option<u16>,
    options: SimOptions,
) -> io::Result<(Vec<Worker>, Vec<Worker>)> {
    let port = |index: usize| match first_port {
        None => Ok(0),
        Some(first) => u16::try_from(usize::from(first) + index).map_err(|_| {
            let why = format!("there are not enough ports from --worker-port {first}");
            io::Error::new(io::ErrorKind::InvalidInput, why)
        }),
    };
    let mut started = Vec::with_capacity(prefills + decodes);
    for index in 0..prefills + decodes {
        let mut options = SimOptions {
            port: port(index)?,
            ..options.clone()
        };
        let role = match index < prefills {
            true => Role::Prefill,
            false => Role::Decode,
        };
        if role == Role::Prefill {
            options.bootstrap_port = port(prefills + decodes + index)?;
        }
        let address = options.port;
        let worker = Worker::start(role, options).await.map_err(|error| {
            let why = format!("a worker cannot start on port {address}: {error}");
            io::Error::new(error.kind(), why)
        });
        started.push(worker?);
    }
    let decodes = started.split_off(prefills);
    Ok((started, decodes))
}

/// `prefill http://127.0.0.1:30000 bootstrap 8998`, or of vLLM `vllm-prefill http://127.0.0.1:8000 side-channel 5600`.
fn ready_line(worker: &Worker) -> String {
    let name = match worker.role() {
        Role::Prefill => "prefill",
        Role::Decode => "decode",
        Role::Ordinary => "single",
    };
    let (engine, port) = match worker.connector() {
        Some(Connector::Nixl) => ("vllm-", "side-channel"),
        Some(Connector::Mooncake) => ("vllm-", "bootstrap"),
        None => ("", "bootstrap"),
    };
    let port = worker
        .bootstrap_port()
        .map(|number| format!(" {port} {number}"))
        .unwrap_or_default();
    format!("{engine}{name} {}{port}", worker.url())
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err("expected a number above 0".to_owned()),
    }
}

fn zero_or_more(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number >= 0.0 && number.is_finite() => Ok(number),
        _ => Err("expected a number of at least 0".to_owned()),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        sim: SimArgs,
    }

    #[test]
    fn without_flags_the_options_are_the_defaults() {
        let SimRole::Decode(knobs) = Line::try_parse_from(["sim", "decode"]).unwrap().sim.role
        else {
            unreachable!("another role was parsed")
        };
        let options = SimOptions::from(knobs);
        assert_eq!(
            format!("{options:?}"),
            format!("{:?}", SimOptions::default())
        );
    }

    #[test]
    fn without_flags_a_vllm_worker_has_the_defaults_of_vllm() {
        let line = Line::try_parse_from(["sim", "vllm-decode"]).unwrap();
        let SimRole::VllmDecode(args) = line.sim.role else {
            unreachable!("another role was parsed")
        };
        let options = SimOptions::from(args);
        assert_eq!(format!("{options:?}"), format!("{:?}", SimOptions::vllm()));
    }

    #[test]
    fn a_script_is_parsed_with_the_arguments_and_a_bad_one_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("faults.yaml");
        std::fs::write(&path, "rules:\n- do: silence\n").unwrap();
        let line = ["sim", "prefill", "--chaos", path.to_str().unwrap()];
        let SimRole::Prefill(args) = Line::try_parse_from(line).unwrap().sim.role else {
            unreachable!("another role was parsed")
        };
        assert_eq!(SimOptions::from(args).chaos.rules.len(), 1);

        std::fs::write(&path, "rules:\n- do: explode\n").unwrap();
        let refusal = Line::try_parse_from(line).err().unwrap().to_string();
        assert!(refusal.contains("faults.yaml: rules[0].do"), "{refusal}");
    }

    #[test]
    fn a_timer_scale_of_zero_is_refused() {
        assert!(Line::try_parse_from(["sim", "single", "--timers-scale", "0"]).is_err());
    }
}
