//! Requests on their way to the two workers: bytes, rendezvous, headers, and which ones are refused.

use std::collections::HashSet;

use serde_json::{Value, json};
use support::pair::serve;
use support::{BODY, CHAT, Client, Pair, post};

#[tokio::test]
async fn both_legs_get_the_same_bytes_with_one_rendezvous() {
    let mut pair = Pair::start().await;
    let body =
        r#" { "text" : "\u00e9", "n":1, "x":123456789012345678901234567890, "y":[-0,1e400] } "#;
    let (prefill, decode) = pair.legs("/generate", body).await;
    assert_eq!(prefill.request.body, decode.request.body);
    let sent = prefill.request.text();
    let untouched = body.trim_end().strip_suffix('}').unwrap().trim_end();
    assert!(sent.starts_with(untouched), "{sent}");
    let fields = prefill.request.json();
    assert_eq!(
        (&fields["bootstrap_host"], &fields["bootstrap_port"]),
        (&json!("127.0.0.1"), &json!(8998))
    );
    let room = fields["bootstrap_room"].to_string().parse::<u64>().unwrap();
    assert!((1..=i64::MAX as u64).contains(&room));
    for leg in [&prefill, &decode] {
        assert_eq!(
            leg.request.header("content-length"),
            Some(sent.len().to_string().as_str())
        );
        assert_eq!(leg.request.header("transfer-encoding"), None);
    }
    assert_eq!(
        prefill.request.header("host").unwrap(),
        pair.prefill.address.to_string()
    );
    assert_eq!(
        decode.request.header("host").unwrap(),
        pair.decode.address.to_string()
    );
}

#[tokio::test]
async fn what_the_client_says_about_the_rendezvous_is_replaced_in_every_spelling() {
    let mut pair = Pair::start().await;
    let body = r#"{"bootstrap_host":"10.0.0.9","boot\u0073trap_room":1,"text":"a","bootstrap_port":1,"bootstrap_room":2}"#;
    let (prefill, _decode) = pair.legs("/generate", body).await;
    let sent = prefill.request.text();
    assert!(
        !sent.contains("10.0.0.9") && !sent.contains("u0073"),
        "{sent}"
    );
    assert_eq!(sent.matches("bootstrap_room").count(), 1);
}

#[tokio::test]
async fn what_says_where_a_client_comes_from_passes_as_it_is() {
    let mut pair = Pair::start().await;
    let said = [
        ("x-forwarded-for", "203.0.113.7, 10.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "api.example"),
        ("forwarded", "for=203.0.113.7;proto=https"),
        ("x-real-ip", "203.0.113.7"),
    ];
    let lines: String = said
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .concat();
    let with = post("/generate", BODY).replacen("\r\n\r\n", &format!("\r\n{lines}\r\n"), 1);
    for (request, is_said) in [(with, true), (post("/generate", BODY), false)] {
        pair.client.send(request).await;
        for leg in [pair.prefill.request().await, pair.decode.request().await] {
            for (name, value) in said {
                assert_eq!(leg.request.header(name), is_said.then_some(value));
            }
            leg.answer("200 OK", "{}").await;
        }
        assert_eq!(pair.client.answer().await.status(), 200);
    }
}

#[tokio::test]
async fn a_batch_gets_one_room_for_each_prompt() {
    let mut pair = Pair::start().await;
    for (path, body, prompts) in [
        ("/generate", r#"{"text":["a","b","c"]}"#, Some(3)),
        ("/generate", r#"{"input_ids":[[1],[2,3]]}"#, Some(2)),
        ("/generate", r#"{"input_ids":[1,2,3]}"#, None),
        ("/v1/completions", r#"{"prompt":["a"]}"#, Some(1)),
        ("/v1/completions", r#"{"prompt":[[1,2],[3]]}"#, Some(2)),
        ("/v1/completions", r#"{"prompt":[1,2]}"#, None),
    ] {
        let (prefill, decode) = pair.legs(path, body).await;
        let fields = prefill.request.json();
        for field in ["bootstrap_host", "bootstrap_port", "bootstrap_room"] {
            let length = fields[field].as_array().map(Vec::len);
            assert_eq!(length, prompts, "{field} of {body}");
        }
        if let Some(rooms) = fields["bootstrap_room"].as_array() {
            let distinct: HashSet<_> = rooms.iter().map(Value::to_string).collect();
            assert_eq!(distinct.len(), rooms.len());
        }
        prefill.answer("200 OK", "[]").await;
        decode.answer("200 OK", "[]").await;
        assert_eq!(pair.client.answer().await.status(), 200);
    }
}

#[tokio::test]
async fn bodies_of_any_size_and_framing_reach_both_legs_with_a_length() {
    let mut pair = Pair::start().await;
    for size in [0, 100, 65_500, 65_536, 70_000, 5 << 20, 20 << 20] {
        let body = format!("{{\"text\":\"{}\"}}", "x".repeat(size));
        for request in [post("/generate", &body), chunked(&body)] {
            let (prefill, decode) = pair.legs_of(request).await;
            assert_eq!(prefill.request.body, decode.request.body);
            assert!(prefill.request.text().starts_with(&body[..body.len() - 1]));
            let length = prefill.request.body.len().to_string();
            assert_eq!(
                prefill.request.header("content-length"),
                Some(length.as_str())
            );
            serve((prefill, decode)).await;
            assert_eq!(pair.client.answer().await.text(), "{}");
        }
    }
}

/// A POST to `/generate` with a chunked body.
fn chunked(body: &str) -> String {
    let mut message =
        "POST /generate HTTP/1.1\r\nhost: b\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
    for piece in body.as_bytes().chunks(50_000) {
        let piece = std::str::from_utf8(piece).unwrap();
        message += &format!("{:x}\r\n{piece}\r\n", piece.len());
    }
    message + "0\r\n\r\n"
}

#[tokio::test]
async fn a_client_that_expects_100_continue_is_told_to_go_on() {
    if support::bridge::is_asked_for() {
        return; // needs a client of HTTP/1.1
    }
    let mut pair = Pair::start().await;
    goes_on(&mut pair.client, BODY).await;
    let (prefill, decode) = pair.next_legs().await;
    assert_eq!(decode.request.header("expect"), None);
    serve((prefill, decode)).await;
    let answer = pair.client.answer().await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.header("connection"), Some("keep-alive"));
}

#[tokio::test]
async fn a_client_that_was_told_to_go_on_gets_the_error_and_keeps_its_connection() {
    let mut pair = Pair::start().await;
    for body in ["{\"text\":", "{\"sampling_params\":{\"n\":200}}"] {
        goes_on(&mut pair.client, body).await;
        assert_eq!(pair.client.answer().await.status(), 400, "{body}");
    }
    goes_on(&mut pair.client, BODY).await;
    let prefill = pair.prefill.request().await;
    prefill.answer("400 Bad Request", "{\"no\":1}").await;
    let answer = pair.client.answer().await;
    assert_eq!((answer.status(), answer.text()), (400, "{\"no\":1}"));
}

/// Sends a head with `Expect: 100-continue`, and the body after the interim response.
async fn goes_on(client: &mut Client, body: &str) {
    let length = body.len();
    client
        .send(format!(
            "POST /generate HTTP/1.1\r\nhost: b\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        ))
        .await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 100"), "{head}");
    client.send(body).await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_it_is_read_and_no_worker_hears_of_it() {
    let pair = Pair::with(|config| config.max_payload_size(100)).await;
    let head = "POST /generate HTTP/1.1\r\nhost: b\r\n";
    let declared = format!("{head}expect: 100-continue\r\ncontent-length: 101\r\n\r\n");
    pair.refuses("declared", declared, 413, "body_too_large")
        .await;
    let chunk = format!("65\r\n{}\r\n", "x".repeat(0x65));
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n{chunk}");
    pair.refuses("chunked", chunked, 413, "body_too_large")
        .await;
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_in_the_endpoints_shape_and_no_worker_hears_of_it() {
    let pair = Pair::start().await;
    let crowd = format!("{{\"text\":[{}\"\"]}}", "\"\",".repeat(1 << 16));
    for (path, body, code, pointer) in [
        ("/generate", "{", "invalid_json", "/message"),
        ("/generate", "[]", "invalid_json", "/message"),
        ("/generate", "", "invalid_json", "/message"),
        (CHAT, "{\"a\":}", "invalid_json", "/message"),
        ("/v1/messages", "nul", "invalid_json", "/error/type"),
        (CHAT, "{\"n\":129}", "too_many_samples", "/message"),
        ("/generate", &crowd, "batch_too_large", "/message"),
        (
            "/generate",
            "{\"text\":[\"a\",\"b\"],\"sampling_params\":{\"n\":65}}",
            "too_many_samples",
            "/message",
        ),
    ] {
        let mut client = pair.balancer.client().await;
        client.send(post(path, body)).await;
        let answer = client.answer().await;
        assert_eq!(answer.outcome(), (400, Some(code)), "{path} {body}");
        assert!(
            answer.json().pointer(pointer).is_some_and(Value::is_string),
            "{}",
            answer.text()
        );
    }
    assert!(pair.is_idle());
}

#[tokio::test]
async fn headers_of_the_client_reach_both_legs_and_those_of_one_hop_do_not() {
    let mut pair = Pair::start().await;
    let sent = "authorization: Bearer k\r\ntraceparent: 00-1-2-01\r\ntracestate: a=b\r\nx-request-id: req-1\r\nx-smg-routing-key: s\r\naccept-encoding: gzip\r\nx-override-rid: r\r\nconnection: x-hop\r\nx-hop: 1\r\n";
    pair.client
        .send(format!(
            "POST /generate HTTP/1.1\r\nhost: b\r\n{sent}content-length: {}\r\n\r\n{BODY}",
            BODY.len()
        ))
        .await;
    let (prefill, decode) = pair.next_legs().await;
    for leg in [&prefill.request, &decode.request] {
        for (name, value) in [
            ("authorization", "Bearer k"),
            ("traceparent", "00-1-2-01"),
            ("tracestate", "a=b"),
            ("x-request-id", "req-1"),
            ("x-smg-routing-key", "s"),
            // The proxy reads the responses.
            ("accept-encoding", "identity"),
        ] {
            assert_eq!(leg.header(name), Some(value), "{name}");
        }
        for name in ["x-override-rid", "x-hop", "connection"] {
            assert_eq!(leg.header(name), None, "{name}");
        }
    }
    decode.answer("200 OK", "{}").await;
    assert_eq!(
        pair.client.answer().await.header("x-request-id"),
        Some("req-1")
    );
}

#[tokio::test]
async fn a_request_without_an_id_gets_one_that_both_legs_and_the_client_see() {
    let mut pair = Pair::start().await;
    let (prefill, decode) = pair.legs("/generate", BODY).await;
    let id = prefill.request.header("x-request-id").unwrap().to_owned();
    assert_eq!(id.len(), 32);
    assert_eq!(decode.request.header("x-request-id"), Some(id.as_str()));
    decode.answer("200 OK", "{}").await;
    assert_eq!(
        pair.client.answer().await.header("x-request-id"),
        Some(id.as_str())
    );
}

#[tokio::test]
async fn a_start_before_the_prompt_never_reaches_a_worker() {
    let mut pair = Pair::start().await;
    for start in ["-2", "[0,-7]"] {
        let body =
            format!(r#"{{"text":["a","b"],"return_logprob":true,"logprob_start_len":{start}}}"#);
        let request = post("/generate", &body);
        pair.refuses(start, request, 400, "invalid_option").await;
    }
    // Without `return_logprob` the field has no effect.
    pair.legs("/generate", r#"{"text":"a","logprob_start_len":-2}"#)
        .await;
}

#[tokio::test]
async fn an_option_out_of_range_is_refused_in_the_endpoints_shape_with_its_field_and_bound() {
    let mut pair = Pair::with(|config| config.set("max_top_logprobs", 30)).await;
    for (path, body, words) in [
        (
            CHAT,
            r#"{"logprobs":true,"top_logprobs":31}"#,
            "top_logprobs must be in [0, 30], got 31.",
        ),
        (
            "/generate",
            r#"{"text":["a","b"],"top_logprobs_num":[1,31]}"#,
            "top_logprobs_num must be in [0, 30], got 31.",
        ),
        (
            "/v1/completions",
            r#"{"prompt":[1,-2]}"#,
            "prompt must have token ids of at least 0, got -2.",
        ),
    ] {
        pair.client.send(post(path, body)).await;
        let refused = pair.client.answer().await;
        assert_eq!(refused.outcome(), (400, Some("invalid_option")), "{body}");
        assert!(refused.text().contains(words), "{}", refused.text());
        assert!(pair.is_idle(), "{body}");
    }
    let body = r#"{"logprobs":true,"top_logprobs":30}"#;
    pair.legs(CHAT, body).await;
}
