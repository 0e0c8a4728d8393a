//! Active probes: a worker that refuses connections is noticed without a request, and noticed when it is back.
//!
//! A probe that is slow or answers an error says nothing: SGLang's `/health` runs a generation and waits behind
//! long prompts, while real requests are served. Only real traffic judges a worker that is there.
//! Source: SGLang 0.5.23, `entrypoints/http_server.py` (`health_generate`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http::Method;
use pingora_http::RequestHeader;

use crate::fleet::{Evidence, Fleet, Worker};
use crate::net::{Client, Failure, Target};

/// A worker that is set aside is asked this often.
const ASIDE: Duration = Duration::from_secs(1);

/// `/health` answers with nothing or with a sentence.
const ANSWER_LIMIT: usize = 64 << 10;

/// Asks every worker, again and again.
pub(crate) struct Probe {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) client: Arc<Client>,
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    pub(crate) path: String,
}

impl Probe {
    /// Runs until it is dropped.
    pub(crate) async fn run(&self) {
        join_all(self.fleet.workers().map(|worker| self.watch(worker))).await;
    }

    async fn watch(&self, worker: &Arc<Worker>) {
        loop {
            let evidence = self.ask(worker).await;
            self.fleet.note(worker, evidence, Instant::now());
            let pause = if worker.admits(Instant::now()) {
                self.interval
            } else {
                self.interval.min(ASIDE)
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// What one probe says.
    async fn ask(&self, worker: &Worker) -> Evidence {
        let Ok(head) = RequestHeader::build_no_case(Method::GET, self.path.as_bytes(), None) else {
            return Evidence::Neutral;
        };
        let nothing = Bytes::new();
        // A name without an address is no news about the worker.
        let Some(address) = worker.address() else {
            return Evidence::Neutral;
        };
        let to = Target {
            address: Some(address),
            server_name: worker.server_name(),
            host: worker.host(),
            authorization: worker.authorization(),
        };
        let answer = self.client.fetch(to, &head, &nothing, ANSWER_LIMIT);
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(Ok(_) | Err(Failure::Unusable(_))) => Evidence::Present,
            Ok(Err(Failure::Unreachable(_) | Failure::ConnectTimeout)) => Evidence::Absent,
            Ok(Err(_)) | Err(_) => Evidence::Neutral,
        }
    }
}
