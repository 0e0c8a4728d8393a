//! The workers that the query of a broadcast names: `worker=URL`, as often as needed, and `role=prefill|decode`.
//!
//! These two are for this proxy, and are taken out of the query; SGLang has no parameters of these names.

use std::borrow::Cow;
use std::sync::Arc;

use crate::fleet::{Members, Role, Worker};

/// The workers that a query leaves. No parameter leaves all.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Only {
    urls: Vec<String>,
    role: Option<Role>,
}

impl Only {
    /// Takes the parameters out of the query.
    ///
    /// # Errors
    /// A role that is none.
    pub(super) fn take(query: &mut Option<String>) -> Result<Self, String> {
        let mut only = Self::default();
        let Some(text) = query.take() else {
            return Ok(only);
        };
        let mut rest = Vec::new();
        for pair in text.split('&') {
            match pair.split_once('=') {
                Some(("worker", url)) => only.urls.push(decoded(url)),
                Some(("role", name)) => only.role = Some(role(name)?),
                _ => rest.push(pair),
            }
        }
        let rest = rest.join("&");
        *query = (!rest.is_empty()).then_some(rest);
        Ok(only)
    }

    /// Whether the query names any worker or role.
    pub(super) fn is_narrow(&self) -> bool {
        *self != Self::default()
    }

    /// The members that are meant, prefill first.
    ///
    /// # Errors
    /// A URL that no member has.
    pub(super) fn among(&self, members: &Members) -> Result<Vec<Arc<Worker>>, String> {
        let has = |worker: &Worker, url: &str| worker.url() == url.trim_end_matches('/');
        let is_there = |url: &&String| members.workers().any(|worker| has(worker, url));
        if let Some(unknown) = self.urls.iter().find(|url| !is_there(url)) {
            return Err(format!(
                "no worker has the URL {unknown:?}: GET /workers has their URLs"
            ));
        }
        let named =
            |worker: &Worker| self.urls.is_empty() || self.urls.iter().any(|url| has(worker, url));
        let of_role = |worker: &Worker| self.role.is_none_or(|role| role == worker.role());
        let workers = members.workers();
        let meant = workers.filter(|worker| named(worker) && of_role(worker));
        Ok(meant.cloned().collect())
    }
}

fn role(name: &str) -> Result<Role, String> {
    let mut roles = [Role::Prefill, Role::Decode].into_iter();
    roles
        .find(|role| role.name() == name)
        .ok_or_else(|| format!("role is prefill or decode, not {name:?}"))
}

/// Without percent-encoding. A pair of digits that is none is left as it is.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).filter(|_| *first == b'%');
        let byte = hex
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    match String::from_utf8_lossy(&bytes) {
        Cow::Borrowed(text) => text.to_owned(),
        Cow::Owned(text) => text,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_workers_by_url_and_role_and_the_rest_is_the_workers() {
        for (text, rest, ports) in [
            ("level=1", Some("level=1"), vec![1, 2, 3]),
            ("role=decode&level=1", Some("level=1"), vec![3]),
            ("role=prefill", None, vec![1, 2]),
            ("worker=http://127.0.0.1:2", None, vec![2]),
            ("worker=http%3A%2F%2F127.0.0.1%3A2/", None, vec![2]),
            (
                "worker=http://127.0.0.1:2&a=b&worker=http://127.0.0.1:3",
                Some("a=b"),
                vec![2, 3],
            ),
            ("worker=http://127.0.0.1:2&role=decode", None, vec![]),
        ] {
            let mut query = Some(text.to_owned());
            let only = Only::take(&mut query).unwrap();
            assert_eq!(query.as_deref(), rest, "{text}");
            let workers = only.among(&Members::for_tests()).unwrap();
            let found: Vec<_> = workers.iter().map(|worker| worker.origin().port).collect();
            assert_eq!(found, ports, "{text}");
            assert_eq!(only.is_narrow(), text != "level=1", "{text}");
        }
    }

    #[test]
    fn an_unknown_role_or_worker_is_an_error_that_names_it() {
        let take = |text: &str| Only::take(&mut Some(text.to_owned()));
        assert!(take("role=Decode").unwrap_err().contains("\"Decode\""));
        let only = take("worker=http://127.0.0.1:9").unwrap();
        let error = only.among(&Members::for_tests()).err().unwrap();
        assert!(error.contains("http://127.0.0.1:9"), "{error}");
        assert_eq!(decoded("a%zz%4"), "a%zz%4");
    }
}
