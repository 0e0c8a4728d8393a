//! Every response that a worker may send, over a pipe in memory.

#![allow(clippy::unwrap_used)]

use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

use super::super::framing::BAD_FRAMING;
use super::super::response_head::{MAX_HEAD_BYTES, MAX_HEAD_FIELDS};
use super::*;

mod sending;
mod splits;

/// A response as it was read.
#[derive(Debug, PartialEq, Eq)]
struct Response {
    status: u16,
    body: Vec<u8>,
    reusable: bool,
}

/// Whether the worker closes the connection after its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Stays,
    Closes,
}

fn wire(pipe_bytes: usize) -> (Http1Connection, DuplexStream) {
    let (ours, theirs) = duplex(pipe_bytes);
    (Http1Connection::new(Box::new(ours)), theirs)
}

async fn read_response(mut wire: Http1Connection, method: &Method) -> Result<Response> {
    let head = wire.head(method).await?;
    let mut body = Vec::new();
    while let Some(piece) = wire.body().await? {
        assert!(!piece.is_empty(), "an empty piece is no end");
        body.extend_from_slice(&piece);
    }
    Ok(Response {
        status: head.status.as_u16(),
        body,
        reusable: wire.into_reusable().is_some(),
    })
}

/// Reads a response that arrives in these pieces.
async fn pieces(method: &Method, pieces: &[&[u8]], then: Then) -> Result<Response> {
    let longest = pieces.iter().map(|piece| piece.len()).max();
    let (wire, mut theirs) = wire(longest.unwrap_or_default().max(1));
    let send = async {
        for piece in pieces {
            // Fails once the response has been read or refused.
            let _ = theirs.write_all(piece).await;
            tokio::task::yield_now().await;
        }
        match then {
            Then::Stays => Some(theirs),
            Then::Closes => None,
        }
    };
    tokio::join!(read_response(wire, method), send).0
}

async fn response_to(method: Method, response: impl AsRef<[u8]>, then: Then) -> Result<Response> {
    pieces(&method, &[response.as_ref()], then).await
}

async fn refusal(response: impl AsRef<[u8]>) -> ErrorType {
    let error = response_to(Method::POST, response, Then::Closes).await;
    error.unwrap_err().etype().clone()
}

/// Asserts the body of this response, given without its version, and whether its connection is reusable.
async fn check(method: Method, response: &str, body: &str, reusable: bool) {
    let response = format!("HTTP/1.1 {response}");
    let got = response_to(method, &response, Then::Stays).await.unwrap();
    let got = (std::str::from_utf8(&got.body).unwrap(), got.reusable);
    assert_eq!(got, (body, reusable), "{response:?}");
}

#[tokio::test]
async fn every_framing_gives_its_body_and_a_reusable_connection() {
    let chunked = "200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n\
                   003;a=b\r\nhel\r\n2 ; c=\"d;e\"\r\nlo\r\nA\r\n0123456789\r\n00;last\r\nx-sum: 1\r\ny: 2\r\n\r\n";
    check(Method::POST, chunked, "hello0123456789", true).await;
    for response in [
        "200 OK\r\ncontent-length: 5\r\n\r\nhello",
        "200\r\nContent-Length:5\r\n\r\nhello",
        "200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ] {
        check(Method::POST, response, "hello", true).await;
    }
}

#[tokio::test]
async fn a_response_that_has_no_body_by_definition_leaves_a_reusable_connection() {
    for response in [
        "200 OK\r\ncontent-length: 0\r\n\r\n",
        "204 No Content\r\n\r\n",
        "204 No Content\r\ntransfer-encoding: chunked\r\n\r\n",
        "304 Not Modified\r\ncontent-length: 5\r\n\r\n",
    ] {
        check(Method::POST, response, "", true).await;
    }
    for response in [
        "200 OK\r\ncontent-length: 5\r\n\r\n",
        "200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        "200 OK\r\n\r\n",
    ] {
        check(Method::HEAD, response, "", true).await;
    }
}

#[tokio::test]
async fn a_connection_is_not_reused_after_a_close_another_protocol_or_bytes_too_many() {
    for (response, body) in [
        (
            "200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello",
            "hello",
        ),
        (
            "200 OK\r\nconnection: x, Close\r\ncontent-length: 5\r\n\r\nhello",
            "hello",
        ),
        ("101 Switching Protocols\r\nupgrade: x\r\n\r\n", ""),
        ("200 OK\r\ncontent-length: 2\r\n\r\nhello", "he"),
        ("200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nx", ""),
        ("204 No Content\r\n\r\nx", ""),
    ] {
        check(Method::POST, response, body, false).await;
    }
}

#[tokio::test]
async fn a_body_without_a_framing_ends_with_the_connection() {
    for head in [
        "HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n\r\n",
    ] {
        let response = format!("{head}hello");
        let got = response_to(Method::POST, response, Then::Closes)
            .await
            .unwrap();
        assert_eq!((&got.body[..], got.reusable), (&b"hello"[..], false));
    }
}

#[tokio::test]
async fn a_response_in_http_1_0_has_its_length_and_its_connection_is_not_reused() {
    let response = "HTTP/1.0 200 OK\r\ncontent-length: 5\r\nconnection: keep-alive\r\n\r\nhello";
    let got = response_to(Method::POST, response, Then::Stays)
        .await
        .unwrap();
    assert_eq!((&got.body[..], got.reusable), (&b"hello"[..], false));
}

#[tokio::test]
async fn informational_heads_are_skipped() {
    let response = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n\
                  HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\nno";
    let got = response_to(Method::POST, response, Then::Stays)
        .await
        .unwrap();
    assert_eq!(
        (got.status, &got.body[..], got.reusable),
        (429, &b"no"[..], true)
    );
    let only = refusal("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(only, ErrorType::ConnectionClosed);
}

#[tokio::test]
async fn a_head_that_can_be_read_in_two_ways_is_refused() {
    for head in [
        "200 OK\r\ncontent-length: 5\r\ncontent-length: 6",
        "200 OK\r\ncontent-length: 5\r\ncontent-length: 5",
        "200 OK\r\ncontent-length: 5, 5",
        "200 OK\r\ncontent-length: 5, 6",
        "200 OK\r\ncontent-length: +5",
        "200 OK\r\ncontent-length: -5",
        "200 OK\r\ncontent-length: 0x5",
        "200 OK\r\ncontent-length: 5 5",
        "200 OK\r\ncontent-length: 5,",
        "200 OK\r\ncontent-length:",
        "200 OK\r\ncontent-length: 18446744073709551616",
        "200 OK\r\ntransfer-encoding: gzip",
        "200 OK\r\ntransfer-encoding: identity",
        "200 OK\r\ntransfer-encoding: gzip, chunked",
        "200 OK\r\ntransfer-encoding: chunked, gzip",
        "200 OK\r\ntransfer-encoding: chunked, chunked",
        "200 OK\r\ntransfer-encoding: gzip\r\ntransfer-encoding: chunked",
        "200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "200 OK\r\ntransfer-encoding: xchunked",
        "200 OK\r\ntransfer-encoding:",
        "200 OK\r\n content-length: 5",
        "200 OK\r\nno colon",
        "200 OK\r\na: b\0\r\ncontent-length: 5",
        "200 OK\r\na: b\rcontent-length: 5",
        "099 Early",
        "2000 OK",
        "OK",
    ] {
        let response = format!("HTTP/1.1 {head}\r\n\r\nhello");
        let refused = refusal(&response).await;
        assert_eq!(refused, ErrorType::InvalidHTTPHeader, "{response:?}");
    }
    let old = "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    for response in [
        old,
        "HTTP/2.0 200 OK\r\n\r\n",
        "\x15\x03\x03\x00\x02\x02\x28",
        "hello\r\n\r\n",
    ] {
        let refused = refusal(response).await;
        assert_eq!(refused, ErrorType::InvalidHTTPHeader, "{response:?}");
    }
}

#[tokio::test]
async fn what_pingora_takes_from_decode_is_taken_here() {
    for response in [
        // Chunks override a length, even one that is no number.
        "200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: x\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "200 OK\r\na: b\r\n c: folded\r\ncontent-length: 5\r\n\r\nhello",
        "200 OK\r\ncontent-length : 5\r\n\r\nhello",
        // A chunk-size line without digits is the last one.
        "200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;a\nb\r\nhello\r\n;a=b\r\n\r\n",
        "200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n\r\n\r\n",
    ] {
        check(Method::POST, response, "hello", true).await;
    }
}

#[tokio::test]
async fn malformed_chunks_are_refused() {
    for chunks in [
        " 5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "5\r\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "4\r\nhello\r\n0\r\n\r\n",
        "10000000000000000\r\nhello\r\n0\r\n\r\n",
    ] {
        let response = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
        assert_eq!(refusal(&response).await, BAD_FRAMING, "{chunks:?}");
    }
}

#[tokio::test]
async fn a_truncated_response_is_an_error_wherever_it_is_cut() {
    let responses = [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;a\r\nhello\r\n0\r\nx: y\r\n\r\n",
    ];
    for whole in responses {
        for cut in 0..whole.len() {
            let refused = refusal(&whole[..cut]).await;
            assert_eq!(refused, ErrorType::ConnectionClosed, "{:?}", &whole[..cut]);
        }
    }
}

#[tokio::test]
async fn a_part_without_an_end_is_refused_before_it_fills_the_memory() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    for (begin, again, error) in [
        ("", "\r\n", ErrorType::InvalidHTTPHeader),
        ("HTTP/1.1 200 ", "OK", ErrorType::InvalidHTTPHeader),
        ("HTTP/1.1 200 OK\r\n", "a", ErrorType::InvalidHTTPHeader),
        ("HTTP/1.1 200 OK\r\na: ", "b", ErrorType::InvalidHTTPHeader),
        (
            "HTTP/1.1 200 OK\r\n",
            "a: b\r\n",
            ErrorType::InvalidHTTPHeader,
        ),
        (chunked, "0", BAD_FRAMING),
        (&format!("{chunked}5;"), "a", BAD_FRAMING),
        (&format!("{chunked}0\r\n"), "a: b\r\n", BAD_FRAMING),
    ] {
        let (wire, mut theirs) = wire(1024);
        let send = async {
            theirs.write_all(begin.as_bytes()).await.unwrap();
            let (again, mut sent) = (again.repeat(512), 0);
            while theirs.write_all(again.as_bytes()).await.is_ok() {
                sent += again.len();
            }
            sent
        };
        let (refused, sent) = tokio::join!(read_response(wire, &Method::POST), send);
        assert_eq!(*refused.unwrap_err().etype(), error, "{begin:?} {again:?}");
        // The limit, one read, and the bytes that were in the pipe.
        assert!(
            sent <= MAX_HEAD_BYTES + MIN_READ + 8192,
            "{begin:?}: {sent}"
        );
    }
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused_even_when_it_arrives_in_one_piece() {
    let value = "a".repeat(MAX_HEAD_BYTES);
    let response = format!("HTTP/1.1 200 OK\r\na: {value}\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(refusal(response).await, ErrorType::InvalidHTTPHeader);
    let fields = |count| {
        let fields = "a: b\r\n".repeat(count);
        format!("HTTP/1.1 200 OK\r\n{fields}content-length: 0\r\n\r\n")
    };
    assert_eq!(
        refusal(fields(MAX_HEAD_FIELDS)).await,
        ErrorType::InvalidHTTPHeader
    );
    response_to(Method::POST, fields(MAX_HEAD_FIELDS - 1), Then::Stays)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_length_that_is_only_announced_takes_no_memory() {
    for framing in [
        "content-length: 18446744073709551615\r\n\r\nhello",
        "transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nhello",
    ] {
        let (mut wire, mut theirs) = wire(1024);
        let response = format!("HTTP/1.1 200 OK\r\n{framing}");
        theirs.write_all(response.as_bytes()).await.unwrap();
        drop(theirs);
        wire.head(&Method::POST).await.unwrap();
        assert_eq!(wire.body().await.unwrap().unwrap(), "hello");
        let cut = wire.body().await.unwrap_err();
        assert_eq!(*cut.etype(), ErrorType::ConnectionClosed);
        assert!(
            wire.buf.capacity() <= 2 * MAX_READ,
            "{}",
            wire.buf.capacity()
        );
    }
}

#[tokio::test]
async fn a_connection_serves_one_response_after_the_other() {
    let (mut first, mut theirs) = wire(1024);
    let response = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    theirs.write_all(response).await.unwrap();
    first.head(&Method::POST).await.unwrap();
    assert_eq!(first.body().await.unwrap().unwrap(), "hi");
    assert_eq!(first.body().await.unwrap(), None);
    let second = Http1Connection::new(first.into_reusable().unwrap());
    theirs.write_all(response).await.unwrap();
    assert_eq!(
        read_response(second, &Method::POST).await.unwrap().body,
        b"hi"
    );
}

#[tokio::test]
async fn a_connection_whose_response_was_not_read_to_its_end_is_not_reused() {
    for response in [
        "content-length: 5\r\n\r\nhe",
        "content-length: 5\r\n\r\nhello",
        "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "\r\nhello",
    ] {
        let (mut wire, mut theirs) = wire(1024);
        let response = format!("HTTP/1.1 200 OK\r\n{response}");
        theirs.write_all(response.as_bytes()).await.unwrap();
        wire.head(&Method::POST).await.unwrap();
        if response.contains("chunked") {
            wire.body().await.unwrap();
        }
        assert!(wire.into_reusable().is_none(), "{response:?}");
    }
}
