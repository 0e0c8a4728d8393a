//! What was once wrong, named after what was seen.

#![allow(clippy::unwrap_used)]

mod support;

use support::{Balancer, Client, Worker};

/// Every answer said `Connection: keep-alive`, and a client of HTTP/1.0 waited for a close that did not come.
#[tokio::test]
async fn a_client_that_asks_for_close_gets_it() {
    let (mut prefill, mut decode) = (Worker::listen().await, Worker::listen().await);
    let balancer = Balancer::of(&prefill, &decode).await;
    for (version, more) in [
        ("1.1", "connection: close\r\n"),
        ("1.0", ""),
        ("1.1", "connection: close\r\nexpect: 100-continue\r\n"),
    ] {
        let mut client = Client::connect(balancer.address).await;
        client
            .send(format!(
                "POST /generate HTTP/{version}\r\nhost: balancer\r\n{more}content-length: 12\r\n\r\n{{\"text\":\"a\"}}"
            ))
            .await;
        prefill.request().await.answer("200 OK", "{}").await;
        decode.request().await.answer("200 OK", "{}").await;
        let answer = String::from_utf8(client.rest().await).unwrap();
        assert!(answer.contains("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(
            answer
                .to_ascii_lowercase()
                .contains("\r\nconnection: close\r\n"),
            "{answer}"
        );
        assert!(answer.ends_with("\r\n\r\n{}"), "{answer}");
    }
}
