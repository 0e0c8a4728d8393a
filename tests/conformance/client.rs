//! One HTTP/1.1 client connection: raw requests, whole responses.
//!
//! The bytes of a body are sent unchanged. hyper is another HTTP stack than mini-lb's, so that a
//! framing error is not shared.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Method, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// The time limit of a case; every case is short.
const PATIENCE: Duration = Duration::from_secs(60);

/// The size of the pieces in which a chunked body is sent: small enough to cut tokens of the JSON.
const PIECE: usize = 11;

/// The most pieces of a body of any length.
const PIECES: usize = 64;

/// One request, sent as it stands.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) content_type: Option<&'static str>,
    pub(crate) body: Bytes,
    pub(crate) framing: Framing,
}

/// How the body of a request is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// `Content-Length`.
    Length,
    /// `Transfer-Encoding: chunked`, in small pieces.
    Chunked,
    /// `Content-Length` and `Expect: 100-continue`; the body waits for the interim answer.
    Expect,
}

/// A whole response.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) request_id: Option<String>,
    pub(crate) body: Bytes,
}

/// A connection for requests in sequence.
pub(crate) struct Connection {
    address: SocketAddr,
    sender: SendRequest<BoxBody<Bytes, Infallible>>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Result<Connection, String> {
        let opened = async {
            let socket = TcpStream::connect(address).await.map_err(text)?;
            socket.set_nodelay(true).map_err(text)?;
            let (sender, connection) = handshake(TokioIo::new(socket)).await.map_err(text)?;
            // Ends when `sender` is dropped or the peer closes.
            tokio::spawn(connection);
            Ok(Connection { address, sender })
        };
        within(opened).await
    }

    /// Whether the connection is still usable, once the last request is complete.
    pub(crate) async fn is_open(&mut self) -> bool {
        within(async { self.sender.ready().await.map_err(text) })
            .await
            .is_ok()
    }

    /// Sends a request and reads the whole response.
    pub(crate) async fn exchange(&mut self, request: &Request) -> Result<Answer, String> {
        let (body, proceed) = framed(request);
        let mut head = http::Request::builder()
            .method(request.method.clone())
            .uri(&request.path)
            .header(header::HOST, self.address.to_string());
        if let Some(content_type) = request.content_type {
            head = head.header(header::CONTENT_TYPE, content_type);
        }
        if proceed.is_some() {
            head = head
                .header(header::CONTENT_LENGTH, request.body.len())
                .header(header::EXPECT, "100-continue");
        }
        let mut message = head.body(body).map_err(text)?;
        if let Some(proceed) = proceed {
            let proceed = Mutex::new(Some(proceed));
            hyper::ext::on_informational(&mut message, move |interim| {
                if interim.status() == StatusCode::CONTINUE
                    && let Some(proceed) = proceed.lock().unwrap().take()
                {
                    // The receiver is dropped when the body is no longer needed.
                    let _ = proceed.send(());
                }
            });
        }
        within(async {
            // The end of the last exchange may still be on its way to the connection's task.
            self.sender.ready().await.map_err(text)?;
            let answer = self.sender.send_request(message).await.map_err(text)?;
            let (head, body) = answer.into_parts();
            let named = |name| {
                let value: Option<&http::HeaderValue> = head.headers.get(name);
                value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            };
            Ok(Answer {
                status: head.status.as_u16(),
                content_type: named("content-type").unwrap_or_default(),
                request_id: named("x-request-id"),
                body: body.collect().await.map_err(text)?.to_bytes(),
            })
        })
        .await
    }
}

/// The body of a request, and the signal that releases it if it has to wait.
fn framed(request: &Request) -> (BoxBody<Bytes, Infallible>, Option<oneshot::Sender<()>>) {
    let body = request.body.clone();
    match request.framing {
        Framing::Length => (Full::new(body).boxed(), None),
        Framing::Chunked => {
            let size = PIECE.max(body.len() / PIECES);
            let pieces: Vec<_> = body
                .chunks(size)
                .map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))))
                .collect();
            (BodyExt::boxed(StreamBody::new(stream::iter(pieces))), None)
        }
        Framing::Expect => {
            let (proceed, asked) = oneshot::channel();
            let piece = stream::once(async move {
                // Dropped without a signal: the exchange has ended without the body.
                let _ = asked.await;
                Ok(Frame::data(body))
            });
            (
                BodyExt::boxed(StreamBody::new(Box::pin(piece))),
                Some(proceed),
            )
        }
    }
}

async fn within<T>(exchange: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::time::timeout(PATIENCE, exchange)
        .await
        .unwrap_or_else(|_| Err(format!("nothing within {} s", PATIENCE.as_secs())))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
