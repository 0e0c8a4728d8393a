//! A trace of requests: when each came, how long it was, and which beginnings it shares with others.
//!
//! `mooncake` and `azure` read a line of their format, `prompt` makes a request's body. Pure but for [`Trace::load`]. Times
//! and lengths can be scaled, so that a trace fits a small machine; the shared part of two prompts is scaled alike.

mod args;
mod azure;
mod mooncake;
mod prompt;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use args::TraceArgs;
pub use prompt::{TracePrompt, Words};

/// Prompt tokens of a block. Source: Mooncake's `FAST25-release/traces`, one of `hash_ids` for each 512 tokens.
pub(super) const BLOCK_TOKENS: usize = 512;

/// The requests of a trace, by time.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// At least one.
    pub requests: Vec<TraceRequest>,
    /// Tokens of a block, which scaling makes a fraction.
    pub block_tokens: f64,
}

/// One request of a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceRequest {
    /// When it came, from the first request on.
    pub at: Duration,
    /// Tokens of the prompt; at least one.
    pub input_tokens: usize,
    /// Tokens of the response; at least one.
    pub output_tokens: usize,
    /// The blocks of the prompt: prompts with equal blocks at their beginning begin with the same tokens.
    pub blocks: Vec<u64>,
}

/// Which requests of a trace, how fast, how long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cut {
    /// Requests at the beginning that are left out.
    pub skip: usize,
    /// Upper bound of the requests after those.
    pub requests: usize,
    /// Factor on the speed: with 2 the trace takes half of its time. Above 0.
    pub speedup: f64,
    /// Factor on the lengths of prompts and responses. Above 0.
    pub token_scale: f64,
}

/// Why a trace cannot be read.
#[derive(Debug)]
pub enum TraceError {
    /// The file cannot be read.
    Unreadable(PathBuf, std::io::Error),
    /// A line (counted from 1) is broken.
    Line(PathBuf, usize, String),
    /// The file has no request, or none after those that are skipped.
    Empty(PathBuf),
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TraceError::Unreadable(file, error) => write!(f, "{}: {error}", file.display()),
            TraceError::Line(file, line, why) => write!(f, "{}:{line}: {why}", file.display()),
            TraceError::Empty(file) => write!(f, "{}: no request is left to send", file.display()),
        }
    }
}

impl std::error::Error for TraceError {}

impl Trace {
    /// Reads a trace of Mooncake (a JSON object in each line) or of Azure (CSV, with a head).
    ///
    /// # Errors
    /// When the file cannot be read, a line is broken, or no request is left.
    pub fn load(path: &Path, cut: Cut) -> Result<Trace, TraceError> {
        let unreadable = |error| TraceError::Unreadable(path.to_owned(), error);
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let read = Trace::parse(&text);
        let requests = read.map_err(|(line, why)| TraceError::Line(path.to_owned(), line, why))?;
        let trace = Trace::cut(requests, cut);
        trace.ok_or_else(|| TraceError::Empty(path.to_owned()))
    }

    /// The requests of a text by time, or the number of the first broken line with what is wrong with it.
    ///
    /// # Errors
    /// When a line is broken.
    pub fn parse(text: &str) -> Result<Vec<TraceRequest>, (usize, String)> {
        let mut lines = (1..)
            .zip(text.trim_start_matches('\u{feff}').lines())
            .filter(|(_, line)| !line.trim().is_empty())
            .peekable();
        let is_json = |line: &str| line.trim_start().starts_with('{');
        let mut requests = Vec::new();
        if lines.peek().is_some_and(|(_, line)| !is_json(line)) {
            let columns = match lines.next() {
                Some((number, head)) => azure::Columns::read(head).map_err(|why| (number, why))?,
                None => return Ok(requests),
            };
            for (number, line) in lines {
                let request = columns.request(line, number as u64);
                requests.push(request.map_err(|why| (number, why))?);
            }
        } else {
            for (number, line) in lines {
                requests.push(mooncake::request(line).map_err(|why| (number, why))?);
            }
        }
        requests.sort_by_key(|request| request.at);
        Ok(requests)
    }

    fn cut(requests: Vec<TraceRequest>, cut: Cut) -> Option<Trace> {
        let mut requests: Vec<_> = requests
            .into_iter()
            .skip(cut.skip)
            .take(cut.requests)
            .collect();
        let first = requests.first()?.at;
        let scaled = |tokens: usize| ((tokens as f64 * cut.token_scale).round() as usize).max(1);
        for request in &mut requests {
            let at = (request.at - first).as_secs_f64() / cut.speedup;
            request.at = Duration::try_from_secs_f64(at).unwrap_or(Duration::MAX);
            request.input_tokens = scaled(request.input_tokens);
            request.output_tokens = scaled(request.output_tokens);
        }
        Some(Trace {
            requests,
            block_tokens: BLOCK_TOKENS as f64 * cut.token_scale,
        })
    }

    /// The position of the first token of the block with this index. Equal for all prompts, so that blocks that two
    /// prompts share have the same tokens.
    #[must_use]
    pub fn block_start(&self, index: usize) -> usize {
        (index as f64 * self.block_tokens).round() as usize
    }

    /// The time from the first to the last request.
    #[must_use]
    pub fn span(&self) -> Duration {
        self.requests.last().map_or(Duration::ZERO, |last| last.at)
    }
}

impl Default for Cut {
    fn default() -> Self {
        Cut {
            skip: 0,
            requests: usize::MAX,
            speedup: 1.0,
            token_scale: 1.0,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LINES: &str = "\
{\"timestamp\": 1000, \"input_length\": 1000, \"output_length\": 50, \"hash_ids\": [7, 8]}

{\"timestamp\": 3000, \"input_length\": 513, \"output_length\": 1, \"hash_ids\": [7, 9]}
{\"timestamp\": 2000, \"input_length\": 4, \"output_length\": 2, \"hash_ids\": [3]}
";

    #[test]
    fn a_trace_is_cut_sped_up_and_scaled_and_goes_by_time() {
        let requests = Trace::parse(LINES).unwrap();
        assert_eq!(requests.len(), 3);
        let cut = Cut {
            skip: 1,
            requests: 2,
            speedup: 2.0,
            token_scale: 0.1,
        };
        let trace = Trace::cut(requests, cut).unwrap();
        let seen: Vec<_> = trace
            .requests
            .iter()
            .map(|request| {
                (
                    request.at.as_millis(),
                    request.input_tokens,
                    request.output_tokens,
                )
            })
            .collect();
        assert_eq!(seen, [(0, 1, 1), (500, 51, 1)]);
        assert_eq!(
            [0, 1, 2].map(|index| trace.block_start(index)),
            [0, 51, 102]
        );
        assert_eq!(trace.span().as_millis(), 500);
        assert_eq!(Trace::cut(Vec::new(), Cut::default()), None);
    }

    #[test]
    fn a_broken_line_is_named_with_file_number_and_field() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace");
        let good = r#"{"timestamp": 0, "input_length": 4, "output_length": 2, "hash_ids": [3]}"#;
        let head = "TIMESTAMP,ContextTokens,GeneratedTokens";
        for (text, line, words) in [
            (format!("{good}\n\n{{\"timestamp\": 1"), 3, "not JSON"),
            (format!("{good}\n[]"), 2, "expected a JSON object"),
            (
                good.replace("output_length", "output"),
                1,
                "`output_length` is missing",
            ),
            (
                good.replace(": 4", ": \"4\""),
                1,
                "`input_length`: expected a whole number, got \"4\"",
            ),
            (
                good.replace(": 4", ": 0"),
                1,
                "`input_length`: expected at least 1",
            ),
            (
                good.replace("[3]", "[3, 4]"),
                1,
                "`hash_ids`: 2 blocks for 4 tokens, expected 1",
            ),
            (
                good.replace("[3]", "[-3]"),
                1,
                "`hash_ids`: expected whole numbers",
            ),
            (
                "TIMESTAMP,ContextTokens".to_owned(),
                1,
                "no column `GeneratedTokens`",
            ),
            (
                format!("{head}\n2023-11-16 18:17:03.9799600,12"),
                2,
                "expected 3 columns, got 2",
            ),
            (
                format!("{head}\nyesterday,12,3"),
                2,
                "`TIMESTAMP`: expected",
            ),
            (
                format!("{head}\n2023-11-16 18:17:03,twelve,3"),
                2,
                "`ContextTokens`: expected a whole number, got \"twelve\"",
            ),
        ] {
            std::fs::write(&path, &text).unwrap();
            let error = Trace::load(&path, Cut::default()).unwrap_err().to_string();
            let place = format!("{}:{line}: ", path.display());
            assert!(
                error.starts_with(&place) && error.contains(words),
                "{error}"
            );
        }
        std::fs::write(&path, "").unwrap();
        let error = Trace::load(&path, Cut::default()).unwrap_err().to_string();
        assert!(error.contains("no request is left"), "{error}");
    }
}
