//! `POST /abort_request` to a worker whose leg was cancelled.
//!
//! SGLang notices a closed connection after seconds, but aborts a request at once when it is told the id. Best effort:
//! some workers at a time, one second for each id, and no client waits for it.
//! Source: SGLang 0.5.23, `srt/managers/tokenizer_manager.py` (disconnects are polled every 4 s).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method};
use pingora_core::{Error, ErrorType, Result};
use pingora_http::RequestHeader;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::fleet::Worker;
use crate::net::{Client, Target};
use crate::pd::RequestId;

/// Deadline of one abort.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Workers that are told at the same time. Further aborts are left out: the closed connection does the same, later.
const MAX_CONCURRENT: usize = 64;

/// Ids of one request that are aborted; the rest of a larger batch is left to the closed connection.
const MAX_IDS: usize = 64;

/// The longest response to an abort, in bytes. SGLang's is empty.
const RESPONSE_LIMIT: usize = 64 << 10;

/// The ids under which the workers know a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ids {
    /// Made by the proxy, one for each prompt.
    Proxy(Vec<RequestId>),
    /// Chosen by the client.
    Client(Vec<String>),
    /// Chosen by the worker, or a list of which the proxy keeps the length alone.
    Unknown,
}

impl Ids {
    fn texts(&self) -> Vec<String> {
        match self {
            Ids::Proxy(ids) => ids.iter().take(MAX_IDS).map(RequestId::to_string).collect(),
            Ids::Client(ids) => ids.iter().take(MAX_IDS).cloned().collect(),
            Ids::Unknown => Vec::new(),
        }
    }
}

/// Aborts requests on workers.
pub(crate) struct Aborter {
    client: Arc<Client>,
    /// `None` when aborts are switched off.
    permits: Option<Arc<Semaphore>>,
}

impl Aborter {
    pub(crate) fn new(client: Arc<Client>, enabled: bool) -> Self {
        Self {
            client,
            permits: enabled.then(|| Arc::new(Semaphore::new(MAX_CONCURRENT))),
        }
    }

    /// Tells the worker in a task of its own, with the worker's key for administration, or else the client's.
    pub(crate) fn send(
        &self,
        worker: &Arc<Worker>,
        ids: &Arc<Ids>,
        client_key: Option<&HeaderValue>,
    ) {
        let permit = self.permits.clone().map(Semaphore::try_acquire_owned);
        let (Some(Ok(permit)), false) = (permit, **ids == Ids::Unknown) else {
            return;
        };
        let key = worker.admin_authorization().or(client_key).cloned();
        let (client, worker, ids) = (self.client.clone(), worker.clone(), ids.clone());
        // Bounded by the permits and by TIMEOUT for each id; nothing waits for this task.
        tokio::spawn(async move {
            for id in ids.texts() {
                let told =
                    tokio::time::timeout(TIMEOUT, tell(&client, &worker, key.as_ref(), &id)).await;
                if !matches!(told, Ok(Ok(()))) {
                    log::debug!("abort not delivered worker={} rid={id:?}", worker.url());
                    break;
                }
            }
            drop(permit);
        });
    }
}

async fn tell(client: &Client, worker: &Worker, key: Option<&HeaderValue>, id: &str) -> Result<()> {
    let body = Bytes::from(json!({ "rid": id }).to_string());
    let mut head = RequestHeader::build_no_case(Method::POST, b"/abort_request", Some(1))?;
    head.insert_header(CONTENT_TYPE, HeaderValue::from_static("application/json"))?;
    let to = Target {
        address: worker.address(),
        server_name: worker.server_name(),
        host: worker.host(),
        authorization: key,
    };
    let response = client.fetch(to, &head, &body, RESPONSE_LIMIT).await;
    response
        .map(|_| ())
        .map_err(|failure| Error::explain(ErrorType::ReadError, failure.to_string()))
}
