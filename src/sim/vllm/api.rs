//! A request's way from its head to its response: key, path, method, body, endpoint.
//!
//! The journal and scripted faults come before, in the API of all workers.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::request::Parts;
use serde_json::Value;

use super::chat::Chat;
use super::choice::Answer;
use super::completions::Completions;
use super::messages::Messages;
use super::request::{Ask, Asked};
use super::responses::Responses;
use super::routes::{self, Endpoint, Found, Generation, Own};
use super::tokens::Tokens;
use super::transfer::{self, Transfer};
use super::{body, errors, management, rules};
use crate::sim::api::{Api, unauthorized, whole_or_streamed};
use crate::sim::client::ClientGuard;
use crate::sim::engine::{Engine, Phase, Run};
use crate::sim::errors::{Failure, Family};
use crate::sim::request::fields::boolean;
use crate::sim::stream::{self, Head, refusal};
use crate::sim::wire::{self, SimResponse};

/// Responds to one request of a vLLM worker.
pub(crate) async fn respond(
    api: &Api,
    client: &mut ClientGuard,
    head: &Parts,
    body: &[u8],
) -> SimResponse {
    let engine = &*api.engine;
    let Some(options) = &engine.options.vllm else {
        return wire::cut();
    };
    let path = head.uri.path();
    if !may_enter(engine, head) {
        return unauthorized();
    }
    let (endpoint, methods) = match routes::find(path, options) {
        Found::Endpoint(endpoint, methods) => (endpoint, methods),
        Found::Disabled => return refusal(&errors::scale_out_disabled(), Family::Vllm),
        Found::Nothing => return wire::json(404, "{\"detail\":\"Not Found\"}"),
    };
    if engine.phase() != Phase::Serving && !endpoint.outlives_faults() {
        return wire::cut();
    }
    let mut allowed = methods.split(", ");
    if !allowed.any(|method| method == head.method.as_str()) {
        return wire::method_not_allowed(methods);
    }
    match endpoint {
        Endpoint::Simulates(Own::Journal) => api.journal(&head.method),
        Endpoint::Simulates(Own::Chaos) => api.script(&head.method, body),
        Endpoint::Simulates(Own::Cache) => {
            engine.flush();
            wire::bare(200, "")
        }
        Endpoint::Manages(endpoint) => management::respond(engine, endpoint, head, body),
        Endpoint::Generates(endpoint) => generate(api, client, endpoint, head, body).await,
    }
}

/// The JSON of a request that needs it.
///
/// # Errors
/// When the content type or the body is another.
pub(super) fn json_of(head: &Parts, body: &[u8]) -> Result<Value, Failure> {
    let content_type = head.headers.get(CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok());
    let media_type = content_type.unwrap_or_default().split(';').next();
    if !media_type.is_some_and(|media| media.eq_ignore_ascii_case("application/json")) {
        return Err(errors::unsupported_media_type());
    }
    body::parse(body)
}

async fn generate(
    api: &Api,
    client: &mut ClientGuard,
    endpoint: Generation,
    head: &Parts,
    raw: &[u8],
) -> SimResponse {
    api.note_length(head);
    let engine = &api.engine;
    let family = match endpoint {
        Generation::Messages => Family::VllmMessages,
        _ => Family::Vllm,
    };
    let body = match json_of(head, raw) {
        Ok(body) => body,
        Err(failure) => return refusal(&failure, family),
    };
    let begun = ask(engine, endpoint, head, &body).and_then(|asked| {
        rules::check(engine, &asked.batch, body::count_params(raw));
        let runs = engine.begin(client.request, &asked.batch, client.fault)?;
        Ok((asked, runs))
    });
    match begun {
        Ok((asked, runs)) => {
            client.stream = boolean(body.get("stream"));
            client.aborts = runs.iter().map(Run::abort_handle).collect();
            render(engine, endpoint, &body, asked, runs).await
        }
        Err(failure) => {
            release(engine, client.request, &body);
            refusal(&failure, family)
        }
    }
}

/// Lets the blocks of a refused request go, as decode does.
/// Source: vLLM 0.32.0, `kv_connector/v1/nixl/pull_scheduler.py` (`request_finished`).
fn release(engine: &Arc<Engine>, request: u64, body: &Value) {
    let Ok(Transfer::Pull(remote)) = transfer::of(body, engine.options.connector()) else {
        return;
    };
    let reader = engine.clone();
    engine.spawn(async move {
        if let Some(nixl) = &reader.nixl {
            nixl.release(&remote, &nixl.reader(request), false).await;
        }
    });
}

fn ask(
    engine: &Engine,
    endpoint: Generation,
    head: &Parts,
    body: &Value,
) -> Result<Asked, Failure> {
    let ask = Ask {
        body,
        options: &engine.options,
        id: base_id(head, body),
        rank: rank(engine, head)?,
    };
    match endpoint {
        Generation::Chat => ask.chat(),
        Generation::ChatBatch => ask.chat_batch(),
        Generation::Completions => ask.completions(),
        Generation::Responses => ask.responses(),
        Generation::Messages => ask.messages(),
        Generation::Tokens => ask.tokens(),
    }
}

/// Streams begin at once: the head comes before the first token.
async fn render(
    engine: &Engine,
    endpoint: Generation,
    body: &Value,
    asked: Asked,
    runs: Vec<Run>,
) -> SimResponse {
    let created = SystemTime::now().duration_since(UNIX_EPOCH);
    let created = created.map_or(0, |since| since.as_secs());
    let (options, Asked { id, batch }) = (&engine.options, asked);
    if batch.items.is_empty() {
        return wire::json(200, "{}");
    }
    let answer = Answer::new(body, options, id, created, &batch);
    let at_once = Head::AtOnce;
    match endpoint {
        Generation::Chat | Generation::ChatBatch => {
            let is_batch = endpoint == Generation::ChatBatch;
            let render = Chat::new(answer, body, options.seed, &batch, is_batch);
            whole_or_streamed(engine, &batch, runs, render, at_once).await
        }
        Generation::Completions => {
            let render = Completions::new(answer, body, options.seed, &batch);
            whole_or_streamed(engine, &batch, runs, render, at_once).await
        }
        Generation::Messages => {
            whole_or_streamed(engine, &batch, runs, Messages::new(answer), at_once).await
        }
        Generation::Tokens => {
            whole_or_streamed(engine, &batch, runs, Tokens::new(answer), at_once).await
        }
        Generation::Responses => {
            let most = batch.items[0].sampling.max_new_tokens;
            let mut render = Responses::new(answer, body, most);
            if !batch.stream {
                return stream::whole(engine, runs, render).await;
            }
            let preface = render.preface();
            wire::events(stream::streamed(engine, runs, render, preface, at_once).await)
        }
    }
}

/// The id of a request: the header's, the body's, or a random one.
fn base_id(head: &Parts, body: &Value) -> String {
    let header = head.headers.get("x-request-id");
    let header = header.map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned());
    let own = || {
        body.get("request_id")
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    header
        .or_else(own)
        .unwrap_or_else(|| format!("{:016x}", rand::random::<u64>()))
}

/// `X-data-parallel-rank`. What is no number is ignored.
fn rank(engine: &Engine, head: &Parts) -> Result<Option<usize>, Failure> {
    let header = head.headers.get("x-data-parallel-rank");
    let Some(rank) = header.and_then(|value| value.to_str().ok()?.parse::<i64>().ok()) else {
        return Ok(None);
    };
    let ranks = engine.options.dp_size;
    match usize::try_from(rank) {
        Ok(named) if rank < i64::from(ranks) => Ok(Some(named)),
        _ => {
            let message = format!("data_parallel_rank {rank} is out of range [0, {ranks}).");
            Err(errors::bad_request(None, message))
        }
    }
}

fn may_enter(engine: &Engine, head: &Parts) -> bool {
    let Some(key) = &engine.options.api_key else {
        return true;
    };
    if !routes::needs_key(head.uri.path()) || head.method == http::Method::OPTIONS {
        return true;
    }
    let presented = head.headers.get(AUTHORIZATION);
    let presented = presented.and_then(|value| value.to_str().ok());
    presented.and_then(|value| value.strip_prefix("Bearer ")) == Some(key)
}
