//! API keys: which requests need one, and whether the one presented is accepted.
//!
//! Only digests are kept and compared, so that the time of a comparison says nothing about the key.
//!
//! Source: SGLang 0.5.23 `srt/utils/auth.py` (`decide_request_auth`), which has the same rules.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{AUTHORIZATION, HeaderName};
use http::{HeaderMap, Method};
use pingora::http::RequestHeader;
use sha2::{Digest, Sha256};

use crate::endpoint::Access;

/// The header in which clients of Anthropic's SDK send their key.
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// A SHA-256 digest.
type Hash = [u8; 32];

/// The accepted keys.
pub(crate) struct Keys {
    clients: Vec<NamedKey>,
    admins: Vec<NamedKey>,
}

/// One accepted key.
struct NamedKey {
    hash: Hash,
    /// The name in the log.
    name: Arc<str>,
}

/// No accepted key is presented where one is needed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct KeyRefused;

impl Keys {
    /// With client keys, every request but those with [`Access::Open`] needs a key. With admin keys, requests of admins
    /// and observers need one of these; without them, they need a client key like any other request.
    ///
    /// Each key comes with its name in the log.
    pub(crate) fn new<'a>(
        clients: impl IntoIterator<Item = (&'a [u8], &'a str)>,
        admins: impl IntoIterator<Item = (&'a [u8], &'a str)>,
    ) -> Self {
        let named = |(key, name): (&[u8], &str)| NamedKey {
            hash: hash(key),
            name: name.into(),
        };
        Self {
            clients: clients.into_iter().map(named).collect(),
            admins: admins.into_iter().map(named).collect(),
        }
    }

    /// The name of the key that opens a path with this access to a request with this head; `None` where none is needed.
    ///
    /// # Errors
    /// The request is not accepted.
    pub(crate) fn check(
        &self,
        access: Access,
        head: &RequestHeader,
    ) -> Result<Option<&Arc<str>>, KeyRefused> {
        // A browser sends no key with the preflight request that comes before the real one.
        if access == Access::Open || head.method == Method::OPTIONS {
            return Ok(None);
        }
        let accepted = self.accepted(access);
        if accepted.is_empty() {
            return Ok(None);
        }
        let key = match access {
            Access::Observers => password(&head.headers),
            _ => None,
        };
        let key = key.or_else(|| presented(&head.headers).map(Cow::Borrowed));
        let found = key.and_then(|key| find(accepted, &hash(&key)));
        found.map(Some).ok_or(KeyRefused)
    }

    /// Removes the key from a head that goes on to workers, if it was for this proxy. Where this proxy needs no key, the
    /// key is for the workers, and stays.
    pub(crate) fn strip(&self, access: Access, head: &mut RequestHeader) {
        if !self.accepted(access).is_empty() {
            // Both headers, because a client may send its key in both.
            head.remove_header(&AUTHORIZATION);
            head.remove_header(&X_API_KEY);
        }
    }

    /// Whether clients need a key. If so, no worker sees it, and a worker that refuses a key means the proxy's own.
    pub(crate) fn has_client_keys(&self) -> bool {
        !self.clients.is_empty()
    }

    /// Whether a path with this access needs a key for administration, and a client's key is none.
    pub(crate) fn needs_admin_key(&self, access: Access) -> bool {
        matches!(access, Access::Admins | Access::Observers) && !self.admins.is_empty()
    }

    /// The keys that open a path with this access; empty when it needs none.
    fn accepted(&self, access: Access) -> &[NamedKey] {
        match access {
            access if self.needs_admin_key(access) => &self.admins,
            _ => &self.clients,
        }
    }
}

/// The key in a head: a bearer token, or else the value of `x-api-key`.
fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = credentials(headers, b"Bearer ");
    bearer.or_else(|| Some(headers.get(X_API_KEY)?.as_bytes()))
}

/// The password of HTTP Basic; the user name may be any. A browser sends it with every request to this host, also with
/// one that a page of another site made, so that only what changes nothing takes it.
///
/// Source: RFC 7617.
fn password(headers: &HeaderMap) -> Option<Cow<'_, [u8]>> {
    let mut pair = BASE64_STANDARD
        .decode(credentials(headers, b"Basic ")?.trim_ascii())
        .ok()?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(Cow::Owned(pair.split_off(colon + 1)))
}

/// What stands behind this scheme, given with its space, in `Authorization`.
fn credentials<'a>(headers: &'a HeaderMap, scheme: &[u8]) -> Option<&'a [u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (found, rest) = value.split_at_checked(scheme.len())?;
    found.eq_ignore_ascii_case(scheme).then_some(rest)
}

fn hash(key: &[u8]) -> Hash {
    Sha256::digest(key).into()
}

/// The name of the key with this digest.
fn find<'a>(keys: &'a [NamedKey], wanted: &Hash) -> Option<&'a Arc<str>> {
    // Every byte of every key is compared, without an early exit, so that the time does not depend on the key.
    keys.iter().fold(None, |found, key| {
        let pairs = key.hash.iter().zip(wanted);
        let is_equal = pairs.fold(0, |differs, (a, b)| differs | (a ^ b)) == 0;
        if is_equal { Some(&key.name) } else { found }
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
        let named = |keys: &[&'static str]| -> Vec<(&'static [u8], &'static str)> {
            keys.iter().map(|key| (key.as_bytes(), "a-name")).collect()
        };
        Keys::new(named(clients), named(admins))
    }

    fn allows(keys: &Keys, access: Access, head: &RequestHeader) -> bool {
        keys.check(access, head).is_ok()
    }

    #[test]
    fn each_access_needs_a_key_of_its_kind() {
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
            let allowed = |access| heads.map(|head| allows(&keys, access, head));
            assert_eq!(allowed(Access::Clients), clients);
            assert_eq!(allowed(Access::Admins), admins);
            assert_eq!(allowed(Access::Observers), admins);
            assert_eq!(allowed(Access::Open), [true; 4]);
            assert!(allows(&keys, Access::Clients, &head("OPTIONS", &[])));
        }
    }

    #[test]
    fn a_key_is_read_from_one_of_two_headers_and_compared_whole() {
        let keys = keys(&["sk-1"], &[]);
        for (name, value, allowed) in [
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
            assert_eq!(allows(&keys, Access::Clients, &head), allowed, "{value}");
        }
    }

    #[test]
    fn the_password_of_basic_is_a_key_for_observers_alone() {
        let keys = keys(&["c"], &["s:k"]);
        for (value, allowed) in [
            ("Basic YW55OnM6aw==", true), // any:s:k
            ("basic OnM6aw==", true),     // :s:k
            ("Basic  OnM6aw== ", true),   // with spaces
            ("Basic YW55OmM=", false),    // any:c
            ("Basic czprOg==", false),    // s:k:
            ("Basic czpr", false),        // s:k
            ("Basic YW55", false),        // any
            ("Basic YW55OnM6aw", false),  // without its padding
            ("Basic !!!", false),
            ("Basic ", false),
            ("Basic", false),
            ("Bearer s:k", true),
            ("Bearer YW55OnM6aw==", false),
        ] {
            let head = head("GET", &[("authorization", value)]);
            assert_eq!(allows(&keys, Access::Observers, &head), allowed, "{value}");
            let bearer = value == "Bearer s:k";
            assert_eq!(allows(&keys, Access::Admins, &head), bearer, "{value}");
        }
    }

    #[test]
    fn an_accepted_key_has_a_name_and_a_request_that_needs_none_has_not() {
        let keys = Keys::new([(&b"a"[..], "line-1"), (b"b", "team-b")], []);
        for (key, name) in [("Bearer a", "line-1"), ("Bearer b", "team-b")] {
            let head = head("POST", &[("authorization", key)]);
            let found = keys.check(Access::Clients, &head).unwrap();
            assert_eq!(found.map(|name| &**name), Some(name));
            assert_eq!(keys.check(Access::Open, &head), Ok(None));
        }
    }

    #[test]
    fn a_key_for_the_proxy_is_stripped_and_one_for_the_workers_stays() {
        let presented = [
            ("authorization", "Bearer c"),
            ("x-api-key", "c"),
            ("x-a", "b"),
        ];
        let mut stripped = head("POST", &presented);
        keys(&["c"], &[]).strip(Access::Clients, &mut stripped);
        assert_eq!(stripped.headers.len(), 1);
        let mut passed = head("POST", &presented);
        keys(&[], &["a"]).strip(Access::Clients, &mut passed);
        assert_eq!(passed.headers.len(), 3);
    }
}
