//! The questions to one worker: whether it is there, whether it takes the keys, and which settings it has.
//!
//! Each step has its own deadline, and each way to fail its own words. Nothing is compared here.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};
use pingora::http::RequestHeader;
use serde_json::Value;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::engine;
use super::facts::Facts;
use super::report::Check;
use crate::addresses::Addresses;
use crate::config::{KvConnector, WorkerSpec};
use crate::fleet::{Role, Worker};
use crate::net::{Client, Failure, Target, readable};
use crate::pd::Engine;

/// The longest response that is read, in bytes. `/server_info` has 60 KB for each data parallel rank.
const RESPONSE_LIMIT: usize = 16 << 20;

/// The request that is aborted to learn whether the key for administration is accepted. No worker has one with this id:
/// SGLang answers 200 and does nothing. Source: SGLang 0.5.23 `managers/tokenizer_manager.py` (`abort_request`).
const NO_REQUEST: &str = r#"{"rid":"mini-lb-doctor-no-request"}"#;

/// Asks workers.
pub(super) struct Asker {
    pub(super) client: Client,
    /// Of each step.
    pub(super) patience: Duration,
    /// Of opening a connection.
    pub(super) connect_timeout: Duration,
    /// The path of health checks; `None` where they are switched off.
    pub(super) health_path: Option<String>,
    /// The engine of the configuration.
    pub(super) engine: Engine,
    pub(super) connector: KvConnector,
}

/// A worker of the configuration.
#[derive(Clone)]
pub(super) struct Subject {
    pub(super) worker: Arc<Worker>,
    pub(super) spec: WorkerSpec,
}

/// The result of the questions to one worker.
pub(super) struct Visit {
    pub(super) subject: Subject,
    pub(super) checks: Vec<Check>,
    pub(super) facts: Facts,
    /// Whether a request through it can succeed, as far as this worker alone is concerned.
    pub(super) is_usable: bool,
}

/// A response, and the time until it was complete.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
    elapsed: Duration,
}

/// Why there is no response.
pub(super) enum Trouble {
    /// The deadline has passed.
    Late,
    Failed(Failure),
}

impl Answer {
    /// The JSON of a response with a status of success.
    pub(super) fn json(&self) -> Option<Value> {
        let body = self.status.is_success().then_some(&self.body)?;
        serde_json::from_slice(body).ok()
    }

    pub(super) fn refuses_key(&self) -> bool {
        matches!(
            self.status,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
        )
    }
}

impl Asker {
    /// Asks one worker everything.
    pub(super) async fn visit(&self, subject: Subject) -> Visit {
        let worker = subject.worker.clone();
        let mut visit = Visit {
            subject,
            checks: Vec::new(),
            facts: Facts::default(),
            is_usable: false,
        };
        match self.connect(&worker).await {
            Ok(address) => self.question(&mut visit, address).await,
            Err(check) => visit.checks.push(check),
        }
        visit
    }

    /// Asks a worker that accepts connections.
    async fn question(&self, visit: &mut Visit, address: SocketAddr) {
        let worker = visit.subject.worker.clone();
        let (model, server, list, health) = tokio::join!(
            self.get_either(&worker, "/model_info", "/get_model_info"),
            self.get_either(&worker, "/server_info", "/get_server_info"),
            self.get(&worker, "/v1/models"),
            self.health(&worker)
        );
        let answered = match (&model, &server) {
            (Ok(answer), _) | (_, Ok(answer)) => answer,
            (Err(trouble), _) => {
                let check = self.unreachable(&worker, address, trouble);
                return visit.checks.push(check);
            }
        };
        let milliseconds = answered.elapsed.as_millis();
        let message = format!("{address} answers in {milliseconds} ms");
        visit.checks.push(Check::ok("reachable", message));
        if self.engine == Engine::Vllm {
            visit.checks.extend(health);
            return engine::question_vllm(self, visit, answered).await;
        }
        visit.checks.push(key(&visit.subject, answered));
        visit.checks.extend(health);
        if answered.refuses_key() {
            return;
        }
        let [model, list] = [model, list].map(|answer| answer.ok()?.json());
        let told = server.as_ref().ok().and_then(Answer::json);
        visit.facts = Facts::read(told.as_ref(), model.as_ref(), list.as_ref());
        // `/v1/models` alone is not enough: other servers have it as well.
        if told.is_none() && model.is_none() {
            visit.facts = Facts::default();
            if let Some(check) = engine::mistaken_for_sglang(self, &worker).await {
                return visit.checks.push(check);
            }
            let check = Check::fail(
                "server_info",
                "the server answers, but has neither /server_info nor /model_info",
                "check host and port: is it an SGLang worker?",
            );
            return visit.checks.push(check);
        }
        if told.is_none() {
            visit.checks.push(self.silent(&server));
        }
        visit.checks.extend(self.admin_key(visit).await);
        let (role, fits) = role(worker.role(), visit.facts.mode.as_deref());
        visit.checks.push(role);
        visit.is_usable = fits;
    }

    /// Looks up the worker's name and opens a connection. The address that was reached.
    pub(super) async fn connect(&self, worker: &Worker) -> Result<SocketAddr, Check> {
        let origin = worker.origin();
        let host = (origin.host.as_str(), origin.port);
        let mut addresses: Vec<SocketAddr> = match timeout(self.patience, lookup_host(host)).await {
            Ok(Ok(addresses)) => addresses.collect(),
            Ok(Err(error)) => return Err(no_name(&origin.host, &error.to_string())),
            Err(_) => return Err(no_name(&origin.host, "the resolver does not answer")),
        };
        // As the balancer dials them: SGLang listens on IPv4 by default.
        addresses.sort_by_key(SocketAddr::is_ipv6);
        worker.set_addresses(addresses.clone());
        let connected = TcpStream::connect(&addresses[..]);
        match timeout(self.connect_timeout, connected).await {
            Ok(Ok(stream)) => stream
                .peer_addr()
                .map_err(|error| no_connection(&addresses, &error)),
            Ok(Err(error)) => Err(no_connection(&addresses, &error)),
            Err(_) => Err(Check::fail(
                "reachable",
                format!(
                    "{} does not accept a connection within {} s",
                    written(&addresses),
                    self.connect_timeout.as_secs_f64()
                ),
                "check the address, and a firewall on the way",
            )),
        }
    }

    /// Why a worker that accepts connections gives no response.
    fn unreachable(&self, worker: &Worker, address: SocketAddr, trouble: &Trouble) -> Check {
        let is_tls = worker.server_name().is_some();
        let (message, advice) = match trouble {
            Trouble::Late => (
                format!(
                    "{address} accepts connections and does not answer within {} s",
                    self.patience.as_secs_f64()
                ),
                "the worker is starting, paused or stuck: see its log, or give it more with --timeout",
            ),
            Trouble::Failed(Failure::Unreachable(why)) if is_tls => (
                format!("the TLS handshake with {address} fails ({why})"),
                "the certificate must name the host of the URL and be signed by one of ca_cert_paths; a worker without \
                 --ssl-certfile has an http:// URL",
            ),
            Trouble::Failed(Failure::ConnectTimeout) if is_tls => (
                format!("the TLS handshake with {address} does not end in time"),
                "check that the worker speaks TLS at this port",
            ),
            Trouble::Failed(failure @ (Failure::NotHttp(_) | Failure::Lost(_))) => (
                format!("{address} accepts connections, but {failure}"),
                "check the port, and whether the URL should begin with https://",
            ),
            Trouble::Failed(failure) => (
                format!("{address} {failure}"),
                "check the address and the log of the worker",
            ),
        };
        Check::fail("reachable", message, advice)
    }

    /// The check of a worker that does not report its settings, though it answers.
    fn silent(&self, server: &Result<Answer, Trouble>) -> Check {
        let why = match server {
            Ok(answer) => format!("answers {}", answer.status.as_u16()),
            Err(Trouble::Late) => {
                format!("does not answer within {} s", self.patience.as_secs_f64())
            }
            Err(Trouble::Failed(failure)) => failure.to_string(),
        };
        let message = format!("/server_info {why}, so most settings are not compared");
        Check::warn(
            "server_info",
            message,
            "a paused or busy worker does not answer: try again, or see its log",
        )
    }

    async fn health(&self, worker: &Worker) -> Option<Check> {
        let path = self.health_path.as_deref()?;
        Some(match self.get(worker, path).await {
            Ok(answer) if answer.status.is_success() => Check::ok(
                "health",
                format!("{path} answers in {} ms", answer.elapsed.as_millis()),
            ),
            Ok(answer) => Check::warn(
                "health",
                format!("{path} answers {}", answer.status.as_u16()),
                "503 is a worker that is starting, ending or stuck: see its log",
            ),
            Err(Trouble::Late) => Check::warn(
                "health",
                format!(
                    "{path} does not answer within {} s",
                    self.patience.as_secs_f64()
                ),
                "the worker is busy, paused or stuck: see its log",
            ),
            Err(Trouble::Failed(failure)) => Check::warn(
                "health",
                format!("{path}: the worker {failure}"),
                "see the log of the worker",
            ),
        })
    }

    /// Whether the key for administration is accepted, where the worker or the configuration has one.
    async fn admin_key(&self, visit: &Visit) -> Option<Check> {
        let is_configured = visit.subject.spec.admin_api_key.is_some();
        if !visit.facts.has_admin_key && !is_configured {
            return None;
        }
        let worker = &visit.subject.worker;
        let key = worker.admin_authorization();
        let body = Bytes::from_static(NO_REQUEST.as_bytes());
        let answer = self
            .exchange(worker, Method::POST, "/abort_request", body, key)
            .await
            .ok()?;
        Some(match (answer.refuses_key(), is_configured) {
            (false, true) => Check::ok("admin_key", "the worker accepts it"),
            (false, false) => Check::ok("admin_key", "the worker takes its API key instead"),
            (true, true) => Check::fail(
                "admin_key",
                format!(
                    "the worker refuses the configured one ({})",
                    answer.status.as_u16()
                ),
                "set worker_admin_api_key_file, or the worker's admin_api_key_file, to the value of its --admin-api-key",
            ),
            (true, false) => Check::warn(
                "admin_key",
                "the worker needs one for its administration, and none is configured",
                "set worker_admin_api_key_file, or aborts of cancelled requests are refused",
            ),
        })
    }

    /// The response at a path, or else at the one that older versions have.
    async fn get_either(
        &self,
        worker: &Worker,
        path: &str,
        older: &str,
    ) -> Result<Answer, Trouble> {
        match self.get(worker, path).await {
            Ok(answer) if answer.status == StatusCode::NOT_FOUND => self.get(worker, older).await,
            answer => answer,
        }
    }

    pub(super) async fn get(&self, worker: &Worker, path: &str) -> Result<Answer, Trouble> {
        let key = worker.authorization();
        self.exchange(worker, Method::GET, path, Bytes::new(), key)
            .await
    }

    pub(super) async fn exchange(
        &self,
        worker: &Worker,
        method: Method,
        path: &str,
        body: Bytes,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, Trouble> {
        let to = Target {
            addresses: worker.addresses(),
            server_name: worker.server_name(),
            host: worker.host(),
            authorization,
        };
        self.fetch(to, method, path, body).await
    }

    /// The response of a server at one of these addresses, without TLS and without a key.
    pub(super) async fn get_plain(
        &self,
        addresses: &Addresses,
        host: &HeaderValue,
        path: &str,
    ) -> Result<Answer, Trouble> {
        let to = Target {
            addresses,
            server_name: None,
            host,
            authorization: None,
        };
        self.fetch(to, Method::GET, path, Bytes::new()).await
    }

    async fn fetch(
        &self,
        to: Target<'_>,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Answer, Trouble> {
        let begun = Instant::now();
        let unusable = |_| Trouble::Failed(Failure::NoSocket("the path cannot be sent".to_owned()));
        let mut head =
            RequestHeader::build_no_case(method, path.as_bytes(), Some(1)).map_err(unusable)?;
        if !body.is_empty() {
            let json = HeaderValue::from_static("application/json");
            head.insert_header(CONTENT_TYPE, json).map_err(unusable)?;
        }
        let fetched = self.client.fetch(to, &head, &body, RESPONSE_LIMIT);
        let response = match timeout(self.patience, fetched).await {
            Err(_) => return Err(Trouble::Late),
            Ok(response) => response.map_err(Trouble::Failed)?,
        };
        let body = readable(&response, RESPONSE_LIMIT).map_err(Trouble::Failed)?;
        Ok(Answer {
            status: response.status,
            body,
            elapsed: begun.elapsed(),
        })
    }
}

fn no_name(host: &str, why: &str) -> Check {
    Check::fail(
        "reachable",
        format!("the name {host} is not found ({why})"),
        "check its spelling and the resolver of this machine",
    )
}

fn no_connection(addresses: &[SocketAddr], error: &io::Error) -> Check {
    let address = written(addresses);
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Check::fail(
            "reachable",
            format!("{address} refuses connections, nothing listens there"),
            "start the worker, or check host and port; SGLang is reached from this machine only unless it has --host 0.0.0.0",
        ),
        _ => Check::fail(
            "reachable",
            format!("{address} cannot be reached ({error})"),
            "check the address, and the route to it",
        ),
    }
}

fn written(addresses: &[SocketAddr]) -> String {
    let all: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    all.join(", ")
}

/// Whether the worker takes the configured key, or needs none.
pub(super) fn key(subject: &Subject, answer: &Answer) -> Check {
    let is_configured = subject.spec.api_key.is_some();
    let status = answer.status.as_u16();
    match (answer.refuses_key(), is_configured) {
        (false, true) => Check::ok("key", "the worker accepts the configured one"),
        (false, false) => Check::ok("key", "the worker needs none"),
        (true, true) => Check::fail(
            "key",
            format!("the worker refuses the configured one ({status})"),
            "set worker_api_key_file, or the worker's api_key_file, to the value of its --api-key",
        ),
        (true, false) => Check::fail(
            "key",
            format!("the worker needs one ({status}), and none is configured"),
            "set worker_api_key_file or the worker's api_key_file; where clients send the worker's key, give it to this \
             command with --api-key",
        ),
    }
}

/// Whether the worker stands in the list of its role. The second value is false where it does not.
fn role(listed: Role, told: Option<&str>) -> (Check, bool) {
    let name = listed.name();
    match told {
        None => (Check::skip("role", "not reported by the worker"), true),
        Some(told) if told == name => (Check::ok("role", name), true),
        Some(told @ ("prefill" | "decode")) => {
            let message = format!("it is a {told} worker, and is listed with --{name}");
            let advice =
                format!("list it with --{told}, or start it with --disaggregation-mode {name}");
            (Check::fail("role", message, advice), false)
        }
        Some(_) => {
            let advice = format!("start it with --disaggregation-mode {name}");
            let message = "it is an ordinary server, without disaggregation";
            (Check::fail("role", message, advice), false)
        }
    }
}
