//! The effective configuration as a file: every key with its value, and where the value came from.
//!
//! What is printed can be read again and means the same, except for keys of workers: they are shown as
//! stars, which are refused as a key.

use std::fmt;

use serde_yaml::Value;

use super::draft::{Draft, WorkerDraft};
use super::settings::{ADMIN_API_KEY, API_KEY, Kind, SETTINGS, worker_key};
use super::{Place, Secret};

/// What `--print-config` shows. `Display` is YAML.
#[derive(Debug)]
pub struct Effective(pub(crate) Draft);

impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for setting in SETTINGS {
            match setting.kind {
                Kind::Text | Kind::Paths | Kind::Number | Kind::Switch => {
                    let Some(given) = self.0.scalars.get(setting.key) else {
                        writeln!(f, "{}: null  # {}", setting.key, Origin(&Place::Default))?;
                        continue;
                    };
                    if [API_KEY.key, ADMIN_API_KEY.key].contains(&setting.key) {
                        let mask = inline(&Value::from(Secret::MASK));
                        let origin = Origin(&given.place);
                        writeln!(f, "{}: {mask}  # not shown; {origin}", setting.key)?;
                        continue;
                    }
                    let value = match setting.kind {
                        Kind::Number | Kind::Switch => given.value.clone(),
                        _ => inline(&Value::from(given.value.as_str())),
                    };
                    writeln!(f, "{}: {value}  # {}", setting.key, Origin(&given.place))?;
                }
                Kind::Workers(_) => {
                    let Some(list) = self.0.workers.get(setting.key) else {
                        continue;
                    };
                    writeln!(f, "{}:  # {}", setting.key, Origin(&list.place))?;
                    for worker in &list.value {
                        write_worker(f, worker)?;
                    }
                }
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

fn write_worker(f: &mut fmt::Formatter<'_>, worker: &WorkerDraft) -> fmt::Result {
    let mut lead = "- ";
    // The URL comes first, the others follow in the order of the alphabet.
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
    match text.parse::<u16>() {
        Ok(port) if key == worker_key::BOOTSTRAP_PORT => Value::from(port),
        _ => Value::from(text),
    }
}

/// A value on one line, so that a comment fits behind it, with what looks like a variable escaped. JSON is
/// YAML, and what it does not need to quote is written plain.
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
                // serde_yaml writes a text of several lines as a block, which has no room for a comment.
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

/// A place in the words of a comment.
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
