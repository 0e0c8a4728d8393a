//! What a path that is not in the table may have meant: one with a slash at its end, or one that is nearly right.
//!
//! Paths in, paths out. A path with slashes at its end is redirected, as by a worker; any other path that is nearly
//! right is an error with a hint, because a client that is sent elsewhere hides its mistake.
//!
//! Source: Starlette 1.10 `routing.py` (`redirect_slashes`: 307 to the path without the slashes at its end).

use http::{HeaderValue, StatusCode, header};

use super::table::{self, Row};
use crate::endpoint::WholeResponse;
use crate::pd::Engine;

/// The longest path that is compared with those of the table, in bytes. Theirs have up to 58.
const MAX_COMPARED: usize = 96;

/// How like a path of the table another one must be, from 0 to 1. One wrong letter in `/ping` is 0.8.
const LIKENESS: f64 = 0.8;

/// The redirect to the same path without the slashes at its end, if that is in the table.
pub(super) fn redirect(engine: Engine, path: &str, query: Option<&str>) -> Option<WholeResponse> {
    let meant = path.trim_end_matches('/');
    if meant == path || meant.is_empty() {
        return None;
    }
    table::find(engine, meant)?;
    // A reference without scheme and host: those of the client's own URL are right behind another proxy too.
    let location = match query {
        Some(query) => HeaderValue::try_from(format!("{meant}?{query}")),
        None => HeaderValue::try_from(meant),
    };
    let mut response = WholeResponse::new(StatusCode::TEMPORARY_REDIRECT, "", "");
    response.headers.insert(header::LOCATION, location.ok()?);
    Some(response)
}

/// The served path that was probably meant: one that differs in slashes, in a prefix, or in a few letters.
pub(super) fn meant(engine: Engine, path: &str) -> Option<&'static str> {
    let served = || table::served(engine).map(|row: &Row| row.path);
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let plain = format!("/{}", parts.join("/")).to_ascii_lowercase();
    let same = |known: &&'static str| *known == plain;
    // `/v1` is missing, because it was left out of the base URL.
    let longer = |known: &&'static str| known.strip_suffix(plain.as_str()) == Some("/v1");
    // A base URL with a path of its own, or `/v1` twice.
    let shorter = |known: &&'static str| known.len() > 1 && plain.ends_with(*known);
    served()
        .find(same)
        .or_else(|| served().find(longer))
        .or_else(|| served().filter(shorter).max_by_key(|known| known.len()))
        .or_else(|| nearest(&plain, served()))
}

/// The path that is most like this one, if it is like enough.
fn nearest(plain: &str, served: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    if plain.len() > MAX_COMPARED {
        return None;
    }
    served
        .map(|known| (strsim::normalized_damerau_levenshtein(plain, known), known))
        .filter(|(likeness, _)| *likeness >= LIKENESS)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn slashes_at_the_end_lead_to_the_path_without_them() {
        let location = |path, query| {
            let response = redirect(Engine::Sglang, path, query)?;
            assert_eq!(response.status, 307);
            Some(
                response.headers[header::LOCATION]
                    .to_str()
                    .unwrap()
                    .to_owned(),
            )
        };
        let chat = Some("/v1/chat/completions".to_owned());
        assert_eq!(location("/v1/chat/completions/", None), chat);
        assert_eq!(location("/v1/chat/completions//", None), chat);
        let query = Some("timeout=1&x=%20");
        let flush = Some("/flush_cache?timeout=1&x=%20".to_owned());
        assert_eq!(location("/flush_cache/", query), flush);
        // Nothing but a path of the table is a target.
        for path in ["/", "//", "/nope/", "//other.example/", "/health", "*"] {
            assert_eq!(location(path, None), None, "{path}");
        }
    }

    #[test]
    fn a_path_that_is_nearly_right_has_a_hint_and_others_have_none() {
        for (path, hint) in [
            ("//v1/chat/completions", "/v1/chat/completions"),
            ("/v1//models", "/v1/models"),
            ("/V1/Chat/Completions", "/v1/chat/completions"),
            ("/v1/v1/chat/completions", "/v1/chat/completions"),
            ("/openai/v1/completions", "/v1/completions"),
            ("/chat/completions", "/v1/chat/completions"),
            ("/v1/chat/completion", "/v1/chat/completions"),
            ("/v1/generate", "/generate"),
            ("/heatlh", "/health"),
            ("/flush_cahce", "/flush_cache"),
        ] {
            assert_eq!(meant(Engine::Sglang, path), Some(hint), "{path}");
        }
        let long = format!("/{}", "v1/chat/completion".repeat(1000));
        for path in ["/nope", "/favicon.ico", "*", "/v2/whatever", &long] {
            assert_eq!(meant(Engine::Sglang, path), None, "{path}");
        }
    }
}
