//! The units of work: requests of clients and responses of workers, one step after the other. Counting is in
//! `allocated` and `traced`.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::Watched;
use support::{Client, Exchange, Worker, post};

/// Requests of a client, or events of its stream, in one round.
const UNITS: usize = 24;
/// Events of a sample before its last one.
const SAMPLE_EVENTS: usize = 16;
/// Bytes of a small prompt.
const SMALL: usize = 900;
/// Logprobs of a prompt.
const LOGPROBS: usize = 2_000;

/// One unit of work.
pub(crate) enum Unit {
    /// A request with the responses of both workers.
    Request {
        request: String,
        prefill: String,
        decode: String,
    },
    /// A request for a stream of so many samples, each with these events.
    Samples {
        request: String,
        samples: usize,
        events: Vec<String>,
    },
    /// One event of decode in a stream that has begun.
    Event {
        request: String,
        prefill: Vec<String>,
        decode: String,
    },
}

/// Workers, a balancer and clients that take one step at a time.
pub(crate) struct Lockstep<W> {
    pub(crate) watched: W,
    /// None behind a plain proxy.
    prefill: Option<Worker>,
    decode: Worker,
    clients: Vec<Client>,
}

impl Unit {
    pub(crate) fn small_chat() -> Unit {
        Unit::chat(SMALL)
    }

    pub(crate) fn long_prompt() -> Unit {
        Unit::chat(1 << 20)
    }

    fn chat(bytes: usize) -> Unit {
        let answer = json!({
            "id": "0c7e1f", "object": "chat.completion", "created": 1, "model": "sim",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "words ".repeat(20)},
                "logprobs": null, "finish_reason": "length", "matched_stop": null}],
            "usage": {"prompt_tokens": 225, "total_tokens": 245, "completion_tokens": 20},
        })
        .to_string();
        Unit::Request {
            request: chat_request(bytes, false, 1),
            prefill: answer.clone(),
            decode: answer,
        }
    }

    pub(crate) fn merged_answer() -> Unit {
        Unit::Request {
            request: generate_request(false),
            prefill: generated(LOGPROBS).to_string(),
            decode: generated(0).to_string(),
        }
    }

    /// A streamed chat of this many samples.
    pub(crate) fn samples(samples: usize) -> Unit {
        let mut events = vec![chat_event(&Value::Null); SAMPLE_EVENTS];
        events.push(chat_event(&"stop".into()));
        events.push("data: [DONE]\n\n".to_owned());
        Unit::Samples {
            request: chat_request(SMALL, true, samples),
            samples,
            events,
        }
    }

    pub(crate) fn passing_events() -> Unit {
        let event = chat_event(&Value::Null);
        Unit::Event {
            request: chat_request(SMALL, true, 1),
            prefill: vec![event.clone()],
            decode: event,
        }
    }

    pub(crate) fn merged_events() -> Unit {
        Unit::Event {
            request: generate_request(true),
            prefill: vec![event(&generated(LOGPROBS))],
            decode: event(&generated(0)),
        }
    }
}

impl<W: Watched> Lockstep<W> {
    pub(crate) async fn new(
        watched: W,
        prefill: Option<Worker>,
        decode: Worker,
        balancer: SocketAddr,
        clients: usize,
    ) -> Self {
        let mut connected = Vec::new();
        for _ in 0..clients {
            connected.push(Client::connect(balancer).await);
        }
        Lockstep {
            watched,
            prefill,
            decode,
            clients: connected,
        }
    }

    /// Opens another connection, which the next request comes over.
    pub(crate) async fn connect(&mut self, balancer: SocketAddr) {
        self.clients.insert(0, Client::connect(balancer).await);
    }

    /// Begins the streams that last through all rounds, and returns decode's side of each.
    pub(crate) async fn begin(&mut self, unit: &Unit) -> Vec<Exchange> {
        let Unit::Event {
            request,
            prefill,
            decode,
        } = unit
        else {
            return Vec::new();
        };
        let (prefills, mut decodes) = self.ask(request).await;
        for mut leg in prefills {
            leg.begin_stream().await;
            for event in prefill {
                leg.chunk(event).await;
            }
            leg.chunk("data: [DONE]\n\n").await;
            leg.chunk("").await;
            leg.keep();
        }
        self.watched.quiet().await;
        for leg in &mut decodes {
            leg.begin_stream().await;
            // The balancer holds the head back until the first event, which could be an error.
            leg.chunk(decode).await;
        }
        for client in &mut self.clients {
            assert!(client.head().await.starts_with("HTTP/1.1 200"));
            client.chunk().await.unwrap();
        }
        self.watched.quiet().await;
        decodes
    }

    /// Runs one round of units for each client, and returns their number.
    pub(crate) async fn round(&mut self, unit: &Unit, live: &mut [Exchange]) -> usize {
        for _ in 0..UNITS {
            match unit {
                Unit::Request {
                    request,
                    prefill,
                    decode,
                } => self.exchange(request, prefill, decode).await,
                Unit::Samples {
                    request,
                    samples,
                    events,
                } => self.stream(request, *samples, events).await,
                Unit::Event { decode, .. } => self.event(decode, live).await,
            }
        }
        UNITS * self.clients.len()
    }

    pub(crate) async fn end(&mut self, live: Vec<Exchange>) {
        for mut leg in live {
            leg.chunk("data: [DONE]\n\n").await;
            leg.chunk("").await;
            leg.keep();
        }
    }

    async fn exchange(&mut self, request: &str, prefill: &str, decode: &str) {
        let (prefills, decodes) = self.ask(request).await;
        let known = prefills.first().map_or(0, |_| prefill.len());
        self.answer(prefills, prefill).await;
        self.watched.quiet().await;
        self.answer(decodes, decode).await;
        for client in &mut self.clients {
            let answer = client.answer().await;
            assert_eq!(answer.status(), 200);
            // It contains prefill's data.
            assert!(answer.body.len() >= decode.len().max(known));
        }
        self.watched.quiet().await;
    }

    /// Streams all samples of one client to their end. The same event of all of them is sent before the balancer continues.
    async fn stream(&mut self, request: &str, samples: usize, events: &[String]) {
        let mut decodes = self.begin_samples(request, samples).await;
        self.events(&mut decodes, events).await;
        self.end_samples(decodes, samples * (events.len() - 1))
            .await;
    }

    /// Begins the streams of all samples of one client, and returns decode's side of each.
    pub(crate) async fn begin_samples(&mut self, request: &str, samples: usize) -> Vec<Exchange> {
        self.clients[0].send(request).await;
        let (mut prefills, mut decodes) = (Vec::new(), Vec::new());
        for _ in 0..samples {
            let prefill = self.prefill.as_mut().unwrap();
            prefills.push(prefill.request().await);
            decodes.push(self.decode.request().await);
        }
        self.watched.quiet().await;
        self.answer(prefills, "{}").await;
        for decode in &mut decodes {
            decode.begin_stream().await;
        }
        decodes
    }

    /// Sends these events of all samples.
    pub(crate) async fn events(&mut self, decodes: &mut [Exchange], events: &[String]) {
        for event in events {
            let held = self.watched.hold().await;
            for decode in &mut *decodes {
                decode.chunk(event).await;
                self.watched.woken().await;
            }
            drop(held);
            self.watched.quiet().await;
        }
    }

    /// Ends the streams of all samples, which together had so many words.
    pub(crate) async fn end_samples(&mut self, decodes: Vec<Exchange>, words: usize) {
        for mut decode in decodes {
            decode.chunk("").await;
            decode.keep();
        }
        let answer = self.clients[0].answer().await;
        assert_eq!(answer.text().matches("word").count(), words);
        self.watched.quiet().await;
    }

    /// Sends all responses before the balancer continues.
    async fn answer(&self, legs: Vec<Exchange>, body: &str) {
        let held = self.watched.hold().await;
        for leg in legs {
            leg.answer("200 OK", body).await;
            self.watched.woken().await;
        }
        drop(held);
    }

    async fn event(&mut self, event: &str, live: &mut [Exchange]) {
        let held = self.watched.hold().await;
        for leg in live {
            leg.chunk(event).await;
            self.watched.woken().await;
        }
        drop(held);
        for client in &mut self.clients {
            let chunk = client.chunk().await.unwrap();
            assert!(chunk.ends_with("\n\n") && chunk.len() >= event.len());
        }
        self.watched.quiet().await;
    }

    /// Sends one request from each client, and returns the legs in the order of their arrival.
    async fn ask(&mut self, request: &str) -> (Vec<Exchange>, Vec<Exchange>) {
        let (mut prefills, mut decodes) = (Vec::new(), Vec::new());
        let held = self.watched.hold().await;
        for client in &mut self.clients {
            client.send(request).await;
            self.watched.woken().await;
        }
        drop(held);
        for _ in &self.clients {
            if let Some(prefill) = &mut self.prefill {
                prefills.push(prefill.request().await);
            }
            decodes.push(self.decode.request().await);
        }
        self.watched.quiet().await;
        (prefills, decodes)
    }
}

fn chat_request(bytes: usize, stream: bool, samples: usize) -> String {
    let mut body = json!({
        "model": "sim",
        "messages": [{"role": "user", "content": "words of a prompt ".repeat(bytes / 18)}],
        "max_tokens": 20,
        "stream": stream,
    });
    if samples > 1 {
        body["n"] = samples.into();
    }
    post("/v1/chat/completions", &body.to_string())
}

fn generate_request(stream: bool) -> String {
    let body = json!({
        "input_ids": (1_000..1_000 + LOGPROBS).collect::<Vec<_>>(),
        "sampling_params": {"max_new_tokens": 4},
        "return_logprob": true,
        "logprob_start_len": 0,
        "stream": stream,
    });
    post("/generate", &body.to_string())
}

/// A response of `/generate`. Source: SGLang 0.5.23, `tests/fixtures/sglang-0.5.23/gen_logprob`.
fn generated(logprobs: usize) -> Value {
    let logprob = |token: usize| json!([-9.5867, token, null]);
    json!({
        "text": " word", "output_ids": [522],
        "meta_info": {
            "id": "0c7e1f", "finish_reason": {"type": "length", "length": 1}, "prompt_tokens": LOGPROBS,
            "input_token_logprobs": (0..logprobs).map(logprob).collect::<Vec<_>>(),
            "output_token_logprobs": [logprob(522)], "completion_tokens": 1, "cached_tokens": 0,
        },
    })
}

/// A chunk of a streamed chat.
fn chat_event(finish_reason: &Value) -> String {
    event(&json!({
        "id": "0c7e1f", "object": "chat.completion.chunk", "created": 1, "model": "sim", "choices": [{
            "index": 0, "delta": {"content": " word"}, "logprobs": null, "finish_reason": finish_reason}],
    }))
}

fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}
