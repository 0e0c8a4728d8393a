//! Requests that decode serves without a prefill worker.

use std::time::{Duration, Instant};

use support::{Balancer, CHAT, Pair, Worker, post};

use super::*;

#[tokio::test]
async fn a_request_whose_blocks_might_not_be_fetched_once_goes_to_decode_alone_as_it_is() {
    for (path, body) in [
        ("/v1/completions", r#"{"prompt":["a","b"],"max_tokens":3}"#),
        (
            "/v1/chat/completions/batch",
            r#"{"messages":[[{"role":"user","content":"a"}]]}"#,
        ),
        (CHAT, r#"{"messages":[],"n":2,"temperature":1}"#),
        (CHAT, r#"{"messages":[],"prompt_logprobs":1}"#),
    ] {
        let mut pair = pair().await;
        pair.client.send(post(path, body)).await;
        let decode = pair.decode.request().await;
        assert_eq!(text(&decode), body);
        assert!(decode.request.head.starts_with(&format!("POST {path} ")));
        assert!(!pair.prefill.has_request(), "{body}");
        decode.answer("200 OK", r#"{"served":1}"#).await;
        assert_eq!(pair.client.answer().await.text(), r#"{"served":1}"#);
    }
}

#[tokio::test]
async fn the_response_names_no_prefill_worker_that_was_not_asked() {
    let mut pair = Pair::with(|config| vllm(config).set("server_timing", "always")).await;
    pair.client
        .send(post("/v1/completions", r#"{"prompt":["a","b"]}"#))
        .await;
    pair.decode.request().await.answer("200 OK", "{}").await;
    let head = pair.client.answer().await.head.to_ascii_lowercase();
    assert!(head.contains("x-mini-lb-decode"), "{head}");
    assert!(!head.contains("x-mini-lb-prefill"), "{head}");
}

#[tokio::test]
async fn where_no_prefill_worker_is_left_decode_computes_the_prompt() {
    for failure in [
        "500 Internal Server Error",
        "503 Service Unavailable",
        "429 Too Many Requests",
        "",
    ] {
        let mut pair = pair().await;
        pair.client.send(post(CHAT, BODY)).await;
        let prefill = pair.prefill.request().await;
        match failure {
            "" => prefill.reset(),
            status => prefill.answer(status, "{}").await,
        }
        let decode = pair.decode.request().await;
        assert_eq!(text(&decode), BODY, "{failure}");
        decode.answer("200 OK", r#"{"served":1}"#).await;
        let answer = pair.client.answer().await;
        assert_eq!(
            (answer.status(), answer.text()),
            (200, r#"{"served":1}"#),
            "{failure}"
        );
    }
}

#[tokio::test]
async fn decode_computes_no_prompt_where_the_configuration_forbids_it() {
    let mut pair = Pair::with(|config| vllm(config).set("vllm_decode_alone", false)).await;
    pair.client.send(post(CHAT, BODY)).await;
    pair.prefill.request().await.reset();
    pair.bad_gateway("prefill is lost", "prefill_lost").await;
    assert!(pair.is_idle());
}

#[tokio::test]
async fn decode_that_failed_to_fetch_the_blocks_computes_the_prompt() {
    let mut pair = pair().await;
    pair.client.send(post(CHAT, BODY)).await;
    pair.prefill
        .request()
        .await
        .answer("200 OK", PREFILLED)
        .await;
    let decode = pair.decode.request().await;
    assert!(text(&decode).contains("remote_block_ids"));
    let failed = r#"{"error":{"message":"Internal server error","type":"InternalServerError","param":null,"code":500}}"#;
    decode.answer("500 Internal Server Error", failed).await;
    let again = pair.decode.request().await;
    assert_eq!(text(&again), BODY);
    assert!(!pair.prefill.has_request());
    // It has failed by itself this time.
    again.answer("500 Internal Server Error", failed).await;
    let answer = pair.client.answer().await;
    assert_eq!((answer.status(), answer.text()), (500, failed));
    assert!(pair.is_idle());
}

#[tokio::test]
async fn blocks_that_are_gone_cost_a_stream_no_event() {
    // As vLLM 0.32.0 reports it: the head of a chat, the error, and the end marker, at once.
    let failed = [
        r#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"tiny","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":null,"prompt_text":null}"#,
        r#"data: {"error": {"message": "Internal server error", "type": "InternalServerError", "param": null, "code": 500}}"#,
        "data: [DONE]",
        "",
    ]
    .join("\n\n");
    let (head, rest) = failed.split_at(failed.find("data: {\"error\"").unwrap());
    let mut pair = pair().await;
    pair.client.send(post(CHAT, STREAM)).await;
    pair.prefill
        .request()
        .await
        .answer("200 OK", PREFILLED)
        .await;
    let mut decode = pair.decode.request().await;
    decode.begin_stream().await;
    decode.chunk(head).await;
    decode.chunk(rest).await;
    let mut again = pair.decode.request().await;
    assert_eq!(text(&again), STREAM);
    again.begin_stream().await;
    again.chunk(head).await;
    let token = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\" a\"}}]}\n\n";
    again.chunk(token).await;
    pair.client.head().await;
    let mut got = String::new();
    while got.len() < head.len() + token.len() {
        got.push_str(&pair.client.chunk().await.unwrap());
    }
    assert_eq!(got, [head, token].concat());
}

#[tokio::test]
async fn a_fleet_without_a_usable_prefill_worker_serves_by_decode_alone_and_readiness_says_so() {
    let pair = Pair::with(|config| {
        vllm(config)
            .admin_listen("127.0.0.1:0")
            .set("server_timing", "always")
    })
    .await;
    let Pair {
        prefill,
        mut decode,
        balancer,
        mut client,
        ..
    } = pair;
    let path = prefill.url().replace(':', "%3A").replace('/', "%2F");
    let mut admin = balancer.admin().await;
    let drains = post(&format!("/workers/{path}"), r#"{"state":"draining"}"#);
    admin.send(drains.replacen("POST", "PUT", 1)).await;
    let answer = admin.answer().await;
    assert!(answer.status() < 300, "{}", answer.text());
    for (path, body) in [(CHAT, BODY), ("/v1/completions", r#"{"prompt":["a","b"]}"#)] {
        client.send(post(path, body)).await;
        let leg = decode.request().await;
        assert_eq!(text(&leg), body);
        leg.answer("200 OK", r#"{"served":1}"#).await;
        let answer = client.answer().await;
        assert_eq!((answer.status(), answer.text()), (200, r#"{"served":1}"#));
        assert_eq!(answer.header("x-mini-lb-prefill"), None);
        assert_eq!(answer.header("x-mini-lb-decode"), Some(&*decode.url()));
    }
    assert!(!prefill.has_request());
    client.send("GET /ready HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let ready = client.answer().await;
    assert_eq!(ready.status(), 200);
    assert!(
        ready.text().contains("decode computes the prompts"),
        "{}",
        ready.text()
    );
}

#[tokio::test]
async fn a_fleet_without_a_prefill_worker_is_an_error_where_decode_may_not_go_alone() {
    let config = support::config(&[], &[Worker::refusing().await])
        .set("vllm_decode_alone", false)
        .admin_listen("127.0.0.1:0");
    let balancer = Balancer::start(vllm(config)).await;
    let mut client = balancer.client().await;
    client.send(post(CHAT, BODY)).await;
    assert_eq!(client.answer().await.outcome(), (503, Some("no_prefill")));
    client.send("GET /ready HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(client.answer().await.status(), 503);
}

#[tokio::test]
async fn a_response_of_decode_that_stood_still_while_the_lease_ran_out_is_not_passed_on() {
    for stands_still in [true, false] {
        let pair = Pair::with(|config| {
            vllm(config)
                .health_check_interval(Some(Duration::from_millis(20)))
                .set("health_check_timeout_secs", "0.05")
                .set("vllm_kv_lease_secs", "0.6")
        })
        .await;
        let Pair {
            mut prefill,
            mut decode,
            mut client,
            balancer: _balancer,
        } = pair;
        client.send(post(CHAT, BODY)).await;
        let prefills = async {
            loop {
                let asked = prefill.request().await;
                let response = if is_leg(&asked) { PREFILLED } else { "{}" };
                // A probe may have given up.
                let _ = asked.try_answer("200 OK", response).await;
            }
        };
        let story = async {
            let mut held = Vec::new();
            let mut leg = None;
            let mut until = None;
            // Probes come all the time, so that this ends.
            while until.is_none_or(|until| Instant::now() < until) {
                let asked = decode.request().await;
                if is_leg(&asked) {
                    until = Some(Instant::now() + Duration::from_millis(600));
                    leg = Some(asked);
                } else if stands_still {
                    held.push(asked);
                } else {
                    let _ = asked.try_answer("200 OK", "{}").await;
                }
            }
            leg.unwrap().answer("200 OK", r#"{"late":1}"#).await;
            if stands_still {
                let again = loop {
                    let asked = decode.request().await;
                    if is_leg(&asked) {
                        break asked;
                    }
                };
                assert_eq!(text(&again), BODY);
                again.answer("200 OK", r#"{"served":1}"#).await;
            }
            client.answer().await
        };
        let answer = tokio::select! {
            () = prefills => unreachable!("it serves for ever"),
            answer = story => answer,
        };
        let expected = if stands_still {
            r#"{"served":1}"#
        } else {
            r#"{"late":1}"#
        };
        assert_eq!((answer.status(), answer.text()), (200, expected));
    }
}

fn is_leg(exchange: &Exchange) -> bool {
    exchange.request.head.starts_with("POST ")
}
