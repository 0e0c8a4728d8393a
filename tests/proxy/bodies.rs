//! Bodies of clients, clients that stop, and clients that read slowly.

use std::time::Duration;

use support::pair::serve;
use support::{BODY, CHAT, Exchange, Pair, STREAM, post, soon};
use tokio::sync::watch;

/// A POST to `/generate` with these lines in its head, and these bytes as its body.
fn generate(lines: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("POST /generate HTTP/1.1\r\nhost: b\r\n{lines}content-length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

#[tokio::test]
async fn what_is_no_json_object_reaches_no_worker() {
    let pair = Pair::start().await;
    let deep = "[".repeat(1_000_000);
    let deep_value = format!("{{\"a\":{deep}");
    for (what, body) in [
        ("nothing", b"".as_slice()),
        ("a list", b"[]"),
        ("a text", b"\"a\""),
        ("a number", b"1"),
        ("null", b"null"),
        ("cut", b"{\"text\":\"a\""),
        ("bytes behind it", b"{\"text\":\"a\"}x"),
        ("a second object", b"{\"text\":\"a\"}{}"),
        ("NaN", b"{\"a\":NaN}"),
        ("Infinity", b"{\"a\":-Infinity}"),
        ("bytes that are no UTF-8", b"{\"text\":\"\xff\"}"),
        ("an overlong encoding", b"{\"text\":\"\xc0\xaf\"}"),
        ("an encoded surrogate", b"{\"text\":\"\xed\xa0\x80\"}"),
        ("a byte order mark", b"\xef\xbb\xbf{\"text\":\"a\"}"),
        ("UTF-16", b"{\0\"\0a\0\"\0:\x001\0}\0"),
        ("a control character", b"{\"text\":\"\x01\"}"),
        ("a million brackets", deep.as_bytes()),
        ("a million brackets in a value", deep_value.as_bytes()),
    ] {
        let request = generate("", body);
        pair.refuses(what, request, 400, "invalid_json").await;
    }
}

#[tokio::test]
async fn whatever_is_json_reaches_both_workers_byte_for_byte() {
    let mut pair = Pair::start().await;
    for value in [
        "9223372036854775808",
        "18446744073709551616",
        "123456789012345678901234567890",
        "-0",
        "-0.0",
        "1e400",
        "1E+2",
        "1.0000000000000000001",
        "\"\\ud800\"",
        "\"\\u0000\\/\u{2028}\"",
        "{\"a\":1,\"a\":2}",
        "[ ]",
    ] {
        let body = format!("{{\"x\" : {value},\t\"text\":\"a\",\"x\":{value}");
        let request = generate("", format!("{body}}}").as_bytes());
        let (prefill, decode) = pair.legs_of(request).await;
        assert!(prefill.request.text().starts_with(&body), "{value}");
        assert_eq!(prefill.request.body, decode.request.body);
        serve((prefill, decode)).await;
        assert_eq!(pair.client.answer().await.status(), 200);
    }
}

#[tokio::test]
async fn a_body_in_another_encoding_is_refused_before_it_is_read() {
    let mut pair = Pair::start().await;
    for encoding in ["gzip", "zstd", "br", "deflate, gzip", "identity, gzip"] {
        let head = format!(
            "POST /generate HTTP/1.1\r\nhost: b\r\ncontent-encoding: {encoding}\r\ncontent-length: 1000\r\n\r\n"
        );
        pair.refuses(encoding, head, 415, "unsupported_encoding")
            .await;
    }
    let request = generate("content-encoding: Identity\r\n", BODY.as_bytes());
    let (_prefill, decode) = pair.legs_of(request).await;
    assert_eq!(decode.request.header("content-encoding"), None);
}

#[tokio::test]
async fn the_content_type_is_the_workers_to_judge() {
    let mut pair = Pair::start().await;
    for content_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=utf-16",
    ] {
        let lines = format!("content-type: {content_type}\r\n");
        let (prefill, decode) = pair.legs_of(generate(&lines, BODY.as_bytes())).await;
        for leg in [&prefill, &decode] {
            assert_eq!(leg.request.header("content-type"), Some(content_type));
        }
        prefill.answer("200 OK", "{}").await;
        decode.answer("415 Unsupported Media Type", "{}").await;
        assert_eq!(pair.client.answer().await.status(), 415);
    }
}

#[tokio::test]
async fn trailers_of_a_body_end_here() {
    let mut pair = Pair::start().await;
    let request = "POST /generate HTTP/1.1\r\nhost: b\r\ntrailer: x-t\r\ntransfer-encoding: chunked\r\n\r\nc\r\n{\"text\":\"a\"}\r\n0\r\nx-t: 1\r\ncontent-length: 9\r\n\r\n";
    let (prefill, decode) = pair.legs_of(request).await;
    for leg in [&prefill, &decode] {
        for name in ["trailer", "x-t", "transfer-encoding", "te"] {
            assert_eq!(leg.request.header(name), None, "{name}");
        }
        let length = leg.request.body.len().to_string();
        assert_eq!(leg.request.header("content-length"), Some(length.as_str()));
    }
}

#[tokio::test]
async fn a_client_that_will_be_refused_is_not_told_to_go_on() {
    let pair = Pair::with(|config| config.api_key("sk-c").max_payload_size(100)).await;
    for (what, lines, status, code) in [
        ("no key", "content-length: 12", 401, "unauthorized"),
        (
            "too long",
            "authorization: Bearer sk-c\r\ncontent-length: 101",
            413,
            "body_too_large",
        ),
        (
            "compressed",
            "authorization: Bearer sk-c\r\ncontent-encoding: gzip\r\ncontent-length: 12",
            415,
            "unsupported_encoding",
        ),
    ] {
        let head = format!(
            "POST /generate HTTP/1.1\r\nhost: b\r\nexpect: 100-continue\r\n{lines}\r\n\r\n"
        );
        pair.refuses(what, head, status, code).await;
    }
}

#[tokio::test]
async fn control_characters_in_a_head_are_refused() {
    if support::bridge::is_asked_for() {
        return; // needs a client of HTTP/1.1
    }
    let pair = Pair::start().await;
    for byte in [0, 1, 0x0b, 0x7f] {
        let mut client = pair.balancer.client().await;
        let head = [b"x-request-id: a".as_slice(), &[byte], b"b\r\n"].concat();
        let request = generate("", BODY.as_bytes());
        let at = b"POST /generate HTTP/1.1\r\n".len();
        client
            .send([&request[..at], &head, &request[at..]].concat())
            .await;
        assert_eq!(client.answer().await.status(), 400, "{byte}");
    }
}

#[tokio::test]
async fn headers_that_a_client_nominates_for_one_hop_do_not_take_the_proxys_away() {
    if support::bridge::is_asked_for() {
        return; // needs a client of HTTP/1.1
    }
    let mut pair = Pair::with(|config| config.worker_api_key("sk-w")).await;
    let many = (0..50).map(|n| format!("x-{n}, ")).collect::<String>();
    for nominated in [
        "host",
        "authorization",
        "x-request-id, content-length, transfer-encoding",
        "close, upgrade",
        "not a name, , \"",
        &many,
    ] {
        let mut client = pair.balancer.client().await;
        let lines =
            format!("connection: {nominated}, x-a\r\nauthorization: Bearer sk-c\r\nx-a: 1\r\n");
        client.send(generate(&lines, BODY.as_bytes())).await;
        for leg in <[Exchange; 2]>::from(pair.next_legs().await) {
            assert_eq!(leg.request.header("authorization"), Some("Bearer sk-w"));
            assert!(leg.request.header("x-request-id").is_some());
            assert!(leg.request.header("host").is_some());
            assert!(!leg.request.body.is_empty());
            assert_eq!(leg.request.header("x-a"), None, "{nominated}");
            leg.answer("200 OK", "{}").await;
        }
        assert_eq!(client.answer().await.status(), 200, "{nominated}");
    }
}

#[tokio::test]
async fn targets_that_are_no_path_reach_no_worker() {
    if support::bridge::is_asked_for() {
        return; // needs a client of HTTP/1.1
    }
    let pair = Pair::start().await;
    for target in [
        "CONNECT b:80",
        "CONNECT /generate",
        "POST b:80",
        "POST generate",
        "TRACE /generate",
        "FETCH /generate",
    ] {
        let mut client = pair.balancer.client().await;
        client
            .send(format!(
                "{target} HTTP/1.1\r\nhost: b\r\ncontent-length: 0\r\n\r\n"
            ))
            .await;
        let status = client.answer().await.status();
        assert!([400, 404, 405].contains(&status), "{target}: {status}");
    }
    assert!(pair.is_idle());
}

#[tokio::test]
async fn a_client_leaves_by_a_close_a_reset_and_half_a_close() {
    for leaves in ["close", "reset", "half"] {
        for body in [BODY, STREAM] {
            let mut pair = Pair::start().await;
            let (prefill, mut decode) = pair.legs_of(post(CHAT, body)).await;
            if body == STREAM {
                decode.begin_stream().await;
                decode.chunk("data: {\"a\":1}\n\n").await;
                pair.client.head().await;
                pair.client.chunk().await.unwrap();
            }
            match leaves {
                "close" => drop(pair.client),
                "reset" => pair.client.reset(),
                _ => {
                    pair.client.finish().await;
                    prefill.closed().await;
                    decode.closed().await;
                    continue;
                }
            }
            prefill.closed().await;
            decode.closed().await;
        }
    }
}

/// A transfer that has stopped for this long stays stopped.
const STILL: Duration = Duration::from_millis(500);

/// Sends events until the leg closes, and counts the bytes that were written.
fn flood(mut decode: Exchange) -> watch::Receiver<usize> {
    let (count, taken) = watch::channel(0);
    let piece = format!("10000\r\n{}\r\n", "x".repeat(1 << 16));
    tokio::spawn(async move {
        while decode.try_send(&piece).await.is_ok() {
            count.send_modify(|taken| *taken += 1 << 16);
        }
    });
    taken
}

#[tokio::test]
async fn decode_is_read_no_faster_than_the_client_reads() {
    let mut pair = Pair::start().await;
    let (prefill, mut decode) = pair.legs_of(post(CHAT, STREAM)).await;
    prefill.answer("200 OK", "{}").await;
    decode.begin_stream().await;
    let mut taken = flood(decode);
    while tokio::time::timeout(STILL, taken.changed()).await.is_ok() {
        // The bytes on their way are in the buffers of the sockets; the proxy holds a few pieces.
        assert!(
            *taken.borrow() < 64 << 20,
            "the client reads nothing, but all bytes were taken"
        );
    }
    let before = *taken.borrow();
    pair.client.head().await;
    let mut got = 0;
    while got <= before + (1 << 20) {
        got += pair.client.chunk().await.unwrap().len();
    }
    assert!(*taken.borrow() > before, "it goes on when the client does");
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_given_up_and_both_legs_end() {
    let limit = Duration::from_millis(300);
    let mut pair = Pair::with(|config| config.client_stall_timeout(limit)).await;
    let (prefill, mut decode) = pair.legs_of(post(CHAT, STREAM)).await;
    decode.begin_stream().await;
    let mut taken = flood(decode);
    // The flood ends when the leg is closed.
    soon("the leg is closed", async {
        while taken.changed().await.is_ok() {}
    })
    .await;
    prefill.closed().await;
}
