//! Reads single fields of a body as SGLang does. The schema has refused other types before.

use serde_json::Value;

use super::{Bootstrap, Sampling, new_rid};
use crate::sim::errors::Failure;
use crate::sim::model;

/// The bootstrap fields of item `index` of `batch` items.
/// A scalar room r stands for r, r+1, ...; a list that is too short gets 500, as the transcript
/// d_batch_room_len_mismatch shows.
pub(super) fn bootstrap(
    body: &Value,
    index: usize,
    batch: Option<usize>,
) -> Result<Bootstrap, Failure> {
    let pick = |name: &str| match body.get(name) {
        Some(Value::Array(list)) => match (batch, list.get(index)) {
            (Some(_), Some(value)) => Ok(Some(value)),
            (Some(_), None) => Err(Failure::Internal),
            (None, _) => Ok(list.first()),
        },
        other => Ok(other),
    };
    let room = pick("bootstrap_room")?.and_then(integer);
    let scalar = !matches!(body.get("bootstrap_room"), Some(Value::Array(_)));
    Ok(Bootstrap {
        host: pick("bootstrap_host")?
            .and_then(Value::as_str)
            .map(str::to_owned),
        port: pick("bootstrap_port")?
            .and_then(integer)
            .and_then(|port| u64::try_from(port).ok()),
        room: room.map(|room| {
            if scalar {
                room.saturating_add(index as i128)
            } else {
                room
            }
        }),
    })
}

/// The data parallel rank of prefill, one for all items.
pub(super) fn prefill_rank(body: &Value) -> Option<i128> {
    body.get("disagg_prefill_dp_rank").and_then(integer)
}

/// An integer of any size, or a string with one, which pydantic reads as an integer.
pub(in crate::sim) fn integer(value: &Value) -> Option<i128> {
    match value {
        Value::Number(number) => number.as_str().parse().ok(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

pub(in crate::sim) fn boolean(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Bool(value)) => *value,
        Some(Value::Number(number)) => number.as_f64() == Some(1.0),
        Some(Value::String(text)) => {
            matches!(
                text.to_ascii_lowercase().as_str(),
                "true" | "1" | "yes" | "on" | "t" | "y"
            )
        }
        _ => false,
    }
}

pub(in crate::sim) fn token_ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter()
        .filter_map(integer)
        .map(|id| u32::try_from(id).unwrap_or(0))
        .collect()
}

pub(super) fn prompt_of(value: &Value) -> Vec<u32> {
    match value {
        Value::String(text) => model::encode(text),
        other => token_ids(other),
    }
}

pub(super) fn check_temperature(
    value: Option<&Value>,
    shown: impl Fn(&str) -> String,
) -> Result<(), Failure> {
    match value {
        Some(Value::Number(number))
            if number.as_f64().is_none_or(|temperature| temperature < 0.0) =>
        {
            let got = shown(number.as_str());
            let message = format!("temperature must be a non-negative finite number, got {got}.");
            Err(Failure::Invalid(message))
        }
        _ => Ok(()),
    }
}

pub(in crate::sim) fn common_sampling(parameters: &Value, seed: &str) -> Sampling {
    Sampling {
        max_new_tokens: 0,
        ignore_eos: boolean(parameters.get("ignore_eos")),
        stop: strings(parameters.get("stop")),
        stop_token_ids: parameters
            .get("stop_token_ids")
            .map(token_ids)
            .unwrap_or_default(),
        seed: parameters
            .get(seed)
            .and_then(integer)
            .map_or(0, |seed| seed as u64),
    }
}

pub(super) fn per_item<'a>(body: &'a Value, name: &str, index: usize) -> Option<&'a Value> {
    match body.get(name) {
        Some(Value::Array(list)) => list.get(index),
        other => other,
    }
}

pub(super) fn rid(body: &Value, index: usize, list: bool) -> String {
    match body.get("rid") {
        Some(Value::String(rid)) if list => format!("{rid}_{index}"),
        Some(Value::String(rid)) => rid.clone(),
        Some(Value::Array(rids)) => rids
            .get(index)
            .and_then(Value::as_str)
            .map_or_else(new_rid, str::to_owned),
        _ => new_rid(),
    }
}

pub(in crate::sim) fn strings(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(list)) => list
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        _ => Vec::new(),
    }
}
