//! A response as one tree that does not depend on how a stream was cut into events.
//!
//! Which tokens share an event depends on the worker's timing, so two streams of the same response differ
//! in their events but not in their contents: the last cumulative event of `/generate`, the concatenated
//! deltas of the others. Properties that every event must have are kept as sets. Nothing is ignored here;
//! that is the task of `comparison`.
//!
//! Source: SGLang 0.5.23, `srt/entrypoints/http_server.py` (`/generate`), `srt/entrypoints/openai/` and
//! `srt/entrypoints/anthropic/`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::client::Answer;

/// The last event of a stream, except in the families with named events.
const DONE: &str = "[DONE]";

/// One event of a stream.
pub(crate) struct Event {
    /// Its `event:` line.
    pub(crate) name: Option<String>,
    /// Its `data:` line.
    pub(crate) data: Data,
}

/// The data of an event.
pub(crate) enum Data {
    /// A tree.
    Json(Value),
    /// `[DONE]`.
    Done,
}

/// Whether a response is a stream of events.
pub(crate) fn is_stream(answer: &Answer) -> bool {
    answer.content_type.starts_with("text/event-stream")
}

/// The tree of a response: status, content type, framing and body.
pub(crate) fn digest(answer: &Answer) -> Result<Value, String> {
    let (framing, body) = if is_stream(answer) {
        ("events", of_events(&events(&answer.body)?))
    } else if answer.content_type.starts_with("application/json") {
        let body = serde_json::from_slice(&answer.body);
        ("whole", body.map_err(|error| format!("not JSON: {error}"))?)
    } else {
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        ("whole", Value::String(text))
    };
    Ok(json!({
        "status": answer.status,
        "content_type": answer.content_type,
        "framing": framing,
        "body": body,
    }))
}

/// Splits a stream into events. Anything except whole events with the two fields that SGLang writes is an error.
pub(crate) fn events(body: &[u8]) -> Result<Vec<Event>, String> {
    let text = std::str::from_utf8(body).map_err(|error| format!("not UTF-8: {error}"))?;
    let Some(text) = text.strip_suffix("\n\n") else {
        return match text {
            "" => Ok(Vec::new()),
            _ => Err("the stream ends within an event".to_owned()),
        };
    };
    text.split("\n\n").map(event).collect()
}

fn event(text: &str) -> Result<Event, String> {
    let (mut name, mut data) = (None, None);
    for line in text.lines() {
        match line.split_once(": ") {
            Some(("event", value)) if name.is_none() => name = Some(value.to_owned()),
            Some(("data", value)) if data.is_none() => data = Some(value),
            _ => return Err(format!("a line that SGLang does not write: {line:?}")),
        }
    }
    let data = match data.ok_or("an event without data")? {
        DONE => Data::Done,
        json => Data::Json(
            serde_json::from_str(json).map_err(|error| format!("{error} in the event {json}"))?,
        ),
    };
    Ok(Event { name, data })
}

/// The digest of a stream; its first event shows the family.
fn of_events(events: &[Event]) -> Value {
    let trees: Vec<(&Option<String>, &Value)> = events
        .iter()
        .filter_map(|event| match &event.data {
            Data::Json(tree) => Some((&event.name, tree)),
            Data::Done => None,
        })
        .collect();
    let dones = events.len() - trees.len();
    let done_is_last = matches!(events.last(), Some(event) if matches!(event.data, Data::Done));
    let says = match trees.first() {
        Some((Some(_), _)) => named(&trees),
        Some((None, tree)) if tree.get("choices").is_some() => choices(&trees),
        Some((None, tree)) if tree.get("meta_info").is_some() => cumulative(&trees),
        _ => json!({ "events": trees.iter().map(|(_, tree)| (*tree).clone()).collect::<Vec<_>>() }),
    };
    json!({ "says": says, "dones": dones, "done_is_last": done_is_last })
}

/// `/generate`: the last event of each index is complete; the keys of `meta_info` that every event
/// of the index has are kept beside it.
fn cumulative(trees: &[(&Option<String>, &Value)]) -> Value {
    let mut items: BTreeMap<u64, (Value, BTreeSet<String>)> = BTreeMap::new();
    for (_, tree) in trees {
        let index = tree.get("index").and_then(Value::as_u64).unwrap_or(0);
        let keys = keys_of(tree.get("meta_info"));
        items
            .entry(index)
            .and_modify(|(last, common)| {
                *last = (*tree).clone();
                common.retain(|key| keys.contains(key));
            })
            .or_insert_with(|| ((*tree).clone(), keys.clone()));
    }
    let items = items.into_iter().map(|(index, (last, common))| {
        // An object, so that keys are compared and ignored by the same rules as elsewhere.
        let common: Map<String, Value> = common.into_iter().map(|key| (key, json!(true))).collect();
        let value = json!({ "last": last, "meta_info_of_every_event": common });
        (index.to_string(), value)
    });
    Value::Object(items.collect())
}

/// Chat and completions: the sum of the deltas of each choice, the fields around them, and
/// the set of the chunks' shapes.
fn choices(trees: &[(&Option<String>, &Value)]) -> Value {
    let mut around = Value::Null;
    let mut by_index: BTreeMap<u64, Value> = BTreeMap::new();
    let mut shapes = BTreeSet::new();
    for (_, tree) in trees {
        let mut rest = (*tree).clone();
        let Some(chunk) = rest.as_object_mut() else {
            continue;
        };
        shapes.insert(shape(tree));
        let choices = chunk.remove("choices").unwrap_or_default();
        for choice in choices.as_array().into_iter().flatten() {
            let index = choice.get("index").and_then(Value::as_u64).unwrap_or(0);
            add(by_index.entry(index).or_default(), choice, "");
        }
        replace(&mut around, &rest);
    }
    let by_index: Map<String, Value> = by_index
        .into_iter()
        .map(|(index, choice)| (index.to_string(), choice))
        .collect();
    json!({ "around": around, "choices": by_index, "shapes": shapes })
}

/// Responses and messages: the events in order, with consecutive deltas of one kind joined.
fn named(trees: &[(&Option<String>, &Value)]) -> Value {
    let mut rows: Vec<Value> = Vec::new();
    for (name, tree) in trees {
        let delta = name.as_ref().is_some_and(|name| name.ends_with("delta"));
        match rows.last_mut() {
            Some(row) if delta && row["event"].as_str() == name.as_deref() => {
                add(&mut row["data"], tree, "");
            }
            _ => rows.push(json!({ "event": name, "data": tree })),
        }
    }
    Value::Array(rows)
}

/// Adds a delta: texts and lists grow, other values are replaced unless the new one is null.
fn add(sum: &mut Value, delta: &Value, key: &str) {
    match (&mut *sum, delta) {
        (Value::Object(sum), Value::Object(delta)) => {
            for (key, value) in delta {
                add(sum.entry(key.clone()).or_insert(Value::Null), value, key);
            }
        }
        (Value::Array(sum), Value::Array(delta)) => sum.extend_from_slice(delta),
        (Value::String(sum), Value::String(delta)) if grows(key) => sum.push_str(delta),
        (_, Value::Null) => {}
        (sum, delta) => *sum = delta.clone(),
    }
}

/// The keys whose texts are deltas; the others are the same in every event.
fn grows(key: &str) -> bool {
    matches!(key, "content" | "reasoning_content" | "text" | "delta")
}

/// Replaces members by those that are not null, lists included.
fn replace(held: &mut Value, new: &Value) {
    match (&mut *held, new) {
        (Value::Object(held), Value::Object(new)) => {
            for (key, value) in new {
                replace(held.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (held, new) => *held = new.clone(),
    }
}

/// The keys of an object.
fn keys_of(tree: Option<&Value>) -> BTreeSet<String> {
    let object = tree.and_then(Value::as_object);
    object.map_or_else(BTreeSet::new, |object| object.keys().cloned().collect())
}

/// Keys and types of a chunk, without values; a list has the shape of its first element.
fn shape(tree: &Value) -> String {
    match tree {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(_) => "number".to_owned(),
        Value::String(_) => "text".to_owned(),
        Value::Array(list) => match list.first() {
            Some(first) => format!("[{}]", shape(first)),
            None => "[]".to_owned(),
        },
        Value::Object(object) => {
            let mut members: Vec<String> = object
                .iter()
                // Their keys are tokens.
                .map(|(key, value)| match key.as_str() {
                    "top_logprobs" => "top_logprobs".to_owned(),
                    _ => format!("{key}:{}", shape(value)),
                })
                .collect();
            members.sort();
            format!("{{{}}}", members.join(","))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(body: &str) -> Result<Value, String> {
        digest(&Answer {
            status: 200,
            content_type: "text/event-stream; charset=utf-8".to_owned(),
            request_id: None,
            body: body.to_owned().into(),
        })
    }

    fn chat(deltas: &[&str]) -> String {
        let chunk = |delta: &&str| {
            let choice =
                json!({ "index": 0, "delta": { "content": delta }, "finish_reason": null });
            format!("data: {}\n\n", json!({ "choices": [choice] }))
        };
        let chunks: String = deltas.iter().map(chunk).collect();
        format!("{chunks}data: [DONE]\n\n")
    }

    #[test]
    fn a_stream_says_the_same_wherever_its_tokens_are_cut() {
        assert_eq!(stream(&chat(&["a", "b", "c"])), stream(&chat(&["ab", "c"])));
        assert_ne!(stream(&chat(&["a", "b"])), stream(&chat(&["a", "c"])));
    }

    #[test]
    fn a_key_that_one_event_lacks_shows() {
        let event = |text: &str, more: &str| {
            format!("data: {{\"text\":\"{text}\",\"meta_info\":{{\"id\":\"x\"{more}}}}}\n\n")
        };
        let logprobs = ",\"input_token_logprobs\":[]";
        let all = event("a", logprobs) + &event("ab", logprobs);
        let last_only = event("a", "") + &event("ab", logprobs);
        assert_ne!(stream(&all), stream(&last_only));
    }

    #[test]
    fn a_stream_without_its_last_word_or_a_cut_event_shows() {
        let whole = chat(&["a"]);
        let done = whole.len() - "data: [DONE]\n\n".len();
        assert_ne!(stream(&whole), stream(&whole[..done]));
        assert!(stream(&whole[..whole.len() - 1]).is_err());
        assert!(stream("data: {\"a\":1}\nmore\n\n").is_err());
    }
}
