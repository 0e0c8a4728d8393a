//! Requests for several samples per prompt, and what workers send for each of them.

use serde_json::{Value, json};

use crate::{CHAT, Exchange};

pub const COMPLETIONS: &str = "/v1/completions";
pub const GENERATE: &str = "/generate";

/// A document of the route, with this text, as a worker sends it.
pub fn document(path: &str, text: &str) -> String {
    match path {
        GENERATE => json!({"text": text, "output_ids": [1], "meta_info": {
            "id": text, "finish_reason": {"type": "length", "length": 1},
            "prompt_tokens": 3, "completion_tokens": 1, "cached_tokens": 0}}),
        CHAT => json!({"id": text, "object": "chat.completion", "created": 1, "model": "m", "choices": [{"index": 0,
            "message": {"role": "assistant", "content": text}, "logprobs": null, "finish_reason": "stop",
            "matched_stop": null}], "usage": {"prompt_tokens": 3, "total_tokens": 4, "completion_tokens": 1,
            "prompt_tokens_details": null, "reasoning_tokens": 0}, "metadata": {"weight_version": "default"}}),
        _ => json!({"id": text, "object": "text_completion", "created": 1, "model": "m", "choices": [{"index": 0,
            "text": text, "logprobs": null, "finish_reason": "stop", "matched_stop": null}],
            "usage": {"prompt_tokens": 3, "total_tokens": 4, "completion_tokens": 1, "prompt_tokens_details": null,
            "reasoning_tokens": 0}, "metadata": {"weight_version": "default"}}),
    }
    .to_string()
}

/// An event of a stream of the route, with this text.
pub fn event(path: &str, text: &str) -> String {
    let payload = match path {
        GENERATE => {
            json!({"text": text, "output_ids": [1], "meta_info": {"id": text, "finish_reason": null,
            "prompt_tokens": 3, "completion_tokens": 1, "cached_tokens": 0}})
        }
        CHAT => {
            json!({"id": text, "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [{
            "index": 0, "delta": {"content": text}, "logprobs": null, "finish_reason": null}]})
        }
        _ => {
            json!({"id": text, "object": "text_completion", "created": 1, "model": "m", "choices": [{"index": 0,
            "text": text, "logprobs": null, "finish_reason": null}], "usage": null})
        }
    };
    format!("data: {payload}\n\n")
}

/// A request of the route for this many samples.
pub fn asking(path: &str, n: usize, stream: bool) -> String {
    match path {
        GENERATE => {
            json!({"text": "a", "sampling_params": {"n": n, "max_new_tokens": 1}, "stream": stream})
        }
        CHAT => json!({"messages": [], "n": n, "stream": stream}),
        _ => json!({"prompt": "a", "n": n, "stream": stream}),
    }
    .to_string()
}

/// The sample that a chunk of the client's is of.
pub fn index(path: &str, event: &str) -> u64 {
    let payload: Value = serde_json::from_str(event.trim_start_matches("data: ")).unwrap();
    let sample = match path {
        GENERATE => &payload["index"],
        _ => &payload["choices"][0]["index"],
    };
    sample.as_u64().unwrap()
}

/// The routes that serve samples.
pub const ROUTES: [&str; 3] = [GENERATE, CHAT, COMPLETIONS];

/// Ends all streams.
pub async fn finish(legs: Vec<(Exchange, Exchange)>) {
    for (prefill, mut decode) in legs {
        prefill.answer("200 OK", "{}").await;
        decode.chunk("data: [DONE]\n\n").await;
        decode.chunk("").await;
        decode.keep();
    }
}
