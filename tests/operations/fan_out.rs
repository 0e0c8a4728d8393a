//! The endpoints without legs over real sockets: what clients get, and what workers are asked.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use mini_lb::{Handle, MiniLbConfig, MiniLoadBalancer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Barrier;

use support::mock_worker::{MockWorker, Nobody, Seen, reply};

const JSON: &str = "application/json";
const FLUSHED: &str = "Cache flushed.\n";

/// A balancer that ends with the test.
struct Balancer {
    address: SocketAddr,
    handle: Handle,
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.handle.stop();
    }
}

/// An answer as a client sees it.
#[derive(Debug)]
struct Got {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

async fn balancer(prefill: &[&str], decode: &[&str]) -> Balancer {
    balancer_with(prefill, decode, |config| config).await
}

async fn balancer_with(
    prefill: &[&str],
    decode: &[&str],
    change: impl FnOnce(MiniLbConfig) -> MiniLbConfig,
) -> Balancer {
    let prefill = prefill.iter().map(|url| ((*url).to_owned(), Some(8998)));
    let decode = decode.iter().map(|url| (*url).to_owned());
    let host = "127.0.0.1".to_owned();
    let config = MiniLbConfig::new(host, 0, prefill.collect(), decode.collect(), 1800)
        // The workers count what they are asked.
        .health_check_interval(None);
    let balancer = MiniLoadBalancer::new(change(config)).unwrap();
    let handle = balancer.handle();
    tokio::spawn(balancer.start());
    let address = handle.address().await.unwrap();
    Balancer { address, handle }
}

impl Balancer {
    async fn connect(&self) -> SendRequest<Full<Bytes>> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (client, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        client
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Got {
        got(&mut self.connect().await, request).await
    }

    async fn get(&self, target: &str) -> Got {
        self.send(request("GET", target, "")).await
    }

    async fn post(&self, target: &str, body: &'static str) -> Got {
        self.send(request("POST", target, body)).await
    }
}

async fn got(client: &mut SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> Got {
    let (head, body) = client.send_request(request).await.unwrap().into_parts();
    Got {
        status: head.status,
        headers: head.headers,
        body: body.collect().await.unwrap().to_bytes(),
    }
}

fn request(method: &str, target: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(target)
        .header("host", "balancer")
        .body(Full::new(body.into()))
        .unwrap()
}

#[tokio::test]
async fn a_worker_that_refuses_its_own_key_is_not_the_clients_fault() {
    for status in [401, 403] {
        let refusing = MockWorker::always(status, JSON, "{\"error\":\"Unauthorized\"}").await;
        let other = named("\"d\"").await;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "sk-c").unwrap();
        let own = |config: MiniLbConfig| config.worker_api_key("sk-w");
        let clients = |config: MiniLbConfig| config.api_key_file(file.path().to_str().unwrap());
        let decode = MockWorker::always(status, JSON, "{\"error\":\"Unauthorized\"}").await;
        let worker_has_a_key = balancer_with(&[&refusing.url], &[&decode.url], own).await;
        let clients_have_one = balancer_with(&[&refusing.url], &[&decode.url], clients).await;
        for balancer in [&worker_has_a_key, &clients_have_one] {
            for path in ["/v1/models", "/server_info", "/v1/loads"] {
                let mut request = request("GET", path, "");
                let key = "Bearer sk-c".parse().unwrap();
                request.headers_mut().insert("authorization", key);
                let answer = balancer.send(request).await;
                assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{path}");
                assert_eq!(answer.header("x-mini-lb-error"), "worker_auth", "{path}");
                assert_eq!(answer.json()["workers"].as_array().unwrap().len(), 2);
                let text = String::from_utf8_lossy(&answer.body).into_owned();
                assert!(text.contains(&format!("({status})")), "{text}");
                assert!(!text.contains("sk-"), "{text}");
            }
        }
        // Who administers the workers is told what they say, as without mini-lb.
        let flushed = worker_has_a_key.post("/flush_cache", "").await;
        assert_eq!(flushed.status, status);
        assert_eq!(flushed.header("x-mini-lb-error"), "worker_refused");
        // One that takes the key answers for the other.
        let one_refuses = balancer_with(&[&refusing.url], &[&other.url], own).await;
        assert_eq!(one_refuses.get("/v1/models").await.body, "\"d\"");
        // Where the client's own key reaches the worker, the refusal is the client's.
        let nobody_has_one = balancer(&[&refusing.url], &[&decode.url]).await;
        let answer = nobody_has_one.get("/v1/models").await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.json()["error"], "Unauthorized");
    }
}

/// A worker that names itself in whatever it answers.
async fn named(name: &'static str) -> MockWorker {
    MockWorker::always(200, JSON, name).await
}

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
    // The second answer would not be found if the first had a body.
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
async fn health_generate_passes_with_one_worker_of_each_role() {
    let well = MockWorker::always(200, "", "").await;
    let decode = MockWorker::always(200, "", "").await;
    let sick = MockWorker::always(503, "", "").await;
    let dead = Nobody::new();
    let one_of_each = balancer(&[&well.url, &dead.url], &[&sick.url, &decode.url]).await;
    let answer = one_of_each.get("/health_generate").await;
    assert_eq!(answer.status, StatusCode::OK);
    let workers = answer.json()["workers"].clone();
    assert_eq!(workers.as_array().unwrap().len(), 4);
    assert_eq!(
        (&workers[0]["role"], &workers[0]["status"]),
        (&json!("prefill"), &json!(200))
    );
    assert_eq!(workers[1]["url"], dead.url.as_str());
    assert!(
        workers[1]["error"]
            .as_str()
            .unwrap()
            .contains("cannot be reached")
    );
    assert_eq!(
        (&workers[2]["role"], &workers[2]["status"]),
        (&json!("decode"), &json!(503))
    );
    assert!(workers[3]["milliseconds"].is_number());

    let no_decode = balancer(&[&well.url], &[&sick.url, &dead.url]).await;
    let answer = no_decode.get("/health_generate").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.header("x-mini-lb-error"), "no_worker");
    assert_eq!(answer.json()["workers"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn every_worker_is_asked_at_the_same_time() {
    // Each answers only when all three have been asked.
    let all = Arc::new(Barrier::new(3));
    let worker = || {
        let all = all.clone();
        MockWorker::start(move |_| {
            let all = all.clone();
            async move {
                all.wait().await;
                reply(200, "", FLUSHED)
            }
        })
    };
    let (prefill, first, second) = (worker().await, worker().await, worker().await);
    let balancer = balancer(&[&prefill.url], &[&first.url, &second.url]).await;
    let answer = balancer.post("/flush_cache", "").await;
    assert_eq!(
        (answer.status, &answer.body[..]),
        (StatusCode::OK, FLUSHED.as_bytes())
    );
}

#[tokio::test]
async fn a_flush_reaches_every_worker_with_its_query_and_either_name() {
    let (prefill, decode) = (
        MockWorker::always(200, "", FLUSHED).await,
        MockWorker::always(200, "", FLUSHED).await,
    );
    let balancer = balancer(&[&prefill.url], &[&decode.url]).await;
    for path in ["/flush_cache", "/reset_prefix_cache"] {
        for method in ["GET", "POST"] {
            let target = format!("{path}?timeout=60");
            let answer = balancer.send(request(method, &target, "")).await;
            assert_eq!(
                (answer.status, &answer.body[..]),
                (StatusCode::OK, FLUSHED.as_bytes())
            );
        }
    }
    for worker in [&prefill, &decode] {
        let seen = worker.seen();
        assert_eq!(seen.len(), 4);
        assert!(
            seen.iter()
                .all(|seen| seen.target == "/flush_cache?timeout=60"),
            "{seen:?}"
        );
        assert_eq!(
            (seen[0].method.as_str(), seen[1].method.as_str()),
            ("GET", "POST")
        );
        assert_eq!(seen[1].headers["content-length"], "0");
    }
}

#[tokio::test]
async fn a_flush_that_one_worker_refuses_or_misses_is_not_a_success() {
    let done = MockWorker::always(200, "", FLUSHED).await;
    let busy = MockWorker::always(400, "", "Flush cache failed.\n").await;
    let refused = balancer(&[&done.url], &[&busy.url]).await;
    let answer = refused.post("/flush_cache", "").await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_eq!(answer.header("x-mini-lb-error"), "worker_refused");
    assert_eq!(answer.json()["workers"][1]["error"], "Flush cache failed.");

    let dead = Nobody::new();
    let missed = balancer(&[&done.url], &[&busy.url, &dead.url]).await;
    let answer = missed.post("/flush_cache", "").await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert_eq!(answer.header("x-mini-lb-error"), "worker_unreachable");
    assert_eq!(answer.json()["workers"][2]["url"], dead.url.as_str());
}

#[tokio::test]
async fn an_abort_and_a_profile_reach_every_worker_with_their_bodies() {
    let (prefill, decode) = (
        MockWorker::always(200, "", "").await,
        MockWorker::always(200, "", "").await,
    );
    let balancer = balancer(&[&prefill.url], &[&decode.url]).await;
    for (target, body) in [
        ("/abort_request", r#"{"rid":"a"}"#),
        ("/start_profile", r#"{"num_steps":5}"#),
        ("/stop_profile?x=1", ""),
        ("/hicache/storage-backend/clear", ""),
    ] {
        let mut request = request("POST", target, body);
        request
            .headers_mut()
            .insert("content-type", JSON.parse().unwrap());
        assert_eq!(
            balancer.send(request).await.status,
            StatusCode::OK,
            "{target}"
        );
        for worker in [&prefill, &decode] {
            let seen: Seen = worker.seen().pop().unwrap();
            assert_eq!(
                (seen.target.as_str(), &seen.body[..]),
                (target, body.as_bytes())
            );
            assert_eq!(seen.headers["content-type"], JSON);
            assert_eq!(
                seen.headers["content-length"],
                body.len().to_string().as_str()
            );
        }
    }
    assert_eq!(balancer.get("/start_profile").await.status, StatusCode::OK);
}

#[tokio::test]
async fn server_info_has_both_pools_and_no_secrets() {
    let prefill = MockWorker::always(
        200,
        JSON,
        r#"{"tokenizer_path":"/m","api_key":"sk-p","launch_command":"--port 1 --api-key sk-p --tp 2"}"#,
    )
    .await;
    let decode = MockWorker::always(
        200,
        JSON,
        r#"{"admin_api_key":"sk-d","internal_states":[{"last_gen_throughput":176.990,"admin_api_key":"sk-d"}]}"#,
    )
    .await;
    let dead = Nobody::new();
    let balancer = balancer(&[&prefill.url], &[&decode.url, &dead.url]).await;
    for path in ["/server_info", "/get_server_info"] {
        let answer = balancer.get(path).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("content-type"), JSON);
        let info = answer.json();
        assert_eq!(info["prefill"][0]["tokenizer_path"], "/m");
        assert_eq!(
            info["prefill"][0]["launch_command"],
            "--port 1 --api-key *** --tp 2"
        );
        assert_eq!(
            info["internal_states"],
            info["decode"][0]["internal_states"]
        );
        assert_eq!(
            info["internal_states"][0]["last_gen_throughput"].to_string(),
            "176.990"
        );
        assert_eq!(info["decode"][1]["url"], dead.url.as_str());
        assert!(info["decode"][1]["error"].is_string());
        assert!(!String::from_utf8_lossy(&answer.body).contains("sk-"));
        assert_eq!(prefill.seen().pop().unwrap().target, path);
    }
}

#[tokio::test]
async fn server_info_of_nobody_is_an_error() {
    let (prefill, decode) = (Nobody::new(), Nobody::new());
    let balancer = balancer(&[&prefill.url], &[&decode.url]).await;
    let answer = balancer.get("/server_info").await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert_eq!(answer.json()["workers"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn loads_of_the_fleet_come_in_one_list() {
    let prefill = MockWorker::always(200, JSON, r#"{"loads":[{"dp_rank":0},{"dp_rank":1}]}"#).await;
    let decode = MockWorker::always(200, JSON, r#"{"loads":[{"dp_rank":0,"x":0.10}]}"#).await;
    let balancer = balancer(&[&prefill.url], &[&decode.url]).await;
    let answer = balancer.get("/v1/loads?include=core&dp_rank=0").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(
        answer.json()["loads"][2].to_string(),
        format!(
            r#"{{"role":"decode","url":"{}","dp_rank":0,"x":0.10}}"#,
            decode.url
        )
    );
    assert_eq!(
        answer.json()["workers"][0]["answer"]["loads"][1]["dp_rank"],
        1
    );
    assert_eq!(decode.seen()[0].target, "/v1/loads?include=core&dp_rank=0");

    let text = balancer.get("/v1/loads?format=prometheus").await;
    assert_eq!(text.status, StatusCode::NOT_IMPLEMENTED);
    assert_eq!(decode.seen().len(), 1);
}

#[tokio::test]
async fn one_worker_answers_for_all_and_unchanged() {
    let prefill = MockWorker::start(|seen: Seen| async move {
        match seen.target.as_str() {
            "/v1/models/meta/none" => reply(404, JSON, r#"{"error":{"code":"model_not_found"}}"#),
            _ => reply(200, "application/x-own; v=1", seen.body),
        }
    })
    .await;
    let decode = named("\"d\"").await;
    let balancer = balancer(&[&prefill.url], &[&decode.url]).await;
    for path in [
        "/tokenize",
        "/v1/tokenize",
        "/detokenize",
        "/v1/detokenize",
        "/v1/messages/count_tokens",
    ] {
        let answer = balancer.post(path, "{ \"prompt\" : 1.0 }").await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        assert_eq!(&answer.body[..], b"{ \"prompt\" : 1.0 }");
        assert_eq!(answer.header("content-type"), "application/x-own; v=1");
    }
    for path in [
        "/model_info",
        "/get_model_info",
        "/v1/models",
        "/v1/models/a%20b",
    ] {
        assert_eq!(balancer.get(path).await.status, StatusCode::OK);
        assert_eq!(prefill.seen().pop().unwrap().target, path);
    }
    let unknown = balancer.get("/v1/models/meta/none").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert_eq!(
        &unknown.body[..],
        br#"{"error":{"code":"model_not_found"}}"#
    );
    assert_eq!(unknown.header("x-mini-lb-error"), "");
    assert!(decode.seen().is_empty());
}

#[tokio::test]
async fn the_next_worker_answers_when_one_cannot_be_reached() {
    let (first, second) = (Nobody::new(), Nobody::new());
    let decode = named("\"d\"").await;
    let balancer = balancer(&[&first.url, &second.url], &[&decode.url]).await;
    let answer = balancer.get("/model_info").await;
    assert_eq!(
        (answer.status, &answer.body[..]),
        (StatusCode::OK, &b"\"d\""[..])
    );
}

#[tokio::test]
async fn when_no_worker_can_be_reached_the_error_has_the_shape_of_the_endpoint() {
    let (prefill, decode) = (Nobody::new(), Nobody::new());
    let balancer = balancer(&[&prefill.url], &[&decode.url]).await;
    let nested = balancer.get("/v1/models").await;
    assert_eq!(nested.status, StatusCode::BAD_GATEWAY);
    assert_eq!(nested.header("x-mini-lb-error"), "worker_unreachable");
    assert_eq!(nested.json()["error"]["code"], 502);
    let anthropic = balancer.post("/v1/messages/count_tokens", "{}").await;
    assert_eq!(anthropic.json()["type"], "error");
}

#[tokio::test]
async fn workers_get_their_own_host_and_key_and_the_clients_trace() {
    let (prefill, decode) = (named("{}").await, named("{}").await);
    let keyless = balancer(&[&prefill.url], &[&decode.url]).await;
    let keyed = balancer_with(&[&prefill.url], &[&decode.url], |config| {
        config.worker_api_key("worker")
    })
    .await;
    for (balancer, key) in [(keyless, "Bearer client"), (keyed, "Bearer worker")] {
        let mut request = request("POST", "/tokenize", "{}");
        for (name, value) in [
            ("authorization", "Bearer client"),
            ("x-request-id", "id-1"),
            ("traceparent", "00-1-2-01"),
            ("x-override-rid", "steered"),
            ("cookie", "private"),
        ] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let answer = balancer.send(request).await;
        assert_eq!(answer.header("x-request-id"), "id-1");
        let headers = prefill.seen().pop().unwrap().headers;
        assert_eq!(
            headers.get_all("authorization").iter().collect::<Vec<_>>(),
            [key]
        );
        assert_eq!(headers["host"], prefill.url.trim_start_matches("http://"));
        assert_eq!(headers["x-request-id"], "id-1");
        assert_eq!(headers["traceparent"], "00-1-2-01");
        assert!(!headers.contains_key("x-override-rid") && !headers.contains_key("cookie"));
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
    // It was read to its end, so that the connection serves the next request.
    assert_ne!(answer.header("connection"), "close");
}

#[tokio::test]
async fn a_browsers_preflight_is_the_workers_to_answer() {
    let prefill = MockWorker::start(|seen: Seen| async move {
        let mut answer = reply(200, "text/plain", "OK");
        let origin = seen.headers["origin"].clone();
        answer
            .headers_mut()
            .insert("access-control-allow-origin", origin);
        answer
    })
    .await;
    let dead = Nobody::new();
    let balancer = balancer(&[&prefill.url], &[&dead.url]).await;
    let preflight = |path| {
        let mut request = request("OPTIONS", path, "");
        for (name, value) in [
            ("origin", "http://page"),
            ("access-control-request-method", "POST"),
        ] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        request
    };
    for path in ["/v1/chat/completions", "/v1/models"] {
        let answer = balancer.send(preflight(path)).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), "http://page");
        assert_eq!(
            prefill.seen().pop().unwrap().headers["access-control-request-method"],
            "POST"
        );
    }
    // No page of another origin steers the workers.
    let admin = balancer.send(preflight("/abort_request")).await;
    assert_eq!(admin.status, StatusCode::METHOD_NOT_ALLOWED);
}
