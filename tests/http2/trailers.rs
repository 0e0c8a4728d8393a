//! Trailers over HTTP/2, from a worker and to a client.

use http::{HeaderMap, HeaderName, HeaderValue, Response};
use support::http2::{Begun, Http2, post};
use support::{BODY, Balancer, CHAT, Pair, STREAM, config, soon};
use tokio::net::TcpListener;

const SUM: HeaderName = HeaderName::from_static("x-sum");

/// The body, and the fields behind it.
async fn ended(mut begun: Begun) -> (String, Option<HeaderMap>) {
    let mut body = String::new();
    while let Some(piece) = begun.piece().await {
        body += &piece.expect("the whole body");
    }
    let trailers = soon("the end", begun.body.trailers()).await;
    (body, trailers.unwrap())
}

fn sum() -> HeaderMap {
    HeaderMap::from_iter([(SUM, HeaderValue::from_static("1"))])
}

#[tokio::test]
async fn a_client_that_takes_trailers_gets_decodes_and_another_gets_none() {
    let mut pair = Pair::start().await;
    let mut client = Http2::connect(pair.balancer.address).await;
    for (path, body, content_type, text) in [
        ("/generate", BODY, "application/json", "{}"),
        (CHAT, STREAM, "text/event-stream", "data: [DONE]\n\n"),
    ] {
        for takes in [true, false] {
            let mut head = post(path);
            if takes {
                head = head.header("te", "trailers");
            }
            let sent = client.send(head, body).await;
            let (prefill, mut decode) = pair.next_legs().await;
            prefill.answer("200 OK", "{}").await;
            decode
                .send(format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n\
                     {:x}\r\n{text}\r\n0\r\nx-sum: 1\r\n\r\n",
                    text.len()
                ))
                .await;
            let begun = sent.head().await;
            assert_eq!(begun.headers.contains_key("trailer"), takes);
            let got = ended(begun).await;
            assert_eq!(got, (text.to_owned(), takes.then(sum)));
        }
    }
}

/// A worker of HTTP/2 whose every response ends with trailers.
async fn worker() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let mut body = request.into_body();
                        while let Some(Ok(data)) = body.data().await {
                            let _ = body.flow_control().release_capacity(data.len());
                        }
                        let head = Response::builder().header("content-type", "application/json");
                        let head = head.header("trailer", "x-sum").body(()).unwrap();
                        let mut out = respond.send_response(head, false).unwrap();
                        out.send_data("{}".into(), false).unwrap();
                        out.send_trailers(sum()).unwrap();
                    });
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn trailers_of_a_worker_of_http_2_reach_clients_of_both_versions() {
    let workers = [[worker().await], [worker().await]];
    let config = config(&workers[0], &workers[1]).worker_http2(true);
    let balancer = Balancer::start(config).await;
    let mut client = Http2::connect(balancer.address).await;
    let head = || post("/generate").header("te", "trailers");
    let begun = client.send(head(), BODY).await.head().await;
    assert_eq!(ended(begun).await, ("{}".to_owned(), Some(sum())));

    let mut client = balancer.client().await;
    let request = support::post("/generate", BODY).replacen("\r\n", "\r\nte: trailers\r\n", 1);
    client.send(request).await;
    client.head().await;
    assert_eq!(client.chunk().await.as_deref(), Some("{}"));
    assert_eq!(client.head().await, "0\r\nx-sum: 1\r\n\r\n");
}
