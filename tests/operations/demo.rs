//! `mini-lb demo` with flags: the ports of the workers, the log, and what is passed on to the balancer.

use std::net::TcpListener;
use std::process::Command;

use support::{BODY, CHAT, Client, Process, Signal, mini_lb, post};

/// A demo with one worker of each role.
fn demo(more: &[&str]) -> Process {
    let line = ["demo", "--port", "0", "--prefills", "1", "--decodes", "1"];
    mini_lb!(&[&line[..], more].concat())
}

#[tokio::test]
async fn the_workers_have_the_ports_that_are_asked_for() {
    // Another program may take one of the ports in between.
    for _ in 0..20 {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let first = free.local_addr().unwrap().port();
        drop(free);
        let mut demo = demo(&["--worker-port", &first.to_string()]);
        let line = demo.line("").await;
        if line.contains("cannot start on port") || line.contains("not enough ports") {
            continue;
        }
        let prefill = demo.address_in("  prefill  ").await;
        let decode = demo.address_in("  decode  ").await;
        assert_eq!((prefill.port(), decode.port()), (first, first + 1));
        return;
    }
    panic!("no two free ports in a row");
}

#[tokio::test]
async fn the_log_is_that_of_a_balancer_and_has_its_level() {
    for (level, is_logged) in [("info", true), ("warn", false)] {
        let mut demo = demo(&["--log-level", level]);
        let balancer = demo.address_in("  mini-lb  ").await;
        let mut client = Client::connect(balancer).await;
        client.send(post("/generate", BODY)).await;
        assert_eq!(client.answer().await.status(), 200);
        demo.signal(Signal::Interrupt).await;
        let ended = demo.end().await;
        assert_eq!(
            ended.text().contains("request finished"),
            is_logged,
            "{level}: {ended:?}"
        );
    }
}

#[tokio::test]
async fn flags_of_the_balancer_are_passed_on_and_checked() {
    let mut limited = demo(&["--max-payload-size", "20"]);
    let balancer = limited.address_in("  mini-lb  ").await;
    let mut client = Client::connect(balancer).await;
    let long = r#"{"text":"more than twenty bytes"}"#;
    client.send(post("/generate", long)).await;
    assert_eq!(
        client.answer().await.outcome(),
        (413, Some("body_too_large"))
    );
    let refused = demo(&["--cb-failure-threshold", "0"]).end().await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.text().contains("--cb-failure-threshold"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_key_is_one_for_the_balancer_and_its_workers() {
    let mut demo = demo(&["--api-key", "sk-1"]);
    let balancer = demo.address_in("  mini-lb  ").await;
    let mut client = Client::connect(balancer).await;
    client.send(post("/generate", BODY)).await;
    assert_eq!(client.answer().await.outcome(), (401, Some("unauthorized")));
    let mut client = Client::connect(balancer).await;
    let with_key =
        post("/generate", BODY).replace("\r\n\r\n", "\r\nauthorization: Bearer sk-1\r\n\r\n");
    client.send(with_key).await;
    assert_eq!(client.answer().await.status(), 200);
}

#[tokio::test]
async fn a_demo_names_its_dashboard_and_keeps_a_load_on() {
    let mut demo = demo(&["--load", "2", "--log-level", "info", "--api-key", "sk-1"]);
    let dashboard = demo.line("  dashboard  ").await;
    assert!(dashboard.ends_with("/dashboard"), "{dashboard}");
    for _ in 0..4 {
        let line = demo.line("request finished").await;
        assert!(
            line.contains("path=/v1/chat/completions status=200 ended=ok"),
            "{line}"
        );
    }
    demo.signal(Signal::Interrupt).await;
    assert_eq!(demo.end().await.code, Some(0));
}

#[tokio::test]
async fn a_demo_has_the_engine_that_the_balancer_is_told() {
    let mut demo = demo(&["--engine", "vllm"]);
    demo.line("simulated vLLM workers").await;
    let balancer = demo.address_in("  mini-lb  ").await;
    let mut client = Client::connect(balancer).await;
    let body = r#"{"messages":[{"role":"user","content":"Hello"}],"max_tokens":4}"#;
    client.send(post(CHAT, body)).await;
    let answer = client.answer().await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let fingerprint = answer.json()["system_fingerprint"].clone();
    assert!(
        fingerprint.as_str().unwrap().starts_with("vllm-"),
        "{fingerprint}"
    );
}

/// What a closed terminal sends, whether or not the process has a handler for it.
fn hang_up(demo: &Process) {
    let sent = Command::new("kill")
        .args(["-HUP", &demo.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
}

#[tokio::test]
async fn a_demo_ends_with_its_terminal_but_not_under_nohup() {
    let mut ends = demo(&[]);
    ends.line("Press Ctrl-C").await;
    hang_up(&ends);
    assert_eq!(ends.end().await.code, None, "by the signal");

    let mut command = Command::new("nohup");
    command.args([env!("CARGO_BIN_EXE_mini-lb"), "demo", "--port", "0"]);
    let mut stays = Process::of(command);
    let balancer = stays.address_in("  mini-lb  ").await;
    stays.line("Press Ctrl-C").await;
    hang_up(&stays);
    let mut client = Client::connect(balancer).await;
    client.send(post("/generate", BODY)).await;
    assert_eq!(client.answer().await.status(), 200);
    stays.signal(Signal::Interrupt).await;
    assert_eq!(stays.end().await.code, Some(0));
}
