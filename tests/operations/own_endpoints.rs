//! Endpoints that the balancer answers itself: its own state, and what it does not serve.

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::hyper_client::{Got, balancer, got, named, request};

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
        ("POST", "/health", 405, "method_not_allowed"),
        ("DELETE", "/flush_cache", 405, "method_not_allowed"),
        ("GET", "/tokenize", 405, "method_not_allowed"),
        ("OPTIONS", "/generate", 405, "method_not_allowed"),
        ("GET", "/generate", 405, "method_not_allowed"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("PUT", "/v1/messages", 405, "method_not_allowed"),
        ("POST", "/v1/embeddings", 501, "not_served_by_pd"),
        ("POST", "/api/chat", 501, "not_served_by_pd"),
        ("GET", "/v1/responses/resp_1", 404, "unknown_response"),
        ("GET", "/v1/responses/resp_1/items", 404, "not_found"),
        ("DELETE", "/v1/responses/resp_1", 405, "method_not_allowed"),
        ("GET", "/pause_generation", 405, "method_not_allowed"),
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
async fn head_has_the_head_of_get_wherever_get_only_reads() {
    let document = r#"{"object":"list","data":[]}"#;
    let (prefill, decode) = (named(document).await, named(document).await);
    let balancer = balancer(&[&prefill.url], &[&decode.url]).await;
    let mut client = balancer.connect().await;
    for path in [
        "/",
        "/health",
        "/readiness",
        "/v1/models",
        "/v1/models/tiny",
        "/model_info",
        "/server_info",
        "/v1/loads",
    ] {
        let got_by_get = got(&mut client, request("GET", path, "")).await;
        // On one connection: a body of this response would be read as the next response.
        let got_by_head = got(&mut client, request("HEAD", path, "")).await;
        assert_eq!(got_by_head.body, "", "{path}");
        assert_eq!(got_by_head.status, got_by_get.status, "{path}");
        let names = |got: &Got| got.headers.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&got_by_head), names(&got_by_get), "{path}");
        for name in ["content-type", "content-length"] {
            assert_eq!(got_by_head.header(name), got_by_get.header(name), "{path}");
        }
    }
    let methods = prefill.seen().into_iter().map(|seen| seen.method);
    assert!(methods.into_iter().all(|method| method == "GET"));
    // What only takes POST, and what changes a worker, has no HEAD.
    for path in [
        "/generate",
        "/v1/chat/completions",
        "/tokenize",
        "/flush_cache",
    ] {
        let answer = got(&mut client, request("HEAD", path, "")).await;
        assert_eq!(
            (answer.status.as_u16(), answer.body.len()),
            (405, 0),
            "{path}"
        );
        assert!(answer.header("allow").contains("POST"), "{path}");
    }
}

#[tokio::test]
async fn a_path_that_is_nearly_right_leads_to_the_right_one() {
    let (prefill, decode) = (named("\"p\"").await, named("\"d\"").await);
    let balancer = balancer(&[&prefill.url], &[&decode.url]).await;
    for (method, target, location) in [
        ("POST", "/v1/chat/completions/", "/v1/chat/completions"),
        ("POST", "/generate/", "/generate"),
        ("GET", "/health/", "/health"),
        ("GET", "/v1/models/?a=b", "/v1/models?a=b"),
    ] {
        let answer = balancer.send(request(method, target, "{}")).await;
        assert_eq!(answer.status, 307, "{target}");
        assert_eq!(answer.header("location"), location, "{target}");
    }
    let hint = |answer: Got| answer.json()["error"]["message"].to_string();
    let twice = balancer.post("//v1/chat/completions", "{}").await;
    assert_eq!(twice.status, 404);
    let message = hint(twice);
    assert!(
        message.contains("did you mean /v1/chat/completions?"),
        "{message}"
    );
    let none = hint(balancer.get("/nope").await);
    assert!(!none.contains("did you mean"), "{none}");
    assert!(prefill.seen().is_empty() && decode.seen().is_empty());
}

#[tokio::test]
async fn options_without_a_page_asks_for_the_methods() {
    let (prefill, decode) = (named("\"p\"").await, named("\"d\"").await);
    let balancer = balancer(&[&prefill.url], &[&decode.url]).await;
    for target in ["*", "/"] {
        let mut stream = TcpStream::connect(balancer.address).await.unwrap();
        let head =
            format!("OPTIONS {target} HTTP/1.1\r\nhost: balancer\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let answer = answer.to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 200 "), "{answer}");
        assert!(answer.contains("\r\nallow: get, head"), "{answer}");
    }
}

#[tokio::test]
async fn a_head_that_is_refused_before_it_is_a_request_has_an_error_as_everywhere() {
    let (prefill, decode) = (named("\"p\"").await, named("\"d\"").await);
    let balancer = balancer(&[&prefill.url], &[&decode.url]).await;
    for (head, status, code) in [
        (
            "GET http://other.example/flush_cache HTTP/1.1\r\nhost: balancer",
            400,
            "bad_request_head",
        ),
        (
            "POST http://a@balancer/generate HTTP/1.1\r\nhost: balancer",
            400,
            "bad_request_head",
        ),
        (
            "GET /health HTTP/1.1\r\nhost: balancer\r\nx: \u{0}",
            400,
            "bad_request_head",
        ),
        (
            "CONNECT balancer:80 HTTP/1.1\r\nhost: balancer:80",
            405,
            "method_not_allowed",
        ),
    ] {
        let mut client = support::Client::connect(balancer.address).await;
        client.send(format!("{head}\r\n\r\n")).await;
        let answer = client.answer().await;
        assert_eq!(answer.outcome(), (status, Some(code)), "{head}");
        assert_eq!(answer.json()["error"]["error_code"], code, "{head}");
        assert!(answer.header("x-request-id").is_some(), "{head}");
        assert_eq!(answer.header("connection"), Some("close"), "{head}");
        assert_eq!(client.rest().await, b"", "{head}");
    }
    // The same host is no other one.
    let mut client = support::Client::connect(balancer.address).await;
    client
        .send("GET http://balancer/health HTTP/1.1\r\nhost: balancer\r\n\r\n")
        .await;
    assert_eq!(client.answer().await.status(), 200);
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
