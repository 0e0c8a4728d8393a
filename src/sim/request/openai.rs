//! The bodies of the OpenAI and Anthropic endpoints, and of `/tokenize`.

use serde_json::Value;

use super::fields::{
    boolean, bootstrap, check_temperature, common_sampling, integer, prefill_rank, prompt_of, rid,
    strings,
};
use super::report::Site;
use super::schema::{Errors, First};
use super::{Batch, Item, Limits, LogprobPlan, Sampling, new_rid, samples};
use crate::sim::errors::Failure;
use crate::sim::model;

/// `/v1/chat/completions`.
pub(crate) fn chat(body: &Value, limits: Limits) -> Result<Batch, Failure> {
    let mut errors = Errors::default();
    if body.get("messages").is_none() {
        // A validator that runs before adds the default tool choice, and the error quotes it.
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
    let n = samples::openai(body, None)?;
    let batch = one_prompt(body, prompt, asked, logprobs, limits)?;
    Ok(Batch { n, ..batch }.sampled())
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
    let n = samples::openai(body, size)?;
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
            prefill_rank: prefill_rank(body),
            ..Item::default()
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
        // Two tokens fewer than max_output_tokens, as a real server generates: 6 for 8, none for 2.
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

/// `/tokenize`: the prompts, and whether they are a list.
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

/// The chat template: every message, and the start of the assistant's.
pub(crate) fn chat_text(body: &Value) -> String {
    let messages = body
        .get("messages")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    messages.iter().map(message_text).collect::<String>() + "<|assistant|>"
}

pub(in crate::sim) fn message_text(message: &Value) -> String {
    let role = message
        .get("role")
        .and_then(Value::as_str)
        .unwrap_or("user");
    role_text(role, message.get("content").unwrap_or(&Value::Null))
}

pub(in crate::sim) fn role_text(role: &str, content: &Value) -> String {
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
        prefill_rank: prefill_rank(body),
        ..Item::default()
    };
    Ok(Batch {
        items: vec![item],
        list: false,
        stream: boolean(body.get("stream")),
        n: 1,
    })
}

fn openai_fields(errors: &mut Errors, body: &Value) {
    for name in ["max_tokens", "max_completion_tokens", "n", "seed"] {
        errors.integer(body, name, None);
    }
    errors.not_null(body, "n");
    errors.number(body, "temperature");
    errors.boolean(body, "stream");
    errors.integer(body, "bootstrap_port", Some("list[int]"));
    errors.integer(body, "bootstrap_room", Some("list[int]"));
    errors.integer(body, "disagg_prefill_dp_rank", None);
}

/// A flat list of integers is one prompt; any other list is a batch.
pub(in crate::sim) fn openai_prompts(body: &Value) -> (Vec<Vec<u32>>, bool) {
    match body.get("prompt") {
        Some(Value::Array(list)) if list.iter().any(|entry| !entry.is_number()) => {
            (list.iter().map(prompt_of).collect(), true)
        }
        Some(prompt) => (vec![prompt_of(prompt)], false),
        None => (Vec::new(), false),
    }
}

fn openai_sampling(body: &Value) -> Result<Sampling, Failure> {
    // The schema converts it to a float, and the message shows that.
    let float = |number: &str| {
        number
            .parse::<f64>()
            .map_or_else(|_| number.to_owned(), |float| format!("{float:?}"))
    };
    check_temperature(body.get("temperature"), float)?;
    Ok(common_sampling(body, "seed"))
}
