//! The limits of requests for several samples: how many, how many at once, and the memory for their bodies.

use support::samples::{GENERATE, asking, document};
use support::{Answer, Pair, post};

/// Two clients, of which the first has as many samples as may run.
#[tokio::test]
async fn each_sample_counts_as_a_request_and_the_clients_request_does_not_count_again() {
    let mut pair = Pair::with(|config| config.max_inflight_requests(3)).await;
    let answer = ask(&pair, 4).await;
    assert_eq!(answer.outcome(), (400, Some("too_many_samples")));
    let legs = pair.samples(GENERATE, &asking(GENERATE, 2, false), 2).await;
    assert_eq!(ask(&pair, 2).await.outcome(), (503, Some("overloaded")));
    let mut other = pair.balancer.client().await;
    other.send(post(GENERATE, "{\"text\":\"a\"}")).await;
    let (prefill, decode) = pair.next_legs().await;
    assert_eq!(ask(&pair, 2).await.outcome(), (503, Some("overloaded")));
    prefill.answer("200 OK", "{}").await;
    decode.answer("200 OK", "{}").await;
    assert_eq!(other.answer().await.status(), 200);
    for (prefill, decode) in legs {
        prefill.answer("200 OK", "{}").await;
        decode.answer("200 OK", &document(GENERATE, "x")).await;
    }
    assert_eq!(pair.client.answer().await.status(), 200);
    let legs = pair.samples(GENERATE, &asking(GENERATE, 3, false), 3).await;
    assert_eq!(legs.len(), 3, "all places are free again");
}

async fn ask(pair: &Pair, n: usize) -> Answer {
    let mut client = pair.balancer.client().await;
    client
        .send(post(GENERATE, &asking(GENERATE, n, false)))
        .await;
    client.answer().await
}

#[tokio::test]
async fn more_samples_than_max_samples_are_refused_by_name() {
    let pair = Pair::with(|config| config.max_samples(4)).await;
    for body in [
        r#"{"text":"a","sampling_params":{"n":5}}"#,
        r#"{"text":["a","b","c"],"sampling_params":{"n":2}}"#,
    ] {
        let mut client = pair.balancer.client().await;
        client.send(post(GENERATE, body)).await;
        let answer = client.answer().await;
        assert_eq!(answer.outcome(), (400, Some("too_many_samples")));
        assert!(answer.text().contains("max_samples"), "{}", answer.text());
    }
    assert!(pair.is_idle());
}

#[tokio::test]
async fn the_copies_of_a_body_count_in_the_memory_for_bodies() {
    let mut pair = Pair::with(|config| config.max_buffered_body_bytes(1 << 20)).await;
    let text = "a".repeat(200 << 10);
    let body = |n: usize| format!(r#"{{"text":"{text}","sampling_params":{{"n":{n}}}}}"#);
    let mut client = pair.balancer.client().await;
    client.send(post(GENERATE, &body(8))).await;
    let answer = client.answer().await;
    assert_eq!(answer.outcome(), (503, Some("overloaded")));
    assert!(pair.is_idle());
    pair.client.send(post(GENERATE, &body(2))).await;
    let legs = pair.next_samples(1).await;
    assert_eq!(legs.len(), 1);
}
