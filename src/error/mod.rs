//! Errors of the proxy itself: what went wrong as data, the table of their codes, and the response that a client gets
//! ([`response`]).
//!
//! [`code`] is the only table from an error to its code, status, side and retry. The response of a worker passes
//! unchanged ([`Fault::Rejected`]) and does not come through that table.

mod code;
mod response;
mod timeout;

use std::fmt;
use std::time::Duration;

use http::HeaderName;

use crate::client::{BadHead, BodyError};
use crate::fleet::{Closed, NoWorker, Role, suspects};
use crate::legs::{LegError, Rejection};
use crate::net::Failure;
use crate::pd::{Engine, GatherError, Invalid, MergeError};

pub use code::{Code, Retry, Row, Side};
pub(crate) use response::{REJECTED, error_response, rejected, rejection_message};
pub(crate) use timeout::{Awaited, Timeout};

/// How a request ended where decode reported an error in a stream that had begun.
pub(crate) const STREAM_ERROR: &str = "decode_error";

/// The error that a client gets instead of decode's response.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// A worker's own error response.
    Rejected(Role, Box<Rejection>),
    /// An error of the proxy.
    Own(ProxyError),
}

/// An error of the proxy, with the data that its message needs.
#[derive(Debug, Clone)]
pub(crate) enum ProxyError {
    /// The head is ambiguous or too large.
    BadHead(BadHead),
    /// No key that is accepted; true where only the key for administration is.
    Unauthorized(bool),
    /// The same for a page that a browser shows, which asks its user for one.
    LoginNeeded(bool),
    /// The path is served on the admin listener only.
    AdminsOnly,
    /// The listener serves the metrics only.
    MetricsOnly,
    /// A page of this origin may not send requests.
    OriginNotAllowed,
    Overloaded(Exhausted),
    /// The body is longer than this many bytes.
    BodyTooLarge(usize),
    /// The body is compressed.
    Encoded,
    BadFraming(String),
    BodyTimeout,
    Invalid(Invalid),
    /// The request asks for this many samples of this many prompts, which together are more than the limit.
    TooManySamples(u64, usize, usize),
    /// The request asks for this many samples, of which each is a request, and may have as many requests.
    MoreSamplesThanRequests(usize, usize),
    /// The responses for the samples do not become one.
    Gather(GatherError),
    /// The request may not name a worker by this header.
    TargetNotAllowed(HeaderName),
    /// The request names a worker of this role, by this URL, that is none.
    UnknownTarget(Role, String),
    /// The worker that had the response with this id, which the request continues, is gone.
    ResponseGone(String),
    /// The batch has more than this many prompts.
    BatchTooLarge(usize),
    NoWorker(NoWorker),
    /// So many workers that are listed with this role have the other one, and there is no other worker.
    OtherRole(Role, usize),
    /// So many workers of this role are of another engine than this one, and there is no other.
    OtherEngine(Role, usize, Engine),
    QueueFull,
    /// New requests wait for this reason, which may be over by now, and this one waits no longer.
    Paused(Option<Closed>, PausedWait),
    /// Workers were lost with this request.
    Suspect(Suspected),
    /// The worker of this role, at this URL, gave no response.
    Leg(Role, String, Failure),
    /// The worker of this role, at this URL, refuses the proxy's key with this status.
    WorkerKey(Role, String, u16),
    /// The prefill worker at this URL has responded without the parameters of the transfer.
    NoParams(String),
    /// The bootstrap server of the prefill worker at this URL names no engine for this request.
    NoEngine {
        url: String,
        /// `HOST:PORT`.
        server: String,
    },
    Merge(MergeError),
    /// The workers took too long.
    Timeout(Timeout),
    /// The grace period of the shutdown is over.
    ShuttingDown,
    /// A defect of the proxy.
    Internal(String),
}

/// A resource that is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exhausted {
    Connections,
    Requests,
    /// Pages for observers.
    Pages,
    /// Memory for request bodies.
    Memory,
}

/// Why a request does not wait any longer while generation is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PausedWait {
    /// As many requests wait as may.
    Full,
    /// It has waited this long.
    Late(Duration),
}

/// Why a request that a worker was lost with is not sent to another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Suspected {
    /// A second worker was lost with it, or one worker too often.
    Lost(suspects::Refusal),
    /// It waited this long for the trial of an equal one.
    Waited(Duration),
    /// It waited this long for a worker of this role that is well and was not lost with it.
    NoOther(Role, Duration),
}

impl From<BodyError> for ProxyError {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLarge(limit) => ProxyError::BodyTooLarge(limit),
            BodyError::Timeout => ProxyError::BodyTimeout,
            BodyError::Framing(why) => ProxyError::BadFraming(why),
            BodyError::NoMemory => ProxyError::Overloaded(Exhausted::Memory),
        }
    }
}

impl From<LegError> for Fault {
    fn from(error: LegError) -> Self {
        Fault::Own(match error {
            LegError::Rejected(role, rejection) => return Fault::Rejected(role, rejection),
            LegError::Failed(role, url, failure) => ProxyError::Leg(role, url, failure),
            LegError::Merge(error) => ProxyError::Merge(error),
            LegError::Internal(why) => ProxyError::Internal(why.to_owned()),
        })
    }
}

impl ProxyError {
    /// The row of the table that this error belongs to.
    pub(crate) fn code(&self) -> Code {
        match self {
            ProxyError::BadHead(why) if why.is_too_large() => Code::RequestHeadTooLarge,
            ProxyError::BadHead(_) => Code::BadRequestHead,
            ProxyError::Unauthorized(_) | ProxyError::LoginNeeded(_) => Code::Unauthorized,
            ProxyError::AdminsOnly => Code::AdminListenerOnly,
            ProxyError::MetricsOnly => Code::NotFound,
            ProxyError::OriginNotAllowed => Code::OriginNotAllowed,
            ProxyError::TargetNotAllowed(_) | ProxyError::UnknownTarget(..) => Code::UnknownTarget,
            ProxyError::Overloaded(_) => Code::Overloaded,
            ProxyError::BodyTooLarge(_) => Code::BodyTooLarge,
            ProxyError::Encoded => Code::UnsupportedEncoding,
            ProxyError::BadFraming(_) => Code::BadFraming,
            ProxyError::BodyTimeout => Code::BodyTimeout,
            ProxyError::Invalid(Invalid::Option(_)) => Code::InvalidOption,
            ProxyError::Invalid(Invalid::Samples(_)) => Code::InvalidSamples,
            ProxyError::Invalid(Invalid::BeamSearch) => Code::BeamSearchNotSupported,
            ProxyError::Invalid(_) => Code::InvalidJson,
            ProxyError::TooManySamples(..) | ProxyError::MoreSamplesThanRequests(..) => {
                Code::TooManySamples
            }
            ProxyError::ResponseGone(_) => Code::UnknownResponse,
            ProxyError::BatchTooLarge(_) => Code::BatchTooLarge,
            ProxyError::NoWorker(NoWorker(Role::Prefill))
            | ProxyError::OtherRole(Role::Prefill, _)
            | ProxyError::OtherEngine(Role::Prefill, ..) => Code::NoPrefill,
            ProxyError::NoWorker(NoWorker(Role::Decode))
            | ProxyError::OtherRole(Role::Decode, _)
            | ProxyError::OtherEngine(Role::Decode, ..) => Code::NoDecode,
            ProxyError::QueueFull => Code::QueueFull,
            ProxyError::Paused(..) => Code::Paused,
            ProxyError::Suspect(Suspected::NoOther(Role::Prefill, _)) => Code::NoPrefill,
            ProxyError::Suspect(Suspected::NoOther(Role::Decode, _)) => Code::NoDecode,
            ProxyError::Suspect(_) => Code::SuspectRequest,
            ProxyError::Leg(role, _, failure) => leg_code(*role, failure),
            ProxyError::WorkerKey(..) => Code::WorkerAuth,
            ProxyError::NoParams(_) | ProxyError::NoEngine { .. } => Code::PrefillBadAnswer,
            ProxyError::Merge(_) | ProxyError::Gather(_) => Code::MergeFailed,
            ProxyError::Timeout(Timeout::Queue(_)) => Code::QueueTimeout,
            ProxyError::Timeout(Timeout::FirstToken(..)) => Code::FirstTokenTimeout,
            ProxyError::Timeout(Timeout::StreamIdle(_)) => Code::StreamIdleTimeout,
            ProxyError::Timeout(Timeout::Response(..) | Timeout::Stream(_)) => Code::RequestTimeout,
            ProxyError::ShuttingDown => Code::ShuttingDown,
            ProxyError::Internal(_) => Code::Internal,
        }
    }

    /// Whether the connection must be closed, because the begin of the client's next request is uncertain.
    pub(crate) fn ends_connection(&self) -> bool {
        matches!(
            self,
            ProxyError::BadHead(_)
                | ProxyError::BadFraming(_)
                | ProxyError::BodyTooLarge(_)
                | ProxyError::BodyTimeout
        )
    }
}

/// The code of a leg without a response.
fn leg_code(role: Role, failure: &Failure) -> Code {
    let (prefill, decode) = match failure {
        Failure::NoSocket(_) => (Code::Overloaded, Code::Overloaded),
        Failure::Unreachable(_) => (Code::PrefillUnreachable, Code::DecodeUnreachable),
        Failure::ConnectTimeout => (Code::PrefillConnectTimeout, Code::DecodeConnectTimeout),
        Failure::Lost(_) | Failure::Stale(_) => (Code::PrefillLost, Code::DecodeLost),
        Failure::Encoded(_) | Failure::NotHttp(_) | Failure::TooLong(_) | Failure::Unusable(_) => {
            (Code::PrefillBadAnswer, Code::DecodeBadAnswer)
        }
    };
    match role {
        Role::Prefill => prefill,
        Role::Decode => decode,
    }
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Exhausted::Connections => "too many connections at once (max_connections)",
            Exhausted::Requests => "too many requests at once (max_inflight_requests)",
            Exhausted::Pages => "too many pages of metrics or of the dashboard at once",
            Exhausted::Memory => "too many request bodies at once (max_buffered_body_bytes)",
        })
    }
}

impl fmt::Display for PausedWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PausedWait::Full => f.write_str("as many requests wait as may (queue_size)"),
            PausedWait::Late(limit) => write!(
                f,
                "this one has waited for {} s (queue_timeout_secs)",
                limit.as_secs_f64()
            ),
        }
    }
}

impl fmt::Display for Suspected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Suspected::Lost(refusal) => {
                match (&refusal.lost, refusal.times) {
                    (Some(worker), Some(times)) => write!(
                        f,
                        "the {} worker {} was lost {times} times with this request",
                        worker.role, worker.url
                    )?,
                    (Some(worker), None) => write!(
                        f,
                        "two workers or more were lost with this request, the last one was the {} worker {}",
                        worker.role, worker.url
                    )?,
                    (None, _) => f.write_str("workers were lost with this request")?,
                }
                write!(
                    f,
                    "; the request is not sent to another one for {} s (suspect_window_secs): change it, or wait. A \
                     restart of the load balancer forgets it",
                    refusal.left_secs()
                )
            }
            Suspected::NoOther(role, time) => write!(
                f,
                "a worker was lost with this request, and no other {role} worker was well within {:.0} s \
                 (queue_timeout_secs); try again",
                time.as_secs_f64()
            ),
            Suspected::Waited(time) => write!(
                f,
                "a worker was lost with a request with this body, which is tried again: that was not over within {:.0} s \
                 (queue_timeout_secs), so this one did not get its turn; try again",
                time.as_secs_f64()
            ),
        }
    }
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProxyError::BadHead(why) => why.fmt(f),
            // The same words for a missing and a wrong key, so that trying keys reveals nothing.
            ProxyError::Unauthorized(false) => f.write_str("a valid API key is needed"),
            ProxyError::Unauthorized(true) => {
                f.write_str("the key for administration is needed (admin_api_key)")
            }
            ProxyError::LoginNeeded(is_admins) => {
                let which = match is_admins {
                    true => "the key for administration is needed (admin_api_key)",
                    false => "a valid API key is needed",
                };
                write!(
                    f,
                    "{which}, as a bearer token or as the password of HTTP Basic"
                )
            }
            ProxyError::AdminsOnly => {
                f.write_str("this path is served on the admin listener only (admin_listen)")
            }
            ProxyError::MetricsOnly => {
                f.write_str("only /metrics is served here (prometheus_port)")
            }
            ProxyError::OriginNotAllowed => {
                f.write_str("pages of this origin may not send requests (cors_allowed_origins)")
            }
            ProxyError::Overloaded(exhausted) => exhausted.fmt(f),
            ProxyError::BodyTooLarge(limit) => write!(
                f,
                "the request body is longer than {limit} bytes (max_payload_size)"
            ),
            ProxyError::Encoded => f.write_str(
                "a request body with a Content-Encoding is not accepted; send it uncompressed",
            ),
            ProxyError::BadFraming(why) => write!(f, "the request body could not be read: {why}"),
            ProxyError::BodyTimeout => {
                f.write_str("the request body did not arrive in time (body_timeout_secs)")
            }
            ProxyError::Invalid(why) => write!(f, "the request body is not accepted: {why}"),
            ProxyError::TargetNotAllowed(name) => write!(
                f,
                "a request may not name its worker by {name} (allow_target_headers); leave the header out"
            ),
            ProxyError::UnknownTarget(role, url) => write!(
                f,
                "no {role} worker has the URL {url:?}; name one as it is configured"
            ),
            ProxyError::TooManySamples(n, prompts, limit) => write!(
                f,
                "n = {n} with {prompts} prompts is more than {limit} samples (max_samples); send several requests"
            ),
            ProxyError::MoreSamplesThanRequests(n, limit) => write!(
                f,
                "n = {n} is more than {limit} requests at once (max_inflight_requests); send several requests"
            ),
            ProxyError::Gather(why) => write!(f, "the samples could not be gathered: {why}"),
            ProxyError::ResponseGone(id) => write!(
                f,
                "the worker that had the response {id:?} is gone; send the whole conversation instead of previous_response_id"
            ),
            ProxyError::BatchTooLarge(limit) => write!(
                f,
                "the batch has more than {limit} prompts; send several requests"
            ),
            ProxyError::NoWorker(why) => why.fmt(f),
            ProxyError::OtherRole(role, workers) => write!(
                f,
                "no {role} worker is available; workers that are listed as {role} and say that they are {}: {workers} (`mini-lb doctor` names \
                 them)",
                role.other()
            ),
            ProxyError::OtherEngine(role, workers, own) => write!(
                f,
                "no {role} worker of {} is available, and {workers} that are listed are of another engine: see `engine`",
                own.name()
            ),
            ProxyError::Suspect(why) => why.fmt(f),
            ProxyError::QueueFull => f.write_str(
                "all workers are busy (max_concurrent_requests) and the queue is full (queue_size)",
            ),
            ProxyError::Paused(why, wait) => {
                let why = why.map_or("generation was paused", Closed::name);
                write!(f, "{why}, and {wait}; try again")
            }
            ProxyError::Leg(role, url, failure) => write!(f, "the {role} worker {url} {failure}"),
            ProxyError::WorkerKey(role, url, status) => write!(
                f,
                "the {role} worker {url} refuses the load balancer ({status}): see its api_key and \
                 worker_api_key_file"
            ),
            ProxyError::NoParams(url) => write!(
                f,
                "the prefill worker {url} has responded without kv_transfer_params: it must be a vLLM server with a \
                 --kv-transfer-config for NixlConnector, or this balancer needs kv_connector: mooncake"
            ),
            ProxyError::NoEngine { url, server } => write!(
                f,
                "the bootstrap server {server} of the prefill worker {url} names no engine for this request: with \
                 MooncakeConnector its port stands behind the worker's URL, and a request to several data parallel ranks names \
                 its own"
            ),
            ProxyError::Merge(why) => write!(
                f,
                "prefill's logprobs could not be merged into decode's response: {why}"
            ),
            ProxyError::Timeout(timeout) => timeout.fmt(f),
            ProxyError::ShuttingDown => {
                f.write_str("the load balancer is shutting down (shutdown_grace_period_secs)")
            }
            ProxyError::Internal(why) => write!(f, "internal error: {why}"),
        }
    }
}
