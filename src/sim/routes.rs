//! One request: journal, authorization, endpoint, answer. The only file that knows paths.
//!
//! Source of the table: SGLang 0.5.23, `entrypoints/http_server.py`; of the keys: `utils/auth.py`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::DisconnectNotice;
use super::chaos::{FAULT_HEADER, Fault, ItemFault, Orders, Script};
use super::chat::Chat;
use super::completions::Completions;
use super::engine::{Abort, Engine, Phase, Run};
use super::errors::{Failure, Family};
use super::generate::Native;
use super::journal::{Event, Violation};
use super::management::{self, Ports};
use super::messages::Messages;
use super::request::{self, Batch, Limits, Site};
use super::responses::Responses;
use super::server_info::{model_info, server_info};
use super::stream::{self, Head, Render, refusal, refusal_event};
use super::wire::{self, Answer, OnFinish, Payload, SimBody};

/// A body on its way to the client.
pub(crate) type Reply = Response<SimBody<Client>>;

/// What every connection of a worker needs.
pub(crate) struct Door {
    pub(crate) engine: Arc<Engine>,
    pub(crate) ports: Ports,
    requests: AtomicU64,
}

/// The client's side of one request. Dropped before the answer is complete, it aborts the items.
pub(crate) struct Client {
    engine: Arc<Engine>,
    request: u64,
    busy: watch::Sender<bool>,
    aborts: Vec<Arc<Abort>>,
    stream: bool,
    finished: bool,
    fault: ItemFault,
    /// Never notices that it left.
    zombie: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    Generate,
    Chat,
    Completions,
    Responses,
    Messages,
    Other(Other),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Other {
    Root,
    Flag,
    Health,
    ServerInfo,
    ModelInfo,
    Models,
    FlushCache,
    AbortRequest,
    Loads,
    Metrics,
    StartProfile,
    StopProfile,
    Tokenize,
    Detokenize,
    CountTokens,
    Journal,
    Chaos,
}

/// Path, endpoint, methods. Admin endpoints are those of `is_admin`.
const ROUTES: &[(&str, Endpoint, &str)] = &[
    ("/generate", Endpoint::Generate, "POST, PUT"),
    ("/v1/chat/completions", Endpoint::Chat, "POST"),
    ("/invocations", Endpoint::Chat, "POST"),
    ("/v1/completions", Endpoint::Completions, "POST"),
    ("/v1/responses", Endpoint::Responses, "POST"),
    ("/v1/messages", Endpoint::Messages, "POST"),
    (
        "/v1/messages/count_tokens",
        Endpoint::Other(Other::CountTokens),
        "POST",
    ),
    ("/", Endpoint::Other(Other::Root), "GET, HEAD"),
    ("/ping", Endpoint::Other(Other::Flag), "GET"),
    ("/ready", Endpoint::Other(Other::Flag), "GET"),
    ("/health", Endpoint::Other(Other::Health), "GET"),
    ("/health_generate", Endpoint::Other(Other::Health), "GET"),
    ("/server_info", Endpoint::Other(Other::ServerInfo), "GET"),
    (
        "/get_server_info",
        Endpoint::Other(Other::ServerInfo),
        "GET",
    ),
    ("/model_info", Endpoint::Other(Other::ModelInfo), "GET"),
    ("/get_model_info", Endpoint::Other(Other::ModelInfo), "GET"),
    ("/v1/models", Endpoint::Other(Other::Models), "GET"),
    (
        "/flush_cache",
        Endpoint::Other(Other::FlushCache),
        "GET, POST",
    ),
    (
        "/abort_request",
        Endpoint::Other(Other::AbortRequest),
        "POST",
    ),
    ("/v1/loads", Endpoint::Other(Other::Loads), "GET"),
    ("/metrics", Endpoint::Other(Other::Metrics), "GET"),
    (
        "/start_profile",
        Endpoint::Other(Other::StartProfile),
        "GET, POST",
    ),
    (
        "/stop_profile",
        Endpoint::Other(Other::StopProfile),
        "GET, POST",
    ),
    ("/tokenize", Endpoint::Other(Other::Tokenize), "POST"),
    ("/v1/tokenize", Endpoint::Other(Other::Tokenize), "POST"),
    ("/detokenize", Endpoint::Other(Other::Detokenize), "POST"),
    ("/v1/detokenize", Endpoint::Other(Other::Detokenize), "POST"),
    (
        "/sim/journal",
        Endpoint::Other(Other::Journal),
        "GET, DELETE",
    ),
    ("/sim/chaos", Endpoint::Other(Other::Chaos), "POST, DELETE"),
];

impl Door {
    pub(crate) fn new(engine: Arc<Engine>, ports: Ports) -> Door {
        Door {
            engine,
            ports,
            requests: AtomicU64::new(0),
        }
    }

    /// The whole life of one request.
    ///
    /// # Errors
    /// When the connection is to be cut without an answer.
    pub(crate) async fn serve(
        &self,
        connection: u64,
        busy: watch::Sender<bool>,
        orders: Orders,
        request: Request<Incoming>,
    ) -> std::io::Result<Reply> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let mut client = Client::new(self.engine.clone(), number, busy);
        let (head, body) = request.into_parts();
        self.note_head(connection, number, &head);
        let body = body
            .collect()
            .await
            .map_err(std::io::Error::other)?
            .to_bytes();
        self.engine.journal.body(number, &body);
        let fault = self.strike(number, &head);
        client.fault = fault.as_ref().map(Fault::item).unwrap_or_default();
        client.zombie = fault.as_ref().is_some_and(Fault::is_zombie);
        let answer = match &fault {
            None => {
                orders.give(None);
                self.answer(&mut client, &head, body).await
            }
            Some(fault) => match fault.instead(&self.engine, &orders).await {
                Some(answer) => answer,
                None => {
                    fault
                        .shape(self.answer(&mut client, &head, body).await, &orders)
                        .await
                }
            },
        };
        if matches!(answer.body(), Payload::Cut) {
            return Err(std::io::Error::other("no answer"));
        }
        let status = answer.status().as_u16();
        self.engine.journal.push(|| Event::ResponseHead {
            request: number,
            status,
        });
        Ok(answer.map(|payload| SimBody::new(payload, client)))
    }

    /// The fault that the worker's script has for a request.
    fn strike(&self, request: u64, head: &Parts) -> Option<Fault> {
        let header = head.headers.get(FAULT_HEADER);
        let header = header.map(|value| String::from_utf8_lossy(value.as_bytes()));
        let strike = self
            .engine
            .chaos
            .strike(head.uri.path(), header.as_deref())?;
        let action = strike.action.name();
        self.engine.journal.push(|| Event::FaultStruck {
            request,
            rule: strike.rule,
            action,
        });
        Some(Fault(strike.action))
    }

    async fn answer(&self, client: &mut Client, head: &Parts, body: Bytes) -> Answer {
        let path = head.uri.path();
        if let Some(id) = path.strip_prefix("/v1/models/").filter(|id| !id.is_empty()) {
            return match (self.may_enter(head, false), head.method == Method::GET) {
                (false, _) => unauthorized(),
                (true, true) => management::model_card(&self.engine, id),
                (true, false) => wire::method_not_allowed("GET"),
            };
        }
        let Some((_, endpoint, methods)) = ROUTES.iter().find(|(route, ..)| *route == path) else {
            return match self.may_enter(head, false) {
                true => wire::json(404, "{\"detail\":\"Not Found\"}"),
                false => unauthorized(),
            };
        };
        if self.engine.phase() != Phase::Serving && !survives_a_crash(*endpoint) {
            return wire::cut();
        }
        if !is_the_simulators_own(*endpoint) && !self.may_enter(head, is_admin(*endpoint)) {
            return unauthorized();
        }
        if !methods
            .split(", ")
            .any(|method| method == head.method.as_str())
        {
            return wire::method_not_allowed(methods);
        }
        match endpoint {
            Endpoint::Other(other) => self.manage(*other, head, &body).await,
            generation => self.generate(client, *generation, head, &body).await,
        }
    }

    async fn manage(&self, other: Other, head: &Parts, body: &[u8]) -> Answer {
        let engine = &self.engine;
        match other {
            Other::Root => wire::json(200, "\"SGLang is running\""),
            Other::Flag => wire::bare(200, ""),
            Other::Health => management::health(engine).await,
            Other::ServerInfo => {
                let Ports { api, bootstrap } = self.ports;
                wire::json(
                    200,
                    server_info(engine.role, &engine.options, api, bootstrap).to_string(),
                )
            }
            Other::ModelInfo => {
                wire::json(200, model_info(engine.role, &engine.options).to_string())
            }
            Other::Models => management::models(engine),
            Other::FlushCache => {
                management::flush_cache(engine, head.uri.query().unwrap_or_default()).await
            }
            Other::AbortRequest => management::abort_request(engine, body),
            Other::Loads => management::loads(engine),
            Other::Metrics => management::metrics(engine),
            Other::StartProfile => wire::bare(200, "Start profiling.\n"),
            Other::StopProfile => wire::bare(200, "Stop profiling. This will take some time.\n"),
            Other::Tokenize => management::tokenize(engine, body),
            Other::Detokenize => management::detokenize(body),
            Other::CountTokens => management::count_tokens(body),
            Other::Journal => self.journal(&head.method),
            Other::Chaos => self.script(&head.method, body),
        }
    }

    fn journal(&self, method: &Method) -> Answer {
        let journal = &self.engine.journal;
        if method == Method::DELETE {
            journal.clear();
            return wire::bare(200, "");
        }
        let body = json!({
            "role":self.engine.role.mode(),
            "open_connections":journal.open_connections(),
            "connections_total":journal.connections_total(),
            "open_rooms":journal.open_rooms(),
            "violations":journal.violations(),
            "entries":journal.entries(),
        });
        wire::json(200, body.to_string())
    }

    fn script(&self, method: &Method, body: &[u8]) -> Answer {
        let script = match (method == Method::DELETE, std::str::from_utf8(body)) {
            (true, _) => Ok(Script::default()),
            (false, Ok(text)) => Script::parse(text).map_err(|error| error.to_string()),
            (false, Err(error)) => Err(error.to_string()),
        };
        match script {
            Ok(script) => {
                self.engine.chaos.load(script);
                wire::bare(200, "")
            }
            Err(message) => wire::json(400, json!({"error":message}).to_string()),
        }
    }

    async fn generate(
        &self,
        client: &mut Client,
        endpoint: Endpoint,
        head: &Parts,
        body: &[u8],
    ) -> Answer {
        if !head.headers.contains_key(CONTENT_LENGTH)
            && !head.headers.contains_key(TRANSFER_ENCODING)
        {
            self.engine
                .journal
                .violation(Violation::MissingContentLength, || {
                    head.uri.path().to_owned()
                });
        }
        let family = endpoint.family();
        let body = match parse(endpoint, head, body) {
            Ok(body) => body,
            Err(failure) => return refusal(&failure, family),
        };
        client.stream = body.get("stream").and_then(Value::as_bool) == Some(true);
        let limits = Limits {
            context_length: self.engine.options.context_length,
        };
        let begun = endpoint.batch(&body, limits).and_then(|batch| {
            let runs = self.engine.begin(client.request, &batch, client.fault)?;
            Ok((batch, runs))
        });
        match begun {
            Ok((batch, runs)) => {
                client.aborts = runs.iter().map(Run::abort_handle).collect();
                self.render(endpoint, &body, batch, runs).await
            }
            // `/generate` checks within its stream, whose head is out by then; the others before theirs.
            Err(failure @ Failure::Invalid(_))
                if client.stream && endpoint == Endpoint::Generate =>
            {
                refusal_event(&failure, family)
            }
            Err(failure) => refusal(&failure, family),
        }
    }

    async fn render(
        &self,
        endpoint: Endpoint,
        body: &Value,
        batch: Batch,
        runs: Vec<Run>,
    ) -> Answer {
        let engine = &*self.engine;
        let (role, options) = (engine.role, &engine.options);
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        match endpoint {
            Endpoint::Chat => {
                let render = Chat::new(body, &options.model, created, &batch);
                respond(engine, &batch, runs, render, Head::WithFirstEvent).await
            }
            Endpoint::Completions => {
                let render = Completions::new(role, options, body, created, &batch);
                respond(engine, &batch, runs, render, Head::WithFirstEvent).await
            }
            Endpoint::Messages => {
                let render = Messages::new(body, &options.model, &batch);
                respond(engine, &batch, runs, render, Head::WithFirstEvent).await
            }
            Endpoint::Responses => {
                let mut render = Responses::new(body, &options.model, created, &batch);
                if !batch.stream {
                    return stream::whole(engine, runs, render).await;
                }
                let preface = render.preface();
                let events = stream::streamed(engine, runs, render, preface, Head::AtOnce).await;
                wire::uncached_events(events)
            }
            Endpoint::Generate | Endpoint::Other(_) => {
                let render = Native::new(role, options, &batch);
                respond(engine, &batch, runs, render, Head::AtOnce).await
            }
        }
    }

    fn note_head(&self, connection: u64, request: u64, head: &Parts) {
        let journal = &self.engine.journal;
        journal.push(|| Event::RequestHead {
            connection,
            request,
            method: head.method.to_string(),
            path: head.uri.path().to_owned(),
            headers: head.headers.keys().map(ToString::to_string).collect(),
            request_id: head
                .headers
                .get("x-request-id")
                .map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned()),
            authorization: head.headers.contains_key(AUTHORIZATION),
        });
        if head.headers.contains_key(TRANSFER_ENCODING) {
            journal.violation(Violation::ChunkedRequestBody, || head.uri.path().to_owned());
        }
    }

    fn may_enter(&self, head: &Parts, admin: bool) -> bool {
        let path = head.uri.path();
        let exempt = ["/health", "/ready", "/metrics"]
            .iter()
            .any(|prefix| path.starts_with(prefix));
        let options = &self.engine.options;
        let key = match (admin, &options.admin_api_key) {
            (true, Some(admin_key)) => Some(admin_key),
            _ => options.api_key.as_ref(),
        };
        let Some(key) = key.filter(|_| !exempt && head.method != Method::OPTIONS) else {
            return true;
        };
        let presented = head
            .headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        presented
            .and_then(|value| value.split_once(' '))
            .is_some_and(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer") && token == key)
    }
}

async fn respond<R: Render>(
    engine: &Engine,
    batch: &Batch,
    runs: Vec<Run>,
    render: R,
    head: Head,
) -> Answer {
    if !batch.stream {
        return stream::whole(engine, runs, render).await;
    }
    wire::events(stream::streamed(engine, runs, render, Vec::new(), head).await)
}

impl Endpoint {
    fn family(self) -> Family {
        match self {
            Endpoint::Generate | Endpoint::Other(_) => Family::Native,
            Endpoint::Chat | Endpoint::Completions => Family::OpenAi,
            Endpoint::Responses => Family::Responses,
            Endpoint::Messages => Family::Messages,
        }
    }

    fn site(self) -> Site {
        match self {
            Endpoint::Chat | Endpoint::Messages => Site::CHAT,
            Endpoint::Completions => Site::COMPLETIONS,
            Endpoint::Responses => Site::RESPONSES,
            Endpoint::Generate | Endpoint::Other(_) => Site::GENERATE,
        }
    }

    fn batch(self, body: &Value, limits: Limits) -> Result<Batch, Failure> {
        match self {
            Endpoint::Chat => request::chat(body, limits),
            Endpoint::Completions => request::completions(body, limits),
            Endpoint::Responses => request::responses(body, limits),
            Endpoint::Messages => request::messages(body, limits),
            Endpoint::Generate | Endpoint::Other(_) => request::generate(body, limits),
        }
    }
}

/// The body as JSON. Only `/generate` takes other content types, as no JSON then.
fn parse(endpoint: Endpoint, head: &Parts, body: &[u8]) -> Result<Value, Failure> {
    let content_type = head
        .headers
        .get(CONTENT_TYPE)
        .map(|value| value.to_str().unwrap_or_default());
    let is_json = |value: &str| value.to_ascii_lowercase().starts_with("application/json");
    match (endpoint, content_type) {
        (Endpoint::Generate, Some(other)) if !is_json(other) => {
            return Err(request::not_parsed(body));
        }
        (Endpoint::Generate, _) => {}
        (_, Some(json)) if is_json(json) => {}
        _ => return Err(request::unsupported_media_type()),
    }
    serde_json::from_slice(body).map_err(|error| request::not_json(endpoint.site(), &error, body))
}

fn survives_a_crash(endpoint: Endpoint) -> bool {
    endpoint == Endpoint::Other(Other::Health) || is_the_simulators_own(endpoint)
}

/// Endpoints that no real worker has: they need no key.
fn is_the_simulators_own(endpoint: Endpoint) -> bool {
    matches!(endpoint, Endpoint::Other(Other::Journal | Other::Chaos))
}

/// Source: `auth_level` of the handlers.
fn is_admin(endpoint: Endpoint) -> bool {
    let Endpoint::Other(other) = endpoint else {
        return false;
    };
    matches!(
        other,
        Other::FlushCache | Other::AbortRequest | Other::StartProfile | Other::StopProfile
    )
}

fn unauthorized() -> Answer {
    wire::json(401, "{\"error\":\"Unauthorized\"}")
}

impl Client {
    fn new(engine: Arc<Engine>, request: u64, busy: watch::Sender<bool>) -> Client {
        busy.send_replace(true);
        Client {
            engine,
            request,
            busy,
            aborts: Vec::new(),
            stream: false,
            finished: false,
            fault: ItemFault::None,
            zombie: false,
        }
    }

    fn abort(&self) {
        if self.engine.phase() != Phase::Serving {
            // The worker cut the connection, and its items end with it.
            return;
        }
        if self.zombie {
            return;
        }
        let request = self.request;
        self.engine
            .journal
            .push(|| Event::AbortByDisconnect { request });
        // Source: SGLang 0.5.23, `managers/tokenizer_manager.py`: a stream's background task and the poll.
        let seconds = if self.stream { 2.0 } else { 4.0 };
        match self.engine.options.disconnect {
            DisconnectNotice::AtOnce => self.aborts.iter().for_each(|abort| abort.ask()),
            DisconnectNotice::AsSglang => {
                let (aborts, notice) = (self.aborts.clone(), self.engine.options.timer(seconds));
                self.engine.spawn(async move {
                    tokio::time::sleep(notice).await;
                    aborts.iter().for_each(|abort| abort.ask());
                });
            }
        }
    }
}

impl OnFinish for Client {
    fn finished(&mut self) {
        self.finished = true;
        let request = self.request;
        self.engine
            .journal
            .push(|| Event::ResponseFinished { request });
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.finished {
            self.abort();
        }
        self.busy.send_replace(false);
    }
}
