//! A worker that responds as its test tells it to, and records the requests that it got.
//!
//! For the endpoints without legs: it does not generate. It listens on a port that the system
//! chooses and ends with the test's runtime.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket};

/// A request that the worker got.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

/// A running worker.
pub struct MockWorker {
    /// `http://127.0.0.1:port`.
    pub url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl MockWorker {
    /// A worker that responds with the output of `script`.
    pub async fn start<Script, Answer>(script: Script) -> Self
    where
        Script: Fn(Seen) -> Answer + Clone + Send + Sync + 'static,
        Answer: Future<Output = Response<Full<Bytes>>> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let journal = seen.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (script, journal) = (script.clone(), journal.clone());
                let service = service_fn(move |request| {
                    let (script, journal) = (script.clone(), journal.clone());
                    async move {
                        let request = whole(request).await;
                        journal.lock().unwrap().push(request.clone());
                        Ok::<_, Infallible>(script(request).await)
                    }
                });
                // The balancer may close a connection at any time.
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self {
            url: format!("http://{address}"),
            seen,
        }
    }

    /// A worker that gives the same response to every request.
    pub async fn always(status: u16, content_type: &'static str, body: &'static str) -> Self {
        Self::start(move |_| async move { reply(status, content_type, body) }).await
    }

    /// The requests so far, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

/// A response, without Content-Type when that is empty.
pub fn reply(status: u16, content_type: &str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut answer = Response::builder().status(status);
    if !content_type.is_empty() {
        answer = answer.header("content-type", content_type);
    }
    answer.body(Full::new(body.into())).unwrap()
}

/// A worker that is gone: its port is bound, so that no other test gets it, but not listened on.
pub struct GoneWorker {
    /// `http://127.0.0.1:port`.
    pub url: String,
    _port: TcpSocket,
}

impl GoneWorker {
    /// Takes a port.
    pub fn bind() -> Self {
        let port = TcpSocket::new_v4().unwrap();
        port.bind(([127, 0, 0, 1], 0).into()).unwrap();
        Self {
            url: format!("http://{}", port.local_addr().unwrap()),
            _port: port,
        }
    }
}

async fn whole(request: Request<Incoming>) -> Seen {
    let (head, body) = request.into_parts();
    Seen {
        method: head.method,
        target: head.uri.to_string(),
        headers: head.headers,
        body: body.collect().await.unwrap().to_bytes(),
    }
}
