//! Responses of workers that are cut, empty, redirects, too large, compressed, or of another type than expected.

use std::fmt::Write as _;

use serde_json::Value;
use support::pair::{ROLES, leg_of};
use support::{BODY, Balancer, CHAT, Pair, Worker, config, post};

pub(crate) const MERGED: &str = r#"{"text":"a","return_logprob":true,"logprob_start_len":0}"#;
pub(crate) const MERGED_STREAM: &str =
    r#"{"text":"a","return_logprob":true,"logprob_start_len":0,"stream":true}"#;
pub(crate) const PREFILLED: &str = r#"{"meta_info":{"input_token_logprobs":[[null,1,null]]}}"#;

/// A JSON response with these lines in its head.
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
        let mut pair = Pair::start().await;
        let (prefill, mut decode) = pair.legs("/generate", BODY).await;
        decode.send(format!("HTTP/1.1 200 OK\r\n{cut}")).await;
        drop(decode);
        pair.bad_gateway(what, "decode_lost").await;
        prefill.closed().await;
    }
}

#[tokio::test]
async fn a_document_that_decode_cuts_is_tried_again_with_another_pair() {
    let prefill = Worker::listen().await;
    let (mut one, mut two) = Worker::pair().await;
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
    let mut pair = Pair::start().await;
    // Sizes around the buffer of a connection, and around the limit of a response that is held until it is whole.
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
            let (prefill, mut decode) = pair.legs("/generate", BODY).await;
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
            let (answer, ()) = tokio::join!(pair.client.answer(), sent);
            assert_eq!(answer.status(), 200);
            assert!(answer.text() == body, "{size} {chunked}");
        }
    }
}

#[tokio::test]
async fn a_long_document_is_not_held_and_its_cut_is_a_cut() {
    let mut pair = Pair::start().await;
    let (_prefill, mut decode) = pair.legs("/generate", BODY).await;
    let begin = "x".repeat(200_000);
    decode
        .send(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: 2000000\r\n\r\n{begin}"
        ))
        .await;
    assert!(pair.client.head().await.contains("2000000"));
    drop(decode);
    assert!(pair.client.rest().await.len() <= begin.len());
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
        for role in ROLES {
            let mut pair = Pair::start().await;
            let (mut one, other) = leg_of(role, pair.legs("/generate", BODY).await);
            let code = format!("{role}_bad_answer");
            one.send(&redirect).await;
            let answer = pair.bad_gateway(status, &code).await;
            assert_eq!(answer.header("location"), None);
            other.closed().await;
        }
        let mut pair = Pair::start().await;
        pair.client
            .send("GET /v1/models HTTP/1.1\r\nhost: b\r\n\r\n")
            .await;
        pair.prefill.request().await.send(&redirect).await;
        pair.decode.request().await.send(&redirect).await;
        pair.bad_gateway(status, "worker_unreachable").await;
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn a_success_without_a_document_is_no_answer() {
    for role in ROLES {
        let mut pair = Pair::start().await;
        let (mut one, other) = leg_of(role, pair.legs("/generate", BODY).await);
        let code = format!("{role}_bad_answer");
        one.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        pair.bad_gateway("204", &code).await;
        other.closed().await;
    }
}

#[tokio::test]
async fn a_hint_before_the_answer_is_ignored_and_another_protocol_is_no_answer() {
    let mut pair = Pair::start().await;
    let (mut prefill, mut decode) = pair.legs("/generate", BODY).await;
    for leg in [&mut prefill, &mut decode] {
        leg.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
            .await;
    }
    prefill.answer("200 OK", "{}").await;
    decode.answer("200 OK", "{\"text\":1}").await;
    let answer = pair.client.answer().await;
    assert_eq!((answer.status(), answer.text()), (200, "{\"text\":1}"));
    assert_eq!(answer.header("link"), None);

    for role in ROLES {
        let mut pair = Pair::start().await;
        let (mut one, other) = leg_of(role, pair.legs("/generate", BODY).await);
        let code = format!("{role}_bad_answer");
        one.send("HTTP/1.1 101 Switching Protocols\r\nupgrade: foo\r\nconnection: upgrade\r\n\r\n")
            .await;
        pair.bad_gateway("101", &code).await;
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
        for role in ROLES {
            let mut pair = Pair::start().await;
            let (mut one, other) = leg_of(role, pair.legs("/generate", BODY).await);
            let code = format!("{role}_bad_answer");
            // The proxy may close the connection before all of it is written.
            let _ = one.try_send(answer("200 OK", &lines, "{}")).await;
            pair.bad_gateway(what, &code).await;
            other.closed().await;
        }
    }
}

#[tokio::test]
async fn an_answer_in_another_form_passes_where_nothing_is_merged() {
    let mut pair = Pair::start().await;
    for (lines, body) in [
        ("content-type: text/html\r\n", "<html>sorry</html>"),
        ("content-type: text/plain\r\n", "not { JSON"),
        ("content-encoding: gzip\r\n", "\u{1f}not really"),
    ] {
        let (prefill, mut decode) = pair.legs("/generate", BODY).await;
        prefill.answer("200 OK", "{}").await;
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\n{lines}content-length: {length}\r\n\r\n");
        decode.send(head + body).await;
        decode.keep();
        let answer = pair.client.answer().await;
        assert_eq!((answer.status(), answer.text()), (200, body), "{lines}");
        let (name, value) = lines.trim().split_once(": ").unwrap();
        assert_eq!(answer.header(name), Some(value));
    }
}

#[tokio::test]
async fn answers_that_cannot_be_merged_are_a_502_before_anything_is_sent() {
    let json = |body: &str| answer("200 OK", "", body);
    let html = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>";
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
        ("decode is empty", json(PREFILLED), json("")),
    ] {
        for body in [MERGED, MERGED_STREAM] {
            let mut pair = Pair::start().await;
            let (mut prefill, mut decode) = pair.legs("/generate", body).await;
            prefill.send(&prefilled).await;
            decode.send(&decoded).await;
            pair.bad_gateway(&format!("{what}: {body}"), "merge_failed")
                .await;
        }
    }
}

#[tokio::test]
async fn what_decode_says_after_prefill_has_failed_is_not_the_answer() {
    // A document that lacks only its end, and only a head: both arrive before prefill's error.
    for said in ["{\"text\":\"garbage\",\"finish_reason\":\"length\"", ""] {
        let mut pair = Pair::start().await;
        let (prefill, mut decode) = pair.legs("/generate", BODY).await;
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
            said.len() + 1
        );
        decode.send(head + said).await;
        prefill
            .answer("500 Internal Server Error", "{\"message\":\"aborted\"}")
            .await;
        let answer = pair.client.answer().await;
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
        let mut pair = Pair::start().await;
        let (mut prefill, decode) = pair.legs(path, body).await;
        // In two pieces, which the proxy has to join.
        prefill
            .send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .await;
        prefill.chunk(&prefilled[..20]).await;
        prefill.chunk(&prefilled[20..]).await;
        prefill.chunk("").await;
        let answer = pair.client.answer().await;
        assert_eq!(answer.status(), status);
        assert!(answer.text().contains("KV lost"), "{}", answer.text());
        decode.closed().await;
    }
    // A requested abort has no status, and decode's response reports it too.
    let mut pair = Pair::start().await;
    let (prefill, decode) = pair.legs("/generate", BODY).await;
    prefill.answer("200 OK", &abort("")).await;
    decode.answer("200 OK", &abort("")).await;
    let answer = pair.client.answer().await;
    assert_eq!((answer.status(), answer.text()), (200, abort("").as_str()));
}

#[tokio::test]
async fn a_worker_that_refuses_its_own_key_is_not_the_clients_fault() {
    for status in ["401 Unauthorized", "403 Forbidden"] {
        for role in ROLES {
            for workers_own in [true, false] {
                let mut pair = Pair::with(|config| match workers_own {
                    true => config.worker_api_key("sk-w"),
                    false => config,
                })
                .await;
                let (one, other) = leg_of(role, pair.legs("/generate", BODY).await);
                one.answer(status, "{\"error\":\"Unauthorized\"}").await;
                if workers_own {
                    let answer = pair.bad_gateway(status, "worker_auth").await;
                    let message: Value = answer.json()["message"].clone();
                    assert!(!message.to_string().contains("sk-w"));
                } else {
                    let answer = pair.client.answer().await;
                    assert_eq!(answer.status().to_string(), status[..3]);
                    assert_eq!(answer.text(), "{\"error\":\"Unauthorized\"}");
                }
                other.closed().await;
            }
        }
    }
}
