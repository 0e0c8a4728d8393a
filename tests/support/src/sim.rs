//! A raw HTTP/1.1 client for the simulator's tests: it sees the bytes, so that framing can be asserted.

use std::net::SocketAddr;
use std::time::Duration;

use mini_lb::sim::{Connector, Entry, Event, SimOptions, VllmOptions, Worker};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a test waits for an event that must happen.
pub const SOON: Duration = Duration::from_secs(20);

/// An engine that takes no time, with timeouts scaled for tests.
pub fn quick() -> SimOptions {
    SimOptions {
        time_per_prompt_token: Duration::ZERO,
        transfer_time: Duration::ZERO,
        time_per_output_token: Duration::ZERO,
        health_time: Duration::ZERO,
        ..SimOptions::default()
    }
}

/// One response.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case, in order.
    pub headers: Vec<(String, String)>,
    /// Without chunk framing.
    pub body: Vec<u8>,
    pub chunks: Option<Vec<Vec<u8>>>,
}

impl Reply {
    pub fn parse(raw: &[u8]) -> Reply {
        let end = raw
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .expect("no complete head")
            + 4;
        let head = std::str::from_utf8(&raw[..end]).unwrap();
        let mut lines = head.lines();
        let status = lines
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let chunked = headers
            .iter()
            .any(|(name, value)| name == "transfer-encoding" && value == "chunked");
        let chunks = chunked.then(|| dechunk(&raw[end..]));
        let body = chunks
            .as_ref()
            .map_or_else(|| raw[end..].to_vec(), |chunks| chunks.concat());
        Reply {
            status,
            headers,
            body,
            chunks,
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn header_names(&self) -> Vec<&str> {
        self.headers.iter().map(|(name, _)| name.as_str()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    /// The SSE events: name and data.
    pub fn events(&self) -> Vec<(Option<String>, String)> {
        let text = self.text();
        text.split_terminator("\n\n")
            .map(|event| {
                let name = event
                    .lines()
                    .find_map(|line| line.strip_prefix("event: "))
                    .map(str::to_owned);
                (
                    name,
                    event
                        .lines()
                        .find_map(|line| line.strip_prefix("data: "))
                        .unwrap()
                        .to_owned(),
                )
            })
            .collect()
    }

    /// The events' JSON, without `[DONE]`.
    pub fn event_values(&self) -> Vec<Value> {
        let events = self.events();
        let data = events
            .iter()
            .map(|(_, data)| data)
            .filter(|data| *data != "[DONE]");
        data.map(|data| serde_json::from_str(data).unwrap())
            .collect()
    }
}

fn dechunk(mut rest: &[u8]) -> Vec<Vec<u8>> {
    let mut chunks = Vec::new();
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        chunks.push(rest[end + 2..end + 2 + size].to_vec());
        rest = &rest[end + 2 + size + 2..];
    }
    chunks
}

/// Sends a request over a new connection.
pub async fn open(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\n{headers}content-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Sends a request and reads until the worker closes.
pub async fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> Vec<u8> {
    let headers = format!("connection: close\r\n{headers}");
    let mut stream = open(address, method, path, &headers, body).await;
    let mut raw = Vec::new();
    // A reset also ends the response: the caller sees the bytes before it.
    let _ = stream.read_to_end(&mut raw).await;
    raw
}

pub async fn post(worker: &Worker, path: &str, body: &Value) -> Reply {
    post_text(worker, path, &body.to_string()).await
}

pub async fn post_text(worker: &Worker, path: &str, body: &str) -> Reply {
    Reply::parse(
        &send(
            worker.address(),
            "POST",
            path,
            "content-type: application/json\r\n",
            body,
        )
        .await,
    )
}

pub async fn get(worker: &Worker, path: &str) -> Reply {
    Reply::parse(&send(worker.address(), "GET", path, "", "").await)
}

/// Returns when the worker's journal has such an event.
pub async fn wait_for(worker: &Worker, is_wanted: impl Fn(&Event) -> bool) {
    let has_one = |seen: &[Entry]| seen.iter().any(|entry| is_wanted(&entry.event));
    worker.journal().wait_for(has_one, SOON).await.unwrap();
}

/// Opens a POST without waiting for its answer.
pub async fn open_post(worker: &Worker, path: &str, body: &Value) -> TcpStream {
    open(
        worker.address(),
        "POST",
        path,
        "content-type: application/json\r\n",
        &body.to_string(),
    )
    .await
}

/// A simulated prefill worker and a simulated decode worker, without a balancer.
pub struct SimPair {
    pub prefill: Worker,
    pub decode: Worker,
}

impl SimPair {
    pub async fn start(options: SimOptions) -> SimPair {
        SimPair {
            prefill: Worker::start_prefill(options.clone()).await.unwrap(),
            decode: Worker::start_decode(options).await.unwrap(),
        }
    }

    /// The body with the fields that let the legs meet.
    pub fn with_room(&self, body: &Value, room: u64) -> Value {
        let mut body = body.clone();
        body["bootstrap_host"] = json!("127.0.0.1");
        body["bootstrap_port"] = json!(self.prefill.bootstrap_port());
        body["bootstrap_room"] = json!(room);
        body
    }

    /// Both legs at once.
    pub async fn both(&self, path: &str, body: &Value, room: u64) -> (Reply, Reply) {
        let body = self.with_room(body, room);
        tokio::join!(
            post(&self.prefill, path, &body),
            post(&self.decode, path, &body)
        )
    }
}

/// A simulated vLLM prefill worker and a simulated vLLM decode worker, without a balancer.
pub struct VllmPair {
    pub prefill: Worker,
    pub decode: Worker,
}

/// A vLLM engine that takes no time, with all of its endpoints but those of development mode.
pub fn quick_vllm() -> SimOptions {
    let vllm = SimOptions::vllm();
    SimOptions {
        reported: vllm.reported,
        vllm: vllm.vllm.map(|options| VllmOptions {
            scale_out: true,
            ..options
        }),
        ..quick()
    }
}

/// The same with Mooncake's connector.
pub fn quick_mooncake() -> SimOptions {
    let quick = quick_vllm();
    SimOptions {
        vllm: quick.vllm.map(|options| VllmOptions {
            connector: Connector::Mooncake,
            ..options
        }),
        ..quick
    }
}

impl VllmPair {
    pub async fn start(options: SimOptions) -> VllmPair {
        VllmPair {
            prefill: Worker::start_prefill(options.clone()).await.unwrap(),
            decode: Worker::start_decode(options).await.unwrap(),
        }
    }

    /// The body as a balancer sends it to prefill: one token, no stream, and the request for params.
    pub fn prefill_body(path: &str, body: &Value) -> Value {
        let mut body = body.clone();
        body["kv_transfer_params"] = json!({"do_remote_decode":true,"do_remote_prefill":false});
        body["stream"] = json!(false);
        let fields = body.as_object_mut().unwrap();
        fields.remove("stream_options");
        fields.remove("n");
        match path {
            "/v1/responses" => body["max_output_tokens"] = json!(1),
            "/inference/v1/generate" => {
                body["sampling_params"]["max_tokens"] = json!(1);
                body["sampling_params"]["n"] = json!(1);
            }
            _ => {
                body["max_tokens"] = json!(1);
                if body.get("max_completion_tokens").is_some() {
                    body["max_completion_tokens"] = json!(1);
                }
            }
        }
        body
    }

    /// The body with prefill's params, as it goes to decode.
    pub fn decode_body(body: &Value, prefill: &Reply) -> Value {
        let mut body = body.clone();
        body["kv_transfer_params"] = prefill.json()["kv_transfer_params"].clone();
        body
    }

    /// One leg after the other; decode's response.
    pub async fn both(&self, path: &str, body: &Value) -> Reply {
        let first = post(&self.prefill, path, &Self::prefill_body(path, body)).await;
        assert_eq!(first.status, 200, "{}", first.text());
        post(&self.decode, path, &Self::decode_body(body, &first)).await
    }
}
