//! The requests of the soak, the response that each of them must get, and the ways in which a client spoils one.

use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngExt};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// The share of requests with a fault: in equal parts a malformed request, a client that leaves before the response,
/// and one that leaves after the head.
const FAULTS_IN_A_THOUSAND: u32 = 50;

/// The outcome of a request.
pub enum Outcome {
    /// The whole expected response.
    Ok,
    /// The client left on purpose.
    Left,
    /// Anything else.
    Wrong(String),
}

/// A request and the response that it must get.
pub struct Case {
    pub name: &'static str,
    head: &'static str,
    body: String,
    right: Right,
    leaves: Leaves,
}

/// An expected response.
#[derive(Clone, Copy)]
enum Right {
    /// JSON with this status.
    Json(u16),
    /// A list of this length.
    List(usize),
    /// JSON with prompt logprobs in it.
    Has(&'static str),
    /// Events, the last of which contains this.
    Stream(&'static str),
    /// This status.
    Status(u16),
}

/// When the client goes away.
#[derive(Clone, Copy, PartialEq)]
enum Leaves {
    Never,
    BeforeTheAnswer(Duration),
    AfterItsHead,
}

const GENERATE: &str = "POST /generate";
const CHAT: &str = "POST /v1/chat/completions";
const COMPLETIONS: &str = "POST /v1/completions";
const RESPONSES: &str = "POST /v1/responses";
const MESSAGES: &str = "POST /v1/messages";

/// Name, request line, body, expected response. `TOKENS` and `TEXT` are replaced by random values.
const CASES: &[(&str, &str, &str, Right)] = &[
    (
        "generate",
        GENERATE,
        r#"{"text":"TEXT","sampling_params":{"max_new_tokens":TOKENS}}"#,
        Right::Has("meta_info"),
    ),
    (
        "generate stream",
        GENERATE,
        r#"{"text":"TEXT","stream":true,"sampling_params":{"max_new_tokens":TOKENS}}"#,
        Right::Stream("[DONE]"),
    ),
    (
        "generate logprobs",
        GENERATE,
        r#"{"text":"TEXT","return_logprob":true,"logprob_start_len":0,"sampling_params":{"max_new_tokens":TOKENS}}"#,
        Right::Has("input_token_logprobs"),
    ),
    (
        "generate logprobs stream",
        GENERATE,
        r#"{"text":"TEXT","stream":true,"return_logprob":true,"logprob_start_len":0,"sampling_params":{"max_new_tokens":TOKENS}}"#,
        Right::Stream("[DONE]"),
    ),
    (
        "generate batch",
        GENERATE,
        r#"{"text":["TEXT","a b","c"],"sampling_params":{"max_new_tokens":TOKENS}}"#,
        Right::List(3),
    ),
    (
        "chat",
        CHAT,
        r#"{"model":"sim","messages":[{"role":"user","content":"TEXT"}],"max_tokens":TOKENS}"#,
        Right::Has("choices"),
    ),
    (
        "chat stream",
        CHAT,
        r#"{"model":"sim","messages":[{"role":"user","content":"TEXT"}],"max_tokens":TOKENS,"stream":true}"#,
        Right::Stream("[DONE]"),
    ),
    (
        "completions",
        COMPLETIONS,
        r#"{"model":"sim","prompt":"TEXT","max_tokens":TOKENS}"#,
        Right::Has("choices"),
    ),
    (
        "completions stream",
        COMPLETIONS,
        r#"{"model":"sim","prompt":"TEXT","max_tokens":TOKENS,"stream":true}"#,
        Right::Stream("[DONE]"),
    ),
    (
        "completions echo",
        COMPLETIONS,
        r#"{"model":"sim","prompt":"TEXT","max_tokens":TOKENS,"echo":true,"logprobs":2}"#,
        Right::Has("token_logprobs"),
    ),
    (
        "responses",
        RESPONSES,
        r#"{"model":"sim","input":"TEXT","max_output_tokens":TOKENS}"#,
        Right::Json(200),
    ),
    (
        "messages",
        MESSAGES,
        r#"{"model":"sim","messages":[{"role":"user","content":"TEXT"}],"max_tokens":TOKENS}"#,
        Right::Json(200),
    ),
    (
        "messages stream",
        MESSAGES,
        r#"{"model":"sim","messages":[{"role":"user","content":"TEXT"}],"max_tokens":TOKENS,"stream":true}"#,
        Right::Stream("message_stop"),
    ),
    ("models", "GET /v1/models", "", Right::Json(200)),
    ("server_info", "GET /server_info", "", Right::Json(200)),
    ("loads", "GET /v1/loads", "", Right::Json(200)),
    ("health", "GET /health", "", Right::Status(200)),
    ("readiness", "GET /readiness", "", Right::Status(200)),
    (
        "tokenize",
        "POST /tokenize",
        r#"{"model":"sim","prompt":"TEXT"}"#,
        Right::Json(200),
    ),
];

/// The number of cases with two legs, which come first.
const WITH_LEGS: usize = 13;

const SPOILED: &[(&str, &str, &str, Right)] = &[
    ("not JSON", GENERATE, r#"{"text":"TEXT""#, Right::Json(400)),
    ("not an object", CHAT, "[TOKENS]", Right::Json(400)),
    (
        "no field",
        COMPLETIONS,
        r#"{"model":"sim","max_tokens":TOKENS}"#,
        Right::Json(400),
    ),
    ("no path", "GET /no-such-path", "", Right::Status(404)),
];

impl Case {
    /// Chooses a case at random.
    pub fn choose(rng: &mut StdRng, faults: bool) -> Self {
        // Most requests have two legs.
        let cases = match rng.random_range(0..10) {
            0 => &CASES[WITH_LEGS..],
            _ => &CASES[..WITH_LEGS],
        };
        if !faults || rng.random_range(0..1000) >= FAULTS_IN_A_THOUSAND {
            return Self::of(pick(cases, rng), Leaves::Never, rng);
        }
        match rng.random_range(0..3) {
            0 => Self::of(pick(SPOILED, rng), Leaves::Never, rng),
            1 => {
                let after = Duration::from_micros(rng.random_range(0..20_000));
                Self::of(pick(cases, rng), Leaves::BeforeTheAnswer(after), rng)
            }
            _ => Self::of(pick(cases, rng), Leaves::AfterItsHead, rng),
        }
    }

    fn of(
        case: &(&'static str, &'static str, &str, Right),
        leaves: Leaves,
        rng: &mut StdRng,
    ) -> Self {
        let (name, head, body, right) = case;
        let words = rng.random_range(1..60);
        let text: Vec<_> = (0..words)
            .map(|_| format!("w{}", rng.next_u32() % 1000))
            .collect();
        let tokens: u32 = rng.random_range(1..33);
        Self {
            name,
            head,
            body: body
                .replace("TEXT", &text.join(" "))
                .replace("TOKENS", &tokens.to_string()),
            right: *right,
            leaves,
        }
    }

    fn check(&self, status: u16, body: &[u8]) -> Outcome {
        let text = String::from_utf8_lossy(body);
        let json = || serde_json::from_slice::<Value>(body).ok();
        let right = match self.right {
            Right::Status(right) => status == right,
            Right::Json(right) => status == right && json().is_some(),
            Right::Has(part) => status == 200 && text.contains(part) && json().is_some(),
            Right::List(length) => {
                let list = json().and_then(|json| json.as_array().map(Vec::len));
                status == 200 && list == Some(length)
            }
            Right::Stream(last) => {
                let end = text.trim_end().rsplit("\n\n").next().unwrap_or_default();
                status == 200 && end.contains(last)
            }
        };
        if right {
            return Outcome::Ok;
        }
        let end: String = text.chars().rev().take(300).collect();
        let end: String = end.chars().rev().collect();
        Outcome::Wrong(format!("{status} {end}"))
    }
}

fn pick<'a, T>(of: &'a [T], rng: &mut StdRng) -> &'a T {
    &of[rng.random_range(0..of.len())]
}

/// One connection, kept as long as the other side keeps it.
pub struct Client {
    address: SocketAddr,
    stream: Option<BufReader<TcpStream>>,
}

/// The head of an answer.
struct Head {
    status: u16,
    length: Option<usize>,
    chunked: bool,
    close: bool,
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            stream: None,
        }
    }

    /// Closes the connection.
    pub fn hang_up(&mut self) {
        self.stream = None;
    }

    /// Sends one request and reads its response.
    pub async fn ask(&mut self, case: &Case) -> Outcome {
        let exchanged = self.exchange(case).await;
        exchanged.unwrap_or_else(|error| {
            self.hang_up();
            Outcome::Wrong(format!("connection: {error}"))
        })
    }

    async fn exchange(&mut self, case: &Case) -> std::io::Result<Outcome> {
        if self.stream.is_none() {
            let stream = TcpStream::connect(self.address).await?;
            stream.set_nodelay(true)?;
            self.stream = Some(BufReader::new(stream));
        }
        let Some(stream) = self.stream.as_mut() else {
            return Err(std::io::ErrorKind::NotConnected.into());
        };
        let request = format!(
            "{} HTTP/1.1\r\nhost: soak\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{}",
            case.head,
            case.body.len(),
            case.body
        );
        stream.write_all(request.as_bytes()).await?;
        if let Leaves::BeforeTheAnswer(after) = case.leaves {
            tokio::time::sleep(after).await;
            self.hang_up();
            return Ok(Outcome::Left);
        }
        let head = Head::read(stream).await?;
        if case.leaves == Leaves::AfterItsHead {
            self.hang_up();
            return Ok(Outcome::Left);
        }
        let mut body = Vec::new();
        if head.chunked {
            while read_chunk(stream, &mut body).await? {}
        } else {
            body.resize(head.length.unwrap_or(0), 0);
            stream.read_exact(&mut body).await?;
        }
        if head.close {
            self.hang_up();
        }
        Ok(case.check(head.status, &body))
    }
}

impl Head {
    async fn read(stream: &mut BufReader<TcpStream>) -> std::io::Result<Self> {
        let broken = || std::io::Error::other("no head of an answer");
        let line = read_line(stream).await?;
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let mut head = Head {
            status: status.ok_or_else(broken)?,
            length: None,
            chunked: false,
            close: false,
        };
        loop {
            let line = read_line(stream).await?.to_ascii_lowercase();
            let Some((name, value)) = line.split_once(": ") else {
                return if line.is_empty() {
                    Ok(head)
                } else {
                    Err(broken())
                };
            };
            match name {
                "content-length" => head.length = value.parse().ok(),
                "transfer-encoding" => head.chunked = value == "chunked",
                "connection" => head.close = value == "close",
                _ => {}
            }
        }
    }
}

async fn read_line(stream: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

/// Whether there was another event.
async fn read_chunk(
    stream: &mut BufReader<TcpStream>,
    body: &mut Vec<u8>,
) -> std::io::Result<bool> {
    let size = read_line(stream).await?;
    let size = usize::from_str_radix(&size, 16).map_err(std::io::Error::other)?;
    let begin = body.len();
    body.resize(begin + size + 2, 0);
    stream.read_exact(&mut body[begin..]).await?;
    body.truncate(begin + size);
    Ok(size > 0)
}
