//! A balancer in front of two workers that record every request that reaches them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::client::Message;
use support::{Balancer, Worker, config};

/// A request that is not served, and closes the connection.
pub(crate) const LAST: &str = "GET /nope HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

/// A balancer in front of two workers that record requests.
pub(crate) struct Witnessed {
    pub(crate) balancer: Balancer,
    pub(crate) seen: [Arc<Mutex<Vec<Message>>>; 2],
}

impl Witnessed {
    pub(crate) async fn set() -> Self {
        let (prefill, decode) = (Worker::listen().await, Worker::listen().await);
        // Some of the vectors stop in the middle.
        let patience = Duration::from_millis(300);
        let config = config(&[prefill.url()], &[decode.url()])
            .head_timeout(patience)
            .body_timeout(patience);
        let balancer = Balancer::start(config).await;
        let seen = [prefill, decode].map(|worker| worker.serve_and_keep("200 OK", "{}"));
        Self { balancer, seen }
    }
}
