//! Two balancers in one process: the same workers with different limits for different clients, and a graceful stop.
//!
//! ```text
//! cargo run --example mini_lb_custom_config
//! ```
//!
//! The workers are simulated and require an API key, which the balancers have and their clients do not. The program
//! sends a few requests, stops both balancers in the middle of a stream, and ends when the stream is complete.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use mini_lb::config::Policy;
use mini_lb::sim::{SimOptions, Worker};
use mini_lb::{Handle, MiniLbConfig, MiniLoadBalancer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

const WORKER_KEY: &str = "only-between-balancer-and-workers";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = SimOptions {
        api_key: Some(WORKER_KEY.into()),
        ..SimOptions::default()
    };
    let prefill = Worker::start_prefill(options.clone()).await?;
    let decode = Worker::start_decode(options).await?;
    let common = || {
        MiniLbConfig::new(
            "127.0.0.1".into(),
            0, // the system chooses
            vec![(prefill.url(), prefill.bootstrap_port())],
            vec![decode.url()],
            60,
        )
        .policy(Policy::Random)
        .worker_api_key(WORKER_KEY)
        // Only needed when decode cannot reach prefill's bootstrap server at the host of prefill's URL.
        .bootstrap_host(0, "127.0.0.1")
    };

    let small = common()
        .max_payload_size(1024)
        .request_timeout(Duration::from_secs(10))
        .connect_timeout(Duration::from_millis(500));
    let (small, small_address, small_ended) = start(small).await?;
    let (large, large_address, large_ended) = start(common()).await?;
    println!("small bodies  http://{small_address}");
    println!("large bodies  http://{large_address}");

    let long = format!(r#"{{"text":"{}"}}"#, "word ".repeat(400));
    println!(
        "small says    {}",
        status(&post(small_address, &long).await?)
    );
    println!(
        "large says    {}",
        status(&post(large_address, &long).await?)
    );

    // After `stop` the streams under way are completed, and only then `start` returns.
    let stream = r#"{"text":"Hello","stream":true,"sampling_params":{"max_new_tokens":40}}"#;
    let mut connection = send(large_address, stream).await?;
    let mut response = vec![connection.read_u8().await?];
    small.stop();
    large.stop();
    connection.read_to_end(&mut response).await?;
    let whole = String::from_utf8(response)?.contains("data: [DONE]");
    println!("stream        {}", if whole { "whole" } else { "cut" });
    small_ended.await??;
    large_ended.await??;
    println!("both ended");
    Ok(())
}

type Ended = JoinHandle<Result<(), mini_lb::StartError>>;

/// Starts a balancer on a task and waits until it listens.
async fn start(config: MiniLbConfig) -> Result<(Handle, SocketAddr, Ended), Box<dyn Error>> {
    let balancer = MiniLoadBalancer::new(config)?;
    let handle = balancer.handle();
    let ended = tokio::spawn(balancer.start());
    match handle.address().await {
        Some(address) => Ok((handle, address, ended)),
        // The balancer has ended without listening; its result has the reason.
        None => Err(ended
            .await?
            .err()
            .map_or("ended at once".into(), Into::into)),
    }
}

async fn post(address: SocketAddr, body: &str) -> Result<String, Box<dyn Error>> {
    let mut response = Vec::new();
    send(address, body)
        .await?
        .read_to_end(&mut response)
        .await?;
    Ok(String::from_utf8(response)?)
}

async fn send(address: SocketAddr, body: &str) -> Result<TcpStream, Box<dyn Error>> {
    let mut connection = TcpStream::connect(address).await?;
    let request = format!(
        "POST /generate HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    connection.write_all(request.as_bytes()).await?;
    Ok(connection)
}

/// The status line, and the error code if the response is one of the balancer's own errors.
fn status(response: &str) -> String {
    let code = response
        .lines()
        .find_map(|line| line.strip_prefix("x-mini-lb-error: "));
    let status = response.lines().next().unwrap_or_default();
    code.map_or(status.to_owned(), |code| format!("{status} ({code})"))
}
