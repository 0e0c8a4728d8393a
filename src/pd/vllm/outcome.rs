//! Errors that a vLLM worker reports under the status 200.
//!
//! Its documents report none: an error has its status. Source: vLLM 0.32.0, `entrypoints/openai/`
//! (`create_streaming_error_response`).

use bytes::Bytes;
use memchr::memmem;

use super::super::Route;
use super::super::json::{self, Scanner};
use super::super::sglang::WorkerError;
use super::super::sglang::outcome::status;
use super::super::sse;

/// The error that the first event of a worker's stream reports, as the response that the worker would have given with a
/// status: the text of the event is the body of that. `None` when it reports none, or names no status of 400..=599.
pub fn stream_error(route: Route, first_event: &[u8]) -> Option<WorkerError> {
    if matches!(route, Route::Responses | Route::Messages) {
        return None;
    }
    let payload = sse::data(first_event)?;
    if !payload.starts_with(b"{\"error\"") {
        return None;
    }
    let mut code = None;
    let read = |code: &mut Option<_>| -> Result<(), json::Error> {
        let mut scanner = Scanner::new(payload)?;
        scanner.object(|s, member| match &*member.name {
            "error" => s
                .object(|s, member| {
                    let value = s.skip()?;
                    if member.name == "code" {
                        *code = Some(value);
                    }
                    Ok(())
                })
                .map(drop),
            _ => s.skip().map(drop),
        })?;
        scanner.end()
    };
    read(&mut code).ok()?;
    Some(WorkerError {
        status: status(&payload[code?])?,
        body: Bytes::copy_from_slice(payload),
    })
}

/// Whether this first event says nothing of how the response will end: the head of a chat comes with the first token, or
/// with the error instead of it.
pub fn is_preamble(route: Route, event: &[u8]) -> bool {
    const ROLE: &[u8] = br#""delta":{"role":"assistant","content":""}"#;
    route == Route::ChatCompletions && memmem::find(event, ROLE).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_in_the_first_event_becomes_the_response_with_its_status() {
        let payload = r#"{"error": {"message": "Internal server error", "type": "InternalServerError", "param": null, "code": 500}}"#;
        let event = format!("data: {payload}\n\n");
        for route in [Route::ChatCompletions, Route::Completions, Route::Generate] {
            let error = stream_error(route, event.as_bytes());
            let wanted = WorkerError {
                status: 500,
                body: payload.into(),
            };
            assert_eq!(error, Some(wanted), "{}", route.name());
        }
        for route in [Route::Responses, Route::Messages] {
            assert_eq!(stream_error(route, event.as_bytes()), None);
        }
        for fine in [
            "data: {\"id\":\"a\",\"choices\":[]}\n\n",
            "data: {\"error\":null}\n\n",
            "data: {\"error\":{\"code\":200}}\n\n",
            "data: [DONE]\n\n",
            ": comment\n\n",
        ] {
            assert_eq!(
                stream_error(Route::ChatCompletions, fine.as_bytes()),
                None,
                "{fine}"
            );
        }
    }
    #[test]
    fn the_head_of_a_chat_is_no_content() {
        let head = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
        assert!(is_preamble(Route::ChatCompletions, head.as_bytes()));
        assert!(!is_preamble(Route::Completions, head.as_bytes()));
        let token =
            "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\\\"delta\\\"\"}}]}\n\n";
        assert!(!is_preamble(Route::ChatCompletions, token.as_bytes()));
    }
}
