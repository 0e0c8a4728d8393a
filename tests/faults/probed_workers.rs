//! Workers whose probes say that they have another role, or that they are paused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use mini_lb::sim;
use serde_json::Value;
use support::mock_worker::{MockWorker, reply};
use support::{BODY, Balancer, Client, config, post, soon};

const OFTEN: Duration = Duration::from_millis(10);
const READY: &str = "GET /readiness HTTP/1.1\r\nhost: b\r\n\r\n";

/// A worker that says what `info` is.
async fn that_says(info: &'static str) -> MockWorker {
    MockWorker::start(move |seen| async move {
        match seen.target.as_str() {
            "/model_info" => reply(200, "application/json", info),
            _ => reply(200, "application/json", "{}"),
        }
    })
    .await
}

fn generated(worker: &MockWorker) -> usize {
    let seen = worker.seen();
    seen.iter()
        .filter(|seen| seen.target == "/generate")
        .count()
}

async fn balancer(prefills: &[&MockWorker], decodes: &[&MockWorker]) -> Balancer {
    let urls = |workers: &[&MockWorker]| -> Vec<String> {
        workers.iter().map(|worker| worker.url.clone()).collect()
    };
    let config = config(&urls(prefills), &urls(decodes)).health_check_interval(Some(OFTEN));
    Balancer::start(config).await
}

/// The response of `/readiness` that has this status.
async fn readiness(client: &mut Client, status: u16) -> Value {
    soon("the readiness", async {
        loop {
            client.send(READY).await;
            let answer = client.answer().await;
            if answer.status() == status {
                return serde_json::from_slice(answer.text().as_bytes()).unwrap_or_default();
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn workers_in_the_wrong_lists_get_no_request_and_readiness_says_why() {
    let start = sim::SimOptions::default;
    let prefill = sim::Worker::start_prefill(start()).await.unwrap();
    let decode = sim::Worker::start_decode(start()).await.unwrap();
    let config = config(&[decode.url()], &[prefill.url()]).health_check_interval(Some(OFTEN));
    let balancer = Balancer::start(config).await;
    let mut client = balancer.client().await;
    // Not even the first request goes there.
    client.send(post("/generate", BODY)).await;
    let answer = client.answer().await;
    assert_eq!(answer.outcome(), (503, Some("no_prefill")));
    let why =
        "workers that are listed as prefill and say that they are decode: 1 (`mini-lb doctor`";
    assert!(answer.text().contains(why), "{answer:?}");
    let why = readiness(&mut client, 503).await["error"]["message"].to_string();
    for part in [
        "workers listed as prefill whose /model_info has the other role: 1",
        "workers listed as decode whose /model_info has the other role: 1",
    ] {
        assert!(why.contains(part), "{why}");
    }
    assert!(!why.contains("http://"), "{why}");
}

#[tokio::test]
async fn a_worker_whose_role_changes_is_left_out_until_it_changes_back() {
    let switched = Arc::new(AtomicBool::new(false));
    let is_switched = switched.clone();
    let switches = MockWorker::start(move |seen| {
        let role = match is_switched.load(Ordering::SeqCst) {
            true => r#"{"disaggregation_mode":"decode"}"#,
            false => r#"{"disaggregation_mode":"prefill"}"#,
        };
        async move {
            match seen.target.as_str() {
                "/model_info" => reply(200, "application/json", role),
                _ => reply(200, "application/json", "{}"),
            }
        }
    })
    .await;
    let decode = that_says(r#"{"disaggregation_mode":"decode"}"#).await;
    let balancer = balancer(&[&switches], &[&decode]).await;
    let mut client = balancer.client().await;
    for (is_switched, status) in [(false, 200), (true, 503), (false, 200)] {
        switched.store(is_switched, Ordering::SeqCst);
        readiness(&mut client, status).await;
    }
    client.send(post("/generate", BODY)).await;
    assert_eq!(client.answer().await.status(), 200);
}

#[tokio::test]
async fn a_worker_that_does_not_tell_its_role_is_used() {
    for silent in [
        r#"{"disaggregation_mode":"null"}"#,
        r#"{"disaggregation_mode":null}"#,
        r#"{"model_path":"/m"}"#,
        "not found",
    ] {
        let (prefill, decode) = (that_says(silent).await, that_says(silent).await);
        let balancer = balancer(&[&prefill], &[&decode]).await;
        soon("both have told what they tell", async {
            while prefill.seen().len() < 4 || decode.seen().len() < 4 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let mut client = balancer.client().await;
        client.send(post("/generate", BODY)).await;
        assert_eq!(client.answer().await.status(), 200, "{silent}");
    }
}

#[tokio::test]
async fn a_paused_worker_gets_no_request_while_another_one_is_free() {
    let paused = Arc::new(AtomicBool::new(true));
    let unanswered = Arc::new(AtomicUsize::new(0));
    let (is_paused, count) = (paused.clone(), unanswered.clone());
    let pauses = MockWorker::start(move |seen| {
        let (is_paused, count) = (is_paused.clone(), count.clone());
        async move {
            if seen.target == "/health" && is_paused.load(Ordering::SeqCst) {
                count.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<()>().await;
            }
            reply(200, "application/json", "{}")
        }
    })
    .await;
    let (prefill, free) = (that_says("{}").await, that_says("{}").await);
    let urls = [pauses.url.clone(), free.url.clone()];
    let config = config(std::slice::from_ref(&prefill.url), &urls)
        .health_check_interval(Some(OFTEN))
        // Long enough that the free worker answers on a busy machine.
        .health_check_timeout(Duration::from_secs(1));
    let balancer = Balancer::start(config).await;
    // The second probe is sent when the first one has not been answered in time.
    soon("a probe of the paused worker", async {
        while unanswered.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut client = balancer.client().await;
    for _ in 0..20 {
        client.send(post("/generate", BODY)).await;
        assert_eq!(client.answer().await.status(), 200);
    }
    assert_eq!((generated(&pauses), generated(&free)), (0, 20));
    // It gets its share again when it answers.
    paused.store(false, Ordering::SeqCst);
    soon("a request at the worker that goes on", async {
        while generated(&pauses) == 0 {
            client.send(post("/generate", BODY)).await;
            assert_eq!(client.answer().await.status(), 200);
        }
    })
    .await;
}
