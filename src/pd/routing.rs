//! The facts of a request that a policy chooses a worker by.
//!
//! A key is made for each request and waits with it in the queue, so that it owns its values. Finding a fact costs time
//! for each request, also under a policy that reads none: only facts that parsing finds anyway belong here.

use super::{Facts, Route};

/// The facts of a request that a policy chooses by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutingKey {
    /// The endpoint of the request.
    pub route: Route,
    /// The length of the body as the client sent it, in bytes. A long body is nearly all prompt.
    pub body_bytes: usize,
    /// The number of prompts, at least 1.
    pub prompts: usize,
}

impl RoutingKey {
    /// The key of a body of this length with these facts.
    pub fn new(route: Route, facts: &Facts, body_bytes: usize) -> Self {
        Self {
            route,
            body_bytes,
            prompts: facts.batch.prompts().max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

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
