//! The client: one request on a new connection, what has arrived of its response, and leaving early.

use std::fmt;
use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use memchr::memmem;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A request that has been sent.
pub struct Client {
    pub heard: watch::Receiver<Heard>,
    task: JoinHandle<()>,
}

/// What has arrived of the response.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    /// With the code of mini-lb's errors, if there is one.
    head: Option<(u16, Option<String>)>,
    pub body: Vec<u8>,
    /// When an error event arrived.
    error_event: Option<Instant>,
    end: Option<(Instant, End)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The end of the HTTP message.
    Whole,
    /// The connection closed within the body.
    Cut,
    /// The connection closed before the head, or was refused.
    NoAnswer,
}

/// The outcome of a request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The expected response.
    Served,
    /// An error with its status.
    Status(u16, Option<String>),
    /// A stream that ended with an error event.
    ErrorEvent(Option<String>),
    /// A connection that was closed within a response of status 200.
    Cut,
    /// A response of status 200 that is complete as HTTP, and is not the expected document.
    PassedAsWhole,
    /// A connection that was closed before the response.
    Closed,
    /// None of these within the time limit.
    Hung,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with = |code: &Option<String>| {
            code.as_ref()
                .map_or(String::new(), |code| format!(" {code}"))
        };
        match self {
            Outcome::Served => f.write_str("served"),
            Outcome::Status(status, code) => write!(f, "{status}{}", with(code)),
            Outcome::ErrorEvent(code) => write!(f, "event{}", with(code)),
            Outcome::Cut => f.write_str("200 cut"),
            Outcome::PassedAsWhole => f.write_str("200 as if whole"),
            Outcome::Closed => f.write_str("closed"),
            Outcome::Hung => f.write_str("none in 5 s"),
        }
    }
}

impl Client {
    /// Sends the request.
    pub fn ask(address: SocketAddr, path: &str, body: &str) -> Client {
        let (tell, heard) = watch::channel(Heard::default());
        let request = Request::post(path)
            .header("host", "balancer")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.to_owned())));
        let task = tokio::spawn(async move {
            let end = match request {
                Ok(request) => exchange(address, request, &tell).await,
                Err(_) => End::NoAnswer,
            };
            tell.send_modify(|heard| heard.end = Some((Instant::now(), end)));
        });
        Client { heard, task }
    }

    /// Closes the connection.
    pub async fn leave(self) {
        self.task.abort();
        // The task was aborted on purpose.
        let _ = self.task.await;
    }
}

impl Heard {
    /// Whether any byte of the body has arrived.
    pub fn has_begun(&self) -> bool {
        !self.body.is_empty()
    }

    /// When the client knew the outcome.
    pub fn known_at(&self) -> Option<Instant> {
        self.error_event.or(self.end.map(|(at, _)| at))
    }

    /// The outcome.
    pub fn outcome(&self, is_stream: bool) -> Outcome {
        let end = match (self.known_at(), self.end) {
            (None, _) => return Outcome::Hung,
            (Some(_), end) => end.map(|(_, end)| end),
        };
        match &self.head {
            None => return Outcome::Closed,
            Some((200, _)) => {}
            Some((status, code)) => {
                let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
                return Outcome::Status(*status, code.clone().or_else(|| code_of(&body)));
            }
        }
        if self.error_event.is_some() {
            return Outcome::ErrorEvent(self.events().iter().find_map(code_of));
        }
        let served = match is_stream {
            true => memmem::find(&self.body, b"data: [DONE]").is_some(),
            false => serde_json::from_slice::<Value>(&self.body).is_ok_and(|body| !is_error(&body)),
        };
        match (end, served) {
            (Some(End::Whole), true) => Outcome::Served,
            (Some(End::Whole), false) => Outcome::PassedAsWhole,
            _ => Outcome::Cut,
        }
    }

    /// The documents of a stream, or the one document of another response.
    pub fn events(&self) -> Vec<Value> {
        let text = String::from_utf8_lossy(&self.body);
        let lines = text.lines();
        let documents = lines.map(|line| line.strip_prefix("data: ").unwrap_or(line));
        documents
            .filter_map(|document| serde_json::from_str(document).ok())
            .collect()
    }
}

async fn exchange(
    address: SocketAddr,
    request: Request<Full<Bytes>>,
    tell: &watch::Sender<Heard>,
) -> End {
    let Ok(stream) = TcpStream::connect(address).await else {
        return End::NoAnswer;
    };
    let _ = stream.set_nodelay(true); // only latency
    let Ok((mut sender, connection)) = http1::handshake(TokioIo::new(stream)).await else {
        return End::NoAnswer;
    };
    let driven = async {
        // A failure is recorded in the exchange.
        let _ = connection.await;
        std::future::pending().await
    };
    let asked = async {
        let Ok(response) = sender.send_request(request).await else {
            return End::NoAnswer;
        };
        let code = response.headers().get("x-mini-lb-error");
        let code = code.and_then(|code| Some(code.to_str().ok()?.to_owned()));
        let is_stream = response
            .headers()
            .get("content-type")
            .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        tell.send_modify(|heard| heard.head = Some((response.status().as_u16(), code)));
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                return End::Cut;
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            tell.send_modify(|heard| {
                heard.body.extend_from_slice(&data);
                if is_stream && heard.error_event.is_none() && has_error(&heard.body) {
                    heard.error_event = Some(Instant::now());
                }
            });
        }
        End::Whole
    };
    tokio::select! {
        end = asked => end,
        end = driven => end,
    }
}

/// Whether a stream reports a failure, in JSON or in something that resembles it.
fn has_error(body: &[u8]) -> bool {
    [&b"\"error\""[..], b"'error'"]
        .iter()
        .any(|word| memmem::find(body, word).is_some())
}

fn is_error(body: &Value) -> bool {
    body.get("error").is_some() || body["object"] == "error"
}

/// A stable word. The code of the workers' errors only repeats the status.
fn code_of(body: &Value) -> Option<String> {
    let error = body.get("error").unwrap_or(body);
    Some(error.get("code")?.as_str()?.to_owned())
}
