//! Endpoints that one worker answers for the fleet, and the headers that it gets.

use http::StatusCode;
use mini_lb::MiniLbConfig;
use support::mock_worker::{GoneWorker, MockWorker, Seen, reply};

use crate::hyper_client::{JSON, balancer, balancer_with, named, request};

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
        // Admin requests get the refusal of the worker.
        let flushed = worker_has_a_key.post("/flush_cache", "").await;
        assert_eq!(flushed.status, status);
        assert_eq!(flushed.header("x-mini-lb-error"), "worker_refused");
        // A worker that accepts the key responds for the other one.
        let one_refuses = balancer_with(&[&refusing.url], &[&other.url], own).await;
        assert_eq!(one_refuses.get("/v1/models").await.body, "\"d\"");
        // When the client's key is forwarded, the refusal is the client's.
        let nobody_has_one = balancer(&[&refusing.url], &[&decode.url]).await;
        let answer = nobody_has_one.get("/v1/models").await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.json()["error"], "Unauthorized");
    }
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
    let (first, second) = (GoneWorker::bind(), GoneWorker::bind());
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
    let (prefill, decode) = (GoneWorker::bind(), GoneWorker::bind());
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
