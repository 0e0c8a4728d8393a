//! The numbers of tokens that a worker reports with its response, found without parsing it.
//!
//! Chat, completions and `/generate` have the names of OpenAI's usage. Responses has `input_tokens` instead, with 0 cached
//! tokens whatever was cached. Messages has `input_tokens` without the cached ones, and those only where there are any.
//!
//! Source: SGLang 0.5.23, `srt/managers/tokenizer_manager.py` (`meta_info`), `srt/entrypoints/openai/usage_processor.py`,
//! `srt/entrypoints/openai/serving_responses.py`, and `srt/entrypoints/anthropic/` (`anthropic_usage_from_openai`).
//! vLLM 0.32.0: the parameters of a transfer have both numbers on every endpoint, also where the usage has none.

use memchr::memmem;

/// The tokens of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// All of them.
    pub prompt_tokens: u64,
    /// Those that were in the worker's prefix cache; `None` where it does not tell.
    pub cached_tokens: Option<u64>,
}

impl Usage {
    /// The usage in a document, of all its prompts together; `None` where it reports none.
    pub fn of_document(body: &[u8]) -> Option<Self> {
        let last = |key| numbers(body, key).last();
        if let Some(prompt_tokens) = last(REMOTE_TOKENS) {
            return Some(Self {
                prompt_tokens,
                cached_tokens: last(REMOTE_CACHED_TOKENS),
            });
        }
        Self::of(body, |numbers| numbers.reduce(u64::saturating_add))
    }

    /// The usage in the stream for one prompt, of which each event may report it, the first one without its numbers; `None`
    /// where none does.
    pub fn of_stream(body: &[u8]) -> Option<Self> {
        Self::of(body, |numbers| numbers.max())
    }

    fn of(body: &[u8], together: impl Fn(Numbers<'_>) -> Option<u64>) -> Option<Self> {
        let found = |key| together(&mut numbers(body, key));
        let cached_tokens = found(CACHED_TOKENS);
        if let Some(prompt_tokens) = found(PROMPT_TOKENS) {
            return Some(Self {
                prompt_tokens,
                cached_tokens,
            });
        }
        let input_tokens = found(INPUT_TOKENS)?;
        let read = found(CACHE_READ_TOKENS).filter(|read| *read > 0);
        let prompt_tokens = input_tokens.saturating_add(read.unwrap_or(0));
        (prompt_tokens > 0).then_some(Self {
            prompt_tokens,
            cached_tokens: read.or(cached_tokens.filter(|cached| *cached > 0)),
        })
    }
}

const PROMPT_TOKENS: &[u8] = b"\"prompt_tokens\":";
const CACHED_TOKENS: &[u8] = b"\"cached_tokens\":";
const INPUT_TOKENS: &[u8] = b"\"input_tokens\":";
const CACHE_READ_TOKENS: &[u8] = b"\"cache_read_input_tokens\":";
const REMOTE_TOKENS: &[u8] = b"\"remote_num_tokens\":";
const REMOTE_CACHED_TOKENS: &[u8] = b"\"remote_prefill_cached_tokens\":";

type Numbers<'a> = &'a mut dyn Iterator<Item = u64>;

/// The numbers behind this key. In a text the key would have a backslash before its last quote.
fn numbers<'a>(body: &'a [u8], key: &'static [u8]) -> impl Iterator<Item = u64> + 'a {
    memmem::find_iter(body, key).filter_map(move |at| {
        let value = body[at + key.len()..].trim_ascii_start();
        let digits = value
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        std::str::from_utf8(&value[..digits]).ok()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(prompt_tokens: u64, cached_tokens: impl Into<Option<u64>>) -> Option<Usage> {
        Some(Usage {
            prompt_tokens,
            cached_tokens: cached_tokens.into(),
        })
    }

    #[test]
    fn a_document_reports_the_tokens_of_all_its_prompts() {
        for (body, expected) in [
            (
                r#"{"text":"a","meta_info":{"prompt_tokens":9,"cached_tokens":4}}"#,
                usage(9, 4),
            ),
            (
                r#"[{"meta_info":{"prompt_tokens":9,"cached_tokens":4}},{"meta_info":{"prompt_tokens":3,"cached_tokens":0}}]"#,
                usage(12, 4),
            ),
            (
                r#"{"usage":{"prompt_tokens": 7, "prompt_tokens_details":{"cached_tokens":5}}}"#,
                usage(7, 5),
            ),
            (
                r#"{"usage":{"prompt_tokens":7,"prompt_tokens_details":null}}"#,
                usage(7, None),
            ),
            (
                r#"{"usage":{"input_tokens":12,"input_tokens_details":{"cached_tokens":0},"output_tokens":1}}"#,
                usage(12, None),
            ),
            (
                r#"{"usage":{"input_tokens":12,"input_tokens_details":{"cached_tokens":8},"output_tokens":1}}"#,
                usage(12, 8),
            ),
            (
                r#"{"type":"message","usage":{"input_tokens":3,"cache_read_input_tokens":9,"output_tokens":1}}"#,
                usage(12, 9),
            ),
            (
                r#"{"type":"message","usage":{"input_tokens":12,"output_tokens":1}}"#,
                usage(12, None),
            ),
            (r#"{"text":"\"prompt_tokens\":5"}"#, None),
            (r#"{"prompt_tokens":null}"#, None),
            ("", None),
        ] {
            assert_eq!(Usage::of_document(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn prefill_of_vllm_reports_its_prompt_on_every_endpoint() {
        for (response, expected) in [
            (
                include_str!("../../tests/fixtures/vllm-0.32.0/prefill/chat.json"),
                usage(100, 0),
            ),
            (
                include_str!("../../tests/fixtures/vllm-0.32.0/prefill/messages.json"),
                usage(101, 0),
            ),
            (
                include_str!("../../tests/fixtures/vllm-0.32.0/prefill/responses.json"),
                usage(101, 0),
            ),
            (
                r#"{"usage":{"prompt_tokens":9,"prompt_tokens_details":null},"kv_transfer_params":{"remote_num_tokens":9,"remote_prefill_cached_tokens":4}}"#,
                usage(9, 4),
            ),
        ] {
            assert_eq!(
                Usage::of_document(response.as_bytes()),
                expected,
                "{response}"
            );
        }
    }

    #[test]
    fn a_stream_reports_its_prompt_with_each_event_or_the_last_one() {
        let event = r#"data: {"meta_info":{"prompt_tokens":9,"cached_tokens":4}}"#;
        let stream = format!("{event}\n\n{event}\n\ndata: [DONE]\n\n");
        assert_eq!(Usage::of_stream(stream.as_bytes()), usage(9, 4));
        let begin = r#"data: {"type":"message_start","message":{"usage":{"input_tokens":0,"output_tokens":0}}}"#;
        let end = r#"data: {"type":"message_delta","usage":{"input_tokens":2,"cache_read_input_tokens":7,"output_tokens":1}}"#;
        let messages = format!("{begin}\n\n{end}\n\n");
        assert_eq!(Usage::of_stream(messages.as_bytes()), usage(9, 7));
        assert_eq!(Usage::of_stream(begin.as_bytes()), None);
        assert_eq!(Usage::of_stream(b"data: [DONE]\n\n"), None);
    }
}
