//! Keys, prompts, and the values of headers and queries never reach the log, whatever the outcome of a request.

use support::{Client, Process, Signal, Worker, mini_lb};

/// Words that occur only in values that must stay out of the log.
const SECRETS: [&str; 12] = [
    "sk-of-the-client",
    "sk-of-nobody",
    "sk-of-the-worker",
    "sk-of-administration",
    "sk-in-the-query",
    "Tell-me-a-secret",
    "a-session-cookie",
    "a-trace-of-the-client",
    "an-unknown-header",
    "words-of-the-worker",
    "a-header-of-the-worker",
    "name-of-the-user",
];

/// A process that logs as much as it can.
struct Verbose {
    process: Process,
    prefill: Worker,
    decode: Worker,
    address: std::net::SocketAddr,
    _keys: tempfile::TempDir,
}

impl Verbose {
    async fn start(more: &str) -> Self {
        let (prefill, decode) = Worker::pair().await;
        let keys = tempfile::TempDir::new().unwrap();
        let file = |name: &str, key: &str| {
            let path = keys.path().join(name);
            std::fs::write(&path, key).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let clients = file("clients", "sk-of-the-client");
        let workers = file("workers", "sk-of-the-worker");
        let line = format!(
            "--host 127.0.0.1 --port 0 --disable-health-check --log-level trace \
             --max-payload-size 4096 --first-token-timeout-secs 1 --api-key-file {clients} \
             --worker-api-key-file {workers} --admin-api-key sk-of-administration \
             --prefill {} 8998 --decode {} {more}",
            prefill.url(),
            decode.url()
        );
        let mut process = mini_lb!(&line.split_whitespace().collect::<Vec<_>>());
        let address = process.address().await;
        Self {
            process,
            prefill,
            decode,
            address,
            _keys: keys,
        }
    }

    /// Sends a request full of secrets, and returns the client before the response.
    async fn ask(&self, key: &str, target: &str, body: &str) -> Client {
        let mut client = Client::connect(self.address).await;
        let length = body.len();
        client
            .send(format!(
                "POST {target} HTTP/1.1\r\nhost: balancer\r\nauthorization: Bearer {key}\r\n\
                 cookie: id=a-session-cookie\r\ntraceparent: a-trace-of-the-client\r\nx-custom: an-unknown-header\r\n\
                 x-request-id: id with spaces and name-of-the-user\r\ncontent-type: application/json\r\n\
                 content-length: {length}\r\n\r\n{body}"
            ))
            .await;
        client
    }

    /// Sends a request with legs, to which the workers respond with these bytes. Returns the status.
    async fn legs(&mut self, body: &str, prefill: &str, decode: &str) -> u16 {
        let target = "/generate?key=sk-in-the-query";
        let mut client = self.ask("sk-of-the-client", target, body).await;
        let mut legs = (self.prefill.request().await, self.decode.request().await);
        legs.0.send(prefill).await;
        legs.1.send(decode).await;
        client.answer().await.status()
    }

    /// A client that sends this body leaves before the response.
    async fn leaves(&mut self, body: &str) {
        let client = self.ask(CLIENT, "/generate", body).await;
        let legs = (self.prefill.request().await, self.decode.request().await);
        client.reset();
        legs.0.closed().await;
        legs.1.closed().await;
    }
}

fn answer(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nx-internal: a-header-of-the-worker\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

const CLIENT: &str = "sk-of-the-client";
const PROMPT: &str = r#"{"text":"Tell-me-a-secret","user":"name-of-the-user"}"#;
const STREAM: &str = r#"{"text":"Tell-me-a-secret","stream":true}"#;
const LOGPROBS: &str = r#"{"text":"Tell-me-a-secret","return_logprob":true,"logprob_start_len":0}"#;
/// A worker's response.
const WORDS: &str = r#"{"text":"words-of-the-worker"}"#;

#[tokio::test]
async fn no_key_no_prompt_and_no_header_reaches_the_log() {
    let mut verbose = Verbose::start("--disable-abort-requests").await;
    workers_respond(&mut verbose).await;
    requests_are_refused(&verbose).await;
    heads_are_refused(&verbose).await;
    verbose.leaves(PROMPT).await;

    let Verbose { process, .. } = verbose;
    process.signal(Signal::Terminate).await;
    let log = process.end().await.text();
    // The log has the lines of these requests.
    for word in [
        "status=413",
        "status=504",
        "ended=client_left",
        "path=/tokenize",
    ] {
        assert!(log.contains(word), "{word} in {log}");
    }
    for secret in SECRETS {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
}

/// Requests that reach workers, with every kind of response.
async fn workers_respond(verbose: &mut Verbose) {
    let fine = answer("200 OK", WORDS);
    let no_json = answer("200 OK", "words-of-the-worker");
    let unframed = "HTTP/1.1 200 OK\r\nwords-of-the-worker\r\n\r\n";
    let event = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n\
                 data: {\"error\":{\"message\":\"words-of-the-worker\",\"code\":400}}\n\n";
    for (body, prefill, decode, status) in [
        (PROMPT, fine.as_str(), fine.as_str(), 200),
        (PROMPT, &answer("400 Bad Request", WORDS), "", 400),
        (PROMPT, "", &answer("500 Internal Server Error", WORDS), 500),
        (PROMPT, &answer("401 Unauthorized", WORDS), "", 502),
        (PROMPT, "", unframed, 502),
        (PROMPT, unframed, "", 502),
        (PROMPT, "", &answer("307 Temporary Redirect", WORDS), 502),
        (LOGPROBS, &no_json, &no_json, 502),
        (STREAM, "", event, 400),
    ] {
        let got = verbose.legs(body, prefill, decode).await;
        assert_eq!(got, status, "{body} {prefill} {decode}");
    }
    // No response until the deadline.
    let mut client = verbose.ask(CLIENT, "/generate", STREAM).await;
    let _silent = (
        verbose.prefill.request().await,
        verbose.decode.request().await,
    );
    assert_eq!(client.answer().await.status(), 504);
    // A request without legs.
    let mut client = verbose
        .ask(CLIENT, "/tokenize?key=sk-in-the-query", PROMPT)
        .await;
    let refusal = answer("500 Internal Server Error", WORDS);
    verbose.prefill.request().await.send(&refusal).await;
    assert_eq!(client.answer().await.status(), 500);
}

/// Requests that are refused before a worker gets them.
async fn requests_are_refused(verbose: &Verbose) {
    let long = format!("{{\"text\":\"Tell-me-a-secret{}\"}}", "x".repeat(8192));
    for (key, target, body, status) in [
        ("sk-of-nobody", "/generate?key=sk-in-the-query", PROMPT, 401),
        ("sk-of-nobody", "/flush_cache?key=sk-in-the-query", "", 401),
        (
            CLIENT,
            "/generate?key=sk-in-the-query",
            "{\"text\":\"Tell-me-a-secret",
            400,
        ),
        (
            CLIENT,
            "/generate?key=sk-in-the-query",
            r#"{"text":"Tell-me-a-secret","sampling_params":{"n":1000}}"#,
            400,
        ),
        (CLIENT, "/generate?key=sk-in-the-query", &long, 413),
        (CLIENT, "/v1/embeddings?key=sk-in-the-query", PROMPT, 501),
        (CLIENT, "/nothing/here?key=sk-in-the-query", PROMPT, 404),
    ] {
        let mut client = verbose.ask(key, target, body).await;
        assert_eq!(client.answer().await.status(), status, "{target} {body}");
    }
}

/// Heads that the check of heads or the parser refuses.
async fn heads_are_refused(verbose: &Verbose) {
    for head in [
        "POST /?key=sk-in-the-query HTTP/1.1\r\nhost: a\r\ncookie: sk-of-the-client\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        "POST /generate?key=sk-in-the-query HTTP/1.1\r\nauthorization: Bearer sk-of-the-client\r\n\r\n",
        "POST /generate?key=sk-in-the-query HTTP/1.1\r\nhost: a\r\nauthorization: Bearer\0sk-of-the-client\r\n\r\n",
        "sk-of-the-client\r\n\r\n",
    ] {
        let mut client = Client::connect(verbose.address).await;
        client.send(head).await;
        client.rest().await;
    }
}

#[tokio::test]
async fn what_a_client_calls_its_request_makes_no_line_of_its_own() {
    let mut verbose = Verbose::start("").await;
    let body = r#"{"text":"a","rid":"r-1\nforged"}"#;
    let leaving = verbose.ask("sk-of-the-client", "/generate", body).await;
    let legs = (
        verbose.prefill.request().await,
        verbose.decode.request().await,
    );
    leaving.reset();
    legs.0.closed().await;
    legs.1.closed().await;
    for worker in [&mut verbose.prefill, &mut verbose.decode] {
        let abort = worker.request().await;
        assert!(abort.request.head.starts_with("POST /abort_request "));
        drop(abort);
        let line = verbose.process.line("abort not delivered").await;
        assert!(line.ends_with(r#"rid="r-1\nforged""#), "{line}");
    }
}

#[tokio::test]
async fn a_request_that_the_workers_refuse_has_one_word_and_a_sentence_whichever_is_first() {
    let mut verbose = Verbose::start("--disable-abort-requests").await;
    let refusal = answer("400 Bad Request", WORDS);
    for (prefill, decode, role) in [(&*refusal, "", "prefill"), ("", &*refusal, "decode")] {
        assert_eq!(verbose.legs(PROMPT, prefill, decode).await, 400);
        let line = verbose.process.line("request finished").await;
        assert!(line.contains(" ended=rejected "), "{line}");
        let sentence = format!(" error=\"the {role} worker answered 400 Bad Request\"");
        assert!(line.contains(&sentence), "{line}");
    }
    let failure = answer("500 Internal Server Error", WORDS);
    assert_eq!(verbose.legs(PROMPT, "", &failure).await, 500);
    let line = verbose.process.line("request finished").await;
    assert!(line.contains(" ended=decode_rejected "), "{line}");
    assert!(
        line.contains(" error=\"the decode worker answered 500"),
        "{line}"
    );
    // Without legs too.
    let mut client = verbose.ask(CLIENT, "/v1/chat/completion", PROMPT).await;
    assert_eq!(client.answer().await.status(), 404);
    let line = verbose.process.line("request finished").await;
    assert!(line.contains(" ended=not_found "), "{line}");
    assert!(line.contains(" error=\"there is no endpoint"), "{line}");
}
