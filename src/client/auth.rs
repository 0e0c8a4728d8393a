//! The keys that clients must show, and who may ask for what with which.
//!
//! Only digests are kept and compared: a comparison takes as long for a near miss as for a far one.
//!
//! Source: SGLang 0.5.23 `srt/utils/auth.py` (`decide_request_auth`), whose rules these are.

use http::header::{AUTHORIZATION, HeaderName};
use http::{HeaderMap, Method};
use pingora_http::RequestHeader;
use sha2::{Digest, Sha256};

use crate::endpoint::Access;

/// Where clients made with Anthropic's SDK send their key.
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

type Hash = [u8; 32];

/// The keys of a listener.
pub(crate) struct Keys {
    clients: Vec<Hash>,
    admins: Vec<Hash>,
}

impl Keys {
    /// Without keys of its kind, a path needs none; administration needs a client's when only those are there.
    pub(crate) fn new<'a>(
        clients: impl IntoIterator<Item = &'a [u8]>,
        admins: impl IntoIterator<Item = &'a [u8]>,
    ) -> Self {
        Self {
            clients: clients.into_iter().map(hash).collect(),
            admins: admins.into_iter().map(hash).collect(),
        }
    }

    /// Whether a request with this head may have what it asks for.
    pub(crate) fn admit(&self, access: Access, head: &RequestHeader) -> bool {
        // A browser's preflight carries no key.
        if access == Access::Open || head.method == Method::OPTIONS {
            return true;
        }
        let wanted = self.wanted(access);
        wanted.is_empty() || shown(&head.headers).is_some_and(|key| is_among(&hash(key), wanted))
    }

    /// Takes the client's key out of the head where it was for this proxy: no worker learns it. Where no key is
    /// needed here it is for the workers, and stays.
    pub(crate) fn keep_from_workers(&self, access: Access, head: &mut RequestHeader) {
        if !self.wanted(access).is_empty() {
            head.remove_header(&AUTHORIZATION);
            head.remove_header(&X_API_KEY);
        }
    }

    /// Whether a client's key ends here, so that a worker's refusal cannot be about it.
    pub(crate) fn stay_here(&self) -> bool {
        !self.clients.is_empty()
    }

    fn wanted(&self, access: Access) -> &[Hash] {
        match access {
            Access::Admins if !self.admins.is_empty() => &self.admins,
            Access::Admins | Access::Clients | Access::Open => &self.clients,
        }
    }
}

/// The key in a head, as a bearer token or in the header that Anthropic has for it.
fn shown(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(b"Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
    });
    bearer.or_else(|| Some(headers.get(X_API_KEY)?.as_bytes()))
}

fn hash(key: &[u8]) -> Hash {
    Sha256::digest(key).into()
}

/// Looks at every byte of every key.
fn is_among(found: &Hash, keys: &[Hash]) -> bool {
    keys.iter().fold(false, |among, key| {
        let pairs = key.iter().zip(found);
        among | (pairs.fold(0, |differs, (a, b)| differs | (a ^ b)) == 0)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn head(method: &str, headers: &[(&'static str, &'static str)]) -> RequestHeader {
        let mut head = RequestHeader::build(method, b"/", None).unwrap();
        for (name, value) in headers {
            head.append_header(*name, *value).unwrap();
        }
        head
    }

    fn keys(clients: &[&'static str], admins: &[&'static str]) -> Keys {
        let bytes = |keys: &[&'static str]| {
            keys.iter()
                .map(|key| key.as_bytes())
                .collect::<Vec<&'static [u8]>>()
        };
        Keys::new(bytes(clients), bytes(admins))
    }

    #[test]
    fn each_access_needs_the_keys_of_its_kind() {
        let bearer = |key| head("POST", &[("authorization", key)]);
        let (client, admin, wrong) = (bearer("Bearer c"), bearer("Bearer a"), bearer("Bearer x"));
        let none = head("POST", &[]);
        let cases = [
            (
                keys(&[], &[]),
                [true, true, true, true],
                [true, true, true, true],
            ),
            (
                keys(&["b", "c"], &[]),
                [true, false, false, false],
                [true, false, false, false],
            ),
            (
                keys(&["c"], &["a"]),
                [true, false, false, false],
                [false, true, false, false],
            ),
            (
                keys(&[], &["a"]),
                [true, true, true, true],
                [false, true, false, false],
            ),
        ];
        for (keys, clients, admins) in cases {
            let heads = [&client, &admin, &wrong, &none];
            let may = |access| heads.map(|head| keys.admit(access, head));
            assert_eq!(may(Access::Clients), clients);
            assert_eq!(may(Access::Admins), admins);
            assert_eq!(may(Access::Open), [true; 4]);
            assert!(keys.admit(Access::Clients, &head("OPTIONS", &[])));
        }
    }

    #[test]
    fn a_key_is_shown_in_one_of_two_headers_and_whole() {
        let keys = keys(&["sk-1"], &[]);
        for (name, value, admitted) in [
            ("authorization", "bearer sk-1", true),
            ("x-api-key", "sk-1", true),
            ("authorization", "sk-1", false),
            ("authorization", "Basic sk-1", false),
            ("authorization", "Bearer sk-", false),
            ("authorization", "Bearer sk-11", false),
            ("authorization", "Bearer ", false),
            ("authorization", "", false),
            ("x-api-key", "", false),
        ] {
            let head = head("POST", &[(name, value)]);
            assert_eq!(keys.admit(Access::Clients, &head), admitted, "{value}");
        }
    }

    #[test]
    fn a_key_for_the_proxy_goes_no_further() {
        let shown = [
            ("authorization", "Bearer c"),
            ("x-api-key", "c"),
            ("x-a", "b"),
        ];
        let mut kept = head("POST", &shown);
        keys(&["c"], &[]).keep_from_workers(Access::Clients, &mut kept);
        assert_eq!(kept.headers.len(), 1);
        let mut passed = head("POST", &shown);
        keys(&[], &["a"]).keep_from_workers(Access::Clients, &mut passed);
        assert_eq!(passed.headers.len(), 3);
    }
}
