//! The facts of a request that a policy chooses a worker by.
//!
//! A key is made for each request and waits with it in the queue, so that it owns its values. Finding a fact costs time
//! for each request, also under a policy that reads none: only facts that parsing finds anyway belong here.

use std::sync::Arc;

use super::json::{self, Kind, Scanner};
use super::{Facts, Prefix, Route};

/// The facts of a request that a policy chooses by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutingKey {
    /// The endpoint of the request.
    pub route: Route,
    /// The length of the body as the client sent it, in bytes. A long body is nearly all prompt.
    pub body_bytes: usize,
    /// The number of prompts, at least 1.
    pub prompts: usize,
    /// A digest of the session that the request belongs to; `None` where it names none, or no policy asks for it.
    pub session: Option<u64>,
    /// The beginning of the prompt; `None` where no policy asks for it.
    pub prefix: Option<Arc<Prefix>>,
}

impl RoutingKey {
    /// The key of a body of this length with these facts.
    pub fn new(route: Route, facts: &Facts, body_bytes: usize) -> Self {
        Self {
            route,
            body_bytes,
            prompts: facts.batch.prompts().max(1),
            session: None,
            prefix: None,
        }
    }
}

/// The name of the session in a body that has been parsed: its `session_id`, or else its `user`, where that is a text that
/// is not empty.
pub fn named_session(body: &[u8]) -> Option<String> {
    let mut found = [None, None];
    let read = |found: &mut [Option<String>; 2]| -> Result<(), json::Error> {
        let mut scanner = Scanner::new(body)?;
        scanner.object(|s, member| {
            let field = match &*member.name {
                "session_id" => &mut found[0],
                "user" => &mut found[1],
                _ => return s.skip().map(drop),
            };
            *field = match s.kind()? {
                Kind::Text => Some(s.text()?.into_owned()).filter(|name| !name.is_empty()),
                _ => s.skip().map(|_| None)?,
            };
            Ok(())
        })?;
        Ok(())
    };
    read(&mut found).ok()?;
    found.into_iter().flatten().next()
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    #[test]
    fn the_session_of_a_body_is_its_session_id_or_its_user() {
        for (body, name) in [
            (r#"{"user":"a","prompt":"x"}"#, Some("a")),
            (r#"{"user":"a","session_id":"b\u0063"}"#, Some("bc")),
            (r#"{"user":"a","session_id":""}"#, Some("a")),
            (r#"{"user":"a","session_id":7,"user":"b"}"#, Some("b")),
            (r#"{"metadata":{"user":"a"}}"#, None),
            (r#"{"user":null}"#, None),
            ("[]", None),
        ] {
            assert_eq!(named_session(body.as_bytes()).as_deref(), name, "{body}");
        }
    }

    #[test]
    fn a_key_has_the_length_and_the_prompts_of_its_body() {
        for (route, body, prompts) in [
            (Route::Generate, r#"{"text":"a"}"#, 1),
            (Route::Generate, r#"{"text":["a","b"]}"#, 2),
            (Route::Completions, r#"{"prompt":["a","b","c"]}"#, 3),
            (Route::Generate, r#"{"text":[]}"#, 1),
        ] {
            let facts = parse(route, body.as_bytes()).expect("a body that is valid");
            let key = RoutingKey::new(route, &facts, body.len());
            assert_eq!((key.body_bytes, key.prompts), (body.len(), prompts));
        }
    }
}
