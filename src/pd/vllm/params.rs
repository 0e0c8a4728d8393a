//! The parameters of the transfer, which prefill's response has and decode's request gets.
//!
//! They are opaque: their members change from version to version, decode believes them, and they belong to one body. So they
//! are a range of the bytes that prefill sent, and nothing here reads or writes inside it.

use bytes::Bytes;

use super::super::json::{self, Kind, Scanner};
use super::steps::PARAMS;

/// The parameters as prefill wrote them: the text of a JSON object that is not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Params(pub(super) Bytes);

impl Params {
    /// The JSON text.
    pub fn text(&self) -> &[u8] {
        &self.0
    }
}

/// The parameters in prefill's response; `None` where it has none, because the worker has no KV connector, or one with
/// another protocol.
pub fn params(response: &Bytes) -> Option<Params> {
    let mut found = None;
    let read = |found: &mut Option<_>| -> Result<(), json::Error> {
        let mut scanner = Scanner::new(response)?;
        scanner.object(|s, member| {
            let is_object = s.kind()? == Kind::Object;
            let value = s.skip()?;
            if member.name == PARAMS {
                let is_empty = s
                    .slice(value.clone())
                    .trim_matches(['{', '}', ' '])
                    .is_empty();
                *found = (is_object && !is_empty).then_some(value);
            }
            Ok(())
        })?;
        scanner.end()
    };
    read(&mut found).ok()?;
    found.map(|range| Params(response.slice(range)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn found(response: &'static str) -> Option<String> {
        let params = params(&Bytes::from_static(response.as_bytes()))?;
        Some(String::from_utf8(params.text().to_vec()).unwrap())
    }

    #[test]
    fn the_parameters_of_every_endpoint_are_found_byte_for_byte() {
        for (response, id) in [
            (
                include_str!("../../../tests/fixtures/vllm-0.32.0/prefill/chat.json"),
                "chatcmpl-8e2f942c4e175c46-a830a8aa",
            ),
            (
                include_str!("../../../tests/fixtures/vllm-0.32.0/prefill/completions.json"),
                "cmpl-93e86c62d8b806d7-0-a5a7662f",
            ),
            (
                include_str!("../../../tests/fixtures/vllm-0.32.0/prefill/responses.json"),
                "resp_9ec8eda58a2437cd_0-844d1c1f",
            ),
            (
                include_str!("../../../tests/fixtures/vllm-0.32.0/prefill/messages.json"),
                "chatcmpl-95a7b6a62ed7af4f-88c25a43",
            ),
            (
                include_str!("../../../tests/fixtures/vllm-0.32.0/prefill/generate.json"),
                "generate-tokens-a665febd017ec024-b839471c",
            ),
        ] {
            let params = found(response).unwrap();
            assert!(
                response.contains(&format!("\"kv_transfer_params\":{params}")),
                "{params}"
            );
            assert!(
                params.starts_with("{\"do_remote_prefill\":true,") && params.ends_with('}'),
                "{params}"
            );
            assert!(
                params.contains(&format!("\"remote_request_id\":\"{id}\"")),
                "{params}"
            );
        }
    }

    #[test]
    fn a_response_without_parameters_has_none() {
        for response in [
            r#"{"id":"a","kv_transfer_params":null}"#,
            r#"{"id":"a"}"#,
            r#"{"kv_transfer_params":{}}"#,
            r#"{"kv_transfer_params":[1]}"#,
            r#"{"choices":[{"kv_transfer_params":{"a":1}}]}"#,
            r#"{"kv_transfer_params":{"a":1}"#,
            "[]",
            "",
        ] {
            assert_eq!(found(response), None, "{response}");
        }
        let spelled = r#"{"kv_transfer_params":null,"kv\u005ftransfer_params" : {"a": [1]} }"#;
        assert_eq!(found(spelled).as_deref(), Some(r#"{"a": [1]}"#));
    }
}
