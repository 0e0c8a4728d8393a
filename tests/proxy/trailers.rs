//! Trailers of decode's response reach a client that takes them, behind everything else; all others end at the proxy.

use support::{BODY, CHAT, Exchange, Pair, STREAM, post};

/// What a worker sends behind its last chunk, and what of it a client gets.
const SENT: &str = "0\r\nx-sum: 1\r\nContent-Length: 9\r\nset-cookie: a=b\r\nX-Sum: 2\r\n\r\n";
const GOT: &str = "0\r\nx-sum: 1\r\nx-sum: 2\r\n\r\n";

const MERGED: &str = r#"{"text":"a","return_logprob":true,"logprob_start_len":0}"#;
const MERGED_STREAM: &str =
    r#"{"text":"a","return_logprob":true,"logprob_start_len":0,"stream":true}"#;
const PREFILLED: &str = r#"{"meta_info":{"input_token_logprobs":[[null,1,null]]}}"#;
const DECODED: &str = r#"{"text":"b","meta_info":{"input_token_logprobs":[]}}"#;
const BOTH: &str = r#"{"text":"b","meta_info":{"input_token_logprobs":[[null,1,null]]}}"#;
const DONE: &str = "data: [DONE]\n\n";

/// A request with these fields.
fn request(path: &str, body: &str, fields: &str) -> String {
    post(path, body).replacen("\r\n", &format!("\r\n{fields}"), 1)
}

fn event(document: &str) -> String {
    format!("data: {document}\n\n")
}

/// Sends this head, and this body with the trailers behind it, and keeps the connection.
async fn respond(mut leg: Exchange, status: &str, content_type: &str, body: &str) {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    let chunk = format!("{:x}\r\n{body}\r\n", body.len());
    leg.send([head, chunk, SENT.to_owned()].concat()).await;
    leg.keep();
}

/// Reads a response that ends with the trailers: its body.
async fn trailed(pair: &mut Pair, what: &str) -> String {
    let head = pair.client.head().await.to_ascii_lowercase();
    assert!(head.contains("\r\ntrailer: x-sum\r\n"), "{what}: {head}");
    assert!(!head.contains("content-length"), "{what}: {head}");
    let body = pair.client.chunk().await.expect("a body");
    // What follows the body has the form of a head.
    assert_eq!(pair.client.head().await, GOT, "{what}");
    body
}

#[tokio::test]
async fn trailers_come_behind_every_kind_of_response_and_the_connection_is_kept() {
    let mut pair = Pair::start().await;
    let stream = event(DECODED) + DONE;
    let merged_stream = event(BOTH) + DONE;
    let (json, events) = ("application/json", "text/event-stream");
    for (what, body, content_type, prefilled, sent, got) in [
        ("a document", BODY, json, "{}", DECODED, DECODED),
        ("a stream", STREAM, events, DONE, &stream, &stream),
        ("a merged document", MERGED, json, PREFILLED, DECODED, BOTH),
        (
            "a merged stream",
            MERGED_STREAM,
            events,
            &event(PREFILLED),
            &stream,
            &merged_stream,
        ),
    ] {
        let request = request("/generate", body, "te: trailers\r\nconnection: te\r\n");
        let (prefill, decode) = pair.legs_of(request).await;
        for leg in [&prefill, &decode] {
            assert_eq!(leg.request.header("te"), Some("trailers"));
            assert_eq!(leg.request.header("connection"), Some("te"));
        }
        respond(prefill, "200 OK", content_type, prefilled).await;
        respond(decode, "200 OK", content_type, sent).await;
        assert_eq!(trailed(&mut pair, what).await, got, "{what}");
    }
    assert_eq!(pair.decode.connections(), 1, "the worker's is kept too");
}

#[tokio::test]
async fn trailers_come_behind_a_refusal() {
    let mut pair = Pair::start().await;
    let request = request(CHAT, STREAM, "te: trailers\r\n");
    let (_prefill, decode) = pair.legs_of(request).await;
    respond(decode, "400 Bad Request", "application/json", "{}").await;
    assert_eq!(trailed(&mut pair, "a refusal").await, "{}");
}

#[tokio::test]
async fn trailers_come_behind_a_relayed_stream_however_they_arrive() {
    let mut pair = Pair::start().await;
    for split in 1..SENT.len() {
        let request = request(CHAT, STREAM, "te: trailers\r\n");
        let (prefill, mut decode) = pair.legs_of(request).await;
        prefill.answer("200 OK", "{}").await;
        decode.begin_stream().await;
        decode.chunk("data: 1\n\n").await;
        pair.client.head().await;
        assert_eq!(pair.client.chunk().await.unwrap(), "data: 1\n\n");
        for next in ["data: 2\n\n", DONE] {
            decode.chunk(next).await;
            assert_eq!(pair.client.chunk().await.unwrap(), next);
        }
        let (begin, rest) = SENT.split_at(split);
        decode.send(begin).await;
        tokio::task::yield_now().await;
        decode.send(rest).await;
        decode.keep();
        assert_eq!(pair.client.head().await, GOT, "{split}");
    }
}

#[tokio::test]
async fn a_client_that_does_not_ask_gets_none() {
    let mut pair = Pair::start().await;
    for fields in ["", "te: gzip\r\n"] {
        let (prefill, decode) = pair.legs_of(request("/generate", BODY, fields)).await;
        assert_eq!(decode.request.header("te"), None);
        prefill.answer("200 OK", "{}").await;
        respond(decode, "200 OK", "application/json", DECODED).await;
        let answer = pair.client.answer().await;
        assert_eq!((answer.status(), answer.text()), (200, DECODED));
        assert_eq!(answer.header("trailer"), None);
    }
    let old = request(
        "/generate",
        BODY,
        "te: trailers\r\nconnection: keep-alive\r\n",
    );
    let (prefill, decode) = pair.legs_of(old.replacen("/1.1", "/1.0", 1)).await;
    prefill.answer("200 OK", "{}").await;
    respond(decode, "200 OK", "application/json", DECODED).await;
    let answer = pair.client.answer().await;
    assert_eq!((answer.text(), answer.header("trailer")), (DECODED, None));
}

#[tokio::test]
async fn trailers_of_samples_and_of_prefill_are_dropped() {
    let mut pair = Pair::start().await;
    let body = r#"{"text":"a","sampling_params":{"n":2}}"#;
    pair.client
        .send(request("/generate", body, "te: trailers\r\n"))
        .await;
    let item = r#"{"text":"b","output_ids":[1],"meta_info":{"id":"x","finish_reason":null,"prompt_tokens":1,"completion_tokens":1}}"#;
    for (prefill, decode) in pair.next_samples(2).await {
        prefill.answer("200 OK", item).await;
        respond(decode, "200 OK", "application/json", item).await;
    }
    let answer = pair.client.answer().await;
    assert_eq!((answer.status(), answer.header("trailer")), (200, None));

    let (prefill, decode) = pair
        .legs_of(request("/generate", BODY, "te: trailers\r\n"))
        .await;
    respond(prefill, "200 OK", "application/json", "{}").await;
    decode.answer("200 OK", DECODED).await;
    assert_eq!(pair.client.answer().await.text(), DECODED);
    let refused = request("/generate", BODY, "te: trailers\r\n");
    let (prefill, _decode) = pair.legs_of(refused).await;
    respond(prefill, "400 Bad Request", "application/json", "{}").await;
    let answer = pair.client.answer().await;
    assert_eq!((answer.status(), answer.header("trailer")), (400, None));
}
