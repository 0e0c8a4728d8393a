//! The beginning of a prompt, as a policy compares it with those that a worker has computed: hashes of blocks.
//!
//! What lives here: which bytes of a body are prompt, in which order, and the chain of hashes over them. What may not: which
//! worker has which block, see `fleet`.
//!
//! The bytes are those between the JSON punctuation, in the order of the chat template: tools before messages. No prompt is
//! tokenised: two prompts whose bytes begin alike begin with the same tokens. The reverse does not hold for two ways to
//! write one text (escapes, spaces in lists of numbers), which a client does not mix.
//!
//! Source: SGLang 0.5.23, `srt/managers/io_struct.py` and `srt/entrypoints/openai/protocol.py` (the fields), and
//! `srt/mem_cache/radix_cache.py` (`extra_key`: what prompts of equal tokens may still differ in).

use std::hash::{BuildHasher, Hasher};
use std::ops::Range;

use foldhash::quality::FixedState;

use super::Route;
use super::json::{self, Kind, Scanner};

/// The length of a block, in bytes: some 130 tokens of English. A shorter one finds more of a prefix, and costs more to
/// hash, to look up and to remember.
pub const BLOCK_BYTES: usize = 512;

/// The fields whose values are prompt, in the order in which the engine puts them together.
const fn fields(route: Route) -> &'static [&'static str] {
    match route {
        Route::Generate => &[
            "lora_path",
            "extra_key",
            "cache_salt",
            "input_ids",
            "text",
            "image_data",
            "video_data",
            "audio_data",
        ],
        Route::ChatCompletions => &[
            "model",
            "lora_path",
            "extra_key",
            "cache_salt",
            "chat_template_kwargs",
            "tools",
            "messages",
        ],
        Route::Completions => &["model", "lora_path", "extra_key", "cache_salt", "prompt"],
        Route::Responses => &[
            "model",
            "extra_key",
            "cache_salt",
            "instructions",
            "tools",
            "input",
        ],
        Route::Messages => &["model", "system", "tools", "messages"],
    }
}

/// The beginning of a prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prefix {
    blocks: Box<[u64]>,
    bytes: usize,
}

impl Prefix {
    /// The prompt of a body that has been parsed. Of a list of prompts they follow each other.
    pub fn of(route: Route, body: &[u8]) -> Self {
        let fields = fields(route);
        let mut leaves: Vec<(usize, Range<usize>)> = Vec::new();
        let mut read = || -> Result<(), json::Error> {
            let mut scanner = Scanner::new(body)?;
            scanner.object(|s, member| {
                match fields.iter().position(|field| *field == member.name) {
                    Some(place) => collect(s, &mut |leaf| leaves.push((place, leaf))),
                    None => s.skip().map(drop),
                }
            })?;
            Ok(())
        };
        // What was read up to an error is still a prefix.
        let _ = read();
        leaves.sort_by_key(|(place, _)| *place);
        let mut chain = Chain::new(body.len());
        for (_, leaf) in leaves {
            chain.add(&body[leaf]);
            chain.add(b"\0");
        }
        chain.end()
    }

    /// The hash of each whole block, which tells it and all before it.
    pub fn blocks(&self) -> &[u64] {
        &self.blocks
    }

    /// The length of the prompt, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A prefix of these blocks and this length.
    #[cfg(test)]
    pub(crate) fn for_tests(blocks: impl IntoIterator<Item = u64>, bytes: usize) -> Self {
        Self {
            blocks: blocks.into_iter().collect(),
            bytes,
        }
    }
}

/// Gives the span of each text and number in the next value, without quotes; a list of numbers is one span.
fn collect(s: &mut Scanner<'_>, leaf: &mut dyn FnMut(Range<usize>)) -> Result<(), json::Error> {
    match s.kind()? {
        Kind::Object => s.object(|s, _| collect(s, leaf)).map(drop),
        Kind::Array if !s.is_array_of_numbers() => s.array(|s, _| collect(s, leaf)).map(drop),
        Kind::Null => s.skip().map(drop),
        Kind::Text | Kind::Array => {
            let value = s.skip()?;
            leaf(value.start + 1..value.end - 1);
            Ok(())
        }
        Kind::Number | Kind::Bool => s.skip().map(leaf),
    }
}

/// The hashes of blocks, each of which depends on all before it.
struct Chain {
    state: FixedState,
    last: u64,
    blocks: Vec<u64>,
    /// The bytes of the block that is not whole yet.
    open: Vec<u8>,
    bytes: usize,
}

impl Chain {
    /// The chain of at most `bytes`.
    fn new(bytes: usize) -> Self {
        Self {
            state: FixedState::with_seed(0),
            last: 0,
            blocks: Vec::with_capacity(bytes / BLOCK_BYTES),
            open: Vec::new(),
            bytes: 0,
        }
    }

    fn add(&mut self, mut more: &[u8]) {
        self.bytes += more.len();
        if !self.open.is_empty() {
            let (begin, rest) = more.split_at(more.len().min(BLOCK_BYTES - self.open.len()));
            self.open.extend_from_slice(begin);
            more = rest;
            if self.open.len() < BLOCK_BYTES {
                return;
            }
            let block = std::mem::take(&mut self.open);
            self.block(&block);
            self.open = block;
            self.open.clear();
        }
        let mut blocks = more.chunks_exact(BLOCK_BYTES);
        for block in &mut blocks {
            self.block(block);
        }
        self.open.extend_from_slice(blocks.remainder());
    }

    fn block(&mut self, block: &[u8]) {
        let mut hasher = self.state.build_hasher();
        hasher.write_u64(self.last);
        hasher.write(block);
        self.last = hasher.finish();
        self.blocks.push(self.last);
    }

    fn end(self) -> Prefix {
        Prefix {
            blocks: self.blocks.into_boxed_slice(),
            bytes: self.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(route: Route, body: &str) -> Vec<u64> {
        Prefix::of(route, body.as_bytes()).blocks().to_vec()
    }

    /// A text of this many blocks that differs from that of another seed from its first byte on.
    fn text(seed: usize, blocks: usize) -> String {
        let words = (0..).map(|word| format!("{seed}.{word} "));
        let all: String = words.take(blocks * BLOCK_BYTES / 3).collect();
        all[..blocks * BLOCK_BYTES].to_owned()
    }

    #[test]
    fn the_next_turn_of_a_conversation_begins_with_the_blocks_of_the_last_one() {
        let turn = |messages: &str, more: &str| {
            format!(r#"{{"model":"m",{more}"messages":[{messages}],"stream":true}}"#)
        };
        let message = |role, text: &str| format!(r#"{{"role":"{role}","content":"{text}"}}"#);
        let first = message("user", &text(1, 8));
        let then = [
            first.clone(),
            message("assistant", &text(2, 3)),
            message("user", &text(3, 2)),
        ];
        let short = blocks(Route::ChatCompletions, &turn(&first, ""));
        let long = blocks(
            Route::ChatCompletions,
            &turn(&then.join(","), r#""top_p":0.5,"#),
        );
        assert_eq!((short.len(), long.len()), (8, 13));
        assert_eq!(short, long[..8]);
    }

    #[test]
    fn what_differs_anywhere_before_changes_all_blocks_behind_it() {
        let body = |first: &str, model: &str| {
            format!(
                r#"{{"messages":["{first}","{}"],"model":"{model}"}}"#,
                text(9, 4)
            )
        };
        let base = blocks(Route::ChatCompletions, &body(&text(1, 2), "m"));
        for other in [body(&text(2, 2), "m"), body(&text(1, 2), "n")] {
            let other = blocks(Route::ChatCompletions, &other);
            let equal = base.iter().zip(&other).filter(|(one, other)| one == other);
            assert_eq!((other.len(), equal.count()), (6, 0));
        }
        let mut late = text(9, 4);
        late.replace_range(3 * BLOCK_BYTES.., &text(5, 1));
        let late = body(&text(1, 2), "m").replace(&text(9, 4), &late);
        let late = blocks(Route::ChatCompletions, &late);
        assert_eq!(base[..4], late[..4]);
        assert_ne!(base[5], late[5]);
    }

    #[test]
    fn tools_come_before_messages_wherever_they_stand() {
        let (tools, messages) = (
            format!(r#""tools":[{{"name":"{}"}}]"#, text(1, 3)),
            format!(r#""messages":[{{"content":"{}"}}]"#, text(2, 3)),
        );
        let one = blocks(Route::ChatCompletions, &format!("{{{tools},{messages}}}"));
        let other = blocks(Route::ChatCompletions, &format!("{{{messages},{tools}}}"));
        assert_eq!(one, other);
        assert_eq!(
            one[..3],
            blocks(Route::ChatCompletions, &format!("{{{tools}}}"))[..3]
        );
    }

    #[test]
    fn token_ids_and_texts_of_every_route_have_blocks_and_other_fields_have_none() {
        let ids: Vec<_> = (100_000..100_600).map(|id| id.to_string()).collect();
        let ids = format!("[{}]", ids.join(","));
        let text = format!("\"{}\"", text(1, 8));
        for (route, field, value) in [
            (Route::Generate, "input_ids", &ids),
            (Route::Generate, "text", &text),
            (Route::Completions, "prompt", &ids),
            (Route::Completions, "prompt", &text),
            (Route::Responses, "input", &text),
            (Route::Messages, "system", &text),
        ] {
            let body = format!(r#"{{"{field}":{value}}}"#);
            let prefix = Prefix::of(route, body.as_bytes());
            assert_eq!(prefix.bytes(), value.len() - 1, "{field}");
            assert_eq!(prefix.blocks().len(), prefix.bytes() / BLOCK_BYTES);
            let other = format!(r#"{{"stop":{value}}}"#);
            assert_eq!(Prefix::of(route, other.as_bytes()).bytes(), 0);
        }
    }

    #[test]
    fn the_pieces_in_which_bytes_are_added_do_not_matter() {
        let bytes = text(4, 5);
        let hashed = |pieces: &[&str]| {
            let mut chain = Chain::new(bytes.len());
            pieces.iter().for_each(|piece| chain.add(piece.as_bytes()));
            chain.end()
        };
        let whole = hashed(&[&bytes]);
        for cut in [1, 511, 512, 513, 1023, 1500] {
            let (begin, end) = bytes.split_at(cut);
            assert_eq!(hashed(&[begin, end]), whole, "{cut}");
            assert_eq!(hashed(&[begin, "", &end[..7], &end[7..]]), whole, "{cut}");
        }
    }
}
