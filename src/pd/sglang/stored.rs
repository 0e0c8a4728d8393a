//! The ids of stored responses: the one that decode gives to a response, and the one that a request continues.
//!
//! Bytes in, ids out. Nothing is changed, and only the beginning of a response is looked at.
//!
//! Source: SGLang 0.5.23 `srt/entrypoints/openai/protocol.py` (`ResponsesResponse`, whose first field is `id`;
//! `ResponsesRequest.previous_response_id`) and `serving_responses.py` (`response.created` is the first event).

use super::super::json::{self, Kind, Scanner};

/// How an id begins in the bytes of a response.
const BEGIN: &[u8] = b"resp_";

/// The bytes of a response that are searched.
const SEARCHED: usize = 1024;

/// The longest id. SGLang's own have 37 bytes.
const MAX_ID: usize = 128;

/// Finds the id of a response in its first bytes, however they are cut into chunks.
#[derive(Debug, Default)]
pub struct ResponseIdSearch {
    seen: Vec<u8>,
    over: bool,
}

impl ResponseIdSearch {
    /// Looks at the next bytes of the response. The id, once; `None` where it is not there yet, or was found before.
    pub fn find(&mut self, chunk: &[u8]) -> Option<String> {
        if self.over {
            return None;
        }
        let room = SEARCHED - self.seen.len();
        self.seen.extend_from_slice(&chunk[..chunk.len().min(room)]);
        let id = quoted_id(&self.seen);
        self.over = id.is_some() || self.seen.len() == SEARCHED;
        if self.over {
            self.seen = Vec::new();
        }
        id
    }
}

/// The first text in quotes that begins as an id.
fn quoted_id(bytes: &[u8]) -> Option<String> {
    let opening = |at: usize| at > 0 && bytes[at - 1] == b'"';
    let mut starts = memchr::memmem::find_iter(bytes, BEGIN);
    let start = starts.find(|start| opening(*start))?;
    let length = memchr::memchr(b'"', &bytes[start..])?;
    let id = &bytes[start..start + length];
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-".contains(byte);
    let is_id = length <= MAX_ID && id.iter().all(is_plain);
    is_id.then(|| String::from_utf8_lossy(id).into_owned())
}

/// The response that a request continues; `None` where its body names none. The body has been parsed.
pub fn previous_response(body: &[u8]) -> Option<String> {
    let mut found = None;
    let mut read = || -> Result<(), json::Error> {
        let mut scanner = Scanner::new(body)?;
        scanner.object(|s, member| {
            match (&*member.name, s.kind()?) {
                ("previous_response_id", Kind::Text) => found = Some(s.text()?.into_owned()),
                _ => s.skip().map(drop)?,
            }
            Ok(())
        })?;
        Ok(())
    };
    read().ok()?;
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#"{"id":"resp_0a","object":"response","output":[{"id":"resp_no"}]}"#;
    const STREAM: &str = "event: response.created\ndata: {\"type\":\"response.created\",\"sequence_number\":0,\
         \"response\":{\"id\":\"resp_0a\",\"object\":\"response\"}}\n\n";

    #[test]
    fn the_id_of_a_response_is_found_once_wherever_the_bytes_are_cut() {
        for response in [DOCUMENT, STREAM] {
            for cut in 0..=response.len() {
                let mut search = ResponseIdSearch::default();
                let (one, two) = response.as_bytes().split_at(cut);
                let found: Vec<_> = [one, two]
                    .iter()
                    .filter_map(|part| search.find(part))
                    .collect();
                assert_eq!(found, ["resp_0a"], "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_response_without_an_id_in_its_beginning_has_none() {
        let late = format!("{}\"resp_0a\"", " ".repeat(SEARCHED));
        let long = format!("\"resp_{}\"", "a".repeat(MAX_ID));
        for response in [
            r#"{"error":{"message":"no resp_1 here"}}"#,
            "\"resp_\\u0041\"",
            &late,
            &long,
            "",
        ] {
            let mut search = ResponseIdSearch::default();
            assert_eq!(search.find(response.as_bytes()), None, "{response}");
        }
    }

    #[test]
    fn a_request_continues_the_response_that_it_names() {
        for (body, id) in [
            (
                r#"{"input":"a","previous_response_id":"resp_1"}"#,
                Some("resp_1"),
            ),
            (r#"{"previous_response_id":null}"#, None),
            (r#"{"metadata":{"previous_response_id":"resp_1"}}"#, None),
            (
                r#"{"previous_response_id":"a","previous_response_id":"b"}"#,
                Some("b"),
            ),
            ("[]", None),
        ] {
            assert_eq!(previous_response(body.as_bytes()).as_deref(), id, "{body}");
        }
    }
}
