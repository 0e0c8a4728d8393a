//! Workers and clients that fail or leave in each step.

use support::pair::leg;
use support::{Balancer, CHAT, Pair, Worker, config, post};

use super::*;

#[tokio::test]
async fn a_refusal_of_prefill_that_blames_the_request_is_the_clients_response() {
    let refusal = r#"{"error":{"message":"The model `nope` does not exist. Valid aliases: tiny.","type":"NotFoundError","param":"model","code":404}}"#;
    let mut pair = pair().await;
    pair.client.send(post(CHAT, BODY)).await;
    pair.prefill
        .request()
        .await
        .answer("404 Not Found", refusal)
        .await;
    let answer = pair.client.answer().await;
    assert_eq!((answer.status(), answer.text()), (404, refusal));
    assert!(pair.is_idle());
}

#[tokio::test]
async fn another_prefill_worker_computes_what_the_first_one_did_not() {
    for failure in ["500 Internal Server Error", "503 Service Unavailable", ""] {
        let mut pairs = two_pairs().await;
        pairs.client.send(post(CHAT, BODY)).await;
        let (first, prefill) = leg(&mut pairs.prefills).await;
        match failure {
            "" => prefill.reset(),
            status => prefill.answer(status, "{}").await,
        }
        let (second, prefill) = leg(&mut pairs.prefills).await;
        assert_ne!(first, second, "{failure}");
        assert!(asks_for_params(&prefill));
        prefill.answer("200 OK", PREFILLED).await;
        let (_, decode) = leg(&mut pairs.decodes).await;
        assert_eq!(text(&decode), with_params(BODY, params(PREFILLED)));
        decode.answer("200 OK", "{}").await;
        assert_eq!(pairs.client.answer().await.status(), 200);
    }
}

#[tokio::test]
async fn parameters_that_no_decode_worker_has_seen_go_to_another_one() {
    let mut prefill = Worker::listen().await;
    let mut decode = Worker::listen().await;
    let decodes = [Worker::refusing().await, decode.url()];
    let config = vllm(config(&[prefill.url()], &decodes)).set("decode_policy", "round_robin");
    let balancer = Balancer::start(config).await;
    // One of two requests goes to the worker that is not there.
    for _ in 0..2 {
        let mut client = balancer.client().await;
        client.send(post(CHAT, BODY)).await;
        prefill.request().await.answer("200 OK", PREFILLED).await;
        let leg = decode.request().await;
        assert_eq!(text(&leg), with_params(BODY, params(PREFILLED)));
        leg.answer("200 OK", "{}").await;
        assert_eq!(client.answer().await.status(), 200);
        assert!(!prefill.has_request(), "it has computed the prompt once");
    }
}

#[tokio::test]
async fn parameters_that_a_lost_decode_worker_may_have_used_are_not_used_again() {
    let mut pairs = two_pairs().await;
    pairs.client.send(post(CHAT, BODY)).await;
    leg(&mut pairs.prefills)
        .await
        .1
        .answer("200 OK", PREFILLED)
        .await;
    let (first, decode) = leg(&mut pairs.decodes).await;
    decode.reset();
    let (_, prefill) = leg(&mut pairs.prefills).await;
    assert!(asks_for_params(&prefill));
    let other = PREFILLED.replace("[[1,2,3,4]]", "[[5,6,7,8]]");
    prefill.answer("200 OK", &other).await;
    let (second, decode) = leg(&mut pairs.decodes).await;
    assert_ne!(first, second);
    assert_eq!(text(&decode), with_params(BODY, params(&other)));
    decode.answer("200 OK", "{}").await;
    assert_eq!(pairs.client.answer().await.status(), 200);
}

#[tokio::test]
async fn a_response_of_prefill_without_parameters_is_a_clear_error() {
    for response in [
        r#"{"id":"a","kv_transfer_params":null}"#,
        r#"{"id":"a"}"#,
        "[]",
    ] {
        let mut pair = pair().await;
        pair.client.send(post(CHAT, BODY)).await;
        pair.prefill
            .request()
            .await
            .answer("200 OK", response)
            .await;
        let answer = pair
            .bad_gateway("no parameters", "prefill_bad_answer")
            .await;
        assert!(
            answer.text().contains("kv_transfer_params"),
            "{}",
            answer.text()
        );
        assert!(pair.is_idle());
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_leg_that_runs() {
    let mut left_in_prefill = pair().await;
    left_in_prefill.client.send(post(CHAT, BODY)).await;
    let prefill = left_in_prefill.prefill.request().await;
    left_in_prefill.client.reset();
    prefill.closed().await;
    assert!(!left_in_prefill.decode.has_request());

    let mut left_in_decode = pair().await;
    left_in_decode.client.send(post(CHAT, BODY)).await;
    left_in_decode
        .prefill
        .request()
        .await
        .answer("200 OK", PREFILLED)
        .await;
    let decode = left_in_decode.decode.request().await;
    left_in_decode.client.reset();
    decode.closed().await;
}

#[tokio::test]
async fn a_deadline_ends_the_leg_of_prefill() {
    for (setting, body, code) in [
        ("first_token_timeout_secs", STREAM, "first_token_timeout"),
        ("request_timeout_secs", BODY, "request_timeout"),
    ] {
        let mut pair = Pair::with(|config| vllm(config).set(setting, "0.2")).await;
        pair.client.send(post(CHAT, body)).await;
        let prefill = pair.prefill.request().await;
        let answer = pair.client.answer().await;
        assert_eq!(answer.outcome(), (504, Some(code)));
        prefill.closed().await;
        assert!(!pair.decode.has_request());
    }
}

#[tokio::test]
async fn an_error_as_the_first_event_is_a_status_and_a_later_one_passes() {
    let error = r#"{"error": {"message": "Internal server error", "type": "InternalServerError", "param": null, "code": 500}}"#;
    let mut early = Pair::with(|config| vllm(config).set("vllm_decode_alone", false)).await;
    early.client.send(post(CHAT, STREAM)).await;
    early
        .prefill
        .request()
        .await
        .answer("200 OK", PREFILLED)
        .await;
    let mut decode = early.decode.request().await;
    decode.begin_stream().await;
    decode.chunk(&format!("data: {error}\n\n")).await;
    let answer = early.client.answer().await;
    assert_eq!((answer.status(), answer.text()), (500, error));

    let mut late = pair().await;
    late.client.send(post(CHAT, STREAM)).await;
    late.prefill
        .request()
        .await
        .answer("200 OK", PREFILLED)
        .await;
    let mut decode = late.decode.request().await;
    decode.begin_stream().await;
    let token = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\" a\"}}]}\n\n";
    decode.chunk(token).await;
    late.client.head().await;
    assert_eq!(late.client.chunk().await.as_deref(), Some(token));
    let end = format!("data: {error}\n\ndata: [DONE]\n\n");
    decode.chunk(&end).await;
    decode.chunk("").await;
    assert_eq!(late.client.chunk().await.as_deref(), Some(&*end));
}

#[tokio::test]
async fn errors_of_the_balancer_have_the_shape_of_each_endpoint() {
    let refused = [
        (CHAT, "/error/message"),
        ("/v1/completions", "/error/message"),
        ("/inference/v1/generate", "/error/message"),
        ("/v1/messages", "/error/message"),
    ];
    for (path, message) in refused {
        let mut pair = pair().await;
        pair.client.send(post(path, "[]")).await;
        let answer = pair.client.answer().await;
        assert_eq!(answer.status(), 400, "{path}");
        assert!(answer.json().pointer(message).is_some(), "{path}");
        let is_anthropics = answer.json()["type"] == "error";
        assert_eq!(is_anthropics, path == "/v1/messages", "{path}");
    }
}
