//! The numbers of tokens that a worker reports with its response, found without parsing it.
//!
//! Source: SGLang 0.5.23, `srt/managers/tokenizer_manager.py` (`meta_info`) and `srt/entrypoints/openai/usage_processor.py`;
//! all endpoints have the names of OpenAI's usage, except for Anthropic's.

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
        let prompt_tokens = numbers(body, PROMPT_TOKENS).reduce(u64::saturating_add)?;
        Some(Self {
            prompt_tokens,
            cached_tokens: numbers(body, CACHED_TOKENS).reduce(u64::saturating_add),
        })
    }

    /// The usage in the stream for one prompt, of which each event may report it; `None` where none does.
    pub fn of_stream(body: &[u8]) -> Option<Self> {
        Some(Self {
            prompt_tokens: numbers(body, PROMPT_TOKENS).last()?,
            cached_tokens: numbers(body, CACHED_TOKENS).last(),
        })
    }
}

const PROMPT_TOKENS: &[u8] = b"\"prompt_tokens\":";
const CACHED_TOKENS: &[u8] = b"\"cached_tokens\":";

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
            (r#"{"text":"\"prompt_tokens\":5"}"#, None),
            (r#"{"prompt_tokens":null}"#, None),
            ("", None),
        ] {
            assert_eq!(Usage::of_document(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn a_stream_reports_its_prompt_with_each_event() {
        let event = r#"data: {"meta_info":{"prompt_tokens":9,"cached_tokens":4}}"#;
        let stream = format!("{event}\n\n{event}\n\ndata: [DONE]\n\n");
        assert_eq!(Usage::of_stream(stream.as_bytes()), usage(9, 4));
        assert_eq!(Usage::of_stream(b"data: [DONE]\n\n"), None);
    }
}
