//! Active probes: without a request, they notice that a worker refuses connections, and that it is back.
//!
//! A probe that is slow or gets an error says nothing about the worker: SGLang's `/health` runs a generation and waits
//! behind long prompts while real requests are served. A worker that accepts connections is judged by real requests
//! alone. Source: sgl-project/sglang issues 9198 and 22511.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use pingora::http::RequestHeader;

use super::follow::follow;
use crate::fleet::{Evidence, Fleet, Worker};
use crate::net::{Client, Failure, Target};

/// The longest time between two probes of a worker that is set aside.
const SET_ASIDE_INTERVAL: Duration = Duration::from_secs(1);

/// The longest response, in bytes. That to `/health` is empty or a sentence.
const RESPONSE_LIMIT: usize = 64 << 10;

/// Probes each member of the fleet at an interval.
pub(crate) struct Probe {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) client: Arc<Client>,
    pub(crate) interval: Duration,
    /// Of one probe.
    pub(crate) timeout: Duration,
    /// The path that is asked for.
    pub(crate) path: String,
}

impl Probe {
    /// Probes for ever.
    pub(crate) async fn run(&self) {
        follow(&self.fleet, |worker| self.watch(worker.clone())).await;
    }

    async fn watch(&self, worker: Arc<Worker>) {
        loop {
            let evidence = self.ask(&worker).await;
            self.fleet.note(&worker, evidence, Instant::now());
            let pause = if worker.admits(Instant::now()) {
                self.interval
            } else {
                self.interval.min(SET_ASIDE_INTERVAL)
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// One probe.
    async fn ask(&self, worker: &Worker) -> Evidence {
        let Ok(head) = RequestHeader::build_no_case(Method::GET, self.path.as_bytes(), None) else {
            return Evidence::Neutral;
        };
        // A name that is not resolved says nothing about the worker.
        let Some(address) = worker.address() else {
            return Evidence::Neutral;
        };
        let to = Target {
            address: Some(address),
            server_name: worker.server_name(),
            host: worker.host(),
            authorization: worker.authorization(),
        };
        let no_body = Bytes::new();
        let response = self.client.fetch(to, &head, &no_body, RESPONSE_LIMIT);
        match tokio::time::timeout(self.timeout, response).await {
            Ok(Ok(_) | Err(Failure::Unusable(_))) => Evidence::Present,
            Ok(Err(Failure::Unreachable(_) | Failure::ConnectTimeout)) => Evidence::Absent,
            Ok(Err(_)) | Err(_) => Evidence::Neutral,
        }
    }
}
