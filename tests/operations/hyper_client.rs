//! A balancer in the test's runtime, and a client on hyper: another HTTP stack than the proxy's, so that a framing
//! error is not shared.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use mini_lb::{Handle, MiniLbConfig, MiniLoadBalancer};
use serde_json::Value;
use support::mock_worker::MockWorker;
use tokio::net::TcpStream;

pub(crate) const JSON: &str = "application/json";

/// A balancer that ends with the test.
pub(crate) struct Balancer {
    pub(crate) address: SocketAddr,
    handle: Handle,
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.handle.stop();
    }
}

/// A response.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Got {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

pub(crate) async fn balancer(prefill: &[&str], decode: &[&str]) -> Balancer {
    balancer_with(prefill, decode, |config| config).await
}

pub(crate) async fn balancer_with(
    prefill: &[&str],
    decode: &[&str],
    change: impl FnOnce(MiniLbConfig) -> MiniLbConfig,
) -> Balancer {
    let prefill = prefill.iter().map(|url| ((*url).to_owned(), Some(8998)));
    let decode = decode.iter().map(|url| (*url).to_owned());
    let host = "127.0.0.1".to_owned();
    let config = MiniLbConfig::new(host, 0, prefill.collect(), decode.collect(), 1800)
        // The workers record every request, probes included.
        .health_check_interval(None);
    let balancer = MiniLoadBalancer::new(change(config)).unwrap();
    let handle = balancer.handle();
    tokio::spawn(balancer.start());
    let address = handle.address().await.unwrap();
    Balancer { address, handle }
}

impl Balancer {
    pub(crate) async fn connect(&self) -> SendRequest<Full<Bytes>> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (client, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        client
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Got {
        got(&mut self.connect().await, request).await
    }

    pub(crate) async fn get(&self, target: &str) -> Got {
        self.send(request("GET", target, "")).await
    }

    pub(crate) async fn post(&self, target: &str, body: &'static str) -> Got {
        self.send(request("POST", target, body)).await
    }
}

pub(crate) async fn got(
    client: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Got {
    let (head, body) = client.send_request(request).await.unwrap().into_parts();
    Got {
        status: head.status,
        headers: head.headers,
        body: body.collect().await.unwrap().to_bytes(),
    }
}

pub(crate) fn request(method: &str, target: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(target)
        .header("host", "balancer")
        .body(Full::new(body.into()))
        .unwrap()
}

/// A worker whose every response is its name.
pub(crate) async fn named(name: &'static str) -> MockWorker {
    MockWorker::always(200, JSON, name).await
}
