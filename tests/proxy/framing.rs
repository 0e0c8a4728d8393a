//! Responses of workers with odd framing: each is taken from both legs, or refused from both at once.

use mini_lb::pd::Role;
use support::pair::{ROLES, leg_of};
use support::{BODY, Pair};

const TAKEN: bool = true;
const REFUSED: bool = false;

/// Heads and bodies, without `HTTP/1.` and with `BODY` as their body. No worker closes its connection, so that a reader
/// that waits for the close waits for ever.
const RESPONSES: [(&str, bool); 34] = [
    ("1 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\":1}", TAKEN),
    ("0 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\":1}", TAKEN),
    ("1 200\r\ncontent-length: 7\r\n\r\n{\"a\":1}", TAKEN),
    ("1 200 OK\r\ncontent-length : 7\r\n\r\n{\"a\":1}", TAKEN),
    ("1 200 OK\r\ncontent-length: 7, 7\r\n\r\n{\"a\":1}", REFUSED),
    (
        "1 200 OK\r\ncontent-length: 7\r\ncontent-length: 7\r\n\r\n{\"a\":1}",
        REFUSED,
    ),
    (
        "1 200 OK\r\nx: a\r\n folded\r\ncontent-length: 7\r\n\r\n{\"a\":1}",
        TAKEN,
    ),
    (
        "1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n7\r\n{\"a\":1}\r\n0\r\n\r\n",
        TAKEN,
    ),
    (
        "1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n7;x=y\r\n{\"a\":1}\r\n0;z\r\nx: y\r\n\r\n",
        TAKEN,
    ),
    (
        "1 200 OK\r\ntransfer-encoding : chunked\r\n\r\n7 \r\n{\"a\":1}\r\n0\r\n\r\n",
        TAKEN,
    ),
    // Two lengths that agree or not: chunks win.
    (
        "1 200 OK\r\ncontent-length: 7\r\ntransfer-encoding: chunked\r\n\r\n7\r\n{\"a\":1}\r\n0\r\n\r\n",
        TAKEN,
    ),
    (
        "1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n7\r\n{\"a\":1}\r\n0\r\n\r\n",
        TAKEN,
    ),
    (
        "1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n7\r\n{\"a\":1}\r\n\r\n\r\n",
        TAKEN,
    ),
    (
        "1 200 OK\r\ncontent-length: 7\r\ncontent-length: 8\r\n\r\n{\"a\":1}",
        REFUSED,
    ),
    ("1 200 OK\r\ncontent-length: 7, 8\r\n\r\n{\"a\":1}", REFUSED),
    ("1 200 OK\r\ncontent-length: +7\r\n\r\n{\"a\":1}", REFUSED),
    ("1 200 OK\r\ncontent-length: -7\r\n\r\n{\"a\":1}", REFUSED),
    ("1 200 OK\r\ncontent-length: 7 7\r\n\r\n{\"a\":1}", REFUSED),
    ("1 200 OK\r\ncontent-length:\r\n\r\n{\"a\":1}", REFUSED),
    (
        "1 200 OK\r\ncontent-length: 18446744073709551616\r\n\r\n{\"a\":1}",
        REFUSED,
    ),
    (
        "0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n7\r\n{\"a\":1}\r\n0\r\n\r\n",
        REFUSED,
    ),
    (
        "0 200 OK\r\ncontent-length: 7\r\ntransfer-encoding: identity\r\n\r\n{\"a\":1}",
        REFUSED,
    ),
    (
        "1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n{\"a\":1}",
        REFUSED,
    ),
    (
        "1 200 OK\r\ntransfer-encoding: identity\r\ncontent-length: 7\r\n\r\n{\"a\":1}",
        REFUSED,
    ),
    (
        "1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n7\r\n{\"a\":1}\r\n0\r\n\r\n",
        REFUSED,
    ),
    (
        "1 200 OK\r\ntransfer-encoding: chunked, gzip\r\n\r\n{\"a\":1}",
        REFUSED,
    ),
    (
        "1 200 OK\r\ntransfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n7\r\n{\"a\":1}\r\n0\r\n\r\n",
        REFUSED,
    ),
    (
        "1 200 OK\r\ntransfer-encoding: xchunked\r\n\r\n7\r\n{\"a\":1}\r\n0\r\n\r\n",
        REFUSED,
    ),
    ("1 200 OK\r\ntransfer-encoding:\r\n\r\n{\"a\":1}", REFUSED),
    (
        "1 200 OK\r\ntransfer-encoding: chunked\r\n\r\ng\r\n{\"a\":1}\r\n0\r\n\r\n",
        REFUSED,
    ),
    (
        "1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\n{\"a\":1}\r\n0\r\n\r\n",
        REFUSED,
    ),
    (
        "1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n7\n{\"a\":1}\r\n0\r\n\r\n",
        REFUSED,
    ),
    (
        "1 200 OK\r\nno colon\r\ncontent-length: 7\r\n\r\n{\"a\":1}",
        REFUSED,
    ),
    (
        "1 200 OK\r\nx: a\0\r\ncontent-length: 7\r\n\r\n{\"a\":1}",
        REFUSED,
    ),
];

#[tokio::test]
async fn a_response_with_odd_framing_is_taken_from_both_legs_or_refused_from_both_at_once() {
    for (response, taken) in RESPONSES {
        for role in ROLES {
            let mut pair = Pair::start().await;
            let (mut one, other) = leg_of(role, pair.legs("/generate", BODY).await);
            let what = format!("{role} {response:?}");
            // Refused before all of it is read, it cannot all be written.
            let _ = one.try_send(format!("HTTP/1.{response}")).await;
            if !taken {
                pair.bad_gateway(&what, &format!("{role}_bad_answer")).await;
                other.closed().await;
                continue;
            }
            if role == Role::Prefill {
                one.keep();
            }
            other.answer("200 OK", "{\"a\":1}").await;
            let answer = pair.client.answer().await;
            assert_eq!(
                (answer.status(), answer.text()),
                (200, "{\"a\":1}"),
                "{what}"
            );
            let both = answer.header("content-length").is_some()
                && answer.header("transfer-encoding").is_some();
            assert!(!both, "{what}");
        }
    }
}
