//! Errors that the balancer makes: their bodies, and what they tell a client about another try.

use serde_json::Value;
use support::{BODY, Balancer, CHAT, Pair, STREAM, Worker, config, post};

/// The object that the SDKs of OpenAI and Anthropic keep as the body of their exception.
fn kept(body: &Value) -> &Value {
    body.get("error").unwrap_or(body)
}

#[tokio::test]
async fn the_stable_code_is_in_the_body_and_in_the_last_event_as_in_the_header() {
    let (prefill, decode) = (Worker::refusing().await, Worker::refusing().await);
    let balancer = Balancer::start(config(&[prefill], &[decode])).await;
    for path in [
        "/generate",
        CHAT,
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
    ] {
        let mut client = balancer.client().await;
        client.send(post(path, BODY)).await;
        let answer = client.answer().await;
        let code = answer.header("x-mini-lb-error").unwrap().to_owned();
        assert_eq!(kept(&answer.json())["error_code"], code, "{path}");
    }
    let mut pair = Pair::start().await;
    let (_prefill, mut decode) = pair.legs(CHAT, STREAM).await;
    decode.begin_stream().await;
    decode.chunk("data: {\"a\":1}\n\n").await;
    pair.client.head().await;
    pair.client.chunk().await;
    decode.reset();
    let event = pair.client.chunk().await.unwrap();
    let (_, data) = event.split_once("data: ").unwrap();
    let event: Value = serde_json::from_str(data).unwrap();
    assert_eq!(kept(&event)["error_code"], "decode_lost");
    // Load generators take this member for a number.
    assert_eq!(kept(&event)["code"], 502);
}

#[tokio::test]
async fn what_a_pair_cannot_serve_has_a_type_of_its_own() {
    let pair = Pair::start().await;
    let mut client = pair.balancer.client().await;
    client.send(post("/v1/embeddings", "{}")).await;
    let answer = client.answer().await;
    assert_eq!(answer.status(), 501);
    assert_eq!(kept(&answer.json())["type"], "not_implemented_error");
}

#[tokio::test]
async fn a_5xx_after_the_own_retries_says_when_to_try_again_or_that_it_is_no_use() {
    // Nothing listens: the worker may be back in a second.
    let (prefill, decode) = (Worker::refusing().await, Worker::refusing().await);
    let balancer = Balancer::start(config(&[prefill], &[decode])).await;
    let mut client = balancer.client().await;
    client.send(post("/generate", BODY)).await;
    let answer = client.answer().await;
    assert_eq!(answer.status(), 502);
    // The SDKs obey up to 120 s, and do not try again above.
    let seconds: u32 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=120).contains(&seconds), "{seconds}");
    assert_eq!(answer.header("x-should-retry"), None);
    // What does not fit together does not fit the next time either.
    let merged = r#"{"text":"a","return_logprob":true,"logprob_start_len":0}"#;
    let mut pair = Pair::start().await;
    let (prefill, decode) = pair.legs("/generate", merged).await;
    prefill.answer("200 OK", "no JSON").await;
    decode.answer("200 OK", "{}").await;
    let answer = pair.bad_gateway(merged, "merge_failed").await;
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    assert_eq!(answer.header("retry-after"), None);
}

#[tokio::test]
async fn a_workers_own_advice_about_another_try_passes_unchanged() {
    let mut pair = Pair::start().await;
    let (_prefill, mut decode) = pair.legs("/generate", BODY).await;
    decode
        .send(
            "HTTP/1.1 500 Internal Server Error\r\nretry-after: 300\r\nx-should-retry: true\r\n\
             content-length: 2\r\n\r\n{}",
        )
        .await;
    let answer = pair.client.answer().await;
    assert_eq!(answer.outcome(), (500, None));
    assert_eq!(answer.header("retry-after"), Some("300"));
    assert_eq!(answer.header("x-should-retry"), Some("true"));
}
