//! Comments that keep a silent stream alive (`stream_keepalive_secs`).

use std::time::Duration;

use mini_lb::MiniLbConfig;
use support::pair::{TwoPairs, serve};
use support::samples::{self, asking};
use support::{BODY, CHAT, Client, Exchange, Pair, STREAM, Worker, post};

const COMMENT: &str = ": keepalive\n\n";

fn often(config: MiniLbConfig) -> MiniLbConfig {
    config.set("stream_keepalive_secs", 0.05)
}

/// The next chunk that is no comment; `None` at the end.
async fn event(client: &mut Client) -> Option<String> {
    loop {
        let chunk = client.chunk().await;
        if chunk.as_deref() != Some(COMMENT) {
            return chunk;
        }
    }
}

/// The next request at each worker that is no abort, prefill's first.
async fn next_legs(pair: &mut Pair) -> (Exchange, Exchange) {
    (leg(&mut pair.prefill).await, leg(&mut pair.decode).await)
}

async fn leg(worker: &mut Worker) -> Exchange {
    loop {
        let exchange = worker.request().await;
        if !exchange.request.head.starts_with("POST /abort_request ") {
            return exchange;
        }
        exchange.answer("200 OK", "").await;
    }
}

#[tokio::test]
async fn gathered_samples_have_comments_as_one_stream_has() {
    let mut pair = Pair::with(often).await;
    pair.client.send(post(CHAT, &asking(CHAT, 2, true))).await;
    let head = pair.client.head().await;
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains("chunked"),
        "{head}"
    );
    assert_eq!(pair.client.chunk().await.as_deref(), Some(COMMENT));
    let mut legs = pair.next_samples(2).await;
    for (_, decode) in &mut legs {
        decode.begin_stream().await;
        decode.chunk(&samples::event(CHAT, "x")).await;
        assert!(event(&mut pair.client).await.unwrap().contains('x'));
    }
    assert_eq!(pair.client.chunk().await.as_deref(), Some(COMMENT));
    let (prefill, decode) = legs.pop().unwrap();
    decode.reset();
    let rest = String::from_utf8(pair.client.rest().await).unwrap();
    assert!(
        rest.contains("decode_lost") && !rest.contains("[DONE]"),
        "{rest}"
    );
    prefill.closed().await;
}

/// Waits for several comments in a stream of its own. As long as that, the streams of the test could have had some.
async fn several_comments(pair: &mut Pair) {
    let mut client = pair.balancer.client().await;
    client.send(post(CHAT, STREAM)).await;
    let (prefill, decode) = next_legs(pair).await;
    client.head().await;
    for _ in 0..3 {
        assert_eq!(client.chunk().await.as_deref(), Some(COMMENT));
    }
    // The client leaves first: a stream that is lost with its workers would make the next one a suspect.
    drop(client);
    prefill.closed().await;
    decode.closed().await;
}

#[tokio::test]
async fn the_head_and_comments_go_out_while_no_token_has_come() {
    for path in [CHAT, "/v1/completions", "/v1/responses", "/v1/messages"] {
        let mut pair = Pair::with(often).await;
        let (prefill, mut decode) = pair.legs(path, STREAM).await;
        let head = pair.client.head().await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        for line in ["text/event-stream", "x-request-id", "chunked"] {
            assert!(head.to_ascii_lowercase().contains(line), "{head}");
        }
        for _ in 0..2 {
            assert_eq!(pair.client.chunk().await.as_deref(), Some(COMMENT));
        }
        prefill.answer("200 OK", "{}").await;
        decode.begin_stream().await;
        let end = "event: message_stop\ndata: {}\n\nevent: response.completed\ndata: {}\n\ndata: [DONE]\n\n";
        decode.chunk(end).await;
        decode.chunk("").await;
        decode.keep();
        assert_eq!(event(&mut pair.client).await.as_deref(), Some(end));
        assert_eq!(pair.client.chunk().await, None);
        serve(pair.legs("/generate", BODY).await).await;
        assert_eq!(pair.client.answer().await.status(), 200);
    }
}

#[tokio::test]
async fn decodes_head_goes_out_where_it_has_come() {
    let mut pair = Pair::with(often).await;
    let (_prefill, mut decode) = pair.legs(CHAT, STREAM).await;
    decode
        .send("HTTP/1.1 200 OK\r\nx-own: 1\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    // The timer may have been first.
    let head = pair.client.head().await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(pair.client.chunk().await.as_deref(), Some(COMMENT));
    decode.chunk("data: {\"a\":1}\n\n").await;
    assert_eq!(
        event(&mut pair.client).await.as_deref(),
        Some("data: {\"a\":1}\n\n")
    );
}

#[tokio::test]
async fn a_silent_stream_gets_comments_between_events_and_none_inside_one() {
    let mut pair = Pair::with(often).await;
    let (_prefill, mut decode) = pair.legs(CHAT, STREAM).await;
    decode.begin_stream().await;
    decode.chunk("data: {\"a\":1}\n\n").await;
    pair.client.head().await;
    assert!(event(&mut pair.client).await.is_some());
    assert_eq!(pair.client.chunk().await.as_deref(), Some(COMMENT));
    decode.chunk("data: {\"half\":").await;
    assert_eq!(
        event(&mut pair.client).await.as_deref(),
        Some("data: {\"half\":")
    );
    several_comments(&mut pair).await;
    decode.chunk("1}\n\n").await;
    assert_eq!(pair.client.chunk().await.as_deref(), Some("1}\n\n"));
    assert_eq!(pair.client.chunk().await.as_deref(), Some(COMMENT));
}

#[tokio::test]
async fn generate_and_documents_get_no_comments() {
    let mut pair = Pair::with(often).await;
    for (path, body) in [("/generate", STREAM), (CHAT, BODY)] {
        let mut client = pair.balancer.client().await;
        client.send(post(path, body)).await;
        let (prefill, mut decode) = next_legs(&mut pair).await;
        several_comments(&mut pair).await;
        prefill.answer("200 OK", "{}").await;
        decode.begin_stream().await;
        decode.chunk("data: [DONE]\n\n").await;
        let head = client.head().await;
        assert!(head.contains("text/event-stream"), "{head}");
        assert_eq!(client.chunk().await.as_deref(), Some("data: [DONE]\n\n"));
        several_comments(&mut pair).await;
        decode.chunk("").await;
        assert_eq!(client.chunk().await, None, "{path}");
    }
}

#[tokio::test]
async fn a_failure_after_the_head_is_an_error_event_and_no_retry() {
    let message = r#"{"object":"error","message":"too long","code":400}"#;
    for (who, code) in [
        ("prefill rejects", "too long"),
        ("prefill dies", "prefill_lost"),
        ("decode rejects", "decode_rejected"),
        ("decode dies", "decode_lost"),
        ("decode sends a document", "decode_bad_answer"),
    ] {
        let mut pairs = TwoPairs::with(often).await;
        pairs.client.send(post(CHAT, STREAM)).await;
        let ((_, prefill), (_, mut decode)) = pairs.next_legs().await;
        pairs.client.head().await;
        assert_eq!(pairs.client.chunk().await.as_deref(), Some(COMMENT));
        let mut other = None;
        match who {
            "prefill rejects" => {
                prefill.answer("400 Bad Request", message).await;
                other = Some(decode);
            }
            "prefill dies" => {
                prefill.reset();
                other = Some(decode);
            }
            "decode rejects" => decode.answer("503 Service Unavailable", "{}").await,
            "decode dies" => decode.reset(),
            _ => {
                decode
                    .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                    .await;
            }
        }
        let last = event(&mut pairs.client).await.unwrap();
        assert!(last.starts_with("event: error\ndata: {"), "{who}: {last}");
        assert!(last.contains(&format!("\"{code}\"")), "{who}: {last}");
        assert_eq!(
            last.contains("too long"),
            who == "prefill rejects",
            "{last}"
        );
        assert_eq!(pairs.client.rest().await, b"", "{who}");
        if let Some(decode) = other {
            decode.closed().await;
        }
    }
}

#[tokio::test]
async fn comments_are_no_token() {
    let limit = Duration::from_millis(400);
    let mut pair = Pair::with(|config| often(config).first_token_timeout(limit)).await;
    let (prefill, decode) = pair.legs(CHAT, STREAM).await;
    pair.client.head().await;
    let last = event(&mut pair.client).await.unwrap();
    assert!(last.contains("first_token_timeout"), "{last}");
    prefill.closed().await;
    decode.closed().await;
}

#[tokio::test]
async fn a_client_that_leaves_after_a_comment_ends_both_legs() {
    let mut pair = Pair::with(often).await;
    let (prefill, decode) = pair.legs(CHAT, STREAM).await;
    pair.client.head().await;
    assert_eq!(pair.client.chunk().await.as_deref(), Some(COMMENT));
    drop(pair.client);
    prefill.closed().await;
    decode.closed().await;
}
