//! The endpoints without legs.

use support::{Pair, post};

use super::*;

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: balancer\r\n\r\n")
}

#[tokio::test]
async fn sglangs_own_endpoint_is_not_there() {
    let mut pair = pair().await;
    pair.client.send(post("/generate", r#"{"text":"a"}"#)).await;
    assert_eq!(pair.client.answer().await.status(), 404);
    assert!(pair.is_idle());
}

#[tokio::test]
async fn one_worker_tells_its_version() {
    let mut pair = pair().await;
    pair.client.send(get("/version")).await;
    let Pair {
        prefill, decode, ..
    } = &mut pair;
    let asked = tokio::select! {
        asked = prefill.request() => asked,
        asked = decode.request() => asked,
    };
    asked.answer("200 OK", r#"{"version":"0.32.0"}"#).await;
    let answer = pair.client.answer().await;
    assert_eq!(
        (answer.status(), answer.text()),
        (200, r#"{"version":"0.32.0"}"#)
    );
    assert!(pair.is_idle());
}

#[tokio::test]
async fn the_prefix_caches_of_all_workers_are_reset_by_either_name() {
    for name in ["/reset_prefix_cache", "/flush_cache"] {
        let mut pair = pair().await;
        pair.client.send(post(name, "")).await;
        let (prefill, decode) = pair.next_legs().await;
        for asked in [prefill, decode] {
            assert!(asked.request.head.starts_with("POST /reset_prefix_cache "));
            asked.answer("200 OK", r#"{"success":true}"#).await;
        }
        assert_eq!(pair.client.answer().await.status(), 200);
    }
}

#[tokio::test]
async fn what_a_pair_cannot_serve_is_501() {
    let mut pair = pair().await;
    pair.client.send(post("/v1/embeddings", "{}")).await;
    assert_eq!(pair.client.answer().await.status(), 501);
    pair.client.send(get("/health")).await;
    assert_eq!(pair.client.answer().await.status(), 200);
    assert!(pair.is_idle());
}
