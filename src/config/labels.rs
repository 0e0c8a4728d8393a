//! Labels of Kubernetes: the text of a selector, and the form in which the API takes it.
//!
//! Only equality, as sglang_router has it. A key or a value that Kubernetes could not accept is refused here, with its place:
//! the API server would refuse each request.
//!
//! Source: Kubernetes, "Labels and Selectors" (syntax and character set).

use std::fmt;

use crate::limits::FromText;

/// Labels that an object must have, at least one. `Display` is `key=value,key=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels(Vec<(String, String)>);

impl Labels {
    /// Both together.
    pub(super) fn and(&self, others: &Labels) -> Labels {
        let mut all = self.0.clone();
        let new = others.0.iter().filter(|label| !self.0.contains(label));
        all.extend(new.cloned());
        Labels(all)
    }
}

impl FromText for Labels {
    fn from_text(text: &str) -> Option<Self> {
        let labels = text.split(',').map(|label| {
            let (key, value) = label.trim().split_once('=')?;
            let is_fine = is_key(key) && (value.is_empty() || is_name(value));
            is_fine.then(|| (key.to_owned(), value.to_owned()))
        });
        labels.collect::<Option<Vec<_>>>().map(Labels)
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, (key, value)) in self.0.iter().enumerate() {
            let comma = if nth > 0 { "," } else { "" };
            write!(f, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}

/// A name, perhaps behind the prefix of a domain: `app`, `sglang.ai/role`. Annotations have the same keys.
pub(super) fn is_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_domain(prefix) && is_name(name),
        None => is_name(text),
    }
}

/// 1 to 63 letters, digits, `-`, `_` and `.`, with a letter or a digit at both ends.
fn is_name(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let outer = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let (first, last) = (text.bytes().next(), text.bytes().next_back());
    text.len() <= 63 && text.bytes().all(inner) && outer(first) && outer(last)
}

fn is_domain(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|part| {
            let plain =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            is_name(part) && part.bytes().all(plain)
        })
}

/// The name of a namespace.
pub(super) fn is_namespace(text: &str) -> bool {
    is_domain(text) && !text.contains('.')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_the_form_that_kubernetes_accepts() {
        let long = "a".repeat(63);
        for fine in [
            "app=sglang",
            "app=sglang,role=prefill",
            "app=sglang, sglang.ai/role=prefill",
            "kubernetes.io/service-name=prefill",
            "app=",
            "A_b.c-d=1.2",
            &format!("{long}={long}"),
        ] {
            assert!(Labels::from_text(fine).is_some(), "{fine}");
        }
        for wrong in [
            "",
            "app",
            "app:sglang",
            "=sglang",
            "app=sglang,",
            "app=a=b",
            "app==a",
            "app!=a",
            "app in (a)",
            "app=a b",
            "-app=a",
            "app=a-",
            "App.Example/a=b",
            "a/b/c=d",
            "/a=b",
            &format!("{long}a=b"),
        ] {
            assert_eq!(Labels::from_text(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn labels_are_joined_and_each_is_there_once() {
        let labels = |text| Labels::from_text(text).unwrap();
        let both = labels("role=prefill,app=sglang").and(&labels("app=sglang,tier=a"));
        assert_eq!(both.to_string(), "role=prefill,app=sglang,tier=a");
    }
}
