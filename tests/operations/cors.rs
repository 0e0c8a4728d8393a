//! CORS: what a page of another origin can read in a browser, and what it may send.

use http::Request;
use mini_lb::MiniLbConfig;
use support::mock_worker::{GoneWorker, MockWorker, Seen, reply};

use crate::hyper_client::{Balancer, Got, JSON, balancer, balancer_with, named, request};

const PAGE: &str = "https://app.example";

/// Longer than the limit of these tests.
const LONG: &str =
    r#"{"text":"0123456789012345678901234567890123456789012345678901234567890123456789"}"#;

/// A request that a page of this origin sends.
fn from(origin: &str, method: &str, target: &str, body: &'static str) -> PageRequest {
    let mut request = request(method, target, body);
    request
        .headers_mut()
        .insert("origin", origin.parse().unwrap());
    request
}

type PageRequest = Request<http_body_util::Full<bytes::Bytes>>;

/// The request that a browser sends before that one.
fn preflight(origin: &str, target: &str) -> PageRequest {
    let mut request = from(origin, "OPTIONS", target, "");
    for (name, value) in [
        ("access-control-request-method", "POST"),
        (
            "access-control-request-headers",
            "authorization,content-type",
        ),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    request
}

/// That the page can read the response.
fn is_readable(got: &Got, what: &str) {
    let allowed = got.headers.get_all("access-control-allow-origin").iter();
    assert_eq!(allowed.collect::<Vec<_>>(), [PAGE], "{what}");
    assert_eq!(
        got.header("access-control-allow-credentials"),
        "true",
        "{what}"
    );
    assert!(got.header("vary").contains("Origin"), "{what}");
}

async fn pair(change: impl FnOnce(MiniLbConfig) -> MiniLbConfig) -> (Balancer, [MockWorker; 2]) {
    let (prefill, decode) = (named("{}").await, named("{}").await);
    let balancer = balancer_with(&[&prefill.url], &[&decode.url], change).await;
    (balancer, [prefill, decode])
}

#[tokio::test]
async fn a_page_can_read_every_response_that_the_balancer_makes() {
    let key = |config: MiniLbConfig| config.api_key("sk-1").max_payload_size(64);
    let (balancer, _workers) = pair(key).await;
    for (method, target, body, key, status) in [
        ("GET", "/health", "", "", 200),
        ("POST", "/generate", "{", "Bearer sk-1", 400),
        ("POST", "/generate", "{}", "", 401),
        ("GET", "/nope", "", "Bearer sk-1", 404),
        ("GET", "/generate", "", "Bearer sk-1", 405),
        ("POST", "/generate", LONG, "Bearer sk-1", 413),
        ("POST", "/v1/embeddings", "{}", "Bearer sk-1", 501),
        ("POST", "/generate/", "{}", "Bearer sk-1", 307),
        // Gathered from the workers.
        ("GET", "/server_info", "", "Bearer sk-1", 200),
        ("GET", "/v1/loads", "", "Bearer sk-1", 200),
        ("POST", "/flush_cache", "", "Bearer sk-1", 200),
        ("GET", "/v1/models", "", "Bearer sk-1", 200),
        // Decode's own, whose worker sets no field.
        ("POST", "/generate", "{}", "Bearer sk-1", 200),
        // Gathered from the responses for two samples.
        (
            "POST",
            "/v1/chat/completions",
            r#"{"n":2}"#,
            "Bearer sk-1",
            502,
        ),
    ] {
        let mut request = from(PAGE, method, target, body);
        request
            .headers_mut()
            .insert("authorization", key.parse().unwrap());
        let answer = balancer.send(request).await;
        let what = format!("{method} {target} {status}");
        assert_eq!(answer.status, status, "{what}");
        is_readable(&answer, &what);
        let exposed = answer.header("access-control-expose-headers");
        assert!(
            exposed.contains("x-mini-lb-error") && exposed.contains("retry-after"),
            "{what}"
        );
    }
    // Nothing is said where no page asks.
    let answer = balancer.get("/health").await;
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
}

/// Heads that meet no hook of the proxy: CONNECT, one that is no HTTP, and one with more fields than Pingora takes.
fn heads_that_pingora_refuses(origin: &str) -> [(String, u16); 3] {
    let many = "x: 1\r\n".repeat(300);
    [
        (
            format!("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\norigin: {origin}\r\n\r\n"),
            405,
        ),
        (
            format!("GET / HTTP/1.1\r\nhost: a\r\nOrigin:{origin}\r\nno field\r\n\r\n"),
            400,
        ),
        (
            format!("GET / HTTP/1.1\r\nhost: a\r\n{many}origin: {origin}\r\n\r\n"),
            400,
        ),
    ]
}

#[tokio::test]
async fn a_page_can_read_that_its_head_was_refused_before_it_was_parsed() {
    let other = "https://other.example";
    for (origins, origin, allowed) in [
        ("*", PAGE, Some("*")),
        (
            "http://localhost:3000,https://app.example",
            PAGE,
            Some(PAGE),
        ),
        ("https://app.example", other, None),
        ("none", PAGE, None),
    ] {
        let (balancer, _workers) = pair(|config| config.set("cors_allowed_origins", origins)).await;
        for (head, status) in heads_that_pingora_refuses(origin) {
            let mut client = support::Client::connect(balancer.address).await;
            client.send(&head).await;
            let answer = client.answer().await;
            assert_eq!(answer.status(), status, "{head}");
            let found = answer.header("access-control-allow-origin");
            assert_eq!(found, allowed, "{origins} {head}");
        }
    }
}

#[tokio::test]
async fn a_page_can_read_that_a_request_failed_and_what_is_gathered_from_samples() {
    let (prefill, decode) = (GoneWorker::bind(), GoneWorker::bind());
    let dead = self::balancer(&[&prefill.url], &[&decode.url]).await;
    for target in ["/generate", "/v1/chat/completions"] {
        let answer = dead.send(from(PAGE, "POST", target, "{}")).await;
        assert!(answer.status.is_server_error(), "{}", answer.status);
        is_readable(&answer, target);
    }
    // Gathered from the responses for two samples.
    let sample = r#"{"text":"a","meta_info":{"id":"a","prompt_tokens":1,"completion_tokens":1}}"#;
    let (prefill, decode) = (named(sample).await, named(sample).await);
    let alive = self::balancer(&[&prefill.url], &[&decode.url]).await;
    let two = r#"{"text":"a","sampling_params":{"n":2}}"#;
    let answer = alive.send(from(PAGE, "POST", "/generate", two)).await;
    assert_eq!(
        (
            answer.status.as_u16(),
            answer.json().as_array().map(Vec::len)
        ),
        (200, Some(2))
    );
    is_readable(&answer, two);
}

#[tokio::test]
async fn a_preflight_needs_no_key_and_no_worker_on_any_path() {
    let key = |config: MiniLbConfig| config.api_key("sk-1").admin_api_key("sk-2");
    let (balancer, workers) = pair(key).await;
    for target in [
        "/generate",
        "/v1/chat/completions",
        "/v1/messages",
        "/v1/models",
        "/tokenize",
        "/server_info",
        "/flush_cache",
        "/health",
        "/nope",
    ] {
        let answer = balancer.send(preflight(PAGE, target)).await;
        assert_eq!(answer.status, 200, "{target}");
        is_readable(&answer, target);
        assert!(
            answer
                .header("access-control-allow-methods")
                .contains("POST")
        );
        assert_eq!(
            answer.header("access-control-allow-headers"),
            "authorization,content-type"
        );
        assert_eq!(answer.header("access-control-max-age"), "600");
    }
    assert!(workers.iter().all(|worker| worker.seen().is_empty()));
    // OPTIONS of no page is no preflight.
    let plain = balancer.send(request("OPTIONS", "/generate", "")).await;
    assert_eq!(plain.status, 405);
}

#[tokio::test]
async fn a_workers_own_fields_pass_and_are_not_doubled() {
    let worker = || {
        MockWorker::start(|seen: Seen| async move {
            let mut answer = reply(200, JSON, "{}");
            let headers = answer.headers_mut();
            if let Some(origin) = seen.headers.get("origin") {
                headers.insert("access-control-allow-origin", origin.clone());
                headers.insert("access-control-allow-credentials", "true".parse().unwrap());
            }
            headers.insert("vary", "Origin".parse().unwrap());
            answer
        })
    };
    let (prefill, decode) = (worker().await, worker().await);
    let any = balancer(&[&prefill.url], &[&decode.url]).await;
    let listed = async |origins: &str| {
        let change = |config: MiniLbConfig| config.set("cors_allowed_origins", origins);
        balancer_with(&[&prefill.url], &[&decode.url], change).await
    };
    let pages = listed("http://localhost:3000,https://app.example").await;
    for balancer in [&any, &pages] {
        for (method, target) in [("POST", "/generate"), ("GET", "/v1/models")] {
            let answer = balancer.send(from(PAGE, method, target, "{}")).await;
            is_readable(&answer, target);
            assert_eq!(answer.headers.get_all("vary").iter().count(), 1, "{target}");
        }
    }
    // Pages of other origins read nothing, whatever the worker allows.
    for (method, target) in [
        ("POST", "/generate"),
        ("GET", "/v1/models"),
        ("GET", "/nope"),
    ] {
        let answer = pages
            .send(from("https://other.example", method, target, "{}"))
            .await;
        assert!(
            !answer.headers.contains_key("access-control-allow-origin"),
            "{target}"
        );
    }
    let refused = pages
        .send(preflight("https://other.example", "/generate"))
        .await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.header("x-mini-lb-error"), "origin_not_allowed");
    // `none` leaves all of it to a proxy in front.
    let off = listed("none").await;
    let own = off.send(from(PAGE, "GET", "/nope", "")).await;
    assert!(!own.headers.contains_key("access-control-allow-origin"));
    let passed = off.send(from(PAGE, "GET", "/v1/models", "")).await;
    assert_eq!(passed.header("access-control-allow-origin"), PAGE);
    assert_eq!(off.send(preflight(PAGE, "/generate")).await.status, 405);
}
