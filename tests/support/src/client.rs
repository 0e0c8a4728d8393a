//! A client that sends raw bytes, and HTTP messages as they were on the wire.
//!
//! With `MINI_LB_TEST_HTTP2=1` in the environment its requests reach the balancer over HTTP/2, see [`crate::bridge`].

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::{bridge, soon};

/// A message: the head as text, the body without its framing.
#[derive(Debug, Clone)]
pub struct Message {
    pub head: String,
    pub body: Vec<u8>,
}

/// A response is a message.
pub type Answer = Message;

/// One connection to the balancer.
pub struct Client {
    stream: TcpStream,
    /// The client's address as the balancer sees it.
    address: SocketAddr,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap()).await
    }

    /// Its own end of the connection.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Connects from this local address.
    pub async fn connect_from(from: [u8; 4], address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        Self::over(socket.connect(address).await.unwrap()).await
    }

    async fn over(stream: TcpStream) -> Self {
        // A second small write must not wait for the acknowledgement of the first.
        stream.set_nodelay(true).unwrap();
        let address = stream.local_addr().unwrap();
        let stream = match bridge::is_asked_for() {
            true => bridge::before(stream).await,
            false => stream,
        };
        Self { stream, address }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// The next response with its body.
    pub async fn answer(&mut self) -> Answer {
        soon("an answer", Message::read(&mut self.stream))
            .await
            .expect("an answer before the close")
    }

    /// Sends these bytes and returns every response until the other side closes, which it may do before it has read
    /// all of them.
    pub async fn answers(mut self, bytes: &[u8]) -> Vec<Answer> {
        let (mut from, mut to) = self.stream.split();
        let mut all = Vec::new();
        let both = async { tokio::join!(to.write_all(bytes), from.read_to_end(&mut all)) };
        let _ = soon("the close", both).await;
        let (mut rest, mut answers) = (&all[..], Vec::new());
        while let Some(answer) = Message::read(&mut rest).await {
            answers.push(answer);
        }
        answers
    }

    /// The next response; `None` when the connection closes first.
    pub async fn try_answer(&mut self) -> Option<Answer> {
        soon("an answer, or the close", Message::read(&mut self.stream)).await
    }

    /// The head of the next response.
    pub async fn head(&mut self) -> String {
        soon("the head of an answer", read_head(&mut self.stream))
            .await
            .expect("a head")
    }

    /// The next chunk of a chunked body; `None` at its end or when the connection is cut.
    pub async fn chunk(&mut self) -> Option<String> {
        self.bytes()
            .await
            .map(|chunk| String::from_utf8(chunk).unwrap())
    }

    /// As [`Self::chunk`], for bytes that need not be text.
    pub async fn bytes(&mut self) -> Option<Vec<u8>> {
        soon("a chunk", read_chunk(&mut self.stream)).await
    }

    /// Closes the sending half of the connection.
    pub async fn finish(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Closes the connection so that the other side sees a reset.
    pub fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }

    /// Everything until the other side closes.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = soon("the close", self.stream.read_to_end(&mut rest)).await;
        rest
    }

    /// As [`Self::rest`]; `None` when the other side neither sends nor closes within `patience`.
    pub async fn rest_within(&mut self, patience: Duration) -> Option<Vec<u8>> {
        let mut rest = [0; 1];
        let read = tokio::time::timeout(patience, self.stream.read(&mut rest)).await;
        match read.ok()? {
            Ok(0) | Err(_) => Some(Vec::new()),
            Ok(_) => Some([rest.as_slice(), &self.rest().await].concat()),
        }
    }
}

impl Message {
    /// `None` when the connection ends before a whole message.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Option<Self> {
        let head = read_head(stream).await?;
        let mut body = Vec::new();
        if let Some(length) = header(&head, "content-length") {
            body.resize(length.parse().unwrap(), 0);
            stream.read_exact(&mut body).await.ok()?;
        } else if header(&head, "transfer-encoding").is_some() {
            while let Some(chunk) = read_chunk(stream).await {
                body.extend(chunk);
            }
        }
        Some(Self { head, body })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", String::from_utf8_lossy(&self.body)))
    }

    pub fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// The status, and the code of the balancer's own error.
    pub fn outcome(&self) -> (u16, Option<&str>) {
        (self.status(), self.header("x-mini-lb-error"))
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

async fn read_chunk(stream: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let mut size = Vec::new();
    while !size.ends_with(b"\r\n") {
        size.push(stream.read_u8().await.ok()?);
    }
    let size = usize::from_str_radix(std::str::from_utf8(&size).unwrap().trim(), 16).unwrap();
    let mut chunk = vec![0; size + 2];
    stream.read_exact(&mut chunk).await.ok()?;
    chunk.truncate(size);
    (size > 0).then_some(chunk)
}
