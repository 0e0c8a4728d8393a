//! The data path over real sockets: what each leg gets, what the client gets, and who is closed when.

use serde_json::{Value, json};
use support::{Balancer, Client, Exchange, Worker, config, post};

struct Stage {
    prefill: Worker,
    decode: Worker,
    balancer: Balancer,
    client: Client,
}

impl Stage {
    async fn set() -> Self {
        let (prefill, decode) = (Worker::listen().await, Worker::listen().await);
        let balancer = Balancer::of(&prefill, &decode).await;
        let client = balancer.client().await;
        Self {
            prefill,
            decode,
            balancer,
            client,
        }
    }

    /// The client sends a request, and both workers have it.
    async fn legs(&mut self, path: &str, body: &str) -> (Exchange, Exchange) {
        self.client.send(post(path, body)).await;
        (self.prefill.request().await, self.decode.request().await)
    }
}

const CHAT: &str = "/v1/chat/completions";
const BODY: &str = r#"{"text":"a"}"#;
const STREAM: &str = r#"{"stream":true}"#;

fn room(exchange: &Exchange) -> Value {
    exchange.request.json()["bootstrap_room"].clone()
}

#[tokio::test]
async fn both_legs_get_the_same_bytes_with_one_rendezvous() {
    let mut stage = Stage::set().await;
    let body =
        r#" { "text" : "\u00e9", "n":1, "x":123456789012345678901234567890, "y":[-0,1e400] } "#;
    let (prefill, decode) = stage.legs("/generate", body).await;
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
        stage.prefill.address.to_string()
    );
    assert_eq!(
        decode.request.header("host").unwrap(),
        stage.decode.address.to_string()
    );
}

#[tokio::test]
async fn what_the_client_says_about_the_rendezvous_is_replaced_in_every_spelling() {
    let mut stage = Stage::set().await;
    let body = r#"{"bootstrap_host":"10.0.0.9","boot\u0073trap_room":1,"text":"a","bootstrap_port":1,"bootstrap_room":2}"#;
    let (prefill, _decode) = stage.legs("/generate", body).await;
    let sent = prefill.request.text();
    assert!(
        !sent.contains("10.0.0.9") && !sent.contains("u0073"),
        "{sent}"
    );
    assert_eq!(sent.matches("bootstrap_room").count(), 1);
}

#[tokio::test]
async fn what_says_where_a_client_comes_from_passes_as_it_is() {
    let mut stage = Stage::set().await;
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
        stage.client.send(request).await;
        for leg in [stage.prefill.request().await, stage.decode.request().await] {
            for (name, value) in said {
                assert_eq!(leg.request.header(name), is_said.then_some(value));
            }
            leg.answer("200 OK", "{}").await;
        }
        assert_eq!(stage.client.answer().await.status(), 200);
    }
}

#[tokio::test]
async fn a_stream_to_a_client_of_http_1_0_has_no_chunks_and_ends_with_the_close() {
    let mut stage = Stage::set().await;
    for (asks, dies) in [
        ("", false),
        ("connection: keep-alive\r\n", false),
        ("", true),
    ] {
        let mut client = stage.balancer.client().await;
        let request = post(CHAT, STREAM).replacen("1.1\r\n", &format!("1.0\r\n{asks}"), 1);
        client.send(request).await;
        let (prefill, mut decode) = (stage.prefill.request().await, stage.decode.request().await);
        prefill.answer("200 OK", "{}").await;
        decode.begin_stream().await;
        decode.chunk("data: 1\n\n").await;
        let head = client.head().await.to_ascii_lowercase();
        assert!(head.contains(" 200 "), "{head}");
        for framing in [
            "transfer-encoding",
            "content-length",
            "connection: keep-alive",
        ] {
            assert!(!head.contains(framing), "{head}");
        }
        if dies {
            drop(decode);
        } else {
            decode.chunk("data: [DONE]\n\n").await;
            decode.chunk("").await;
        }
        let events = String::from_utf8(client.rest().await).unwrap();
        if dies {
            assert!(
                events.starts_with("data: 1\n\ndata: {\"error\""),
                "{events}"
            );
            assert!(events.ends_with("\n\n"), "{events}");
        } else {
            assert_eq!(events, "data: 1\n\ndata: [DONE]\n\n");
        }
    }
}

#[tokio::test]
async fn a_batch_gets_one_room_for_each_prompt() {
    let mut stage = Stage::set().await;
    for (path, body, prompts) in [
        ("/generate", r#"{"text":["a","b","c"]}"#, Some(3)),
        ("/generate", r#"{"input_ids":[[1],[2,3]]}"#, Some(2)),
        ("/generate", r#"{"input_ids":[1,2,3]}"#, None),
        ("/v1/completions", r#"{"prompt":["a"]}"#, Some(1)),
        ("/v1/completions", r#"{"prompt":[[1,2],[3]]}"#, Some(2)),
        ("/v1/completions", r#"{"prompt":[1,2]}"#, None),
    ] {
        let (prefill, decode) = stage.legs(path, body).await;
        let fields = prefill.request.json();
        for field in ["bootstrap_host", "bootstrap_port", "bootstrap_room"] {
            let length = fields[field].as_array().map(Vec::len);
            assert_eq!(length, prompts, "{field} of {body}");
        }
        if let Some(rooms) = fields["bootstrap_room"].as_array() {
            let distinct: std::collections::HashSet<_> =
                rooms.iter().map(Value::to_string).collect();
            assert_eq!(distinct.len(), rooms.len());
        }
        prefill.answer("200 OK", "[]").await;
        decode.answer("200 OK", "[]").await;
        assert_eq!(stage.client.answer().await.status(), 200);
    }
}

#[tokio::test]
async fn decodes_answer_passes_with_its_status_headers_and_bytes() {
    let mut stage = Stage::set().await;
    let (prefill, mut decode) = stage.legs("/generate", BODY).await;
    let body = "{\"text\":\"\\u00e9\" , \"x\":1e400}\n";
    decode
        .send(format!(
            "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: application/json\r\nx-own: 1\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await;
    // Nobody waits for prefill where nothing is merged.
    let answer = stage.client.answer().await;
    assert_eq!((answer.status(), answer.text()), (200, body));
    assert_eq!(answer.header("server"), Some("uvicorn"));
    assert_eq!(answer.header("x-own"), Some("1"));
    assert_eq!(
        answer.header("content-length"),
        Some(body.len().to_string().as_str())
    );
    prefill.answer("200 OK", "{}").await;
}

#[tokio::test]
async fn each_piece_of_a_stream_goes_out_when_it_comes_in() {
    let mut stage = Stage::set().await;
    let (prefill, mut decode) = stage.legs(CHAT, STREAM).await;
    decode.begin_stream().await;
    let pieces = [
        "data: {\"a\":1}\n\n",
        "data: {\"b\":",
        "\"é\"}\n\n: comment\n\n",
        "data: [DONE]\n\n",
    ];
    decode.chunk(pieces[0]).await;
    let head = stage.client.head().await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(stage.client.chunk().await.as_deref(), Some(pieces[0]));
    for piece in &pieces[1..] {
        decode.chunk(piece).await;
        assert_eq!(stage.client.chunk().await.as_deref(), Some(*piece));
    }
    decode.chunk("").await;
    assert_eq!(stage.client.chunk().await, None);
    prefill.answer("200 OK", "{}").await;
}

#[tokio::test]
async fn events_that_come_together_go_out_as_one_piece() {
    let (mut prefill, mut decode) = (Worker::listen().await, Worker::listen().await);
    let balancer = Balancer::of(&prefill, &decode).await;
    let mut client = balancer.client().await;
    client
        .send(post("/generate", r#"{"text":"a","stream":true}"#))
        .await;
    let (_prefill, mut decode) = (prefill.request().await, decode.request().await);
    decode.begin_stream().await;
    decode.chunk("data: 0\n\n").await;
    client.head().await;
    assert_eq!(client.chunk().await.as_deref(), Some("data: 0\n\n"));
    // More than Pingora would take at once.
    decode.send("9\r\ndata: 1\n\n\r\n".repeat(40)).await;
    let piece = client.chunk().await;
    assert_eq!(piece, Some("data: 1\n\n".repeat(40)));
}

#[tokio::test]
async fn an_error_of_prefill_ends_decode_and_reaches_the_client_unchanged() {
    for status in [
        "400 Bad Request",
        "503 Service Unavailable",
        "500 Internal Server Error",
    ] {
        let mut stage = Stage::set().await;
        let (prefill, decode) = stage.legs("/generate", STREAM).await;
        prefill.answer(status, "{\"error\" : \"as it is\"}").await;
        let answer = stage.client.answer().await;
        assert_eq!(answer.status().to_string(), status[..3]);
        assert_eq!(answer.text(), "{\"error\" : \"as it is\"}");
        assert_eq!(answer.header("x-mini-lb-error"), None);
        decode.closed().await;
    }
}

#[tokio::test]
async fn an_error_of_decode_ends_prefill_and_reaches_the_client_unchanged() {
    for status in [
        "400 Bad Request",
        "503 Service Unavailable",
        "500 Internal Server Error",
    ] {
        let mut stage = Stage::set().await;
        let (prefill, decode) = stage.legs("/generate", BODY).await;
        decode.answer(status, "{\"error\" : \"as it is\"}").await;
        let answer = stage.client.answer().await;
        assert_eq!(answer.status().to_string(), status[..3]);
        assert_eq!(answer.text(), "{\"error\" : \"as it is\"}");
        prefill.closed().await;
    }
}

#[tokio::test]
async fn prefills_failure_counts_even_after_decodes_head() {
    let mut stage = Stage::set().await;
    let (prefill, mut decode) = stage.legs("/generate", STREAM).await;
    decode.begin_stream().await;
    prefill
        .answer("400 Bad Request", "{\"error\":\"too long\"}")
        .await;
    let answer = stage.client.answer().await;
    assert_eq!(
        (answer.status(), answer.text()),
        (400, "{\"error\":\"too long\"}")
    );
    decode.closed().await;
}

#[tokio::test]
async fn a_stream_of_prefill_that_begins_with_an_error_is_that_error() {
    let mut stage = Stage::set().await;
    let (mut prefill, mut decode) = stage.legs("/generate", STREAM).await;
    decode.begin_stream().await;
    prefill.begin_stream().await;
    prefill
        .chunk("data: {\"error\":{\"message\":\"too long\",\"code\":400}}\n\n")
        .await;
    prefill.chunk("data: [DONE]\n\n").await;
    prefill.chunk("").await;
    let answer = stage.client.answer().await;
    assert_eq!(answer.status(), 400);
    assert_eq!(answer.json()["error"]["message"], "too long");
    decode.closed().await;
}

#[tokio::test]
async fn a_stream_of_decode_that_begins_with_an_error_is_that_status() {
    let mut stage = Stage::set().await;
    let (prefill, mut decode) = stage.legs(CHAT, STREAM).await;
    decode.begin_stream().await;
    let event = "data: {\"error\":{\"object\":\"error\",\"message\":\"KV lost\",\"type\":\"INTERNAL_SERVER_ERROR\",\"param\":null,\"code\":500}}\n\n";
    decode.chunk(&event[..20]).await;
    decode.chunk(&event[20..]).await;
    let answer = stage.client.answer().await;
    assert_eq!(
        (answer.status(), answer.json()["message"].as_str()),
        (500, Some("KV lost"))
    );
    prefill.closed().await;
}

#[tokio::test]
async fn a_worker_that_refuses_is_a_502_that_names_it_and_the_other_leg_ends() {
    let (mut prefill, mut decode) = (Worker::listen().await, Worker::listen().await);
    let gone = Worker::refusing().await;
    let without_prefill =
        Balancer::start(config(std::slice::from_ref(&gone), &[decode.url()])).await;
    let mut client = without_prefill.client().await;
    client.send(post(CHAT, BODY)).await;
    let answer = client.answer().await;
    assert_eq!(
        (answer.status(), answer.header("x-mini-lb-error")),
        (502, Some("prefill_unreachable"))
    );
    assert!(answer.json()["message"].as_str().unwrap().contains(&gone));
    if decode.has_request() {
        decode.request().await.closed().await;
    }

    let without_decode = Balancer::start(config(&[prefill.url()], &[gone])).await;
    let mut client = without_decode.client().await;
    client.send(post(CHAT, BODY)).await;
    let answer = client.answer().await;
    assert_eq!(
        (answer.status(), answer.header("x-mini-lb-error")),
        (502, Some("decode_unreachable"))
    );
    if prefill.has_request() {
        prefill.request().await.closed().await;
    }
}

#[tokio::test]
async fn a_leg_that_is_lost_before_its_answer_ends_the_other() {
    let mut stage = Stage::set().await;
    let (prefill, decode) = stage.legs("/generate", BODY).await;
    prefill.reset();
    let answer = stage.client.answer().await;
    assert_eq!(
        (answer.status(), answer.header("x-mini-lb-error")),
        (502, Some("prefill_lost"))
    );
    decode.closed().await;

    let mut stage = Stage::set().await;
    let (prefill, decode) = stage.legs("/generate", BODY).await;
    drop(decode);
    let answer = stage.client.answer().await;
    assert_eq!(
        (answer.status(), answer.header("x-mini-lb-error")),
        (502, Some("decode_lost"))
    );
    prefill.closed().await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_both_legs() {
    let mut stage = Stage::set().await;
    let (prefill, decode) = stage.legs("/generate", BODY).await;
    drop(stage.client);
    prefill.closed().await;
    decode.closed().await;
    stage.balancer.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_stream_ends_both_legs() {
    let mut stage = Stage::set().await;
    let (prefill, mut decode) = stage.legs(CHAT, STREAM).await;
    decode.begin_stream().await;
    decode.chunk("data: {\"a\":1}\n\n").await;
    stage.client.head().await;
    stage.client.chunk().await;
    drop(stage.client);
    prefill.closed().await;
    decode.closed().await;
    stage.balancer.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_while_the_merge_waits_for_prefill_ends_both_legs() {
    let mut stage = Stage::set().await;
    let body = r#"{"text":"a","return_logprob":true,"logprob_start_len":0}"#;
    let (prefill, mut decode) = stage.legs("/generate", body).await;
    decode
        .send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
        .await;
    drop(stage.client);
    prefill.closed().await;
    decode.closed().await;
}

#[tokio::test]
async fn a_prefill_that_dies_after_decodes_first_byte_does_not_end_the_stream() {
    let mut stage = Stage::set().await;
    let (prefill, mut decode) = stage.legs(CHAT, STREAM).await;
    decode.begin_stream().await;
    decode.chunk("data: {\"a\":1}\n\n").await;
    stage.client.head().await;
    stage.client.chunk().await;
    prefill.reset();
    decode.chunk("data: [DONE]\n\n").await;
    assert_eq!(
        stage.client.chunk().await.as_deref(),
        Some("data: [DONE]\n\n")
    );
    decode.chunk("").await;
    assert_eq!(stage.client.chunk().await, None);
}

#[tokio::test]
async fn a_decode_that_dies_in_the_middle_of_an_event_leaves_a_whole_error_event_and_no_done() {
    let mut stage = Stage::set().await;
    let (prefill, mut decode) = stage.legs(CHAT, STREAM).await;
    decode.begin_stream().await;
    decode.chunk("data: {\"a\":1}\n\ndata: {\"b\"").await;
    stage.client.head().await;
    stage.client.chunk().await;
    decode.reset();
    let event = stage.client.chunk().await.unwrap();
    let data = event
        .strip_prefix("\n\ndata: ")
        .unwrap()
        .strip_suffix("\n\n")
        .unwrap();
    let error: Value = serde_json::from_str(data).unwrap();
    assert_eq!(error["error"]["code"], 502);
    // Neither an end of the stream nor one of the body: no client takes the connection for one that goes on.
    assert_eq!(stage.client.rest().await, b"");
    prefill.closed().await;
}

#[tokio::test]
async fn bodies_of_any_size_and_framing_reach_both_legs_with_a_length() {
    let mut stage = Stage::set().await;
    for size in [0, 100, 65_500, 65_536, 70_000, 5 << 20, 20 << 20] {
        let body = format!("{{\"text\":\"{}\"}}", "x".repeat(size));
        for chunked in [false, true] {
            if chunked {
                let mut message =
                    "POST /generate HTTP/1.1\r\nhost: b\r\ntransfer-encoding: chunked\r\n\r\n"
                        .to_owned();
                for piece in body.as_bytes().chunks(50_000) {
                    message += &format!(
                        "{:x}\r\n{}\r\n",
                        piece.len(),
                        std::str::from_utf8(piece).unwrap()
                    );
                }
                let (send, legs) = (stage.client.send(message + "0\r\n\r\n"), async {
                    (stage.prefill.request().await, stage.decode.request().await)
                });
                check(&body, tokio::join!(send, legs).1).await;
            } else {
                let (send, legs) = (stage.client.send(post("/generate", &body)), async {
                    (stage.prefill.request().await, stage.decode.request().await)
                });
                check(&body, tokio::join!(send, legs).1).await;
            }
            assert_eq!(stage.client.answer().await.text(), "{}");
        }
    }

    async fn check(body: &str, (prefill, decode): (Exchange, Exchange)) {
        assert_eq!(prefill.request.body, decode.request.body);
        assert!(prefill.request.text().starts_with(&body[..body.len() - 1]));
        assert_eq!(
            prefill.request.header("content-length"),
            Some(prefill.request.body.len().to_string().as_str())
        );
        prefill.answer("200 OK", "{}").await;
        decode.answer("200 OK", "{}").await;
    }
}

#[tokio::test]
async fn a_client_that_expects_100_continue_is_told_to_go_on() {
    let mut stage = Stage::set().await;
    stage
        .client
        .send(format!("POST /generate HTTP/1.1\r\nhost: b\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n", BODY.len()))
        .await;
    assert!(stage.client.head().await.starts_with("HTTP/1.1 100"));
    stage.client.send(BODY).await;
    let (prefill, decode) = (stage.prefill.request().await, stage.decode.request().await);
    assert_eq!(decode.request.header("expect"), None);
    prefill.answer("200 OK", "{}").await;
    decode.answer("200 OK", "{}").await;
    let answer = stage.client.answer().await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.header("connection"), Some("keep-alive"));
}

#[tokio::test]
async fn a_client_that_was_told_to_go_on_gets_the_error_and_keeps_its_connection() {
    let mut stage = Stage::set().await;
    for body in ["{\"text\":", "{\"n\":3,\"sampling_params\":{\"n\":2}}"] {
        stage
            .client
            .send(format!(
                "POST /generate HTTP/1.1\r\nhost: b\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
                body.len()
            ))
            .await;
        assert!(stage.client.head().await.starts_with("HTTP/1.1 100"));
        stage.client.send(body).await;
        assert_eq!(stage.client.answer().await.status(), 400, "{body}");
    }
    stage
        .client
        .send(format!(
            "POST /generate HTTP/1.1\r\nhost: b\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
            BODY.len()
        ))
        .await;
    stage.client.head().await;
    stage.client.send(BODY).await;
    stage
        .prefill
        .request()
        .await
        .answer("400 Bad Request", "{\"no\":1}")
        .await;
    let answer = stage.client.answer().await;
    assert_eq!((answer.status(), answer.text()), (400, "{\"no\":1}"));
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_it_is_read_and_no_worker_hears_of_it() {
    let (mut prefill, mut decode) = (Worker::listen().await, Worker::listen().await);
    let limited = config(&[prefill.url()], &[decode.url()]).max_payload_size(100);
    let balancer = Balancer::start(limited).await;
    let mut client = balancer.client().await;
    client.send("POST /generate HTTP/1.1\r\nhost: b\r\nexpect: 100-continue\r\ncontent-length: 101\r\n\r\n").await;
    let answer = client.answer().await;
    assert_eq!(
        (answer.status(), answer.header("x-mini-lb-error")),
        (413, Some("body_too_large"))
    );

    let mut client = balancer.client().await;
    let chunk = format!("65\r\n{}\r\n", "x".repeat(0x65));
    client
        .send(format!(
            "POST /generate HTTP/1.1\r\nhost: b\r\ntransfer-encoding: chunked\r\n\r\n{chunk}"
        ))
        .await;
    assert_eq!(client.answer().await.status(), 413);
    assert!(!prefill.has_request() && !decode.has_request());
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_in_the_endpoints_shape_and_no_worker_hears_of_it() {
    let mut stage = Stage::set().await;
    let crowd = format!("{{\"text\":[{}\"\"]}}", "\"\",".repeat(1 << 16));
    for (path, body, code, pointer) in [
        ("/generate", "{", "invalid_json", "/message"),
        ("/generate", "[]", "invalid_json", "/message"),
        ("/generate", "", "invalid_json", "/message"),
        (CHAT, "{\"a\":}", "invalid_json", "/message"),
        ("/v1/messages", "nul", "invalid_json", "/error/type"),
        (CHAT, "{\"n\":2}", "n_not_supported", "/message"),
        ("/generate", &crowd, "batch_too_large", "/message"),
        (
            "/generate",
            "{\"text\":\"a\",\"sampling_params\":{\"n\":3}}",
            "n_not_supported",
            "/message",
        ),
    ] {
        let mut client = stage.balancer.client().await;
        client.send(post(path, body)).await;
        let answer = client.answer().await;
        assert_eq!(
            (answer.status(), answer.header("x-mini-lb-error")),
            (400, Some(code)),
            "{path} {body}"
        );
        assert!(
            answer.json().pointer(pointer).is_some_and(Value::is_string),
            "{}",
            answer.text()
        );
    }
    assert!(!stage.prefill.has_request() && !stage.decode.has_request());
}

#[tokio::test]
async fn headers_of_the_client_reach_both_legs_and_those_of_one_hop_do_not() {
    let mut stage = Stage::set().await;
    let sent = "authorization: Bearer k\r\ntraceparent: 00-1-2-01\r\ntracestate: a=b\r\nx-request-id: req-1\r\nx-smg-routing-key: s\r\naccept-encoding: gzip\r\nx-override-rid: r\r\nconnection: x-hop\r\nx-hop: 1\r\n";
    stage
        .client
        .send(format!(
            "POST /generate HTTP/1.1\r\nhost: b\r\n{sent}content-length: {}\r\n\r\n{BODY}",
            BODY.len()
        ))
        .await;
    let (prefill, decode) = (stage.prefill.request().await, stage.decode.request().await);
    for leg in [&prefill.request, &decode.request] {
        for (name, value) in [
            ("authorization", "Bearer k"),
            ("traceparent", "00-1-2-01"),
            ("tracestate", "a=b"),
            ("x-request-id", "req-1"),
            ("x-smg-routing-key", "s"),
        ] {
            assert_eq!(leg.header(name), Some(value), "{name}");
        }
        for name in ["accept-encoding", "x-override-rid", "x-hop", "connection"] {
            assert_eq!(leg.header(name), None, "{name}");
        }
    }
    decode.answer("200 OK", "{}").await;
    assert_eq!(
        stage.client.answer().await.header("x-request-id"),
        Some("req-1")
    );
}

#[tokio::test]
async fn a_request_without_an_id_gets_one_that_both_legs_and_the_client_see() {
    let mut stage = Stage::set().await;
    let (prefill, decode) = stage.legs("/generate", BODY).await;
    let id = prefill.request.header("x-request-id").unwrap().to_owned();
    assert_eq!(id.len(), 32);
    assert_eq!(decode.request.header("x-request-id"), Some(id.as_str()));
    decode.answer("200 OK", "{}").await;
    assert_eq!(
        stage.client.answer().await.header("x-request-id"),
        Some(id.as_str())
    );
}

#[tokio::test]
async fn connections_of_the_client_and_to_both_workers_are_used_again() {
    let mut stage = Stage::set().await;
    let mut rooms = std::collections::HashSet::new();
    for _ in 0..20 {
        let (prefill, decode) = stage.legs("/generate", BODY).await;
        assert!(rooms.insert(room(&prefill).to_string()));
        prefill.answer("200 OK", "{\"a\":1}").await;
        decode.answer("200 OK", "{}").await;
        assert_eq!(stage.client.answer().await.status(), 200);
    }
    // Prefill's connection may still be on its way back when the next request leaves.
    assert!(
        stage.prefill.connections() <= 5,
        "{}",
        stage.prefill.connections()
    );
    assert_eq!(stage.decode.connections(), 1);
}

#[tokio::test]
async fn a_request_that_meets_a_connection_that_the_worker_has_closed_does_not_fail() {
    let mut stage = Stage::set().await;
    for _ in 0..10 {
        let (mut prefill, mut decode) = stage.legs("/generate", BODY).await;
        // The answer promises to keep the connection, and then it is closed at once.
        for leg in [&mut prefill, &mut decode] {
            leg.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                .await;
        }
        drop((prefill, decode));
        assert_eq!(stage.client.answer().await.status(), 200);
    }
}

#[tokio::test]
async fn a_worker_that_closes_a_used_connection_on_the_next_request_gets_it_again() {
    let mut stage = Stage::set().await;
    let (prefill, decode) = stage.legs("/generate", BODY).await;
    prefill.answer("200 OK", "{}").await;
    decode.answer("200 OK", "{}").await;
    stage.client.answer().await;
    let (prefill, decode) = stage.legs("/generate", BODY).await;
    let first = decode.request.body.clone();
    assert_eq!(
        (stage.prefill.connections(), stage.decode.connections()),
        (1, 1)
    );
    drop((prefill, decode));
    let (prefill, decode) = (stage.prefill.request().await, stage.decode.request().await);
    assert_eq!(decode.request.body, first);
    assert_eq!(prefill.request.body, first);
    prefill.answer("200 OK", "{}").await;
    decode.answer("200 OK", "{}").await;
    assert_eq!(stage.client.answer().await.status(), 200);
}

#[tokio::test]
async fn prefills_answer_is_read_to_its_end_after_decodes() {
    let mut stage = Stage::set().await;
    let (mut prefill, decode) = stage.legs("/generate", BODY).await;
    decode.answer("200 OK", "{}").await;
    assert_eq!(stage.client.answer().await.status(), 200);
    let large = "x".repeat(1 << 20);
    prefill
        .send(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{large}",
            large.len()
        ))
        .await;
    prefill.keep();
    let (prefill, _decode) = stage.legs("/generate", BODY).await;
    drop(prefill);
    assert!(stage.prefill.connections() <= 2);
}

#[tokio::test]
async fn a_worker_that_refuses_early_and_closes_is_heard() {
    let mut stage = Stage::set().await;
    let (prefill, mut decode) = stage.legs("/generate", BODY).await;
    decode
        .send("HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        .await;
    drop(decode);
    assert_eq!(stage.client.answer().await.status(), 413);
    prefill.closed().await;
}

#[tokio::test]
async fn a_busy_port_fails_at_once() {
    let (prefill, decode) = (Worker::listen().await, Worker::listen().await);
    let balancer = Balancer::of(&prefill, &decode).await;
    let taken = mini_lb::MiniLbConfig::new(
        "127.0.0.1".into(),
        balancer.address.port(),
        vec![(prefill.url(), None)],
        vec![decode.url()],
        60,
    );
    let error = mini_lb::MiniLoadBalancer::new(taken)
        .unwrap()
        .start()
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("another process does already"),
        "{error}"
    );
}

#[tokio::test]
async fn several_balancers_live_in_one_process_and_stop_on_their_own() {
    let (mut prefill, mut decode) = (Worker::listen().await, Worker::listen().await);
    let (one, two) = (
        Balancer::of(&prefill, &decode).await,
        Balancer::of(&prefill, &decode).await,
    );
    assert_ne!(one.address, two.address);
    one.stop().await;
    let mut client = two.client().await;
    client.send(post("/generate", BODY)).await;
    prefill.request().await.answer("200 OK", "{}").await;
    decode.request().await.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.status(), 200);
}

#[tokio::test]
async fn an_error_of_decode_that_comes_in_pieces_ends_prefill_and_stays_the_answer() {
    let (mut prefill, mut decode) = (Worker::listen().await, Worker::listen().await);
    let balancer = Balancer::of(&prefill, &decode).await;
    let mut client = balancer.client().await;
    client.send(post("/generate", r#"{"text":"a"}"#)).await;
    let (prefill, mut decode) = (prefill.request().await, decode.request().await);
    decode
        .send("HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 12\r\n\r\n")
        .await;
    prefill.closed().await;
    decode.send(r#"{"error":""}"#).await;
    let answer = client.answer().await;
    assert_eq!((answer.status(), answer.text()), (400, r#"{"error":""}"#));
}
