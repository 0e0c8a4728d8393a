//! Aborts: which workers are told to stop which request, and when none is.

use std::collections::HashSet;

use support::pair::serve;
use support::{BODY, Pair, Worker};

/// The request id in the next abort at a worker.
async fn abort(worker: &mut Worker) -> String {
    loop {
        let exchange = worker.request().await;
        if exchange.request.head.starts_with("POST /abort_request ") {
            let rid = exchange.request.json()["rid"].as_str().unwrap().to_owned();
            exchange.answer("200 OK", "").await;
            return rid;
        }
    }
}

#[tokio::test]
async fn workers_are_told_by_id_when_a_client_leaves() {
    for (body, rids) in [
        (r#"{"text":"a"}"#, None),
        (r#"{"text":"a","rid":"mine"}"#, Some(vec!["mine"])),
        (
            r#"{"text":["a","b"],"rid":"mine"}"#,
            Some(vec!["mine_0", "mine_1"]),
        ),
    ] {
        let mut pair = Pair::start().await;
        let (prefill, decode) = pair.legs("/generate", body).await;
        let rids = rids.map_or_else(
            || vec![prefill.request.json()["rid"].as_str().unwrap().to_owned()],
            |rids| rids.into_iter().map(str::to_owned).collect(),
        );
        drop(pair.client);
        prefill.closed().await;
        decode.closed().await;
        for rid in &rids {
            assert_eq!(abort(&mut pair.prefill).await, *rid, "{body}");
            assert_eq!(abort(&mut pair.decode).await, *rid, "{body}");
        }
    }
}

#[tokio::test]
async fn each_prompt_of_a_batch_has_an_id_and_each_is_aborted() {
    let mut pair = Pair::start().await;
    let (prefill, _decode) = pair.legs("/generate", r#"{"text":["a","b"]}"#).await;
    let sent = prefill.request.json()["rid"].clone();
    let sent: HashSet<String> = serde_json::from_value(sent).unwrap();
    assert_eq!(sent.len(), 2);
    prefill.answer("400 Bad Request", "{}").await;
    assert_eq!(pair.client.answer().await.status(), 400);
    let aborted = [abort(&mut pair.decode).await, abort(&mut pair.decode).await];
    assert_eq!(HashSet::from(aborted), sent);
}

#[tokio::test]
async fn a_request_that_ends_well_is_not_aborted() {
    let mut pair = Pair::start().await;
    for _ in 0..5 {
        let (prefill, decode) = pair.legs("/generate", BODY).await;
        assert!(prefill.request.head.starts_with("POST /generate "));
        assert!(decode.request.head.starts_with("POST /generate "));
        serve((prefill, decode)).await;
        assert_eq!(pair.client.answer().await.status(), 200);
    }
    assert!(pair.is_idle());
}
