//! What a worker may answer: cut, empty, elsewhere, too large, compressed, or something else than was asked for.

use std::fmt::Write as _;

use mini_lb::MiniLbConfig;
use serde_json::Value;
use support::{Answer, Balancer, Client, Exchange, Worker, config, post};

const CHAT: &str = "/v1/chat/completions";
const BODY: &str = r#"{"text":"a"}"#;
const STREAM: &str = r#"{"stream":true}"#;
const MERGED: &str = r#"{"text":"a","return_logprob":true,"logprob_start_len":0}"#;
const MERGED_STREAM: &str =
    r#"{"text":"a","return_logprob":true,"logprob_start_len":0,"stream":true}"#;
const PREFILLED: &str = r#"{"meta_info":{"input_token_logprobs":[[null,1,null]]}}"#;

struct Stage {
    prefill: Worker,
    decode: Worker,
    /// Stops with the stage.
    _balancer: Balancer,
    client: Client,
}

impl Stage {
    async fn set() -> Self {
        Self::with(|config| config).await
    }

    async fn with(change: impl FnOnce(MiniLbConfig) -> MiniLbConfig) -> Self {
        let (prefill, decode) = (Worker::listen().await, Worker::listen().await);
        let config = change(config(&[prefill.url()], &[decode.url()]));
        let balancer = Balancer::start(config).await;
        let client = balancer.client().await;
        Self {
            prefill,
            decode,
            _balancer: balancer,
            client,
        }
    }

    async fn legs(&mut self, path: &str, body: &str) -> (Exchange, Exchange) {
        self.client.send(post(path, body)).await;
        (self.prefill.request().await, self.decode.request().await)
    }

    /// The client's answer is a 502 with this code.
    async fn is_bad_gateway(&mut self, what: &str, code: &str) -> Answer {
        let answer = self.client.answer().await;
        assert_eq!(
            (answer.status(), answer.header("x-mini-lb-error")),
            (502, Some(code)),
            "{what}"
        );
        answer
    }
}

/// A JSON answer with these lines in its head.
fn answer(status: &str, lines: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{lines}\r\n{body}"
    )
}

#[tokio::test]
async fn a_document_that_decode_cuts_is_a_502_and_not_half_an_answer() {
    for (what, cut) in [
        ("by length", "content-length: 100\r\n\r\n{\"text\":"),
        (
            "between chunks",
            "transfer-encoding: chunked\r\n\r\n8\r\n{\"text\":\r\n",
        ),
        (
            "in a chunk",
            "transfer-encoding: chunked\r\n\r\nff\r\n{\"text\":",
        ),
    ] {
        let mut stage = Stage::set().await;
        let (prefill, mut decode) = stage.legs("/generate", BODY).await;
        decode.send(format!("HTTP/1.1 200 OK\r\n{cut}")).await;
        drop(decode);
        stage.is_bad_gateway(what, "decode_lost").await;
        prefill.closed().await;
    }
}

#[tokio::test]
async fn a_document_that_decode_cuts_is_tried_again_with_another_pair() {
    let prefill = Worker::listen().await;
    let (mut one, mut two) = (Worker::listen().await, Worker::listen().await);
    let balancer = Balancer::start(config(&[prefill.url()], &[one.url(), two.url()])).await;
    prefill.serve("200 OK", "{}");
    let mut client = balancer.client().await;
    client.send(post("/generate", BODY)).await;
    let (mut first, other) = tokio::select! {
        exchange = one.request() => (exchange, &mut two),
        exchange = two.request() => (exchange, &mut one),
    };
    first
        .send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"text\":")
        .await;
    let room = first.request.json()["bootstrap_room"].clone();
    drop(first);
    let second = other.request().await;
    assert_ne!(second.request.json()["bootstrap_room"], room);
    second.answer("200 OK", "{\"text\":\"whole\"}").await;
    let answer = client.answer().await;
    assert_eq!(
        (answer.status(), answer.text()),
        (200, "{\"text\":\"whole\"}")
    );
}

#[tokio::test]
async fn a_document_in_any_framing_and_size_arrives_unchanged() {
    let mut stage = Stage::set().await;
    // Around a connection's buffer, and around what is held until it is whole.
    for size in [
        0,
        1,
        64 << 10,
        (1 << 20) - 9,
        1 << 20,
        (1 << 20) + 1,
        3 << 20,
    ] {
        let body = format!("{{\"a\":\"{}\"}}", "x".repeat(size));
        for chunked in [false, true] {
            let (prefill, mut decode) = stage.legs("/generate", BODY).await;
            prefill.answer("200 OK", "{}").await;
            let sent = async {
                if chunked {
                    decode
                        .send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                        .await;
                    for piece in body.as_bytes().chunks(100_000) {
                        decode.chunk(std::str::from_utf8(piece).unwrap()).await;
                    }
                    decode.chunk("").await;
                    decode.keep();
                } else {
                    decode.answer("200 OK", &body).await;
                }
            };
            let (answer, ()) = tokio::join!(stage.client.answer(), sent);
            assert_eq!(answer.status(), 200);
            assert!(answer.text() == body, "{size} {chunked}");
        }
    }
}

#[tokio::test]
async fn a_long_document_is_not_held_and_its_cut_is_a_cut() {
    let mut stage = Stage::set().await;
    let (_prefill, mut decode) = stage.legs("/generate", BODY).await;
    let begin = "x".repeat(200_000);
    decode
        .send(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: 2000000\r\n\r\n{begin}"
        ))
        .await;
    assert!(stage.client.head().await.contains("2000000"));
    drop(decode);
    assert!(stage.client.rest().await.len() <= begin.len());
}

#[tokio::test]
async fn a_redirect_is_neither_followed_nor_passed_on() {
    let elsewhere = Worker::listen().await;
    for status in [
        "301 Moved",
        "302 Found",
        "307 Elsewhere",
        "304 Not Modified",
    ] {
        let redirect = answer(status, &format!("location: {}/x\r\n", elsewhere.url()), "");
        for prefill_redirects in [true, false] {
            let mut stage = Stage::set().await;
            let (prefill, decode) = stage.legs("/generate", BODY).await;
            let (mut one, other, code) = match prefill_redirects {
                true => (prefill, decode, "prefill_bad_answer"),
                false => (decode, prefill, "decode_bad_answer"),
            };
            one.send(&redirect).await;
            let answer = stage.is_bad_gateway(status, code).await;
            assert_eq!(answer.header("location"), None);
            other.closed().await;
        }
        let mut stage = Stage::set().await;
        stage
            .client
            .send("GET /v1/models HTTP/1.1\r\nhost: b\r\n\r\n")
            .await;
        stage.prefill.request().await.send(&redirect).await;
        stage.decode.request().await.send(&redirect).await;
        stage.is_bad_gateway(status, "worker_unreachable").await;
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn a_success_without_a_document_is_no_answer() {
    for prefill_is_empty in [true, false] {
        let mut stage = Stage::set().await;
        let (prefill, decode) = stage.legs("/generate", BODY).await;
        let (mut one, other, code) = match prefill_is_empty {
            true => (prefill, decode, "prefill_bad_answer"),
            false => (decode, prefill, "decode_bad_answer"),
        };
        one.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        stage.is_bad_gateway("204", code).await;
        other.closed().await;
    }
}

#[tokio::test]
async fn a_hint_before_the_answer_is_ignored_and_another_protocol_is_no_answer() {
    let mut stage = Stage::set().await;
    let (mut prefill, mut decode) = stage.legs("/generate", BODY).await;
    for leg in [&mut prefill, &mut decode] {
        leg.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
            .await;
    }
    prefill.answer("200 OK", "{}").await;
    decode.answer("200 OK", "{\"text\":1}").await;
    let answer = stage.client.answer().await;
    assert_eq!((answer.status(), answer.text()), (200, "{\"text\":1}"));
    assert_eq!(answer.header("link"), None);

    for prefill_switches in [true, false] {
        let mut stage = Stage::set().await;
        let (prefill, decode) = stage.legs("/generate", BODY).await;
        let (mut one, other, code) = match prefill_switches {
            true => (prefill, decode, "prefill_bad_answer"),
            false => (decode, prefill, "decode_bad_answer"),
        };
        one.send("HTTP/1.1 101 Switching Protocols\r\nupgrade: foo\r\nconnection: upgrade\r\n\r\n")
            .await;
        stage.is_bad_gateway("101", code).await;
        other.closed().await;
    }
}

#[tokio::test]
async fn a_head_without_measure_is_no_answer() {
    let mut many = String::new();
    for field in 0..129 {
        write!(many, "x-{field}: 1\r\n").unwrap();
    }
    let mut far_too_many = String::new();
    for field in 0..1000 {
        write!(far_too_many, "x-{field}: 1\r\n").unwrap();
    }
    for (what, lines) in [
        ("fields", many),
        ("more fields than are parsed", far_too_many),
        ("a value", format!("x-a: {}\r\n", "a".repeat(65 << 10))),
        (
            "a value that never ends",
            format!("x-a: {}", "a".repeat(2 << 20)),
        ),
    ] {
        for prefill_talks in [true, false] {
            let mut stage = Stage::set().await;
            let (prefill, decode) = stage.legs("/generate", BODY).await;
            let (mut one, other, code) = match prefill_talks {
                true => (prefill, decode, "prefill_bad_answer"),
                false => (decode, prefill, "decode_bad_answer"),
            };
            // The proxy may have closed the connection before all of it is written.
            let _ = one.try_send(answer("200 OK", &lines, "{}")).await;
            stage.is_bad_gateway(what, code).await;
            other.closed().await;
        }
    }
}

#[tokio::test]
async fn an_answer_in_another_form_passes_where_nothing_is_merged() {
    let mut stage = Stage::set().await;
    for (lines, body) in [
        ("content-type: text/html\r\n", "<html>sorry</html>"),
        ("content-type: text/plain\r\n", "not { JSON"),
        ("content-encoding: gzip\r\n", "\u{1f}not really"),
    ] {
        let (prefill, mut decode) = stage.legs("/generate", BODY).await;
        prefill.answer("200 OK", "{}").await;
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\n{lines}content-length: {length}\r\n\r\n");
        decode.send(head + body).await;
        decode.keep();
        let answer = stage.client.answer().await;
        assert_eq!((answer.status(), answer.text()), (200, body), "{lines}");
        let (name, value) = lines.trim().split_once(": ").unwrap();
        assert_eq!(answer.header(name), Some(value));
    }
}

#[tokio::test]
async fn a_compressed_stream_is_not_held_for_its_first_event() {
    let mut stage = Stage::set().await;
    let (_prefill, mut decode) = stage.legs(CHAT, STREAM).await;
    decode
        .send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: zstd\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    decode.chunk("packed").await;
    stage.client.head().await;
    assert_eq!(stage.client.chunk().await.as_deref(), Some("packed"));
}

#[tokio::test]
async fn answers_that_cannot_be_merged_are_a_502_before_anything_is_sent() {
    let json = |body: &str| answer("200 OK", "", body);
    let html = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>";
    let packed = answer("200 OK", "content-encoding: gzip\r\n", PREFILLED);
    for (what, prefilled, decoded) in [
        ("prefill is no JSON", json("{\"a\":"), json(PREFILLED)),
        ("prefill is HTML", html.to_owned(), json(PREFILLED)),
        (
            "prefill is for two prompts",
            json("[{},{}]"),
            json(PREFILLED),
        ),
        (
            "prefill is an error",
            json(r#"{"error":{"message":"no"}}"#),
            json(PREFILLED),
        ),
        (
            "prefill has no logprobs",
            json("{\"text\":\"\"}"),
            json(PREFILLED),
        ),
        ("decode is no JSON", json(PREFILLED), json("{\"a\":")),
        ("decode is HTML", json(PREFILLED), html.to_owned()),
        (
            "decode has no meta_info",
            json(PREFILLED),
            json("{\"text\":\"\"}"),
        ),
        (
            "decode is for two prompts",
            json(PREFILLED),
            json("[{},{}]"),
        ),
        ("decode is compressed", json(PREFILLED), packed),
        ("decode is empty", json(PREFILLED), json("")),
    ] {
        for body in [MERGED, MERGED_STREAM] {
            let mut stage = Stage::set().await;
            let (mut prefill, mut decode) = stage.legs("/generate", body).await;
            prefill.send(&prefilled).await;
            decode.send(&decoded).await;
            stage
                .is_bad_gateway(&format!("{what}: {body}"), "merge_failed")
                .await;
        }
    }
}

#[tokio::test]
async fn a_merge_that_fails_in_the_middle_of_a_stream_ends_it_with_an_error_event() {
    let mut stage = Stage::set().await;
    let (mut prefill, mut decode) = stage.legs("/generate", MERGED_STREAM).await;
    prefill.begin_stream().await;
    prefill.chunk(&format!("data: {PREFILLED}\n\n")).await;
    prefill.chunk("data: [DONE]\n\n").await;
    prefill.chunk("").await;
    decode.begin_stream().await;
    decode
        .chunk("data: {\"text\":\"a\",\"meta_info\":{}}\n\n")
        .await;
    stage.client.head().await;
    assert!(
        stage
            .client
            .chunk()
            .await
            .unwrap()
            .contains("input_token_logprobs")
    );
    decode
        .chunk("data: {\"text\":\"a\",\"meta_info\":{}\n\n")
        .await;
    let event = stage.client.chunk().await.unwrap();
    assert!(
        event.starts_with("data: {\"error\"") && event.contains("malformed"),
        "{event}"
    );
    assert_eq!(stage.client.chunk().await, None);
    decode.closed().await;
}

#[tokio::test]
async fn what_decode_says_after_prefill_has_failed_is_not_the_answer() {
    // A document that is complete but for its end, and the head of one: both came before prefill's error.
    for said in ["{\"text\":\"garbage\",\"finish_reason\":\"length\"", ""] {
        let mut stage = Stage::set().await;
        let (prefill, mut decode) = stage.legs("/generate", BODY).await;
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
            said.len() + 1
        );
        decode.send(head + said).await;
        prefill
            .answer("500 Internal Server Error", "{\"message\":\"aborted\"}")
            .await;
        let answer = stage.client.answer().await;
        assert_eq!(
            (answer.status(), answer.text()),
            (500, "{\"message\":\"aborted\"}")
        );
        decode.closed().await;
    }
}

#[tokio::test]
async fn an_error_that_prefill_reports_under_200_is_that_error() {
    let abort = |rest: &str| {
        format!(
            r#"{{"text":"","meta_info":{{"finish_reason":{{"type":"abort","message":"KV lost"{rest}}}}}}}"#
        )
    };
    for (path, body, prefilled, status) in [
        ("/generate", BODY, abort(r#","status_code":500"#), 500),
        ("/generate", MERGED, abort(r#","status_code":400"#), 400),
        (
            CHAT,
            BODY,
            r#"{"object":"error","message":"KV lost","code":500}"#.to_owned(),
            500,
        ),
    ] {
        let mut stage = Stage::set().await;
        let (mut prefill, decode) = stage.legs(path, body).await;
        // In two pieces: what is kept of it is put together.
        prefill
            .send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .await;
        prefill.chunk(&prefilled[..20]).await;
        prefill.chunk(&prefilled[20..]).await;
        prefill.chunk("").await;
        let answer = stage.client.answer().await;
        assert_eq!(answer.status(), status);
        assert!(answer.text().contains("KV lost"), "{}", answer.text());
        decode.closed().await;
    }
    // An abort that somebody has asked for has no status: decode's answer says the same.
    let mut stage = Stage::set().await;
    let (prefill, decode) = stage.legs("/generate", BODY).await;
    prefill.answer("200 OK", &abort("")).await;
    decode.answer("200 OK", &abort("")).await;
    let answer = stage.client.answer().await;
    assert_eq!((answer.status(), answer.text()), (200, abort("").as_str()));
}

#[tokio::test]
async fn an_end_without_done_an_error_and_an_abort_in_a_stream_pass_as_they_are() {
    let mut stage = Stage::set().await;
    for last in [
        "data: {\"choices\":[]}\n\n",
        "data: {\"error\":{\"message\":\"KV lost\",\"code\":500}}\n\n",
        "data: {\"choices\":[{\"finish_reason\":\"abort\"}]}\n\n",
        "data: [DONE]\n\ndata: [DONE]\n\n",
        "data: cut off",
    ] {
        let (prefill, mut decode) = stage.legs(CHAT, STREAM).await;
        prefill.answer("200 OK", "{}").await;
        decode.begin_stream().await;
        decode.chunk("data: {\"a\":1}\n\n").await;
        stage.client.head().await;
        stage.client.chunk().await.unwrap();
        decode.chunk(last).await;
        decode.chunk("").await;
        decode.keep();
        assert_eq!(stage.client.chunk().await.as_deref(), Some(last));
        assert_eq!(stage.client.chunk().await, None);
    }
}

#[tokio::test]
async fn every_spelling_of_events_passes_byte_for_byte() {
    let mut stage = Stage::set().await;
    let stream: &[u8] = b": hello\r\n\r\nevent: a\rid: 1\rretry: 3\rdata: x\r\rdata: \xff\xfe\n\ndata: one\ndata: two\n\ndata:\n\ndata: no end";
    // Piece by piece, so that line ends and characters are torn.
    let (prefill, mut decode) = stage.legs(CHAT, STREAM).await;
    prefill.answer("200 OK", "{}").await;
    decode.begin_stream().await;
    for byte in stream {
        decode
            .send([b"1\r\n", [*byte].as_slice(), b"\r\n"].concat())
            .await;
    }
    decode.chunk("").await;
    let head = stage.client.head().await;
    assert!(head.contains("chunked"), "{head}");
    let mut got = Vec::new();
    while let Some(chunk) = stage.client.bytes().await {
        got.extend(chunk);
    }
    assert_eq!(got, stream);
}

#[tokio::test]
async fn an_event_of_any_size_passes_while_it_comes() {
    let mut stage = Stage::set().await;
    let (_prefill, mut decode) = stage.legs(CHAT, STREAM).await;
    decode.begin_stream().await;
    // More than the first event of a stream is waited for, and no end of it.
    decode
        .chunk(&format!("data: {}", "x".repeat(65 << 10)))
        .await;
    stage.client.head().await;
    let mut got = 0;
    while got < 65 << 10 {
        got += stage.client.chunk().await.unwrap().len();
    }
    decode.chunk("and so on").await;
    assert_eq!(stage.client.chunk().await.as_deref(), Some("and so on"));
}

#[tokio::test]
async fn an_event_over_the_limit_that_must_be_merged_is_an_error() {
    let mut stage = Stage::with(|config| config.max_payload_size(1000)).await;
    let (mut prefill, mut decode) = stage.legs("/generate", MERGED_STREAM).await;
    prefill.begin_stream().await;
    prefill.chunk(&format!("data: {PREFILLED}\n\n")).await;
    prefill.chunk("").await;
    decode.begin_stream().await;
    decode.chunk(&format!("data: {}", "x".repeat(1001))).await;
    stage.is_bad_gateway("too long", "decode_bad_answer").await;
    decode.closed().await;
}

#[tokio::test]
async fn thousands_of_events_in_one_read_all_pass() {
    let mut stage = Stage::set().await;
    for (body, first) in [(STREAM, "{}"), (MERGED_STREAM, PREFILLED)] {
        let (mut prefill, mut decode) = stage.legs("/generate", body).await;
        prefill.begin_stream().await;
        prefill.chunk(&format!("data: {first}\n\n")).await;
        prefill.chunk("").await;
        prefill.keep();
        decode.begin_stream().await;
        let event = "data: {\"text\":\"a\",\"meta_info\":{}}\n\n";
        decode.chunk(&event.repeat(10_000)).await;
        decode.chunk("").await;
        decode.keep();
        stage.client.head().await;
        let mut got = String::new();
        while let Some(chunk) = stage.client.chunk().await {
            got += &chunk;
        }
        assert_eq!(got.matches("data: ").count(), 10_000);
    }
}

#[tokio::test]
async fn a_comment_keeps_a_stream_alive() {
    // Each silence is half of what is allowed, all of them together are far more.
    let limit = std::time::Duration::from_millis(400);
    let mut stage = Stage::with(|config| config.stream_idle_timeout(limit)).await;
    let (_prefill, mut decode) = stage.legs(CHAT, STREAM).await;
    decode.begin_stream().await;
    decode.chunk("data: {\"a\":1}\n\n").await;
    stage.client.head().await;
    stage.client.chunk().await.unwrap();
    for _ in 0..6 {
        assert_eq!(stage.client.rest_within(limit / 2).await, None);
        decode.chunk(": ping\n\n").await;
        assert_eq!(stage.client.chunk().await.as_deref(), Some(": ping\n\n"));
    }
    let event = stage.client.chunk().await.unwrap();
    assert!(event.contains("stream_idle_timeout_secs"), "{event}");
}

#[tokio::test]
async fn a_worker_that_refuses_its_own_key_is_not_the_clients_fault() {
    for status in ["401 Unauthorized", "403 Forbidden"] {
        for prefill_refuses in [true, false] {
            for workers_own in [true, false] {
                let mut stage = Stage::with(|config| match workers_own {
                    true => config.worker_api_key("sk-w"),
                    false => config,
                })
                .await;
                let (prefill, decode) = stage.legs("/generate", BODY).await;
                let (one, other) = match prefill_refuses {
                    true => (prefill, decode),
                    false => (decode, prefill),
                };
                one.answer(status, "{\"error\":\"Unauthorized\"}").await;
                if workers_own {
                    let answer = stage.is_bad_gateway(status, "worker_auth").await;
                    let message: Value = answer.json()["message"].clone();
                    assert!(!message.to_string().contains("sk-w"));
                } else {
                    let answer = stage.client.answer().await;
                    assert_eq!(answer.status().to_string(), status[..3]);
                    assert_eq!(answer.text(), "{\"error\":\"Unauthorized\"}");
                }
                other.closed().await;
            }
        }
    }
}
