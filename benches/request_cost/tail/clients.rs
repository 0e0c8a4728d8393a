//! The clients: streams that follow each other on many connections, and long bodies beside them.
//!
//! One thread reads all streams, and looks for nothing but the times that the workers have put into the events.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hdrhistogram::Histogram;
use memchr::memchr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::thread::{Clock, histogram, lock, spawn};
use super::workers::MODEL;

/// Length of `@` and the time in 19 digits.
const STAMP: usize = 20;
/// The end of a chunked body. An event ends with a line feed, so that none contains it.
const END: &[u8] = b"0\r\n\r\n";
/// Bytes that are read at once.
const BUFFER: usize = 64 << 10;

/// The streams that the clients keep alive.
#[derive(Debug, Clone)]
pub struct Streams {
    /// The addresses of the target; stream `i` takes the one at `i` modulo their number.
    pub addresses: Vec<SocketAddr>,
    /// Streams at a time.
    pub streams: usize,
    /// Events of each stream.
    pub events: u64,
    /// The time within which the first ones begin.
    pub ramp: Duration,
}

/// Long bodies that are sent beside the streams.
#[derive(Debug, Clone, Copy)]
pub struct Bodies {
    pub bytes: usize,
    pub per_second: f64,
}

/// What the clients have seen since the last look.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Nanoseconds from the request to its first event.
    pub ttft: Histogram<u64>,
    /// Nanoseconds from the write of the worker to the read of the client.
    pub transit: Histogram<u64>,
    /// Nanoseconds between two events of a stream.
    pub itl: Histogram<u64>,
    /// Nanoseconds from the first byte of a long body to the end of its response.
    pub bodies: Histogram<u64>,
    pub events: u64,
    pub failed: BTreeMap<String, u64>,
}

impl Seen {
    fn nothing() -> Seen {
        Seen {
            ttft: histogram(),
            transit: histogram(),
            itl: histogram(),
            bodies: histogram(),
            events: 0,
            failed: BTreeMap::new(),
        }
    }
}

/// The clients of one target. Their threads and connections end when it is dropped.
pub struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    clock: Clock,
    seen: Mutex<Seen>,
    /// Streams that have begun so far.
    begun: AtomicU64,
    /// Whether long bodies are sent now.
    sends_bodies: AtomicBool,
    stopped: AtomicBool,
}

impl Clients {
    /// Starts the streams, on a thread that comes before all others where `first` says so.
    pub fn start(
        clock: &Clock,
        streams: Streams,
        bodies: Option<Bodies>,
        first: bool,
    ) -> Result<Clients, String> {
        let shared = Arc::new(Shared {
            clock: clock.clone(),
            seen: Mutex::new(Seen::nothing()),
            begun: AtomicU64::new(0),
            sends_bodies: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        });
        let mut threads = Vec::new();
        if let Some(bodies) = bodies {
            let (shared, addresses) = (shared.clone(), streams.addresses.clone());
            // What it does competes with the target, as it is no part of what is measured.
            threads.push(spawn("bodies", false, async move || {
                shared.clone().send_bodies(addresses, bodies).await;
            })?);
        }
        let reading = shared.clone();
        threads.push(spawn("clients", first, async move || {
            let buffer = std::rc::Rc::new(RefCell::new(vec![0; BUFFER]));
            for index in 0..streams.streams {
                let user = User {
                    shared: reading.clone(),
                    buffer: buffer.clone(),
                    address: streams.addresses[index % streams.addresses.len()],
                    socket: None,
                };
                let begins = streams.ramp.mul_f64(index as f64 / streams.streams as f64);
                // The first streams end one after the other too.
                let first = 1 + rand::random_range(0..streams.events);
                tokio::task::spawn_local(user.run(begins, first, streams.events));
            }
            reading.until_stopped().await;
        })?);
        Ok(Clients { shared, threads })
    }

    /// What they have seen since the last call.
    pub fn take_seen(&self) -> Seen {
        std::mem::replace(&mut *lock(&self.shared.seen), Seen::nothing())
    }

    /// Streams that have begun so far.
    pub fn begun(&self) -> u64 {
        self.shared.begun.load(Ordering::Relaxed)
    }

    /// Begins or ends to send long bodies.
    pub fn send_bodies(&self, send: bool) {
        self.shared.sends_bodies.store(send, Ordering::Relaxed);
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // An error is a panic, which the thread has reported.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    async fn until_stopped(&self) {
        while !self.is_stopped() {
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn note_failure(&self, failure: String) {
        *lock(&self.seen).failed.entry(failure).or_default() += 1;
    }

    /// Sends bodies at their rate, whether the earlier ones are answered or not.
    async fn send_bodies(self: Arc<Self>, addresses: Vec<SocketAddr>, bodies: Bodies) {
        let request: Arc<[u8]> = body_request(bodies.bytes).into();
        let mut number = 0;
        let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / bodies.per_second));
        while !self.is_stopped() {
            ticks.tick().await;
            if !self.sends_bodies.load(Ordering::Relaxed) {
                continue;
            }
            let address = addresses[number % addresses.len()];
            number += 1;
            let (shared, request) = (self.clone(), request.clone());
            tokio::task::spawn_local(async move {
                let begun = shared.clock.now();
                match send_body(address, &request).await {
                    Ok(()) => {
                        let taken = shared.clock.now() - begun;
                        lock(&shared.seen).bodies.saturating_record(taken);
                    }
                    Err(failure) => shared.note_failure(failure),
                }
            });
        }
    }
}

/// A client that has one stream after the other.
struct User {
    shared: Arc<Shared>,
    /// Shared by all of one thread: nothing is kept in it between two reads.
    buffer: std::rc::Rc<RefCell<Vec<u8>>>,
    address: SocketAddr,
    socket: Option<TcpStream>,
}

/// What is known of a response while it is read.
#[derive(Default)]
struct Response {
    has_head: bool,
    /// The end of the last read, where a stamp or the end of the body may have been cut.
    rest: Vec<u8>,
    /// When the last event was read.
    last: Option<u64>,
}

impl User {
    async fn run(mut self, begins: Duration, first: u64, events: u64) {
        sleep(begins).await;
        self.shared.begun.fetch_add(1, Ordering::Relaxed);
        let mut request = stream_request(first);
        loop {
            if let Err(failure) = self.stream(request.as_bytes()).await {
                self.shared.note_failure(failure);
                self.socket = None;
                sleep(Duration::from_millis(100)).await;
            }
            request = stream_request(events);
        }
    }

    /// One stream, from its request to its end.
    async fn stream(&mut self, request: &[u8]) -> Result<(), String> {
        let lost = |error: io::Error| error.to_string();
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => connected(self.address).await.map_err(lost)?,
        };
        let begun = self.shared.clock.now();
        let mut socket = socket;
        socket.write_all(request).await.map_err(lost)?;
        let mut response = Response::default();
        loop {
            socket.readable().await.map_err(lost)?;
            let mut buffer = self.buffer.borrow_mut();
            let count = match socket.try_read(&mut buffer) {
                Ok(0) => return Err("connection closed within a stream".to_owned()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(lost(error)),
            };
            let now = self.shared.clock.now();
            let mut seen = lock(&self.shared.seen);
            if response.is_complete(&buffer[..count], begun, now, &mut seen)? {
                break;
            }
        }
        self.socket = Some(socket);
        Ok(())
    }
}

impl Response {
    /// Notes the events of what was read now. Whether the body has ended.
    fn is_complete(
        &mut self,
        read: &[u8],
        begun: u64,
        now: u64,
        seen: &mut Seen,
    ) -> Result<bool, String> {
        if !self.has_head {
            if !read.starts_with(b"HTTP/1.1 200") {
                let text = String::from_utf8_lossy(&read[..read.len().min(300)]);
                return Err(text.lines().collect::<Vec<_>>().join(" "));
            }
            self.has_head = true;
        }
        let joined;
        let read = match self.rest.is_empty() {
            true => read,
            false => {
                joined = [self.rest.as_slice(), read].concat();
                &joined
            }
        };
        let mut at = 0;
        let mut cut = None;
        while let Some(stamp) = memchr(b'@', &read[at..]).map(|found| at + found) {
            let Some(digits) = read.get(stamp + 1..stamp + STAMP) else {
                cut = Some(stamp);
                break;
            };
            at = stamp + 1;
            let text = std::str::from_utf8(digits).unwrap_or_default();
            if let Ok(sent) = text.parse::<u64>() {
                self.note(now.saturating_sub(sent), begun, now, seen);
                at = stamp + STAMP;
            }
        }
        let is_over = read.ends_with(END);
        let begins_end = |length: &usize| read[at..].ends_with(&END[..*length]);
        let kept = cut.or_else(|| {
            let length = (1..END.len()).rev().find(begins_end)?;
            Some(read.len() - length)
        });
        self.rest = kept.map_or_else(Vec::new, |kept| read[kept..].to_vec());
        Ok(is_over)
    }

    fn note(&mut self, transit: u64, begun: u64, now: u64, seen: &mut Seen) {
        seen.events += 1;
        seen.transit.saturating_record(transit);
        match self.last.replace(now) {
            Some(last) => seen.itl.saturating_record(now - last),
            None => seen.ttft.saturating_record(now - begun),
        }
    }
}

async fn connected(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

fn stream_request(events: u64) -> String {
    let text = "words of a prompt ".repeat(50);
    request(
        &format!(
            r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":"{text}"}}],"max_tokens":{events},"ignore_eos":true,"stream":true}}"#
        ),
        "keep-alive",
    )
}

fn body_request(bytes: usize) -> Vec<u8> {
    let text = "words of a prompt ".repeat(bytes / 18);
    let body = format!(
        r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":"{text}"}}],"max_tokens":1}}"#
    );
    request(&body, "close").into_bytes()
}

fn request(body: &str, connection: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: target\r\ncontent-type: application/json\r\nconnection: {connection}\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Sends a long body on a connection of its own, and reads the response to its end.
async fn send_body(address: SocketAddr, request: &[u8]) -> Result<(), String> {
    let exchange = async {
        let mut socket = connected(address).await?;
        socket.write_all(request).await?;
        let mut response = Vec::new();
        // The workers do not close, and the response is short.
        while !response.ends_with(b"}") {
            if socket.read_buf(&mut response).await? == 0 {
                break;
            }
        }
        Ok::<_, io::Error>(response)
    };
    let response = exchange.await.map_err(|error| error.to_string())?;
    match response.starts_with(b"HTTP/1.1 200") {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&response[..response.len().min(300)]).into_owned()),
    }
}
