//! Workers that say when they sent each event: an event has the time at which its worker wrote it.
//!
//! Requests are read on one thread, which also answers them and sends the first event. Later events are sent by a second
//! thread, each at its time, so that a request that is read delays no event. Nothing is computed and no KV cache is moved:
//! whatever passes between this time and the client's read is the target's, the kernel's or the client's.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering as Atomic};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hdrhistogram::Histogram;
use memchr::memmem;
use mini_lb::pd::Engine;
use tokio::net::{TcpListener, TcpStream};

use super::thread::{Clock, histogram, lock, spawn};
use crate::programs::balancer::Worker;
use crate::programs::recorded::about_the_worker;

/// The name of the model in the workers' recorded responses.
pub const MODEL: &str = "tiny";
/// Workers of each role.
const OF_EACH: usize = 2;
/// The port of a bootstrap server, which is never used.
const BOOTSTRAP_PORT: u16 = 8998;
/// A longer body is read and dropped: of a request for a stream these are enough.
const KEPT_BODY: usize = 64 << 10;

const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n";
const LAST_EVENT: &str = r#"data: {"id":"be9961a6425f40e3b47543cf7261d17e","object":"chat.completion.chunk","created":1795227234,"model":"tiny","choices":[{"index":0,"delta":{"reasoning_content":null},"logprobs":null,"finish_reason":"length","matched_stop":null}]}"#;
const WHOLE: &str = r#"{"id":"fa9ae6842d1d45d0bc1734536a4b4ef8","object":"chat.completion","created":1795227234,"model":"tiny","choices":[{"index":0,"message":{"role":"assistant","content":"a","reasoning_content":null},"logprobs":null,"finish_reason":"length","matched_stop":null}],"usage":{"prompt_tokens":10,"total_tokens":11,"completion_tokens":1,"prompt_tokens_details":null}}"#;

/// The workers. Their threads end when it is dropped.
pub struct Workers {
    pub prefill: Vec<Worker>,
    pub decode: Vec<Worker>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads of the workers share.
struct Shared {
    clock: Clock,
    /// Time between two events of a stream, in nanoseconds.
    gap: AtomicU64,
    /// The streams, the one whose event is due next first.
    due: Mutex<BinaryHeap<Reverse<Stream>>>,
    /// Told when another stream is due next.
    sooner: Condvar,
    /// By how many nanoseconds events were sent later than at their time.
    late: Mutex<Histogram<u64>>,
    stopped: AtomicBool,
}

/// A stream of which something is still to be sent.
struct Stream {
    /// The time of the next event, on the clock of the measurement.
    due: u64,
    /// The number of events that are left.
    left: u64,
    socket: Arc<TcpStream>,
}

/// The part of a request that decides about the response.
struct Request {
    path: String,
    /// Length of the head, and of head and body.
    head: usize,
    whole: usize,
    body: Vec<u8>,
}

impl Workers {
    /// Starts the workers, whose threads come before all others where `first` says so.
    pub fn start(clock: &Clock, first: bool) -> Result<Workers, String> {
        let shared = Arc::new(Shared {
            clock: clock.clone(),
            gap: AtomicU64::new(1_000_000_000),
            due: Mutex::default(),
            sooner: Condvar::new(),
            late: Mutex::new(histogram()),
            stopped: AtomicBool::new(false),
        });
        let bound = || {
            let sockets = (0..OF_EACH).map(|_| std::net::TcpListener::bind(("127.0.0.1", 0)));
            let sockets: Result<Vec<_>, _> = sockets.collect();
            sockets.map_err(|error| error.to_string())
        };
        let (prefill, decode) = (bound()?, bound()?);
        let workers = |sockets: &[std::net::TcpListener], bootstrap_port| {
            let worker = |socket: &std::net::TcpListener| {
                Ok(Worker {
                    address: socket.local_addr()?,
                    bootstrap_port,
                })
            };
            let workers: io::Result<Vec<_>> = sockets.iter().map(worker).collect();
            workers.map_err(|error| error.to_string())
        };
        let mut started = Workers {
            prefill: workers(&prefill, Some(BOOTSTRAP_PORT))?,
            decode: workers(&decode, None)?,
            shared: shared.clone(),
            threads: Vec::new(),
        };
        let reading = shared.clone();
        started
            .threads
            .push(spawn("requests", first, async move || {
                let roles = [(prefill, true), (decode, false)];
                for (socket, is_prefill) in roles.into_iter().flat_map(|(sockets, role)| {
                    sockets.into_iter().map(move |socket| (socket, role))
                }) {
                    let shared = reading.clone();
                    tokio::task::spawn_local(accept(socket, is_prefill, shared));
                }
                reading.until_stopped().await;
            })?);
        started.threads.push(spawn("events", first, async move || {
            // It has its thread for itself.
            shared.send_events();
        })?);
        Ok(started)
    }

    /// Sets the time between two events of each stream.
    pub fn set_gap(&self, gap: Duration) {
        let nanos = u64::try_from(gap.as_nanos()).unwrap_or(u64::MAX);
        self.shared.gap.store(nanos, Atomic::Relaxed);
    }

    /// By how much events were sent late since the last call.
    pub fn take_late(&self) -> Histogram<u64> {
        std::mem::replace(&mut *lock(&self.shared.late), histogram())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Atomic::Relaxed);
        self.shared.sooner.notify_all();
        for thread in self.threads.drain(..) {
            // An error is a panic, which the thread has reported.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn is_stopped(&self) -> bool {
        self.stopped.load(Atomic::Relaxed)
    }

    async fn until_stopped(&self) {
        while !self.is_stopped() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Sends each event when it is due.
    fn send_events(&self) {
        let mut due = lock(&self.due);
        while !self.is_stopped() {
            let now = self.clock.now();
            let wait = match due.peek() {
                Some(Reverse(next)) => next.due.saturating_sub(now),
                None => 100_000_000,
            };
            if wait > 0 {
                let waited = self.sooner.wait_timeout(due, Duration::from_nanos(wait));
                due = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(due, _)| due);
                continue;
            }
            let Some(Reverse(mut stream)) = due.pop() else {
                continue;
            };
            drop(due);
            lock(&self.late).saturating_record(now - stream.due);
            let goes_on = stream.send(&self.clock, stream.left == 1);
            stream.due += self.gap.load(Atomic::Relaxed);
            stream.left -= 1;
            due = lock(&self.due);
            if goes_on && stream.left > 0 {
                due.push(Reverse(stream));
            }
        }
    }

    /// Begins a stream of so many events.
    fn begin(&self, socket: &Arc<TcpStream>, events: u64) {
        if socket.try_write(STREAM_HEAD.as_bytes()).is_err() {
            return;
        }
        let mut stream = Stream {
            due: self.clock.now() + self.gap.load(Atomic::Relaxed),
            left: events.saturating_sub(1),
            socket: socket.clone(),
        };
        if !stream.send(&self.clock, stream.left == 0) || stream.left == 0 {
            return;
        }
        let mut due = lock(&self.due);
        let is_next = due.peek().is_none_or(|Reverse(next)| stream.due < next.due);
        due.push(Reverse(stream));
        drop(due);
        if is_next {
            self.sooner.notify_all();
        }
    }
}

impl Stream {
    /// Sends one event with the time of now, and the end behind the last one. Whether the connection is still there. A socket
    /// that takes nothing ends the stream: some megabytes are on their way then.
    fn send(&mut self, clock: &Clock, last: bool) -> bool {
        let now = clock.now();
        let mut event = chunk(&format!(
            r#"data: {{"id":"be9961a6425f40e3b47543cf7261d17e","object":"chat.completion.chunk","created":1795227234,"model":"{MODEL}","choices":[{{"index":0,"delta":{{"reasoning_content":null,"content":"@{now:019}"}},"logprobs":null,"finish_reason":null,"matched_stop":null}}]}}"#
        ));
        if last {
            event.push_str(&end());
        }
        self.socket
            .try_write(event.as_bytes())
            .is_ok_and(|written| written == event.len())
    }
}

impl PartialEq for Stream {
    fn eq(&self, other: &Stream) -> bool {
        self.due == other.due
    }
}

impl Eq for Stream {}

impl PartialOrd for Stream {
    fn partial_cmp(&self, other: &Stream) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Stream {
    fn cmp(&self, other: &Stream) -> Ordering {
        self.due.cmp(&other.due)
    }
}

/// One event as a chunk of a body.
fn chunk(event: &str) -> String {
    format!("{:x}\r\n{event}\n\n\r\n", event.len() + 2)
}

/// The end of a stream.
fn end() -> String {
    chunk(LAST_EVENT) + &chunk("data: [DONE]") + "0\r\n\r\n"
}

async fn accept(socket: std::net::TcpListener, is_prefill: bool, shared: Arc<Shared>) {
    let listener = socket
        .set_nonblocking(true)
        .and_then(|()| TcpListener::from_std(socket));
    let Ok(listener) = listener else {
        return;
    };
    while let Ok((socket, _)) = listener.accept().await {
        let _ = socket.set_nodelay(true); // only latency
        tokio::task::spawn_local(serve(Arc::new(socket), is_prefill, shared.clone()));
    }
}

/// Serves the requests of one connection until it closes.
async fn serve(socket: Arc<TcpStream>, is_prefill: bool, shared: Arc<Shared>) {
    let mut read = Vec::new();
    while let Some(request) = next_request(&socket, &mut read).await {
        let number = |key: &str| {
            let at = memmem::find(&request.body, key.as_bytes())? + key.len();
            let digits = request.body[at..].trim_ascii_start();
            let digits: String = digits
                .iter()
                .take_while(|byte| byte.is_ascii_digit())
                .map(|byte| char::from(*byte))
                .collect();
            digits.parse().ok()
        };
        let streams = ["\"stream\":true", "\"stream\": true"]
            .iter()
            .any(|text| memmem::find(&request.body, text.as_bytes()).is_some());
        if request.path != "/v1/chat/completions" {
            answer(
                &socket,
                about_the_worker(Engine::Sglang, &request.path, is_prefill),
            )
            .await;
        } else if !streams {
            send(&socket, &whole(200, WHOLE)).await;
        } else if is_prefill {
            send(&socket, &format!("{STREAM_HEAD}{}", end())).await;
        } else {
            shared.begin(&socket, number("\"max_tokens\":").unwrap_or(1));
        }
    }
}

async fn answer(socket: &TcpStream, said: Option<serde_json::Value>) {
    let text = match said {
        Some(serde_json::Value::Null) => whole(200, ""),
        Some(said) => whole(200, &said.to_string()),
        None => whole(404, "{}"),
    };
    send(socket, &text).await;
}

fn whole(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn send(socket: &TcpStream, text: &str) {
    let mut rest = text.as_bytes();
    while !rest.is_empty() && socket.writable().await.is_ok() {
        match socket.try_write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The reader sees it too.
            Err(_) => return,
        }
    }
}

/// The next request; `None` when the connection is closed, or says something that no target says.
async fn next_request(socket: &TcpStream, read: &mut Vec<u8>) -> Option<Request> {
    let mut request = loop {
        if let Some(request) = head(read)? {
            break request;
        }
        read_some(socket, read).await?;
    };
    let mut arrived = read.len();
    while arrived < request.whole {
        let before = read.len();
        read_some(socket, read).await?;
        arrived += read.len() - before;
        read.truncate(request.head + KEPT_BODY);
    }
    request.body = read.split_off(request.head);
    read.clear();
    Some(request)
}

/// The head of a request, if it is complete; `None` for none that is understood here.
fn head(read: &[u8]) -> Option<Option<Request>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head) = parsed.parse(read).ok()? else {
        return Some(None);
    };
    let length = parsed
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length: usize = match length {
        Some(header) => std::str::from_utf8(header.value).ok()?.parse().ok()?,
        None => 0,
    };
    let target = parsed.path?;
    Some(Some(Request {
        path: target.split('?').next().unwrap_or_default().to_owned(),
        head,
        whole: head + length,
        body: Vec::new(),
    }))
}

/// Reads what there is. `None` at the end of the connection.
async fn read_some(socket: &TcpStream, read: &mut Vec<u8>) -> Option<()> {
    loop {
        read.reserve(64 << 10);
        socket.readable().await.ok()?;
        match socket.try_read_buf(read) {
            Ok(0) => return None,
            Ok(_) => return Some(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}
