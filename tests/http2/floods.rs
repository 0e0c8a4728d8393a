//! What a client may send without end: each has a bound, and none harms another connection. The counts are small.

use h2::Reason;
use support::http2::{Frames, Http2, frame, post};
use support::{BODY, Pair, soon};

/// Types of frames, and a flag. Source: RFC 9113 section 6.
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const ENHANCE_YOUR_CALM: u8 = 0xb;
const CANCEL: [u8; 4] = [0, 0, 0, 8];

/// Serves a request over a connection of its own.
async fn serves(pair: &mut Pair) {
    let mut client = Http2::connect(pair.balancer.address).await;
    let sent = client.post("/generate", BODY).await;
    support::pair::serve(pair.next_legs().await).await;
    assert_eq!(sent.answer().await.0.as_u16(), 200);
}

/// A head in HPACK: GET http://a/health. Source: RFC 7541 appendix A.
fn health() -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x41, 1, b'a', 0x44, 7];
    block.extend(b"/health");
    block
}

/// A request whose body does not come, and its reset.
fn reset(stream: u32) -> Vec<u8> {
    let head = frame(HEADERS, END_HEADERS, stream, &health());
    [head, frame(RST_STREAM, 0, stream, &CANCEL)].concat()
}

#[tokio::test]
async fn streams_that_are_reset_at_once_end_the_connection() {
    let mut pair = Pair::start().await;
    let mut client = Http2::connect(pair.balancer.address).await;
    let mut resets = 0;
    let ended = loop {
        let ready = std::future::poll_fn(|cx| client.poll_ready(cx));
        if soon("a place", ready).await.is_err() || resets > 10_000 {
            break client.closed().await;
        }
        // Without its body, so that no worker ever has it.
        client.begin(post("/generate"), false).await.reset();
        resets += 1;
        tokio::task::yield_now().await;
    };
    // The close may overtake the reason, because this client still writes.
    let is_bounded = matches!(ended, Err(None | Some(Reason::ENHANCE_YOUR_CALM)));
    assert!(is_bounded, "{ended:?} after {resets}");
    serves(&mut pair).await;
}

#[tokio::test]
async fn requests_that_are_reset_once_they_are_known_end_the_connection_where_they_are_many() {
    let mut pair = Pair::start().await;
    let mut client = Frames::connect(pair.balancer.address).await;
    let mut resets = 0;
    let goaway = loop {
        let stream = 2 * resets + 1;
        let head = frame(HEADERS, END_HEADERS, stream, &health());
        client.try_send(&head).await;
        // Its answer comes behind the head.
        client.try_send(&frame(PING, 0, 0, &[7; 8])).await;
        match client.either([PING, GOAWAY]).await.expect("a reason") {
            (GOAWAY, reason) => break reason,
            _ => {
                client
                    .try_send(&frame(RST_STREAM, 0, stream, &CANCEL))
                    .await
            }
        }
        resets += 1;
        assert!(resets < 2_000, "it is still open");
    };
    assert_eq!(goaway[7], ENHANCE_YOUR_CALM);
    assert!(resets > 500, "so many may be a proxy's: {resets}");
    serves(&mut pair).await;
}

#[tokio::test]
async fn requests_that_are_reset_before_they_are_known_end_the_connection_where_they_are_many() {
    let mut pair = Pair::start().await;
    for (resets, tolerated) in [(100, true), (400, false)] {
        let mut client = Frames::connect(pair.balancer.address).await;
        let mut frames: Vec<u8> = (0..resets).flat_map(|at| reset(2 * at + 1)).collect();
        let end = END_STREAM | END_HEADERS;
        frames.extend(frame(HEADERS, end, 2 * resets + 1, &health()));
        // In one write, so that the balancer reads a reset with its request.
        client.try_send(&frames).await;
        match client.either([HEADERS, GOAWAY]).await.expect("an answer") {
            (HEADERS, _) => assert!(tolerated, "{resets}"),
            (_, goaway) => {
                assert_eq!((goaway[7], tolerated), (ENHANCE_YOUR_CALM, false));
            }
        }
    }
    serves(&mut pair).await;
}

#[tokio::test]
async fn a_head_without_an_end_ends_the_connection() {
    let mut pair = Pair::start().await;
    let mut client = Frames::connect(pair.balancer.address).await;
    client.try_send(&frame(HEADERS, 0, 1, &health())).await;
    for _ in 0..1000 {
        client.try_send(&frame(CONTINUATION, 0, 1, &[])).await;
    }
    let goaway = client.next(GOAWAY).await.expect("a reason");
    assert_eq!(goaway[7], ENHANCE_YOUR_CALM);
    serves(&mut pair).await;
}

#[tokio::test]
async fn a_head_that_is_longer_than_what_is_decoded_is_refused_and_the_connection_stays() {
    let mut pair = Pair::start().await;
    let mut client = Frames::connect(pair.balancer.address).await;
    // Two fields of 40,000 bytes, in frames of the size that every peer takes.
    let mut block = health();
    for name in [b'x', b'y'] {
        block.extend([0, 1, name, 0x7f, 0xc1, 0xb7, 2]);
        block.extend([b'a'; 40_000]);
    }
    let frames = block.chunks(16 << 10).enumerate();
    let count = frames.len();
    for (at, part) in frames {
        let (kind, flags) = match at {
            0 => (HEADERS, END_STREAM),
            _ => (CONTINUATION, if at + 1 == count { END_HEADERS } else { 0 }),
        };
        client.try_send(&frame(kind, flags, 1, part)).await;
    }
    let refused = client.next(HEADERS).await.expect("a response");
    // `:status: 431` in Huffman's code, and nothing else.
    assert_eq!(refused, [0x48, 0x83, 0x69, 0x90, 0xff]);
    let end = END_STREAM | END_HEADERS;
    client.try_send(&frame(HEADERS, end, 3, &health())).await;
    client.next(HEADERS).await.expect("the next one's response");
    serves(&mut pair).await;
}

#[tokio::test]
async fn settings_and_pings_are_answered_one_by_one() {
    let mut pair = Pair::start().await;
    let mut client = Frames::connect(pair.balancer.address).await;
    for _ in 0..500 {
        client
            .try_send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]))
            .await;
        client.try_send(&frame(PING, 0, 0, &[7; 8])).await;
    }
    let end = END_STREAM | END_HEADERS;
    client.try_send(&frame(HEADERS, end, 1, &health())).await;
    client.next(HEADERS).await.expect("a response behind them");
    serves(&mut pair).await;
}

#[tokio::test]
async fn more_streams_than_allowed_are_refused_and_the_others_are_served() {
    let mut pair = Pair::with(|config| config.max_inflight_requests(5000)).await;
    let mut client = Frames::connect(pair.balancer.address).await;
    let (allowed, more) = (1024, 8);
    for stream in 0..allowed + more {
        // A GET whose body is announced and does not come stays open.
        client
            .try_send(&frame(HEADERS, END_HEADERS, 2 * stream + 1, &health()))
            .await;
    }
    for _ in 0..more {
        let reset = client.next(3).await.expect("a refusal");
        assert_eq!(reset, [0, 0, 0, 7], "REFUSED_STREAM: it may be sent again");
    }
    serves(&mut pair).await;
}
