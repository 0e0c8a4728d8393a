//! Request bodies for SGLang's generation endpoints, of a given length.
//!
//! Every request has a different prompt, because SGLang caches the KV of prompts. The same seed and number give the
//! same prompt.

use std::fmt::Write;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Map, Value, json};

/// A generation endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/generate`
    Generate,
}

impl Endpoint {
    /// Path of the endpoint.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Endpoint::Chat => "/v1/chat/completions",
            Endpoint::Completions => "/v1/completions",
            Endpoint::Generate => "/generate",
        }
    }
}

/// Length of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputLength {
    /// Text of this many bytes.
    Bytes(usize),
    /// Token ids; words of about one token each on an endpoint that takes only text.
    Tokens(usize),
}

/// The parameters of a load's request bodies.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// Endpoint that the bodies are for.
    pub endpoint: Endpoint,
    /// Length of the prompt.
    pub input: InputLength,
    /// Number of tokens to generate.
    pub output_tokens: usize,
    /// Shortest input and output as a fraction of the longest, from 0 to 1. With 1 all have the same length.
    pub range_ratio: f64,
    /// Whether to request a stream.
    pub stream: bool,
    /// Whether to generate all of `output_tokens`, past an end-of-sequence token.
    pub ignore_eos: bool,
    /// Field `model`, which `/generate` does not have.
    pub model: String,
    /// Fields to add to the body or to replace in it.
    pub extra: Map<String, Value>,
    /// Seed of the prompts and their lengths.
    pub seed: u64,
}

/// Token ids of ordinary tokens in all common vocabularies. sglang.bench_serving takes the range from the tokenizer.
pub(super) const IDS: std::ops::Range<u32> = 1_000..20_000;

impl Prompt {
    /// The body of the request with this number.
    #[must_use]
    pub fn body(&self, number: u64) -> Bytes {
        let mut draws =
            SmallRng::seed_from_u64(self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut length = |longest: usize| {
            let shortest = (longest as f64 * self.range_ratio) as usize;
            draws.random_range(shortest.clamp(1, longest.max(1))..=longest.max(1))
        };
        let output_tokens = length(self.output_tokens);
        let input = match self.input {
            InputLength::Bytes(bytes) => InputLength::Bytes(length(bytes)),
            InputLength::Tokens(tokens) => InputLength::Tokens(length(tokens)),
        };
        let mut body = match self.endpoint {
            Endpoint::Chat => json!({
                "model": self.model,
                "messages": [{"role": "user", "content": text(input, &mut draws)}],
                "max_tokens": output_tokens,
            }),
            Endpoint::Completions => json!({
                "model": self.model,
                "prompt": text_or_ids(input, &mut draws),
                "max_tokens": output_tokens,
            }),
            Endpoint::Generate => self.generate(input, output_tokens, &mut draws),
        };
        if self.endpoint != Endpoint::Generate {
            body["ignore_eos"] = self.ignore_eos.into();
            body["temperature"] = 0.0.into();
            if self.stream {
                body["stream_options"] = json!({"include_usage": true});
            }
        }
        body["stream"] = self.stream.into();
        for (key, value) in &self.extra {
            body[key] = value.clone();
        }
        body.to_string().into()
    }

    fn generate(&self, input: InputLength, output_tokens: usize, draws: &mut SmallRng) -> Value {
        let prompt = text_or_ids(input, draws);
        let key = match prompt {
            Value::String(_) => "text",
            _ => "input_ids",
        };
        json!({
            key: prompt,
            "sampling_params": {
                "max_new_tokens": output_tokens,
                "temperature": 0.0,
                "ignore_eos": self.ignore_eos,
            },
        })
    }
}

fn text_or_ids(input: InputLength, draws: &mut SmallRng) -> Value {
    match input {
        InputLength::Bytes(_) => text(input, draws).into(),
        InputLength::Tokens(tokens) => (0..tokens).map(|_| draws.random_range(IDS)).collect(),
    }
}

/// Words of four letters, about one token each.
fn text(input: InputLength, draws: &mut SmallRng) -> String {
    let bytes = match input {
        InputLength::Bytes(bytes) => bytes,
        InputLength::Tokens(tokens) => tokens * 5,
    };
    let mut text = String::with_capacity(bytes + 8);
    while text.len() < bytes {
        let [a, b, c, d] = draws
            .random::<[u8; 4]>()
            .map(|byte| char::from(b'a' + byte % 26));
        // Writing into a String cannot fail.
        let _ = write!(text, "{a}{b}{c}{d} ");
    }
    text.truncate(bytes);
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn prompt(endpoint: Endpoint, input: InputLength) -> Prompt {
        Prompt {
            endpoint,
            input,
            output_tokens: 7,
            range_ratio: 1.0,
            stream: true,
            ignore_eos: true,
            model: "m".to_owned(),
            extra: Map::new(),
            seed: 1,
        }
    }

    fn body(prompt: &Prompt, number: u64) -> Value {
        serde_json::from_slice(&prompt.body(number)).unwrap()
    }

    #[test]
    fn a_prompt_is_as_long_as_asked_on_every_endpoint() {
        let bytes = InputLength::Bytes(1001);
        let chat = body(&prompt(Endpoint::Chat, bytes), 0);
        assert_eq!(chat["messages"][0]["content"].as_str().unwrap().len(), 1001);
        assert_eq!(chat["max_tokens"], 7);
        let tokens = InputLength::Tokens(33);
        let completion = body(&prompt(Endpoint::Completions, tokens), 0);
        assert_eq!(completion["prompt"].as_array().unwrap().len(), 33);
        let generate = body(&prompt(Endpoint::Generate, tokens), 0);
        assert_eq!(generate["input_ids"].as_array().unwrap().len(), 33);
        assert_eq!(generate["sampling_params"]["max_new_tokens"], 7);
        let generate = body(&prompt(Endpoint::Generate, bytes), 0);
        assert_eq!(generate["text"].as_str().unwrap().len(), 1001);
    }

    #[test]
    fn each_number_has_its_prompt_and_always_the_same() {
        let prompt = prompt(Endpoint::Chat, InputLength::Tokens(8));
        assert_ne!(prompt.body(0), prompt.body(1));
        assert_eq!(prompt.body(1), prompt.body(1));
    }

    #[test]
    fn lengths_lie_between_the_ratio_and_the_whole() {
        let prompt = Prompt {
            range_ratio: 0.5,
            ..prompt(Endpoint::Generate, InputLength::Tokens(40))
        };
        let lengths: std::collections::BTreeSet<_> = (0..200)
            .map(|number| body(&prompt, number)["input_ids"].as_array().unwrap().len())
            .collect();
        assert!(lengths.iter().all(|length| (20..=40).contains(length)));
        assert!(lengths.len() > 10, "{lengths:?}");
    }

    #[test]
    fn extra_fields_replace_the_others() {
        let mut prompt = prompt(Endpoint::Chat, InputLength::Tokens(1));
        prompt.extra.insert("max_tokens".to_owned(), 9.into());
        assert_eq!(body(&prompt, 0)["max_tokens"], 9);
    }
}
