//! Reading the body of a request: its facts, and what the policies may know of it.
//!
//! What may not live here: what is read from the client's connection (`client/request_body.rs`), and what a body means
//! (`pd`).

use std::sync::Arc;

use bytes::BytesMut;
use http::HeaderMap;

use super::Rules;
use crate::error::ProxyError;
use crate::limits::RequestLimits;
use crate::pd::{
    Engine, Facts, Prefix, Route, RoutingKey, named_rank, previous_response, tokens_to_come,
};

/// The most prompts of one batch. Each adds some hundred bytes of fields to the client's few.
const MAX_PROMPTS: usize = 1 << 16;

/// A body of this size, in bytes, is parsed on a thread of its own: every stream of this thread would wait for it. Smaller ones
/// take less time than it takes to hand them over and back.
const LARGE: usize = 1 << 20;

/// What the body of a request is read for.
pub(super) struct Reading {
    pub(super) engine: Engine,
    pub(super) route: Route,
    pub(super) rules: Arc<Rules>,
    /// Whether a worker has data parallel ranks.
    pub(super) has_ranks: bool,
}

/// What a body says.
pub(super) struct Parsed {
    pub(super) facts: Facts,
    pub(super) key: RoutingKey,
    /// The id of the response that it continues.
    pub(super) previous: Option<String>,
}

/// What a body says, or why a pair cannot serve the request.
type Outcome = Result<Parsed, ProxyError>;

impl Reading {
    /// Reads a body, and gives it back.
    ///
    /// # Errors
    /// The outer one is a defect: a thread has panicked.
    pub(super) async fn read(
        self,
        headers: &HeaderMap,
        body: BytesMut,
    ) -> Result<(BytesMut, Outcome), ProxyError> {
        if body.len() < LARGE {
            let parsed = self.parse(headers, &body);
            return Ok((body, parsed));
        }
        // Boxed, because it is rare: the future of every request would carry it.
        Box::pin(self.read_aside(headers.clone(), body)).await
    }

    async fn read_aside(
        self,
        headers: HeaderMap,
        body: BytesMut,
    ) -> Result<(BytesMut, Outcome), ProxyError> {
        let reading = tokio::task::spawn_blocking(move || {
            let parsed = self.parse(&headers, &body);
            (body, parsed)
        });
        let defect = |_| ProxyError::Internal("a body was not parsed to its end".into());
        reading.await.map_err(defect)
    }

    fn parse(&self, headers: &HeaderMap, body: &[u8]) -> Outcome {
        let facts = parse(self.engine, self.route, body, &self.rules.limits)?;
        let key = RoutingKey {
            rank: match self.has_ranks {
                true => named_rank_of(self.route, headers, body),
                false => None,
            },
            ..routing_key(&self.rules, headers, self.route, &facts, body)
        };
        let continues = self.route == Route::Responses;
        Ok(Parsed {
            facts,
            key,
            previous: continues.then(|| previous_response(body)).flatten(),
        })
    }
}

/// The data parallel rank that a request names. On the routes of OpenAI's and Anthropic's clients the header counts before the
/// body.
///
/// Source: SGLang 0.5.23, `srt/entrypoints/openai/serving_base.py` (`x-data-parallel-rank`).
fn named_rank_of(route: Route, headers: &HeaderMap, body: &[u8]) -> Option<u32> {
    let header = headers.get("x-data-parallel-rank");
    let header = header.filter(|_| route != Route::Generate);
    let in_head = header.and_then(|rank| rank.to_str().ok()?.parse().ok());
    in_head.or_else(|| named_rank(body))
}

/// What the policies of these rules ask for.
fn routing_key(
    rules: &Rules,
    headers: &HeaderMap,
    route: Route,
    facts: &Facts,
    body: &[u8],
) -> RoutingKey {
    let affinity = rules.affinity.as_ref();
    let prefix = || Arc::new(Prefix::of(route, body));
    RoutingKey {
        session: affinity.and_then(|affinity| affinity.session(headers, body)),
        prefix: rules.reads_prefixes.then(prefix),
        to_come: match rules.reads_lengths {
            true => tokens_to_come(route, body, facts.batch.prompts()),
            false => 0,
        },
        ..RoutingKey::new(route, facts, body.len())
    }
}

/// The facts of a request that a pair can serve.
fn parse(
    engine: Engine,
    route: Route,
    body: &[u8],
    limits: &RequestLimits,
) -> Result<Facts, ProxyError> {
    let facts = engine.parse(route, body).map_err(ProxyError::Invalid)?;
    engine
        .limit_top_logprobs(route, &facts, limits.max_top_logprobs)
        .map_err(ProxyError::Invalid)?;
    if facts.batch.prompts() > MAX_PROMPTS {
        return Err(ProxyError::BatchTooLarge(MAX_PROMPTS));
    }
    Ok(facts)
}
