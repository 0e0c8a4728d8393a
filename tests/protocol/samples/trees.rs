//! Gathering documents and events with any values, against trees of `serde_json` values.

use bytes::{Bytes, BytesMut};
use mini_lb::pd::{Batch, Engine, Route};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::{MAX_EVENT_BYTES, event_of};

/// The document that trees of values give.
fn joined_as_trees(route: Route, documents: &[Value]) -> Value {
    let mut whole = documents[0].clone();
    if route == Route::Generate {
        let items = |document: &Value| match document {
            Value::Array(items) => items.clone(),
            item => vec![item.clone()],
        };
        let samples: Vec<Vec<Value>> = documents.iter().map(items).collect();
        let prompts =
            (0..samples[0].len()).flat_map(|p| samples.iter().map(move |own| own[p].clone()));
        return prompts.collect();
    }
    let n = documents.len();
    let mut choices = vec![Value::Null; whole["choices"].as_array().unwrap().len() * n];
    for (sample, document) in documents.iter().enumerate() {
        for choice in document["choices"].as_array().unwrap() {
            let flat = usize::try_from(choice["index"].as_u64().unwrap()).unwrap() * n + sample;
            choices[flat] = choice.clone();
            choices[flat]["index"] = flat.into();
        }
    }
    whole["choices"] = choices.into();
    let Some(usage) = whole.get_mut("usage").and_then(Value::as_object_mut) else {
        return whole;
    };
    let sum = |key: &str| -> u64 {
        let tokens = |document: &Value| document["usage"][key].as_u64().unwrap_or_default();
        documents.iter().map(tokens).sum()
    };
    usage.insert("completion_tokens".into(), sum("completion_tokens").into());
    usage.insert("reasoning_tokens".into(), sum("reasoning_tokens").into());
    let total = usage["prompt_tokens"].as_u64().unwrap() + sum("completion_tokens");
    usage.insert("total_tokens".into(), total.into());
    whole
}

/// A value that is as good as any other here, with texts and keys that look like those that are searched.
fn any_value(rng: &mut SmallRng, depth: usize) -> Value {
    const TEXTS: [&str; 6] = [
        "\"index\":7,",
        "},{\"index\":1",
        "choices",
        "\"choices\":[{\"index\":",
        "é\n\u{2028}",
        "",
    ];
    const KEYS: [&str; 5] = ["index", "choices", "usage", "meta_info", "x"];
    match rng.random_range(0..if depth == 0 { 4 } else { 6 }) {
        0 => Value::Null,
        1 => rng.random_range(-9i64..9).into(),
        2 => rng.random_range(-1.0..1.0).into(),
        3 => TEXTS[rng.random_range(0..TEXTS.len())].into(),
        4 => (0..rng.random_range(0..3))
            .map(|_| any_value(rng, depth - 1))
            .collect(),
        _ => (0..rng.random_range(0..3))
            .map(|_| {
                let key = KEYS[rng.random_range(0..KEYS.len())].to_owned();
                (key, any_value(rng, depth - 1))
            })
            .collect::<serde_json::Map<_, _>>()
            .into(),
    }
}

/// The members of an object in a random order.
fn shuffle(rng: &mut SmallRng, members: Vec<(&str, Value)>) -> Value {
    let mut left = members;
    let mut object = serde_json::Map::new();
    while !left.is_empty() {
        let (key, value) = left.swap_remove(rng.random_range(0..left.len()));
        object.insert(key.to_owned(), value);
    }
    object.into()
}

fn any_document(rng: &mut SmallRng, route: Route, batch: Batch) -> Value {
    let prompts = batch.prompts();
    if route == Route::Generate {
        let item = |rng: &mut SmallRng| {
            let members = vec![
                ("text", any_value(rng, 0)),
                ("meta_info", any_value(rng, 2)),
            ];
            shuffle(rng, members)
        };
        return match batch {
            Batch::Single => item(rng),
            Batch::Of(prompts) => (0..prompts).map(|_| item(rng)).collect(),
        };
    }
    let choice = |rng: &mut SmallRng, index: usize| {
        let members = vec![
            ("index", index.into()),
            ("text", any_value(rng, 0)),
            ("logprobs", any_value(rng, 2)),
        ];
        shuffle(rng, members)
    };
    let tokens = |rng: &mut SmallRng| Value::from(rng.random_range(0..1_000));
    let members = vec![
        ("prompt_tokens", 5.into()),
        ("completion_tokens", tokens(rng)),
        ("reasoning_tokens", tokens(rng)),
        ("total_tokens", tokens(rng)),
        ("prompt_tokens_details", Value::Null),
    ];
    let usage = shuffle(rng, members);
    let members = vec![
        ("id", any_value(rng, 0)),
        (
            "choices",
            (0..prompts).map(|index| choice(rng, index)).collect(),
        ),
        ("usage", usage),
        ("metadata", any_value(rng, 2)),
        ("y", any_value(rng, 1)),
    ];
    shuffle(rng, members)
}

#[test]
fn documents_of_any_values_are_gathered_as_trees_would_be() {
    let mut rng = SmallRng::seed_from_u64(12);
    for _ in 0..2_000 {
        let route =
            [Route::Generate, Route::ChatCompletions, Route::Completions][rng.random_range(0..3)];
        let (n, prompts) = (rng.random_range(2..5), rng.random_range(0..4));
        let prompts = if route == Route::ChatCompletions {
            0
        } else {
            prompts
        };
        let list = vec!["a"; prompts];
        let request = match (route, prompts) {
            (_, 0) => json!({"n": n, "text": "a", "sampling_params": {"n": n}}),
            (Route::Generate, _) => json!({"text": list, "sampling_params": {"n": n}}),
            _ => json!({"n": n, "prompt": list}),
        };
        let facts = Engine::Sglang
            .parse(route, request.to_string().as_bytes())
            .unwrap();
        let documents: Vec<Value> = (0..n)
            .map(|_| any_document(&mut rng, route, facts.batch))
            .collect();
        let spelled = |document: &Value| -> Bytes {
            let pretty = serde_json::to_string_pretty(document).unwrap();
            if documents.len().is_multiple_of(2) {
                pretty.into()
            } else {
                document.to_string().into()
            }
        };
        let texts: Vec<Bytes> = documents.iter().map(spelled).collect();
        let gathered = Engine::Sglang
            .gather(route, &facts)
            .document(&texts)
            .unwrap();
        let gathered: Value = serde_json::from_slice(&gathered).unwrap();
        assert_eq!(
            gathered.to_string(),
            joined_as_trees(route, &documents).to_string()
        );
    }
}

/// A chunk of a running stream, or an event of `/generate`: in half of the cases with the keys in SGLang's order.
fn any_event(rng: &mut SmallRng, route: Route, batch: Batch) -> Value {
    let index = match batch {
        Batch::Single => 0,
        Batch::Of(prompts) => rng.random_range(0..prompts),
    };
    let in_order = rng.random_range(0..2) == 0;
    let ordered = |members: Vec<(&str, Value)>, rng: &mut SmallRng| {
        if in_order {
            let members = members
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value));
            members.collect::<serde_json::Map<_, _>>().into()
        } else {
            shuffle(rng, members)
        }
    };
    if route == Route::Generate {
        let mut members = vec![
            ("text", any_value(rng, 0)),
            ("meta_info", any_value(rng, 3)),
        ];
        if batch != Batch::Single {
            members.push(("index", index.into()));
        }
        return ordered(members, rng);
    }
    let choice = vec![
        ("index", index.into()),
        ("delta", any_value(rng, 2)),
        ("logprobs", any_value(rng, 2)),
        ("finish_reason", Value::Null),
    ];
    let choice: Value = ordered(choice, rng);
    let id = format!("{:032x}\"\\é", index)[..rng.random_range(30..34)].to_owned();
    let chunk = vec![
        ("id", id.into()),
        ("object", "chat.completion.chunk".into()),
        ("created", rng.random_range(8..11).into()),
        ("model", any_value(rng, 0)),
        ("choices", json!([choice])),
        ("usage", any_value(rng, 2)),
    ];
    ordered(chunk, rng)
}

#[test]
fn events_of_any_values_are_gathered_as_trees_would_be() {
    let mut rng = SmallRng::seed_from_u64(13);
    for _ in 0..400 {
        let route =
            [Route::Generate, Route::ChatCompletions, Route::Completions][rng.random_range(0..3)];
        let n = rng.random_range(2..5);
        let list = vec!["a"; rng.random_range(1..4)];
        let request = match route {
            Route::Generate => json!({"text": list, "sampling_params": {"n": n}}),
            _ => json!({"n": n, "prompt": list}),
        };
        let facts = Engine::Sglang
            .parse(route, request.to_string().as_bytes())
            .unwrap();
        let mut stream = Engine::Sglang.gather(route, &facts).stream(MAX_EVENT_BYTES);
        let mut created = None;
        for _ in 0..40 {
            let sample = rng.random_range(0..n);
            let event = any_event(&mut rng, route, facts.batch);
            let mut out = BytesMut::new();
            stream.push(sample, event_of(&event), &mut out).unwrap();
            let mut wanted = event;
            let index = match route {
                Route::Generate => &mut wanted["index"],
                _ => &mut wanted["choices"][0]["index"],
            };
            *index = (index.as_u64().unwrap_or_default() * n as u64 + sample as u64).into();
            if let Some(own) = wanted.get_mut("created") {
                *own = created.get_or_insert_with(|| own.clone()).clone();
            }
            assert_eq!(out, event_of(&wanted));
        }
    }
}
