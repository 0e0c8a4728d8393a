//! A balancer whose workers count requests.
//!
//! The oracle is the count: whatever a client sends, each worker sees as many requests as the balancer accepted. One
//! more is a request that was smuggled.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mini_lb::MiniLbConfig;
use support::{BODY, Balancer, Client, Worker, config, post};

/// A balancer in front of two workers that respond 200 to every request, and how many it has accepted.
pub(crate) struct Counted {
    pub(crate) balancer: Balancer,
    prefill: Arc<AtomicUsize>,
    decode: Arc<AtomicUsize>,
    pub(crate) accepted: usize,
}

impl Counted {
    pub(crate) async fn start() -> Self {
        Self::with(|config| config).await
    }

    pub(crate) async fn with(change: impl FnOnce(MiniLbConfig) -> MiniLbConfig) -> Self {
        let (prefill, decode) = Worker::pair().await;
        let config = change(config(&[prefill.url()], &[decode.url()]));
        Self {
            balancer: Balancer::start(config).await,
            prefill: prefill.serve("200 OK", "{}"),
            decode: decode.serve("200 OK", "{}"),
            accepted: 0,
        }
    }

    /// Every request in these bytes gets a 200; the connection stays open.
    pub(crate) async fn accepts(&mut self, what: &str, bytes: &[u8], requests: usize) -> Client {
        let mut client = self.balancer.client().await;
        client.send(bytes).await;
        for _ in 0..requests {
            assert_eq!(client.answer().await.status(), 200, "{what}");
            self.accepted += 1;
        }
        client
    }

    /// The first request in these bytes gets this status, and the bytes after it get no response.
    pub(crate) async fn refuses(&self, what: &str, bytes: &[u8], status: u16) {
        let mut client = self.balancer.client().await;
        client.send(bytes).await;
        assert_eq!(client.answer().await.status(), status, "{what}");
        let rest = client.rest().await;
        assert!(
            rest.is_empty(),
            "{what}: {}",
            String::from_utf8_lossy(&rest)
        );
    }

    /// The workers have seen every request that was accepted and no other.
    pub(crate) async fn settle(mut self) {
        // A smuggled request would have been written to a worker before this one.
        self.accepts("the last", post("/generate", BODY).as_bytes(), 1)
            .await;
        self.has_sent_no_more();
    }

    /// As [`Self::settle`], when the last request has been answered.
    pub(crate) fn has_sent_no_more(&self) {
        for legs in [&self.prefill, &self.decode] {
            assert_eq!(legs.load(Ordering::SeqCst), self.accepted);
        }
    }
}

/// A POST to `/generate` with these lines after Host, and these bytes after its head.
pub(crate) fn generate(lines: &str, behind: &str) -> Vec<u8> {
    format!("POST /generate HTTP/1.1\r\nhost: balancer\r\n{lines}\r\n{behind}").into_bytes()
}
