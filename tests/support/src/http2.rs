//! A client of HTTP/2 that the test plays stream by stream, and frames byte by byte.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::soon;

/// What a client sends first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One connection.
pub struct Http2 {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

/// One stream whose response has not begun.
pub struct Sent {
    response: ResponseFuture,
    body: SendStream<Bytes>,
}

/// A response whose head has arrived.
pub struct Begun {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: RecvStream,
}

/// A POST with a JSON body.
pub fn post(path: &str) -> http::request::Builder {
    Request::post(format!("http://balancer{path}")).header("content-type", "application/json")
}

impl Http2 {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap(), &Builder::new()).await
    }

    pub async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        options: &Builder,
    ) -> Self {
        let (requests, connection) = options.handshake(stream).await.unwrap();
        Self {
            requests,
            connection: tokio::spawn(connection),
        }
    }

    /// Ready when another stream may be opened; an error when the connection has ended.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        self.requests.poll_ready(cx)
    }

    /// Sends a head; its body follows, unless `end`.
    pub async fn begin(&mut self, request: http::request::Builder, end: bool) -> Sent {
        let ready = poll_fn(|cx| self.requests.poll_ready(cx));
        soon("a place for a stream", ready).await.unwrap();
        let sent = self.requests.send_request(request.body(()).unwrap(), end);
        let (response, body) = sent.unwrap();
        Sent { response, body }
    }

    /// Sends a request with this body.
    pub async fn send(&mut self, request: http::request::Builder, body: &str) -> Sent {
        let mut sent = self.begin(request, body.is_empty()).await;
        if !body.is_empty() {
            sent.send(body, true);
        }
        sent
    }

    /// Sends a POST with a JSON body.
    pub async fn post(&mut self, path: &str, body: &str) -> Sent {
        self.send(post(path), body).await
    }

    /// The end of the connection: the reason of its GOAWAY, or of its failure.
    pub async fn closed(&mut self) -> Result<(), Option<Reason>> {
        let ended = soon("the end of the connection", &mut self.connection).await;
        ended.unwrap().map_err(|error| error.reason())
    }

    /// Closes the connection without a word.
    pub fn drop_connection(&self) {
        self.connection.abort();
    }
}

impl Sent {
    /// Sends a part of the body, which h2 keeps until the balancer takes it.
    pub fn send(&mut self, bytes: &str, end: bool) {
        let bytes = Bytes::copy_from_slice(bytes.as_bytes());
        self.body.send_data(bytes, end).unwrap();
    }

    /// Ends the body with trailers.
    pub fn trailers(&mut self, trailers: HeaderMap) {
        self.body.send_trailers(trailers).unwrap();
    }

    /// The next interim response.
    pub async fn informed(&mut self) -> Option<StatusCode> {
        let informed = poll_fn(|cx| self.response.poll_informational(cx));
        let informed = soon("an interim response", informed).await;
        informed.map(|response| response.unwrap().status())
    }

    pub fn reset(mut self) {
        self.body.send_reset(Reason::CANCEL);
    }

    /// The head of the response; the reason where there is none.
    pub async fn try_head(self) -> Result<Begun, Option<Reason>> {
        let response = soon("a head", self.response).await;
        let (head, body) = response.map_err(|error| error.reason())?.into_parts();
        Ok(Begun {
            status: head.status,
            headers: head.headers,
            body,
        })
    }

    pub async fn head(self) -> Begun {
        self.try_head().await.expect("a head")
    }

    /// The whole response.
    pub async fn answer(self) -> (StatusCode, HeaderMap, String) {
        let mut begun = self.head().await;
        let mut all = String::new();
        while let Some(piece) = begun.piece().await {
            all += &piece.expect("the whole body");
        }
        (begun.status, begun.headers, all)
    }
}

impl Begun {
    /// The next piece of the body; an error where the stream is reset.
    pub async fn piece(&mut self) -> Option<Result<String, Option<Reason>>> {
        loop {
            let data = soon("a piece of a response", self.body.data()).await?;
            let data = match data {
                // A frame that only ends the stream.
                Ok(data) if data.is_empty() => continue,
                Ok(data) => data,
                Err(error) => return Some(Err(error.reason())),
            };
            let _ = self.body.flow_control().release_capacity(data.len());
            return Some(Ok(String::from_utf8(data.to_vec()).unwrap()));
        }
    }
}

/// A frame, with its header. Source: RFC 9113 section 4.1.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A connection whose frames the test writes and reads. Its own SETTINGS are empty.
pub struct Frames(TcpStream);

impl Frames {
    pub async fn connect(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // A small write must not wait for the acknowledgement of the one before.
        stream.set_nodelay(true).unwrap();
        stream.write_all(PREFACE).await.unwrap();
        stream.write_all(&frame(4, 0, 0, &[])).await.unwrap();
        Self(stream)
    }

    /// Sends these bytes, which the other side may not read to their end.
    pub async fn try_send(&mut self, bytes: &[u8]) {
        let _ = soon("the frames are sent", self.0.write_all(bytes)).await;
    }

    /// The next frame of this kind, its payload; `None` when the connection ends first.
    pub async fn next(&mut self, kind: u8) -> Option<Vec<u8>> {
        Some(self.either([kind; 2]).await?.1)
    }

    /// The next frame of these kinds: its kind and its payload; `None` when the connection ends first.
    pub async fn either(&mut self, kinds: [u8; 2]) -> Option<(u8, Vec<u8>)> {
        loop {
            let mut header = [0; 9];
            soon("a frame", self.0.read_exact(&mut header)).await.ok()?;
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
            let mut payload = vec![0; length as usize];
            soon("a payload", self.0.read_exact(&mut payload))
                .await
                .ok()?;
            if kinds.contains(&header[3]) {
                return Some((header[3], payload));
            }
        }
    }
}
