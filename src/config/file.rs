//! The configuration file: YAML, Pingora's keys and ours side by side at the top level.
//!
//! The form is checked here (known keys, YAML types, variables), for every key, so that the user sees all problems
//! at once. `resolve.rs` checks the values of our keys; those of Pingora's keys are checked here, by Pingora itself.
//!
//! Source: pingora-core 0.9.1, src/server/configuration/mod.rs (`ServerConf` ignores keys that it does
//! not know, and is read with the same parser).

use std::path::{Path, PathBuf};

use serde_yaml::{Mapping, Value};

use super::draft::{Draft, Environment, Given, WorkerDraft, server_conf, server_defaults};
use super::kind::Kind;
use super::locate::{Step, line_of};
use super::settings::{Setting, find, nearest, settings, worker_key};
use super::text::read_text;
use super::{Fault, Place, Problem, Role};

/// Reads the file. `None`, after a problem was reported, when no keys can be read from it.
pub(crate) fn read(
    conf: &Given<PathBuf>,
    environment: Environment<'_>,
    problems: &mut Vec<Problem>,
) -> Option<Draft> {
    let path = &conf.value;
    let whole = |line, fault| Problem {
        place: Place::File {
            path: path.to_owned(),
            line,
            key: String::new(),
        },
        fault,
    };
    let text = match read_text(path) {
        Ok(text) => text,
        Err(fault @ Fault::Unreadable { .. }) => {
            let place = conf.place.clone();
            problems.push(Problem { place, fault });
            return None;
        }
        Err(fault) => {
            problems.push(whole(None, fault));
            return None;
        }
    };
    let mapping = match serde_yaml::from_str(&text) {
        Ok(Value::Mapping(mapping)) => mapping,
        Ok(Value::Null) => Mapping::new(),
        Ok(_) => {
            problems.push(whole(
                Some(1),
                Fault::Type {
                    expected: "keys and values at the top level",
                },
            ));
            return None;
        }
        Err(error) => {
            let line = error.location().map(|at| at.line());
            let (line, why) = yaml_problem(line, error.to_string(), &text);
            problems.push(whole(line, Fault::Yaml(why)));
            return None;
        }
    };
    let mut reader = Reader {
        path,
        text: &text,
        environment,
        problems,
    };
    Some(reader.top_level(mapping))
}

/// The file that is read: its text for line numbers, the environment for variables.
struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    environment: Environment<'a>,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn top_level(&mut self, mapping: Mapping) -> Draft {
        let server_keys = server_defaults();
        let mut draft = Draft::default();
        for (key, value) in mapping {
            let Value::String(key) = key else {
                let place = self.place(&[]);
                self.report(
                    place,
                    Fault::Type {
                        expected: "every key to be a name",
                    },
                );
                continue;
            };
            let place = self.place(&[Step::Key(&key)]);
            if let Some(setting) = find(&key) {
                self.ours(&mut draft, setting, value, place);
            } else if server_keys.contains_key(&key) {
                if let Some(value) = self.server(&key, value, &place) {
                    draft.server.insert(key, Given { value, place });
                }
            } else {
                let known = settings().map(|setting| setting.key);
                let known = known.chain(server_keys.keys().map(String::as_str));
                let suggestion = nearest(&key, known);
                self.report(
                    place,
                    Fault::UnknownKey {
                        suggestion,
                        allowed: None,
                    },
                );
            }
        }
        draft
    }

    fn ours(&mut self, draft: &mut Draft, setting: &Setting, value: Value, place: Place) {
        match (setting.kind, value) {
            // null is the same as no key, so that a file can show every key.
            (_, Value::Null) => {}
            (Kind::Workers(role), Value::Sequence(items)) => {
                let mut workers = Vec::new();
                for (index, item) in items.into_iter().enumerate() {
                    workers.push(self.worker(setting.key, index, role, item));
                }
                draft.workers.insert(
                    setting.key,
                    Given {
                        value: workers,
                        place,
                    },
                );
            }
            (Kind::Workers(_), _) => {
                let workers = vec![WorkerDraft::new(place.clone())];
                draft.workers.insert(
                    setting.key,
                    Given {
                        value: workers,
                        place: place.clone(),
                    },
                );
                self.report(
                    place,
                    Fault::Type {
                        expected: setting.expects,
                    },
                );
            }
            (kind, Value::Sequence(items)) if kind.is_list() => {
                let texts: Option<Vec<_>> = items
                    .into_iter()
                    .map(|item| self.scalar(item, setting.expects, &place))
                    .collect();
                if let Some(texts) = texts {
                    draft.set(setting, texts.join(","), place);
                }
            }
            (Kind::Switch | Kind::Word(_), Value::Bool(on)) => {
                draft.set(setting, on.to_string(), place);
            }
            (Kind::Labels, Value::Mapping(labels)) => {
                if let Some(text) = self.labels(labels, setting.expects, &place) {
                    draft.set(setting, text, place);
                }
            }
            (_, value) => {
                if let Some(text) = self.scalar(value, setting.expects, &place) {
                    draft.set(setting, text, place);
                }
            }
        }
    }

    /// One item of `prefill` or `decode`: a URL, or a mapping.
    fn worker(&mut self, list: &str, index: usize, role: Role, item: Value) -> WorkerDraft {
        let place = self.place(&[Step::Key(list), Step::Item(index)]);
        let mut worker = WorkerDraft::new(place.clone());
        let mapping = match item {
            Value::Mapping(mapping) => mapping,
            item => {
                if let Some(url) = self.scalar(item, "a URL, or a mapping with a url", &place) {
                    worker.set(worker_key::URL, &url);
                }
                return worker;
            }
        };
        let mut has_url = false;
        for (key, value) in mapping {
            let Value::String(key) = key else {
                self.report(
                    place.clone(),
                    Fault::Type {
                        expected: "every key to be a name",
                    },
                );
                continue;
            };
            has_url |= key == worker_key::URL;
            let place = self.place(&[Step::Key(list), Step::Item(index), Step::Key(&key)]);
            let known = worker_key::of(role);
            match known.iter().find(|known| **known == key) {
                Some(_) if value.is_null() && key != worker_key::URL => {}
                Some(known) if *known == worker_key::HTTP2 && value.is_bool() => {
                    let value = (value == Value::Bool(true)).to_string();
                    worker.keys.insert(known, Given { value, place });
                }
                Some(known) => {
                    if let Some(value) = self.scalar(value, "text or a number", &place) {
                        worker.keys.insert(known, Given { value, place });
                    }
                }
                None => {
                    let suggestion = nearest(&key, known.iter().copied());
                    self.report(
                        place,
                        Fault::UnknownKey {
                            suggestion,
                            allowed: Some(known),
                        },
                    );
                }
            }
        }
        if !has_url {
            self.report(place, Fault::NoUrl);
        }
        worker
    }

    /// Labels of a mapping, as `key=value,key=value`. Quotes around `true` and numbers are often forgotten.
    fn labels(&mut self, labels: Mapping, expected: &'static str, place: &Place) -> Option<String> {
        let label = |(key, value): (Value, Value)| {
            let value = match value {
                Value::Bool(value) => Value::String(value.to_string()),
                value => value,
            };
            let key = self.scalar(key, expected, place)?;
            let value = self.scalar(value, expected, place)?;
            Some(format!("{key}={value}"))
        };
        let labels: Option<Vec<_>> = labels.into_iter().map(label).collect();
        labels.map(|labels| labels.join(","))
    }

    /// The text of a scalar, with its variables expanded.
    fn scalar(&mut self, value: Value, expected: &'static str, place: &Place) -> Option<String> {
        match value {
            Value::Number(number) => Some(number.to_string()),
            Value::String(text) => self.expand(&text, place),
            _ => {
                self.report(place.clone(), Fault::Type { expected });
                None
            }
        }
    }

    /// A value that Pingora accepts; otherwise its message becomes a problem.
    fn server(&mut self, key: &str, value: Value, place: &Place) -> Option<Value> {
        let value = self.expand_tree(value, place)?;
        let one = Mapping::from_iter([(Value::from(key), value.clone())]);
        match server_conf(one) {
            Ok(_) => Some(value),
            Err(why) => {
                // The message begins with the key, which the place names already.
                let why = why
                    .strip_prefix(&format!("{key}: "))
                    .unwrap_or(&why)
                    .to_owned();
                self.report(place.clone(), Fault::Server(why));
                None
            }
        }
    }

    /// Expands the variables in all strings of one of Pingora's values. A string that is only a variable gets the
    /// type of its content, so that `threads: ${THREADS}` is a number.
    fn expand_tree(&mut self, value: Value, place: &Place) -> Option<Value> {
        match value {
            Value::String(text) => {
                let expanded = self.expand(&text, place)?;
                let lone = text.starts_with("${") && text.find('}') == Some(text.len() - 1);
                match serde_yaml::from_str(&expanded) {
                    Ok(typed @ (Value::Number(_) | Value::Bool(_))) if lone => Some(typed),
                    _ => Some(Value::String(expanded)),
                }
            }
            Value::Sequence(items) => {
                let items: Option<_> = items
                    .into_iter()
                    .map(|item| self.expand_tree(item, place))
                    .collect();
                Some(Value::Sequence(items?))
            }
            value => Some(value),
        }
    }

    fn expand(&mut self, text: &str, place: &Place) -> Option<String> {
        match expand(text, self.environment) {
            Ok(text) => Some(text),
            Err(fault) => {
                self.report(place.clone(), fault);
                None
            }
        }
    }

    fn place(&self, path: &[Step<'_>]) -> Place {
        let mut key = String::new();
        for step in path {
            match step {
                Step::Key(name) if key.is_empty() => key.push_str(name),
                Step::Key(name) => key.push_str(&format!(".{name}")),
                Step::Item(index) => key.push_str(&format!("[{index}]")),
            }
        }
        let line = if path.is_empty() {
            None
        } else {
            line_of(self.text, path)
        };
        Place::File {
            path: self.path.to_owned(),
            line,
            key,
        }
    }

    fn report(&mut self, place: Place, fault: Fault) {
        self.problems.push(Problem { place, fault });
    }
}

/// The parser's message and its line. For a duplicate key the parser has only the line on which the mapping starts, and for a
/// tab it has no word.
fn yaml_problem(line: Option<usize>, why: String, text: &str) -> (Option<usize>, String) {
    let start = line.unwrap_or(1);
    if let Some((_, rest)) = why.split_once("duplicate entry with key \"") {
        let key = rest.split('"').next().unwrap_or_default();
        let second = second_line(text, start, key);
        let why = why.replace(" at line ", " in the mapping that starts at line ");
        return (second.or(line), why);
    }
    let indent = text.lines().nth(start - 1).map(|line| {
        let end = line.find(|c: char| !c.is_whitespace());
        &line[..end.unwrap_or(line.len())]
    });
    match indent {
        Some(indent) if indent.contains('\t') => {
            (line, format!("{why}: indent with spaces, not with a tab"))
        }
        _ => (line, why),
    }
}

/// The number of the second line, from the line `start` on, that sets this key.
fn second_line(text: &str, start: usize, key: &str) -> Option<usize> {
    let sets = |line: &str| {
        let line = line.trim_start_matches(['-', ' ']);
        line.strip_prefix(key)
            .is_some_and(|rest| rest.trim_start().starts_with(':'))
    };
    let lines = text.lines().enumerate().skip(start - 1);
    let mut setting = lines.filter(|(_, line)| sets(line));
    setting.nth(1).map(|(index, _)| index + 1)
}

/// Replaces `${NAME}` by the environment variable, and `$${` by `${`.
fn expand(text: &str, environment: Environment<'_>) -> Result<String, Fault> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, variable) = (&rest[..at], &rest[at + 2..]);
        if let Some(before) = before.strip_suffix('$') {
            expanded.push_str(before);
            expanded.push_str("${");
            rest = variable;
            continue;
        }
        let (name, after) = variable.split_once('}').ok_or(Fault::BadVariable)?;
        let named = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if name.is_empty() || !named {
            return Err(Fault::BadVariable);
        }
        let value = environment(name).ok_or_else(|| Fault::MissingVariable(name.to_owned()))?;
        expanded.push_str(before);
        expanded.push_str(value.to_str().ok_or(Fault::NotUtf8)?);
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    #[test]
    fn variables_are_expanded_and_their_escape_is_not() {
        let environment = |name: &str| (name == "A_1").then(|| OsString::from("x${B}"));
        let cases = [
            ("plain $ text {}", Ok("plain $ text {}")),
            ("<${A_1}${A_1}>", Ok("<x${B}x${B}>")),
            ("$${A_1}", Ok("${A_1}")),
            ("a$$b", Ok("a$$b")),
            ("${B}", Err(Fault::MissingVariable("B".to_owned()))),
            ("${}", Err(Fault::BadVariable)),
            ("${A_1", Err(Fault::BadVariable)),
            ("${A 1}", Err(Fault::BadVariable)),
        ];
        for (text, expected) in cases {
            assert_eq!(
                expand(text, &environment),
                expected.map(str::to_owned),
                "{text}"
            );
        }
    }
}
