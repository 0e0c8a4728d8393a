//! Reloads while requests run: none fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use support::mock_worker::{MockWorker, reply};
use support::program::post_json;

use crate::configured::{Configured, lists};

/// Reloads, each of which changes workers, limits and the policy.
const RELOADS: usize = 50;

/// Requests that are live at every time.
const CLIENTS: usize = 8;

#[tokio::test]
async fn fifty_reloads_under_load_fail_no_request() {
    let mut urls = Vec::new();
    for _ in 0..6 {
        let worker = MockWorker::start(|_| async { reply(200, "application/json", "{}") }).await;
        urls.push(worker.url);
    }
    let (prefill, decode) = urls.split_at(3);
    let file = |reload: usize| {
        // One worker of each role is out at each time, another one with each reload.
        let without = |list: &[String]| {
            let mut list = list.to_vec();
            list.remove(reload % 3);
            list
        };
        let policies = ["random", "round_robin", "expected_ttft", "session"];
        let limit = if reload.is_multiple_of(4) { -1 } else { 100 };
        format!(
            "{}policy: {}\nmax_concurrent_requests: {limit}\nqueue_size: {}\ncb_failure_threshold: {}\n",
            lists(&without(prefill), &without(decode)),
            policies[reload % 4],
            100 + reload,
            10 + reload
        )
    };
    let mut server = Configured::start(&file(0)).await;
    let ended = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicUsize::new(0));
    let clients = (0..CLIENTS).map(|_| {
        let (ended, served, address) = (ended.clone(), served.clone(), server.address);
        tokio::spawn(async move {
            while !ended.load(Ordering::Relaxed) {
                let body = r#"{"text":"a","session_id":"s"}"#;
                let answer = post_json(address, "/generate", body).await;
                assert_eq!(answer.status(), 200, "{}", answer.text());
                served.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    for reload in 1..=RELOADS {
        let before = served.load(Ordering::Relaxed);
        let line = server.reload(&file(reload)).await;
        assert!(line.contains("config reloaded"), "{line}");
        // Requests have been served since, so that each reload is one under load.
        support::soon("a request", async {
            while served.load(Ordering::Relaxed) < before + CLIENTS {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    ended.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    // A client may have its response before the request is counted as ended.
    support::soon("the end of all requests", async {
        while server.metric("mini_lb_inflight_requests").await > 0.0 {}
    })
    .await;
}
