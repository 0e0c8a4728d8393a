//! Requests with more than one meaning, and bytes at the wrong time. The vectors are named after the sections of
//! RFC 9112.

use support::{BODY, Pair, STREAM, post};

use crate::counted::{Counted, generate};

#[tokio::test]
async fn a_request_with_two_framings_is_refused_and_what_it_hides_is_not_executed() {
    let counted = Counted::start().await;
    let hidden = post("/generate", BODY);
    let chunked = format!("c\r\n{BODY}\r\n0\r\n\r\n{hidden}");
    for (what, lines, behind) in [
        (
            "6.1 CL.TE",
            "content-length: 4\r\ntransfer-encoding: chunked\r\n",
            chunked.as_str(),
        ),
        (
            "6.1 TE.CL",
            "transfer-encoding: chunked\r\ncontent-length: 4\r\n",
            &chunked,
        ),
        (
            "6.1 an unknown coding before chunked",
            "transfer-encoding: gzip, chunked\r\n",
            &chunked,
        ),
        (
            "6.1 chunked twice",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            &chunked,
        ),
        (
            "6.1 chunked with a parameter",
            "transfer-encoding: chunked;q=1\r\n",
            &chunked,
        ),
        (
            "6.1 something like chunked",
            "transfer-encoding: xchunked\r\n",
            &chunked,
        ),
        (
            "6.3 equal lengths",
            "content-length: 12\r\ncontent-length: 12\r\n",
            BODY,
        ),
        (
            "6.3 different lengths",
            "content-length: 12\r\ncontent-length: 0\r\n",
            BODY,
        ),
        ("6.3 a list of lengths", "content-length: 12, 12\r\n", BODY),
        ("6.3 a signed length", "content-length: +12\r\n", BODY),
        (
            "5.1 space before the colon",
            "content-length : 12\r\n",
            BODY,
        ),
        ("5.2 a folded line", "content-length:\r\n 12\r\n", BODY),
        (
            "a length with an underscore",
            "content_length: 12\r\n",
            BODY,
        ),
        (
            "a coding with an underscore beside a length",
            "content-length: 0\r\nTransfer_Encoding: chunked\r\n",
            &chunked,
        ),
        (
            "2.2 a bare line feed",
            "x-a: b\ncontent-length: 12\r\n",
            BODY,
        ),
        (
            "2.2 a bare carriage return",
            "x-a: b\rcontent-length: 12\r\n",
            BODY,
        ),
        ("3.2 two hosts", "host: other\r\ncontent-length: 0\r\n", ""),
    ] {
        counted.refuses(what, &generate(lines, behind), 400).await;
    }
    counted.settle().await;
}

#[tokio::test]
async fn a_request_line_has_one_meaning() {
    let counted = Counted::start().await;
    for (what, head) in [
        ("3.2 no host", "POST /generate HTTP/1.1\r\n\r\n"),
        (
            "3.2 an escaped line break in the target",
            "GET /health?a%0d%0ab HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
        (
            "3.2 a second version",
            "GET /health HTTP/1.1 HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
        (
            "3.2.2 an absolute target of another host",
            "GET http://a/health HTTP/1.1\r\nhost: b\r\n\r\n",
        ),
        (
            "6.1 chunked in HTTP/1.0",
            "POST /generate HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        ("2.2 line feeds only", "GET /health HTTP/1.1\nhost: a\n\n"),
    ] {
        counted.refuses(what, head.as_bytes(), 400).await;
    }
    counted.settle().await;
}

#[tokio::test]
async fn a_refusal_has_a_code_and_the_shape_of_its_endpoint() {
    let counted = Counted::start().await;
    let mut client = counted.balancer.client().await;
    client
        .send(generate("content-length: 1\r\ncontent-length: 1\r\n", "a"))
        .await;
    let answer = client.answer().await;
    assert_eq!(answer.header("x-mini-lb-error"), Some("bad_request_head"));
    assert_eq!(answer.json()["object"], "error");
    counted.settle().await;
}

#[tokio::test]
async fn unusual_but_clear_requests_are_served() {
    let mut counted = Counted::start().await;
    let length = format!("content-length: {}\r\n", BODY.len());
    let absolute =
        format!("POST http://balancer/generate HTTP/1.1\r\nhost: balancer\r\n{length}\r\n{BODY}");
    let chunked = "5\r\n{\"tex\r\n7;a=b\r\nt\":\"a\"}\r\n0\r\nx-trailer: 1\r\n\r\n";
    for (what, bytes) in [
        ("3.2.2 an absolute target", absolute.into_bytes()),
        (
            "7.1 chunks with an extension and a trailer",
            generate("Transfer-Encoding: Chunked\r\n", chunked),
        ),
        (
            "2.2 an empty line first",
            [b"\r\n".as_slice(), &generate(&length, BODY)].concat(),
        ),
        (
            "a name with an underscore that frames nothing",
            generate(&format!("x_y: 1\r\n{length}"), BODY),
        ),
    ] {
        counted.accepts(what, &bytes, 1).await;
    }
    counted.settle().await;
}

#[tokio::test]
async fn a_client_that_asks_for_the_close_gets_it() {
    let mut counted = Counted::start().await;
    let length = format!("content-length: {}\r\n", BODY.len());
    let hidden = post("/generate", BODY);
    for (what, bytes) in [
        (
            "9.6 close",
            generate(
                &format!("connection: close\r\n{length}"),
                &format!("{BODY}{hidden}"),
            ),
        ),
        (
            "9.3 HTTP/1.0",
            format!("POST /generate HTTP/1.0\r\n{length}\r\n{BODY}").into_bytes(),
        ),
        (
            "9.3 HTTP/1.0 without legs",
            b"GET /health HTTP/1.0\r\n\r\n".to_vec(),
        ),
    ] {
        let mut client = counted.accepts(what, &bytes, 1).await;
        assert!(client.rest().await.is_empty(), "{what}");
    }
    // The last one is not forwarded.
    counted.accepted -= 1;
    counted.settle().await;
}

#[tokio::test]
async fn a_path_is_what_is_written() {
    let counted = Counted::start().await;
    let mut client = counted.balancer.client().await;
    for path in [
        "/a/../flush_cache",
        "/./flush_cache",
        "/%66lush_cache",
        "/flush_cache%3f",
        "//generate",
        "/generate;x",
        "/GENERATE",
        "/v1\\generate",
    ] {
        client.send(post(path, BODY)).await;
        assert_eq!(client.answer().await.status(), 404, "{path}");
    }
    // The client is told of the path without the slash, as by a worker.
    client.send(post("/generate/", BODY)).await;
    let answer = client.answer().await;
    assert_eq!(answer.status(), 307);
    assert_eq!(answer.header("location"), Some("/generate"));
    counted.settle().await;
}

#[tokio::test]
async fn an_upgrade_is_not_a_tunnel() {
    let mut counted = Counted::start().await;
    let upgrade = format!(
        "connection: upgrade\r\nupgrade: foo\r\ncontent-length: {}\r\n",
        BODY.len()
    );
    let hidden = post("/flush_cache", "");
    let bytes = generate(&upgrade, &format!("{BODY}{hidden}"));
    let mut client = counted.accepts("an upgrade", &bytes, 1).await;
    // The connection closes, so the bytes after the request are not read.
    assert!(client.rest().await.is_empty());
    counted.settle().await;
}

#[tokio::test]
async fn bytes_behind_an_early_refusal_are_not_a_request() {
    let counted = Counted::with(|config| config.max_payload_size(100)).await;
    let hidden = post("/generate", BODY);
    let too_long = generate("content-length: 101\r\n", &hidden);
    counted.refuses("413 by length", &too_long, 413).await;
    let chunk = "a".repeat(101);
    let too_long = generate(
        "transfer-encoding: chunked\r\n",
        &format!("65\r\n{chunk}\r\n0\r\n\r\n{hidden}"),
    );
    counted.refuses("413 by count", &too_long, 413).await;
    counted.settle().await;
}

#[tokio::test]
async fn broken_chunks_end_the_connection() {
    let counted = Counted::start().await;
    let hidden = post("/generate", BODY);
    for (what, chunks) in [
        ("7.1 a size that overflows", "ffffffffffffffffff\r\n"),
        ("7.1 a size that is none", "-1\r\n"),
        (
            "7.1 a size with a prefix",
            "0xc\r\n{\"text\":\"a\"}\r\n0\r\n\r\n",
        ),
        ("7.1 a bare line feed", "c\n{\"text\":\"a\"}\n0\n\n"),
        (
            "7.1 a chunk that is too long",
            "b\r\n{\"text\":\"a\"}\r\n0\r\n\r\n",
        ),
    ] {
        let bytes = generate(
            "transfer-encoding: chunked\r\n",
            &format!("{chunks}{hidden}"),
        );
        counted.refuses(what, &bytes, 400).await;
    }
    counted.settle().await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_one_after_the_other() {
    let mut counted = Counted::start().await;
    let three = post("/generate", BODY).repeat(3);
    counted.accepts("9.3.2", three.as_bytes(), 3).await;
    let chunked = generate(
        "transfer-encoding: chunked\r\n",
        &format!("c\r\n{BODY}\r\n0\r\n\r\n"),
    );
    let both = [chunked.as_slice(), post("/generate", BODY).as_bytes()].concat();
    counted.accepts("9.3.2 behind chunks", &both, 2).await;
    counted.settle().await;
}

#[tokio::test]
async fn a_pipelined_request_that_is_refused_is_refused_in_its_turn() {
    let mut counted = Counted::start().await;
    let mut bytes = post("/generate", BODY).into_bytes();
    bytes.extend(generate("content-length: 0\r\ncontent-length: 0\r\n", ""));
    bytes.extend(post("/generate", BODY).as_bytes());
    let mut client = counted.accepts("the first", &bytes, 1).await;
    assert_eq!(client.answer().await.status(), 400);
    assert!(client.rest().await.is_empty());
    counted.settle().await;
}

#[tokio::test]
async fn bytes_behind_a_request_do_not_cut_its_stream() {
    let mut pair = Pair::start().await;
    let (first, mut stream) = pair.legs("/generate", STREAM).await;
    first.answer("200 OK", "{}").await;
    stream.begin_stream().await;
    stream.chunk("data: 1\n\n").await;
    pair.client.head().await;
    assert_eq!(pair.client.chunk().await.unwrap(), "data: 1\n\n");
    pair.client.send(post("/generate", BODY)).await;
    stream.chunk("data: 2\n\n").await;
    assert_eq!(pair.client.chunk().await.unwrap(), "data: 2\n\n");
    // The second request waits for the end of the first response.
    assert!(pair.is_idle());
    stream.chunk("data: [DONE]\n\n").await;
    stream.chunk("").await;
    stream.keep();
    assert_eq!(pair.client.chunk().await.unwrap(), "data: [DONE]\n\n");
    assert_eq!(pair.client.chunk().await, None);
    let (second, answer) = pair.next_legs().await;
    second.answer("200 OK", "{}").await;
    answer.answer("200 OK", r#"{"text":"b"}"#).await;
    assert_eq!(pair.client.answer().await.text(), r#"{"text":"b"}"#);
}

#[tokio::test]
async fn a_space_in_a_target_reaches_a_worker_escaped() {
    let mut pair = Pair::start().await;
    let mut client = pair.balancer.client().await;
    client
        .send("GET /v1/models/a b HTTP/1.1\r\nhost: balancer\r\n\r\n")
        .await;
    let asked = pair.prefill.request().await;
    let line = asked.request.head.lines().next().unwrap().to_owned();
    assert_eq!(line, "GET /v1/models/a%20b HTTP/1.1");
    asked.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.status(), 200);
}
