//! Two balancers in one process: other limits for other clients of the same workers, and a graceful end.
//!
//! ```text
//! cargo run --example mini_lb_custom_config
//! ```
//!
//! The workers are simulated and want an API key, which the balancers know and their clients do not. The
//! program sends a few requests, stops a balancer in the middle of a stream, and ends.

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
        // Where decode finds prefill's bootstrap server, when that is not the host of prefill's URL.
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

    // Streams that have begun are finished after `stop`, and only then `start` returns.
    let stream = r#"{"text":"Hello","stream":true,"sampling_params":{"max_new_tokens":40}}"#;
    let mut connection = send(large_address, stream).await?;
    let mut answer = vec![connection.read_u8().await?];
    small.stop();
    large.stop();
    connection.read_to_end(&mut answer).await?;
    let whole = String::from_utf8(answer)?.contains("data: [DONE]");
    println!("stream        {}", if whole { "whole" } else { "cut" });
    small_ended.await??;
    large_ended.await??;
    println!("both ended");
    Ok(())
}

type Ended = JoinHandle<Result<(), mini_lb::StartError>>;

/// Starts a balancer beside the caller, and waits until it listens.
async fn start(config: MiniLbConfig) -> Result<(Handle, SocketAddr, Ended), Box<dyn Error>> {
    let balancer = MiniLoadBalancer::new(config)?;
    let handle = balancer.handle();
    let ended = tokio::spawn(balancer.start());
    match handle.address().await {
        Some(address) => Ok((handle, address, ended)),
        // `start` has returned, and says why.
        None => Err(ended
            .await?
            .err()
            .map_or("ended at once".into(), Into::into)),
    }
}

async fn post(address: SocketAddr, body: &str) -> Result<String, Box<dyn Error>> {
    let mut answer = Vec::new();
    send(address, body).await?.read_to_end(&mut answer).await?;
    Ok(String::from_utf8(answer)?)
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

/// The status line, and the code of an error that the balancer itself made.
fn status(answer: &str) -> String {
    let code = answer
        .lines()
        .find_map(|line| line.strip_prefix("x-mini-lb-error: "));
    let status = answer.lines().next().unwrap_or_default();
    code.map_or(status.to_owned(), |code| format!("{status} ({code})"))
}
