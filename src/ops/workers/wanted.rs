//! What a call wants of a worker: its body and its query, read with the names of sglang-router and smg.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::discovery::{DRAIN_TIME, Description, Details, Leave};
use crate::fleet::Role;
use crate::ops::requests::decoded;

/// The most labels of a worker, and the longest of them, in bytes.
const MAX_LABELS: usize = 64;
const MAX_LABEL: usize = 1024;

/// How long `wait` waits where the query does not say.
const WAIT: Duration = Duration::from_secs(60);

/// The longest time that a query may ask for.
const MAX_SECONDS: f64 = 86_400.0;

/// What the body of an addition or of a change says. What it leaves out stays as it is.
#[derive(Default, PartialEq)]
pub(super) struct Wanted {
    pub(super) url: Option<String>,
    pub(super) role: Option<Role>,
    pub(super) state: Option<State>,
    pub(super) bootstrap_host: Option<String>,
    pub(super) bootstrap_port: Option<u16>,
    pub(super) api_key: Option<String>,
    pub(super) admin_api_key: Option<String>,
    pub(super) weight: Option<u32>,
    labels: Option<BTreeMap<String, String>>,
    model_id: Option<String>,
    priority: Option<u32>,
    cost: Option<f64>,
    /// Whether the body has fields, and none of these.
    pub(super) is_foreign: bool,
}

/// The states that a worker can be put into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Serving,
    Draining,
}

impl Wanted {
    /// # Errors
    /// A sentence about the field that is wrong.
    pub(super) fn of(body: &[u8]) -> Result<Self, String> {
        let body: Value = serde_json::from_slice(body).map_err(|error| {
            format!("the body is not JSON ({error}); it takes an object with `url`")
        })?;
        let Value::Object(body) = body else {
            return Err("the body is a JSON object with `url`".to_owned());
        };
        let mut wanted = Self {
            url: text(&body, "url")?,
            role: role(&body, "worker_type")?,
            state: state(&body)?,
            bootstrap_host: text(&body, "bootstrap_host")?,
            bootstrap_port: port(&body, "bootstrap_port")?,
            api_key: text(&body, "api_key")?,
            admin_api_key: text(&body, "admin_api_key")?,
            weight: number(&body, "weight")?,
            labels: labels(&body)?,
            model_id: text(&body, "model_id")?,
            priority: number(&body, "priority")?,
            cost: match body.get("cost") {
                None | Some(Value::Null) => None,
                Some(cost) => Some(cost.as_f64().ok_or("`cost` is a number")?),
            },
            is_foreign: false,
        };
        wanted.is_foreign = !body.is_empty() && wanted == Self::default();
        Ok(wanted)
    }

    /// The words of a worker, which had these before.
    pub(super) fn over(&self, before: Description) -> Description {
        Description {
            url: before.url,
            bootstrap_host: self.bootstrap_host.clone().or(before.bootstrap_host),
            bootstrap_port: self.bootstrap_port.or(before.bootstrap_port),
            api_key: self.api_key.clone().or(before.api_key),
            admin_api_key: self.admin_api_key.clone().or(before.admin_api_key),
            weight: self.weight.or(before.weight),
        }
    }

    /// Lays what is said besides the parts over what was said before.
    pub(super) fn note(&self, details: &mut Details) {
        if let Some(labels) = &self.labels {
            details.labels.clone_from(labels);
        }
        details.model_id = self.model_id.clone().or(details.model_id.take());
        details.priority = self.priority.or(details.priority);
        details.cost = self.cost.or(details.cost);
    }
}

/// The role in a field of a body.
///
/// # Errors
/// A sentence: it is none.
pub(super) fn role(body: &Map<String, Value>, name: &str) -> Result<Option<Role>, String> {
    let Some(word) = text(body, name)? else {
        return Ok(None);
    };
    match Role::named(&word) {
        Some(role) => Ok(Some(role)),
        None => Err(format!(
            "`{name}` is prefill or decode, the roles of workers with disaggregation"
        )),
    }
}

/// The port in a field of a body.
///
/// # Errors
/// A sentence: it is none.
pub(super) fn port(body: &Map<String, Value>, name: &str) -> Result<Option<u16>, String> {
    match number(body, name)? {
        None => Ok(None),
        Some(number) => match u16::try_from(number) {
            Ok(port) if port > 0 => Ok(Some(port)),
            _ => Err(format!("`{name}` is a port from 1 to 65535")),
        },
    }
}

/// The text in a field of a body.
///
/// # Errors
/// A sentence: it is none.
pub(super) fn text(body: &Map<String, Value>, name: &str) -> Result<Option<String>, String> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.clone())),
        Some(_) => Err(format!("`{name}` is a text")),
    }
}

fn number(body: &Map<String, Value>, name: &str) -> Result<Option<u32>, String> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64().and_then(|number| u32::try_from(number).ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(format!("`{name}` is a number, not a text: {name}: 8998")),
        },
    }
}

fn state(body: &Map<String, Value>) -> Result<Option<State>, String> {
    match text(body, "state")?.as_deref() {
        None => Ok(None),
        Some("serving") => Ok(Some(State::Serving)),
        Some("draining") => Ok(Some(State::Draining)),
        Some(_) => Err("`state` is serving or draining".to_owned()),
    }
}

fn labels(body: &Map<String, Value>) -> Result<Option<BTreeMap<String, String>>, String> {
    let wrong = || format!("`labels` is an object of at most {MAX_LABELS} texts");
    let labels = match body.get("labels") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(labels)) if labels.len() <= MAX_LABELS => labels,
        Some(_) => return Err(wrong()),
    };
    let label = |(name, value): (&String, &Value)| {
        let value = value
            .as_str()
            .filter(|value| name.len().max(value.len()) <= MAX_LABEL);
        Some((name.clone(), value?.to_owned()))
    };
    let read: Option<_> = labels.iter().map(label).collect();
    read.map(Some).ok_or_else(wrong)
}

/// How a call is carried out: its query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Manner {
    /// Whether the response comes with the result.
    pub(super) wait: bool,
    pub(super) wait_time: Duration,
    /// Whether a worker is probed before it serves.
    pub(super) probe: bool,
    pub(super) leave: Leave,
}

impl Manner {
    /// # Errors
    /// A sentence about the parameter that is wrong.
    pub(super) fn of(query: Option<&str>) -> Result<Self, String> {
        let mut manner = Self {
            wait: false,
            wait_time: WAIT,
            probe: true,
            leave: Leave::Within(DRAIN_TIME),
        };
        let pairs = query.unwrap_or_default().split('&');
        for pair in pairs.filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, "true"));
            let value = decoded(value).unwrap_or_default();
            match name {
                "wait" => manner.wait = flag(name, &value)?,
                "wait_seconds" => {
                    manner.wait = true;
                    manner.wait_time = seconds(name, &value)?;
                }
                "probe" => manner.probe = flag(name, &value)?,
                "drain_seconds" => manner.leave = Leave::Within(seconds(name, &value)?),
                "now" => {
                    if flag(name, &value)? {
                        manner.leave = Leave::Now;
                    }
                }
                _ => {
                    return Err(
                        "the query takes wait, wait_seconds, probe, drain_seconds and now"
                            .to_owned(),
                    );
                }
            }
        }
        Ok(manner)
    }
}

fn flag(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "true" | "1" | "" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("`{name}` is true or false")),
    }
}

fn seconds(name: &str, value: &str) -> Result<Duration, String> {
    let seconds = value.parse().ok().filter(|seconds| *seconds <= MAX_SECONDS);
    let time = seconds.and_then(|seconds: f64| Duration::try_from_secs_f64(seconds).ok());
    time.ok_or_else(|| format!("`{name}` is a number of seconds up to a day"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_is_wrong_is_named() {
        for (body, named) in [
            ("", "JSON"),
            ("[]", "object"),
            (r#"{"url":7}"#, "`url`"),
            (
                r#"{"url":"u","worker_type":"regular"}"#,
                "prefill or decode",
            ),
            (r#"{"url":"u","bootstrap_port":"8998"}"#, "`bootstrap_port`"),
            (r#"{"url":"u","bootstrap_port":0}"#, "`bootstrap_port`"),
            (r#"{"url":"u","weight":-1}"#, "`weight`"),
            (r#"{"url":"u","labels":{"a":1}}"#, "`labels`"),
            (r#"{"url":"u","labels":[]}"#, "`labels`"),
            (r#"{"url":"u","cost":"1"}"#, "`cost`"),
            (r#"{"state":"gone"}"#, "`state`"),
        ] {
            let message = Wanted::of(body.as_bytes()).err().unwrap();
            assert!(message.contains(named), "{body}: {message}");
        }
        let wanted = Wanted::of(
            br#"{"url":"h:1","worker_type":"prefill","bootstrap_port":8999,"priority":null}"#,
        );
        let wanted = wanted.ok().unwrap();
        assert_eq!(
            (wanted.role, wanted.bootstrap_port),
            (Some(Role::Prefill), Some(8999))
        );
    }

    #[test]
    fn a_query_says_how_a_call_is_carried_out() {
        let manner = |query| Manner::of(Some(query));
        assert!(!manner("").unwrap().wait);
        assert!(manner("wait=true").unwrap().wait);
        assert!(manner("wait").unwrap().wait);
        assert!(!manner("probe=false").unwrap().probe);
        assert_eq!(manner("now=true").unwrap().leave, Leave::Now);
        let leave = manner("drain_seconds=1.5").unwrap().leave;
        assert_eq!(leave, Leave::Within(Duration::from_millis(1500)));
        let waits = manner("wait_seconds=3").unwrap();
        assert!(waits.wait && waits.wait_time == Duration::from_secs(3));
        for wrong in [
            "wait=maybe",
            "drain_seconds=-1",
            "drain_seconds=1e9",
            "force=true",
            "wait_seconds=NaN",
        ] {
            assert!(manner(wrong).is_err(), "{wrong}");
        }
    }
}
