//! One connection to the server, one exchange on it, and its failures.
//!
//! The future of the exchange drives the connection: there is no task per connection, so no wake-up from one task to
//! another adds to a latency. Sums over exchanges are `tally`'s.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::time::Instant;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use memchr::memmem;
use tokio::net::TcpStream;

use crate::pd::sse::{self, Splitter};

/// Upper bound of an event, in bytes; far above any event of SGLang.
const LONGEST_EVENT_BYTES: usize = 1 << 30;
/// The field in which mini-lb names the prefill worker of a response.
const PREFILL: &str = "x-mini-lb-prefill";
/// How much of an error's body is kept for the report, in bytes.
const ERROR_BYTES: usize = 300;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// The connection was refused: nothing listens at the address.
    Refused,
    /// The connection could not be opened for another reason.
    Connect(String),
    /// The connection ended before the response's head.
    Lost,
    /// The connection ended within the response's body.
    Cut,
    /// A stream was complete as HTTP, but had no `[DONE]`.
    NoDone,
    /// A stream had an error event.
    ErrorEvent,
    /// The response had this status, which is not 200.
    Status(u16),
    /// The response was not complete within the timeout.
    Timeout,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused => f.write_str("refused"),
            Failure::Connect(reason) => write!(f, "cannot connect: {reason}"),
            Failure::Lost => f.write_str("connection lost before the response"),
            Failure::Cut => f.write_str("connection lost within the response"),
            Failure::NoDone => f.write_str("stream without [DONE]"),
            Failure::ErrorEvent => f.write_str("error event"),
            Failure::Status(status) => write!(f, "status {status}"),
            Failure::Timeout => f.write_str("timeout"),
        }
    }
}

/// What has been received of one response.
#[derive(Debug)]
pub(crate) struct Received {
    /// When the first byte of the body came.
    pub(crate) first: Option<Instant>,
    /// When the last byte of the body came.
    pub(crate) last: Instant,
    /// Bytes of the body.
    pub(crate) bytes: u64,
    /// Events, without `[DONE]`.
    pub(crate) events: u64,
    /// Generated tokens, if the response has their number.
    pub(crate) tokens: Option<u64>,
    /// Tokens of the prompt, and those of them that were cached, if the response has both.
    pub(crate) prompt: Option<PromptTokens>,
    /// The prefill worker, if the response names it.
    pub(crate) prefill: Option<String>,
    /// The beginning of an error's body.
    pub(crate) error: Option<String>,
}

/// The prompt of a request in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PromptTokens {
    pub(crate) all: u64,
    pub(crate) cached: u64,
}

/// An open connection.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// `None` when the connection is closed.
    driver: Option<Driver>,
    /// Whether it has had a response. Its end may then be the server's keep-alive timeout.
    pub(crate) served: bool,
}

/// hyper's side of the connection, which moves bytes between the socket and the exchange.
type Driver = Pin<Box<http1::Connection<TokioIo<TcpStream>, Full<Bytes>>>>;

impl Connection {
    /// Opens a connection.
    pub(crate) async fn open(address: SocketAddr) -> Result<Connection, Failure> {
        let stream = TcpStream::connect(address)
            .await
            .map_err(|error| match error.kind() {
                io::ErrorKind::ConnectionRefused => Failure::Refused,
                _ => Failure::Connect(error.to_string()),
            })?;
        let _ = stream.set_nodelay(true); // only latency
        let (sender, driver) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Failure::Connect(error.to_string()))?;
        Ok(Connection {
            sender,
            driver: Some(Box::pin(driver)),
            served: false,
        })
    }

    /// Whether another request may be sent on it.
    pub(crate) fn is_open(&self) -> bool {
        self.driver.is_some() && !self.sender.is_closed()
    }

    /// Sends a request and reads its response to the end. `gap` is called with the time between two events of a
    /// stream, in nanoseconds.
    pub(crate) async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
        received: &mut Received,
        gap: impl FnMut(u64),
    ) -> Result<(), Failure> {
        let response = self.sender.send_request(request);
        let mut served = false;
        let exchange = async {
            let response = response.await.map_err(|_| Failure::Lost)?;
            served = true;
            read(response, received, gap).await
        };
        let result = drive(&mut self.driver, exchange).await;
        self.served |= served;
        if result.is_err() && !matches!(result, Err(Failure::Status(_) | Failure::ErrorEvent)) {
            self.driver = None;
        }
        result
    }
}

/// Sends one request on a new connection and returns the whole response, whatever its status.
///
/// # Errors
/// When there is no complete response.
pub async fn fetch(
    address: SocketAddr,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, Failure> {
    let mut connection = Connection::open(address).await?;
    let response = connection.sender.send_request(request);
    let exchange = async {
        let (head, body) = response.await.map_err(|_| Failure::Lost)?.into_parts();
        let body = body.collect().await.map_err(|_| Failure::Cut)?;
        Ok(Response::from_parts(head, body.to_bytes()))
    };
    drive(&mut connection.driver, exchange).await
}

/// Runs the exchange, and the connection with it.
async fn drive<T>(driver: &mut Option<Driver>, exchange: impl Future<Output = T>) -> T {
    let mut exchange = pin!(exchange);
    poll_fn(|context| {
        if let Some(open) = driver
            && open.as_mut().poll(context).is_ready()
        {
            // The exchange sees the same error.
            *driver = None;
        }
        exchange.as_mut().poll(context)
    })
    .await
}

impl Received {
    pub(crate) fn nothing() -> Received {
        Received {
            first: None,
            last: Instant::now(),
            bytes: 0,
            events: 0,
            tokens: None,
            prompt: None,
            prefill: None,
            error: None,
        }
    }

    /// Reads the usage at the end of a body or in its last event.
    fn note_tokens(&mut self, text: &[u8]) {
        self.tokens = completion_tokens(text);
        let number = |key: &[u8]| last_number(text, key);
        self.prompt = number(b"\"prompt_tokens\":")
            .zip(number(b"\"cached_tokens\":"))
            .map(|(all, cached)| PromptTokens { all, cached });
    }
}

async fn read(
    response: Response<Incoming>,
    received: &mut Received,
    gap: impl FnMut(u64),
) -> Result<(), Failure> {
    let status = response.status().as_u16();
    let is_stream = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    let prefill = response.headers().get(PREFILL);
    received.prefill = prefill.and_then(|name| Some(name.to_str().ok()?.to_owned()));
    let body = response.into_body();
    match (status, is_stream) {
        (200, true) => read_events(body, received, gap).await,
        (200, false) => read_whole(body, received).await,
        _ => {
            let mut kept = Vec::new();
            read_chunks(body, received, |chunk, _| {
                let room = ERROR_BYTES - kept.len();
                kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
            })
            .await?;
            received.error = Some(String::from_utf8_lossy(&kept).into_owned());
            Err(Failure::Status(status))
        }
    }
}

async fn read_events(
    body: Incoming,
    received: &mut Received,
    mut gap: impl FnMut(u64),
) -> Result<(), Failure> {
    let mut events = Splitter::new(LONGEST_EVENT_BYTES);
    let (mut count, mut done, mut error) = (0, false, None);
    let mut before: Option<Instant> = None;
    let mut last_with_data = None;
    read_chunks(body, received, |chunk, now| {
        events.push(chunk);
        while let Ok(Some(event)) = events.next_event() {
            if sse::is_done(&event) {
                done = true;
                continue;
            }
            count += 1;
            if let Some(before) = before.replace(now) {
                gap(nanoseconds(now - before));
            }
            if is_error(&event) {
                error = Some(event);
            } else {
                last_with_data = Some(event);
            }
        }
    })
    .await?;
    received.events = count;
    if let Some(event) = last_with_data {
        received.note_tokens(&event);
    }
    match (error, done) {
        (Some(error), _) => {
            let shown = &error[..error.len().min(ERROR_BYTES)];
            received.error = Some(String::from_utf8_lossy(shown).trim().to_owned());
            Err(Failure::ErrorEvent)
        }
        (None, true) => Ok(()),
        (None, false) => Err(Failure::NoDone),
    }
}

async fn read_whole(body: Incoming, received: &mut Received) -> Result<(), Failure> {
    let mut tail = Vec::new();
    read_chunks(body, received, |chunk, _| {
        // The number of tokens is in the usage, at the end of the body.
        if tail.len() > 8192 {
            tail.drain(..tail.len() - 4096);
        }
        let from = chunk.len().saturating_sub(4096);
        tail.extend_from_slice(&chunk[from..]);
    })
    .await?;
    received.note_tokens(&tail);
    Ok(())
}

async fn read_chunks(
    mut body: Incoming,
    received: &mut Received,
    mut each: impl FnMut(Bytes, Instant),
) -> Result<(), Failure> {
    while let Some(frame) = body.frame().await {
        let Ok(chunk) = frame.map_err(|_| Failure::Cut)?.into_data() else {
            continue;
        };
        let now = Instant::now();
        received.first.get_or_insert(now);
        received.last = now;
        received.bytes += chunk.len() as u64;
        each(chunk, now);
    }
    received.last = Instant::now();
    Ok(())
}

/// In each of SGLang's shapes the object begins with the error, or the event has the name `error`.
fn is_error(event: &[u8]) -> bool {
    event.starts_with(b"event: error")
        || sse::data(event).is_some_and(|data| {
            data.trim_ascii_start().starts_with(b"{\"error\"")
                || data.starts_with(b"{\"object\":\"error\"")
        })
}

/// The last number of generated tokens in a body or an event.
fn completion_tokens(text: &[u8]) -> Option<u64> {
    [&b"\"completion_tokens\":"[..], b"\"output_tokens\":"]
        .iter()
        .find_map(|key| last_number(text, key))
}

/// The number after the last of these keys.
fn last_number(text: &[u8], key: &[u8]) -> Option<u64> {
    let at = memmem::rfind(text, key)? + key.len();
    let digits = text[at..]
        .trim_ascii_start()
        .iter()
        .take_while(|byte| byte.is_ascii_digit());
    digits.fold(None, |number, digit| {
        let digit = u64::from(digit - b'0');
        Some(number.unwrap_or(0_u64).checked_mul(10)? + digit)
    })
}

pub(crate) fn nanoseconds(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_of_tokens_is_read_with_or_without_a_space() {
        for (text, tokens) in [
            (&b"{\"usage\":{\"completion_tokens\":12}}"[..], Some(12)),
            (
                b"\"completion_tokens\": 3, \"completion_tokens\": 4}",
                Some(4),
            ),
            (b"{\"output_tokens\":7}", Some(7)),
            (b"{\"completion_tokens\":null}", None),
            (b"{}", None),
        ] {
            assert_eq!(completion_tokens(text), tokens);
        }
    }

    #[test]
    fn the_tokens_of_the_prompt_are_known_where_the_response_has_them_and_the_cached_ones() {
        for (text, prompt) in [
            (
                &b"\"prompt_tokens\":12,\"cached_tokens\":9,\"cached_tokens_details\":{\"device\":9}"[..],
                Some((12, 9)),
            ),
            (
                b"{\"prompt_tokens\": 5, \"prompt_tokens_details\":{\"cached_tokens\":0}}",
                Some((5, 0)),
            ),
            (b"{\"prompt_tokens\":5,\"prompt_tokens_details\":null}", None),
        ] {
            let mut received = Received::nothing();
            received.note_tokens(text);
            let seen = received.prompt.map(|prompt| (prompt.all, prompt.cached));
            assert_eq!(seen, prompt);
        }
    }

    #[test]
    fn an_error_event_is_recognised_in_every_shape_and_an_error_within_text_is_not() {
        for event in [
            "data: {\"error\":{\"message\":\"x\"}}\n\n",
            "data: {\"object\":\"error\",\"message\":\"x\"}\n\n",
            "event: error\ndata: {\"type\":\"error\"}\n\n",
        ] {
            assert!(is_error(event.as_bytes()), "{event}");
        }
        assert!(!is_error(b"data: {\"text\":\"{\\\"error\\\"\"}\n\n"));
    }
}
