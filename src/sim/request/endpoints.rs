//! What each endpoint's body means: prompts, sampling, logprobs, rooms.

use serde_json::{Value, json};

use super::schema::{Errors, First, Site, not_an_object};
use super::{
    Batch, Item, Limits, LogprobPlan, Sampling, boolean, bootstrap, integer, new_rid, prompt_of,
    token_ids,
};
use crate::sim::errors::Failure;
use crate::sim::model;

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
    errors.done(Site::GENERATE)?;
    let Some((prompts, list)) = native_prompts(body) else {
        let message = "Either text, input_ids or input_embeds should be provided.";
        return Err(Failure::Invalid(message.to_owned()));
    };
    check_return_logprob(body, list.then_some(prompts.len()))?;
    let stream = boolean(body.get("stream"));
    if stream && boolean(body.get("return_flat_raw_output_top_logprobs")) {
        let message = "return_flat_raw_output_top_logprobs is only set on the finished response and does not \
                       support stream=True.";
        return Err(Failure::Invalid(message.to_owned()));
    }
    let size = list.then_some(prompts.len());
    let mut items = Vec::with_capacity(prompts.len());
    let mut n = 1;
    for (index, prompt) in prompts.into_iter().enumerate() {
        let parameters = per_item(body, "sampling_params", index)
            .cloned()
            .unwrap_or(json!({}));
        let (sampling, samples) = native_sampling(&parameters)?;
        n = samples;
        limits.check(prompt.len(), Some(sampling.max_new_tokens))?;
        items.push(Item {
            rid: rid(body, index, list),
            prompt,
            sampling,
            logprobs: native_logprobs(body, index, list),
            bootstrap: bootstrap(body, index, size)?,
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

/// `/v1/chat/completions`.
pub(crate) fn chat(body: &Value, limits: Limits) -> Result<Batch, Failure> {
    let mut errors = Errors::default();
    if body.get("messages").is_none() {
        // A validator before the fields adds the default tool choice to what the error shows.
        let mut shown = body.clone();
        if let Value::Object(map) = &mut shown {
            map.entry("tool_choice").or_insert("none".into());
        }
        errors.missing("messages", &shown);
    } else {
        errors.list(body, "messages");
        errors.roles(body);
    }
    openai_fields(&mut errors, body);
    errors.integer(body, "top_logprobs", None);
    errors.done(Site::CHAT)?;
    if body
        .get("messages")
        .and_then(Value::as_array)
        .is_some_and(Vec::is_empty)
    {
        return Err(Failure::Invalid("Messages cannot be empty.".to_owned()));
    }
    let limit = body
        .get("max_completion_tokens")
        .or_else(|| body.get("max_tokens"));
    let asked = limit
        .and_then(integer)
        .map(|asked| usize::try_from(asked).unwrap_or(0));
    if let Some(asked) = asked.filter(|&asked| asked > limits.context_length) {
        return Err(Failure::Invalid(format!(
            "max_completion_tokens is too large: {asked}.This model supports at most {} completion tokens.",
            limits.context_length
        )));
    }
    let wanted = boolean(body.get("logprobs"));
    let top = body
        .get("top_logprobs")
        .and_then(integer)
        .map_or(0, |top| usize::try_from(top).unwrap_or(0));
    let logprobs = LogprobPlan {
        wanted,
        top,
        text: true,
        ..LogprobPlan::default()
    };
    let prompt = model::encode(&chat_text(body));
    one_prompt(body, prompt, asked, logprobs, limits)
}

/// `/v1/completions`.
pub(crate) fn completions(body: &Value, limits: Limits) -> Result<Batch, Failure> {
    let mut errors = Errors::default();
    if body.get("prompt").is_none() {
        errors.missing("prompt", body);
    }
    errors.prompt(body, "prompt");
    openai_fields(&mut errors, body);
    errors.integer(body, "logprobs", None);
    errors.done(Site::COMPLETIONS)?;
    let (prompts, list) = openai_prompts(body);
    let max_new_tokens = body
        .get("max_tokens")
        .and_then(integer)
        .map_or(16, |max| usize::try_from(max).unwrap_or(0));
    let top = body
        .get("logprobs")
        .and_then(integer)
        .map(|top| usize::try_from(top).unwrap_or(0));
    let start = (boolean(body.get("echo")) && top.is_some_and(|top| top > 0)).then_some(0);
    let logprobs = LogprobPlan {
        wanted: top.is_some(),
        start,
        top: top.unwrap_or(0),
        text: true,
        ..LogprobPlan::default()
    };
    let size = list.then_some(prompts.len());
    let n = samples(body.get("n"));
    let mut items = Vec::with_capacity(prompts.len());
    for (index, prompt) in prompts.into_iter().enumerate() {
        limits.check(prompt.len(), Some(max_new_tokens))?;
        let mut sampling = openai_sampling(body)?;
        sampling.max_new_tokens = max_new_tokens;
        let bootstrap = bootstrap(body, index, size)?;
        let logprobs = logprobs.clone();
        items.push(Item {
            rid: rid(body, index, list),
            prompt,
            sampling,
            logprobs,
            bootstrap,
        });
    }
    Ok(Batch {
        items,
        list,
        stream: boolean(body.get("stream")),
        n,
    }
    .sampled())
}

/// `/v1/responses`.
pub(crate) fn responses(body: &Value, limits: Limits) -> Result<Batch, Failure> {
    let mut errors = Errors::default();
    if body.get("input").is_none() {
        errors.missing("input", body);
    }
    errors.integer(body, "max_output_tokens", None);
    errors.boolean(body, "stream");
    errors.done(Site::RESPONSES)?;
    let mut text = role_text("system", body.get("instructions").unwrap_or(&Value::Null));
    match body.get("input") {
        Some(Value::Array(messages)) => messages
            .iter()
            .for_each(|message| text += &message_text(message)),
        Some(input) => text += &role_text("user", input),
        None => {}
    }
    text += "<|assistant|>";
    let asked = body
        .get("max_output_tokens")
        .and_then(integer)
        .map(|max| usize::try_from(max).unwrap_or(0));
    let mut batch = one_prompt(
        body,
        model::encode(&text),
        asked,
        LogprobPlan::default(),
        limits,
    )?;
    for item in &mut batch.items {
        item.rid = format!("resp_{}", item.rid);
        // Two tokens fewer than asked for: 8 gave 6, 2 gave none, on a real server.
        item.sampling.max_new_tokens = item.sampling.max_new_tokens.saturating_sub(2);
    }
    Ok(batch)
}

/// `/v1/messages`. Its schema has no `rid`, and its validation errors are Anthropic's.
pub(crate) fn messages(body: &Value, limits: Limits) -> Result<Batch, Failure> {
    for name in ["messages", "max_tokens"] {
        if body.get(name).is_none() {
            return Err(Failure::Schema(format!("{name}: Field required")));
        }
    }
    if !body.get("messages").is_some_and(Value::is_array) {
        return Err(Failure::Schema(
            "messages: Input should be a valid list".to_owned(),
        ));
    }
    let asked = body
        .get("max_tokens")
        .and_then(integer)
        .map(|max| usize::try_from(max).unwrap_or(0));
    let system = role_text("system", body.get("system").unwrap_or(&Value::Null));
    let prompt = model::encode(&(system + &chat_text(body)));
    let mut batch = one_prompt(body, prompt, asked, LogprobPlan::default(), limits)?;
    for item in &mut batch.items {
        item.rid = new_rid();
        item.sampling.stop = strings(body.get("stop_sequences"));
    }
    Ok(batch)
}

/// `/tokenize`: the prompts, and whether they came as a list.
pub(crate) fn tokenize(body: &Value) -> Result<(Vec<Vec<u32>>, bool), Failure> {
    let mut errors = Errors::default();
    if body.get("prompt").is_none() {
        errors.missing("prompt", body);
    }
    errors.text_or_list(body, "prompt", First::List);
    errors.done(Site::TOKENIZE)?;
    Ok(match body.get("prompt") {
        Some(Value::Array(texts)) => (texts.iter().map(prompt_of).collect(), true),
        text => (text.map(prompt_of).into_iter().collect(), false),
    })
}

/// The chat template: every message, then the assistant's turn.
pub(crate) fn chat_text(body: &Value) -> String {
    let messages = body
        .get("messages")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    messages.iter().map(message_text).collect::<String>() + "<|assistant|>"
}

fn message_text(message: &Value) -> String {
    let role = message
        .get("role")
        .and_then(Value::as_str)
        .unwrap_or("user");
    role_text(role, message.get("content").unwrap_or(&Value::Null))
}

fn role_text(role: &str, content: &Value) -> String {
    match content {
        Value::Null => String::new(),
        Value::String(text) => format!("<|{role}|>{text}"),
        Value::Array(parts) => {
            let texts: String = parts
                .iter()
                .filter_map(|part| part.get("text")?.as_str())
                .collect::<Vec<_>>()
                .join("\n");
            format!("<|{role}|>{texts}")
        }
        other => format!("<|{role}|>{other}"),
    }
}

fn one_prompt(
    body: &Value,
    prompt: Vec<u32>,
    asked: Option<usize>,
    logprobs: LogprobPlan,
    limits: Limits,
) -> Result<Batch, Failure> {
    let mut sampling = openai_sampling(body)?;
    limits.check(prompt.len(), asked)?;
    sampling.max_new_tokens = asked.unwrap_or(limits.context_length - prompt.len());
    let bootstrap = bootstrap(body, 0, None)?;
    let item = Item {
        rid: rid(body, 0, false),
        prompt,
        sampling,
        logprobs,
        bootstrap,
    };
    let n = samples(body.get("n"));
    Ok(Batch {
        items: vec![item],
        list: false,
        stream: boolean(body.get("stream")),
        n,
    }
    .sampled())
}

fn openai_fields(errors: &mut Errors, body: &Value) {
    for name in ["max_tokens", "max_completion_tokens", "n", "seed"] {
        errors.integer(body, name, None);
    }
    errors.number(body, "temperature");
    errors.boolean(body, "stream");
    errors.integer(body, "bootstrap_port", Some("list[int]"));
    errors.integer(body, "bootstrap_room", Some("list[int]"));
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

/// A flat list of integers is one prompt; any other list is a batch.
fn openai_prompts(body: &Value) -> (Vec<Vec<u32>>, bool) {
    match body.get("prompt") {
        Some(Value::Array(list)) if list.iter().any(|entry| !entry.is_number()) => {
            (list.iter().map(prompt_of).collect(), true)
        }
        Some(prompt) => (vec![prompt_of(prompt)], false),
        None => (Vec::new(), false),
    }
}

/// The fields of `sampling_params`, in the order in which the contract's refusal lists them.
/// Source: an answer of SGLang 0.5.23 to an unknown field.
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

fn native_sampling(parameters: &Value) -> Result<(Sampling, usize), Failure> {
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
    Ok((sampling, samples(parameters.get("n"))))
}

/// The contract's words, for values that Python would take for something else.
/// Source: SGLang 0.5.23, `entrypoints/api_contract.py`, and an answer of a real server.
fn not_i64(value: &Value) -> Failure {
    invalid_type(value, "i64")
}

/// What passes pydantic as a boolean need not pass the contract; a list needs an element per prompt.
fn check_return_logprob(body: &Value, batch: Option<usize>) -> Result<(), Failure> {
    match (body.get("return_logprob"), batch) {
        (Some(value @ (Value::String(_) | Value::Number(_))), _) => Err(invalid_type(
            value,
            "a value or an array of values for BoolOrList",
        )),
        (Some(Value::Array(list)), Some(prompts)) if list.len() < prompts => {
            Err(Failure::Unhandled)
        }
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

fn openai_sampling(body: &Value) -> Result<Sampling, Failure> {
    // The schema has made a float of it.
    let float = |number: &str| {
        number
            .parse::<f64>()
            .map_or_else(|_| number.to_owned(), |float| format!("{float:?}"))
    };
    check_temperature(body.get("temperature"), float)?;
    Ok(common_sampling(body, "seed"))
}

fn check_temperature(value: Option<&Value>, shown: impl Fn(&str) -> String) -> Result<(), Failure> {
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

fn common_sampling(parameters: &Value, seed: &str) -> Sampling {
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

fn per_item<'a>(body: &'a Value, name: &str, index: usize) -> Option<&'a Value> {
    match body.get(name) {
        Some(Value::Array(list)) => list.get(index),
        other => other,
    }
}

fn rid(body: &Value, index: usize, list: bool) -> String {
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

fn samples(n: Option<&Value>) -> usize {
    // SGLang has no limit. Here one request must not fill the memory of the machine.
    n.and_then(integer)
        .map_or(1, |n| usize::try_from(n).unwrap_or(1).clamp(1, 128))
}

fn strings(value: Option<&Value>) -> Vec<String> {
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
