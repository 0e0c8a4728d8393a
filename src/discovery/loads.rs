//! What the workers say about their load, asked for at an interval, where that is switched on.
//!
//! Source: SGLang 0.5.23 `entrypoints/v1_loads.py`, `srt/managers/io_struct.py` (`GetLoadsReqOutput`).

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::Value;
use tokio::sync::watch;

use super::follow::follow;
use super::probe::fetch;
use crate::fleet::{Fleet, Loads, Worker};
use crate::net::Client;

/// How long a worker may take for its response. Its scheduler answers between two batches.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The longest response, in bytes: a rank has about one thousand.
const RESPONSE_LIMIT: usize = 1 << 20;

const PATH: &str = "/v1/loads";

/// Asks each member of the fleet for its load.
pub(crate) struct LoadPoll {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) client: Arc<Client>,
    /// `None` where it is not asked for. A change takes effect at once.
    pub(crate) interval: watch::Receiver<Option<Duration>>,
}

impl LoadPoll {
    /// Asks for ever.
    pub(crate) async fn run(&self) {
        follow(&self.fleet, |worker| self.watch(worker.clone())).await;
    }

    async fn watch(&self, worker: Arc<Worker>) {
        let mut changes = self.interval.clone();
        loop {
            let Some(interval) = *changes.borrow_and_update() else {
                worker.note_loads(None);
                match changes.changed().await {
                    Ok(()) => continue,
                    // No change comes any more: the balancer ends.
                    Err(_) => return,
                }
            };
            let response = fetch(&self.client, &worker, PATH, TIMEOUT, RESPONSE_LIMIT).await;
            // A load that is not known is none: an old one would look like a standstill.
            worker.note_loads(match response {
                Ok(Ok((StatusCode::OK, body))) => read(&body),
                _ => None,
            });
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                Ok(()) = changes.changed() => {}
            }
        }
    }
}

/// The load in the response of a worker; `None` where it is not the document that SGLang sends.
fn read(body: &[u8]) -> Option<Loads> {
    let document: Value = serde_json::from_slice(body).ok()?;
    let ranks = document.get("loads")?.as_array()?;
    // Absent where no rank tells it: engines differ in what they tell.
    let sum = |path: &str| {
        let told = ranks.iter().filter_map(|rank| rank.pointer(path)?.as_u64());
        told.fold(None, |sum: Option<u64>, more| {
            Some(sum.unwrap_or(0).saturating_add(more))
        })
    };
    let usage = ranks
        .iter()
        .filter_map(|rank| rank.get("token_usage")?.as_f64());
    Some(Loads {
        running: sum("/num_running_reqs"),
        waiting: sum("/num_waiting_reqs"),
        bootstrap: sum("/disaggregation/prefill_bootstrap_queue_reqs"),
        inflight: sum("/disaggregation/prefill_inflight_queue_reqs"),
        prealloc: sum("/disaggregation/decode_prealloc_queue_reqs"),
        transfer: sum("/disaggregation/decode_transfer_queue_reqs"),
        kv_usage: usage.reduce(f64::max),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_of_a_worker_is_that_of_all_its_ranks() {
        // SGLang 0.5.23, shortened, with a second rank.
        let body = br#"{"version":"0.5.23","loads":[
            {"dp_rank":0,"num_running_reqs":3,"num_waiting_reqs":2,"token_usage":0.0024,"disaggregation":{"mode":"decode",
             "prefill_bootstrap_queue_reqs":0,"prefill_inflight_queue_reqs":0,"decode_prealloc_queue_reqs":1,
             "decode_transfer_queue_reqs":2}},
            {"dp_rank":1,"num_running_reqs":4,"num_waiting_reqs":0,"token_usage":0.5,"disaggregation":{
             "decode_transfer_queue_reqs":5}}]}"#;
        let expected = Loads {
            running: Some(7),
            waiting: Some(2),
            bootstrap: Some(0),
            inflight: Some(0),
            prealloc: Some(1),
            transfer: Some(7),
            kv_usage: Some(0.5),
        };
        assert_eq!(read(body), Some(expected));
        assert_eq!(read(br#"{"loads":[{}]}"#), Some(Loads::default()));
        for other in [r#"{"loads":{}}"#, "[]", "", "# TYPE x gauge"] {
            assert_eq!(read(other.as_bytes()), None, "{other}");
        }
    }
}
