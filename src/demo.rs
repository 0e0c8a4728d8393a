//! `mini-lb demo`: simulated workers with a balancer in front of them, to try mini-lb without a GPU. Every flag of the
//! balancer works as everywhere, its log included.

#[cfg(feature = "bench")]
mod load;

use std::error::Error;
use std::io::Write;

use mini_lb::cli::Demo;
use mini_lb::sim::cli::demo_workers;
use mini_lb::sim::{SimOptions, VllmOptions};
use mini_lb::{MiniLbConfig, MiniLoadBalancer};
use tokio::signal::unix::{SignalKind, signal};

use crate::{Form, logger};

/// Far above the time of any response of a simulated worker with default options.
const REQUEST_TIMEOUT_SECS: u64 = 60;

/// Starts the workers and the balancer, prints their addresses and three commands to paste, and runs until Ctrl-C, under a
/// load where one is asked for.
///
/// # Errors
/// When a flag is wrong, a port is in use, or stdout is closed.
pub(crate) async fn run(demo: Demo) -> Result<(), Box<dyn Error>> {
    let Demo {
        args,
        is_vllm,
        flags,
    } = demo;
    // Before anything is printed: a program that reads the output may send the signal at once.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let model = args.knobs.served_model_name.clone();
    let keys = (args.knobs.api_key.clone(), args.knobs.admin_api_key.clone());
    let counts = (args.prefills, args.decodes);
    let options = options(args.knobs.into(), is_vllm);
    let (prefills, decodes) = demo_workers(counts, args.worker_port, options).await?;
    let mut config = MiniLbConfig::new(
        "127.0.0.1".into(),
        args.port,
        prefills
            .iter()
            .map(|worker| (worker.url(), worker.bootstrap_port().filter(|_| !is_vllm)))
            .collect(),
        decodes.iter().map(|worker| worker.url()).collect(),
        REQUEST_TIMEOUT_SECS,
    );
    if let Some(key) = &keys.0 {
        config = config.api_key(key);
    }
    if let Some(key) = &keys.1 {
        config = config.admin_api_key(key).worker_admin_api_key(key);
    }
    // So that the dashboard shows all that it can. A flag has another value.
    let config = config.set("load_poll_interval_secs", 1).with_flags(flags);
    let resolved = config.clone().resolve()?;
    logger::start(&resolved.log_filter, Form::of(resolved.log_json), false);
    let balancer = MiniLoadBalancer::new(config)?;
    let handle = balancer.handle();
    let serving = tokio::spawn(balancer.start());
    let Some(address) = handle.address().await else {
        // The balancer has ended without listening; its result has the reason.
        return Ok(serving.await??);
    };
    let mut workers = String::new();
    for worker in &prefills {
        workers += &format!("  prefill  {}\n", worker.url());
    }
    for worker in &decodes {
        workers += &format!("  decode   {}\n", worker.url());
    }
    let pages = handle.admin_address().await.unwrap_or(address);
    let (address_text, pages) = (address.to_string(), pages.to_string());
    let welcome = welcome(is_vllm, &workers, &address_text, &pages, &model);
    std::io::stdout().write_all(welcome.as_bytes())?;
    #[cfg(feature = "bench")]
    let load = match args.load {
        0 => None,
        users => Some(load::start(address, users, &model, keys.0.as_deref())?),
    };
    interrupt.recv().await;
    #[cfg(feature = "bench")]
    if let Some(load) = load {
        load.stop();
    }
    handle.stop();
    for worker in prefills.into_iter().chain(decodes) {
        worker.stop().await;
    }
    Ok(serving.await??)
}

/// The options of the workers, which with vLLM serve all of the endpoints that the balancer knows.
fn options(common: SimOptions, is_vllm: bool) -> SimOptions {
    match is_vllm {
        false => common,
        true => common.of_vllm(VllmOptions {
            scale_out: true,
            ..VllmOptions::default()
        }),
    }
}

fn welcome(is_vllm: bool, workers: &str, address: &str, pages: &str, model: &str) -> String {
    let (engine, last) = match is_vllm {
        true => ("vLLM", prompt_logprobs_of_decode(address, model)),
        false => ("SGLang", prompt_logprobs_of_prefill(address)),
    };
    format!(
        r#"The demo is running: simulated {engine} workers, and mini-lb in front of them.

{workers}  mini-lb  http://{address}
  dashboard  http://{pages}/dashboard

Paste these into another terminal. The workers have no real model and respond with made-up words.

A chat completion:

  curl http://{address}/v1/chat/completions -H 'content-type: application/json' \
    -d '{{"model":"{model}","messages":[{{"role":"user","content":"Hello"}}]}}'

The same as a stream, token by token:

  curl -N http://{address}/v1/chat/completions -H 'content-type: application/json' \
    -d '{{"model":"{model}","messages":[{{"role":"user","content":"Hello"}}],"stream":true}}'

{last}

Press Ctrl-C to stop the demo.
"#
    )
}

fn prompt_logprobs_of_prefill(address: &str) -> String {
    format!(
        r#"Logprobs of the prompt, which mini-lb merges from prefill's response into decode's:

  curl http://{address}/generate -H 'content-type: application/json' \
    -d '{{"text":"Hello","return_logprob":true,"logprob_start_len":0,"sampling_params":{{"max_new_tokens":4}}}}'"#
    )
}

fn prompt_logprobs_of_decode(address: &str, model: &str) -> String {
    format!(
        r#"Logprobs of the prompt, which vLLM's decode computes itself:

  curl http://{address}/v1/completions -H 'content-type: application/json' \
    -d '{{"model":"{model}","prompt":"Hello","prompt_logprobs":1,"max_tokens":4}}'"#
    )
}
