//! One question to one worker: what is sent on, how long it may take, and what came of it.
//!
//! Knows no endpoint. The headers follow the policy of the legs: `Host` and `Authorization` are the worker's,
//! the framing is the proxy's.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, CONTENT_TYPE,
    ORIGIN,
};
use http::{HeaderName, HeaderValue, StatusCode};
use pingora_http::RequestHeader;
use serde_json::{Value, json};

use crate::endpoint::{REQUEST_ID, WholeRequest, WholeResponse};
use crate::fleet::Worker;
use crate::net::{Client, Failure, Target};

/// The longest answer of a worker in bytes. The largest that are known: the tokens of a prompt (a million ids
/// are 8 MB), and `/server_info` with 60 KB for each data parallel rank.
const ANSWER_LIMIT: usize = 64 << 20;

/// How much of an error's text a report repeats, in characters.
const EXCERPT: usize = 1000;

/// What workers read besides the body: keys, the body's type, traces, and a browser's questions.
const GOES_ALONG: [HeaderName; 7] = [
    AUTHORIZATION,
    CONTENT_TYPE,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    ORIGIN,
    ACCESS_CONTROL_REQUEST_METHOD,
    ACCESS_CONTROL_REQUEST_HEADERS,
];

/// What is asked, and how long each worker gets for its whole answer.
pub(super) struct Question {
    head: RequestHeader,
    body: Bytes,
    wait: Duration,
    key: Key,
}

/// Whose key a worker that has none configured here is shown, and what its refusal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// The client's: a refusal is for the client.
    Clients,
    /// None, clients' keys end at this proxy: a refusal is for who configured it.
    Nobodys,
    /// That of who administers the worker, who is told what the worker says.
    Admins,
}

/// What came of a question to one worker.
pub(super) struct Asked {
    /// Who was asked.
    pub(super) worker: Arc<Worker>,
    /// How long it took.
    pub(super) took: Duration,
    /// The worker's answer with the headers that concern the client, or why there is none.
    pub(super) outcome: Result<WholeResponse, Unanswered>,
}

/// Why a worker gave no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// The exchange failed.
    Failed(Failure),
    /// It was not over after this long.
    Overdue(Duration),
    /// It refuses the key that this proxy has for it, or asks for one and gets none.
    KeyRefused(StatusCode),
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unanswered::Failed(failure) => failure.fmt(f),
            Unanswered::Overdue(wait) => {
                write!(f, "did not answer within {} s", wait.as_secs_f64())
            }
            Unanswered::KeyRefused(status) => write!(
                f,
                "refuses the load balancer ({}): see its api_key and worker_api_key_file",
                status.as_u16()
            ),
        }
    }
}

impl Unanswered {
    /// The status that says it to a client.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Unanswered::Overdue(_) | Unanswered::Failed(Failure::ConnectTimeout) => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Unanswered::Failed(_) | Unanswered::KeyRefused(_) => StatusCode::BAD_GATEWAY,
        }
    }
}

impl Question {
    /// The client's request on `path`, for as long as `wait` per worker.
    ///
    /// # Errors
    /// The path or the query cannot be sent.
    pub(super) fn new(
        request: WholeRequest,
        path: &str,
        request_id: &HeaderValue,
        wait: Duration,
        key: Key,
    ) -> pingora_core::Result<Self> {
        let target = match &request.query {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        let size = Some(GOES_ALONG.len() + 1);
        let mut head = RequestHeader::build_no_case(request.method, target.as_bytes(), size)?;
        for name in &GOES_ALONG {
            for value in request.headers.get_all(name) {
                head.append_header(name, value)?;
            }
        }
        head.insert_header(REQUEST_ID, request_id)?;
        Ok(Self {
            head,
            body: request.body,
            wait,
            key,
        })
    }

    /// Asks one worker. Dropping the future closes the connection.
    pub(super) async fn ask(&self, client: &Client, worker: &Arc<Worker>) -> Asked {
        let begun = Instant::now();
        let exchange = self.exchange(client, worker);
        let outcome = match tokio::time::timeout(self.wait, exchange).await {
            Ok(Ok(answer)) if self.is_wrong_key(worker, answer.status) => {
                Err(Unanswered::KeyRefused(answer.status))
            }
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(failure)) => Err(Unanswered::Failed(failure)),
            Err(_) => Err(Unanswered::Overdue(self.wait)),
        };
        if worker.note_answered(outcome.is_ok()) {
            let (path, url) = (self.head.uri.path(), worker.url());
            match &outcome {
                Ok(_) => log::info!("worker answers again path={path} worker={url}"),
                Err(why) => {
                    log::warn!("worker gave no answer path={path} worker={url} error=\"{why}\"");
                }
            }
        }
        Asked {
            worker: worker.clone(),
            took: begun.elapsed(),
            outcome,
        }
    }

    /// Whether this status is about a key, and not about the client's.
    fn is_wrong_key(&self, worker: &Worker, status: StatusCode) -> bool {
        let about_a_key = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        let not_the_clients = match self.key {
            Key::Clients => worker.authorization().is_some(),
            Key::Nobodys => true,
            Key::Admins => false,
        };
        about_a_key && not_the_clients
    }

    async fn exchange(&self, client: &Client, worker: &Worker) -> Result<WholeResponse, Failure> {
        let to = Target {
            address: worker.address(),
            server_name: worker.server_name(),
            host: worker.host(),
            authorization: match self.key {
                Key::Admins => worker.admin_authorization(),
                Key::Clients | Key::Nobodys => worker.authorization(),
            },
        };
        client.fetch(to, &self.head, &self.body, ANSWER_LIMIT).await
    }
}

impl Asked {
    /// The worker's status, or the one that says why it has none.
    pub(super) fn status(&self) -> StatusCode {
        match &self.outcome {
            Ok(answer) => answer.status,
            Err(why) => why.status(),
        }
    }

    /// Whether the worker did what it was asked.
    pub(super) fn passed(&self) -> bool {
        matches!(&self.outcome, Ok(answer) if answer.status.is_success())
    }

    /// The JSON of an answer with a status of success.
    ///
    /// # Errors
    /// What there is instead, in words.
    pub(super) fn json(&self) -> Result<Value, String> {
        match &self.outcome {
            Ok(answer) if answer.status.is_success() => serde_json::from_slice(&answer.body)
                .map_err(|error| format!("answered with something else than JSON ({error})")),
            Ok(answer) => Err(excerpt(answer)),
            Err(why) => Err(why.to_string()),
        }
    }

    /// What happened, for a report: who, the status or the error, and the time.
    pub(super) fn report(&self) -> Value {
        let mut report = json!({"role": self.worker.role().name(), "url": self.worker.url()});
        if let Ok(answer) = &self.outcome {
            report["status"] = answer.status.as_u16().into();
        }
        match &self.outcome {
            Ok(answer) if answer.status.is_success() => {}
            Ok(answer) => report["error"] = excerpt(answer).into(),
            Err(why) => report["error"] = why.to_string().into(),
        }
        report["milliseconds"] = u64::try_from(self.took.as_millis())
            .unwrap_or(u64::MAX)
            .into();
        report
    }

    /// The worker and what it did wrong, as part of a sentence.
    pub(super) fn complaint(&self) -> String {
        let (role, url) = (self.worker.role(), self.worker.url());
        match &self.outcome {
            Ok(answer) => format!("{role} {url} answered {}", answer.status.as_u16()),
            Err(why) => format!("{role} {url} {why}"),
        }
    }
}

fn excerpt(answer: &WholeResponse) -> String {
    let text = String::from_utf8_lossy(&answer.body);
    match text.trim() {
        "" => format!("answered {}", answer.status),
        text => text.chars().take(EXCERPT).collect(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::{HeaderMap, Method};
    use pingora_core::server::configuration::ServerConf;

    use super::*;
    use crate::fleet::Role;
    use crate::net::{Dialling, Trust};

    fn question(
        method: Method,
        headers: &[(&'static str, &'static str)],
        body: &'static str,
    ) -> Question {
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
        };
        let id = HeaderValue::from_static("id-1");
        Question::new(
            request,
            "/flush_cache",
            &id,
            Duration::from_secs(1),
            Key::Admins,
        )
        .unwrap()
    }

    #[test]
    fn a_question_carries_the_query_and_only_what_workers_read() {
        let sent = [
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
        let asked = question(Method::POST, &sent, "{}");
        assert_eq!(asked.head.uri, "/flush_cache?timeout=60&x=%20");
        let names: Vec<_> = asked.head.headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(
            names,
            [
                "authorization",
                "content-type",
                "traceparent",
                "tracestate",
                "x-request-id"
            ]
        );
        assert_eq!(asked.head.headers.get_all("tracestate").iter().count(), 2);
        assert_eq!(asked.head.headers[REQUEST_ID], "id-1");
    }

    #[tokio::test]
    async fn a_worker_that_accepts_and_says_nothing_is_given_up() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = silent.local_addr().unwrap().port();
        let worker = Arc::new(Worker::for_tests(Role::Decode, port));
        let dialling = Dialling {
            connect_timeout: Duration::from_secs(5),
            trust: Trust::new(&[], None),
        };
        let client = Client::new(&ServerConf::default(), dialling);
        let mut question = question(Method::GET, &[], "");
        question.wait = Duration::from_millis(20);
        let asked = question.ask(&client, &worker).await;
        assert_eq!(
            asked.outcome.err(),
            Some(Unanswered::Overdue(question.wait))
        );
    }

    #[test]
    fn a_worker_that_was_too_slow_is_a_timeout_and_one_that_is_gone_a_bad_gateway() {
        let second = Duration::from_secs(1);
        for (why, status) in [
            (Unanswered::Overdue(second), 504),
            (Unanswered::Failed(Failure::ConnectTimeout), 504),
            (Unanswered::Failed(Failure::Unreachable(String::new())), 502),
            (Unanswered::Failed(Failure::Lost(String::new())), 502),
            (Unanswered::Failed(Failure::NotHttp(String::new())), 502),
            (Unanswered::Failed(Failure::TooLong(1)), 502),
            (Unanswered::KeyRefused(StatusCode::FORBIDDEN), 502),
        ] {
            assert_eq!(why.status(), status, "{why:?}");
        }
    }
}
