//! The table of errors that the proxy itself makes: one row for each code, and nothing about an error that is not in
//! its row. `docs/errors.md` has the same rows.

use http::StatusCode;

/// The stable name of an error, for headers, labels and log fields. Users match on these words: none changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // [`Code::row`] says what each one means
pub enum Code {
    InvalidJson,
    InvalidOption,
    BatchTooLarge,
    InvalidSamples,
    TooManySamples,
    UnknownTarget,
    BadRequestHead,
    RequestHeadTooLarge,
    Unauthorized,
    AdminListenerOnly,
    OriginNotAllowed,
    BadFraming,
    BadTarget,
    BadQuery,
    UnknownRequest,
    UnknownResponse,
    InvalidWorker,
    UnknownWorker,
    WorkerConflict,
    WorkerMismatch,
    WorkerNotReady,
    NotFound,
    MethodNotAllowed,
    UnsupportedEncoding,
    BodyTimeout,
    BodyTooLarge,
    NotServedByPd,
    BeamSearchNotSupported,
    Internal,
    NoPrefill,
    NoDecode,
    NoWorker,
    UnknownEngine,
    ShuttingDown,
    Overloaded,
    QueueFull,
    QueueTimeout,
    Paused,
    SuspectRequest,
    PrefillUnreachable,
    DecodeUnreachable,
    PrefillConnectTimeout,
    DecodeConnectTimeout,
    PrefillLost,
    DecodeLost,
    FirstTokenTimeout,
    StreamIdleTimeout,
    RequestTimeout,
    PrefillBadAnswer,
    DecodeBadAnswer,
    WorkerAuth,
    MergeFailed,
    WorkerUnreachable,
    WorkerTimeout,
    WorkerRefused,
}

/// Everything that is fixed about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The code as it stands in `x-mini-lb-error`, in the body (`error_code`) and in the log.
    pub name: &'static str,
    /// The HTTP status. [`Code::WorkerRefused`] has the worker's instead, where that is an error.
    pub status: u16,
    /// The side whose fault it is.
    pub side: Side,
    /// Whether another try of the client can help.
    pub retry: Retry,
    /// The meaning in a phrase, for the documents.
    pub meaning: &'static str,
}

/// The side whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The client, or its request.
    Client,
    /// The prefill worker.
    Prefill,
    /// The decode worker.
    Decode,
    /// A worker of either role, or both.
    Workers,
    /// The load balancer, or its limits.
    Proxy,
}

/// Whether another try of the client can help, after the balancer's own retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The same request gets the same error: a 5xx has `x-should-retry: false`.
    Useless,
    /// Another try may succeed at once.
    Possible,
    /// Another try may succeed later: the response has `Retry-After`.
    Later,
}

impl Code {
    /// Every code, in the order of the documents.
    pub const ALL: [Self; 55] = [
        Self::InvalidJson,
        Self::InvalidOption,
        Self::BatchTooLarge,
        Self::InvalidSamples,
        Self::TooManySamples,
        Self::UnknownTarget,
        Self::BadRequestHead,
        Self::RequestHeadTooLarge,
        Self::Unauthorized,
        Self::AdminListenerOnly,
        Self::OriginNotAllowed,
        Self::BadFraming,
        Self::BadTarget,
        Self::BadQuery,
        Self::UnknownRequest,
        Self::UnknownResponse,
        Self::InvalidWorker,
        Self::UnknownWorker,
        Self::WorkerConflict,
        Self::WorkerMismatch,
        Self::WorkerNotReady,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::UnsupportedEncoding,
        Self::BodyTimeout,
        Self::BodyTooLarge,
        Self::NotServedByPd,
        Self::BeamSearchNotSupported,
        Self::Internal,
        Self::NoPrefill,
        Self::NoDecode,
        Self::NoWorker,
        Self::UnknownEngine,
        Self::ShuttingDown,
        Self::Overloaded,
        Self::QueueFull,
        Self::QueueTimeout,
        Self::Paused,
        Self::SuspectRequest,
        Self::PrefillUnreachable,
        Self::DecodeUnreachable,
        Self::PrefillConnectTimeout,
        Self::DecodeConnectTimeout,
        Self::PrefillLost,
        Self::DecodeLost,
        Self::FirstTokenTimeout,
        Self::StreamIdleTimeout,
        Self::RequestTimeout,
        Self::PrefillBadAnswer,
        Self::DecodeBadAnswer,
        Self::WorkerAuth,
        Self::MergeFailed,
        Self::WorkerUnreachable,
        Self::WorkerTimeout,
        Self::WorkerRefused,
    ];

    /// The row of this code.
    #[rustfmt::skip] // one line for each row
    pub const fn row(self) -> Row {
        use Retry::{Later, Possible, Useless};
        use Side::{Client, Decode, Prefill, Proxy, Workers};
        match self {
            Self::InvalidJson => row("invalid_json", 400, Client, Useless, "the body is not a JSON object, or is nested too deep"),
            Self::InvalidOption => row("invalid_option", 400, Client, Useless, "an option has a value that no worker may get: out of range, or a list that does not fit the prompts; the message has the field and the bound"),
            Self::BatchTooLarge => row("batch_too_large", 400, Client, Useless, "a batch has more than 65,536 prompts"),
            Self::InvalidSamples => row("invalid_n", 400, Client, Useless, "the options do not fit `n > 1`; the body is an ordinary server's own, and for a streamed `/generate` it is a stream with status 200"),
            Self::TooManySamples => row("too_many_samples", 400, Client, Useless, "the request asks for more samples (`n` times its prompts) than `max_samples`, or for more than `max_inflight_requests` at once"),
            Self::UnknownTarget => row("unknown_target", 400, Client, Useless, "`x-mini-lb-prefill` or `x-mini-lb-decode` names a worker that is not in its list, or `allow_target_headers` is off"),
            Self::BadRequestHead => row("bad_request_head", 400, Client, Useless, "the head has more than one reading (Content-Length beside Transfer-Encoding, two lengths, no Host, bare line feeds and the like), so it is not forwarded"),
            Self::RequestHeadTooLarge => row("request_head_too_large", 431, Client, Useless, "the head has more than 32 KiB or 100 fields"),
            Self::Unauthorized => row("unauthorized", 401, Client, Useless, "the key is missing or wrong"),
            Self::AdminListenerOnly => row("admin_listener_only", 403, Client, Useless, "the path is served on `admin_listen` only"),
            Self::OriginNotAllowed => row("origin_not_allowed", 400, Client, Useless, "a browser asks for leave to send a request from a page whose origin is not in `cors_allowed_origins`"),
            Self::BadFraming => row("bad_framing", 400, Client, Useless, "the body is not framed as HTTP requires"),
            Self::BadTarget => row("bad_target", 400, Client, Useless, "the path or the query cannot be sent to a worker"),
            Self::BadQuery => row("bad_query", 400, Client, Useless, "a parameter of `/debug/requests` or `/dashboard/data` is unknown, or its value has another form; or the query of an administration request names no worker that it can be sent to"),
            Self::UnknownRequest => row("unknown_request", 404, Client, Useless, "`/debug/requests` remembers no request with this id"),
            Self::UnknownResponse => row("unknown_response", 404, Client, Useless, "the worker that has the response is not known, because it was not made by way of this mini-lb, was forgotten for 65,536 newer ones or in a restart, or that worker is gone"),
            Self::InvalidWorker => row("invalid_worker", 400, Client, Useless, "the body or the query of a call on `/workers` or `/pd_role_switch` is wrong; the message says what it takes"),
            Self::UnknownWorker => row("unknown_worker", 404, Client, Useless, "no worker has this id or this URL"),
            Self::WorkerConflict => row("worker_conflict", 409, Client, Useless, "the worker is listed already, is being removed, is being switched, or is the last one of its role"),
            Self::WorkerMismatch => row("worker_mismatch", 422, Workers, Useless, "the worker is not what the call says: it has another role, or does not tell its role"),
            Self::WorkerNotReady => row("worker_not_ready", 504, Workers, Later, "with `wait`: the worker was not well, or had requests, when `wait_seconds` were over; what was asked for goes on"),
            Self::NotFound => row("not_found", 404, Client, Useless, "no such path"),
            Self::MethodNotAllowed => row("method_not_allowed", 405, Client, Useless, "the path takes other methods; `Allow` lists them"),
            Self::UnsupportedEncoding => row("unsupported_encoding", 415, Client, Useless, "the body has a `Content-Encoding`; send it uncompressed"),
            Self::BodyTimeout => row("body_timeout", 408, Client, Possible, "the body did not arrive within `body_timeout_secs`"),
            Self::BodyTooLarge => row("body_too_large", 413, Client, Useless, "the body is longer than `max_payload_size`"),
            Self::NotServedByPd => row("not_served_by_pd", 501, Proxy, Useless, "a prefill/decode pair cannot serve this path; the message gives the reason"),
            Self::BeamSearchNotSupported => row("beam_search_not_supported", 501, Client, Useless, "the request asks for a beam search (`beam_width` above 1), which a prefill/decode pair cannot serve"),
            Self::Internal => row("internal", 500, Proxy, Useless, "a defect of mini-lb; please report it"),
            Self::NoPrefill => row("no_prefill", 503, Workers, Later, "no prefill worker is available, or none for a request that a worker was lost with"),
            Self::NoDecode => row("no_decode", 503, Workers, Later, "no decode worker is available, or none for a request that a worker was lost with"),
            Self::NoWorker => row("no_worker", 503, Workers, Later, "no worker, or no pair, is available"),
            Self::UnknownEngine => row("unknown_engine", 503, Workers, Later, "with `engine: auto`: no worker has told its engine yet, or the workers are of different engines"),
            Self::ShuttingDown => row("shutting_down", 503, Proxy, Later, "the process is shutting down, and its grace period is over"),
            Self::Overloaded => row("overloaded", 503, Proxy, Later, "`max_inflight_requests`, `max_buffered_body_bytes` or `max_connections` is reached, 32 pages for observers are being sent, or the process has no descriptor left for a connection to a worker"),
            Self::QueueFull => row("queue_full", 429, Proxy, Later, "all workers have `max_concurrent_requests`, and `queue_size` requests wait already"),
            Self::QueueTimeout => row("queue_timeout", 503, Proxy, Later, "no worker had capacity within `queue_timeout_secs`"),
            Self::Paused => row("paused", 503, Proxy, Later, "generation is paused (`/pause_generation`), weights are being updated or memory is released, and that was not over within `queue_timeout_secs`, or `queue_size` requests wait already"),
            Self::SuspectRequest => row("suspect_request", 503, Client, Later, "two workers, or one worker three times, were lost with this request within `suspect_window_secs`, so it is not sent to another one until that time is over; or one was, and the trial of an equal request was not over within `queue_timeout_secs`"),
            Self::PrefillUnreachable => row("prefill_unreachable", 502, Prefill, Later, "the prefill worker refuses connections, its host cannot be reached, or its certificate is not accepted"),
            Self::DecodeUnreachable => row("decode_unreachable", 502, Decode, Later, "the same for the decode worker"),
            Self::PrefillConnectTimeout => row("prefill_connect_timeout", 504, Prefill, Later, "no connection to the prefill worker within `connect_timeout_secs`"),
            Self::DecodeConnectTimeout => row("decode_connect_timeout", 504, Decode, Later, "the same for the decode worker"),
            Self::PrefillLost => row("prefill_lost", 502, Prefill, Later, "the prefill worker closed the connection before its response ended"),
            Self::DecodeLost => row("decode_lost", 502, Decode, Later, "the same for the decode worker"),
            Self::FirstTokenTimeout => row("first_token_timeout", 504, Decode, Later, "no byte of a streamed response within `first_token_timeout_secs`"),
            Self::StreamIdleTimeout => row("stream_idle_timeout", 504, Decode, Later, "no byte of a running stream for `stream_idle_timeout_secs`"),
            Self::RequestTimeout => row("request_timeout", 504, Decode, Useless, "the response was not complete within `request_timeout_secs`, or `stream_timeout_secs`"),
            Self::PrefillBadAnswer => row("prefill_bad_answer", 502, Prefill, Later, "the prefill worker's response is not HTTP, is a redirect or has no document, has a content coding that must be read and is neither gzip nor zstd, has a head of more than 64 KiB or 128 fields, or is longer than `max_payload_size` where it is merged; with `engine: vllm` also: it has no `kv_transfer_params`"),
            Self::DecodeBadAnswer => row("decode_bad_answer", 502, Decode, Later, "the same for the decode worker"),
            Self::WorkerAuth => row("worker_auth", 502, Workers, Useless, "a worker refuses the key that mini-lb sends it, or asks for one where clients' keys end at mini-lb. Where the client's own key reaches the worker, and in administration, the worker's 401 or 403 is the response"),
            Self::MergeFailed => row("merge_failed", 502, Workers, Useless, "the two responses do not fit together, or one of them is not JSON, or is empty"),
            Self::WorkerUnreachable => row("worker_unreachable", 502, Workers, Later, "endpoints without legs: a worker could not be reached, or closed the connection early"),
            Self::WorkerTimeout => row("worker_timeout", 504, Workers, Later, "endpoints without legs: a worker took too long"),
            Self::WorkerRefused => row("worker_refused", 502, Workers, Later, "endpoints without legs: a worker responded with an error; the response has its status, and `workers` in the body has each worker's response"),
        }
    }

    /// The code as it stands in headers and in the log.
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        StatusCode::from_u16(self.row().status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

const fn row(
    name: &'static str,
    status: u16,
    side: Side,
    retry: Retry,
    meaning: &'static str,
) -> Row {
    Row {
        name,
        status,
        side,
        retry,
        meaning,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_code_has_a_name_and_a_status_of_its_kind() {
        let names: HashSet<_> = Code::ALL.into_iter().map(Code::name).collect();
        assert_eq!(names.len(), Code::ALL.len());
        for code in Code::ALL {
            let Row { status, retry, .. } = code.row();
            assert_eq!(code.status().as_u16(), status);
            // An SDK repeats every 5xx three times unless it is told when, or that it should not.
            let advised = status == 429 || status >= 500;
            assert!(!(advised && retry == Retry::Possible), "{}", code.name());
            assert!(advised || retry != Retry::Later, "{}", code.name());
        }
    }
}
