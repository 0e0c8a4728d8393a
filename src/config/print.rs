//! The effective configuration as a file: every key with its value, and where the value came from.
//!
//! The output is a configuration file with the same meaning, except for secrets: they are printed as stars, which
//! are refused as a key.

use std::fmt;

use serde_yaml::Value;

use super::draft::{Draft, WorkerDraft};
use super::kind::Kind;
use super::settings::{Setting, settings, worker_key};
use super::{Place, Secret};

/// The output of `--print-config`. `Display` is YAML.
#[derive(Debug)]
pub struct Effective(pub(crate) Draft);

impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for setting in settings() {
            match setting.kind {
                Kind::Workers(_) => self.write_workers(f, setting)?,
                _ => self.write_scalar(f, setting)?,
            }
        }
        writeln!(f, "\n# Pingora")?;
        for (key, given) in &self.0.server {
            writeln!(
                f,
                "{key}: {}  # {}",
                inline(&given.value),
                Origin(&given.place)
            )?;
        }
        Ok(())
    }
}

impl Effective {
    fn write_scalar(&self, f: &mut fmt::Formatter<'_>, setting: &Setting) -> fmt::Result {
        let key = setting.key;
        let Some(given) = self.0.scalars.get(key) else {
            return writeln!(f, "{key}: null  # {}", Origin(&Place::Default));
        };
        let origin = Origin(&given.place);
        match setting.kind {
            Kind::Secret => {
                let mask = inline(&Value::from(Secret::MASK));
                writeln!(f, "{key}: {mask}  # not shown; {origin}")
            }
            Kind::Number { .. } | Kind::Seconds | Kind::SecondsOrZero | Kind::Switch => {
                writeln!(f, "{key}: {}  # {origin}", given.value)
            }
            _ => {
                let value = inline(&Value::from(given.value.as_str()));
                writeln!(f, "{key}: {value}  # {origin}")
            }
        }
    }

    fn write_workers(&self, f: &mut fmt::Formatter<'_>, setting: &Setting) -> fmt::Result {
        let Some(list) = self.0.workers.get(setting.key) else {
            return Ok(());
        };
        writeln!(f, "{}:  # {}", setting.key, Origin(&list.place))?;
        list.value
            .iter()
            .try_for_each(|worker| write_worker(f, worker))
    }
}

fn write_worker(f: &mut fmt::Formatter<'_>, worker: &WorkerDraft) -> fmt::Result {
    let mut lead = "- ";
    // The URL first, then the others in alphabetical order.
    let (url, rest): (Vec<_>, Vec<_>) = worker
        .keys
        .iter()
        .partition(|(key, _)| **key == worker_key::URL);
    for (key, given) in url.into_iter().chain(rest) {
        let origin = Origin(&given.place);
        match *key {
            key if worker_key::SECRETS.contains(&key) => {
                let mask = inline(&Value::from(Secret::MASK));
                writeln!(f, "{lead}{key}: {mask}  # not shown; {origin}")?;
            }
            key => writeln!(
                f,
                "{lead}{key}: {}  # {origin}",
                inline(&text_or_port(key, &given.value))
            )?,
        }
        lead = "  ";
    }
    Ok(())
}

fn text_or_port(key: &str, text: &str) -> Value {
    match (key, text.parse::<u16>(), text.parse::<bool>()) {
        (worker_key::BOOTSTRAP_PORT, Ok(port), _) => Value::from(port),
        (worker_key::HTTP2, _, Ok(on)) => Value::from(on),
        _ => Value::from(text),
    }
}

/// A value on one line, so that a comment can follow, with `${` escaped. JSON strings are YAML; texts that need no
/// quotes are written without them.
fn inline(value: &Value) -> String {
    match value {
        Value::Sequence(items) => {
            let items: Vec<_> = items.iter().map(inline).collect();
            format!("[{}]", items.join(", "))
        }
        Value::String(text) => {
            let text = text.replace("${", "$${");
            let plain = serde_yaml::to_string(&text).unwrap_or_default();
            match plain.trim_end() {
                // serde_yaml writes a text of several lines as a block, which no comment can follow.
                plain if !plain.contains('\n') && !text.contains([',', '[', ']', '{', '}']) => {
                    plain.to_owned()
                }
                _ => serde_json::Value::from(text).to_string(),
            }
        }
        scalar => serde_yaml::to_string(scalar)
            .unwrap_or_default()
            .trim_end()
            .to_owned(),
    }
}

/// A place, as a comment names it.
struct Origin<'a>(&'a Place);

impl fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Place::Flag(name) => write!(f, "flag {name}"),
            Place::Environment(name) => write!(f, "environment {name}"),
            Place::File { path, line, .. } => {
                // A line break in a path would end the comment.
                write!(f, "file {}", path.display().to_string().escape_debug())?;
                line.map_or(Ok(()), |line| write!(f, ":{line}"))
            }
            Place::Library(name) => write!(f, "library {name}"),
            Place::Default => f.write_str("default"),
        }
    }
}
