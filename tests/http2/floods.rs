//! What a client may send without end: each has a bound, and none harms another connection. The counts are small.

use h2::Reason;
use support::http2::{Frames, Http2, frame, post};
use support::{BODY, Pair, soon};

/// Types of frames, and a flag. Source: RFC 9113 section 6.
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const ENHANCE_YOUR_CALM: u8 = 0xb;

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
