//! Responses that a sidecar in front of a worker has compressed unasked: what must be read is decoded, and what passes is
//! not changed.

use pingora::protocols::http::compression::Algorithm;
use serde_json::json;
use support::pair::{ROLES, leg_of};
use support::{BODY, CHAT, Exchange, Pair, STREAM};

use crate::responses::{MERGED, MERGED_STREAM, PREFILLED};

const CODINGS: [&str; 2] = ["gzip", "zstd"];

fn compressed(coding: &str, plain: &str) -> Vec<u8> {
    match coding {
        "gzip" => {
            let mut encoder = Algorithm::Gzip.compressor(6).unwrap();
            encoder.encode(plain.as_bytes(), true).unwrap().to_vec()
        }
        _ => zstd::encode_all(plain.as_bytes(), 3).unwrap(),
    }
}

/// Sends a whole response with this coding; the connection stays.
async fn answer(mut leg: Exchange, status: &str, content_type: &str, coding: &str, body: &[u8]) {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-encoding: {coding}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    // In two pieces, which the proxy has to join.
    let (begin, end) = body.split_at(body.len() / 2);
    leg.send([head.as_bytes(), begin].concat()).await;
    leg.send(end).await;
    leg.keep();
}

#[tokio::test]
async fn an_error_inside_a_compressed_success_is_that_error_on_both_legs() {
    let error = r#"{"object":"error","message":"KV lost","code":500}"#;
    let event = format!("data: {{\"error\":{error}}}\n\n");
    for coding in CODINGS {
        for role in ROLES {
            let mut pair = Pair::start().await;
            let (one, other) = leg_of(role, pair.legs(CHAT, STREAM).await);
            let body = compressed(coding, &event);
            answer(one, "200 OK", "text/event-stream", coding, &body).await;
            let told = pair.client.answer().await;
            assert_eq!(
                (told.status(), told.text()),
                (500, error),
                "{role} {coding}"
            );
            assert_eq!(told.header("content-encoding"), None);
            other.closed().await;
        }
        // Decode's document passes, whatever it says; prefill's is read.
        let mut pair = Pair::start().await;
        let (prefill, decode) = pair.legs(CHAT, BODY).await;
        let body = compressed(coding, error);
        answer(prefill, "200 OK", "application/json", coding, &body).await;
        let told = pair.client.answer().await;
        assert_eq!((told.status(), told.text()), (500, error), "{coding}");
        decode.closed().await;
    }
}

#[tokio::test]
async fn what_passes_is_not_decoded() {
    let events = "data: {\"a\":1}\n\n".repeat(9) + "data: [DONE]\n\n";
    for coding in ["gzip", "zstd", "br"] {
        let mut pair = Pair::start().await;
        for (path, body, content_type, plain) in [
            (CHAT, STREAM, "text/event-stream", events.as_str()),
            ("/generate", BODY, "application/json", "{\"text\":\"b\"}"),
        ] {
            let (prefill, decode) = pair.legs(path, body).await;
            prefill.answer("200 OK", "{}").await;
            let body = compressed(coding, plain);
            answer(decode, "200 OK", content_type, coding, &body).await;
            let passed = pair.client.answer().await;
            assert_eq!(passed.status(), 200);
            assert_eq!(passed.header("content-encoding"), Some(coding));
            assert!(passed.body == body, "{coding} {path}");
        }
    }
}

#[tokio::test]
async fn a_compressed_refusal_comes_plain_and_without_what_the_proxy_wrote_into_the_request() {
    for coding in CODINGS {
        for role in ROLES {
            let mut pair = Pair::start().await;
            let (one, other) = leg_of(role, pair.legs("/generate", BODY).await);
            let quoting = |request: &str| json!({"error": {"message": format!("in b'{request}'")}});
            let quoted = quoting(one.request.text()).to_string();
            assert!(quoted.contains("bootstrap_room"), "{quoted}");
            let body = compressed(coding, &quoted);
            answer(one, "400 Bad Request", "application/json", coding, &body).await;
            let told = pair.client.answer().await;
            assert_eq!(told.status(), 400);
            assert_eq!(told.header("content-encoding"), None);
            assert_eq!(told.json(), quoting(BODY), "{coding} {role}");
            other.closed().await;
        }
    }
}

#[tokio::test]
async fn compressed_responses_are_merged() {
    let decoded = r#"{"text":"b","meta_info":{"input_token_logprobs":[]}}"#;
    let merged = r#"{"text":"b","meta_info":{"input_token_logprobs":[[null,1,null]]}}"#;
    let event = |document: &str| format!("data: {document}\n\n");
    for coding in CODINGS {
        let mut pair = Pair::start().await;
        let (prefill, decode) = pair.legs("/generate", MERGED).await;
        let body = compressed(coding, PREFILLED);
        answer(prefill, "200 OK", "application/json", coding, &body).await;
        let body = compressed(coding, decoded);
        answer(decode, "200 OK", "application/json", coding, &body).await;
        let told = pair.client.answer().await;
        assert_eq!((told.status(), told.text()), (200, merged), "{coding}");
        assert_eq!(told.header("content-encoding"), None);

        let (prefill, decode) = pair.legs("/generate", MERGED_STREAM).await;
        let body = compressed(coding, &event(PREFILLED));
        answer(prefill, "200 OK", "text/event-stream", coding, &body).await;
        let body = compressed(coding, &(event(decoded) + "data: [DONE]\n\n"));
        answer(decode, "200 OK", "text/event-stream", coding, &body).await;
        let told = pair.client.answer().await;
        assert_eq!(told.text(), event(merged) + "data: [DONE]\n\n", "{coding}");
        assert_eq!(told.header("content-encoding"), None);
    }
}

#[tokio::test]
async fn a_coding_that_must_be_read_and_cannot_be_is_named() {
    for role in ROLES {
        for (coding, body, told) in [
            ("br", &b"\x0b\x02\x80"[..], "content coding br"),
            ("gzip, zstd", b"x", "content coding gzip, zstd"),
            ("gzip", b"no gzip", "not valid gzip"),
            ("zstd", b"no zstd", "not valid zstd"),
        ] {
            for status in ["200 OK", "400 Bad Request"] {
                let mut pair = Pair::start().await;
                let (one, other) = leg_of(role, pair.legs("/generate", MERGED).await);
                other.answer("200 OK", PREFILLED).await;
                answer(one, status, "application/json", coding, body).await;
                let code = format!("{role}_bad_answer");
                let error = pair.bad_gateway(coding, &code).await;
                assert!(error.text().contains(told), "{role}: {}", error.text());
            }
        }
    }
}
