//! The line of a finished request: who sent it, which attempts failed, and where the time went.

use std::collections::HashSet;

use mini_lb::pd::Role;
use support::pair::{ROLES, leg, leg_of, serve};
use support::samples::{GENERATE, asking, document};
use support::{BODY, Client, Exchange, Process, Worker, mini_lb, post};

/// The value of a field of a log line; `None` where the line has no such field.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!(" {name}="))?;
    rest.split_whitespace().next()
}

/// Two workers of each role, and a process in front of them.
struct Workers {
    prefills: [Worker; 2],
    decodes: [Worker; 2],
    process: Process,
    client: Client,
}

impl Workers {
    async fn start() -> Self {
        Self::with("").await
    }

    /// With further flags.
    async fn with(more: &str) -> Self {
        let ((p1, d1), (p2, d2)) = (Worker::pair().await, Worker::pair().await);
        let line = format!(
            "--host 127.0.0.1 --port 0 --disable-health-check --retry-max-retries 2 \
             --prefill {} 8998 --prefill {} 8998 --decode {} --decode {} {more}",
            p1.url(),
            p2.url(),
            d1.url(),
            d2.url()
        );
        let mut process = mini_lb!(&line.split_whitespace().collect::<Vec<_>>());
        let client = Client::connect(process.address().await).await;
        Self {
            prefills: [p1, p2],
            decodes: [d1, d2],
            process,
            client,
        }
    }

    /// Both legs of the next attempt.
    async fn next_legs(&mut self) -> (Exchange, Exchange) {
        let (prefill, decode) = (leg(&mut self.prefills).await, leg(&mut self.decodes).await);
        (prefill.1, decode.1)
    }

    /// The leg of the other role that has the room of this one.
    async fn other_leg(&mut self, role: Role, one: &Exchange) -> Exchange {
        let room = |leg: &Exchange| leg.request.json()["bootstrap_room"].clone();
        let others = match role {
            Role::Prefill => &mut self.decodes,
            Role::Decode => &mut self.prefills,
        };
        loop {
            // Those with other rooms are of an attempt that is over.
            let other = leg(others).await.1;
            if room(&other) == room(one) {
                return other;
            }
        }
    }

    fn of(&mut self, role: Role) -> &mut [Worker; 2] {
        match role {
            Role::Prefill => &mut self.prefills,
            Role::Decode => &mut self.decodes,
        }
    }

    fn url(&self, role: Role, index: usize) -> String {
        match role {
            Role::Prefill => self.prefills[index].url(),
            Role::Decode => self.decodes[index].url(),
        }
    }
}

#[tokio::test]
async fn a_request_for_samples_is_one_line_and_each_sample_one_at_debug_level() {
    let (mut prefill, mut decode) = Worker::pair().await;
    let line = format!(
        "--host 127.0.0.1 --port 0 --disable-health-check --log-level info,mini_lb::access=debug \
         --prefill {} 8998 --decode {}",
        prefill.url(),
        decode.url()
    );
    let mut process = mini_lb!(&line.split_whitespace().collect::<Vec<_>>());
    let mut client = Client::connect(process.address().await).await;
    client
        .send(post(GENERATE, &asking(GENERATE, 2, false)))
        .await;
    for _ in 0..2 {
        prefill.request().await.answer("200 OK", "{}").await;
        let decode = decode.request().await;
        decode.answer("200 OK", &document(GENERATE, "x")).await;
    }
    assert_eq!(client.answer().await.status(), 200);
    let samples = [
        process.line("sample finished").await,
        process.line("sample finished").await,
    ];
    for line in &samples {
        assert_eq!(
            field(line, "prefill"),
            Some(prefill.url().as_str()),
            "{line}"
        );
        assert_eq!(field(line, "ended"), Some("ok"), "{line}");
    }
    let numbers: HashSet<_> = samples.iter().map(|line| field(line, "sample")).collect();
    assert_eq!(numbers, HashSet::from([Some("0"), Some("1")]));
    let line = process.line("request finished").await;
    assert_eq!(field(&line, "samples"), Some("2"), "{line}");
    assert_eq!(field(&line, "ended"), Some("ok"), "{line}");
    assert_eq!(field(&samples[0], "request_id"), field(&line, "request_id"));
}

#[tokio::test]
async fn the_line_of_a_request_for_samples_says_that_they_were_suspects() {
    for suspect in ["tried", "refused"] {
        let mut workers = Workers::with("--disable-abort-requests").await;
        let request = post(GENERATE, &asking(GENERATE, 2, false));
        workers.client.send(&request).await;
        let legs = [workers.next_legs().await, workers.next_legs().await];
        let decodes = legs.map(|(prefill, decode)| {
            prefill.reset();
            decode
        });
        // One after the other.
        for _ in 0..2 {
            let (prefill, decode) = workers.next_legs().await;
            if suspect == "refused" {
                prefill.reset();
                break;
            }
            prefill.answer("200 OK", "{}").await;
            decode.answer("200 OK", &document(GENERATE, "x")).await;
        }
        let line = workers.process.line("request finished").await;
        // The second one is no suspect any more when the first has been served.
        let expected = match suspect {
            "tried" => ["tried", "lost"],
            _ => ["refused"; 2],
        };
        let found = field(&line, "suspect").unwrap_or_default();
        assert!(expected.contains(&found), "{line}");
        drop(decodes);
    }
}

#[tokio::test]
async fn the_line_names_worker_and_code_of_each_attempt_that_failed() {
    for role in ROLES {
        for (cause, answer) in [("lost", None), ("rejected_503", Some("503 Unavailable"))] {
            let mut workers = Workers::start().await;
            workers.client.send(post("/generate", BODY)).await;
            let (prefill, decode) = (
                leg(&mut workers.prefills).await,
                leg(&mut workers.decodes).await,
            );
            let index = match role {
                Role::Prefill => prefill.0,
                Role::Decode => decode.0,
            };
            let (failing, _other) = leg_of(role, (prefill.1, decode.1));
            match answer {
                Some(status) => failing.answer(status, "{}").await,
                None => failing.reset(),
            }
            serve(workers.next_legs().await).await;
            assert_eq!(workers.client.answer().await.status(), 200);
            let line = workers.process.line("request finished").await;
            let code = match answer {
                Some(_) => cause.to_owned(),
                None => format!("{role}_{cause}"),
            };
            let failed = format!("{code}@{}", workers.url(role, index));
            assert_eq!(field(&line, "failed"), Some(failed.as_str()), "{line}");
            assert_eq!(field(&line, "attempts"), Some("2"), "{line}");
        }
    }
}

#[tokio::test]
async fn an_attempt_that_began_again_failed_by_the_loss_of_its_first_connection() {
    for role in ROLES {
        let mut workers = Workers::start().await;
        let mut idle = HashSet::new();
        while idle.len() < 2 {
            workers.client.send(post("/generate", BODY)).await;
            let (index, one) = leg(workers.of(role)).await;
            let other = workers.other_leg(role, &one).await;
            idle.insert(index);
            serve(leg_of(role, (one, other))).await;
            assert_eq!(workers.client.answer().await.status(), 200);
            workers.process.line("request finished").await;
        }
        workers.client.send(post("/generate", BODY)).await;
        let (index, dying) = leg(workers.of(role)).await;
        let other = workers.other_leg(role, &dying).await;
        workers.of(role)[index].stop_listening().await;
        dying.reset();
        other.closed().await;
        let one = workers.of(role)[1 - index].request().await;
        let other = workers.other_leg(role, &one).await;
        serve(leg_of(role, (one, other))).await;
        assert_eq!(workers.client.answer().await.status(), 200);
        let line = workers.process.line("request finished").await;
        let failed = format!("{role}_lost@{}", workers.url(role, index));
        assert_eq!(field(&line, "failed"), Some(failed.as_str()), "{line}");
    }
}

/// Joins prefill's response, so that its end comes before the first byte.
const MERGED: &str = r#"{"text":"a","return_logprob":true,"logprob_start_len":0,"stream":true}"#;
const LOGPROBS: &str = r#"{"meta_info":{"input_token_logprobs":[[null,1,null]]}}"#;

#[tokio::test]
async fn the_line_tells_the_wait_for_prefill_from_the_wait_for_decode() {
    let mut workers = Workers::start().await;
    workers.client.send(post("/generate", MERGED)).await;
    let (mut prefill, mut decode) = workers.next_legs().await;
    prefill.begin_stream().await;
    decode.begin_stream().await;
    let event = format!("data: {LOGPROBS}\n\ndata: [DONE]\n\n");
    for leg in [&mut prefill, &mut decode] {
        leg.chunk(&event).await;
        leg.send("0\r\n\r\n").await;
    }
    assert_eq!(workers.client.answer().await.status(), 200);
    let line = workers.process.line("request finished").await;
    let millis = |name| field(&line, name).unwrap().parse::<f64>().unwrap();
    // Each figure is rounded to a tenth.
    let parts = millis("prefill_ms") + millis("decode_ms");
    assert!(parts <= millis("ttft_ms") + 0.11, "{line}");
    assert!(millis("ttft_ms") <= millis("e2e_ms"), "{line}");
}

#[tokio::test]
async fn the_line_of_a_document_has_no_time_to_a_first_token() {
    let mut workers = Workers::start().await;
    let body = MERGED.replace(",\"stream\":true", "");
    workers.client.send(post("/generate", &body)).await;
    let (prefill, decode) = workers.next_legs().await;
    prefill.answer("200 OK", LOGPROBS).await;
    decode.answer("200 OK", LOGPROBS).await;
    assert_eq!(workers.client.answer().await.status(), 200);
    let line = workers.process.line("request finished").await;
    assert_eq!(field(&line, "ttft_ms"), None, "{line}");
    for name in ["prefill_ms", "decode_ms", "e2e_ms"] {
        assert!(field(&line, name).is_some(), "{name} in {line}");
    }
}

#[tokio::test]
async fn the_line_does_not_wait_for_a_prefill_that_ends_after_decode() {
    let mut workers = Workers::start().await;
    workers.client.send(post("/generate", BODY)).await;
    let (prefill, decode) = workers.next_legs().await;
    decode.answer("200 OK", "{}").await;
    assert_eq!(workers.client.answer().await.status(), 200);
    let line = workers.process.line("request finished").await;
    assert_eq!(field(&line, "ended"), Some("ok"), "{line}");
    assert_eq!(field(&line, "prefill_ms"), None, "{line}");
    prefill.answer("200 OK", "{}").await;
}

#[tokio::test]
async fn the_line_names_the_client_and_its_key_but_never_the_key() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys");
    std::fs::write(&keys, "sk-one\n\nsk-two\nsk-three # team-c\n").unwrap();
    let flags = format!("--api-key-file {} --admin-api-key sk-admin", keys.display());
    let mut workers = Workers::with(&flags).await;
    for (key, path, name) in [
        ("sk-one", "/nothing", Some("line-1")),
        ("sk-two", "/nothing", Some("line-3")),
        ("sk-three", "/nothing", Some("team-c")),
        ("sk-wrong", "/nothing", None),
        ("sk-admin", "/flush_cache", Some("admin_api_key")),
    ] {
        let request =
            format!("DELETE {path} HTTP/1.1\r\nhost: b\r\nauthorization: Bearer {key}\r\n\r\n");
        workers.client.send(request).await;
        workers.client.answer().await;
        let line = workers.process.line("request finished").await;
        assert_eq!(field(&line, "key"), name, "{line}");
        let client = workers.client.local_address().to_string();
        assert_eq!(field(&line, "client"), Some(client.as_str()), "{line}");
        assert!(!line.contains("sk-"), "{line}");
    }
}

#[tokio::test]
async fn the_address_of_the_client_can_be_left_out() {
    let mut workers = Workers::with("--disable-log-client-address").await;
    workers.client.send(post("/nothing", BODY)).await;
    assert_eq!(workers.client.answer().await.status(), 404);
    let line = workers.process.line("request finished").await;
    assert_eq!(field(&line, "client"), None, "{line}");
    assert!(!line.contains("127.0.0.1"), "{line}");
}

#[tokio::test]
async fn a_probe_that_is_answered_yes_is_a_line_at_debug_level_only() {
    let mut workers = Workers::start().await;
    for path in ["/health", "/readiness", "/nothing"] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: b\r\n\r\n");
        workers.client.send(request).await;
        workers.client.answer().await;
    }
    // The lines come in the order of the requests.
    let line = workers.process.line("request finished").await;
    assert_eq!(field(&line, "path"), Some("/nothing"), "{line}");
    let mut workers = Workers::with("--log-level debug").await;
    workers
        .client
        .send("GET /health HTTP/1.1\r\nhost: b\r\n\r\n")
        .await;
    workers.client.answer().await;
    let line = workers.process.line("request finished").await;
    assert!(
        line.contains("DEBUG") && line.contains("path=/health"),
        "{line}"
    );
}

#[tokio::test]
async fn a_probe_that_is_answered_no_is_a_line() {
    let absent = (Worker::refusing().await, Worker::refusing().await);
    let line = format!(
        "--host 127.0.0.1 --port 0 --prefill {} 8998 --decode {}",
        absent.0, absent.1
    );
    let mut process = mini_lb!(&line.split_whitespace().collect::<Vec<_>>());
    let mut client = Client::connect(process.address().await).await;
    loop {
        let request = "GET /readiness HTTP/1.1\r\nhost: b\r\n\r\n";
        client.send(request).await;
        match client.answer().await.status() {
            503 => break,
            status => assert_eq!(status, 200, "before the first probe"),
        }
        tokio::task::yield_now().await;
    }
    let line = process.line("request finished").await;
    assert!(line.contains("ended=no_worker"), "{line}");
}
