//! Requests on the wire, and responses that begin before the request has been read.

use std::sync::LazyLock;

use http::HeaderValue;
use tokio::io::AsyncWriteExt;

use super::*;
use crate::addresses::Addresses;

static WORKER: HeaderValue = HeaderValue::from_static("worker:1");

static NOWHERE: LazyLock<Addresses> = LazyLock::new(|| Addresses::new(None));

fn to(authorization: Option<&HeaderValue>) -> Target<'_> {
    Target {
        addresses: &NOWHERE,
        server_name: None,
        host: &WORKER,
        authorization,
    }
}

fn request(method: Method) -> RequestHeader {
    let mut head = RequestHeader::build_no_case(method, b"/generate?a=b", None).unwrap();
    head.insert_header(AUTHORIZATION, "Bearer client").unwrap();
    head
}

#[tokio::test]
async fn a_request_is_its_head_and_its_body() {
    let (mut wire, mut theirs) = wire(1024);
    wire.send(to(None), &request(Method::POST), b"hello")
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
async fn a_response_before_the_request_is_read_ends_the_sending() {
    const REFUSAL: &[u8] = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno";
    let body = vec![b'a'; 1 << 20];
    for then in [Then::Stays, Then::Closes] {
        let (mut wire, mut theirs) = wire(1024);
        let respond = async {
            theirs.read_exact(&mut [0; 10]).await.unwrap();
            theirs.write_all(REFUSAL).await.unwrap();
            (then == Then::Stays).then_some(theirs)
        };
        let head = request(Method::POST);
        let (sent, worker) = tokio::join!(wire.send(to(None), &head, &body), respond);
        // The write to a closed connection has failed; the response can be read all the same.
        assert_eq!(sent.is_ok(), then == Then::Stays);
        let got = read_response(wire, &Method::POST).await.unwrap();
        assert_eq!(
            (got.status, &got.body[..], got.reusable),
            (413, &b"no"[..], false)
        );
        if let Some(mut worker) = worker {
            let mut rest = Vec::new();
            worker.read_to_end(&mut rest).await.unwrap();
            assert!(rest.len() < 4096, "{} bytes more", rest.len());
        }
    }
}

fn head_text(method: Method, key: Option<&HeaderValue>) -> String {
    String::from_utf8(encode_head(to(key), &request(method), 0)).unwrap()
}

#[test]
fn a_workers_own_key_replaces_the_clients_key() {
    let key = HeaderValue::from_static("Bearer worker");
    let sent = head_text(Method::POST, Some(&key));
    assert!(sent.contains("\r\nauthorization: Bearer worker\r\n"));
    assert!(!sent.contains("client"));
}

#[test]
fn a_post_without_a_body_says_so_and_a_get_has_no_length() {
    assert!(head_text(Method::POST, None).ends_with("\r\ncontent-length: 0\r\n\r\n"));
    assert!(!head_text(Method::GET, None).contains("content-length"));
}
