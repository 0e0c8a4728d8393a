//! The language of fault scripts: YAML (or JSON, which is YAML) to typed rules.
//!
//! `conf/sim/chaos.yaml` explains every key. Values out of range are refused by the types while they are parsed, so
//! that the error has the line and the key, and no later code checks again.

use std::num::NonZeroU64;
use std::path::Path;

use http::HeaderValue;
use serde::Deserialize;

use crate::sim::Role;

/// Upper bound of `giant_event`, in bytes: a larger event would only test the memory of this machine.
const GIANT_BYTES_MAX: u64 = 1 << 30;

/// The faults of a worker: rules in order, of which the first that fires for a request applies.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Seed of the draws for `probability`: the same seed gives the same faults.
    #[serde(default)]
    pub seed: u64,
    /// The rules, in the order in which they are tried.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// One fault, and the requests that it applies to.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its name in the journal; the action's name unless given.
    #[serde(default)]
    pub name: Option<String>,
    /// The requests that it applies to; all unless given.
    #[serde(default, rename = "match")]
    pub matching: Match,
    /// The fault; key `do`.
    #[serde(rename = "do", with = "serde_yaml::with::singleton_map")]
    pub action: Action,
}

/// The requests that a rule applies to. No rule applies to `/sim/...`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Match {
    /// The request's path, compared as a whole.
    pub path: Option<String>,
    /// Workers of this role only, for a script that several workers share.
    pub role: Option<RoleName>,
    /// Requests with this value of `x-sim-fault` only. Rules without `header` skip requests that have the header.
    pub header: Option<String>,
    /// This many matching requests are skipped first.
    pub after: u64,
    /// Then the rule fires for every n-th.
    pub every: Option<NonZeroU64>,
    /// Then only with this probability.
    pub probability: Option<Probability>,
    /// The rule fires at most this often.
    pub times: Option<u64>,
}

/// A worker's role as scripts and the command line write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the words of the command line
pub enum RoleName {
    Prefill,
    Decode,
    Single,
}

/// A number from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Probability(f64);

/// An HTTP status from 200 to 599.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u16")]
pub struct FinalStatus(pub(crate) u16);

/// A header value: visible ASCII on one line.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HeaderText(pub(crate) HeaderValue);

/// A size in bytes, at most 1 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u64")]
pub struct GiantBytes(pub(crate) usize);

/// How a connection ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// With RST, the default.
    #[default]
    Reset,
    /// With FIN, as an orderly close.
    Close,
}

/// A fault. Events are those of a stream; a response in one piece has none.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// The connection is reset and new ones are refused for a time.
    Refuse {
        /// How long, in milliseconds.
        for_ms: u64,
    },
    /// The request is read and gets no response.
    Silence,
    /// The response's head is delayed.
    DelayHead {
        /// By how many milliseconds.
        ms: u64,
    },
    /// The connection ends with RST before the head.
    Reset,
    /// The connection ends with FIN before the head.
    Close,
    /// The connection ends within the body.
    CutAfterBytes {
        /// Bytes on the wire after the head, chunk framing included.
        bytes: usize,
        /// How the connection ends.
        #[serde(default)]
        end: End,
    },
    /// The connection ends between two events of the stream.
    CutAfterEvent {
        /// Number of events before it.
        events: usize,
        /// How the connection ends.
        #[serde(default)]
        end: End,
    },
    /// The stream stays open and no further event comes.
    StallAfterEvent {
        /// Number of events before it.
        events: usize,
    },
    /// A response in place of the engine's, which does not see the request.
    Status {
        /// Status code of the response.
        code: FinalStatus,
        /// Body; an error in the engine's shape unless given.
        #[serde(default)]
        body: Option<String>,
        /// `content-type`; `application/json` unless given.
        #[serde(default)]
        content_type: Option<HeaderText>,
        /// `retry-after` in seconds.
        #[serde(default)]
        retry_after: Option<u32>,
    },
    /// Half of the head, then FIN.
    HalfHead,
    /// Another `content-type` on the engine's body.
    ContentType(HeaderText),
    /// A wrong `content-length`. A stream has none and stays unchanged.
    ContentLength {
        /// Bytes added to the right length.
        add: i64,
    },
    /// The last byte of a whole body, or the last brace of a stream's first event, is missing.
    InvalidJson,
    /// The size of the first chunk is not a hexadecimal number.
    BadChunk,
    /// The stream ends with the engine's error event and `[DONE]`.
    ErrorEvent {
        /// Number of events before it.
        events: usize,
        /// Message of the error; `scripted fault` unless given.
        #[serde(default)]
        message: Option<String>,
    },
    /// The stream ends without `[DONE]`.
    MissingDone,
    /// The request ends with finish reason `abort`.
    AbortFinish {
        /// Number of tokens before it.
        tokens: usize,
    },
    /// Every event is split over several chunks.
    SplitEvents {
        /// Size of a chunk, in bytes.
        bytes: NonZeroU64,
    },
    /// The response is written in small pieces, regardless of its framing.
    Dribble {
        /// Size of a write, in bytes.
        bytes: NonZeroU64,
    },
    /// The stream's first event is padded with blanks.
    GiantEvent {
        /// Size of the event, in bytes.
        bytes: GiantBytes,
    },
    /// The worker does not notice that the client left, and goes on.
    Zombie,
    /// The KV transfer fails with the engine's 500. SGLang's decode reports it to prefill; its prefill does not report it to
    /// decode. vLLM's prefill has answered by then: its own loss shows at decode.
    LoseKv,
    /// The worker goes down during the KV transfer; decode notices a missing prefill by its heartbeats.
    CrashInTransfer,
    /// The request gets 500, and the worker goes down.
    OutOfMemory,
}

/// A script that cannot be read: the problem, with file, line and key.
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
    /// Parses YAML or JSON.
    ///
    /// # Errors
    /// When a key or a value is not known; the error has the first one, with its line.
    pub fn parse(text: &str) -> Result<Script, ScriptError> {
        serde_yaml::from_str(text).map_err(|error| ScriptError(error.to_string()))
    }

    /// Reads a file and parses it.
    ///
    /// # Errors
    /// When the file cannot be read, or [`Script::parse`] fails; the error names the file.
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
    /// Whether the rule counts a request.
    pub(crate) fn matches(&self, role: Role, path: &str, header: Option<&str>) -> bool {
        !path.starts_with("/sim/")
            && self.path.as_deref().is_none_or(|wanted| wanted == path)
            && self.role.is_none_or(|wanted| wanted.is(role))
            && self.header.as_deref() == header
    }

    /// Whether the rule fires for its `matched`-th request, having fired `fired` times. `draw` is in `0.0..1.0`.
    pub(crate) fn fires(&self, matched: u64, fired: u64, draw: f64) -> bool {
        let beyond = matched.saturating_sub(self.after);
        beyond > 0
            && self.every.is_none_or(|every| beyond % every == 0)
            && self.times.is_none_or(|times| fired < times)
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
    /// The action's key in a script.
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
    fn an_invalid_rule_is_refused_with_line_and_key() {
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
    fn json_and_yaml_give_the_same_script() {
        let json = r#"{"seed":3,"rules":[{"name":"a","match":{"every":2},"do":{"cut_after_event":{"events":1,"end":"close"}}}]}"#;
        let yaml = "seed: 3\nrules:\n- name: a\n  match: {every: 2}\n  do: {cut_after_event: {events: 1, end: close}}";
        assert_eq!(Script::parse(json), Script::parse(yaml));
    }

    #[test]
    fn a_missing_file_is_named() {
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
        // For an unknown action the parser lists the known ones.
        let known = refusal("rules: [{do: explode}]");
        let known: Vec<&str> = known.split('`').skip(3).step_by(2).collect();
        assert!(known.len() > 20, "{known:?}");
        for action in known {
            assert!(shown.contains(action), "conf/sim/chaos.yaml lacks {action}");
        }
    }
}
