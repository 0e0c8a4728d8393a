//! Errors that the balancer makes: their bodies, and what they tell a client about another try.

use serde_json::Value;
use support::pair::{ROLES, leg_of, serve};
use support::{BODY, Balancer, CHAT, Exchange, Pair, STREAM, Worker, config, post};

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

/// An error that quotes the request of this leg in two forms: as Python writes a dict, with a member that a validator has
/// added, and as the bytes of the body.
fn quoting(leg: &Exchange) -> String {
    let fields = leg.request.json();
    let dict: Vec<String> = fields
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, value)| format!("'{name}': {}", value.to_string().replace('"', "'")))
        .collect();
    let message = format!(
        "1 validation error:\n  {{'input': {{{}, 'tool_choice': 'none'}}}} of b'{}'",
        dict.join(", "),
        leg.request.text()
    );
    serde_json::json!({"object":"error","message":message,"code":400}).to_string()
}

#[tokio::test]
async fn a_worker_that_quotes_the_request_quotes_it_as_the_client_sent_it() {
    let body = r#"{"model":"tiny","ask":"127.0.0.1"}"#;
    let ordinary = "1 validation error:\n  {'input': {'model': 'tiny', 'ask': '127.0.0.1', 'tool_choice': 'none'}} of \
                    b'{\"model\":\"tiny\",\"ask\":\"127.0.0.1\"}'";
    for role in ROLES {
        for streamed in [false, true] {
            let mut pair = Pair::start().await;
            let (mut one, other) = leg_of(role, pair.legs(CHAT, body).await);
            let error = quoting(&one);
            assert!(error.contains("bootstrap_room"), "{error}");
            if streamed {
                one.begin_stream().await;
                one.chunk(&format!("data: {{\"error\":{error}}}\n\n")).await;
                one.chunk("").await;
            } else {
                one.answer("400 Bad Request", &error).await;
            }
            let answer = pair.client.answer().await;
            assert_eq!(answer.status(), 400, "{role} {streamed}");
            assert_eq!(answer.json()["message"], ordinary, "{role} {streamed}");
            drop(other);
        }
    }
    // An error that quotes nothing is not touched, in several pieces too.
    let mut pair = Pair::start().await;
    let (_prefill, mut decode) = pair.legs(CHAT, body).await;
    decode
        .send("HTTP/1.1 422 Unprocessable Entity\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    decode.chunk("{\"error\" ").await;
    decode.chunk(":1e400}").await;
    decode.chunk("").await;
    let answer = pair.client.answer().await;
    assert_eq!(
        (answer.status(), answer.text()),
        (422, "{\"error\" :1e400}")
    );
}

#[tokio::test]
async fn a_beam_search_is_refused_whatever_its_n() {
    let pair = Pair::start().await;
    for params in [
        r#"{"beam_width":2}"#,
        r#"{"n":2,"beam_width":4}"#,
        r#"[{"n":1},{"beam_width":2}]"#,
    ] {
        let body = format!(r#"{{"text":["a","b"],"sampling_params":{params}}}"#);
        let request = post("/generate", &body);
        pair.refuses(params, request, 501, "beam_search_not_supported")
            .await;
    }
    let mut pair = pair;
    serve(
        pair.legs(
            "/generate",
            r#"{"text":"a","sampling_params":{"beam_width":1}}"#,
        )
        .await,
    )
    .await;
    assert_eq!(pair.client.answer().await.status(), 200);
}

#[tokio::test]
async fn a_response_without_the_hidden_states_of_the_prompt_says_so() {
    let mut pair = Pair::start().await;
    for (path, body, warned) in [
        (
            "/generate",
            r#"{"text":"a","return_hidden_states":true}"#,
            true,
        ),
        (
            "/generate",
            r#"{"text":["a"],"return_hidden_states":["last"]}"#,
            true,
        ),
        (CHAT, r#"{"return_hidden_states":true}"#, true),
        (
            "/generate",
            r#"{"text":"a","return_hidden_states":false}"#,
            false,
        ),
        ("/generate", BODY, false),
    ] {
        serve(pair.legs(path, body).await).await;
        let answer = pair.client.answer().await;
        assert_eq!(answer.status(), 200, "{body}");
        let warning = answer.header("x-mini-lb-warning").unwrap_or_default();
        assert_eq!(warning.contains("hidden states"), warned, "{body}");
    }
}
