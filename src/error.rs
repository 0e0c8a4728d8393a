//! The only table from what went wrong to status, code and message.
//!
//! An answer that a worker gave passes unchanged ([`Fault::Rejected`]); everything else is the proxy's own
//! ([`Fault::Own`]) and gets the header `x-mini-lb-error`.

use std::fmt;
use std::time::Duration;

use http::{HeaderValue, StatusCode, header};
use pingora_core::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use crate::client::{BadHead, BodyError};
use crate::endpoint::{ERROR_CODE, REQUEST_ID};
use crate::fleet::{NoWorker, Role};
use crate::legs::{LegError, Rejection};
use crate::net::Failure;
use crate::pd::{ErrorShape, Invalid, MergeError, Route};

/// How a request ended whose decode worker answered with an error.
pub(crate) const DECODE_REJECTED: &str = "decode_rejected";

/// What the client gets instead of decode's answer.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// A worker's own error answer.
    Rejected(Role, Rejection),
    /// An error that the proxy made.
    Own(ProxyError),
}

/// An error that the proxy itself makes. Data, not text: the table below has the words.
#[derive(Debug, Clone)]
pub(crate) enum ProxyError {
    /// The head has more than one meaning, or is too large.
    BadHead(BadHead),
    /// No key, or a wrong one.
    Unauthorized,
    /// Workers are administered through the other listener.
    AdminsOnly,
    /// There is no room for another request.
    Overloaded(Exhausted),
    /// The body is longer than the limit in bytes.
    BodyTooLarge(usize),
    /// The body is compressed.
    Encoded,
    /// The framing of the body is broken.
    BadFraming(String),
    /// The client took too long with its body.
    BodyTimeout,
    /// The body is not a JSON object.
    Invalid(Invalid),
    /// More than one sample per prompt.
    Samples(u64),
    /// More prompts in a batch than are taken.
    BatchTooLarge(usize),
    /// No pair to send it to.
    NoWorker(NoWorker),
    /// Every worker is full, and so is the queue.
    QueueFull,
    /// No worker had room for this long.
    QueueTimeout(Duration),
    /// A leg had no answer.
    Leg(Role, String, Failure),
    /// A worker refuses the key that this proxy sends it, or asks for one and gets none: role, URL, status.
    WorkerKey(Role, String, u16),
    /// Prefill's answer and decode's do not fit together.
    Merge(MergeError),
    /// Nothing of a streamed answer came for this long.
    FirstTokenLate(Duration),
    /// Nothing came between two pieces of a streamed answer for this long.
    Stalled(Duration),
    /// The whole answer took too long.
    Overdue,
    /// The process leaves, and its grace period is over.
    ShuttingDown,
    /// A defect of the proxy.
    Internal(String),
}

/// What there is no more of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exhausted {
    /// Connections at once.
    Connections,
    /// Requests at once.
    Requests,
    /// Memory for bodies.
    Memory,
}

impl From<BodyError> for ProxyError {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLarge(limit) => ProxyError::BodyTooLarge(limit),
            BodyError::Late => ProxyError::BodyTimeout,
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
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            ProxyError::BadHead(why) if why.is_too_large() => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            ProxyError::Unauthorized => StatusCode::UNAUTHORIZED,
            ProxyError::AdminsOnly => StatusCode::FORBIDDEN,
            ProxyError::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            ProxyError::Encoded => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ProxyError::BadHead(_)
            | ProxyError::BadFraming(_)
            | ProxyError::Invalid(_)
            | ProxyError::Samples(_)
            | ProxyError::BatchTooLarge(_) => StatusCode::BAD_REQUEST,
            ProxyError::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            // Who sends more than there is room for may send less; who has waited in vain did nothing wrong, so
            // not 408, which smg answers (docs/concepts/reliability/rate-limiting.md).
            ProxyError::QueueFull => StatusCode::TOO_MANY_REQUESTS,
            ProxyError::NoWorker(_)
            | ProxyError::Overloaded(_)
            | ProxyError::QueueTimeout(_)
            | ProxyError::Leg(_, _, Failure::NoSocket(_))
            | ProxyError::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            ProxyError::FirstTokenLate(_)
            | ProxyError::Stalled(_)
            | ProxyError::Overdue
            | ProxyError::Leg(_, _, Failure::ConnectTimeout) => StatusCode::GATEWAY_TIMEOUT,
            ProxyError::Leg(..) | ProxyError::WorkerKey(..) | ProxyError::Merge(_) => {
                StatusCode::BAD_GATEWAY
            }
            ProxyError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Whether nothing more is read from this client: where its next request begins is uncertain.
    pub(crate) fn ends_connection(&self) -> bool {
        matches!(
            self,
            ProxyError::BadHead(_)
                | ProxyError::BadFraming(_)
                | ProxyError::BodyTooLarge(_)
                | ProxyError::BodyTimeout
        )
    }

    /// Stable, of few values: for headers, labels and log fields.
    pub(crate) fn code(&self) -> &'static str {
        use Failure::{ConnectTimeout, Lost, NoSocket, NotHttp, TooLong, Unreachable, Unusable};
        use Role::{Decode, Prefill};
        match self {
            ProxyError::BadHead(why) if why.is_too_large() => "request_head_too_large",
            ProxyError::BadHead(_) => "bad_request_head",
            ProxyError::Unauthorized => "unauthorized",
            ProxyError::AdminsOnly => "admin_listener_only",
            ProxyError::Overloaded(_) | ProxyError::Leg(_, _, NoSocket(_)) => "overloaded",
            ProxyError::BodyTooLarge(_) => "body_too_large",
            ProxyError::Encoded => "unsupported_encoding",
            ProxyError::BadFraming(_) => "bad_framing",
            ProxyError::BodyTimeout => "body_timeout",
            ProxyError::Invalid(Invalid::LogprobStart) => "invalid_logprob_start_len",
            ProxyError::Invalid(_) => "invalid_json",
            ProxyError::Samples(_) => "n_not_supported",
            ProxyError::BatchTooLarge(_) => "batch_too_large",
            ProxyError::NoWorker(NoWorker(Prefill)) => "no_prefill",
            ProxyError::NoWorker(NoWorker(Decode)) => "no_decode",
            ProxyError::QueueFull => "queue_full",
            ProxyError::QueueTimeout(_) => "queue_timeout",
            ProxyError::Leg(Prefill, _, Unreachable(_)) => "prefill_unreachable",
            ProxyError::Leg(Prefill, _, ConnectTimeout) => "prefill_connect_timeout",
            ProxyError::Leg(Prefill, _, Lost(_)) => "prefill_lost",
            ProxyError::Leg(Prefill, _, NotHttp(_) | TooLong(_) | Unusable(_)) => {
                "prefill_bad_answer"
            }
            ProxyError::Leg(Decode, _, Unreachable(_)) => "decode_unreachable",
            ProxyError::Leg(Decode, _, ConnectTimeout) => "decode_connect_timeout",
            ProxyError::Leg(Decode, _, Lost(_)) => "decode_lost",
            ProxyError::Leg(Decode, _, NotHttp(_) | TooLong(_) | Unusable(_)) => {
                "decode_bad_answer"
            }
            ProxyError::WorkerKey(..) => "worker_auth",
            ProxyError::Merge(_) => "merge_failed",
            ProxyError::FirstTokenLate(_) => "first_token_timeout",
            ProxyError::Stalled(_) => "stream_idle_timeout",
            ProxyError::Overdue => "request_timeout",
            ProxyError::ShuttingDown => "shutting_down",
            ProxyError::Internal(_) => "internal",
        }
    }
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProxyError::BadHead(why) => write!(f, "{why}"),
            // The same words for both, so that nothing is learnt by trying.
            ProxyError::Unauthorized => f.write_str("a valid API key is needed"),
            ProxyError::AdminsOnly => {
                f.write_str("this is served on the listener for administration only (admin_listen)")
            }
            ProxyError::Overloaded(Exhausted::Connections) => {
                f.write_str("too many connections at once (max_connections)")
            }
            ProxyError::Overloaded(Exhausted::Requests) => {
                f.write_str("too many requests at once (max_inflight_requests)")
            }
            ProxyError::Overloaded(Exhausted::Memory) => {
                f.write_str("too many request bodies at once (max_buffered_body_bytes)")
            }
            ProxyError::BodyTooLarge(limit) => {
                write!(
                    f,
                    "the request body is longer than {limit} bytes (max_payload_size)"
                )
            }
            ProxyError::Encoded => {
                f.write_str("a request body with a Content-Encoding is not taken; send it plain")
            }
            ProxyError::BadFraming(why) => write!(f, "the request body could not be read: {why}"),
            ProxyError::BodyTimeout => {
                f.write_str("the request body did not arrive in time (body_timeout_secs)")
            }
            ProxyError::Invalid(why) => write!(f, "the request body is not accepted: {why}"),
            ProxyError::Samples(n) => write!(
                f,
                "n = {n} is not supported with prefill/decode disaggregation: a pair produces one sample per \
                 prompt; send {n} requests with n = 1"
            ),
            ProxyError::BatchTooLarge(limit) => {
                write!(
                    f,
                    "the batch has more than {limit} prompts; send several requests"
                )
            }
            ProxyError::NoWorker(why) => write!(f, "{why}"),
            ProxyError::QueueFull => f.write_str(
                "all workers are busy (max_concurrent_requests) and the queue is full (queue_size)",
            ),
            ProxyError::QueueTimeout(limit) => write!(
                f,
                "all workers were busy (max_concurrent_requests) for {} s (queue_timeout_secs)",
                limit.as_secs_f64()
            ),
            ProxyError::Leg(role, url, failure) => write!(f, "the {role} worker {url} {failure}"),
            ProxyError::WorkerKey(role, url, status) => write!(
                f,
                "the {role} worker {url} refuses the load balancer ({status}): see its api_key and \
                 worker_api_key_file"
            ),
            ProxyError::Merge(why) => {
                write!(
                    f,
                    "prefill's logprobs could not be merged into decode's answer: {why}"
                )
            }
            ProxyError::FirstTokenLate(limit) => write!(
                f,
                "no token came within {} s (first_token_timeout_secs)",
                limit.as_secs_f64()
            ),
            ProxyError::Stalled(limit) => write!(
                f,
                "decode sent nothing for {} s (stream_idle_timeout_secs)",
                limit.as_secs_f64()
            ),
            ProxyError::Overdue => {
                f.write_str("the answer took too long (request_timeout_secs, stream_timeout_secs)")
            }
            ProxyError::ShuttingDown => {
                f.write_str("the load balancer is shutting down (shutdown_grace_period_secs)")
            }
            ProxyError::Internal(why) => write!(f, "internal error: {why}"),
        }
    }
}

impl Fault {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Fault::Rejected(_, rejection) => rejection.status,
            Fault::Own(error) => error.status(),
        }
    }

    /// The word for the log: the stable code, or who rejected.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Fault::Rejected(Role::Prefill, _) => "prefill_rejected",
            Fault::Rejected(Role::Decode, _) => DECODE_REJECTED,
            Fault::Own(error) => error.code(),
        }
    }

    /// Whether the connection must not be used for another request.
    pub(crate) fn ends_connection(&self) -> bool {
        matches!(self, Fault::Own(error) if error.ends_connection())
    }

    /// What is wrong, in a sentence.
    pub(crate) fn message(&self) -> String {
        match self {
            Fault::Rejected(role, rejection) => {
                format!("the {role} worker answered {}", rejection.status)
            }
            Fault::Own(error) => error.to_string(),
        }
    }

    /// Writes the error as a whole answer.
    ///
    /// # Errors
    /// The client is gone.
    pub(crate) async fn write(
        &self,
        session: &mut Session,
        route: Option<Route>,
        request_id: &HeaderValue,
    ) -> Result<()> {
        let json = HeaderValue::from_static("application/json");
        let (content_type, body) = match self {
            Fault::Rejected(_, rejection) => {
                (rejection.content_type.clone(), rejection.body.clone())
            }
            Fault::Own(error) => {
                let shape = ErrorShape::of(route);
                let body = shape.body(error.status().as_u16(), &error.to_string());
                (Some(json), body.into())
            }
        };
        let mut head = ResponseHeader::build(self.status(), Some(5))?;
        if let Some(content_type) = content_type {
            head.insert_header(header::CONTENT_TYPE, content_type)?;
        }
        head.insert_header(header::CONTENT_LENGTH, body.len())?;
        head.insert_header(REQUEST_ID, request_id)?;
        if let Fault::Own(error) = self {
            head.insert_header(ERROR_CODE, error.code())?;
            if matches!(
                error.status(),
                StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
            ) {
                head.insert_header(header::RETRY_AFTER, RETRY_AFTER_SECS)?;
            }
            if error.status() == StatusCode::UNAUTHORIZED {
                head.insert_header(header::WWW_AUTHENTICATE, "Bearer")?;
            }
        }
        session.write_response_header(Box::new(head), false).await?;
        session.write_response_body(Some(body), true).await
    }

    /// The JSON of this error inside a stream that has begun.
    pub(crate) fn event(&self, route: Option<Route>) -> String {
        ErrorShape::of(route).event(self.status().as_u16(), &self.message())
    }
}

/// A worker that comes back needs seconds, not minutes, and a full one has room when its next request ends.
const RETRY_AFTER_SECS: &str = "1";
