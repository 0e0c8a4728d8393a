//! The HTTP API of one worker: a request's way from its head to its response.
//!
//! Journal, scripted fault, authorization, endpoint, response, in this order. `routes` has the paths.

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

use super::administration;
use super::chaos::{ConnectionFaults, FAULT_HEADER, Fault, Script};
use super::chat::Chat;
use super::client::ClientGuard;
use super::completions::Completions;
use super::engine::{Engine, Phase, Run};
use super::errors::Failure;
use super::generate::Native;
use super::journal::{Event, Violation};
use super::management::{self, Ports};
use super::messages::Messages;
use super::request::{self, Batch, Limits};
use super::responses::Responses;
use super::routes::{self, Endpoint, Generation, Management};
use super::server_info::{model_info, server_info};
use super::stream::{self, Head, Render, refusal, refusal_event};
use super::vllm;
use super::wire::{self, Payload, SimBody, SimResponse};

/// The API, shared by all connections of a worker.
pub(crate) struct Api {
    pub(crate) engine: Arc<Engine>,
    pub(crate) ports: Ports,
    requests: AtomicU64,
}

impl Api {
    pub(crate) fn new(engine: Arc<Engine>, ports: Ports) -> Api {
        Api {
            engine,
            ports,
            requests: AtomicU64::new(0),
        }
    }

    /// Serves one request.
    ///
    /// # Errors
    /// When the connection is to be cut without a response.
    pub(crate) async fn serve(
        &self,
        connection: u64,
        busy: watch::Sender<bool>,
        faults: ConnectionFaults,
        request: Request<Incoming>,
    ) -> std::io::Result<Response<SimBody<ClientGuard>>> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let mut client = ClientGuard::new(self.engine.clone(), number, busy);
        let (head, body) = request.into_parts();
        self.note_head(connection, number, &head);
        let body = body
            .collect()
            .await
            .map_err(std::io::Error::other)?
            .to_bytes();
        self.engine.journal.body(number, &body);
        let fault = self.fault_for(number, &head);
        client.fault = fault.as_ref().map(Fault::item).unwrap_or_default();
        client.zombie = fault.as_ref().is_some_and(Fault::is_zombie);
        let response = match &fault {
            None => {
                faults.set(None);
                self.respond(&mut client, &head, body).await
            }
            Some(fault) => match fault.replacement(&self.engine, &faults).await {
                Some(response) => response,
                None => {
                    let response = self.respond(&mut client, &head, body).await;
                    fault.apply(&self.engine, response, &faults).await
                }
            },
        };
        if matches!(response.body(), Payload::Cut) {
            return Err(std::io::Error::other("no response"));
        }
        let status = response.status().as_u16();
        self.engine.journal.push(|| Event::ResponseHead {
            request: number,
            status,
        });
        Ok(response.map(|payload| SimBody::new(payload, client)))
    }

    /// The fault that the worker's script has for a request.
    fn fault_for(&self, request: u64, head: &Parts) -> Option<Fault> {
        let header = head.headers.get(FAULT_HEADER);
        let header = header.map(|value| String::from_utf8_lossy(value.as_bytes()));
        let chaos = &self.engine.chaos;
        let fault = chaos.fault_for(head.uri.path(), header.as_deref())?;
        self.engine.journal.push(|| Event::FaultInjected {
            request,
            rule: fault.rule.clone(),
            action: fault.action.name(),
        });
        Some(fault)
    }

    async fn respond(&self, client: &mut ClientGuard, head: &Parts, body: Bytes) -> SimResponse {
        if self.engine.is_vllm() {
            return vllm::respond(self, client, head, &body).await;
        }
        let path = head.uri.path();
        if let Some(id) = path.strip_prefix("/v1/models/").filter(|id| !id.is_empty()) {
            return match (self.may_enter(head, false), head.method == Method::GET) {
                (false, _) => unauthorized(),
                (true, true) => management::model_card(&self.engine, id),
                (true, false) => wire::method_not_allowed("GET"),
            };
        }
        if let Some(rest) = path.strip_prefix("/v1/responses/") {
            let methods = if rest.ends_with("/cancel") {
                "POST"
            } else {
                "GET"
            };
            return match (self.may_enter(head, false), head.method.as_str() == methods) {
                (false, _) => unauthorized(),
                (true, true) => administration::store_disabled("response_id"),
                (true, false) => wire::method_not_allowed(methods),
            };
        }
        let Some((_, endpoint, methods)) = routes::find(path) else {
            return match self.may_enter(head, false) {
                true => wire::json(404, "{\"detail\":\"Not Found\"}"),
                false => unauthorized(),
            };
        };
        if self.engine.phase() != Phase::Serving && !endpoint.outlives_faults() {
            return wire::cut();
        }
        if !endpoint.is_the_simulators() && !self.may_enter(head, endpoint.is_admin()) {
            return unauthorized();
        }
        if !methods
            .split(", ")
            .any(|method| method == head.method.as_str())
        {
            return wire::method_not_allowed(methods);
        }
        match endpoint {
            Endpoint::Manages(endpoint) => self.manage(*endpoint, head, &body).await,
            Endpoint::Generates(endpoint) => self.generate(client, *endpoint, head, &body).await,
        }
    }

    async fn manage(&self, endpoint: Management, head: &Parts, body: &[u8]) -> SimResponse {
        let engine = &self.engine;
        match endpoint {
            Management::Root => wire::json(200, "\"SGLang is running\""),
            Management::Flag => wire::bare(200, ""),
            Management::Ready => wire::bare(if engine.pause.is_paused() { 503 } else { 200 }, ""),
            Management::Told(told) => administration::answer(engine, told, body).await,
            Management::Health => management::health(engine).await,
            Management::ServerInfo => {
                let Ports { api, bootstrap } = self.ports;
                wire::json(
                    200,
                    server_info(
                        engine.started_as(),
                        engine.role(),
                        &engine.options,
                        api,
                        bootstrap,
                    )
                    .to_string(),
                )
            }
            Management::ModelInfo => {
                wire::json(200, model_info(engine.role(), &engine.options).to_string())
            }
            Management::Models => management::models(engine),
            Management::FlushCache => {
                management::flush_cache(engine, head.uri.query().unwrap_or_default()).await
            }
            Management::RoleSwitch => management::switch_role(engine, body),
            Management::AbortRequest => management::abort_request(engine, body),
            Management::Loads => management::loads(engine),
            Management::Metrics => management::metrics(engine),
            Management::StartProfile => wire::bare(200, "Start profiling.\n"),
            Management::StopProfile => {
                wire::bare(200, "Stop profiling. This will take some time.\n")
            }
            Management::Tokenize => management::tokenize(engine, body),
            Management::Detokenize => management::detokenize(body),
            Management::CountTokens => management::count_tokens(body),
            Management::Journal => self.journal(&head.method),
            Management::Chaos => self.script(&head.method, body),
            Management::Cache => {
                self.engine.flush();
                wire::bare(200, "")
            }
        }
    }

    /// `/sim/journal`.
    pub(super) fn journal(&self, method: &Method) -> SimResponse {
        let journal = &self.engine.journal;
        if method == Method::DELETE {
            journal.clear();
            return wire::bare(200, "");
        }
        let body = json!({
            "role":self.engine.role().mode(),
            "open_connections":journal.open_connections(),
            "connections_total":journal.connections_total(),
            "open_rooms":journal.open_rooms(),
            "open_leases":journal.open_leases(),
            "violations":journal.violations(),
            "entries":journal.entries(),
        });
        wire::json(200, body.to_string())
    }

    /// `/sim/chaos`.
    pub(super) fn script(&self, method: &Method, body: &[u8]) -> SimResponse {
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
        client: &mut ClientGuard,
        endpoint: Generation,
        head: &Parts,
        body: &[u8],
    ) -> SimResponse {
        self.note_length(head);
        let family = endpoint.family();
        let body = match parse(endpoint, head, body) {
            Ok(body) => body,
            Err(failure) => return refusal(&failure, family),
        };
        client.stream = body.get("stream").and_then(Value::as_bool) == Some(true);
        let limits = Limits {
            context_length: self.engine.options.context_length,
        };
        if endpoint == Generation::Responses
            && let Some(param) = administration::needs_store(&body)
        {
            return administration::store_disabled(param);
        }
        self.engine.pause.entrance().await;
        let begun = endpoint.batch(&body, limits).and_then(|batch| {
            let runs = self.engine.begin(client.request, &batch, client.fault)?;
            Ok((batch, runs))
        });
        match begun {
            Ok((batch, runs)) => {
                client.aborts = runs.iter().map(Run::abort_handle).collect();
                self.render(endpoint, &body, batch, runs).await
            }
            // `/generate` sends the head of a stream before these checks, the other endpoints after them.
            Err(failure @ Failure::Invalid(_))
                if client.stream && endpoint == Generation::Native =>
            {
                refusal_event(&failure, family)
            }
            Err(failure) => refusal(&failure, family),
        }
    }

    async fn render(
        &self,
        endpoint: Generation,
        body: &Value,
        batch: Batch,
        runs: Vec<Run>,
    ) -> SimResponse {
        let engine = &*self.engine;
        let (role, options) = (engine.role(), &engine.options);
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        match endpoint {
            Generation::Chat => {
                let render = Chat::new(body, options, created, &batch);
                whole_or_streamed(engine, &batch, runs, render, Head::WithFirstEvent).await
            }
            Generation::Completions => {
                let render = Completions::new(role, options, body, created, &batch);
                whole_or_streamed(engine, &batch, runs, render, Head::WithFirstEvent).await
            }
            Generation::Messages => {
                let render = Messages::new(body, &options.model, &batch);
                whole_or_streamed(engine, &batch, runs, render, Head::WithFirstEvent).await
            }
            Generation::Responses => {
                let mut render = Responses::new(body, &options.model, created, &batch);
                if !batch.stream {
                    return stream::whole(engine, runs, render).await;
                }
                let preface = render.preface();
                let events = stream::streamed(engine, runs, render, preface, Head::AtOnce).await;
                wire::uncached_events(events)
            }
            Generation::Native => {
                let render = Native::new(role, options, &batch);
                whole_or_streamed(engine, &batch, runs, render, Head::AtOnce).await
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

    /// A request that generates must say how long its body is.
    pub(super) fn note_length(&self, head: &Parts) {
        let says = [CONTENT_LENGTH, TRANSFER_ENCODING];
        if !says.iter().any(|name| head.headers.contains_key(name)) {
            let rule = Violation::MissingContentLength;
            let path = || head.uri.path().to_owned();
            self.engine.journal.violation(rule, path);
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

/// The response of a batch, as its request wants it.
pub(super) async fn whole_or_streamed<R: Render>(
    engine: &Engine,
    batch: &Batch,
    runs: Vec<Run>,
    render: R,
    head: Head,
) -> SimResponse {
    if !batch.stream {
        return stream::whole(engine, runs, render).await;
    }
    wire::events(stream::streamed(engine, runs, render, Vec::new(), head).await)
}

/// Parses a body. `/generate` reads one of another content type as bytes, which its schema refuses; the others refuse
/// the content type.
fn parse(endpoint: Generation, head: &Parts, body: &[u8]) -> Result<Value, Failure> {
    let content_type = head
        .headers
        .get(CONTENT_TYPE)
        .map(|value| value.to_str().unwrap_or_default());
    let is_json = |value: &str| value.to_ascii_lowercase().starts_with("application/json");
    match (endpoint, content_type) {
        (Generation::Native, Some(other)) if !is_json(other) => {
            return Err(request::not_parsed(body));
        }
        (Generation::Native, _) => {}
        (_, Some(json)) if is_json(json) => {}
        _ => return Err(request::unsupported_media_type()),
    }
    serde_json::from_slice(body).map_err(|error| request::not_json(endpoint.site(), &error, body))
}

pub(super) fn unauthorized() -> SimResponse {
    wire::json(401, "{\"error\":\"Unauthorized\"}")
}
