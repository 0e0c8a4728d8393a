//! A balancer in the program's own tokio runtime.
//!
//! ```text
//! cargo run --example mini_lb_basic
//! cargo run --example mini_lb_basic -- PREFILL_URL BOOTSTRAP_PORT DECODE_URL
//! ```
//!
//! Without arguments it starts two simulated workers. It listens on 127.0.0.1:8080 until Ctrl-C or SIGTERM, and then lets
//! live requests end; `--port` sets another port, and with 0 the system chooses one.

use std::error::Error;

use clap::Parser;
use mini_lb::sim::{SimOptions, Worker};
use mini_lb::{MiniLbConfig, MiniLoadBalancer};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
struct Arguments {
    /// Port to listen on; 0 lets the system choose.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// A prefill and a decode worker; simulated ones unless given.
    #[arg(num_args = 3, value_names = ["PREFILL_URL", "BOOTSTRAP_PORT", "DECODE_URL"])]
    workers: Vec<String>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { port, workers } = Arguments::parse();
    if let [prefill, bootstrap_port, decode] = &workers[..] {
        return balance(port, prefill, bootstrap_port.parse()?, decode).await;
    }
    let prefill = Worker::start_prefill(SimOptions::default()).await?;
    let decode = Worker::start_decode(SimOptions::default()).await?;
    let bootstrap_port = prefill.bootstrap_port().unwrap_or_default();
    balance(port, &prefill.url(), bootstrap_port, &decode.url()).await
}

async fn balance(
    port: u16,
    prefill: &str,
    bootstrap_port: u16,
    decode: &str,
) -> Result<(), Box<dyn Error>> {
    let config = MiniLbConfig::new(
        "127.0.0.1".into(),
        port,
        vec![(prefill.into(), Some(bootstrap_port))],
        vec![decode.into()],
        1800,
    );
    let balancer = MiniLoadBalancer::new(config)?;
    let handle = balancer.handle();
    // The balancer handles no signals: the program tells it when to stop.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        if let Some(address) = handle.address().await {
            println!("mini-lb  http://{address}");
        }
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        handle.stop();
    });
    balancer.start().await?;
    println!("stopped");
    Ok(())
}
