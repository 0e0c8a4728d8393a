//! Endpoints that the balancer answers itself: its own state, and what it does not serve.

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::hyper_client::{balancer, named, request};

#[tokio::test]
async fn probes_of_the_own_state_ask_no_worker() {
    let (prefill, decode) = (named("\"p\"").await, named("\"d\"").await);
    let balancer = balancer(&[&prefill.url], &[&decode.url]).await;
    for path in ["/", "/health", "/liveness", "/ping", "/ready", "/readiness"] {
        let answer = balancer.get(path).await;
        assert_eq!(
            (answer.status.as_u16(), answer.body.len()),
            (200, 0),
            "{path}"
        );
    }
    assert!(prefill.seen().is_empty() && decode.seen().is_empty());
}

#[tokio::test]
async fn a_head_of_a_probe_is_answered_without_a_body() {
    let (prefill, decode) = (named("\"p\"").await, named("\"d\"").await);
    let balancer = balancer(&[&prefill.url], &[&decode.url]).await;
    let mut stream = TcpStream::connect(balancer.address).await.unwrap();
    // A body of the first response would be read as the second response.
    for (path, status) in [("/health", "200"), ("/nope", "404"), ("/readiness", "200")] {
        let head = format!("HEAD {path} HTTP/1.1\r\nhost: balancer\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn what_is_not_served_says_why_with_a_stable_code() {
    let (prefill, decode) = (named("\"p\"").await, named("\"d\"").await);
    let balancer = balancer(&[&prefill.url], &[&decode.url]).await;
    for (method, path, status, code) in [
        ("GET", "/nope", 404, "not_found"),
        ("GET", "/health/", 404, "not_found"),
        ("POST", "/generate/", 404, "not_found"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("DELETE", "/flush_cache", 405, "method_not_allowed"),
        ("GET", "/tokenize", 405, "method_not_allowed"),
        ("OPTIONS", "/generate", 405, "method_not_allowed"),
        ("GET", "/generate", 405, "method_not_allowed"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("PUT", "/v1/messages", 405, "method_not_allowed"),
        ("POST", "/v1/embeddings", 501, "not_served_by_pd"),
        ("POST", "/api/chat", 501, "not_served_by_pd"),
        ("GET", "/v1/responses/resp_1", 501, "not_served_by_pd"),
        ("POST", "/pause_generation", 501, "not_served_by_pd"),
    ] {
        let answer = balancer.send(request(method, path, "")).await;
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(answer.header("x-mini-lb-error"), code, "{method} {path}");
        assert_eq!(
            answer.headers.contains_key("allow"),
            status == 405,
            "{method} {path}"
        );
        let body = answer.json().to_string();
        assert!(body.contains("message"), "{body}");
    }
    let allow = balancer.get("/generate").await;
    assert_eq!(allow.header("allow"), "PUT, POST");
    assert!(prefill.seen().is_empty() && decode.seen().is_empty());
}

#[tokio::test]
async fn a_body_that_nobody_reads_does_not_cost_the_answer() {
    let (prefill, decode) = (named("\"p\"").await, named("\"d\"").await);
    let balancer = balancer(&[&prefill.url], &[&decode.url]).await;
    let large = format!("{{\"input\":\"{}\"}}", "x".repeat(8 << 20));
    let answer = balancer
        .send(request("POST", "/v1/embeddings", large))
        .await;
    assert_eq!(answer.status, StatusCode::NOT_IMPLEMENTED);
    // It was read to its end, so the connection is reused.
    assert_ne!(answer.header("connection"), "close");
}
