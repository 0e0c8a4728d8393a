//! A worker whose name has several addresses, of which one refuses connections.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderValue, Method};
use pingora::connectors::http::Connector;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// A worker on 127.0.0.1 whose name also has 127.0.0.2, and first. It answers every request.
async fn half_dead_worker() -> (Arc<Addresses>, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let alive = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while let Ok(byte) = stream.read_u8().await {
                    head.push(byte);
                    if head.ends_with(b"\r\n\r\n") {
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                        stream.write_all(answer).await.unwrap();
                        head.clear();
                    }
                }
            });
        }
    });
    let addresses = Addresses::new(None);
    addresses.set(vec![([127, 0, 0, 2], alive.port()).into(), alive]);
    (Arc::new(addresses), alive)
}

fn client() -> Client {
    let dialling = Dialling {
        connect_timeout: Duration::from_secs(10),
        trust: Trust::new(&[], None),
    };
    Client::new(&ServerConf::default(), dialling)
}

#[tokio::test]
async fn an_exchange_reaches_a_worker_at_the_address_that_accepts_and_remembers_it() {
    let (addresses, alive) = half_dead_worker().await;
    let client = client();
    let host = HeaderValue::from_static("worker");
    let to = Target {
        addresses: &addresses,
        server_name: None,
        host: &host,
        authorization: None,
    };
    let head = RequestHeader::build_no_case(Method::GET, b"/health", None).unwrap();
    let response = client.fetch(to, &head, &Bytes::new(), 64).await.unwrap();
    assert_eq!(response.body, "{}");
    assert_eq!(addresses.first(), Some(alive));
    // Found under the address that was reached.
    assert!(client.pool.take(reuse_key(alive, None)).is_some());
}

#[tokio::test]
async fn decodes_exchange_reaches_a_worker_at_the_address_that_accepts_and_remembers_it() {
    let (addresses, alive) = half_dead_worker().await;
    let client = client();
    let pooled = client.pooled_peer(&addresses, None, Chunks::Joined, Reuse::Pooled);
    let (peer, handle) = pooled.unwrap();
    let (session, _) = Connector::<()>::new(None)
        .get_http_session(&peer)
        .await
        .unwrap();
    assert_eq!(addresses.first(), Some(alive));
    assert_eq!(handle.lost(), LostConnection::InUse, "it is new");
    drop(session);
}
