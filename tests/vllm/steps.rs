//! One request through both workers.

use support::{CHAT, Pair, post};

use super::*;

const RESPONSE: &str =
    r#"{"id":"chatcmpl-1", "kv_transfer_params":null,"usage":{"prompt_tokens":100}}"#;

#[tokio::test]
async fn decode_gets_the_clients_body_with_prefills_parameters_once_prefill_has_responded() {
    for (path, body, response, limit) in [
        (CHAT, BODY, PREFILLED, "max_tokens"),
        (
            "/v1/completions",
            r#"{"prompt":"a","max_tokens":5}"#,
            include_str!("../fixtures/vllm-0.32.0/prefill/completions.json"),
            "max_tokens",
        ),
        (
            "/v1/responses",
            r#"{"input":"a"}"#,
            include_str!("../fixtures/vllm-0.32.0/prefill/responses.json"),
            "max_output_tokens",
        ),
        (
            "/v1/messages",
            r#"{"messages":[],"max_tokens":9}"#,
            include_str!("../fixtures/vllm-0.32.0/prefill/messages.json"),
            "max_tokens",
        ),
        (
            "/inference/v1/generate",
            r#"{"token_ids":[1,2],"sampling_params":{"max_tokens":4}}"#,
            include_str!("../fixtures/vllm-0.32.0/prefill/generate.json"),
            "",
        ),
    ] {
        let mut pair = pair().await;
        pair.client.send(post(path, body)).await;
        let prefill = pair.prefill.request().await;
        assert!(asks_for_params(&prefill), "{path}");
        assert!(
            prefill.request.head.starts_with(&format!("POST {path} ")),
            "{path}"
        );
        let sent = prefill.request.json();
        let limit = match limit {
            "" => &sent["sampling_params"]["max_tokens"],
            limit => &sent[limit],
        };
        assert_eq!(
            (limit, &sent["stream"]),
            (&1.into(), &false.into()),
            "{path}"
        );
        assert!(!pair.decode.has_request(), "{path}");
        prefill.answer("200 OK", response).await;
        let decode = pair.decode.request().await;
        assert!(
            decode.request.head.starts_with(&format!("POST {path} ")),
            "{path}"
        );
        assert_eq!(text(&decode), with_params(body, params(response)), "{path}");
        decode.answer("200 OK", RESPONSE).await;
        let answer = pair.client.answer().await;
        assert_eq!((answer.status(), answer.text()), (200, RESPONSE), "{path}");
    }
}

#[tokio::test]
async fn a_stream_of_decode_goes_to_the_client_as_it_is() {
    let mut pair = pair().await;
    pair.client.send(post(CHAT, STREAM)).await;
    let prefill = pair.prefill.request().await;
    let sent = prefill.request.json();
    assert_eq!(
        (&sent["stream"], &sent["stream_options"]),
        (&false.into(), &serde_json::Value::Null)
    );
    prefill.answer("200 OK", PREFILLED).await;
    let mut decode = pair.decode.request().await;
    assert_eq!(text(&decode), with_params(STREAM, params(PREFILLED)));
    decode.begin_stream().await;
    let event = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\" a\"}}]}\n\n";
    decode.chunk(event).await;
    assert!(pair.client.head().await.contains("text/event-stream"));
    assert_eq!(pair.client.chunk().await.as_deref(), Some(event));
    decode.chunk("data: [DONE]\n\n").await;
    decode.chunk("").await;
    assert_eq!(
        pair.client.chunk().await.as_deref(),
        Some("data: [DONE]\n\n")
    );
    assert_eq!(pair.client.chunk().await, None);
}

#[tokio::test]
async fn parameters_of_a_client_reach_no_worker() {
    let own = r#"{"kv_transfer_params":{"remote_host":"10.0.0.1"},"messages":[],"kv\u005ftransfer_params":{"remote_port":1}}"#;
    let mut pair = pair().await;
    pair.client.send(post(CHAT, own)).await;
    let prefill = pair.prefill.request().await;
    assert!(asks_for_params(&prefill));
    assert!(!text(&prefill).contains("10.0.0.1"));
    prefill.answer("200 OK", PREFILLED).await;
    let decode = pair.decode.request().await;
    assert_eq!(
        text(&decode),
        with_params(r#"{"messages":[]}"#, params(PREFILLED))
    );
}

#[tokio::test]
async fn the_response_says_how_long_prefill_and_decode_took() {
    let mut pair = Pair::with(|config| vllm(config).set("server_timing", "always")).await;
    pair.client.send(post(CHAT, BODY)).await;
    pair.prefill
        .request()
        .await
        .answer("200 OK", PREFILLED)
        .await;
    pair.decode.request().await.answer("200 OK", RESPONSE).await;
    let head = pair.client.answer().await.head;
    for part in ["prefill;dur=", "decode;dur="] {
        assert!(head.contains(part), "{head}");
    }
}

#[tokio::test]
async fn comments_keep_a_stream_alive_while_prefill_computes() {
    let mut pair = Pair::with(|config| vllm(config).set("stream_keepalive_secs", "0.05")).await;
    pair.client.send(post(CHAT, STREAM)).await;
    let prefill = pair.prefill.request().await;
    assert!(pair.client.head().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(
        pair.client.chunk().await.as_deref(),
        Some(": keepalive\n\n")
    );
    prefill.answer("200 OK", PREFILLED).await;
    let mut decode = pair.decode.request().await;
    decode.begin_stream().await;
    decode.chunk("data: [DONE]\n\n").await;
    decode.chunk("").await;
    let rest = async {
        let mut rest = String::new();
        while let Some(chunk) = pair.client.chunk().await {
            rest.push_str(&chunk);
        }
        rest
    };
    assert!(rest.await.ends_with("data: [DONE]\n\n"));
}
