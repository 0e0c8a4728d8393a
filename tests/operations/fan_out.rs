//! Endpoints that ask every worker: flushes, aborts, profiles, server_info, loads.

use std::sync::Arc;

use http::StatusCode;
use serde_json::json;
use support::mock_worker::{GoneWorker, MockWorker, Seen, reply};
use tokio::sync::Barrier;

use crate::hyper_client::{JSON, balancer, request};

const FLUSHED: &str = "Cache flushed.\n";

#[tokio::test]
async fn health_generate_passes_with_one_worker_of_each_role() {
    let well = MockWorker::always(200, "", "").await;
    let decode = MockWorker::always(200, "", "").await;
    let sick = MockWorker::always(503, "", "").await;
    let dead = GoneWorker::bind();
    let one_of_each = balancer(&[&well.url, &dead.url], &[&sick.url, &decode.url]).await;
    let answer = one_of_each.get("/health_generate").await;
    assert_eq!(answer.status, StatusCode::OK);
    let workers = answer.json()["workers"].clone();
    assert_eq!(workers.as_array().unwrap().len(), 4);
    assert_eq!(
        (&workers[0]["role"], &workers[0]["status"]),
        (&json!("prefill"), &json!(200))
    );
    // Clients need no key here, so they learn no address.
    assert!(workers[1]["status"].is_null());
    assert!(!answer.json().to_string().contains("http://"));
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
    assert!(!answer.json().to_string().contains("http://"));
}

#[tokio::test]
async fn every_worker_is_asked_at_the_same_time() {
    // Each responds only when all three have a request.
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

    let dead = GoneWorker::bind();
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
    let dead = GoneWorker::bind();
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
    let (prefill, decode) = (GoneWorker::bind(), GoneWorker::bind());
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
