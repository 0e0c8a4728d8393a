//! A worker that the test plays: it takes each request and decides every byte of the response.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::client::Message;
use super::soon;

/// A listening worker.
pub struct Worker {
    pub address: SocketAddr,
    requests: mpsc::UnboundedReceiver<Exchange>,
    accepted: Arc<AtomicUsize>,
    accepting: AbortHandle,
}

/// One request that a worker has read, and the connection for the response.
pub struct Exchange {
    pub request: Message,
    stream: TcpStream,
    again: mpsc::UnboundedSender<TcpStream>,
}

impl Worker {
    pub async fn listen() -> Self {
        Self::listen_on(([127, 0, 0, 1], 0).into()).await
    }

    /// A prefill and a decode worker.
    pub async fn pair() -> (Self, Self) {
        (Self::listen().await, Self::listen().await)
    }

    pub async fn listen_on(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (found, requests) = mpsc::unbounded_channel();
        let (again, mut reused) = mpsc::unbounded_channel::<TcpStream>();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    Ok((stream, _)) = listener.accept() => {
                        // A second small write must not wait for the acknowledgement of the first.
                        let _ = stream.set_nodelay(true);
                        count.fetch_add(1, Ordering::SeqCst);
                        stream
                    }
                    Some(stream) = reused.recv() => stream,
                    else => return,
                };
                let (found, again) = (found.clone(), again.clone());
                tokio::spawn(async move {
                    let mut stream = stream;
                    // A connection that closes without a request is not an exchange.
                    if let Some(request) = Message::read(&mut stream).await {
                        let _ = found.send(Exchange {
                            request,
                            stream,
                            again,
                        });
                    }
                });
            }
        });
        Self {
            address,
            requests,
            accepted,
            accepting: accepting.abort_handle(),
        }
    }

    /// Refuses connections from now on. Open ones stay.
    pub async fn stop_listening(&self) {
        self.accepting.abort();
        soon("connections are refused", async {
            while TcpStream::connect(self.address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// An address that refuses connections.
    pub async fn refusing() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next request that arrives.
    pub async fn request(&mut self) -> Exchange {
        soon("a request at the worker", self.requests.recv())
            .await
            .unwrap()
    }

    /// Gives the same response to every request from now on; returns the counter of requests other than aborts.
    pub fn serve(self, status: &'static str, body: &'static str) -> Arc<AtomicUsize> {
        let legs = Arc::new(AtomicUsize::new(0));
        let count = legs.clone();
        self.serve_and_note(status, body, move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        legs
    }

    /// As [`Self::serve`]; returns the requests themselves.
    pub fn serve_and_keep(
        self,
        status: &'static str,
        body: &'static str,
    ) -> Arc<Mutex<Vec<Message>>> {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = requests.clone();
        self.serve_and_note(status, body, move |request| {
            kept.lock().unwrap().push(request.clone());
        });
        requests
    }

    fn serve_and_note(
        mut self,
        status: &'static str,
        body: &'static str,
        note: impl Fn(&Message) + Send + 'static,
    ) {
        tokio::spawn(async move {
            while let Some(exchange) = self.requests.recv().await {
                if !exchange.request.head.contains("/abort_request") {
                    note(&exchange.request);
                }
                // The balancer may have closed a cancelled leg.
                let _ = exchange.try_answer(status, body).await;
            }
        });
    }

    /// Whether a request has arrived that the test has not taken.
    pub fn has_request(&self) -> bool {
        !self.requests.is_empty()
    }

    /// How many connections were opened so far.
    pub fn connections(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Exchange {
    /// Sends raw bytes of the response.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// As [`Self::send`], when the other side may close before it has read the bytes.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await
    }

    /// Sends a whole JSON response with Content-Length; the connection stays for the next request.
    pub async fn answer(self, status: &str, body: &str) {
        self.try_answer(status, body).await.unwrap();
    }

    pub async fn try_answer(mut self, status: &str, body: &str) -> std::io::Result<()> {
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.stream.write_all((head + body).as_bytes()).await?;
        self.keep();
        Ok(())
    }

    /// Sends the head of a stream of events.
    pub async fn begin_stream(&mut self) {
        self.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n")
            .await;
    }

    /// Sends one chunk of a chunked body; an empty one ends it.
    pub async fn chunk(&mut self, bytes: &str) {
        self.send(format!("{:x}\r\n{bytes}\r\n", bytes.len())).await;
    }

    /// Reads the next request from this connection.
    pub fn keep(self) {
        let _ = self.again.send(self.stream);
    }

    /// Waits until the other side has closed the connection.
    pub async fn closed(mut self) {
        soon("the leg is closed", self.until_closed()).await;
    }

    /// As [`Self::closed`], without a time limit; the connection can still be used meanwhile.
    pub async fn until_closed(&mut self) {
        let mut rest = [0; 1024];
        // A reset is also a close.
        while matches!(self.stream.read(&mut rest).await, Ok(1..)) {}
    }

    /// Closes the connection so that the other side sees a reset.
    pub fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }
}
