//! The lines of a worker whose health changes: one for each change, in the words of the documents.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use support::mock_worker::{MockWorker, reply};
use support::{BODY, Client, Process, Worker, mini_lb, post};

fn start(prefill: &str, decode: &str, more: &str) -> Process {
    let line =
        format!("--host 127.0.0.1 --port 0 --prefill {prefill} 8998 --decode {decode} {more}");
    mini_lb!(&line.split_whitespace().collect::<Vec<_>>())
}

/// Whether a line is about the health of a worker.
fn is_of_health(line: &str) -> bool {
    ["set aside", "is back", "probe of a worker"]
        .iter()
        .any(|words| line.contains(words))
}

#[tokio::test]
async fn a_worker_that_refuses_connections_is_set_aside_because_of_that() {
    let prefill = Worker::listen().await;
    let mut process = start(&prefill.url(), &Worker::refusing().await, "");
    let line = process.line("worker set aside").await;
    assert!(
        line.ends_with(r#" because="refuses_connections""#),
        "{line}"
    );
}

#[tokio::test]
async fn a_worker_that_fails_is_set_aside_because_of_its_failures() {
    let (mut prefill, mut decode) = Worker::pair().await;
    let flags = "--disable-health-check --cb-failure-threshold 2 --cb-window-duration-secs 60";
    let mut process = start(&prefill.url(), &decode.url(), flags);
    let address = process.address().await;
    for _ in 0..2 {
        let mut client = Client::connect(address).await;
        client.send(post("/generate", BODY)).await;
        let _prefill = prefill.request().await;
        let failing = decode.request().await;
        failing.answer("504 Gateway Timeout", "{}").await;
        assert_eq!(client.answer().await.status(), 504);
    }
    let line = process.line("worker set aside").await;
    assert!(line.ends_with(r#" because="2 failures in 60 s""#), "{line}");
    assert!(line.contains(&decode.url()), "{line}");
}

#[tokio::test]
async fn a_probe_that_fails_and_is_well_again_is_one_line_each() {
    let status = Arc::new(AtomicU16::new(503));
    let now = status.clone();
    let decode = MockWorker::start(move |_| {
        let status = now.load(Ordering::Relaxed);
        async move { reply(status, "application/json", "{}") }
    })
    .await;
    let prefill = MockWorker::start(|_| async { reply(200, "application/json", "{}") }).await;
    let mut process = start(
        &prefill.url,
        &decode.url,
        "--health-check-interval-secs 0.01",
    );
    let line = process.line("probe of a worker").await;
    let begun = decode.seen().len();
    assert!(
        line.contains("fails role=decode") && line.contains("why=\"503 "),
        "{line}"
    );
    // Some further probes, which fail like the first one.
    while decode.seen().len() < begun + 6 {
        tokio::task::yield_now().await;
    }
    status.store(200, Ordering::Relaxed);
    let next = process.line("role=").await;
    assert!(
        next.contains("probe of a worker is well again role=decode"),
        "{next}"
    );
    let begun = decode.seen().len();
    while decode.seen().len() < begun + 6 {
        tokio::task::yield_now().await;
    }
    let more: Vec<_> = process
        .lines()
        .into_iter()
        .filter(|line| is_of_health(line))
        .collect();
    assert!(more.is_empty(), "{more:?}");
}
