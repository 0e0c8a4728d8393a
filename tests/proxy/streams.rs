//! Streams of events that a decode worker may send: spellings, sizes, ends, and the errors in them.

use support::{CHAT, Pair, STREAM};

use crate::responses::{MERGED_STREAM, PREFILLED};

#[tokio::test]
async fn a_compressed_stream_is_not_held_for_its_first_event() {
    let mut pair = Pair::start().await;
    let (_prefill, mut decode) = pair.legs(CHAT, STREAM).await;
    decode
        .send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: zstd\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    decode.chunk("packed").await;
    pair.client.head().await;
    assert_eq!(pair.client.chunk().await.as_deref(), Some("packed"));
}

#[tokio::test]
async fn a_merge_that_fails_in_the_middle_of_a_stream_ends_it_with_an_error_event() {
    let mut pair = Pair::start().await;
    let (mut prefill, mut decode) = pair.legs("/generate", MERGED_STREAM).await;
    prefill.begin_stream().await;
    prefill.chunk(&format!("data: {PREFILLED}\n\n")).await;
    prefill.chunk("data: [DONE]\n\n").await;
    prefill.chunk("").await;
    decode.begin_stream().await;
    decode
        .chunk("data: {\"text\":\"a\",\"meta_info\":{}}\n\n")
        .await;
    pair.client.head().await;
    assert!(
        pair.client
            .chunk()
            .await
            .unwrap()
            .contains("input_token_logprobs")
    );
    decode
        .chunk("data: {\"text\":\"a\",\"meta_info\":{}\n\n")
        .await;
    let event = pair.client.chunk().await.unwrap();
    assert!(
        event.starts_with("data: {\"error\"") && event.contains("malformed"),
        "{event}"
    );
    assert_eq!(pair.client.chunk().await, None);
    decode.closed().await;
}

#[tokio::test]
async fn whatever_comes_after_the_end_marker_passes_as_it_is() {
    let mut pair = Pair::start().await;
    for last in [
        "data: [DONE]\n\n",
        "data: {\"choices\":[]}\n\n",
        "data: cut off",
    ] {
        let (prefill, mut decode) = pair.legs(CHAT, STREAM).await;
        prefill.answer("200 OK", "{}").await;
        decode.begin_stream().await;
        decode.chunk("data: [DONE]\n\n").await;
        pair.client.head().await;
        pair.client.chunk().await.unwrap();
        decode.chunk(last).await;
        decode.chunk("").await;
        decode.keep();
        assert_eq!(pair.client.chunk().await.as_deref(), Some(last));
        assert_eq!(pair.client.chunk().await, None);
    }
}

#[tokio::test]
async fn every_spelling_of_events_passes_byte_for_byte() {
    let mut pair = Pair::start().await;
    let stream: &[u8] = b": hello\r\n\r\nevent: a\rid: 1\rretry: 3\rdata: x\r\rdata: \xff\xfe\n\ndata: one\ndata: two\n\ndata:\n\ndata: [DONE]\n\ndata: no end";
    // Byte by byte, so that line ends and characters are split.
    let (prefill, mut decode) = pair.legs(CHAT, STREAM).await;
    prefill.answer("200 OK", "{}").await;
    decode.begin_stream().await;
    for byte in stream {
        decode
            .send([b"1\r\n", [*byte].as_slice(), b"\r\n"].concat())
            .await;
    }
    decode.chunk("").await;
    let head = pair.client.head().await;
    assert!(head.contains("chunked"), "{head}");
    let mut got = Vec::new();
    while let Some(chunk) = pair.client.bytes().await {
        got.extend(chunk);
    }
    assert_eq!(got, stream);
}

#[tokio::test]
async fn an_event_of_any_size_passes_while_it_comes() {
    let mut pair = Pair::start().await;
    let (_prefill, mut decode) = pair.legs(CHAT, STREAM).await;
    decode.begin_stream().await;
    // Longer than the limit up to which the first event is held back, and without an end.
    decode
        .chunk(&format!("data: {}", "x".repeat(65 << 10)))
        .await;
    pair.client.head().await;
    let mut got = 0;
    while got < 65 << 10 {
        got += pair.client.chunk().await.unwrap().len();
    }
    decode.chunk("and so on").await;
    assert_eq!(pair.client.chunk().await.as_deref(), Some("and so on"));
}

#[tokio::test]
async fn an_event_over_the_limit_that_must_be_merged_is_an_error() {
    let mut pair = Pair::with(|config| config.max_payload_size(1000)).await;
    let (mut prefill, mut decode) = pair.legs("/generate", MERGED_STREAM).await;
    prefill.begin_stream().await;
    prefill.chunk(&format!("data: {PREFILLED}\n\n")).await;
    prefill.chunk("").await;
    decode.begin_stream().await;
    decode.chunk(&format!("data: {}", "x".repeat(1001))).await;
    pair.bad_gateway("too long", "decode_bad_answer").await;
    decode.closed().await;
}

#[tokio::test]
async fn thousands_of_events_in_one_read_all_pass() {
    let mut pair = Pair::start().await;
    for (body, first) in [(STREAM, "{}"), (MERGED_STREAM, PREFILLED)] {
        let (mut prefill, mut decode) = pair.legs("/generate", body).await;
        prefill.begin_stream().await;
        prefill.chunk(&format!("data: {first}\n\n")).await;
        prefill.chunk("").await;
        prefill.keep();
        decode.begin_stream().await;
        let event = "data: {\"text\":\"a\",\"meta_info\":{}}\n\n";
        decode.chunk(&event.repeat(9_999)).await;
        decode.chunk("data: [DONE]\n\n").await;
        decode.chunk("").await;
        decode.keep();
        pair.client.head().await;
        let mut got = String::new();
        while let Some(chunk) = pair.client.chunk().await {
            got += &chunk;
        }
        assert_eq!(got.matches("data: ").count(), 10_000);
    }
}

#[tokio::test]
async fn a_comment_keeps_a_stream_alive() {
    // Each silence is half of the limit, all of them together are longer.
    let limit = std::time::Duration::from_millis(400);
    let mut pair = Pair::with(|config| config.stream_idle_timeout(limit)).await;
    let (_prefill, mut decode) = pair.legs(CHAT, STREAM).await;
    decode.begin_stream().await;
    decode.chunk("data: {\"a\":1}\n\n").await;
    pair.client.head().await;
    pair.client.chunk().await.unwrap();
    for _ in 0..6 {
        assert_eq!(pair.client.rest_within(limit / 2).await, None);
        decode.chunk(": ping\n\n").await;
        assert_eq!(pair.client.chunk().await.as_deref(), Some(": ping\n\n"));
    }
    let event = pair.client.chunk().await.unwrap();
    assert!(event.contains("stream_idle_timeout_secs"), "{event}");
}
