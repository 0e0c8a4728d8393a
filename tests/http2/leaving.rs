//! Who ends a stream or a connection, and what happens to the legs: a client that leaves, a client that does not read, and
//! a balancer that is stopped.

use std::time::Duration;

use h2::Reason;
use h2::client::Builder;
use support::http2::{Http2, Sent, post};
use support::{BODY, CHAT, Exchange, Pair, STREAM, soon};
use tokio::net::TcpStream;

/// Short enough to wait for.
const SHORT: Duration = Duration::from_millis(300);

/// A stream that has begun, and decode's leg of it.
async fn begun(pair: &mut Pair, client: &mut Http2) -> (support::http2::Begun, Exchange) {
    let sent = client.post(CHAT, STREAM).await;
    let (prefill, mut decode) = pair.next_legs().await;
    prefill.answer("200 OK", "{}").await;
    decode.begin_stream().await;
    decode.chunk("data: 1\n\n").await;
    let mut begun = sent.head().await;
    assert_eq!(begun.piece().await.unwrap().unwrap(), "data: 1\n\n");
    (begun, decode)
}

/// A request that both workers have, and neither has answered.
async fn waiting(pair: &mut Pair, client: &mut Http2) -> (Sent, (Exchange, Exchange)) {
    let sent = client.post("/generate", BODY).await;
    (sent, pair.next_legs().await)
}

#[tokio::test]
async fn a_reset_before_the_response_closes_both_legs_and_no_other() {
    let mut pair = Pair::with(|config| config.set("disable_abort_requests", true)).await;
    let mut client = Http2::connect(pair.balancer.address).await;
    let (other, others) = waiting(&mut pair, &mut client).await;
    let (sent, (prefill, decode)) = waiting(&mut pair, &mut client).await;
    sent.reset();
    tokio::join!(prefill.closed(), decode.closed());
    support::pair::serve(others).await;
    assert_eq!(other.answer().await.0.as_u16(), 200);
}

#[tokio::test]
async fn a_reset_amid_a_stream_closes_decodes_leg_and_no_other() {
    let mut pair = Pair::with(|config| config.set("disable_abort_requests", true)).await;
    let mut client = Http2::connect(pair.balancer.address).await;
    let (mut other, mut others) = begun(&mut pair, &mut client).await;
    let (left, decode) = begun(&mut pair, &mut client).await;
    drop(left);
    decode.closed().await;
    others.chunk("data: [DONE]\n\n").await;
    others.chunk("").await;
    assert_eq!(other.piece().await.unwrap().unwrap(), "data: [DONE]\n\n");
    assert!(other.piece().await.is_none());
}

#[tokio::test]
async fn a_lost_connection_closes_the_legs_of_all_its_requests() {
    let mut pair = Pair::with(|config| config.set("disable_abort_requests", true)).await;
    let mut client = Http2::connect(pair.balancer.address).await;
    let (_one, (prefill, decode)) = waiting(&mut pair, &mut client).await;
    let (_two, stream) = begun(&mut pair, &mut client).await;
    client.drop_connection();
    tokio::join!(prefill.closed(), decode.closed(), stream.closed());
}

#[tokio::test]
async fn a_cancelled_request_is_recorded_as_one_whose_client_left() {
    let mut pair = Pair::start().await;
    let mut client = Http2::connect(pair.balancer.address).await;
    let (sent, (prefill, decode)) = waiting(&mut pair, &mut client).await;
    sent.reset();
    tokio::join!(prefill.closed(), decode.closed());
    let metrics = || async {
        let mut client = pair.balancer.client().await;
        client
            .send("GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n")
            .await;
        client.answer().await.text().to_owned()
    };
    soon("the record", async {
        while !metrics().await.contains("client_left\"} 1") {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_holds_its_worker_back_and_is_given_up() {
    let mut pair = Pair::with(|config| {
        let config = config.client_stall_timeout(SHORT);
        config.set("disable_abort_requests", true)
    })
    .await;
    let mut options = Builder::new();
    // One stream must not use up what all of them may send.
    options.initial_connection_window_size(1 << 20);
    let socket = TcpStream::connect(pair.balancer.address).await.unwrap();
    let mut client = Http2::over(socket, &options).await;
    let (mut other, mut others) = begun(&mut pair, &mut client).await;
    let sent = client.post(CHAT, STREAM).await;
    let (prefill, mut decode) = pair.next_legs().await;
    prefill.answer("200 OK", "{}").await;
    decode.begin_stream().await;
    // The head is read, and the windows of the stream are never opened again.
    let event = format!("data: {}\n\n", "x".repeat(64 << 10));
    let chunk = format!("{:x}\r\n{event}\r\n", event.len());
    let mut taken = 0;
    while soon("the worker is stopped", decode.try_send(&chunk))
        .await
        .is_ok()
    {
        taken += chunk.len();
        assert!(taken < 64 << 20, "only the sockets' buffers hold bytes");
    }
    let mut stalled = sent.head().await;
    let cut = loop {
        match stalled.body.data().await.expect("no end") {
            Ok(_) => {}
            Err(error) => break error.reason(),
        }
    };
    assert_eq!(cut, Some(Reason::CANCEL));
    others.chunk("data: [DONE]\n\n").await;
    others.chunk("").await;
    assert_eq!(other.piece().await.unwrap().unwrap(), "data: [DONE]\n\n");
}

#[tokio::test]
async fn a_response_that_breaks_is_reset_and_so_is_a_stream_behind_its_error() {
    let mut pair = Pair::with(|config| config.set("retry_max_retries", 0)).await;
    let mut client = Http2::connect(pair.balancer.address).await;
    let (sent, (prefill, mut decode)) = waiting(&mut pair, &mut client).await;
    prefill.answer("200 OK", "{}").await;
    // Longer than what is held back for another pair.
    let (sent_bytes, more) = (2 << 20, 9);
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        sent_bytes + more
    );
    let breaking = async move {
        decode.send(head).await;
        decode.send("x".repeat(sent_bytes)).await;
    };
    let reading = async {
        let mut document = sent.head().await;
        loop {
            match document.piece().await.expect("no end") {
                Ok(_) => {}
                Err(reason) => return reason,
            }
        }
    };
    let ((), cut) = tokio::join!(breaking, reading);
    assert_eq!(cut, Some(Reason::INTERNAL_ERROR));

    let (mut stream, decode) = begun(&mut pair, &mut client).await;
    drop(decode);
    let event = stream.piece().await.unwrap().unwrap();
    assert!(event.contains("decode_lost"), "{event}");
    assert_eq!(
        stream.piece().await,
        Some(Err(Some(Reason::INTERNAL_ERROR)))
    );
}

#[tokio::test]
async fn a_stopped_balancer_says_goaway_and_ends_what_has_begun() {
    let mut pair = Pair::start().await;
    let mut client = Http2::connect(pair.balancer.address).await;
    let mut idle = Http2::connect(pair.balancer.address).await;
    let (mut stream, mut decode) = begun(&mut pair, &mut client).await;
    let stopping = tokio::spawn(pair.balancer.stop());
    assert_eq!(idle.closed().await, Ok(()), "GOAWAY without an error");
    decode.chunk("data: [DONE]\n\n").await;
    decode.chunk("").await;
    assert_eq!(stream.piece().await.unwrap().unwrap(), "data: [DONE]\n\n");
    assert!(stream.piece().await.is_none());
    assert_eq!(client.closed().await, Ok(()));
    soon("the balancer ends", stopping).await.unwrap();
}

#[tokio::test]
async fn a_stream_that_is_cut_off_ends_with_an_error_event() {
    let mut pair = Pair::with(|config| config.set("shutdown_grace_period_secs", 0.1)).await;
    let mut client = Http2::connect(pair.balancer.address).await;
    let (mut stream, _decode) = begun(&mut pair, &mut client).await;
    pair.balancer.stop().await;
    let event = stream.piece().await.unwrap().unwrap();
    assert!(event.contains("shutting_down"), "{event}");
    assert_eq!(
        stream.piece().await,
        Some(Err(Some(Reason::INTERNAL_ERROR)))
    );
}

#[tokio::test]
async fn a_connection_without_requests_ends_after_the_time_between_two() {
    let pair = Pair::with(|config| config.client_idle_timeout(SHORT)).await;
    let mut client = Http2::connect(pair.balancer.address).await;
    let sent = client.send(http::Request::get("http://a/health"), "").await;
    assert_eq!(sent.answer().await.0.as_u16(), 200);
    assert_eq!(client.closed().await, Ok(()), "GOAWAY without an error");
}

#[tokio::test]
async fn a_connection_without_a_first_request_ends_after_the_time_of_a_head() {
    let pair = Pair::with(|config| config.head_timeout(SHORT)).await;
    let mut client = Http2::connect(pair.balancer.address).await;
    assert_eq!(client.closed().await, Ok(()));
    // A preface without an end.
    let mut slow = support::Client::connect(pair.balancer.address).await;
    slow.send("PRI * HTTP/2.0\r\n").await;
    // No more than SETTINGS comes before the close.
    slow.rest().await;
}

#[tokio::test]
async fn a_connection_over_the_limit_gets_one_response() {
    let pair = Pair::with(|config| config.max_connections(1)).await;
    let mut over = Http2::connect(pair.balancer.address).await;
    let sent = over.post("/generate", BODY).await;
    let (status, headers, _) = sent.answer().await;
    assert_eq!(
        (
            status.as_u16(),
            headers["x-mini-lb-error"].to_str().unwrap()
        ),
        (503, "overloaded")
    );
    assert_eq!(over.closed().await, Ok(()));
    assert!(pair.is_idle());
}

#[tokio::test]
async fn a_window_of_one_byte_gets_the_whole_response() {
    let mut pair = Pair::start().await;
    let mut options = Builder::new();
    options.initial_window_size(1);
    let socket = TcpStream::connect(pair.balancer.address).await.unwrap();
    let mut client = Http2::over(socket, &options).await;
    let sent = client.send(post("/generate"), BODY).await;
    let (prefill, decode) = pair.next_legs().await;
    prefill.answer("200 OK", "{}").await;
    let text = format!(r#"{{"text":"{}"}}"#, "b".repeat(500));
    decode.answer("200 OK", &text).await;
    assert_eq!(sent.answer().await.2, text);
}
