//! Invariants of a single response, without another one to compare it with.
//!
//! They are checked on the response of the ordinary server too: an invariant that it violates is wrong.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::cases::Case;
use crate::client::Answer;
use crate::digest::{Data, Event, events, is_stream};

/// The violations of a response, one line each.
pub(crate) fn violations(case: &Case, answer: &Answer) -> Vec<String> {
    let mut violations = Vec::new();
    let status = effective_status(answer);
    if status != case.status {
        violations.push(format!("status {status} instead of {}", case.status));
    }
    if status == 200 {
        if is_stream(answer) {
            match events(&answer.body) {
                Ok(events) => violations.extend(of_stream(case, &events)),
                Err(error) => violations.push(error),
            }
        } else if case.request.path == "/generate" {
            let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            match body.as_array() {
                Some(items) => violations.extend(items.iter().flat_map(|item| of_item(case, item))),
                None => violations.extend(of_item(case, &body)),
            }
        }
    }
    violations
}

/// The status, or the one of the first error in a stream: a worker reports it there when it has
/// already sent its head.
fn effective_status(answer: &Answer) -> u16 {
    let events = match is_stream(answer) {
        true => events(&answer.body).unwrap_or_default(),
        false => Vec::new(),
    };
    let code = trees(&events).find_map(|tree| {
        let error = &tree["error"];
        let abort = &tree["meta_info"]["finish_reason"]["status_code"];
        let invalid = error["type"] == "invalid_request_error";
        let code = error["code"].as_u64().or_else(|| abort.as_u64());
        code.or(invalid.then_some(400))
    });
    code.and_then(|code| u16::try_from(code).ok())
        .unwrap_or(answer.status)
}

fn of_stream(case: &Case, events: &[Event]) -> Vec<String> {
    let mut violations = Vec::new();
    let named = events.iter().any(|event| event.name.is_some());
    let dones = events
        .iter()
        .filter(|event| matches!(event.data, Data::Done))
        .count();
    if !named && dones != 1 {
        violations.push(format!("{dones} times [DONE]"));
    }
    if case.request.path == "/generate" {
        violations.extend(of_cumulative(case, events));
    }
    if case.samples > 1 {
        violations.extend(of_samples(case, events));
    }
    if case.request.path == "/v1/responses" {
        let numbers = trees(events).map(|tree| tree["sequence_number"].as_u64());
        if !numbers.eq((0..).map(Some).take(events.len())) {
            violations.push("the sequence numbers have a gap".to_owned());
        }
    }
    violations
}

/// Each sample has an id that no other has, until chat's finish chunks, which come after all samples.
fn of_samples(case: &Case, events: &[Event]) -> Vec<String> {
    let chat = case.request.path == "/v1/chat/completions";
    let mut ids: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
    let mut finishes = false;
    let mut violations = Vec::new();
    for tree in trees(events) {
        let choice = &tree["choices"][0];
        let index = choice["index"].as_u64().or_else(|| tree["index"].as_u64());
        let id = tree["id"]
            .as_str()
            .or_else(|| tree["meta_info"]["id"].as_str());
        let (Some(index), Some(id)) = (index, id) else {
            continue;
        };
        if chat && choice["finish_reason"].is_string() {
            finishes = true;
            continue;
        }
        if finishes {
            violations.push(format!("index {index}: an event after a finish chunk"));
        }
        ids.entry(index).or_default().insert(id);
    }
    let all: BTreeSet<&str> = ids.values().flatten().copied().collect();
    let one_each = ids.values().all(|of_one| of_one.len() == 1);
    if !one_each || all.len() != ids.len() {
        violations.push(format!("the samples' ids are {ids:?}"));
    }
    violations
}

/// Each event of `/generate` continues the one before, has the same prompt, and only the last one of
/// an index has a finish reason.
fn of_cumulative(case: &Case, events: &[Event]) -> Vec<String> {
    let mut violations = Vec::new();
    let mut by_index: BTreeMap<u64, Vec<&Value>> = BTreeMap::new();
    for tree in trees(events) {
        let index = tree["index"].as_u64().unwrap_or(0);
        by_index.entry(index).or_default().push(tree);
    }
    for (index, items) in by_index {
        for pair in items.windows(2) {
            let ids = |at: usize| {
                pair[at]["output_ids"]
                    .as_array()
                    .map_or(&[][..], Vec::as_slice)
            };
            if !ids(1).starts_with(ids(0)) {
                violations.push(format!(
                    "index {index}: an event does not go on from the one before"
                ));
            }
            if !pair[0]["meta_info"]["finish_reason"].is_null() {
                violations.push(format!("index {index}: an event after the last"));
            }
            if prompt_side(pair[0]) != prompt_side(pair[1]) {
                violations.push(format!(
                    "index {index}: the prompt's logprobs change between events"
                ));
            }
        }
        if let Some(last) = items.last() {
            violations.extend(of_item(case, last));
        }
    }
    violations
}

/// The members of an event about the prompt.
fn prompt_side(item: &Value) -> Vec<(&String, &Value)> {
    let meta_info = item["meta_info"].as_object();
    let members = meta_info.into_iter().flatten();
    members
        .filter(|(key, _)| key.starts_with("input_"))
        .collect()
}

/// Checks the lengths of the lists in a finished item.
fn of_item(case: &Case, item: &Value) -> Vec<String> {
    let meta_info = &item["meta_info"];
    let length = |key: &str| meta_info[key].as_array().map(Vec::len);
    let count = |key: &str| {
        meta_info[key]
            .as_u64()
            .and_then(|count| usize::try_from(count).ok())
    };
    let mut violations = Vec::new();
    if meta_info["finish_reason"].is_null() {
        violations.push("no finish reason".to_owned());
    }
    if let Some(start) = case.starts_at {
        let wanted = count("prompt_tokens").map(|tokens| tokens.saturating_sub(start));
        let found = length("input_token_logprobs");
        if found != wanted {
            violations.push(format!(
                "input_token_logprobs: {found:?} rows instead of {wanted:?}"
            ));
        }
    }
    let (rows, tokens) = (length("output_token_logprobs"), count("completion_tokens"));
    if rows.is_some() && rows != tokens {
        violations.push(format!(
            "output_token_logprobs: {rows:?} rows for {tokens:?} tokens"
        ));
    }
    violations
}

fn trees(events: &[Event]) -> impl Iterator<Item = &Value> {
    events.iter().filter_map(|event| match &event.data {
        Data::Json(tree) => Some(tree),
        Data::Done => None,
    })
}
