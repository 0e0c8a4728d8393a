//! The client: one request on a connection of its own, what it has heard so far, and the leaving.

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

/// A request on its way.
pub struct Client {
    pub heard: watch::Receiver<Heard>,
    task: JoinHandle<()>,
}

/// What came of an answer so far.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    /// With the code of mini-lb's errors, where there is one.
    head: Option<(u16, Option<String>)>,
    pub body: Vec<u8>,
    /// When an event in it was an error.
    error_event: Option<Instant>,
    end: Option<(Instant, End)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// As HTTP has it.
    Whole,
    /// Within the body.
    Cut,
    /// The connection ended before, or there was none.
    NoAnswer,
}

/// What an answer was.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// What was asked for.
    Served,
    /// An error with its status.
    Status(u16, Option<String>),
    /// A stream that ends with an error event.
    ErrorEvent(Option<String>),
    /// A connection that was closed within an answer with status 200.
    Cut,
    /// An answer with status 200 that ended well as HTTP, and is none.
    PassedAsWhole,
    /// A connection that was closed before an answer.
    Closed,
    /// Nothing of all that within the time that was given.
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
            Outcome::Hung => f.write_str("hung"),
        }
    }
}

impl Client {
    /// Asks.
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

    /// Closes the connection, whatever has come.
    pub async fn leave(self) {
        self.task.abort();
        // An error is what was asked for.
        let _ = self.task.await;
    }
}

impl Heard {
    /// Whether anything of the body is there.
    pub fn has_begun(&self) -> bool {
        !self.body.is_empty()
    }

    /// When the client knew what it has got.
    pub fn known_at(&self) -> Option<Instant> {
        self.error_event.or(self.end.map(|(at, _)| at))
    }

    /// What it has got.
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

    /// The documents of a stream, or the one of an answer in one piece.
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
        // What it fails with, the exchange is told.
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

/// Whether a stream says that it failed, in JSON or in what was meant to be.
fn has_error(body: &[u8]) -> bool {
    [&b"\"error\""[..], b"'error'"]
        .iter()
        .any(|word| memmem::find(body, word).is_some())
}

fn is_error(body: &Value) -> bool {
    body.get("error").is_some() || body["object"] == "error"
}

/// A stable word; the workers' code is the status again.
fn code_of(body: &Value) -> Option<String> {
    let error = body.get("error").unwrap_or(body);
    Some(error.get("code")?.as_str()?.to_owned())
}
