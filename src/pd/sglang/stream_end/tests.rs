#![allow(clippy::unwrap_used)]

use super::*;

/// Feeds the stream in two chunks, cut at every byte, and in single bytes; all must agree.
fn read(route: Route, stream: &str) -> (bool, Option<StreamError>, bool) {
    let bytes = stream.as_bytes();
    let of = |chunks: &mut dyn Iterator<Item = &[u8]>| {
        let mut end = StreamEnd::new(route);
        chunks.for_each(|chunk| end.update(chunk));
        (end.is_complete(), end.error(), end.lacks_end())
    };
    let whole = of(&mut std::iter::once(bytes));
    assert_eq!(of(&mut bytes.chunks(1)), whole, "{stream:?}");
    whole
}

fn cut(route: Route, stream: &str) -> (bool, Option<StreamError>, bool) {
    let bytes = stream.as_bytes();
    let whole = read(route, stream);
    for at in 0..bytes.len() {
        let mut end = StreamEnd::new(route);
        end.update(&bytes[..at]);
        end.update(&bytes[at..]);
        let split = (end.is_complete(), end.error(), end.lacks_end());
        assert_eq!(split, whole, "{stream:?} cut at {at}");
    }
    whole
}

const COMPLETE: (bool, Option<StreamError>, bool) = (true, None, false);
const CUT_SHORT: (bool, Option<StreamError>, bool) = (false, None, true);

fn failed(status: impl Into<Option<u16>>, complete: bool) -> (bool, Option<StreamError>, bool) {
    let status = status.into();
    (complete, Some(StreamError { status }), false)
}

const DATA: [Route; 3] = [Route::Generate, Route::ChatCompletions, Route::Completions];

#[test]
fn the_marker_of_each_endpoint_is_found_however_its_bytes_are_cut() {
    for route in DATA {
        for stream in [
            "data: {\"a\":1}\n\ndata: [DONE]\n\n",
            "data:{\"a\":1}\r\n\r\ndata:[DONE]\r\n\r\ndata: more\n\n",
            ": ping\n\nid: 7\ndata: [DONE]\n\n",
        ] {
            assert_eq!(cut(route, stream), COMPLETE, "{stream:?}");
        }
    }
    for status in ["completed", "incomplete", "cancelled"] {
        let stream = format!(
            "event: response.created\ndata: {{}}\n\nevent: response.{status}\ndata: {{}}\n\n"
        );
        assert_eq!(cut(Route::Responses, &stream), COMPLETE, "{status}");
    }
    let messages = "event: message_start\ndata: {}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
    assert_eq!(cut(Route::Messages, messages), COMPLETE);
}

#[test]
fn the_words_of_a_marker_inside_a_text_are_none() {
    for stream in [
        "",
        "data: {\"text\":\"data: [DONE]\"}\n\n",
        "data: [DONE] \n\n",
        "data: [DONE]x\n\n",
        "xdata: [DONE]\n\n",
        "event: message_stop\ndata: {}\n\n",
        "event: response.completed\ndata: {}\n\n",
    ] {
        assert_eq!(cut(Route::ChatCompletions, stream), CUT_SHORT, "{stream:?}");
    }
    for stream in [
        "event: response.output_text.done\ndata: {\"x\":\"event: response.completed\"}\n\n",
        "event: response.completed.x\ndata: [DONE]\n\n",
    ] {
        assert_eq!(cut(Route::Responses, stream), CUT_SHORT, "{stream:?}");
    }
}

#[test]
fn a_marker_counts_for_the_client_once_its_event_is_whole_and_for_the_end_in_any_case() {
    for unfinished in ["data: [DONE]", "data: [DONE]\n"] {
        assert_eq!(
            read(Route::Completions, unfinished),
            (false, None, false),
            "{unfinished:?}"
        );
    }
}

#[test]
fn an_error_event_is_found_with_its_status_and_explains_a_missing_marker() {
    let chat = "data: {\"choices\":[]}\n\ndata: {\"error\": {\"object\": \"error\", \"message\": \"m\", \"code\": 503}}\n\n";
    for route in [Route::ChatCompletions, Route::Completions] {
        assert_eq!(cut(route, chat), failed(503, false));
        assert_eq!(
            cut(route, &format!("{chat}data: [DONE]\n\n")),
            failed(503, true)
        );
    }
    let generate = "data: {\"text\":\"a\"}\n\ndata: {\"error\":{\"message\":\"m\",\"type\":\"t\",\"code\":400,\"retryable\":false}}\n\n";
    assert_eq!(cut(Route::Generate, generate), failed(400, false));
    let without = "data: {\"error\":{\"message\":\"no code\"}}\n\n";
    assert_eq!(cut(Route::ChatCompletions, without), failed(None, false));
    let messages = "event: error\ndata: {\"type\":\"error\",\"error\":{}}\n\nevent: message_stop\ndata: {}\n\n";
    assert_eq!(cut(Route::Messages, messages), failed(None, true));
    let responses = "event: response.failed\ndata: {}\n\n";
    assert_eq!(cut(Route::Responses, responses), failed(None, true));
}

#[test]
fn the_first_error_counts() {
    let two = "data: {\"error\":{\"message\":\"m\",\"code\":500}}\n\ndata: {\"error\":{\"message\":\"m\",\"code\":503}}\n\n";
    assert_eq!(cut(Route::ChatCompletions, two), failed(500, false));
}

fn abort(status: &str) -> String {
    format!(
        "data: {{\"text\":\"a\",\"output_ids\":[1],\"meta_info\":{{\"id\":\"x\",\"finish_reason\":{{\"type\":\"abort\",\
         \"message\":\"lost {{\",\"status_code\":{status},\"err_type\":null}},\"prompt_tokens\":1}}}}\n\ndata: [DONE]\n\n"
    )
}

#[test]
fn an_abort_of_generate_is_an_error_where_it_has_a_status() {
    let both = |stream: &str| {
        let mut end = StreamEnd::new(Route::Generate);
        end.update(stream.as_bytes());
        (end.is_complete(), end.error(), end.lacks_end())
    };
    assert_eq!(both(&abort("500")), failed(500, true));
    assert_eq!(both(&abort("null")), COMPLETE);
    let quoted = "data: {\"text\":\"\\\"type\\\":\\\"abort\\\",\\\"status_code\\\":500\"}\n\ndata: [DONE]\n\n";
    assert_eq!(both(quoted), COMPLETE);
}

#[test]
fn the_status_of_an_abort_is_read_from_an_event_that_is_cut_after_the_word() {
    let stream = abort("503");
    let after = stream.find("\"abort\"").unwrap() + "\"abort\"".len();
    for at in after..stream.len() {
        let mut end = StreamEnd::new(Route::Generate);
        end.update(&stream.as_bytes()[..at]);
        end.update(&stream.as_bytes()[at..]);
        assert_eq!(end.error(), Some(StreamError { status: Some(503) }), "{at}");
    }
}

#[test]
fn a_stream_that_cannot_be_read_has_no_marker_and_lacks_none() {
    let mut end = StreamEnd::unread();
    end.update(b"data: [DONE]\n\n");
    assert!(!end.is_complete() && !end.lacks_end());
    assert_eq!(end.events(), 1);
}
