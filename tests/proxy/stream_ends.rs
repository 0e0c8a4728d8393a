//! How streams end: the end marker of each endpoint, its lack, and the errors that workers report before it.

use support::pair::{TwoPairs, serve};
use support::samples::{ROUTES, asking, event};
use support::{BODY, CHAT, Exchange, Pair, STREAM, post};

/// A stream of each endpoint: its path, an event, and the event that is its marker.
const STREAMS: [(&str, &str, &str); 6] = [
    (
        "/generate",
        "data: {\"text\":\"a\"}\n\n",
        "data: [DONE]\n\n",
    ),
    (CHAT, "data: {\"choices\":[]}\n\n", "data: [DONE]\n\n"),
    (
        "/v1/completions",
        "data: {\"choices\":[]}\n\n",
        "data: [DONE]\n\n",
    ),
    (
        "/v1/responses",
        "event: response.created\ndata: {}\n\n",
        "event: response.completed\ndata: {}\n\n",
    ),
    (
        "/v1/responses",
        "event: response.created\ndata: {}\n\n",
        "event: response.incomplete\ndata: {}\n\n",
    ),
    (
        "/v1/messages",
        "event: message_start\ndata: {}\n\n",
        "event: message_stop\ndata: {}\n\n",
    ),
];

/// Two legs, the client of which has got the first event. Prefill has not responded.
async fn begun(pair: &mut Pair, path: &str, event: &str) -> (Exchange, Exchange) {
    let (prefill, mut decode) = pair.legs(path, STREAM).await;
    decode.begin_stream().await;
    decode.chunk(event).await;
    pair.client.head().await;
    assert_eq!(pair.client.chunk().await.as_deref(), Some(event), "{path}");
    (prefill, decode)
}

/// A whole exchange with another client: what the balancer was told before has reached it.
async fn another_request(pair: &mut Pair) {
    let mut client = pair.balancer.client().await;
    client.send(post("/generate", BODY)).await;
    let (prefill, decode) = pair.next_legs().await;
    for leg in [&prefill, &decode] {
        let head = &leg.request.head;
        assert!(head.starts_with("POST /generate "), "no abort: {head}");
    }
    serve((prefill, decode)).await;
    assert_eq!(client.answer().await.status(), 200);
}

#[tokio::test]
async fn a_client_that_leaves_at_the_end_marker_aborts_nothing_and_decodes_connection_is_kept() {
    for (path, event, marker) in STREAMS {
        let mut pair = Pair::start().await;
        let (prefill, mut decode) = begun(&mut pair, path, event).await;
        // In two pieces, so that the marker is cut.
        let (begin, end) = marker.split_at(9);
        decode.chunk(begin).await;
        assert_eq!(pair.client.chunk().await.as_deref(), Some(begin));
        decode.chunk(end).await;
        assert_eq!(pair.client.chunk().await.as_deref(), Some(end));
        pair.client = pair.balancer.client().await;
        // The client has left, while decode's last chunk and prefill's response are still to come.
        for _ in 0..3 {
            another_request(&mut pair).await;
        }
        assert_eq!(pair.decode.connections(), 2, "{path}");
        decode.chunk("").await;
        decode.keep();
        prefill.answer("200 OK", "{}").await;
        // Both connections to decode are in the pool again.
        let (one, other) = (pair.balancer.client().await, pair.balancer.client().await);
        for mut client in [one, other] {
            client.send(post(path, STREAM)).await;
            drop(client);
        }
        assert_eq!(pair.decode.connections(), 2, "{path}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_the_end_marker_still_ends_both_legs() {
    for (path, event, marker) in STREAMS {
        let mut pair = Pair::start().await;
        let (prefill, mut decode) = begun(&mut pair, path, event).await;
        let (begin, _) = marker.split_at(marker.len() - 1);
        decode.chunk(begin).await;
        assert_eq!(pair.client.chunk().await.as_deref(), Some(begin));
        drop(pair.client);
        prefill.closed().await;
        decode.closed().await;
    }
}

#[tokio::test]
async fn a_worker_that_dies_after_the_end_marker_has_served_the_stream() {
    let mut pair = Pair::start().await;
    let (prefill, mut decode) = begun(&mut pair, CHAT, "data: {\"a\":1}\n\n").await;
    prefill.answer("200 OK", "{}").await;
    decode.chunk("data: [DONE]\n\n").await;
    assert_eq!(
        pair.client.chunk().await.as_deref(),
        Some("data: [DONE]\n\n")
    );
    decode.reset();
    // The response has its end and no error event: the connection serves the next request.
    assert_eq!(pair.client.chunk().await, None);
    serve(pair.legs("/generate", BODY).await).await;
    assert_eq!(pair.client.answer().await.status(), 200);
}

#[tokio::test]
async fn a_stream_that_ends_without_its_marker_ends_with_an_error_event_and_a_break() {
    for (path, event, _) in STREAMS {
        let mut pair = Pair::start().await;
        let (prefill, mut decode) = begun(&mut pair, path, event).await;
        prefill.answer("200 OK", "{}").await;
        decode.chunk("").await;
        let last = pair.client.chunk().await.unwrap();
        let named = if path == "/generate" {
            ""
        } else {
            "event: error\n"
        };
        assert!(last.starts_with(&format!("{named}data: {{")), "{last}");
        assert!(last.contains("no end marker"), "{last}");
        assert_eq!(pair.client.rest().await, b"", "no last chunk: {path}");
    }
}

#[tokio::test]
async fn a_half_event_at_the_end_of_a_stream_is_closed_before_the_error_event() {
    let mut pair = Pair::start().await;
    let (_prefill, mut decode) = begun(&mut pair, CHAT, "data: {\"a\":1}\n\n").await;
    decode.chunk("data: cut off").await;
    assert_eq!(pair.client.chunk().await.as_deref(), Some("data: cut off"));
    decode.chunk("").await;
    let last = pair.client.chunk().await.unwrap();
    assert!(
        last.starts_with("\n\nevent: error\ndata: {\"error\""),
        "{last}"
    );
}

#[tokio::test]
async fn a_stream_without_its_marker_is_tried_again_while_nothing_was_sent() {
    for begin in ["", "data: {\"a\":1}\n\n"] {
        let mut pairs = TwoPairs::with(|config| config).await;
        pairs.client.send(post(CHAT, STREAM)).await;
        let ((_, prefill), (first, mut decode)) = pairs.next_legs().await;
        let length = begin.len();
        decode
            .send(format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {length}\r\n\r\n{begin}"
            ))
            .await;
        let ((_, other), (second, mut decode)) = pairs.next_legs().await;
        assert_ne!(first, second);
        drop(prefill);
        other.answer("200 OK", "{}").await;
        decode.begin_stream().await;
        decode.chunk("data: [DONE]\n\n").await;
        decode.chunk("").await;
        let answer = pairs.client.answer().await;
        assert_eq!((answer.status(), answer.text()), (200, "data: [DONE]\n\n"));
    }
}

#[tokio::test]
async fn an_empty_stream_of_the_only_pair_is_a_502() {
    let mut pair = Pair::start().await;
    let (prefill, mut decode) = pair.legs(CHAT, STREAM).await;
    prefill.answer("200 OK", "{}").await;
    decode.begin_stream().await;
    decode.chunk("").await;
    pair.bad_gateway("an empty stream", "decode_lost").await;
}

#[tokio::test]
async fn the_error_events_of_workers_pass_with_and_without_a_marker() {
    let chat = "data: {\"error\":{\"message\":\"KV lost\",\"code\":500}}\n\n";
    let aborted = "data: {\"choices\":[{\"finish_reason\":\"abort\"}]}\n\ndata: [DONE]\n\n";
    for (path, last) in [
        (CHAT, chat.to_owned()),
        (CHAT, format!("{chat}data: [DONE]\n\n")),
        (CHAT, aborted.to_owned()),
        (
            "/v1/messages",
            "event: error\ndata: {\"type\":\"error\",\"error\":{}}\n\n".to_owned(),
        ),
        (
            "/v1/responses",
            "event: response.failed\ndata: {}\n\n".to_owned(),
        ),
    ] {
        let mut pair = Pair::start().await;
        let (prefill, mut decode) = begun(&mut pair, path, "data: {\"a\":1}\n\n").await;
        prefill.answer("200 OK", "{}").await;
        decode.chunk(&last).await;
        assert_eq!(pair.client.chunk().await.as_deref(), Some(last.as_str()));
        decode.chunk("").await;
        decode.keep();
        assert_eq!(pair.client.chunk().await, None);
        // The end was a clean one: the connection serves the next request.
        serve(pair.legs("/generate", BODY).await).await;
        assert_eq!(pair.client.answer().await.status(), 200, "{last}");
    }
}

#[tokio::test]
async fn a_compressed_stream_needs_no_marker() {
    let mut pair = Pair::start().await;
    let (prefill, mut decode) = pair.legs(CHAT, STREAM).await;
    prefill.answer("200 OK", "{}").await;
    decode
        .send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: zstd\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    decode.chunk("packed").await;
    decode.chunk("").await;
    let answer = pair.client.answer().await;
    assert_eq!((answer.status(), answer.text()), (200, "packed"));
}

#[tokio::test]
async fn a_client_that_leaves_at_the_end_marker_of_all_samples_aborts_none() {
    for path in ROUTES {
        let mut pair = Pair::start().await;
        let mut legs = pair.samples(path, &asking(path, 2, true), 2).await;
        for (_, decode) in &mut legs {
            decode.begin_stream().await;
            decode.chunk(&event(path, "a")).await;
            decode.chunk("data: [DONE]\n\n").await;
        }
        pair.client.head().await;
        let mut got = String::new();
        while !got.ends_with("data: [DONE]\n\n") {
            got += &pair.client.chunk().await.unwrap();
        }
        pair.client = pair.balancer.client().await;
        for _ in 0..3 {
            another_request(&mut pair).await;
        }
        let connections = pair.decode.connections();
        for (prefill, mut decode) in legs {
            decode.chunk("").await;
            decode.keep();
            prefill.answer("200 OK", "{}").await;
        }
        for _ in 0..3 {
            another_request(&mut pair).await;
        }
        assert_eq!(pair.decode.connections(), connections, "{path}");
    }
}
