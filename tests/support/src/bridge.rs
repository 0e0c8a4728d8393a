//! The tests' client over HTTP/2: its bytes are HTTP/1.1, and each of its requests becomes a stream of a connection to the
//! balancer.
//!
//! So that one test makes its claim for both protocols. What a client of HTTP/1.1 sees of a stream: a reset is a close in
//! the midst of a response, its own close is a reset, and GOAWAY is a close between two responses. Bytes that are no valid
//! request of HTTP/1.1 have no counterpart, and pipelined requests are sent one after the other.

use std::future::poll_fn;

use bytes::{Buf, Bytes, BytesMut};
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING};
use http::{HeaderMap, Request, Uri};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// Whether clients of tests speak HTTP/2.
pub fn is_asked_for() -> bool {
    std::env::var_os("MINI_LB_TEST_HTTP2").is_some_and(|value| value == "1")
}

/// A connection whose requests go out as streams of `balancer`'s.
pub async fn before(balancer: TcpStream) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (near, (far, _)) = (near.unwrap(), far.unwrap());
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    tokio::spawn(carry(far, balancer));
    near
}

async fn carry(near: TcpStream, balancer: TcpStream) {
    let (reader, writer) = near.into_split();
    let mut near = Near {
        reader,
        buffer: BytesMut::new(),
    };
    // Both fail where the balancer refuses the connection.
    if let Ok((requests, connection)) = h2::client::handshake(balancer).await {
        serve(&mut near, writer, requests, connection).await;
    }
}

async fn serve(
    near: &mut Near,
    mut writer: OwnedWriteHalf,
    mut requests: SendRequest<Bytes>,
    connection: Connection<TcpStream>,
) {
    // Ends with the connection.
    let (ended, mut is_ended) = tokio::sync::oneshot::channel::<()>();
    let connection = tokio::spawn(async move {
        let _ended = ended;
        let _ = connection.await;
    });
    loop {
        let head = tokio::select! {
            head = near.head() => head,
            _ = &mut is_ended => None,
        };
        let Some((request, length)) = head.as_deref().and_then(parse) else {
            break;
        };
        let Ok(ready) = requests.clone().ready().await else {
            break;
        };
        requests = ready;
        let is_head = request.method() == http::Method::HEAD;
        let Ok((response, mut body)) = requests.send_request(request, length == Length::Known(0))
        else {
            break;
        };
        let mut sent = false;
        let ended = {
            let answering = answer(response, &mut writer, is_head);
            tokio::pin!(answering);
            tokio::select! {
                ended = &mut answering => ended,
                () = forward(near, &mut body, length, &mut sent) => {
                    body.send_reset(Reason::CANCEL);
                    None
                }
            }
        };
        if ended.is_none() || !sent {
            break;
        }
    }
    // Lets the reset reach the balancer.
    drop((requests, writer));
    let _ = connection.await;
}

/// The length of a body on its way from the client.
#[derive(Clone, Copy, PartialEq)]
enum Length {
    Known(usize),
    Chunked,
}

fn parse(head: &[u8]) -> Option<(Request<()>, Length)> {
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut parsed = httparse::Request::new(&mut fields);
    parsed.parse(head).ok()?;
    let mut headers = HeaderMap::new();
    for field in parsed.headers {
        let name = http::HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        headers.append(name, field.value.try_into().ok()?);
    }
    let chunked = headers.remove(TRANSFER_ENCODING).is_some();
    let length = headers.get(CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    let host = headers.remove(HOST)?;
    // Those of one hop go no further, but for TE.
    for name in headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|names| {
            let names = names.to_str().unwrap_or_default();
            let names = names.split(',').map(|name| name.trim().to_owned());
            names.filter(|name| name != "te")
        })
        .collect::<Vec<_>>()
    {
        headers.remove(name);
    }
    headers.remove(CONNECTION);
    // Nothing else may be said by it over HTTP/2, and nothing by a client that knows no trailers.
    let te = headers.remove(TE).filter(|_| parsed.version == Some(1));
    if let Some(te) = te.filter(|te| te == "trailers") {
        headers.insert(TE, te);
    }
    let uri = Uri::builder()
        .scheme("http")
        .authority(host.as_bytes())
        .path_and_query(parsed.path?)
        .build();
    let mut request = Request::builder().method(parsed.method?).uri(uri.ok()?);
    *request.headers_mut()? = headers;
    let length = match chunked {
        true => Length::Chunked,
        false => Length::Known(length.unwrap_or(0)),
    };
    Some((request.body(()).ok()?, length))
}

/// Sends the body as it arrives, says when it is sent, and then resolves when the client leaves.
async fn forward(near: &mut Near, to: &mut SendStream<Bytes>, length: Length, sent: &mut bool) {
    let forwarded = match length {
        Length::Known(0) => Some(()),
        Length::Known(length) => near.forward(length, true, to).await,
        Length::Chunked => near.forward_chunks(to).await,
    };
    // The balancer may want no more of it: then the response follows.
    *sent = forwarded.is_some();
    near.closed().await;
}

/// Writes the response as HTTP/1.1. `None` where it is cut short.
async fn answer(
    mut response: ResponseFuture,
    to: &mut OwnedWriteHalf,
    is_head: bool,
) -> Option<()> {
    while let Some(informed) = poll_fn(|cx| response.poll_informational(cx)).await {
        let line = format!("HTTP/1.1 {}\r\n\r\n", informed.ok()?.status());
        to.write_all(line.as_bytes()).await.ok()?;
    }
    let (head, mut body) = response.await.ok()?.into_parts();
    let mut text = format!("HTTP/1.1 {}\r\n", head.status).into_bytes();
    write_fields(&mut text, &head.headers);
    let is_chunked = !head.headers.contains_key(CONTENT_LENGTH) && !is_head;
    if is_chunked {
        text.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    text.extend_from_slice(b"\r\n");
    to.write_all(&text).await.ok()?;
    while let Some(data) = next(&mut body).await {
        let data = data?;
        if is_chunked && !data.is_empty() {
            let size = format!("{:x}\r\n", data.len());
            let chunk = [size.as_bytes(), &data, b"\r\n"].concat();
            to.write_all(&chunk).await.ok()?;
        } else {
            to.write_all(&data).await.ok()?;
        }
        let _ = body.flow_control().release_capacity(data.len());
    }
    if is_chunked {
        let mut last = b"0\r\n".to_vec();
        write_fields(&mut last, &body.trailers().await.ok()?.unwrap_or_default());
        last.extend_from_slice(b"\r\n");
        to.write_all(&last).await.ok()?;
    }
    Some(())
}

fn write_fields(text: &mut Vec<u8>, fields: &HeaderMap) {
    for (name, value) in fields {
        let line = [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"];
        text.extend_from_slice(&line.concat());
    }
}

/// The next piece of a body; `Some(None)` where it is cut.
async fn next(body: &mut RecvStream) -> Option<Option<Bytes>> {
    Some(body.data().await?.ok())
}

/// What the client has sent.
struct Near {
    reader: OwnedReadHalf,
    buffer: BytesMut,
}

impl Near {
    /// Reads more; `None` at the end. May be dropped and called again.
    async fn fill(&mut self) -> Option<()> {
        let read = self.reader.read_buf(&mut self.buffer).await.ok()?;
        (read > 0).then_some(())
    }

    /// Resolves when the client has left.
    async fn closed(&mut self) {
        while self.fill().await.is_some() {}
    }

    /// What precedes this mark, and the mark.
    async fn until(&mut self, mark: &[u8]) -> Option<Bytes> {
        loop {
            let at = self
                .buffer
                .windows(mark.len())
                .position(|bytes| bytes == mark);
            match at {
                Some(at) => return Some(self.buffer.split_to(at + mark.len()).freeze()),
                None => self.fill().await?,
            }
        }
    }

    async fn head(&mut self) -> Option<Bytes> {
        self.until(b"\r\n\r\n").await
    }

    async fn forward(
        &mut self,
        mut length: usize,
        end: bool,
        to: &mut SendStream<Bytes>,
    ) -> Option<()> {
        while length > 0 {
            if self.buffer.is_empty() {
                self.fill().await?;
            }
            let mut piece = self.buffer.split_to(length.min(self.buffer.len())).freeze();
            length -= piece.len();
            while !piece.is_empty() {
                to.reserve_capacity(piece.len());
                if to.capacity() == 0 {
                    poll_fn(|cx| to.poll_capacity(cx)).await?.ok()?;
                }
                let part = piece.split_to(piece.len().min(to.capacity()));
                let is_last = end && length == 0 && piece.is_empty();
                to.send_data(part, is_last).ok()?;
            }
        }
        Some(())
    }

    async fn forward_chunks(&mut self, to: &mut SendStream<Bytes>) -> Option<()> {
        loop {
            let size = self.until(b"\r\n").await?;
            let size = std::str::from_utf8(&size).ok()?.trim();
            let size = usize::from_str_radix(size.split(';').next()?, 16).ok()?;
            if size == 0 {
                // Without trailers.
                self.until(b"\r\n").await?;
                return to.send_data(Bytes::new(), true).ok();
            }
            self.forward(size, false, to).await?;
            while self.buffer.len() < 2 {
                self.fill().await?;
            }
            self.buffer.advance(2);
        }
    }
}
