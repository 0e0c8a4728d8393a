//! Clients that read slowly, or not at all, while a stream passes.

use std::time::Duration;

use support::{CHAT, Exchange, Pair, STREAM, soon};
use tokio::sync::watch;

const EVENT: &str = "data: {\"a\":1}\n\n";

/// A transfer that has stopped for this long stays stopped.
const STILL: Duration = Duration::from_millis(500);

/// Sends events until the leg closes, and counts the bytes that were written.
fn flood(mut decode: Exchange) -> watch::Receiver<usize> {
    let (count, taken) = watch::channel(0);
    let events = EVENT.repeat(3 << 10);
    let piece = format!("{:x}\r\n{events}\r\n", events.len());
    tokio::spawn(async move {
        while decode.try_send(&piece).await.is_ok() {
            count.send_modify(|taken| *taken += events.len());
        }
    });
    taken
}

#[tokio::test]
async fn a_stream_is_read_no_faster_than_its_client_reads() {
    let mut pair = Pair::start().await;
    let (prefill, mut decode) = pair.legs(CHAT, STREAM).await;
    prefill.answer("200 OK", "{}").await;
    decode.begin_stream().await;
    decode.chunk(EVENT).await;
    pair.client.head().await;
    assert_eq!(pair.client.chunk().await.as_deref(), Some(EVENT));
    let mut taken = flood(decode);
    while tokio::time::timeout(STILL, taken.changed()).await.is_ok() {}
    let before = *taken.borrow();
    let mut got = String::new();
    while got.len() <= before + (1 << 20) {
        got += &pair.client.chunk().await.unwrap();
    }
    assert!(*taken.borrow() > before, "it goes on when the client does");
    let whole = got.len() - got.len() % EVENT.len();
    assert_eq!(got[..whole], EVENT.repeat(whole / EVENT.len()));
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_given_up_and_both_legs_end() {
    let limit = Duration::from_millis(300);
    let mut pair = Pair::with(|config| config.client_stall_timeout(limit)).await;
    let (prefill, mut decode) = pair.legs(CHAT, STREAM).await;
    decode.begin_stream().await;
    decode.chunk(EVENT).await;
    pair.client.head().await;
    let mut taken = flood(decode);
    soon("decode's leg is closed", async {
        while taken.changed().await.is_ok() {}
    })
    .await;
    prefill.closed().await;
}
