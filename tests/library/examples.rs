//! The examples that the README names, run as their first lines say against simulated workers.
//!
//! `cargo test` builds the examples; `cargo test --test library` does not, and runs those that an earlier build left.

use std::net::SocketAddr;
use std::process::Command;

use mini_lb::sim::{SimOptions, Worker};
use mini_lb::{MiniLbConfig, MiniLoadBalancer};
use support::program::{example, get, post_json};
use support::{Balancer, Ended, Process, Signal, config};

/// A balancer in front of two simulated workers.
struct Cluster {
    balancer: Balancer,
    prefill: Worker,
    decode: Worker,
}

impl Cluster {
    async fn start() -> Cluster {
        let prefill = Worker::start_prefill(SimOptions::default()).await.unwrap();
        let decode = Worker::start_decode(SimOptions::default()).await.unwrap();
        let config = MiniLbConfig::new(
            "127.0.0.1".into(),
            0,
            vec![(prefill.url(), prefill.bootstrap_port())],
            vec![decode.url()],
            60,
        );
        let balancer = Balancer::start(config).await;
        Cluster {
            balancer,
            prefill,
            decode,
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.balancer.address)
    }
}

async fn generates(address: SocketAddr) {
    let answer = post_json(address, "/generate", r#"{"text":"Hello"}"#).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert!(answer.json()["text"].is_string(), "{}", answer.text());
}

#[tokio::test]
async fn the_basic_example_needs_no_arguments_and_no_workers() {
    let mut basic = example("mini_lb_basic", &["--port", "0"]);
    generates(basic.address_in("mini-lb").await).await;
}

#[tokio::test]
async fn the_basic_example_stops_cleanly_when_it_is_told_to() {
    for signal in [Signal::Terminate, Signal::Interrupt] {
        let mut basic = example("mini_lb_basic", &["--port", "0"]);
        generates(basic.address_in("mini-lb").await).await;
        basic.signal(signal).await;
        let ended = basic.end().await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(ended.lines.last().map(String::as_str), Some("stopped"));
    }
}

#[tokio::test]
async fn the_basic_example_serves_the_workers_that_it_is_given() {
    let cluster = Cluster::start().await;
    let bootstrap_port = cluster.prefill.bootstrap_port().unwrap().to_string();
    let (prefill, decode) = (cluster.prefill.url(), cluster.decode.url());
    let mut basic = example(
        "mini_lb_basic",
        &[&prefill, &bootstrap_port, &decode, "--port", "0"],
    );
    let address = basic.address_in("mini-lb").await;
    generates(address).await;
    let info = get(address, "/server_info").await.json();
    let port = info["prefill"][0]["port"].as_u64().unwrap();
    assert_eq!(port, u64::from(cluster.prefill.address().port()));
}

#[tokio::test]
async fn the_configured_example_refuses_finishes_and_ends() {
    let ended = example("mini_lb_custom_config", &[]).end().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let text = ended.text();
    for line in [
        "small says    HTTP/1.1 413 Payload Too Large (body_too_large)",
        "large says    HTTP/1.1 200 OK",
        "stream        whole",
        "both ended",
    ] {
        assert!(
            ended.lines.iter().any(|found| found == line),
            "{line:?} in {text}"
        );
    }
}

/// The output of both clients: the text of a chat is the same as a stream, and every token of the prompt but the
/// first has a logprob.
fn has_shown_everything(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let after = |name: &str| {
        let line = ended.lines.iter().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name:?} in {}", ended.text()))
            .trim()
    };
    assert_eq!(after("health "), "ok");
    assert_eq!(after("model "), "sim");
    let chat = after("chat ");
    assert!(!chat.is_empty());
    assert!(after("stream ").starts_with(chat), "{ended:?}");
    assert!(!after("generate ").is_empty());
    let prompt = ended
        .lines
        .iter()
        .filter(|line| line.starts_with("  prompt"));
    let logprobs: Vec<_> = prompt
        .map(|line| line.split_whitespace().last().unwrap())
        .collect();
    assert!(logprobs.len() > 2, "{ended:?}");
    assert!(["null", "None"].contains(&logprobs[0]), "{ended:?}");
    for logprob in &logprobs[1..] {
        assert!(logprob.parse::<f64>().unwrap() < 0.0, "{ended:?}");
    }
}

#[tokio::test]
async fn the_client_shows_health_models_chat_and_logprobs() {
    let cluster = Cluster::start().await;
    has_shown_everything(&example("mini_lb_client", &[&cluster.url()]).end().await);
}

#[tokio::test]
async fn the_client_says_what_is_wrong_and_fails() {
    let gone = support::Worker::refusing().await;
    let ended = example("mini_lb_client", &[&gone]).end().await;
    assert_eq!(ended.code, Some(1));
    let message = format!("mini_lb_client: {gone}: ");
    assert!(ended.lines[0].starts_with(&message), "{ended:?}");

    let prefill = support::Worker::refusing().await;
    let balancer = Balancer::start(config(&[prefill], &[gone])).await;
    let url = format!("http://{}", balancer.address);
    let ended = example("mini_lb_client", &[&url]).end().await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.text().contains("502 Bad Gateway"), "{ended:?}");
}

#[tokio::test]
async fn the_python_client_does_the_same() {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: there is no python3 on this machine");
        return;
    }
    let python = |url: &str| {
        let mut command = Command::new("python3");
        command.args(["examples/mini_lb_python_example.py", url]);
        command.env("no_proxy", "*"); // the test's machine may have a proxy
        Process::of(command)
    };
    let cluster = Cluster::start().await;
    has_shown_everything(&python(&cluster.url()).end().await);

    let gone = support::Worker::refusing().await;
    let ended = python(&gone).end().await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.lines[0].starts_with(&gone), "{ended:?}");
}

#[tokio::test]
async fn several_balancers_live_in_one_process_and_stop_one_by_one() {
    let cluster = Cluster::start().await;
    let second = MiniLbConfig::new(
        "127.0.0.1".into(),
        0,
        vec![(cluster.prefill.url(), cluster.prefill.bootstrap_port())],
        vec![cluster.decode.url()],
        60,
    );
    let second = MiniLoadBalancer::new(second).unwrap();
    let handle = second.handle();
    let ended = tokio::spawn(second.start());
    let address = handle.address().await.unwrap();
    generates(address).await;
    handle.stop();
    support::soon("the second has ended", ended)
        .await
        .unwrap()
        .unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    generates(cluster.balancer.address).await;
}
