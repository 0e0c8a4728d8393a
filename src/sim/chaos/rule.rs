//! The language of faults: YAML (or JSON, which is YAML) to typed rules.
//!
//! Every key and its meaning is in `conf/sim/chaos.yaml`. What parses is sane: the types refuse the rest, so
//! that the parser's error has the line and the key.

use std::num::NonZeroU64;
use std::path::Path;

use http::HeaderValue;
use serde::Deserialize;

use crate::sim::Role;

/// The largest event on purpose: more tests nothing but this machine's memory.
const GIANT_BYTES_MAX: u64 = 1 << 30;

/// A worker's faults: rules in order, the first that strikes a request has it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// What decides about `probability`; the same seed strikes the same requests.
    #[serde(default)]
    pub seed: u64,
    /// The rules, in the order in which they are asked.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// What happens to which requests.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What the journal calls it; without one, the action's name.
    #[serde(default)]
    pub name: Option<String>,
    /// Which requests; without one, all.
    #[serde(default, rename = "match")]
    pub matching: Match,
    /// What happens.
    #[serde(rename = "do", with = "serde_yaml::with::singleton_map")]
    pub action: Action,
}

/// Which requests a rule is about. `/sim/...` is out of every rule's reach.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Match {
    /// The path, exactly.
    pub path: Option<String>,
    /// Workers of this role only: one script can serve a whole demo.
    pub role: Option<RoleName>,
    /// Requests with this `x-sim-fault` only. Those are out of reach of rules without one.
    pub header: Option<String>,
    /// The first so many matching requests are spared.
    pub after: u64,
    /// Then every n-th is struck.
    pub every: Option<NonZeroU64>,
    /// Then only with this probability.
    pub probability: Option<Probability>,
    /// At most so many strikes.
    pub times: Option<u64>,
}

/// A role as scripts write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the words of the command line
pub enum RoleName {
    Prefill,
    Decode,
    Single,
}

/// From 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Probability(f64);

/// Status of a final response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u16")]
pub struct FinalStatus(pub(crate) u16);

/// A header's value.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HeaderText(pub(crate) HeaderValue);

/// A size that fits into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u64")]
pub struct GiantBytes(pub(crate) usize);

/// How a connection ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// RST.
    #[default]
    Reset,
    /// FIN.
    Close,
}

/// What can happen to a request. Events are counted in streams; a whole answer has none.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// The connection is reset and new ones are refused for a time.
    Refuse {
        /// How long.
        for_ms: u64,
    },
    /// No answer, ever.
    Silence,
    /// The head is late.
    DelayHead {
        /// How late.
        ms: u64,
    },
    /// RST before the head.
    Reset,
    /// FIN before the head.
    Close,
    /// The connection ends in the body.
    CutAfterBytes {
        /// Bytes on the wire after the head, chunk framing included.
        bytes: usize,
        /// How it ends.
        #[serde(default)]
        end: End,
    },
    /// The connection ends in the stream.
    CutAfterEvent {
        /// Events before.
        events: usize,
        /// How it ends.
        #[serde(default)]
        end: End,
    },
    /// The stream falls silent.
    StallAfterEvent {
        /// Events before.
        events: usize,
    },
    /// Another answer; the engine never sees the request.
    Status {
        /// Its status.
        code: FinalStatus,
        /// Its body; without one, SGLang's error shape.
        #[serde(default)]
        body: Option<String>,
        /// `content-type`; without one, JSON.
        #[serde(default)]
        content_type: Option<HeaderText>,
        /// Seconds in `retry-after`.
        #[serde(default)]
        retry_after: Option<u32>,
    },
    /// Half of the head, then FIN.
    HalfHead,
    /// Another `content-type` on the right body.
    ContentType(HeaderText),
    /// `content-length` is off by so many bytes. A stream has none, and stays as it is.
    ContentLength {
        /// Added to the right number.
        add: i64,
    },
    /// The last byte of a whole body, or the last brace of a stream's first event, is missing.
    InvalidJson,
    /// The first chunk's size is no number.
    BadChunk,
    /// The stream ends with SGLang's error event and `[DONE]`.
    ErrorEvent {
        /// Events before.
        events: usize,
        /// The error's text.
        #[serde(default)]
        message: Option<String>,
    },
    /// The stream ends without `[DONE]`.
    MissingDone,
    /// The request ends with finish reason `abort`.
    AbortFinish {
        /// Tokens before.
        tokens: usize,
    },
    /// Every event comes in pieces, each a chunk.
    SplitEvents {
        /// Bytes per piece.
        bytes: NonZeroU64,
    },
    /// The answer is written in pieces, whatever its framing.
    Dribble {
        /// Bytes per write.
        bytes: NonZeroU64,
    },
    /// The stream's first event is padded with blanks.
    GiantEvent {
        /// Its size.
        bytes: GiantBytes,
    },
    /// The worker does not notice that the client left.
    Zombie,
    /// The KV transfer fails with SGLang's 500. On decode, prefill is told; on prefill, decode waits in vain.
    LoseKv,
    /// Prefill dies during the transfer; decode hears of it by missed heartbeats.
    CrashInTransfer,
    /// 500, and the worker is dead.
    OutOfMemory,
}

/// Why a script is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptError(String);

impl std::fmt::Display for ScriptError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}; correct the rule (conf/sim/chaos.yaml shows every key)",
            self.0
        )
    }
}

impl std::error::Error for ScriptError {}

impl Script {
    /// Reads YAML or JSON.
    ///
    /// # Errors
    /// The first key that does not fit, with its line.
    pub fn parse(text: &str) -> Result<Script, ScriptError> {
        serde_yaml::from_str(text).map_err(|error| ScriptError(error.to_string()))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read, or [`Script::parse`] fails; both name the file.
    pub fn load(path: impl AsRef<Path>) -> Result<Script, ScriptError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ScriptError(format!("{}: {error}", path.display())))?;
        Script::parse(&text)
            .map_err(|ScriptError(why)| ScriptError(format!("{}: {why}", path.display())))
    }
}

impl Rule {
    pub(crate) fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_else(|| self.action.name())
    }
}

impl Match {
    /// Whether a request counts for the rule.
    pub(crate) fn concerns(&self, role: Role, path: &str, header: Option<&str>) -> bool {
        !path.starts_with("/sim/")
            && self.path.as_deref().is_none_or(|wanted| wanted == path)
            && self.role.is_none_or(|wanted| wanted.is(role))
            && self.header.as_deref() == header
    }

    /// Whether the `seen`-th request that counts is struck, after `strikes` others.
    pub(crate) fn strikes(&self, seen: u64, strikes: u64, draw: f64) -> bool {
        let beyond = seen.saturating_sub(self.after);
        beyond > 0
            && self.every.is_none_or(|every| beyond % every == 0)
            && self.times.is_none_or(|times| strikes < times)
            && self.probability.is_none_or(|Probability(p)| draw < p)
    }
}

impl RoleName {
    fn is(self, role: Role) -> bool {
        match self {
            RoleName::Prefill => role == Role::Prefill,
            RoleName::Decode => role == Role::Decode,
            RoleName::Single => role == Role::Ordinary,
        }
    }
}

impl Action {
    /// As scripts write it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Action::Refuse { .. } => "refuse",
            Action::Silence => "silence",
            Action::DelayHead { .. } => "delay_head",
            Action::Reset => "reset",
            Action::Close => "close",
            Action::CutAfterBytes { .. } => "cut_after_bytes",
            Action::CutAfterEvent { .. } => "cut_after_event",
            Action::StallAfterEvent { .. } => "stall_after_event",
            Action::Status { .. } => "status",
            Action::HalfHead => "half_head",
            Action::ContentType(_) => "content_type",
            Action::ContentLength { .. } => "content_length",
            Action::InvalidJson => "invalid_json",
            Action::BadChunk => "bad_chunk",
            Action::ErrorEvent { .. } => "error_event",
            Action::MissingDone => "missing_done",
            Action::AbortFinish { .. } => "abort_finish",
            Action::SplitEvents { .. } => "split_events",
            Action::Dribble { .. } => "dribble",
            Action::GiantEvent { .. } => "giant_event",
            Action::Zombie => "zombie",
            Action::LoseKv => "lose_kv",
            Action::CrashInTransfer => "crash_in_transfer",
            Action::OutOfMemory => "out_of_memory",
        }
    }
}

impl TryFrom<f64> for Probability {
    type Error = &'static str;

    fn try_from(value: f64) -> Result<Probability, &'static str> {
        if (0.0..=1.0).contains(&value) {
            Ok(Probability(value))
        } else {
            Err("a probability is a number from 0 to 1")
        }
    }
}

impl TryFrom<u16> for FinalStatus {
    type Error = &'static str;

    fn try_from(code: u16) -> Result<FinalStatus, &'static str> {
        if (200..=599).contains(&code) {
            Ok(FinalStatus(code))
        } else {
            Err("a status is a number from 200 to 599")
        }
    }
}

impl TryFrom<String> for HeaderText {
    type Error = &'static str;

    fn try_from(text: String) -> Result<HeaderText, &'static str> {
        HeaderValue::from_str(&text)
            .map(HeaderText)
            .map_err(|_| "a header's value is visible ASCII on one line")
    }
}

impl TryFrom<u64> for GiantBytes {
    type Error = &'static str;

    fn try_from(bytes: u64) -> Result<GiantBytes, &'static str> {
        usize::try_from(bytes)
            .ok()
            .filter(|_| bytes <= GIANT_BYTES_MAX)
            .map(GiantBytes)
            .ok_or("at most 1073741824 bytes")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn refusal(text: &str) -> String {
        Script::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_rule_that_makes_no_sense_is_refused_with_line_and_key() {
        for (text, words) in [
            (
                "rules:\n- do: explode",
                &["rules[0].do", "unknown variant `explode`", "line 2"][..],
            ),
            (
                "rules:\n- do: reset\n  match:\n    probability: 1.5",
                &["probability", "from 0 to 1", "line 4"],
            ),
            (
                "rules:\n- do: reset\n  match: {every: 0}",
                &["every", "nonzero", "line 3"],
            ),
            (
                "rules:\n- do: {status: {code: 99}}",
                &["from 200 to 599", "line 2"],
            ),
            (
                "rules:\n- do: {content_type: \"a\\nb\"}",
                &["visible ASCII", "line 2"],
            ),
            (
                "rules:\n- do: {refuse: {for: 3}}",
                &["unknown field `for`", "`for_ms`", "line 2"],
            ),
            ("rules:\n- match: {}", &["missing field `do`", "line 2"]),
            ("seed: 1\nrule: []", &["unknown field `rule`", "line 2"]),
            ("rules: [", &["flow node", "line 2"]),
            (
                "rules:\n- do: {giant_event: {bytes: 99999999999}}",
                &["at most", "line 2"],
            ),
        ] {
            let refusal = refusal(text);
            for word in words {
                assert!(refusal.contains(word), "{text}: {refusal} lacks {word}");
            }
            assert!(refusal.contains("conf/sim/chaos.yaml"), "{refusal}");
        }
    }

    #[test]
    fn json_says_the_same_as_yaml() {
        let json = r#"{"seed":3,"rules":[{"name":"a","match":{"every":2},"do":{"cut_after_event":{"events":1,"end":"close"}}}]}"#;
        let yaml = "seed: 3\nrules:\n- name: a\n  match: {every: 2}\n  do: {cut_after_event: {events: 1, end: close}}";
        assert_eq!(Script::parse(json), Script::parse(yaml));
    }

    #[test]
    fn a_file_that_is_missing_is_named() {
        let refusal = Script::load("/no/such.yaml").unwrap_err().to_string();
        assert!(refusal.starts_with("/no/such.yaml: "), "{refusal}");
    }

    #[test]
    fn the_example_has_every_action() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/sim/chaos.yaml");
        let text = std::fs::read_to_string(&path).unwrap();
        let script = Script::parse(&text).unwrap();
        let shown: std::collections::BTreeSet<_> =
            script.rules.iter().map(|rule| rule.action.name()).collect();
        // The parser lists what it knows when it is asked for something else.
        let known = refusal("rules: [{do: explode}]");
        let known: Vec<&str> = known.split('`').skip(3).step_by(2).collect();
        assert!(known.len() > 20, "{known:?}");
        for action in known {
            assert!(shown.contains(action), "conf/sim/chaos.yaml lacks {action}");
        }
    }
}
