//! The body of `/generate`: prompts, `sampling_params`, logprobs, rooms.

use serde_json::{Value, json};

use super::fields::{
    boolean, bootstrap, check_temperature, common_sampling, integer, per_item, prefill_rank,
    prompt_of, rid, token_ids,
};
use super::report::{Site, not_an_object};
use super::schema::{Errors, First};
use super::{Batch, Item, Limits, LogprobPlan, Sampling, samples};
use crate::sim::errors::Failure;

/// `/generate`.
pub(crate) fn generate(body: &Value, limits: Limits) -> Result<Batch, Failure> {
    if !body.is_object() {
        return Err(not_an_object(body));
    }
    let mut errors = Errors::default();
    errors.text_or_list(body, "text", First::Text);
    errors.token_lists(body, "input_ids");
    errors.boolean_or_list(body, "return_logprob");
    errors.boolean(body, "stream");
    errors.integer(body, "bootstrap_port", Some("list[nullable[int]]"));
    errors.integer(body, "bootstrap_room", Some("list[nullable[int]]"));
    errors.integer(body, "disagg_prefill_dp_rank", None);
    errors.done(Site::GENERATE)?;
    check_contract(body)?;
    let Some((prompts, list)) = native_prompts(body) else {
        let message = "Either text, input_ids or input_embeds should be provided.";
        return Err(Failure::Invalid(message.to_owned()));
    };
    if body.get("text").is_none_or(Value::is_null) && prompts.iter().all(Vec::is_empty) && !list {
        return Err(Failure::Invalid("input_ids cannot be empty.".to_owned()));
    }
    let n = samples::native(body, prompts.len(), list)?;
    check_return_logprob(body, list.then_some(prompts.len()))?;
    let stream = boolean(body.get("stream"));
    if stream && boolean(body.get("return_flat_raw_output_top_logprobs")) {
        let message = "return_flat_raw_output_top_logprobs is only set on the finished response and does not \
                       support stream=True.";
        return Err(Failure::Invalid(message.to_owned()));
    }
    let size = list.then_some(prompts.len());
    let mut items = Vec::with_capacity(prompts.len());
    for (index, prompt) in prompts.into_iter().enumerate() {
        let parameters = per_item(body, "sampling_params", index)
            .cloned()
            .unwrap_or(json!({}));
        let sampling = native_sampling(&parameters)?;
        limits.check(prompt.len(), Some(sampling.max_new_tokens))?;
        items.push(Item {
            rid: rid(body, index, list),
            prompt,
            sampling,
            logprobs: native_logprobs(body, index, list),
            bootstrap: bootstrap(body, index, size)?,
            prefill_rank: prefill_rank(body),
            ..Item::default()
        });
    }
    Ok(Batch {
        items,
        list: list || n > 1,
        stream,
        n,
    }
    .sampled())
}

fn native_prompts(body: &Value) -> Option<(Vec<Vec<u32>>, bool)> {
    if let Some(text) = body.get("text").filter(|text| !text.is_null()) {
        return Some(match text {
            Value::Array(texts) => (texts.iter().map(prompt_of).collect(), true),
            text => (vec![prompt_of(text)], false),
        });
    }
    let ids = body.get("input_ids")?.as_array()?;
    Some(if ids.first().is_some_and(Value::is_array) {
        (ids.iter().map(token_ids).collect(), true)
    } else {
        (
            vec![
                ids.iter()
                    .filter_map(integer)
                    .map(|id| u32::try_from(id).unwrap_or(0))
                    .collect(),
            ],
            false,
        )
    })
}

/// The fields of `sampling_params`, in the order of the message about an unknown one.
/// Source: a response of SGLang 0.5.23 to an unknown field.
const SAMPLING_FIELDS: [&str; 28] = [
    "max_new_tokens",
    "stop",
    "stop_token_ids",
    "stop_regex",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "min_new_tokens",
    "n",
    "json_schema",
    "regex",
    "ebnf",
    "structural_tag",
    "ignore_eos",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "no_stop_trim",
    "stream_interval",
    "logit_bias",
    "sampling_seed",
    "custom_params",
    "beam_width",
    "watermark",
    "choice",
];

fn native_sampling(parameters: &Value) -> Result<Sampling, Failure> {
    let fields = parameters
        .as_object()
        .into_iter()
        .flat_map(|map| map.keys());
    if let Some(unknown) = fields
        .into_iter()
        .find(|key| !SAMPLING_FIELDS.contains(&key.as_str()))
    {
        let known = SAMPLING_FIELDS.map(|field| format!("`{field}`")).join(", ");
        let message = format!("unknown field `{unknown}`, expected one of {known}");
        return Err(Failure::Contract(message));
    }
    let max_new_tokens = match parameters.get("max_new_tokens") {
        None | Some(Value::Null) => 128,
        Some(value) => {
            let asked = integer(value)
                .filter(|_| value.is_number())
                .ok_or_else(|| not_i64(value))?;
            usize::try_from(asked).map_err(|_| {
                Failure::Invalid(format!("max_new_tokens must be at least 0, got {asked}."))
            })?
        }
    };
    let temperature = parameters.get("temperature");
    check_temperature(temperature, |number| number.to_owned())?;
    let mut sampling = common_sampling(parameters, "sampling_seed");
    sampling.max_new_tokens = max_new_tokens;
    Ok(sampling)
}

/// The message about a value that is not an integer.
/// Source: SGLang 0.5.23, `entrypoints/api_contract.py`, and a response of a real server.
fn not_i64(value: &Value) -> Failure {
    invalid_type(value, "i64")
}

/// Checks the types of values that the schema takes for others: strictly, and before anything else.
/// Source: SGLang 0.5.23, `api/v1/api_types.py`.
fn check_contract(body: &Value) -> Result<(), Failure> {
    if let Some(value @ (Value::String(_) | Value::Number(_))) = body.get("return_logprob") {
        let expected = "a value or an array of values for BoolOrList";
        return Err(invalid_type(value, expected));
    }
    if let Some(value) = body.get("stream").filter(|value| !value.is_boolean()) {
        return Err(invalid_type(value, "a boolean"));
    }
    let parameters = match body.get("sampling_params") {
        Some(Value::Array(list)) => list.as_slice(),
        Some(one) => std::slice::from_ref(one),
        None => &[],
    };
    for value in parameters.iter().filter_map(|one| one.get("n")) {
        let is_integer = value.is_number() && integer(value).is_some();
        if !(value.is_null() || is_integer) {
            return Err(not_i64(value));
        }
    }
    Ok(())
}

/// Checks that a list of `return_logprob` has an element for each prompt.
fn check_return_logprob(body: &Value, batch: Option<usize>) -> Result<(), Failure> {
    match (body.get("return_logprob"), batch) {
        (Some(Value::Array(list)), Some(prompts)) if list.len() < prompts => Err(Failure::Internal),
        _ => Ok(()),
    }
}

fn invalid_type(value: &Value, expected: &str) -> Failure {
    let what = match value {
        Value::String(_) => format!("string {value}"),
        Value::Bool(_) => format!("boolean `{value}`"),
        Value::Number(number) if number.as_str().parse::<i128>().is_ok() => {
            format!("integer `{value}`")
        }
        Value::Number(_) => format!("floating point `{value}`"),
        Value::Array(_) => "sequence".to_owned(),
        Value::Object(_) => "map".to_owned(),
        Value::Null => "null".to_owned(),
    };
    Failure::Contract(format!("invalid type: {what}, expected {expected}"))
}

fn native_logprobs(body: &Value, index: usize, list: bool) -> LogprobPlan {
    let number = |name| per_item(body, name, index).and_then(integer);
    let token_ids_logprob = body.get("token_ids_logprob").and_then(|ids| match ids {
        Value::Array(rows) if list && rows.first().is_some_and(Value::is_array) => rows.get(index),
        Value::Array(_) => Some(ids),
        _ => None,
    });
    let start = number("logprob_start_len");
    LogprobPlan {
        wanted: boolean(per_item(body, "return_logprob", index)),
        start: start.and_then(|start| usize::try_from(start).ok()),
        below_range: start.filter(|&start| start < -1),
        top: number("top_logprobs_num").map_or(0, |top| usize::try_from(top).unwrap_or(0)),
        token_ids: token_ids_logprob.map(token_ids),
        text: boolean(body.get("return_text_in_logprobs")),
        flat_input: boolean(body.get("return_flat_raw_top_logprobs")),
        flat_output: boolean(body.get("return_flat_raw_output_top_logprobs")),
    }
}
