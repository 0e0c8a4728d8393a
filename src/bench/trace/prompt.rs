//! A request's body from the blocks of its prompt: equal blocks are equal tokens.
//!
//! As token ids a prompt has the length of the trace on every server. As words it has that length only in the simulator,
//! whose tokenizer knows them; but text is what clients send, and some balancers compare nothing else.

use std::fmt::Write;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{Trace, TraceRequest};
use crate::bench::prompt::{Endpoint, IDS};

/// Tokens that the simulator's chat template adds: `<|user|>` and `<|assistant|>`.
const CHAT_TEMPLATE_TOKENS: usize = 11;

/// How a prompt is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Words {
    /// Token ids, for `/generate` and `/v1/completions`.
    Ids,
    /// Text, of words with a space before them.
    Text,
}

/// The parameters of the request bodies of a trace.
#[derive(Debug, Clone)]
pub struct TracePrompt {
    /// Endpoint that the bodies are for.
    pub endpoint: Endpoint,
    /// Ids or text. Chat has only text.
    pub words: Words,
    /// Whether to request a stream.
    pub stream: bool,
    /// Whether to generate all of `output_tokens`, past an end-of-sequence token.
    pub ignore_eos: bool,
    /// Field `model`, which `/generate` does not have.
    pub model: String,
    /// Fields to add to the body or to replace in it, but for the prompt.
    pub extra: Map<String, Value>,
}

impl TracePrompt {
    /// The body of a request.
    #[must_use]
    pub fn body(&self, trace: &Trace, request: &TraceRequest) -> Bytes {
        let mut fields = match self.endpoint {
            Endpoint::Generate => json!({
                "sampling_params": {
                    "max_new_tokens": request.output_tokens,
                    "temperature": 0.0,
                    "ignore_eos": self.ignore_eos,
                },
            }),
            Endpoint::Chat | Endpoint::Completions => json!({
                "model": self.model,
                "max_tokens": request.output_tokens,
                "ignore_eos": self.ignore_eos,
                "temperature": 0.0,
            }),
        };
        fields["stream"] = self.stream.into();
        if self.stream && self.endpoint != Endpoint::Generate {
            fields["stream_options"] = json!({"include_usage": true});
        }
        for (key, value) in &self.extra {
            fields[key] = value.clone();
        }
        let fields = fields.to_string();
        // By hand: a tree of a value for each token would cost more than the request.
        let mut body = String::with_capacity(7 * request.input_tokens + fields.len() + 64);
        match (self.endpoint, self.words) {
            (Endpoint::Chat, _) => {
                body.push_str("{\"messages\":[{\"role\":\"user\",\"content\":\"");
                let tokens = request.input_tokens.saturating_sub(CHAT_TEMPLATE_TOKENS);
                write_text(trace, request, tokens.max(1), &mut body);
                body.push_str("\"}]");
            }
            (endpoint, Words::Text) => {
                body.push_str(match endpoint {
                    Endpoint::Generate => "{\"text\":\"",
                    _ => "{\"prompt\":\"",
                });
                write_text(trace, request, request.input_tokens, &mut body);
                body.push('"');
            }
            (endpoint, Words::Ids) => {
                body.push_str(match endpoint {
                    Endpoint::Generate => "{\"input_ids\":[",
                    _ => "{\"prompt\":[",
                });
                write_ids(trace, request, &mut body);
                body.push(']');
            }
        }
        body.push(',');
        body.push_str(&fields[1..]);
        body.into()
    }
}

fn write_ids(trace: &Trace, request: &TraceRequest, out: &mut String) {
    let range = u64::from(IDS.end - IDS.start);
    for (index, draw) in draws(trace, request, request.input_tokens).enumerate() {
        if index > 0 {
            out.push(',');
        }
        // Writing into a String cannot fail.
        let _ = write!(out, "{}", u64::from(IDS.start) + draw % range);
    }
}

/// Words of three letters, each of them one token of the simulator.
fn write_text(trace: &Trace, request: &TraceRequest, tokens: usize, out: &mut String) {
    for draw in draws(trace, request, tokens) {
        out.push(' ');
        for shift in [0, 16, 32] {
            out.push(char::from(b'a' + ((draw >> shift) % 26) as u8));
        }
    }
}

/// A draw for each of the first `tokens` of the prompt: a function of its block and of its place in the block.
fn draws<'a>(
    trace: &'a Trace,
    request: &'a TraceRequest,
    tokens: usize,
) -> impl Iterator<Item = u64> + 'a {
    let last = request.blocks.len().saturating_sub(1);
    request
        .blocks
        .iter()
        .enumerate()
        .flat_map(move |(index, &block)| {
            let start = trace.block_start(index);
            let end = match index == last {
                // Rounding must not make a prompt shorter.
                true => tokens,
                false => trace.block_start(index + 1).min(tokens),
            };
            (0..end.saturating_sub(start)).map(move |place| mix(block, place as u64))
        })
}

/// The finalizer of SplitMix64, over both.
fn mix(block: u64, place: u64) -> u64 {
    let value = block
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(place.wrapping_mul(0xd1b5_4a32_d192_ed03))
        ^ 0x2545_f491_4f6c_dd1d;
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::bench::trace::Cut;

    fn trace(token_scale: f64) -> Trace {
        let lines = [(1_500, "[1, 2, 3]"), (1_100, "[1, 2, 4]"), (512, "[5]")].map(
            |(length, ids)| {
                format!(
                    r#"{{"timestamp":0,"input_length":{length},"output_length":9,"hash_ids":{ids}}}"#
                )
            },
        );
        let cut = Cut {
            token_scale,
            ..Cut::default()
        };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace.jsonl");
        std::fs::write(&path, lines.join("\n")).unwrap();
        Trace::load(&path, cut).unwrap()
    }

    fn prompt(endpoint: Endpoint, words: Words) -> TracePrompt {
        TracePrompt {
            endpoint,
            words,
            stream: true,
            ignore_eos: true,
            model: "m".to_owned(),
            extra: Map::new(),
        }
    }

    fn bodies(trace: &Trace, prompt: &TracePrompt) -> Vec<Value> {
        let body = |request| serde_json::from_slice(&prompt.body(trace, request)).unwrap();
        trace.requests.iter().map(body).collect()
    }

    /// The tokens of a text, each of which is a word with a space before it.
    fn split(text: &str) -> Vec<&str> {
        text.split_inclusive(' ').skip(1).collect()
    }

    #[test]
    fn equal_blocks_are_equal_tokens_and_a_prompt_is_as_long_as_the_trace_says() {
        for scale in [1.0, 0.1, 0.37] {
            let trace = trace(scale);
            let shared = trace.block_start(2);
            let ids = bodies(&trace, &prompt(Endpoint::Generate, Words::Ids));
            let ids: Vec<_> = ids
                .iter()
                .map(|body| body["input_ids"].as_array().unwrap())
                .collect();
            let texts = bodies(&trace, &prompt(Endpoint::Completions, Words::Text));
            let texts: Vec<_> = texts
                .iter()
                .map(|body| body["prompt"].as_str().unwrap())
                .collect();
            for (index, request) in trace.requests.iter().enumerate() {
                assert_eq!(ids[index].len(), request.input_tokens);
                assert_eq!(split(texts[index]).len(), request.input_tokens);
                assert_eq!(texts[index].len(), 4 * request.input_tokens);
            }
            assert_eq!(ids[0][..shared], ids[1][..shared]);
            assert_ne!(ids[0][shared], ids[1][shared]);
            assert_ne!(ids[0][0], ids[2][0]);
            assert_eq!(texts[0][..4 * shared], texts[1][..4 * shared]);
        }
    }

    #[test]
    fn a_body_asks_for_the_tokens_of_the_trace_at_each_endpoint() {
        let trace = trace(1.0);
        let generate = &bodies(&trace, &prompt(Endpoint::Generate, Words::Text))[0];
        assert_eq!(generate["sampling_params"]["max_new_tokens"], 9);
        assert!(generate["text"].is_string() && generate["model"].is_null());
        let mut chat = prompt(Endpoint::Chat, Words::Ids);
        chat.extra.insert("user".to_owned(), "u".into());
        let chat = &bodies(&trace, &chat)[2];
        assert_eq!(
            (&chat["max_tokens"], &chat["user"]),
            (&9.into(), &"u".into())
        );
        let content = chat["messages"][0]["content"].as_str().unwrap();
        assert_eq!(split(content).len(), 512 - CHAT_TEMPLATE_TOKENS);
        assert_eq!(chat["stream_options"]["include_usage"], true);
    }
}
