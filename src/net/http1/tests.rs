//! What a worker may send, byte by byte, and what becomes of it: over a pipe in memory.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

use super::*;

/// An answer as it was understood.
#[derive(Debug, PartialEq, Eq)]
struct Understood {
    status: u16,
    body: Vec<u8>,
    kept: bool,
}

/// Whether the worker closes behind its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Stays,
    Closes,
}

fn wire(pipe_bytes: usize) -> (Http1Connection, DuplexStream) {
    let (ours, theirs) = duplex(pipe_bytes);
    (Http1Connection::new(Box::new(ours)), theirs)
}

async fn understand(mut wire: Http1Connection, method: &Method) -> Result<Understood> {
    let head = wire.head(method).await?;
    let mut body = Vec::new();
    while let Some(piece) = wire.body().await? {
        assert!(!piece.is_empty(), "an empty piece is no end");
        body.extend_from_slice(&piece);
    }
    Ok(Understood {
        status: head.status.as_u16(),
        body,
        kept: wire.into_kept().is_some(),
    })
}

/// What these pieces are, each of which is read by itself.
async fn pieces(method: &Method, pieces: &[&[u8]], then: Then) -> Result<Understood> {
    let longest = pieces.iter().map(|piece| piece.len()).max();
    let (wire, mut theirs) = wire(longest.unwrap_or_default().max(1));
    let send = async {
        for piece in pieces {
            // Fails once the answer was understood, or refused.
            let _ = theirs.write_all(piece).await;
            tokio::task::yield_now().await;
        }
        match then {
            Then::Stays => Some(theirs),
            Then::Closes => None,
        }
    };
    tokio::join!(understand(wire, method), send).0
}

async fn understood(method: Method, answer: impl AsRef<[u8]>, then: Then) -> Result<Understood> {
    pieces(&method, &[answer.as_ref()], then).await
}

async fn refusal(answer: impl AsRef<[u8]>) -> ErrorType {
    let error = understood(Method::POST, answer, Then::Closes).await;
    error.unwrap_err().etype().clone()
}

#[tokio::test]
async fn every_framing_gives_its_body_and_says_whether_the_connection_stays() {
    let (post, head) = (Method::POST, Method::HEAD);
    for (method, answer, body, kept) in [
        (
            &post,
            "200 OK\r\ncontent-length: 5\r\n\r\nhello",
            "hello",
            true,
        ),
        (
            &post,
            "200 OK\r\ncontent-length: 5, 5\r\n\r\nhello",
            "hello",
            true,
        ),
        (&post, "200 OK\r\ncontent-length: 0\r\n\r\n", "", true),
        (&post, "200\r\nContent-Length:5\r\n\r\nhello", "hello", true),
        (
            &post,
            "200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "hello",
            true,
        ),
        (
            &post,
            "200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n\
             003;a=b\r\nhel\r\n2 ; c=\"d;e\"\r\nlo\r\nA\r\n0123456789\r\n00;last\r\nx-sum: 1\r\ny: 2\r\n\r\n",
            "hello0123456789",
            true,
        ),
        (&post, "204 No Content\r\n\r\n", "", true),
        (
            &post,
            "204 No Content\r\ntransfer-encoding: chunked\r\n\r\n",
            "",
            true,
        ),
        (
            &post,
            "304 Not Modified\r\ncontent-length: 5\r\n\r\n",
            "",
            true,
        ),
        (&head, "200 OK\r\ncontent-length: 5\r\n\r\n", "", true),
        (
            &head,
            "200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "",
            true,
        ),
        (&head, "200 OK\r\n\r\n", "", true),
        (
            &post,
            "200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello",
            "hello",
            false,
        ),
        (
            &post,
            "200 OK\r\nconnection: x, Close\r\ncontent-length: 5\r\n\r\nhello",
            "hello",
            false,
        ),
        (
            &post,
            "101 Switching Protocols\r\nupgrade: x\r\n\r\n",
            "",
            false,
        ),
        (
            &post,
            "200 OK\r\ncontent-length: 2\r\n\r\nhello",
            "he",
            false,
        ),
        (
            &post,
            "200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nx",
            "",
            false,
        ),
        (&post, "204 No Content\r\n\r\nx", "", false),
    ] {
        let answer = format!("HTTP/1.1 {answer}");
        let got = understood(method.clone(), &answer, Then::Stays)
            .await
            .unwrap();
        let got = (std::str::from_utf8(&got.body).unwrap(), got.kept);
        assert_eq!(got, (body, kept), "{answer:?}");
    }
}

#[tokio::test]
async fn a_body_without_a_framing_ends_with_the_connection() {
    for head in [
        "HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n\r\n",
    ] {
        let answer = format!("{head}hello");
        let got = understood(Method::POST, answer, Then::Closes)
            .await
            .unwrap();
        assert_eq!((&got.body[..], got.kept), (&b"hello"[..], false));
    }
}

#[tokio::test]
async fn the_length_of_an_answer_in_http_1_0_counts_and_the_connection_does_not_stay() {
    let answer = "HTTP/1.0 200 OK\r\ncontent-length: 5\r\nconnection: keep-alive\r\n\r\nhello";
    let got = understood(Method::POST, answer, Then::Stays).await.unwrap();
    assert_eq!((&got.body[..], got.kept), (&b"hello"[..], false));
}

#[tokio::test]
async fn informational_heads_are_passed_over() {
    let answer = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n\
                  HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\nno";
    let got = understood(Method::POST, answer, Then::Stays).await.unwrap();
    assert_eq!(
        (got.status, &got.body[..], got.kept),
        (429, &b"no"[..], true)
    );
    let only = refusal("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(only, ErrorType::ConnectionClosed);
}

#[tokio::test]
async fn a_head_that_can_be_read_in_two_ways_is_refused() {
    for head in [
        "200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked",
        "200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5",
        "204 No Content\r\ntransfer-encoding: chunked\r\ncontent-length: 5",
        "200 OK\r\ncontent-length: 5\r\ncontent-length: 6",
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
        "200 OK\r\na: b\r\n c: folded\r\ncontent-length: 5",
        "200 OK\r\n content-length: 5",
        "200 OK\r\ncontent-length : 5",
        "200 OK\r\nno colon",
        "200 OK\r\na: b\0\r\ncontent-length: 5",
        "200 OK\r\na: b\rcontent-length: 5",
        "099 Early",
        "2000 OK",
        "OK",
    ] {
        let answer = format!("HTTP/1.1 {head}\r\n\r\nhello");
        let refused = refusal(&answer).await;
        assert_eq!(refused, ErrorType::InvalidHTTPHeader, "{answer:?}");
    }
    let old = "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    for answer in [
        old,
        "HTTP/2.0 200 OK\r\n\r\n",
        "\x15\x03\x03\x00\x02\x02\x28",
        "hello\r\n\r\n",
    ] {
        let refused = refusal(answer).await;
        assert_eq!(refused, ErrorType::InvalidHTTPHeader, "{answer:?}");
    }
}

#[tokio::test]
async fn chunks_of_another_shape_are_refused() {
    for chunks in [
        "\r\n\r\n",
        ";a=b\r\n\r\n",
        " \r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "5\r\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "4\r\nhello\r\n0\r\n\r\n",
        "10000000000000000\r\nhello\r\n0\r\n\r\n",
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
        assert_eq!(refusal(&answer).await, BAD_FRAMING, "{chunks:?}");
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_is_an_error_wherever_that_happens() {
    let answers = [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;a\r\nhello\r\n0\r\nx: y\r\n\r\n",
    ];
    for whole in answers {
        for cut in 0..whole.len() {
            let refused = refusal(&whole[..cut]).await;
            assert_eq!(refused, ErrorType::ConnectionClosed, "{:?}", &whole[..cut]);
        }
    }
}

#[tokio::test]
async fn what_does_not_end_is_refused_before_it_fills_the_memory() {
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
        let (refused, sent) = tokio::join!(understand(wire, &Method::POST), send);
        assert_eq!(*refused.unwrap_err().etype(), error, "{begin:?} {again:?}");
        // The limit, one read, and what was on its way.
        assert!(
            sent <= MAX_HEAD_BYTES + MIN_READ + 8192,
            "{begin:?}: {sent}"
        );
    }
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused_even_when_it_comes_in_one_piece() {
    let value = "a".repeat(MAX_HEAD_BYTES);
    let answer = format!("HTTP/1.1 200 OK\r\na: {value}\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(refusal(answer).await, ErrorType::InvalidHTTPHeader);
    let fields = |count| {
        let fields = "a: b\r\n".repeat(count);
        format!("HTTP/1.1 200 OK\r\n{fields}content-length: 0\r\n\r\n")
    };
    assert_eq!(
        refusal(fields(MAX_HEAD_FIELDS)).await,
        ErrorType::InvalidHTTPHeader
    );
    understood(Method::POST, fields(MAX_HEAD_FIELDS - 1), Then::Stays)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_length_that_never_comes_takes_no_memory() {
    for framing in [
        "content-length: 18446744073709551615\r\n\r\nhello",
        "transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nhello",
    ] {
        let (mut wire, mut theirs) = wire(1024);
        let answer = format!("HTTP/1.1 200 OK\r\n{framing}");
        theirs.write_all(answer.as_bytes()).await.unwrap();
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

static WORKER: HeaderValue = HeaderValue::from_static("worker:1");

static TO: Target<'_> = Target {
    address: None,
    server_name: None,
    host: &WORKER,
    authorization: None,
};

fn request(method: Method) -> RequestHeader {
    let mut head = RequestHeader::build_no_case(method, b"/generate?a=b", None).unwrap();
    head.insert_header(AUTHORIZATION, "Bearer client").unwrap();
    head
}

#[tokio::test]
async fn a_request_is_its_head_and_its_body() {
    let (mut wire, mut theirs) = wire(1024);
    wire.send(TO, &request(Method::POST), b"hello")
        .await
        .unwrap();
    drop(wire);
    let mut sent = String::new();
    theirs.read_to_string(&mut sent).await.unwrap();
    let expected = "POST /generate?a=b HTTP/1.1\r\nhost: worker:1\r\nauthorization: Bearer client\r\n\
                    content-length: 5\r\n\r\nhello";
    assert_eq!(sent, expected);
}

#[tokio::test]
async fn an_answer_before_the_request_is_read_ends_the_sending() {
    const REFUSAL: &[u8] = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno";
    let body = vec![b'a'; 1 << 20];
    for then in [Then::Stays, Then::Closes] {
        let (mut wire, mut theirs) = wire(1024);
        let answered = async {
            theirs.read_exact(&mut [0; 10]).await.unwrap();
            theirs.write_all(REFUSAL).await.unwrap();
            (then == Then::Stays).then_some(theirs)
        };
        let head = request(Method::POST);
        let (sent, worker) = tokio::join!(wire.send(TO, &head, &body), answered);
        // The write to a closed connection has failed; the answer is there all the same.
        assert_eq!(sent.is_ok(), then == Then::Stays);
        let got = understand(wire, &Method::POST).await.unwrap();
        assert_eq!(
            (got.status, &got.body[..], got.kept),
            (413, &b"no"[..], false)
        );
        if let Some(mut worker) = worker {
            let mut rest = Vec::new();
            worker.read_to_end(&mut rest).await.unwrap();
            assert!(rest.len() < 4096, "{} bytes more", rest.len());
        }
    }
}

#[tokio::test]
async fn a_connection_serves_one_answer_after_the_other() {
    let (mut first, mut theirs) = wire(1024);
    let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    theirs.write_all(answer).await.unwrap();
    first.head(&Method::POST).await.unwrap();
    assert_eq!(first.body().await.unwrap().unwrap(), "hi");
    assert_eq!(first.body().await.unwrap(), None);
    let second = Http1Connection::new(first.into_kept().unwrap());
    theirs.write_all(answer).await.unwrap();
    assert_eq!(understand(second, &Method::POST).await.unwrap().body, b"hi");
}

#[tokio::test]
async fn a_connection_whose_answer_was_not_read_to_its_end_is_not_kept() {
    for answer in [
        "content-length: 5\r\n\r\nhe",
        "content-length: 5\r\n\r\nhello",
        "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "\r\nhello",
    ] {
        let (mut wire, mut theirs) = wire(1024);
        let answer = format!("HTTP/1.1 200 OK\r\n{answer}");
        theirs.write_all(answer.as_bytes()).await.unwrap();
        wire.head(&Method::POST).await.unwrap();
        if answer.contains("chunked") {
            wire.body().await.unwrap();
        }
        assert!(wire.into_kept().is_none(), "{answer:?}");
    }
}

/// A body in one of the framings: all bytes of the answer, and whether it ends with the connection.
fn framed(body: &[u8], framing: u8, sizes: &[usize]) -> (Vec<u8>, Then) {
    let mut answer = b"HTTP/1.1 200 OK\r\nserver: x\r\n".to_vec();
    match framing {
        0 => {
            answer.extend(format!("content-length: {}\r\n\r\n", body.len()).bytes());
            answer.extend(body);
            (answer, Then::Stays)
        }
        1 => {
            answer.extend(b"transfer-encoding: chunked\r\n\r\n");
            let (mut rest, mut sizes) = (body, sizes.iter().cycle());
            while !rest.is_empty() {
                let size = (*sizes.next().unwrap()).clamp(1, rest.len());
                let extension = ["", ";a", " ; b=\"c\""][size % 3];
                answer.extend(format!("{size:x}{extension}\r\n").bytes());
                answer.extend(&rest[..size]);
                answer.extend(b"\r\n");
                rest = &rest[size..];
            }
            answer.extend(b"0\r\nx-trailer: y\r\n\r\n");
            (answer, Then::Stays)
        }
        _ => {
            answer.extend(b"\r\n");
            answer.extend(body);
            (answer, Then::Closes)
        }
    }
}

/// These bytes in pieces of these sizes, over and over.
fn cut<'a>(mut bytes: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let (mut cut, mut sizes) = (Vec::new(), sizes.iter().cycle());
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at((*sizes.next().unwrap()).clamp(1, bytes.len()));
        cut.push(piece);
        bytes = rest;
    }
    cut
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(future)
}

proptest! {
    #[test]
    fn every_split_of_the_bytes_gives_the_same_body(
        body in prop::collection::vec(any::<u8>(), 0..600),
        framing in 0..3_u8,
        chunks in prop::collection::vec(1..80_usize, 1..6),
        sizes in prop::collection::vec(1..60_usize, 1..6),
    ) {
        let (answer, then) = framed(&body, framing, &chunks);
        let got = block_on(pieces(&Method::POST, &cut(&answer, &sizes), then)).unwrap();
        let kept = then == Then::Stays;
        prop_assert_eq!(got, Understood { status: 200, body, kept });
    }

    #[test]
    fn no_split_of_any_bytes_makes_another_answer_of_them(
        parts in prop::collection::vec(prop::sample::select(vec![
            "HTTP/1.1 200 OK\r\n", "HTTP/1.0 200 OK\r\n", "HTTP/1.1 100 Continue\r\n\r\n", "\r\n", "\n", "\r", " ", "a: b\r\n",
            "content-length: 5\r\n", "transfer-encoding: chunked\r\n", "connection: close\r\n", "5\r\n", "0\r\n",
            "5;x\r\n", "hello", "hello\r\n", "0\r\n\r\n", "\0", "ffffffffffffffff\r\n",
        ]), 0..12),
        begins in any::<bool>(),
        sizes in prop::collection::vec(1..12_usize, 1..6),
    ) {
        let begin = if begins { "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n" } else { "" };
        let answer = begin.to_owned() + &parts.concat();
        let outcome = |pieces_of: &[&[u8]]| {
            // Whether it is kept depends on what has come already of what nobody asked for.
            let got = block_on(pieces(&Method::POST, pieces_of, Then::Closes));
            got.ok().map(|got| (got.status, got.body))
        };
        let whole = outcome(&[answer.as_bytes()]);
        prop_assert_eq!(outcome(&cut(answer.as_bytes(), &sizes)), whole);
    }
}

fn on_the_wire_of(method: Method, key: Option<&HeaderValue>) -> String {
    let to = Target {
        authorization: key,
        ..TO
    };
    String::from_utf8(on_the_wire(to, &request(method), 0)).unwrap()
}

#[test]
fn a_workers_own_key_replaces_the_clients() {
    let key = HeaderValue::from_static("Bearer worker");
    let sent = on_the_wire_of(Method::POST, Some(&key));
    assert!(sent.contains("\r\nauthorization: Bearer worker\r\n"));
    assert!(!sent.contains("client"));
}

#[test]
fn a_post_without_a_body_says_so_and_a_get_has_no_length() {
    assert!(on_the_wire_of(Method::POST, None).ends_with("\r\ncontent-length: 0\r\n\r\n"));
    assert!(!on_the_wire_of(Method::GET, None).contains("content-length"));
}
