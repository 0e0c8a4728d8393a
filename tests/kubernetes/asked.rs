//! A request for objects: what a path and a query of the API mean.

use std::collections::HashMap;

use http::Request;
use hyper::body::Incoming;
use serde_json::Value;

/// A request that the server has got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    /// `list` or `watch`, as in a rule of RBAC.
    pub(crate) verb: &'static str,
    /// `pods` or `endpointslices`.
    pub(crate) resource: String,
    /// The API group of that; empty for core.
    pub(crate) group: String,
    /// `None` is all namespaces.
    pub(crate) namespace: Option<String>,
    pub(crate) query: HashMap<String, String>,
    pub(crate) token: String,
}

impl Asked {
    pub(crate) fn of(request: &Request<Incoming>) -> Self {
        let path = request.uri().path().to_owned();
        let parts: Vec<_> = path.trim_matches('/').split('/').collect();
        let (group, rest) = match parts.as_slice() {
            ["api", "v1", rest @ ..] => ("", rest),
            ["apis", group, "v1", rest @ ..] => (*group, rest),
            _ => panic!("no path of the API: {path}"),
        };
        let (namespace, resource) = match rest {
            ["namespaces", namespace, resource] => (Some((*namespace).to_owned()), *resource),
            [resource] => (None, *resource),
            _ => panic!("no list: {path}"),
        };
        let pairs = request.uri().query().unwrap_or_default().split('&');
        let pairs = pairs.filter_map(|pair| pair.split_once('='));
        let query: HashMap<_, _> = pairs
            .map(|(key, value)| (key.to_owned(), decoded(value)))
            .collect();
        let token = request.headers().get("authorization");
        Self {
            verb: match query.get("watch").map(String::as_str) {
                Some("true" | "1") => "watch",
                _ => "list",
            },
            resource: resource.to_owned(),
            group: group.to_owned(),
            namespace,
            query,
            token: token.map_or(String::new(), |token| {
                token.to_str().unwrap().replace("Bearer ", "")
            }),
        }
    }

    pub(crate) fn version(&self) -> u64 {
        let version = self.query.get("resourceVersion");
        version.map_or(0, |version| version.parse().unwrap())
    }

    pub(crate) fn number(&self, key: &str) -> Option<usize> {
        self.query.get(key)?.parse().ok()
    }

    /// Whether the request is about this object.
    pub(crate) fn covers(&self, object: &Value) -> bool {
        let of = |key: &str| object["metadata"][key].as_str().unwrap();
        let in_namespace = self
            .namespace
            .as_ref()
            .is_none_or(|name| *name == of("namespace"));
        let selector = self.query.get("labelSelector").map_or("", String::as_str);
        let mut labels = selector.split(',').filter(|label| !label.is_empty());
        in_namespace
            && labels.all(|label| {
                let (key, value) = label.split_once('=').unwrap();
                object["metadata"]["labels"][key] == value
            })
    }
}

/// `%XX` of a query; kube escapes all but letters and digits.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let hex = [rest.next().unwrap(), rest.next().unwrap()];
                let hex = std::str::from_utf8(&hex).unwrap();
                bytes.push(u8::from_str_radix(hex, 16).unwrap());
            }
            b'+' => bytes.push(b' '),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).unwrap()
}
