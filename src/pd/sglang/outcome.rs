//! Errors that a worker reports under the status 200.
//!
//! What lives here: finding such an error in the first event of a stream or in a document, and the response that the
//! worker would have given with a status. What may not: what follows from it for the request.
//!
//! Source: SGLang 0.5.23, `srt/entrypoints/http_server.py` (`serve_generate_request`,
//! `_create_error_response`, `validation_exception_handler`), `srt/managers/tokenizer_manager.py`
//! (`_handle_abort_finish_reason`) and `srt/entrypoints/openai/serving_base.py`
//! (`create_streaming_error_response`).

use std::ops::Range;
use std::sync::LazyLock;

use bytes::Bytes;
use memchr::memmem::Finder;

use super::super::Route;
use super::super::json::{Kind, Scanner};
use super::super::sse;

/// One of these two words is in every document that reports an error. A searcher takes longer to build than to search a
/// small document.
static ERROR: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"error\""));
static ABORT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"abort\""));

/// A worker's error, as a response with a status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerError {
    /// The HTTP status, 400..=599.
    pub status: u16,
    /// The JSON body.
    pub body: Bytes,
}

/// The error that the first event of a worker's stream reports. `None` when it reports none, when the error has no status
/// of 400..=599, or when it concerns one prompt of a batch, whose other prompts continue.
///
/// The streams of `/v1/responses` and `/v1/messages` carry no status: `None`.
pub fn stream_error(route: Route, first_event: &[u8]) -> Option<WorkerError> {
    let payload = sse::data(first_event)?;
    match route {
        Route::Generate => generate_error(payload),
        Route::ChatCompletions | Route::Completions => openai_error(payload),
        Route::Responses | Route::Messages => None,
    }
}

/// The error that a worker's document reports under the status 200. `None` when it reports none, when the error has no
/// status of 400..=599, or when it concerns one prompt of a batch.
///
/// An abort without a status was requested through `/abort_request`, and is no error.
pub fn document_error(route: Route, document: &[u8]) -> Option<WorkerError> {
    // A search for two words is much cheaper than a scan, and most documents have neither.
    if ERROR.find(document).is_none() && ABORT.find(document).is_none() {
        return None;
    }
    let nested = match route {
        Route::Generate => generate_error(document),
        Route::ChatCompletions | Route::Completions => openai_error(document),
        Route::Responses | Route::Messages => return None,
    };
    nested.or_else(|| plain_error(document))
}

/// Whether prefill's error says that its KV transfer was aborted, or that decode looks dead.
///
/// Source: SGLang 0.5.23, `srt/disaggregation/common/conn.py` (`abort`) and
/// `srt/disaggregation/mooncake/conn.py` (`transfer_worker`).
pub fn tells_of_decode(error: &[u8]) -> bool {
    let has = |words: &str| memchr::memmem::find(error, words.as_bytes()).is_some();
    has("KVTransferError(") && (has("Aborted by AbortReq") || has("Decode instance could be dead"))
}

/// The error object itself, as it stands in a response with a status.
fn plain_error(document: &[u8]) -> Option<WorkerError> {
    let [object, code] = members(document, ["object", "code"])?;
    if object? != b"\"error\"" {
        return None;
    }
    Some(WorkerError {
        status: status(code?)?,
        body: Bytes::copy_from_slice(document),
    })
}

/// An error or abort of `/generate`.
fn generate_error(payload: &[u8]) -> Option<WorkerError> {
    let [error, meta_info, index] = members(payload, ["error", "meta_info", "index"])?;
    if let Some(error) = error {
        let [code, message] = members(error, ["code", "message"])?;
        let (status, message) = (status(code?)?, message?);
        return Some(WorkerError {
            status,
            body: join(&[b"{\"error\":{\"message\":", message, b"}}"]),
        });
    }
    if index.is_some() {
        return None;
    }
    let [reason] = members(meta_info?, ["finish_reason"])?;
    let [kind, code, message] = members(reason?, ["type", "status_code", "message"])?;
    if kind? != b"\"abort\"" {
        return None;
    }
    let (code, message) = (code?, message?);
    let status = status(code)?;
    let body = if status == 400 {
        join(&[b"{\"error\":{\"message\":", message, b"}}"])
    } else {
        let (before, between) = (b"{\"object\":\"error\",\"message\":", b",\"type\":\"");
        join(&[
            before,
            message,
            between,
            code,
            b"\",\"param\":null,\"code\":",
            code,
            b"}",
        ])
    };
    Some(WorkerError { status, body })
}

/// An error of the OpenAI endpoints: the object under the key `error`.
fn openai_error(payload: &[u8]) -> Option<WorkerError> {
    let [error] = members(payload, ["error"])?;
    let error = error?;
    let [code] = members(error, ["code"])?;
    Some(WorkerError {
        status: status(code?)?,
        body: Bytes::copy_from_slice(error),
    })
}

/// The values of the named members of an object, as written; `None` when `text` is no JSON object. A member that is null
/// counts as absent.
fn members<'a, const N: usize>(text: &'a [u8], names: [&str; N]) -> Option<[Option<&'a [u8]>; N]> {
    let mut spans: [Option<Range<usize>>; N] = [const { None }; N];
    let read = |mut s: Scanner<'a>| {
        s.object(|s, member| {
            let null = s.kind()? == Kind::Null;
            let value = s.skip()?;
            if let Some(index) = names.iter().position(|name| *name == member.name) {
                spans[index] = (!null).then_some(value);
            }
            Ok(())
        })?;
        s.end()
    };
    Scanner::new(text).and_then(read).ok()?;
    Some(spans.map(|span| span.map(|span| &text[span])))
}

/// The status that a JSON number gives, if it is 400..=599.
pub(in crate::pd) fn status(code: &[u8]) -> Option<u16> {
    let code = std::str::from_utf8(code).ok()?.parse().ok()?;
    (400..=599).contains(&code).then_some(code)
}

fn join(parts: &[&[u8]]) -> Bytes {
    parts.concat().into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn check(route: Route, payload: &str, wanted: Option<(u16, &str)>) {
        let wanted = wanted.map(|(status, body)| WorkerError {
            status,
            body: body.to_owned().into(),
        });
        let event = format!("data: {payload}\n\n");
        assert_eq!(
            stream_error(route, event.as_bytes()),
            wanted,
            "{}: {payload}",
            route.name()
        );
    }

    fn abort(rest: &str) -> String {
        format!(
            r#"{{"text":"","meta_info":{{"id":"a","finish_reason":{{"type":"abort",{rest}}},"e2e":1}}}}"#
        )
    }

    #[test]
    fn an_aborted_transfer_tells_of_decode_and_a_failed_one_does_not() {
        let error = |reason: &str| {
            format!(
                r#"{{"object":"error","message":"Prefill transfer failed for request rank=0 req.rid='r' req.bootstrap_room=7 with exception KVTransferError(bootstrap_room=7): {reason}","type":"500","param":null,"code":500}}"#
            )
        };
        for (reason, tells) in [
            ("Aborted by AbortReq.", true),
            (
                "Decode instance could be dead, remote mooncake session 10.0.0.1:1 is not alive",
                true,
            ),
            ("Failed due to an unknown reason from another rank", false),
            (
                "Request 7 timed out after 300.0s in KVPoll.Bootstrapping",
                false,
            ),
        ] {
            assert_eq!(tells_of_decode(error(reason).as_bytes()), tells, "{reason}");
        }
        assert!(!tells_of_decode(b"Aborted by AbortReq."));
    }

    #[test]
    fn a_validation_error_of_generate_becomes_the_plain_response() {
        let error = r#"{"error":{"message":"too long \"x\"","type":"invalid_request_error","code":400,"retryable":false}}"#;
        check(
            Route::Generate,
            error,
            Some((400, r#"{"error":{"message":"too long \"x\""}}"#)),
        );
    }

    #[test]
    fn an_abort_of_generate_becomes_the_plain_response_of_its_status() {
        let failed =
            abort(r#""message":"Decode transfer failed","status_code":500,"err_type":null"#);
        let plain = r#"{"object":"error","message":"Decode transfer failed","type":"500","param":null,"code":500}"#;
        check(Route::Generate, &failed, Some((500, plain)));
        let invalid = abort(r#""message":"bad","status_code":400"#);
        check(
            Route::Generate,
            &invalid,
            Some((400, r#"{"error":{"message":"bad"}}"#)),
        );
    }

    #[test]
    fn an_openai_error_becomes_its_inner_object() {
        let inner = r#"{"object": "error", "message": "m", "type": "INTERNAL_SERVER_ERROR", "param": null, "code": 503}"#;
        for route in [Route::ChatCompletions, Route::Completions] {
            check(
                route,
                &format!(r#"{{"error": {inner}}}"#),
                Some((503, inner)),
            );
        }
    }

    #[test]
    fn an_error_in_a_document_under_200_is_found() {
        let found = |route, document: &str| {
            document_error(route, document.as_bytes()).map(|error| {
                (
                    error.status,
                    String::from_utf8_lossy(&error.body).into_owned(),
                )
            })
        };
        let plain = r#"{"object":"error","message":"m","code":503}"#;
        for route in [Route::Generate, Route::ChatCompletions, Route::Completions] {
            assert_eq!(found(route, plain), Some((503, plain.to_owned())));
            for fine in [
                r#"{"text":"an \"error\" and an \"abort\""}"#,
                r#"{"object":"error","code":200}"#,
                r#"{"object":"error"}"#,
                r#"{"choices":[{"finish_reason":"abort"}]}"#,
                r#"[{"object":"error","code":503}]"#,
                r#"{"object":"error","code":503"#,
                "",
            ] {
                assert_eq!(found(route, fine), None, "{fine}");
            }
        }
        let aborted = abort(r#""message":"gone","status_code":500"#);
        assert_eq!(
            found(Route::Generate, &aborted).map(|(status, _)| status),
            Some(500)
        );
        let requested = abort(r#""message":"gone","status_code":null"#);
        assert_eq!(found(Route::Generate, &requested), None);
        let nested = r#"{"error":{"object":"error","message":"m","code":400}}"#;
        let inner = r#"{"object":"error","message":"m","code":400}"#;
        assert_eq!(
            found(Route::Completions, nested),
            Some((400, inner.to_owned()))
        );
        assert_eq!(found(Route::Messages, plain), None);
    }

    #[test]
    fn what_is_no_error_of_the_whole_request_is_none() {
        for payload in [
            "[DONE]",
            "not json",
            "{\"error\":{\"code\":500,\"message\":\"m\"}",
            "[]",
            "{}",
            r#"{"error":null}"#,
            r#"{"error":"text"}"#,
            r#"{"error":{"message":"m"}}"#,
            r#"{"error":{"message":"m","code":200}}"#,
            r#"{"error":{"message":"m","code":600}}"#,
            r#"{"error":{"message":"m","code":"500"}}"#,
            r#"{"text":"a","meta_info":{"finish_reason":null}}"#,
            r#"{"text":"a","meta_info":{"finish_reason":{"type":"length","length":8}}}"#,
            r#"{"choices":[{"index":0,"finish_reason":null}]}"#,
        ] {
            for route in [Route::Generate, Route::ChatCompletions] {
                check(route, payload, None);
            }
        }
        check(
            Route::Generate,
            &abort(r#""message":"by the client","status_code":null"#),
            None,
        );
        let of_a_batch =
            abort(r#""message":"m","status_code":500"#).replacen('{', "{\"index\":1,", 1);
        check(Route::Generate, &of_a_batch, None);
        check(
            Route::Messages,
            r#"{"error":{"code":500,"message":"m"}}"#,
            None,
        );
        assert_eq!(stream_error(Route::Generate, b": comment\n\n"), None);
    }
}
