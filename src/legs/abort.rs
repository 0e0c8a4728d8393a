//! `POST /abort_request` to a worker whose leg was cancelled.
//!
//! SGLang notices a closed connection only after seconds; by its id it ends a request at once. Best effort: a
//! few at a time, a second each, and never in a client's way.
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

/// How long one worker may take for one abort.
const PATIENCE: Duration = Duration::from_secs(1);

/// Workers that are told at the same time. Beyond that an abort is left out: the connection is closed anyway.
const AT_ONCE: usize = 64;

/// Ids of one request that are aborted one by one; a larger batch is left to the closed connection.
const IDS: usize = 64;

/// An answer to an abort is empty.
const ANSWER_LIMIT: usize = 64 << 10;

/// Under which ids the workers know a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ids {
    /// The proxy's, one for each prompt.
    Ours(Vec<RequestId>),
    /// The client's.
    Clients(Vec<String>),
    /// None that is known here.
    Unknown,
}

impl Ids {
    fn texts(&self) -> Vec<String> {
        match self {
            Ids::Ours(ids) => ids.iter().take(IDS).map(RequestId::to_string).collect(),
            Ids::Clients(ids) => ids.iter().take(IDS).cloned().collect(),
            Ids::Unknown => Vec::new(),
        }
    }
}

/// Tells workers that a request is over.
pub(crate) struct Aborter {
    client: Arc<Client>,
    /// `None` when it is switched off.
    permits: Option<Arc<Semaphore>>,
}

impl Aborter {
    pub(crate) fn new(client: Arc<Client>, enabled: bool) -> Self {
        Self {
            client,
            permits: enabled.then(|| Arc::new(Semaphore::new(AT_ONCE))),
        }
    }

    /// Tells the worker, some time soon, with its own key for administration or else the client's.
    pub(crate) fn send(
        &self,
        worker: &Arc<Worker>,
        ids: &Arc<Ids>,
        clients_key: Option<&HeaderValue>,
    ) {
        let permit = self.permits.clone().map(Semaphore::try_acquire_owned);
        let (Some(Ok(permit)), false) = (permit, **ids == Ids::Unknown) else {
            return;
        };
        let key = worker.admin_authorization().or(clients_key).cloned();
        let (client, worker, ids) = (self.client.clone(), worker.clone(), ids.clone());
        // Bounded by the permits and by PATIENCE for each id; nobody waits for it.
        tokio::spawn(async move {
            for id in ids.texts() {
                let told =
                    tokio::time::timeout(PATIENCE, tell(&client, &worker, key.as_ref(), &id)).await;
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
    let answer = client.fetch(to, &head, &body, ANSWER_LIMIT).await;
    answer
        .map(|_| ())
        .map_err(|failure| Error::explain(ErrorType::ReadError, failure.to_string()))
}
