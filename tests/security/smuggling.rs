//! Families of smuggling vectors: every obfuscation of a framing field in every place, every spelling of a chunk size,
//! and unusual requests around them. The single vectors of RFC 9112 are in `framing`.
//!
//! Each vector hides a request. The oracle is the count and the bodies: the workers see the requests for which a
//! client got a 200 and no other one, each with the client's whole body. The vectors that are served are those that
//! a strict reader of RFC 9112 serves.
//!
//! Source: the families are those of the "HTTP Desync Attacks" (PortSwigger, 2019) and of RFC 9112 section 11.2.

use support::client::Message;
use support::post;

use crate::witnessed::{LAST, Witnessed};

const JSON: &str = r#"{"text":"a"}"#;

impl Witnessed {
    /// This many of the requests in these bytes are served, each with [`JSON`] as its body.
    async fn serves(&self, requests: usize, bytes: &[u8]) {
        let client = self.balancer.client().await;
        let answers = client.answers(bytes).await;
        let statuses: Vec<u16> = answers.iter().map(Message::status).collect();
        let shown = bytes.escape_ascii();
        let served = statuses.iter().filter(|status| **status == 200).count();
        assert_eq!(served, requests, "{statuses:?} {shown}");
        for worker in &self.seen {
            let seen = std::mem::take(&mut *worker.lock().unwrap());
            assert_eq!(seen.len(), requests, "{shown}");
            for request in seen {
                let begin = JSON.trim_end_matches('}');
                assert!(
                    request.text().starts_with(begin),
                    "{shown}: {}",
                    request.text()
                );
                let head = request.head.to_lowercase();
                assert!(!head.contains("transfer"), "{shown}: {head}");
                assert_eq!(head.matches("content-length").count(), 1, "{shown}: {head}");
            }
        }
    }
}

/// A POST to `/generate` with these lines, [`JSON`] in this framing, and a hidden request that must not be read as
/// one unless the first ends before it.
fn vector(lines: &[u8], body: &str) -> Vec<u8> {
    let begin = b"POST /generate HTTP/1.1\r\nhost: a\r\n";
    [begin, lines, b"\r\n", body.as_bytes(), LAST.as_bytes()].concat()
}

/// All combinations of the names, separators and values of a field with at most two oddities, and
/// whether a combination has none.
fn spellings(
    names: &[&[u8]],
    separators: &[(&[u8], bool)],
    values: &[(&[u8], bool)],
    is_name: impl Fn(&[u8]) -> bool,
) -> Vec<(Vec<u8>, bool)> {
    let mut lines = Vec::new();
    for name in names {
        for (separator, parts) in separators {
            for (value, means) in values {
                let plain = [is_name(name), *parts, *means];
                if plain.contains(&true) {
                    let line = [*name, separator, value, b"\r\n"].concat();
                    lines.push((line, plain == [true; 3]));
                }
            }
        }
    }
    lines
}

/// Separators of name and value, and whether every parser accepts them.
const SEPARATORS: &[(&[u8], bool)] = &[
    (b":", true),
    (b": ", true),
    (b":\t", true),
    (b": \t ", true),
    (b" :", false),
    (b"\t: ", false),
    (b":\x0b", false),
    (b":\x0c", false),
    (b":\0", false),
    (b": \xa0", false),
    (b":\r\n ", false),
    (b":\r\n\t", false),
    (b":\n ", false),
    (b":\r", false),
    (b"\n: ", false),
    (b"\r\n: ", false),
    (b"\0: ", false),
    (b"", false),
    (b"=", false),
];

#[tokio::test]
async fn no_spelling_of_a_coding_hides_a_request() {
    let names: &[&[u8]] = &[
        b"transfer-encoding",
        b"Transfer-ENCODING",
        b"transfer_encoding",
        b"Transfer\xadEncoding",
        b" transfer-encoding",
        b"x: y\ntransfer-encoding",
        b"x: y\rtransfer-encoding",
    ];
    let values: &[(&[u8], bool)] = &[
        (b"chunked", true),
        (b"CHUNKED", true),
        (b"chunked \t", true),
        (b"chunked,", false),
        (b",chunked", false),
        (b"chunked, identity", false),
        (b"identity, chunked", false),
        (b"gzip, chunked", false),
        (b"chunked;q=1", false),
        (b"\"chunked\"", false),
        (b"'chunked'", false),
        (b"chunked chunked", false),
        (b"xchunked", false),
        (b"chunke", false),
        (b"chunked\0", false),
        (b"chunked\x0b", false),
        (b"chunked\xa0", false),
        (b"chunked\r", false),
        (b"chunked\nx: y", false),
        (b"chunked\r\n x", false),
        (b"chunked\r\nTransfer-Encoding: identity", false),
        (b"identity", false),
        (b"", false),
    ];
    let is_name = |name: &[u8]| name.eq_ignore_ascii_case(b"transfer-encoding");
    let stage = Witnessed::set().await;
    let hidden = post("/generate", JSON);
    let chunked = format!("c\r\n{JSON}\r\n0\r\n\r\n");
    for (line, means) in spellings(names, SEPARATORS, values, is_name) {
        // Alone it is either a valid coding or refused.
        stage
            .serves(usize::from(means), &vector(&line, &chunked))
            .await;
        // Before or after a length it is always refused.
        let length = b"content-length: 4\r\n";
        for lines in [[&length[..], &line].concat(), [&line, &length[..]].concat()] {
            let body = format!("{chunked}{hidden}");
            stage.serves(0, &vector(&lines, &body)).await;
        }
    }
}

#[tokio::test]
async fn no_spelling_of_a_length_hides_a_request() {
    let names: &[&[u8]] = &[
        b"content-length",
        b"Content-LENGTH",
        b"content_length",
        b" content-length",
        b"content-length\r\nx",
        b"x: y\ncontent-length",
    ];
    let values: &[(&[u8], bool)] = &[
        (b"12", true),
        (b"012", true),
        (b"12 \t", true),
        (b"00000000000000000000000000000012", true),
        (b"+12", false),
        (b"-12", false),
        (b"12,12", false),
        (b"12, 0", false),
        (b"12 12", false),
        (b"12;", false),
        (b"0xc", false),
        (b"c", false),
        (b"1e1", false),
        (b"12.0", false),
        (b"1_2", false),
        (b"\"12\"", false),
        (b"12\0", false),
        (b"12\x0b", false),
        (b"\xef\xbc\x91\xef\xbc\x92", false),
        (b"18446744073709551628", false),
        (b"12\r\ncontent-length: 12", false),
        (b"12\r\ncontent-length: 0", false),
        (b"12\r\n content-length: 0", false),
        (b"", false),
    ];
    let is_name = |name: &[u8]| name.eq_ignore_ascii_case(b"content-length");
    let stage = Witnessed::set().await;
    let hidden = post("/generate", JSON);
    for (line, means) in spellings(names, SEPARATORS, values, is_name) {
        stage.serves(usize::from(means), &vector(&line, JSON)).await;
        // Twice it is always refused, in either order.
        for lines in [
            [line.as_slice(), b"content-length: 0\r\n"].concat(),
            [b"content-length: 0\r\n", line.as_slice()].concat(),
        ] {
            stage.serves(0, &vector(&lines, &hidden)).await;
        }
    }
}

/// Pingora's reader accepts three spellings beyond RFC 9112: blanks after a size, any octets in an extension, and
/// a missing size as 0. It is the only reader: the body is framed anew, and the bytes after it are the next request.
#[tokio::test]
async fn no_spelling_of_a_chunk_hides_a_request() {
    let sizes: &[(&str, bool)] = &[
        ("c", true),
        ("C", true),
        ("0000000c", true),
        ("c;a=b", true),
        ("c;a=\"b;c\"", true),
        ("c ;a", true),
        ("c \t", true),
        ("c;\n", true),
        ("c;POST /generate HTTP/1.1", true),
        ("c\r;a", false),
        ("c;\ra", false),
        ("c,c", false),
        ("c c", false),
        ("c\0", false),
        ("c\x0b", false),
        (" c", false),
        ("+c", false),
        ("-c", false),
        ("0xc", false),
        ("c_", false),
        ("g", false),
        ("ffffffffffffffff", false),
        ("1000000000000000c", false),
        ("7fffffffffffffff", false),
        ("0000000000000000000c", false),
    ];
    let ends: &[(&str, bool)] = &[
        ("0\r\n\r\n", true),
        ("000\r\n\r\n", true),
        ("0;a=b\r\n\r\n", true),
        ("0 \r\n\r\n", true),
        ("\r\n\r\n", true),
        ("0\r\nx: y\r\n\r\n", true),
        (
            "0\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
            true,
        ),
        (
            "0\r\nPOST /generate HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
            true,
        ),
        ("0\n\n", false),
        ("0\r\r", false),
        ("-0\r\n\r\n", false),
        ("0x0\r\n\r\n", false),
        ("00000000000000000000\r\n\r\n", false),
    ];
    let behind = ["\r\n", "\n", "\r", ""];
    let stage = Witnessed::set().await;
    let coding = b"transfer-encoding: chunked\r\n";
    for (size, is_size) in sizes {
        for line_end in ["\r\n", "\n", "\r"] {
            for after in behind {
                for (end, is_end) in ends {
                    // The end of the chunk, and then a missing size, whose trailers would contain the last request.
                    if after.is_empty() && end.starts_with('\r') {
                        continue;
                    }
                    let body = format!("{size}{line_end}{JSON}{after}{end}");
                    let lines = line_end == "\r\n" && after == "\r\n";
                    let served = *is_size && lines && *is_end;
                    stage
                        .serves(usize::from(served), &vector(coding, &body))
                        .await;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_host_is_named_once_or_nothing_is_served() {
    let stage = Witnessed::set().await;
    let length = format!("content-length: {}\r\n", JSON.len());
    for (separator, parts) in SEPARATORS {
        for name in ["host", "Host", "HOST"] {
            let line = [name.as_bytes(), separator, b"a\r\n"].concat();
            let begin = b"POST /generate HTTP/1.1\r\n";
            for (before, behind, served) in [
                (&line[..], &b""[..], *parts),
                (b"", &line, *parts),
                (b"host: b\r\n", &line, false),
                (&line, b"host: b\r\n", false),
            ] {
                let head = [begin, before, length.as_bytes(), behind, b"\r\n"].concat();
                let bytes = [&head, JSON.as_bytes(), LAST.as_bytes()].concat();
                stage.serves(usize::from(served), &bytes).await;
            }
        }
    }
}

#[tokio::test]
async fn a_body_that_nobody_wants_is_not_a_request() {
    let stage = Witnessed::set().await;
    let hidden = post("/generate", JSON);
    let length = format!("content-length: {}\r\n", hidden.len());
    let chunks = format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
    for line in [
        "GET /health HTTP/1.1",
        "GET /nope HTTP/1.1",
        "HEAD /health HTTP/1.1",
        "DELETE /generate HTTP/1.1",
        "GET /generate HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "TRACE /generate HTTP/1.1",
        "CONNECT a:1 HTTP/1.1",
        "PRI * HTTP/1.1",
        "POST /v1/embeddings HTTP/1.1",
        "POST /nope HTTP/1.0",
        "POST http://a/nope HTTP/1.1",
        "POST http://b/generate HTTP/1.1",
        "POST //generate HTTP/1.1",
    ] {
        for more in [
            "",
            "expect: 100-continue\r\n",
            "connection: upgrade\r\nupgrade: h2c\r\n",
        ] {
            for (framing, body) in [
                (length.as_str(), &hidden),
                ("transfer-encoding: chunked\r\n", &chunks),
            ] {
                let bytes = format!("{line}\r\nhost: a\r\n{framing}{more}\r\n{body}{LAST}");
                served_besides_health(&stage, bytes.as_bytes()).await;
            }
        }
    }
}

/// Responses that the proxy makes itself are not a worker's.
async fn served_besides_health(stage: &Witnessed, bytes: &[u8]) {
    stage.balancer.client().await.answers(bytes).await;
    for worker in &stage.seen {
        let seen = std::mem::take(&mut *worker.lock().unwrap());
        assert!(
            seen.is_empty(),
            "{}: {}",
            bytes.escape_ascii(),
            seen[0].head
        );
    }
}

#[tokio::test]
async fn what_is_no_request_hides_none() {
    let stage = Witnessed::set().await;
    let hidden = post("/generate", JSON);
    for begin in [
        "GET /generate\r\n",
        "POST /generate HTTP/0.9\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\x16\x03\x01\x02",
        "PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
        "POST /generate HTTP/1.1\r\n\r\n",
        "POST /generate HTTP/1.1\r\nhost: a\r\nx\r\n\r\n",
        "POST /generate HTTP/1.1\r\n host: a\r\n\r\n",
        "POST /generate HTTP/1.1\r\nhost: a\r\n: b\r\n\r\n",
        "POST /generate HTTP/1.1\r\nhost: a\r\nx: \0\r\n\r\n",
        "POST\t/generate\tHTTP/1.1\r\nhost: a\r\n\r\n",
        "POST  /generate HTTP/1.1\r\nhost: a\r\n\r\n",
        "POST /generate HTTP/1.1 \r\nhost: a\r\n\r\n",
        "POST /generate HTTP/1.10\r\nhost: a\r\n\r\n",
        "\nPOST /generate HTTP/1.1\r\nhost: a\r\n\r\n",
        "\rPOST /generate HTTP/1.1\r\nhost: a\r\n\r\n",
    ] {
        stage
            .serves(0, format!("{begin}{hidden}{LAST}").as_bytes())
            .await;
    }
}

#[tokio::test]
async fn a_client_that_expects_a_sign_gets_one_answer_for_each_request() {
    let stage = Witnessed::set().await;
    let length = format!("content-length: {}\r\n", JSON.len());
    for (line, requests) in [
        ("expect: 100-continue\r\n", 2),
        ("Expect: 100-Continue\r\n", 2),
        ("expect: 200-ok\r\n", 2),
        ("expect: 100-continue\r\nexpect: 100-continue\r\n", 2),
        ("expect : 100-continue\r\n", 0),
    ] {
        let begin = format!("POST /generate HTTP/1.1\r\nhost: a\r\n{length}{line}\r\n{JSON}");
        let bytes = format!("{begin}{}{LAST}", post("/generate", JSON));
        stage.serves(requests, bytes.as_bytes()).await;
    }
}
