//! Every case through mini-lb and through the ordinary server, if there is one; and the report.
//!
//! Cases run in sequence with cold caches, so that `cached_tokens` can be compared. A case that differs
//! is repeated once, because SGLang's streams have rare races, on an ordinary server too.

use std::io::Write;
use std::net::SocketAddr;

use http::Method;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::cases::{self, Case, Material, Text};
use crate::client::{Answer, Connection, Framing, Request};
use crate::comparison::differences;
use crate::digest::digest;
use crate::workers::{Engine, Workers};
use crate::{expected, invariants};
use support::Balancer;

/// After this many cases in a row without a response the others are skipped: each would take the whole time limit.
const HOPELESS: usize = 3;

/// The number of differences of one case that are shown; more of them have the same cause.
const SHOWN: usize = 8;

/// How often a worker is asked to empty its prefix cache.
const TRIES: usize = 500;

/// The outcome of a case.
enum Outcome {
    Equal,
    /// Different by design, with the reason.
    Expected(&'static str),
    /// Each line is one difference or one violated invariant.
    Wrong(Vec<String>),
    /// mini-lb gave no response; the case is not repeated.
    Unanswered(String),
}

/// Runs every case and fails with the list of errors.
pub(crate) async fn all_cases(workers: &Workers) {
    let balancer = Balancer::start(workers.config()).await;
    let run = Run::new(workers, balancer.address).await;
    let material = run.material(workers).await;
    let only = std::env::var("MINI_LB_TEST_ONLY").unwrap_or_default();
    let cases: Vec<Case> = cases::all(&material)
        .into_iter()
        .filter(|case| case.name.contains(&only))
        .collect();
    let (mut equal, mut by_design, mut unanswered, mut wrong) = (0, 0, 0, Vec::new());
    for case in &cases {
        let outcome = run.judge(case).await;
        unanswered = match outcome {
            Outcome::Unanswered(_) => unanswered + 1,
            _ => 0,
        };
        match outcome {
            Outcome::Equal => equal += 1,
            Outcome::Expected(reason) => {
                by_design += 1;
                say(&format!("expected: {}: {reason}", case.name));
            }
            Outcome::Wrong(lines) => {
                let shown = lines.iter().take(SHOWN);
                wrong.extend(shown.map(|line| format!("{}: {line}", case.name)));
            }
            Outcome::Unanswered(error) => wrong.push(format!("{}: mini-lb: {error}", case.name)),
        }
        if unanswered == HOPELESS {
            wrong.push("the run ends here: mini-lb does not answer".to_owned());
            break;
        }
    }
    let connections = run.connections.into_inner().opened;
    balancer.stop().await;
    let compared = match run.ordinary {
        Some(_) => "equal",
        None => "lawful (there was no ordinary server to compare with)",
    };
    say(&format!(
        "{} cases, {equal} {compared}, {by_design} expected differences, {connections} connections to mini-lb",
        cases.len()
    ));
    assert!(wrong.is_empty(), "unexpected:\n{}", wrong.join("\n"));
}

/// Writes a line directly to stderr, because the test harness hides the output of a test that passes.
pub(crate) fn say(line: &str) {
    // stderr may be closed.
    let _ = writeln!(std::io::stderr(), "conformance: {line}");
}

/// The connections to mini-lb.
#[derive(Default)]
struct Connections {
    held: Option<Connection>,
    opened: usize,
}

/// The addresses of one run.
struct Run {
    mini_lb: SocketAddr,
    connections: Mutex<Connections>,
    engine: Engine,
    ordinary: Option<SocketAddr>,
    /// Every worker, for flushes.
    workers: Vec<SocketAddr>,
    /// A worker for tokenization.
    tokenizer: SocketAddr,
}

impl Run {
    async fn new(workers: &Workers, mini_lb: SocketAddr) -> Run {
        let mut addresses = Vec::new();
        for url in workers.urls() {
            addresses.push(resolved(url).await);
        }
        let ordinary = match &workers.ordinary {
            Some(url) => Some(resolved(url).await),
            None => None,
        };
        Run {
            mini_lb,
            engine: workers.engine,
            connections: Mutex::default(),
            ordinary,
            tokenizer: ordinary.unwrap_or(addresses[0]),
            workers: addresses,
        }
    }

    async fn judge(&self, case: &Case) -> Outcome {
        match self.ask(case).await {
            Outcome::Wrong(_) => self.ask(case).await,
            outcome => outcome,
        }
    }

    async fn ask(&self, case: &Case) -> Outcome {
        let mut wrong = self.flush().await;
        let (mini_lb, ordinary) = tokio::join!(self.of_mini_lb(case), async {
            match self.ordinary {
                Some(address) => Some(of_ordinary(address, case).await),
                None => None,
            }
        });
        let (mini_lb, kept) = match &mini_lb {
            Ok((answer, kept)) => (answer, *kept),
            Err(error) => return Outcome::Unanswered(error.clone()),
        };
        if mini_lb.status == 200 && !kept {
            wrong.push("mini-lb: the connection is closed after a good answer".to_owned());
        }
        if mini_lb.request_id.is_none() {
            wrong.push("mini-lb: no x-request-id".to_owned());
        }
        let ordinary = match &ordinary {
            Some(Ok(answer)) => Some(answer),
            Some(Err(error)) => return Outcome::Wrong(vec![format!("ordinary: {error}")]),
            None => None,
        };
        let (outcome, judged) = match ordinary {
            Some(ordinary) => (
                compare(case, ordinary, mini_lb),
                vec![("ordinary", ordinary)],
            ),
            None => (alone(case, mini_lb), Vec::new()),
        };
        // A response that differs by design is judged by the table only.
        let judged = match outcome {
            Outcome::Expected(_) => judged,
            _ => [judged, vec![("mini-lb", mini_lb)]].concat(),
        };
        for (who, answer) in judged {
            let violations = invariants::violations(case, answer);
            wrong.extend(violations.iter().map(|line| format!("{who}: {line}")));
        }
        match outcome {
            Outcome::Wrong(differences) => wrong.extend(differences),
            outcome if wrong.is_empty() => return outcome,
            _ => {}
        }
        Outcome::Wrong(wrong)
    }

    /// mini-lb's response, and whether the connection is kept. The connection is that of the previous cases as long as
    /// mini-lb keeps it open, so that leftovers of one request would spoil the next.
    async fn of_mini_lb(&self, case: &Case) -> Result<(Answer, bool), String> {
        let mut connections = self.connections.lock().await;
        let mut connection = match connections.held.take() {
            Some(held) => held,
            None => {
                connections.opened += 1;
                Connection::open(self.mini_lb).await?
            }
        };
        let answer = last_answer(&mut connection, case).await?;
        let kept = connection.is_open().await;
        connections.held = kept.then_some(connection);
        Ok((answer, kept))
    }

    /// Flushes the cache of every worker, which succeeds only when no request was left behind.
    async fn flush(&self) -> Vec<String> {
        let flush = request(Method::POST, self.engine.flush(), &Value::Null);
        let flushed = self.workers.iter().map(|&address| {
            let flush = &flush;
            async move {
                let mut connection = Connection::open(address).await?;
                for _ in 0..TRIES {
                    let answer = connection.exchange(flush).await?;
                    match answer.status {
                        // vLLM does not wait until blocks are free, and says that under the same status.
                        200 if answer.body.ends_with(b"\"success\":false}") => {}
                        200 => return Ok(()),
                        status => {
                            return Err(format!("{address} is not idle before the case: {status}"));
                        }
                    }
                }
                Err(format!("{address} still holds blocks before the case"))
            }
        });
        let flushed = futures_util::future::join_all(flushed).await;
        flushed.into_iter().filter_map(Result::err).collect()
    }

    async fn material(&self, workers: &Workers) -> Material {
        let model = match &workers.model {
            Some(model) => model.clone(),
            None => self.first_model().await,
        };
        let sentence = "the quick brown fox jumps over the lazy dog and runs away from it ";
        let (in_one_sentence, _) = self.tokens(&model, sentence).await;
        let sentences = |tokens: usize| sentence.repeat(tokens / in_one_sentence + 1);
        let mut texts = Vec::new();
        for (name, text) in [
            ("one token", "a".to_owned()),
            ("few tokens", "Hello there world".to_owned()),
            ("200 tokens", sentences(200)),
            ("1500 tokens", sentences(1500)),
        ] {
            let (tokens, _) = self.tokens(&model, &text).await;
            texts.push(Text { name, text, tokens });
        }
        Material {
            engine: self.engine,
            model,
            each_n: workers.each_n,
            simulated: workers.simulated,
            texts: texts
                .try_into()
                .unwrap_or_else(|_| unreachable!("four texts")),
        }
    }

    async fn first_model(&self) -> String {
        let models = self
            .tree(&request(Method::GET, "/v1/models", &Value::Null))
            .await;
        models["data"][0]["id"].as_str().unwrap().to_owned()
    }

    async fn tokens(&self, model: &str, text: &str) -> (usize, Value) {
        let body = json!({ "model": model, "prompt": text });
        let answer = self.tree(&request(Method::POST, "/tokenize", &body)).await;
        (answer["tokens"].as_array().unwrap().len(), answer)
    }

    async fn tree(&self, request: &Request) -> Value {
        let mut connection = Connection::open(self.tokenizer).await.unwrap();
        let answer = connection.exchange(request).await.unwrap();
        serde_json::from_slice(&answer.body).unwrap()
    }
}

fn request(method: Method, path: &str, body: &Value) -> Request {
    Request {
        method,
        path: path.to_owned(),
        content_type: Some("application/json"),
        body: if body.is_null() {
            String::new()
        } else {
            body.to_string()
        }
        .into(),
        framing: Framing::Length,
    }
}

async fn of_ordinary(address: SocketAddr, case: &Case) -> Result<Answer, String> {
    let mut connection = Connection::open(address).await?;
    last_answer(&mut connection, case).await
}

/// The last response on a connection over which the request is sent as often as the case says.
async fn last_answer(connection: &mut Connection, case: &Case) -> Result<Answer, String> {
    let mut answer = connection.exchange(&case.request).await?;
    for time in 1..case.times {
        if !connection.is_open().await {
            return Err(format!("the connection was closed after {time} answers"));
        }
        answer = connection.exchange(&case.request).await?;
    }
    Ok(answer)
}

fn compare(case: &Case, ordinary: &Answer, mini_lb: &Answer) -> Outcome {
    let (ordinary, mini_lb) = match (digest(ordinary), digest(mini_lb)) {
        (Ok(ordinary), Ok(mini_lb)) => (ordinary, mini_lb),
        (Err(error), _) => return Outcome::Wrong(vec![format!("ordinary: {error}")]),
        (_, Err(error)) => return Outcome::Wrong(vec![format!("mini-lb: {error}")]),
    };
    let differences = differences(&ordinary, &mini_lb, case.leeway);
    if differences.is_empty() {
        return Outcome::Equal;
    }
    match expected::reason(case, &ordinary, &mini_lb) {
        Some(reason) => Outcome::Expected(reason),
        None => Outcome::Wrong(differences.iter().map(ToString::to_string).collect()),
    }
}

/// The outcome of a response without another to compare it with: the table may still explain a violation.
fn alone(case: &Case, mini_lb: &Answer) -> Outcome {
    let digest = match digest(mini_lb) {
        Ok(digest) => digest,
        Err(error) => return Outcome::Wrong(vec![format!("mini-lb: {error}")]),
    };
    match expected::reason(case, &digest, &digest) {
        Some(reason) if !invariants::violations(case, mini_lb).is_empty() => {
            Outcome::Expected(reason)
        }
        _ => Outcome::Equal,
    }
}

async fn resolved(url: &str) -> SocketAddr {
    let authority = url.trim_start_matches("http://").trim_end_matches('/');
    let mut found = tokio::net::lookup_host(authority).await.unwrap();
    found.next().unwrap()
}
