//! Fields and objects that the OpenAI endpoints share. Source: transcripts `chat_*`, `cmpl_*`.

use serde_json::Value;

use super::engine::{Finish, Row, Step};
use super::model;
use super::render::{escape_into, string};
use super::request;

/// The request's `stream_options`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamOptions {
    pub(crate) include_usage: bool,
    pub(crate) continuous_usage: bool,
}

impl StreamOptions {
    pub(crate) fn of(body: &Value) -> StreamOptions {
        let options = body.get("stream_options");
        let option =
            |name: &str| options.and_then(|options| options.get(name)?.as_bool()) == Some(true);
        StreamOptions {
            include_usage: option("include_usage"),
            continuous_usage: option("continuous_usage_stats"),
        }
    }
}

/// The part of a choice that both endpoints have.
pub(crate) struct Generated {
    /// The choice's request id, which is the response's id.
    pub(crate) id: String,
    pub(crate) prompt_tokens: usize,
    /// The text so far, as the inside of a JSON string.
    pub(crate) text: String,
    pub(crate) tokens: usize,
    pub(crate) finish: Option<Finish>,
    /// Tokens of the prompt that were cached; `None` where the worker does not report them.
    pub(crate) cached_tokens: Option<usize>,
}

impl Generated {
    pub(crate) fn new(item: &request::Item, cache_report: bool) -> Generated {
        Generated {
            id: item.rid.clone(),
            prompt_tokens: item.prompt.len(),
            text: String::new(),
            tokens: 0,
            finish: None,
            cached_tokens: cache_report.then_some(0),
        }
    }

    /// Adds a step and gives its token.
    pub(crate) fn absorb(&mut self, step: &Step) -> Option<u32> {
        self.finish.clone_from(&step.finish);
        self.cached_tokens = self.cached_tokens.map(|_| step.cached_tokens);
        let token = step.token?;
        self.tokens += 1;
        escape_into(&step.text, &mut self.text);
        Some(token)
    }

    /// The members of [`openai_finish`]; empty before the end.
    pub(crate) fn finish_members(&self) -> String {
        self.finish.as_ref().map(openai_finish).unwrap_or_default()
    }
}

/// The request's `model`, which the response repeats; the served one unless given.
pub(crate) fn model(body: &Value, served: &str) -> String {
    let named = body.get("model").and_then(Value::as_str);
    named.unwrap_or(served).to_owned()
}

/// `{"id":..,"object":..,"created":..,"model":..`, open.
pub(crate) fn head(id: &str, object: &str, created: u64, model: &str) -> String {
    format!(
        "{{\"id\":{},\"object\":\"{object}\",\"created\":{created},\"model\":{}",
        string(id),
        string(model)
    )
}

/// The logprobs of a token and of the most probable ones, each written by `named`.
pub(crate) fn token_logprob(
    row: &Row,
    best: impl Iterator<Item = (f64, u32)>,
    named: fn(u32, f64, &mut String),
    out: &mut String,
) {
    out.push('{');
    named(row.token, row.logprob, out);
    out.push_str(",\"top_logprobs\":[");
    for (index, (logprob, token)) in best.enumerate() {
        out.push_str(if index > 0 { ",{" } else { "{" });
        named(token, logprob, out);
        out.push('}');
    }
    out.push_str("]}");
}

/// A token's text and its bytes, as JSON.
pub(crate) fn name_and_bytes(token: u32) -> (String, String) {
    let name = model::name_of(token);
    let bytes: Vec<String> = name.bytes().map(|byte| byte.to_string()).collect();
    (string(&name), format!("[{}]", bytes.join(",")))
}

/// `"finish_reason":..,"matched_stop":..`.
pub(crate) fn openai_finish(finish: &Finish) -> String {
    let (reason, matched) = match finish {
        Finish::Length(_) => ("length", "null".to_owned()),
        Finish::StopToken(token) => ("stop", token.to_string()),
        Finish::StopText(text) => ("stop", string(text)),
        Finish::Abort => ("abort", "null".to_owned()),
    };
    format!("\"finish_reason\":\"{reason}\",\"matched_stop\":{matched}")
}

/// The `metadata` object of a response in one piece, by its choices' tokens.
pub(crate) fn metadata(tokens: impl Iterator<Item = usize>) -> String {
    let tokens = tokens.max().unwrap_or(0);
    format!(
        "\"metadata\":{{\"weight_version\":\"default\",\"weight_versions\":[{{\"version\":\"default\",\"start\":0,\
         \"end\":{tokens}}}]}}"
    )
}

/// The `usage` object of a response in one piece and of chat's events.
pub(crate) fn usage(
    prompt_tokens: usize,
    completion_tokens: usize,
    cached_tokens: Option<usize>,
) -> String {
    let details = cached_tokens.map_or("null".to_owned(), cached_details);
    format!(
        "{{\"prompt_tokens\":{prompt_tokens},\"total_tokens\":{},\"completion_tokens\":{completion_tokens},\
         \"prompt_tokens_details\":{details},\"reasoning_tokens\":0,\"completion_tokens_details\":null}}",
        prompt_tokens + completion_tokens
    )
}

/// `prompt_tokens_details`. Source: SGLang 0.5.23 with `--enable-cache-report`.
pub(crate) fn cached_details(cached_tokens: usize) -> String {
    format!("{{\"cached_tokens\":{cached_tokens}}}")
}

/// The cached tokens of all choices of a request.
pub(crate) fn cached_in_all<'a>(choices: impl Iterator<Item = &'a Generated>) -> Option<usize> {
    choices.map(|choice| choice.cached_tokens).sum()
}
