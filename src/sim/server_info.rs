//! `/server_info` and `/model_info`, which balancers and benchmarks read.
//!
//! `server_args.json` has the resolved arguments of a small SGLang server on a CPU. Values that the options set replace
//! those. Source: transcripts `d_get_P_server_info`, `d_get_P_model_info`.

use serde_json::{Map, Value, json};

use super::{Role, SimOptions};

const SERVER_ARGS: &str = include_str!("server_args.json");

/// Tokens of KV memory per slot, as the small server reported them for 16 requests.
const TOKENS_PER_SLOT: usize = 512;

/// KV memory of a rank, in tokens.
pub(crate) fn token_capacity(options: &SimOptions) -> usize {
    let by_slots = options.kv_slots.saturating_mul(TOKENS_PER_SLOT);
    options.cache_tokens.unwrap_or(by_slots)
}

/// `/server_info`: what the worker was started as. After a switch of roles only its internal states have the new one.
/// Source: seen with SGLang 0.5.23.
pub(crate) fn server_info(
    started_as: Role,
    role: Role,
    options: &SimOptions,
    port: u16,
    bootstrap_port: u16,
) -> Value {
    let arguments = arguments(started_as, options, port, bootstrap_port);
    let mut internal = arguments.clone();
    internal.remove("custom_sigquit_handler");
    let graphs = json!({"prefill":0.0,"decode":0.0,"target_verify":0.0,"draft_prefill":0.0,"draft_decode":0.0,
        "draft_extend":0.0});
    let mut startup = json!({"load_weight":0.0,"kv_cache_allocation":0.0,"scheduler_e2e":0.0,"cuda_graph":graphs});
    let capacity = token_capacity(options);
    extend(
        &mut internal,
        json!({
        "disaggregation_mode":role.mode(),
        "disable_chunked_prefix_cache":true,
            "pp_max_micro_batch_size":options.max_running,
            "disaggregation_decode_retraction_backup":"cpu_tensor",
            "world_size":options.reported.tp_size * options.reported.pp_size,
        "startup_time":startup,
        "effective_max_running_requests_per_dp":options.max_running,
        "last_gen_throughput":0.0,
        "memory_usage":{"weight":0.0,"kvcache":0.004,"startup_available":19.0,"token_capacity":capacity,
            "token_capacity_swa":null,"graph":graphs},
        "decode_cuda_graph_bs":[],
        "decode_cuda_graph_memory_gb":0.0}),
    );
    if let Value::Object(startup) = &mut startup {
        startup.insert("tokenizer_e2e".to_owned(), json!(0.0));
    }
    let mut info = arguments;
    extend(
        &mut info,
        json!({
        "launch_command":format!("mini-lb sim --role {}", started_as.mode()),
        "status":"ready",
        "max_total_num_tokens":capacity,
        "max_req_input_len":options.context_length.saturating_sub(6),
        "startup_time":startup,
        "hicache_object_layout":{"enabled":false,"backend":null,"page_size":1,
            "hicache_object_layout":{"pools":[]},"reason":"Hierarchical cache is disabled"},
        "kv_events":null,
        "internal_states":vec![internal; options.ranks() as usize],
        "version":options.reported.version,
        "frontend":"python"}),
    );
    Value::Object(info)
}

/// `/model_info`.
pub(crate) fn model_info(role: Role, options: &SimOptions) -> Value {
    json!({
        "model_path":options.reported.model_path,"served_model_name":options.model,"tokenizer_path":"sim","is_generation":true,
        "preferred_sampling_params":null,"weight_version":"default","load_format":"auto",
        "reasoning_parser":null,"tool_call_parser":null,"disaggregation_mode":role.mode(),
        "has_image_understanding":false,"has_audio_understanding":false,"model_type":"llama",
        "architectures":["LlamaForCausalLM"],
        "embedding":{"family":"none","task":"none","execution":"none","attention":"none",
            "pooling":"model_defined","normalize":false,"postprocessor":"none",
            "tokenizer_special_tokens":"model_default","supports_dimensions":false,
            "supports_token_embeddings":false,"supports_multimodal":false,"requires_embedding_flag":false,
            "auto_enable_embedding":false,"bcg_eligibility":"disabled","safe_disable_kv_cache":false,
            "safe_disable_radix_cache":false,"safe_disable_chunked_prefill":false,"enabled":false,
            "matryoshka_dimensions":[],
            "bcg":{"prefill_backend":"disabled","enabled":false,"capture_token_budget":4096,
                "capture_batch_sizes":capture_sizes()},
            "cache":{"kv_cache_disabled":false,"radix_cache_disabled":role == Role::Decode,
                "chunked_prefill_disabled":false}}
    })
}

fn arguments(
    role: Role,
    options: &SimOptions,
    port: u16,
    bootstrap_port: u16,
) -> Map<String, Value> {
    // Cannot fail: the file is compiled in, and a test parses it.
    let mut arguments: Map<String, Value> = serde_json::from_str(SERVER_ARGS).unwrap_or_default();
    let secret = |key: &Option<String>| key.as_ref().map_or(Value::Null, |_| "<redacted>".into());
    let reported = &options.reported;
    extend(
        &mut arguments,
        json!({
        "model_path":reported.model_path,
        "page_size":reported.page_size,
        "kv_cache_dtype":reported.kv_cache_dtype,
        "disaggregation_transfer_backend":reported.transfer_backend,
        "tp_size":reported.tp_size,
        "pp_size":reported.pp_size,
        "served_model_name":options.model,
        "host":options.host.to_string(),
        "port":port,
        "api_key":secret(&options.api_key),
        "admin_api_key":secret(&options.admin_api_key),
        "context_length":options.context_length,
        "max_running_requests":options.max_running,
        "max_total_tokens":token_capacity(options),
        "random_seed":options.seed,
        "incremental_streaming_output":options.incremental_streaming,
        "disaggregation_mode":role.mode(),
        "disaggregation_bootstrap_port":bootstrap_port,
        "dp_size":options.dp_size,
        "attn_dp_size":options.attn_dp_size,
        "enable_dp_attention":options.attn_dp_size > 1,
        "enable_cache_report":options.cache_report,
        "disable_radix_cache":role == Role::Decode,
        "load_balance_method":if role == Role::Prefill { "follow_bootstrap_room" } else { "round_robin" }}),
    );
    if options.chunked_prefill_tokens > 0 {
        let size = options.chunked_prefill_tokens;
        arguments.insert("chunked_prefill_size".to_owned(), size.into());
    }
    arguments
}

fn extend(map: &mut Map<String, Value>, more: Value) {
    if let Value::Object(more) = more {
        map.extend(more);
    }
}

/// The batch sizes of the transcript, which grow in steps of 4, 16, 32, 64 and 256.
fn capture_sizes() -> Vec<u32> {
    let mut sizes = Vec::new();
    let mut size = 4;
    while size <= 4096 {
        sizes.push(size);
        size += match size {
            0..32 => 4,
            32..256 => 16,
            256..512 => 32,
            512..1024 => 64,
            _ => 256,
        };
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_that_benchmarks_assert_on_are_there() {
        let info = server_info(Role::Decode, Role::Decode, &SimOptions::default(), 1, 2);
        let state = &info["internal_states"][0];
        assert!(state["effective_max_running_requests_per_dp"].as_u64() > Some(0));
        assert!(state["memory_usage"]["token_capacity"].as_u64() > Some(0));
        assert!(
            info["tokenizer_path"].is_string()
                && state["dp_size"] == 1
                && state["attn_dp_size"] == 1
        );
        assert_eq!(info["disaggregation_bootstrap_port"], 2);
    }

    #[test]
    fn what_a_worker_is_to_report_stands_in_its_information() {
        let options = SimOptions {
            reported: super::super::Reported {
                version: "0.5.22".into(),
                model_path: "/m".into(),
                page_size: 16,
                kv_cache_dtype: "fp8_e4m3".into(),
                transfer_backend: "nixl".into(),
                tp_size: 4,
                pp_size: 2,
            },
            ..SimOptions::default()
        };
        let info = server_info(Role::Prefill, Role::Prefill, &options, 1, 2);
        for (key, value) in [
            ("version", json!("0.5.22")),
            ("model_path", json!("/m")),
            ("page_size", json!(16)),
            ("kv_cache_dtype", json!("fp8_e4m3")),
            ("disaggregation_transfer_backend", json!("nixl")),
            ("tp_size", json!(4)),
            ("pp_size", json!(2)),
        ] {
            assert_eq!(info[key], value, "{key}");
        }
        assert_eq!(model_info(Role::Prefill, &options)["model_path"], "/m");
    }
}
