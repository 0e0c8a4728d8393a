//! `mini-lb demo`: a cluster of simulated workers with a balancer in front, for the first minute.

use std::error::Error;
use std::io::Write;

use mini_lb::sim::cli::{DemoArgs, demo_workers};
use mini_lb::{MiniLbConfig, MiniLoadBalancer};
use tokio::signal::unix::{SignalKind, signal};

/// No single answer of a simulated worker takes as long.
const REQUEST_TIMEOUT_SECS: u64 = 60;

/// Starts the cluster, prints what to paste, and runs until Ctrl-C.
///
/// # Errors
/// A port is taken, or stdout is closed.
pub(crate) async fn run(args: DemoArgs) -> Result<(), Box<dyn Error>> {
    // Before anything is printed: whoever reads it may stop the demo at once.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let model = args.knobs.served_model_name.clone();
    let (prefills, decodes) = demo_workers(args.prefills, args.decodes, args.knobs.into()).await?;
    let balancer = MiniLoadBalancer::new(MiniLbConfig::new(
        "127.0.0.1".into(),
        args.port,
        prefills
            .iter()
            .map(|worker| (worker.url(), worker.bootstrap_port()))
            .collect(),
        decodes.iter().map(|worker| worker.url()).collect(),
        REQUEST_TIMEOUT_SECS,
    ))?;
    let handle = balancer.handle();
    let serving = tokio::spawn(balancer.start());
    let Some(address) = handle.address().await else {
        // It ended without an address: it says why.
        return Ok(serving.await??);
    };
    let mut stdout = std::io::stdout();
    for worker in &prefills {
        writeln!(stdout, "prefill  {}", worker.url())?;
    }
    for worker in &decodes {
        writeln!(stdout, "decode   {}", worker.url())?;
    }
    let to_paste = to_paste(&address.to_string(), &model);
    writeln!(stdout, "mini-lb  http://{address}\n{to_paste}")?;
    interrupt.recv().await;
    handle.stop();
    for worker in prefills.into_iter().chain(decodes) {
        worker.stop().await;
    }
    Ok(serving.await??)
}

fn to_paste(address: &str, model: &str) -> String {
    format!(
        r#"
Paste one of these into another terminal. Ctrl-C ends all of it.

  curl http://{address}/v1/chat/completions -H 'content-type: application/json' \
    -d '{{"model":"{model}","messages":[{{"role":"user","content":"Hello"}}]}}'

  curl -N http://{address}/v1/chat/completions -H 'content-type: application/json' \
    -d '{{"model":"{model}","messages":[{{"role":"user","content":"Hello"}}],"stream":true}}'

  curl http://{address}/generate -H 'content-type: application/json' \
    -d '{{"text":"Hello","return_logprob":true,"logprob_start_len":0,"sampling_params":{{"max_new_tokens":4}}}}'
"#
    )
}
