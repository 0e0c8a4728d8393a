//! Gathering samples, against what an ordinary server of SGLang 0.5.23 answered to `n > 1`: its response is taken apart
//! into those of `n` servers of one sample each, which together must give its bytes again.

mod streams;
mod trees;

use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use mini_lb::pd::{Batch, Engine, Facts, Gather, Invalid, Route, sse};
use serde_json::{Value, json};

const DOCUMENTS: [&str; 8] = [
    "n_gen_2",
    "n_gen_rid",
    "n_gen_batch_2x2",
    "n_gen_batch_rid_list",
    "n_chat_2_logprobs",
    "n_chat_3",
    "n_cmpl_3_ids",
    "n_cmpl_list_2x2_echo_logprobs",
];

/// No event of the captures is longer.
const MAX_EVENT_BYTES: usize = 1 << 14;

/// A request with `n > 1`, and an ordinary server's answer.
struct Captured {
    route: Route,
    request: Bytes,
    facts: Facts,
    n: usize,
    ordinary: Bytes,
}

fn captured(scenario: &str, extension: &str) -> Captured {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/sglang-0.5.23")
        .join(scenario);
    let read = |name: &str| Bytes::from(fs::read(folder.join(name)).unwrap());
    let route = match scenario.split('_').nth(1) {
        Some("gen") => Route::Generate,
        Some("chat") => Route::ChatCompletions,
        _ => Route::Completions,
    };
    let request = read("request.json");
    let facts = Engine::Sglang.parse(route, &request).unwrap();
    assert_eq!(facts.stream, extension == "sse", "{scenario}");
    Captured {
        n: usize::try_from(facts.n).unwrap(),
        ordinary: read(&format!("ordinary.{extension}")),
        route,
        request,
        facts,
    }
}

impl Captured {
    fn gather(&self) -> Gather {
        Engine::Sglang.gather(self.route, &self.facts)
    }

    /// The documents of `n` servers of one sample each.
    fn documents(&self) -> Vec<Bytes> {
        let whole: Value = serde_json::from_slice(&self.ordinary).unwrap();
        let of_sample = |sample: usize| match self.route {
            Route::Generate => {
                let mut items = whole.as_array().unwrap().iter().cloned();
                let items: Vec<Value> = std::iter::from_fn(|| {
                    let prompt: Vec<Value> = items.by_ref().take(self.n).collect();
                    prompt.get(sample).cloned()
                })
                .collect();
                match self.facts.batch {
                    Batch::Single => items[0].clone(),
                    Batch::Of(_) => items.into(),
                }
            }
            _ => {
                let mut document = whole.clone();
                let choices = document["choices"].as_array_mut().unwrap();
                let mut flat = 0..;
                choices.retain(|_| flat.next().unwrap() % self.n == sample);
                for (prompt, choice) in choices.iter_mut().enumerate() {
                    choice["index"] = prompt.into();
                }
                if sample > 0 {
                    document["id"] = format!("sample-{sample}").into();
                    document["created"] = 7.into();
                }
                share(&mut document["usage"], sample, self.n);
                document
            }
        };
        (0..self.n)
            .map(|sample| of_sample(sample).to_string().into())
            .collect()
    }

    /// The events of `n` servers of one sample each, in the order in which the ordinary server sent them.
    fn events(&self) -> Vec<(usize, Bytes)> {
        let mut events = Vec::new();
        let mut last: Vec<Value> = vec![Value::Null; self.n];
        let mut usage = None;
        let mut finished = Vec::new();
        for event in sse::events(self.ordinary.clone()) {
            let Ok(mut json) = serde_json::from_slice::<Value>(sse::data(&event).unwrap()) else {
                assert!(sse::is_done(&event));
                continue;
            };
            if json
                .get("choices")
                .is_some_and(|choices| *choices == json!([]))
            {
                usage = Some(json);
                continue;
            }
            let index = match self.route {
                Route::Generate => &mut json["index"],
                _ => &mut json["choices"][0]["index"],
            };
            let flat = usize::try_from(index.as_u64().unwrap()).unwrap();
            let sample = flat % self.n;
            *index = (flat / self.n).into();
            if self.facts.batch == Batch::Single && self.route == Route::Generate {
                json.as_object_mut().unwrap().shift_remove("index");
            }
            let is_finish = json["choices"][0]["finish_reason"].is_string();
            if is_finish && self.route == Route::ChatCompletions {
                json["id"] = last[sample]["id"].clone();
                finished.push(sample);
            }
            last[sample] = json.clone();
            events.push((sample, event_of(&json)));
        }
        // The samples end in the order in which they finish.
        if finished.is_empty() {
            finished.extend(0..self.n);
        }
        for sample in finished {
            let mut end = vec![(sample, Bytes::from_static(b"data: [DONE]\n\n"))];
            if let Some(mut own) = usage.clone() {
                own["id"] = last[sample]["id"].clone();
                share(&mut own["usage"], sample, self.n);
                end.insert(0, (sample, event_of(&own)));
            }
            let at = match self.route {
                Route::ChatCompletions => {
                    events.iter().rposition(|(of, _)| *of == sample).unwrap() + 1
                }
                _ => events.len(),
            };
            events.splice(at..at, end);
        }
        events
    }
}

/// The share of one sample in the usage of all.
fn share(usage: &mut Value, sample: usize, n: usize) {
    let n = n as u64;
    let part = |all: u64| all / n + u64::from((sample as u64) < all % n);
    let completion = part(usage["completion_tokens"].as_u64().unwrap());
    usage["completion_tokens"] = completion.into();
    usage["total_tokens"] = (usage["prompt_tokens"].as_u64().unwrap() + completion).into();
}

fn event_of(json: &Value) -> Bytes {
    format!("data: {json}\n\n").into()
}

#[test]
fn the_documents_of_all_samples_become_the_ordinary_servers_document() {
    for scenario in DOCUMENTS {
        let captured = captured(scenario, "json");
        let documents = captured.documents();
        assert_eq!(documents.len(), captured.n);
        let gathered = captured.gather().document(&documents).unwrap();
        assert_eq!(gathered, captured.ordinary, "{scenario}");
    }
}

#[test]
fn an_ordinary_servers_refusal_has_its_own_bytes() {
    let captured = |scenario: &str, name: &str| {
        let folder = format!("tests/fixtures/sglang-0.5.23/{scenario}");
        fs::read(
            PathBuf::from(env!("CARGO_MANIFEST_DIR"))
                .join(folder)
                .join(name),
        )
        .unwrap()
    };
    let scenario = "n_err_gen_list_logprob";
    let request = captured(scenario, "request.json");
    let Err(Invalid::Samples(refusal)) = Engine::Sglang.parse(Route::Generate, &request) else {
        panic!("not refused");
    };
    assert_eq!(refusal.body, captured(scenario, "ordinary.json"));
}

#[test]
fn a_samples_body_is_the_clients_but_for_n() {
    for scenario in DOCUMENTS {
        let captured = captured(scenario, "json");
        let body = Engine::Sglang.sample_body(captured.route, &captured.request, &captured.facts);
        let mut wanted: Value = serde_json::from_slice(&captured.request).unwrap();
        let members = wanted.as_object_mut().unwrap();
        members.shift_remove("rid");
        match captured.route {
            Route::Generate => members["sampling_params"]
                .as_object_mut()
                .unwrap()
                .shift_remove("n"),
            _ => members.shift_remove("n"),
        };
        assert_eq!(body, wanted.to_string(), "{scenario}");
        let facts = Engine::Sglang.parse(captured.route, &body).unwrap();
        assert_eq!((facts.n, facts.rid), (1, None), "{scenario}");
    }
}
