//! Mooncake's part of an attempt: the engine of the prefill worker, asked of its bootstrap server, and the parameters with
//! which decode asks for the blocks.
//!
//! The engine is asked for once, and again after a sign that the worker was started anew: a failed probe or leg, or a decode
//! worker that could not get the blocks. The other steps are those of `turns.rs`.
//!
//! Source: vLLM 0.32.0, `kv_connector/v1/mooncake/mooncake_utils.py` (`/query`).

use std::sync::Arc;
use std::time::Duration;

use pingora::Result;
use tokio::time::timeout;

use super::Proxy;
use super::request::RequestContext;
use crate::error::ProxyError;
use crate::fleet::Worker;
use crate::limits::KvConnector;
use crate::pd::{KvEngines, Params, TransferId};

const QUERY: &str = "/query";

/// The server is in the process of the worker, and only repeats what it knows.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest response, in bytes. A rank with its workers has 100.
const RESPONSE_LIMIT: usize = 1 << 20;

/// The header by which a client names the data parallel rank of both workers. Source: vLLM 0.32.0, `entrypoints/`.
const RANK: &str = "x-data-parallel-rank";

impl RequestContext {
    /// The id of a transfer that begins; `None` where prefill's response names it.
    pub(super) fn new_transfer(&self) -> Option<Box<TransferId>> {
        let chosen = self.rules.limits.kv_connector == KvConnector::Mooncake;
        chosen.then(|| Box::new(TransferId::new(rand::random())))
    }
}

impl Proxy {
    /// The parameters for decode, once prefill has responded; `None` where decode computes the prompt, because there are no
    /// blocks, or the worker is lost meanwhile.
    ///
    /// # Errors
    /// The fault is in the context: the bootstrap server names no engine, or decode must not compute the prompt.
    pub(super) async fn params_of_transfer(
        &self,
        ctx: &mut RequestContext,
        transfer: &TransferId,
    ) -> Result<Option<Params>> {
        let Some(request) = &ctx.request else {
            return Err(ctx.refuse(ProxyError::Internal("nothing to send".into())));
        };
        let (route, rank) = (request.route, request.head.headers.get(RANK));
        let rank = rank.and_then(|rank| rank.to_str().ok()?.parse().ok());
        let attempt = ctx.attempt()?;
        let worker = attempt.prefill().clone();
        let document = attempt.prefill_document();
        if !document.is_some_and(|document| self.engine().keeps_blocks(route, document)) {
            // Decode is as able to compute the prompt as it would be without prefill.
            ctx.go_alone();
            return Ok(None);
        }
        let server = worker.bootstrap_server();
        let engines = self.kv_engines(&worker).await;
        let address = format!("http://{server}");
        match engines.map(|engines| engines?.params(&address, rank, transfer)) {
            Ok(Some(params)) => Ok(Some(params)),
            Err(Unanswered) if ctx.rules.limits.vllm_decode_alone => {
                log::warn!(
                    "bootstrap server does not answer, decode computes the prompt worker={} server={server}",
                    worker.url()
                );
                ctx.go_alone();
                Ok(None)
            }
            _ => {
                let url = worker.url().to_owned();
                Err(ctx.refuse(ProxyError::NoEngine { url, server }))
            }
        }
    }

    /// The engines of a prefill worker; `None` where its bootstrap server names none.
    async fn kv_engines(&self, worker: &Worker) -> Result<Option<Arc<KvEngines>>, Unanswered> {
        if let Some(known) = worker.kv_engines() {
            return Ok(Some(known));
        }
        let server = worker.bootstrap_server();
        let asked = self.client.get_at(&server, QUERY, RESPONSE_LIMIT);
        let Ok(Ok(response)) = timeout(QUERY_TIMEOUT, asked).await else {
            return Err(Unanswered);
        };
        let engines = KvEngines::read(&response.body).map(Arc::new);
        if let Some(engines) = &engines {
            worker.note_kv_engines(engines.clone());
        }
        Ok(engines)
    }
}

/// No response of a bootstrap server.
#[derive(Debug)]
struct Unanswered;
