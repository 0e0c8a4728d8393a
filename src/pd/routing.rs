//! The facts of a request that a policy chooses a worker by.
//!
//! A key is made for each request and waits with it in the queue, so that it owns its values. Finding a fact costs time
//! for each request, also under a policy that reads none: only facts that parsing finds anyway belong here.

use std::sync::Arc;

use memchr::memmem;

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
    /// The load that it is for a decode worker, from [`tokens_to_come`]; 0 where no policy asks for it.
    pub to_come: u32,
    /// The data parallel rank of prefill that the request names; `None` where it names none, or no worker has several.
    pub rank: Option<u32>,
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
            to_come: 0,
            rank: None,
        }
    }

    /// The most ranks that its prompts may be on: one where it names that.
    pub fn spread(&self) -> usize {
        match self.rank {
            None => self.prompts,
            Some(_) => 1,
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

/// The data parallel rank of prefill in a body that has been parsed: its `routed_dp_rank`, by which the prefill worker goes, or
/// else its `disagg_prefill_dp_rank`. A prefill worker refuses a prompt whose room is on another rank.
///
/// Source: SGLang 0.5.23, `srt/managers/data_parallel_controller.py` (`maybe_external_dp_rank_routing`) and
/// `srt/disaggregation/common/conn.py` (`follow_bootstrap_room conflict`).
pub fn named_rank(body: &[u8]) -> Option<u32> {
    memmem::find(body, b"dp_rank")?;
    let [mut routed, mut of_prefill] = [None, None];
    let mut read = || -> Result<(), json::Error> {
        let mut scanner = Scanner::new(body)?;
        scanner.object(|s, member| {
            let value = s.skip()?;
            match &*member.name {
                "routed_dp_rank" => routed = s.slice(value).parse().ok(),
                "disagg_prefill_dp_rank" => of_prefill = s.slice(value).parse().ok(),
                _ => {}
            }
            Ok(())
        })?;
        Ok(())
    };
    read().ok()?;
    routed.or(of_prefill)
}

/// A request counts as so many tokens beside those that it may generate: one that ends soon takes a place, too.
const OF_REQUEST: u32 = 256;

/// The most tokens of one prompt that count. Clients set high limits and generate less.
const MOST_TO_COME: u32 = 2048;

/// The tokens of a prompt whose request has no limit but the context.
const UNLIMITED: u32 = 1024;

/// The tokens that decode may have to generate for a body that has been parsed, with `OF_REQUEST` for each prompt. A limit
/// counts up to `MOST_TO_COME`.
///
/// Source: SGLang 0.5.23, `srt/sampling/sampling_params.py` (`max_new_tokens`, 128 by default) and
/// `srt/entrypoints/openai/protocol.py` (`max_tokens` of completions, 16 by default).
pub fn tokens_to_come(route: Route, body: &[u8], prompts: usize) -> u32 {
    let (names, default): (&[&str], _) = match route {
        Route::Generate => (&["sampling_params"], 128),
        // The first one counts.
        Route::ChatCompletions => (&["max_completion_tokens", "max_tokens"], UNLIMITED),
        Route::Completions => (&["max_tokens"], 16),
        Route::Responses => (&["max_output_tokens"], UNLIMITED),
        Route::Messages => (&["max_tokens"], UNLIMITED),
    };
    let mut found = [None; 2];
    let mut read = || -> Result<(), json::Error> {
        let mut scanner = Scanner::new(body)?;
        scanner.object(|s, member| {
            match names.iter().position(|name| *name == member.name) {
                Some(_) if route == Route::Generate => found[0] = limit_of_sampling(s)?,
                Some(place) => found[place] = limit(s)?,
                None => {
                    s.skip()?;
                }
            }
            Ok(())
        })?;
        Ok(())
    };
    // What was read up to an error counts.
    let _ = read();
    let limit = found.into_iter().flatten().next().unwrap_or(default);
    let prompts = u32::try_from(prompts).unwrap_or(u32::MAX).max(1);
    (OF_REQUEST + limit.min(MOST_TO_COME)).saturating_mul(prompts)
}

/// `max_new_tokens` of the sampling parameters; of a list of them the highest.
fn limit_of_sampling(s: &mut Scanner<'_>) -> Result<Option<u32>, json::Error> {
    let mut highest = None;
    match s.kind()? {
        Kind::Array => {
            s.array(|s, _| {
                highest = highest.max(limit_of_sampling(s)?);
                Ok(())
            })?;
        }
        Kind::Object => {
            s.object(|s, member| {
                match &*member.name {
                    "max_new_tokens" => highest = limit(s)?,
                    _ => {
                        s.skip()?;
                    }
                }
                Ok(())
            })?;
        }
        _ => {
            s.skip()?;
        }
    }
    Ok(highest)
}

/// A number of tokens; `None` for any other value. One that does not fit is the highest.
fn limit(s: &mut Scanner<'_>) -> Result<Option<u32>, json::Error> {
    let kind = s.kind()?;
    let value = s.skip()?;
    let number = s.slice(value).parse::<f64>();
    // A cast of a float saturates, and makes 0 of what is no number.
    let number = number.ok().filter(|_| kind == Kind::Number);
    Ok(number.map(|number| number as u32))
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

    #[test]
    fn the_rank_of_a_body_is_the_last_one_that_is_a_number() {
        for (body, rank) in [
            (r#"{"text":"a","routed_dp_rank":3}"#, Some(3)),
            (r#"{"routed_dp_rank":3,"routed_dp_rank":1}"#, Some(1)),
            (r#"{"text":"\"routed_dp_rank\":3"}"#, None),
            (r#"{"routed_dp_rank":null}"#, None),
            (r#"{"disagg_prefill_dp_rank":2}"#, Some(2)),
            (
                r#"{"routed_dp_rank":1,"disagg_prefill_dp_rank":2}"#,
                Some(1),
            ),
            (r#"{"routed_dp_rank":-1}"#, None),
            (r#"{"sampling_params":{"routed_dp_rank":3}}"#, None),
            ("{}", None),
        ] {
            assert_eq!(named_rank(body.as_bytes()), rank, "{body}");
        }
    }

    #[test]
    fn the_tokens_to_come_are_the_limit_of_the_request_within_bounds() {
        use Route::{ChatCompletions, Completions, Generate, Messages, Responses};
        for (route, body, prompts, limit) in [
            (Generate, r#"{"text":"a"}"#, 1, 128),
            (
                Generate,
                r#"{"sampling_params":{"temperature":0,"max_new_tokens":40}}"#,
                1,
                40,
            ),
            (
                Generate,
                r#"{"sampling_params":[{"max_new_tokens":4},{"max_new_tokens":9},{}]}"#,
                3,
                9,
            ),
            (
                Generate,
                r#"{"sampling_params":{"max_new_tokens":null},"max_tokens":7}"#,
                1,
                128,
            ),
            (ChatCompletions, r#"{"max_tokens":50}"#, 1, 50),
            (
                ChatCompletions,
                r#"{"max_tokens":50,"max_completion_tokens":60}"#,
                1,
                60,
            ),
            (ChatCompletions, r#"{"max_tokens":"many"}"#, 1, UNLIMITED),
            (ChatCompletions, r#"{"max_tokens":1e99}"#, 1, MOST_TO_COME),
            (ChatCompletions, r#"{"max_tokens":-5}"#, 1, 0),
            (Completions, r#"{"prompt":["a","b"]}"#, 2, 16),
            (
                Responses,
                r#"{"max_output_tokens":70,"max_tokens":1}"#,
                1,
                70,
            ),
            (Messages, r#"{"max_tokens":100000}"#, 1, MOST_TO_COME),
            (Messages, r#"{"max_tokens":12"#, 1, 12),
        ] {
            let expected = (OF_REQUEST + limit) * prompts as u32;
            assert_eq!(
                tokens_to_come(route, body.as_bytes(), prompts),
                expected,
                "{body}"
            );
        }
        assert_eq!(tokens_to_come(Generate, b"{}", usize::MAX), u32::MAX);
    }
}
