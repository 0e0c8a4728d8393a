//! Validation errors as FastAPI reports them: a count, the errors, and the handler.
//!
//! Source: the transcripts `err_*`; SGLang 0.5.23, `entrypoints/http_server.py`.

use serde_json::Value;

use super::python::{python, python_string};
use crate::sim::errors::Failure;

/// Path of the handlers' file, which the messages name. It depends on the installation.
const HTTP_SERVER: &str =
    "/usr/local/lib/python3.11/site-packages/sglang/srt/entrypoints/http_server.py";

/// A handler in `http_server.py`, which the message names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    pub(crate) path: &'static str,
    function: &'static str,
    line: u32,
}

impl Site {
    pub(crate) const GENERATE: Site = Site {
        path: "/generate",
        function: "generate_request",
        line: 928,
    };
    pub(crate) const CHAT: Site = Site {
        path: "/v1/chat/completions",
        function: "openai_v1_chat_completions",
        line: 1870,
    };
    pub(crate) const COMPLETIONS: Site = Site {
        path: "/v1/completions",
        function: "openai_v1_completions",
        line: 1860,
    };
    pub(crate) const TOKENIZE: Site = Site {
        path: "/tokenize",
        function: "openai_v1_tokenize",
        line: 1906,
    };
    pub(crate) const RESPONSES: Site = Site {
        path: "/v1/responses",
        function: "v1_responses_request",
        line: 2066,
    };
}

/// The body is not JSON. `error` has the place and the reason.
pub(crate) fn not_json(site: Site, error: &serde_json::Error, body: &[u8]) -> Failure {
    let why = if error.is_eof() {
        "unexpected end of data"
    } else {
        "unexpected character"
    };
    let at = if error.is_eof() {
        body.len()
    } else {
        offset(body, error.line(), error.column())
    };
    let entry = format!(
        "{{'type': 'json_invalid', 'loc': ('body', {at}), 'msg': 'JSON decode error', 'input': {{}}, \
         'ctx': {{'error': '{why}'}}}}"
    );
    report(&[entry], Some(site))
}

/// The body of `/generate` is JSON, but not an object.
pub(super) fn not_an_object(body: &Value) -> Failure {
    no_dictionary(&python(body))
}

/// The body of `/generate` has another content type than JSON, and is not parsed.
pub(crate) fn not_parsed(body: &[u8]) -> Failure {
    no_dictionary(&format!(
        "b{}",
        python_string(&String::from_utf8_lossy(body))
    ))
}

fn no_dictionary(input: &str) -> Failure {
    let entry = format!(
        "{{'type': 'dataclass_type', 'loc': ('body',), 'msg': 'Input should be a dictionary or an instance of \
         GenerateReqInput', 'input': {input}, 'ctx': {{'class_name': 'GenerateReqInput'}}}}"
    );
    report(&[entry], Some(Site::GENERATE))
}

/// An OpenAI endpoint got another content type than JSON.
pub(crate) fn unsupported_media_type() -> Failure {
    let entry = "{'loc': ['header', 'content-type'], 'msg': \"Unsupported Media Type: Only 'application/json' is \
                 allowed\", 'type': 'value_error'}";
    report(&[entry.to_owned()], None)
}

pub(super) fn report(entries: &[String], site: Option<Site>) -> Failure {
    let plural = if entries.len() == 1 { "" } else { "s" };
    let place = site.map_or(" ".to_owned(), |site| {
        format!(
            "\n\n  File \"{HTTP_SERVER}\", \
             line {}, in {}\n    POST {} ",
            site.line, site.function, site.path
        )
    });
    Failure::Schema(format!(
        "{} validation error{plural}:\n  {}{place}[{}]",
        entries.len(),
        entries.join("\n  "),
        entries.join(", ")
    ))
}

fn offset(body: &[u8], line: usize, column: usize) -> usize {
    let lines = body
        .split_inclusive(|&byte| byte == b'\n')
        .take(line.saturating_sub(1));
    lines.map(<[u8]>::len).sum::<usize>() + column.saturating_sub(1)
}
