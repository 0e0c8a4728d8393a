//! Fields and objects that the OpenAI endpoints share. Source: transcripts `chat_*`, `cmpl_*`.

use serde_json::Value;

use super::engine::Finish;
use super::render::string;

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

/// The `metadata` object of a response in one piece, whose longest choice has this many tokens.
pub(crate) fn metadata(tokens: usize) -> String {
    format!(
        "\"metadata\":{{\"weight_version\":\"default\",\"weight_versions\":[{{\"version\":\"default\",\"start\":0,\
         \"end\":{tokens}}}]}}"
    )
}

/// The `usage` object of a response in one piece and of chat's events.
pub(crate) fn usage(prompt_tokens: usize, completion_tokens: usize) -> String {
    format!(
        "{{\"prompt_tokens\":{prompt_tokens},\"total_tokens\":{},\"completion_tokens\":{completion_tokens},\
         \"prompt_tokens_details\":null,\"reasoning_tokens\":0,\"completion_tokens_details\":null}}",
        prompt_tokens + completion_tokens
    )
}
