//! One request to one worker: which of the client's headers it carries, how long it may take, and its result.
//!
//! Knows no endpoint. As for the legs, `Host` and `Authorization` are the worker's and the framing is the proxy's.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, ORIGIN};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use pingora::http::RequestHeader;
use serde_json::{Value, json};

use crate::endpoint::{REQUEST_ID, WholeRequest, WholeResponse};
use crate::fleet::Worker;
use crate::net::{Client, Failure, Target, readable};

/// The longest response of a worker, in bytes. The largest known ones are the tokens of a prompt (8 MB for a million
/// ids) and `/server_info` (60 KB for each data parallel rank).
const RESPONSE_LIMIT: usize = 64 << 20;

/// The part of an error response that a report quotes, in characters.
const EXCERPT: usize = 1000;

/// The client's headers that workers read: the key, the type of the body, traces, and the origin of a page.
const FORWARDED: [HeaderName; 5] = [
    AUTHORIZATION,
    CONTENT_TYPE,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    ORIGIN,
];

/// A request that can be sent to any number of workers.
#[derive(Clone)]
pub(super) struct Call {
    head: RequestHeader,
    body: Bytes,
    /// For the whole response of one worker.
    timeout: Duration,
    key: Key,
}

/// The key for a worker without a configured one, and what a refusal of it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// The client's key. A refusal is passed on to the client.
    Client,
    /// None, because clients' keys are for this proxy only. A refusal is an error of the configuration.
    None,
    /// The admin's key. A refusal is passed on to the admin.
    Admin,
}

/// The result of a call to one worker.
pub(super) struct CallResult {
    pub(super) worker: Arc<Worker>,
    pub(super) elapsed: Duration,
    /// The worker's response, without the headers of its connection.
    pub(super) outcome: Result<WholeResponse, CallError>,
}

/// Why there is no response of a worker to pass on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CallError {
    /// The exchange failed.
    Failed(Failure),
    /// The response was not complete after this long.
    TimedOut(Duration),
    /// The worker refuses the key that this proxy has for it, or needs one that is not configured.
    KeyRefused(StatusCode),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Failed(failure) => failure.fmt(f),
            CallError::TimedOut(timeout) => {
                write!(f, "did not respond within {} s", timeout.as_secs_f64())
            }
            CallError::KeyRefused(status) => write!(
                f,
                "refuses the load balancer ({}): see its api_key and worker_api_key_file",
                status.as_u16()
            ),
        }
    }
}

impl CallError {
    /// The status of the response that reports it.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            CallError::TimedOut(_) | CallError::Failed(Failure::ConnectTimeout) => {
                StatusCode::GATEWAY_TIMEOUT
            }
            CallError::Failed(_) | CallError::KeyRefused(_) => StatusCode::BAD_GATEWAY,
        }
    }
}

impl Call {
    /// The client's request, on `path`, with `timeout` for each worker.
    ///
    /// # Errors
    /// The path or the query is not a valid request target.
    pub(super) fn new(
        request: WholeRequest,
        path: &str,
        request_id: &HeaderValue,
        timeout: Duration,
        key: Key,
    ) -> pingora::Result<Self> {
        let target = match &request.query {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        let size = Some(FORWARDED.len() + 2);
        // Workers take no HEAD on these paths. The body of the response is left out on the way to the client.
        let method = match request.method {
            Method::HEAD => Method::GET,
            method => method,
        };
        let mut head = RequestHeader::build_no_case(method, target.as_bytes(), size)?;
        for name in &FORWARDED {
            for value in request.headers.get_all(name) {
                head.append_header(name, value)?;
            }
        }
        // Not among the forwarded headers: a client's id has been checked, and replaced if it was not usable.
        head.insert_header(REQUEST_ID, request_id)?;
        // The response is read. Without the field, any coding would be allowed: RFC 9110 section 12.5.3.
        head.insert_header(ACCEPT_ENCODING, HeaderValue::from_static("identity"))?;
        Ok(Self {
            head,
            body: request.body,
            timeout,
            key,
        })
    }

    /// The same request with another body.
    pub(super) fn with_body(&self, body: Bytes) -> Self {
        Self {
            body,
            ..self.clone()
        }
    }

    /// Sends the request to one worker and reads the whole response. Dropping the future closes the connection.
    pub(super) async fn send(&self, client: &Client, worker: &Arc<Worker>) -> CallResult {
        let begun = Instant::now();
        let exchange = self.exchange(client, worker);
        let outcome = match tokio::time::timeout(self.timeout, exchange).await {
            Ok(Ok(response)) if self.is_key_refused(worker, response.status) => {
                Err(CallError::KeyRefused(response.status))
            }
            Ok(Ok(response)) => Ok(response),
            Ok(Err(failure)) => Err(CallError::Failed(failure)),
            Err(_) => Err(CallError::TimedOut(self.timeout)),
        };
        // Only a change is logged: a monitor that polls a dead worker must not fill the log.
        if worker.note_answered(outcome.is_ok()) {
            let (path, url) = (self.head.uri.path(), worker.url());
            match &outcome {
                Ok(_) => log::info!("worker responds again path={path} worker={url}"),
                Err(error) => {
                    log::warn!(
                        "worker gave no response path={path} worker={url} error=\"{error}\""
                    );
                }
            }
        }
        CallResult {
            worker: worker.clone(),
            elapsed: begun.elapsed(),
            outcome,
        }
    }

    /// Whether this status refuses a key that is not the client's.
    fn is_key_refused(&self, worker: &Worker, status: StatusCode) -> bool {
        let refuses_a_key = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        let is_not_the_clients = match self.key {
            Key::Client => worker.authorization().is_some(),
            Key::None => true,
            Key::Admin => false,
        };
        refuses_a_key && is_not_the_clients
    }

    async fn exchange(&self, client: &Client, worker: &Worker) -> Result<WholeResponse, Failure> {
        let to = Target {
            addresses: worker.addresses(),
            server_name: worker.server_name(),
            host: worker.host(),
            authorization: match self.key {
                Key::Admin => worker.admin_authorization(),
                Key::Client | Key::None => worker.authorization(),
            },
        };
        client
            .fetch(to, &self.head, &self.body, RESPONSE_LIMIT)
            .await
    }
}

impl CallResult {
    /// The worker's status, or the status that reports the error.
    pub(super) fn status(&self) -> StatusCode {
        match &self.outcome {
            Ok(response) => response.status,
            Err(error) => error.status(),
        }
    }

    /// Whether the worker responded with a status of success.
    pub(super) fn succeeded(&self) -> bool {
        matches!(&self.outcome, Ok(response) if response.status.is_success())
    }

    /// The JSON of a response with a status of success.
    ///
    /// # Errors
    /// A text for the report: why there is no such JSON.
    pub(super) fn json(&self) -> Result<Value, String> {
        match &self.outcome {
            Ok(response) if response.status.is_success() => {
                let body = readable(response, RESPONSE_LIMIT).map_err(|error| error.to_string())?;
                serde_json::from_slice(&body)
                    .map_err(|error| format!("sent a response that is not JSON ({error})"))
            }
            Ok(response) => Err(excerpt(response)),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The body of the response as it was before it was compressed; `None` where there is none that can be read.
    pub(super) fn readable_body(&self) -> Option<Bytes> {
        let response = self.outcome.as_ref().ok()?;
        readable(response, RESPONSE_LIMIT).ok()
    }

    /// The entry of a report: `role` and `url` of the worker, `status` and `error` where there are any, and
    /// `milliseconds`.
    pub(super) fn report(&self) -> Value {
        let mut report = json!({"role": self.worker.role().name(), "url": self.worker.url()});
        if let Ok(response) = &self.outcome {
            report["status"] = response.status.as_u16().into();
        }
        match &self.outcome {
            Ok(response) if response.status.is_success() => {}
            Ok(response) => report["error"] = excerpt(response).into(),
            Err(error) => report["error"] = error.to_string().into(),
        }
        report["milliseconds"] = u64::try_from(self.elapsed.as_millis())
            .unwrap_or(u64::MAX)
            .into();
        report
    }

    /// The worker and its status or error, as a part of a sentence.
    pub(super) fn summary(&self) -> String {
        let (role, url) = (self.worker.role(), self.worker.url());
        match &self.outcome {
            Ok(response) => format!("{role} {url} answered {}", response.status.as_u16()),
            Err(error) => format!("{role} {url} {error}"),
        }
    }
}

/// The beginning of the body, or the status when there is none.
fn excerpt(response: &WholeResponse) -> String {
    let body = readable(response, RESPONSE_LIMIT).unwrap_or_default();
    let text = String::from_utf8_lossy(&body);
    match text.trim() {
        "" => format!("answered {}", response.status),
        text => text.chars().take(EXCERPT).collect(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::HeaderMap;
    use pingora::server::configuration::ServerConf;

    use super::*;
    use crate::fleet::Role;
    use crate::net::{Dialling, Trust};

    fn call(method: Method, headers: &[(&'static str, &'static str)], body: &'static str) -> Call {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        let request = WholeRequest {
            method,
            path: "/reset_prefix_cache".into(),
            query: Some("timeout=60&x=%20".into()),
            headers: map,
            body: Bytes::from_static(body.as_bytes()),
            is_trusted: false,
            is_keyed: false,
        };
        let id = HeaderValue::from_static("id-1");
        Call::new(
            request,
            "/flush_cache",
            &id,
            Duration::from_secs(1),
            Key::Admin,
        )
        .unwrap()
    }

    #[test]
    fn a_call_carries_the_query_and_only_the_headers_that_workers_read() {
        let headers = [
            ("host", "proxy"),
            ("authorization", "Bearer a"),
            ("content-type", "application/json"),
            ("traceparent", "00-1-2-01"),
            ("tracestate", "a=1"),
            ("tracestate", "b=2"),
            ("x-request-id", "something else"),
            ("x-override-rid", "steered"),
            ("transfer-encoding", "chunked"),
            ("accept-encoding", "gzip"),
            ("cookie", "secret"),
        ];
        let call = call(Method::POST, &headers, "{}");
        assert_eq!(call.head.uri, "/flush_cache?timeout=60&x=%20");
        let names: Vec<_> = call.head.headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(
            names,
            [
                "authorization",
                "content-type",
                "traceparent",
                "tracestate",
                "x-request-id",
                "accept-encoding"
            ]
        );
        // The proxy's own: the response is read.
        assert_eq!(call.head.headers["accept-encoding"], "identity");
        assert_eq!(call.head.headers.get_all("tracestate").iter().count(), 2);
        assert_eq!(call.head.headers[REQUEST_ID], "id-1");
    }

    #[tokio::test]
    async fn a_worker_that_does_not_respond_is_given_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let worker = Arc::new(Worker::for_tests(Role::Decode, port));
        let dialling = Dialling {
            connect_timeout: Duration::from_secs(5),
            trust: Trust::new(&[], None),
        };
        let client = Client::new(&ServerConf::default(), dialling);
        let mut call = call(Method::GET, &[], "");
        call.timeout = Duration::from_millis(20);
        let result = call.send(&client, &worker).await;
        assert_eq!(
            result.outcome.err(),
            Some(CallError::TimedOut(call.timeout))
        );
    }

    #[test]
    fn a_slow_worker_is_a_gateway_timeout_and_a_failed_exchange_a_bad_gateway() {
        let second = Duration::from_secs(1);
        for (error, status) in [
            (CallError::TimedOut(second), 504),
            (CallError::Failed(Failure::ConnectTimeout), 504),
            (CallError::Failed(Failure::Unreachable(String::new())), 502),
            (CallError::Failed(Failure::Lost(String::new())), 502),
            (CallError::Failed(Failure::NotHttp(String::new())), 502),
            (CallError::Failed(Failure::TooLong(1)), 502),
            (CallError::KeyRefused(StatusCode::FORBIDDEN), 502),
        ] {
            assert_eq!(error.status(), status, "{error:?}");
        }
    }
}
