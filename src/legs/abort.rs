//! The abort of a request by its id, on a worker whose leg was cancelled.
//!
//! SGLang notices a closed connection after seconds, but aborts a request at once when it gets the id. Best effort: a
//! limited number of workers at a time, one second for each id, and no client waits for it.
//!
//! Source: SGLang 0.5.23, `srt/managers/tokenizer_manager.py` (disconnects are polled every 4 s).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method};
use pingora::http::RequestHeader;
use pingora::{Error, ErrorType, Result};
use tokio::sync::Semaphore;

use crate::fleet::{Role, Worker};
use crate::net::{Client, Target};
use crate::pd::{Engine, RequestIds};

/// The deadline of one abort.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Workers that get aborts at the same time. Further aborts are left out: the closed connection has the same effect,
/// later.
const MAX_CONCURRENT: usize = 64;

/// The most ids of one request that are aborted. The rest of a larger batch is left to the closed connection.
const MAX_IDS: usize = 64;

/// The longest response to an abort, in bytes. SGLang's is empty.
const RESPONSE_LIMIT: usize = 64 << 10;

/// Aborts requests on workers.
pub(crate) struct Aborter {
    client: Arc<Client>,
    enabled: AtomicBool,
    permits: Arc<Semaphore>,
    /// Requests that were aborted at a worker, by its role.
    sent: [AtomicU64; 2],
}

impl Aborter {
    pub(crate) fn new(client: Arc<Client>, enabled: bool) -> Self {
        Self {
            client,
            enabled: AtomicBool::new(enabled),
            permits: Arc::new(Semaphore::new(MAX_CONCURRENT)),
            sent: Default::default(),
        }
    }

    /// Switches aborts on or off.
    pub(crate) fn set_enabled(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Relaxed);
    }

    /// How many requests were aborted at workers of this role.
    pub(crate) fn sent(&self, role: Role) -> u64 {
        self.sent[role as usize].load(Ordering::Relaxed)
    }

    /// Spawns a task that aborts the ids on the worker, with the worker's key for administration, or else the client's.
    pub(crate) fn send(
        &self,
        worker: &Arc<Worker>,
        engine: Engine,
        ids: &Arc<RequestIds>,
        client_key: Option<&HeaderValue>,
    ) {
        if !self.enabled.load(Ordering::Relaxed) || **ids == RequestIds::Unknown {
            return;
        }
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            return;
        };
        self.sent[worker.role() as usize].fetch_add(1, Ordering::Relaxed);
        let key = worker.admin_authorization().or(client_key).cloned();
        let (client, worker, ids) = (self.client.clone(), worker.clone(), ids.clone());
        // Bounded by the permits and by TIMEOUT for each id; nothing waits for this task.
        tokio::spawn(async move {
            for id in ids.texts(MAX_IDS) {
                let request = engine.abort(&id);
                let aborted =
                    tokio::time::timeout(TIMEOUT, abort(&client, &worker, key.as_ref(), request))
                        .await;
                if !matches!(aborted, Ok(Ok(()))) {
                    log::debug!("abort not delivered worker={} rid={id:?}", worker.url());
                    break;
                }
            }
            drop(permit);
        });
    }
}

async fn abort(
    client: &Client,
    worker: &Worker,
    key: Option<&HeaderValue>,
    (path, body): (&str, String),
) -> Result<()> {
    let body = Bytes::from(body);
    let mut head = RequestHeader::build_no_case(Method::POST, path.as_bytes(), Some(1))?;
    head.insert_header(CONTENT_TYPE, HeaderValue::from_static("application/json"))?;
    let to = Target {
        addresses: worker.addresses(),
        server_name: worker.server_name(),
        host: worker.host(),
        authorization: key,
    };
    let response = client.fetch(to, &head, &body, RESPONSE_LIMIT).await;
    response
        .map(|_| ())
        .map_err(|failure| Error::explain(ErrorType::ReadError, failure.to_string()))
}
