//! A toy tokenizer and a toy language model: every token and logprob is a function of the tokens before it.
//!
//! Workers with the same seed therefore agree without communication, and a request gets the same response from an
//! ordinary worker and from a prefill/decode pair. Pure: no requests and no time.

use serde::{Deserialize, Serialize};

/// Number of words that can be generated, with ids from 0. A prime, so that a token's rank can be computed.
pub(crate) const WORDS: u32 = 8191;
/// The end of sequence: the last word, with rank 0 in one of 256 contexts.
pub(crate) const EOS: u32 = WORDS - 1;
/// First id of the single bytes of a prompt.
const BYTES: u32 = WORDS;
/// First id of the pieces of a prompt: up to five letters, with or without a space before them.
const PIECES: u32 = BYTES + 256;
const PIECE_LETTERS: usize = 5;
/// A piece is a number in base 27: digit 0 is no letter, 1 to 26 are letters.
const PIECE_END: u32 = PIECES + 2 * 27u32.pow(5);

/// Words with characters that have a meaning in JSON or SSE, or several bytes: they exercise parsers.
const AWKWARD: [&str; 16] = [
    "\"",
    "\\",
    "\n",
    "\n\n",
    " data: [DONE]",
    "data: {",
    " é",
    "語",
    " 😀",
    "\t",
    "\u{1}",
    " {}",
    "]",
    "\r\n",
    "\u{2028}",
    " </s>",
];

/// Tokenizes a text. [`append_text`] of all tokens gives the text again.
pub(crate) fn encode(text: &str) -> Vec<u32> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::with_capacity(bytes.len() / 4 + 1);
    let mut at = 0;
    while at < bytes.len() {
        let space = usize::from(bytes[at] == b' ');
        let letters = bytes[at + space..]
            .iter()
            .take(PIECE_LETTERS)
            .take_while(|byte| byte.is_ascii_lowercase())
            .count();
        if letters == 0 {
            tokens.push(BYTES + u32::from(bytes[at]));
            at += 1;
        } else {
            let end = at + space + letters;
            let digits = bytes[at + space..end]
                .iter()
                .fold(0, |sum, byte| sum * 27 + u32::from(byte - b'a') + 1);
            tokens.push(PIECES + digits * 2 + u32::from(space == 1));
            at = end;
        }
    }
    tokens
}

/// Appends the bytes of one token, which may end within a character.
pub(crate) fn append_text(token: u32, out: &mut Vec<u8>) {
    match token {
        EOS => {}
        0..WORDS => append_word(token, out),
        BYTES..PIECES => out.push((token - BYTES) as u8),
        PIECES..PIECE_END => {
            let packed = token - PIECES;
            if packed % 2 == 1 {
                out.push(b' ');
            }
            let mut digits = packed / 2;
            let first = out.len();
            while digits > 0 {
                // `encode` makes no id with a digit 0.
                out.push(b'a' + ((digits % 27).max(1) - 1) as u8);
                digits /= 27;
            }
            out[first..].reverse();
        }
        _ => out.extend_from_slice("\u{fffd}".as_bytes()),
    }
}

/// The text of tokens, as of a detokenizer: special tokens have none, incomplete characters are replaced.
pub(crate) fn text_of(tokens: &[u32]) -> String {
    let mut bytes = Vec::new();
    for &token in tokens {
        append_text(token, &mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The text of one token in a logprob row, where special tokens have a name.
pub(crate) fn name_of(token: u32) -> String {
    if token == EOS {
        "</s>".to_owned()
    } else {
        text_of(&[token])
    }
}

fn append_word(token: u32, out: &mut Vec<u8>) {
    if let Some(word) = AWKWARD.get(token as usize) {
        out.extend_from_slice(word.as_bytes());
        return;
    }
    if token % 4 != 3 {
        out.push(b' ');
    }
    // There are 80 syllables: two name 6400 words, and the others have three.
    let mut rest = token;
    for _ in 0..if token < 6400 { 2 } else { 3 } {
        out.push(b"bdfghjklmnprstvz"[(rest % 16) as usize]);
        out.push(b"aeiou"[(rest / 16 % 5) as usize]);
        rest /= 80;
    }
}

/// The state of the model after some tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Context {
    hash: u64,
    last_is_word: bool,
}

impl Context {
    pub(crate) fn start(seed: u64) -> Context {
        Context {
            hash: mix(seed ^ 0x9e37_79b9_7f4a_7c15),
            last_is_word: false,
        }
    }

    pub(crate) fn after(self, token: u32) -> Context {
        Context {
            hash: mix(self.hash ^ u64::from(token).wrapping_mul(0x2545_f491_4f6c_dd1d)),
            last_is_word: token < WORDS,
        }
    }

    /// Another state for each sample of a prompt; 0 leaves the state as it is.
    pub(crate) fn sampled(self, sample: u64) -> Context {
        match sample {
            0 => self,
            _ => Context {
                hash: mix(self.hash ^ mix(sample)),
                ..self
            },
        }
    }

    pub(crate) fn after_all(self, tokens: &[u32]) -> Context {
        tokens
            .iter()
            .fold(self, |context, &token| context.after(token))
    }

    /// The most probable next token, which is the one that is sampled. Never [`EOS`] directly after a prompt.
    pub(crate) fn next(self) -> u32 {
        if self.last_is_word && self.hash.is_multiple_of(256) {
            return EOS;
        }
        (self.hash >> 8) as u32 % EOS
    }

    /// The logprob of a token as the next one. It strictly falls with the token's rank. In single precision, as on a
    /// GPU, which gives it many decimal digits in JSON.
    pub(crate) fn logprob(self, token: u32) -> f64 {
        let best = -f64::from((self.hash >> 40) as u16) / 32768.0 - 0.001;
        let step = 0.25 + f64::from((self.hash >> 56) as u8) / 128.0;
        let logprob = if token >= WORDS {
            let far = mix(self.hash ^ u64::from(token)) % 20_000;
            best - 20.0 - far as f64 / 1000.0
        } else {
            let rank = f64::from(self.rank(token));
            best - step * rank.min(8.0) - rank / 1024.0
        };
        f64::from(logprob as f32)
    }

    /// The `k` most probable tokens with their logprobs, best first.
    pub(crate) fn top(self, k: usize) -> Vec<(f64, u32)> {
        let stride = u64::from(self.stride());
        let first = u64::from(self.next());
        (0..(k as u64).min(u64::from(WORDS)))
            .map(|rank| ((first + rank * stride) % u64::from(WORDS)) as u32)
            .map(|token| (self.logprob(token), token))
            .collect()
    }

    /// A hash of the tokens so far, with which two workers compare their prompts.
    pub(crate) fn fingerprint(self) -> u64 {
        self.hash
    }

    /// How many tokens are more probable than this one as the next. Tokens of prompts come after all words.
    pub(crate) fn rank_of(self, token: u32) -> u32 {
        match token {
            0..WORDS => self.rank(token),
            _ => WORDS + (mix(self.hash ^ u64::from(token)) % u64::from(WORDS)) as u32,
        }
    }

    /// The distance, modulo the prime `WORDS`, from a token to the next less probable one.
    fn stride(self) -> u32 {
        1 + (self.hash >> 24) as u32 % (WORDS - 1)
    }

    fn rank(self, token: u32) -> u32 {
        let distance = u64::from((token + WORDS - self.next()) % WORDS);
        // Fermat: stride^(p-2) is the inverse of stride modulo the prime p.
        let (mut inverse, mut power, mut exponent) = (1u64, u64::from(self.stride()), WORDS - 2);
        while exponent > 0 {
            if exponent % 2 == 1 {
                inverse = inverse * power % u64::from(WORDS);
            }
            power = power * power % u64::from(WORDS);
            exponent /= 2;
        }
        (distance * inverse % u64::from(WORDS)) as u32
    }
}

/// The finalizer of SplitMix64.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding_the_tokens_gives_the_text_again() {
        for text in [
            "",
            " ",
            "This is free software; you can",
            "  two  ",
            "é 語 😀",
            "a\nb\t\"c\\",
            " Ab abcdefghijklm",
        ] {
            assert_eq!(text_of(&encode(text)), text);
        }
    }

    #[test]
    fn ids_that_no_prompt_has_still_have_a_text() {
        for token in [PIECES, PIECES + 1, PIECE_END - 1, PIECE_END, u32::MAX] {
            let _ = text_of(&[token]);
        }
    }

    #[test]
    fn top_tokens_are_distinct_and_fall_in_logprob() {
        let context = Context::start(7).after_all(&encode("some prompt"));
        let top = context.top(64);
        assert_eq!(top[0].1, context.next());
        assert!(top.windows(2).all(|pair| pair[0].0 > pair[1].0));
    }

    #[test]
    fn answers_end_now_and_then_but_not_at_once() {
        let mut context = Context::start(1).after_all(&encode("hello"));
        let mut ends = 0;
        for position in 0..10_000 {
            let token = context.next();
            assert!(position > 0 || token != EOS);
            ends += usize::from(token == EOS);
            context = context.after(token);
        }
        assert!((10..100).contains(&ends), "{ends} of 10,000");
    }
}
