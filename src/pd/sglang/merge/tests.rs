#![allow(clippy::unwrap_used)]

use super::super::request::{Batch, Merge};
use super::*;

fn prefill_data(merge: Merge, batch: Batch, prefill: &str) -> Result<PrefillData, MergeError> {
    let prefill = Bytes::from(prefill.to_owned());
    if prefill.starts_with(b"data:") {
        PrefillData::from_stream(merge, batch, prefill)
    } else {
        PrefillData::from_body(merge, batch, prefill)
    }
}

/// Merges two `meta_info` of a single prompt.
fn meta_info(prefill: &str, decode: &str) -> String {
    let item = |meta_info: &str| format!("{{\"text\":\"\",\"meta_info\":{meta_info}}}");
    let data = prefill_data(Merge::InputLogprobs, Batch::Single, &item(prefill)).unwrap();
    let merged = body(&data, item(decode).into()).unwrap();
    let merged = std::str::from_utf8(&merged).unwrap();
    merged
        .strip_prefix("{\"text\":\"\",\"meta_info\":")
        .unwrap()
        .strip_suffix('}')
        .unwrap()
        .to_owned()
}

#[test]
fn prefills_keys_replace_decodes_in_place_and_absent_ones_are_appended() {
    let prefill =
        r#"{"id":"p","input_token_logprobs":[[null,1,null]],"input_x_logprobs_new": 1e400}"#;
    for (decode, merged) in [
        (
            r#"{"id":"d","input_token_logprobs":[],"e2e":1}"#,
            r#"{"id":"d","input_token_logprobs":[[null,1,null]],"e2e":1,"input_x_logprobs_new": 1e400}"#,
        ),
        (
            r#"{ "input_x_logprobs_new" : [ ] , "input_token_logprobs":[7] }"#,
            r#"{ "input_x_logprobs_new" : 1e400 , "input_token_logprobs":[[null,1,null]] }"#,
        ),
        (
            "{}",
            r#"{"input_token_logprobs":[[null,1,null]],"input_x_logprobs_new": 1e400}"#,
        ),
        (
            r#"{"finish_reason":{"type":"abort","status_code":500}}"#,
            r#"{"finish_reason":{"type":"abort","status_code":500},"input_token_logprobs":[[null,1,null]],"input_x_logprobs_new": 1e400}"#,
        ),
    ] {
        assert_eq!(meta_info(prefill, decode), merged);
    }
}

#[test]
fn flat_top_logprobs_of_prefill_leave_no_nested_ones_of_decode() {
    let prefill = r#"{"input_token_logprobs":[1],"input_top_logprobs_shape":[0,2]}"#;
    for (decode, merged) in [
        (
            r#"{"input_token_logprobs":[],"input_top_logprobs":[],"a":1}"#,
            r#"{"input_token_logprobs":[1],"a":1,"input_top_logprobs_shape":[0,2]}"#,
        ),
        (
            r#"{"input_top_logprobs":[],"input_top_logprobs_shape":[0,0]}"#,
            r#"{"input_top_logprobs_shape":[0,2],"input_token_logprobs":[1]}"#,
        ),
        (
            r#"{"input_top_logprobs":[]}"#,
            r#"{"input_token_logprobs":[1],"input_top_logprobs_shape":[0,2]}"#,
        ),
    ] {
        assert_eq!(meta_info(prefill, decode), merged);
    }
    let nested =
        r#"{"input_token_logprobs":[1],"input_top_logprobs":[2],"input_top_logprobs_shape":[3]}"#;
    let both =
        r#"{"input_top_logprobs":[2],"input_token_logprobs":[1],"input_top_logprobs_shape":[3]}"#;
    assert_eq!(meta_info(nested, r#"{"input_top_logprobs":[]}"#), both);
}

#[test]
fn the_first_row_is_filled_only_where_it_is_empty() {
    let prefill = r#"{"input_token_logprobs":[],"output_token_ids_logprobs":[[[-1,5,null]]]}"#;
    for (decode, merged) in [
        ("[null]", "[[[-1,5,null]]]"),
        ("[ null , [2] ]", "[ [[-1,5,null]] , [2] ]"),
        ("[[],[2]]", "[[[-1,5,null]],[2]]"),
        ("[[2],null]", "[[2],null]"),
        ("[]", "[]"),
        ("null", "null"),
    ] {
        let wrap = |rows: &str| {
            format!(r#"{{"input_token_logprobs":[],"output_token_ids_logprobs":{rows}}}"#)
        };
        assert_eq!(meta_info(prefill, &wrap(decode)), wrap(merged));
    }
}

#[test]
fn an_incremental_stream_gets_the_row_in_its_first_event_and_the_keys_in_all() {
    let prefill = r#"{"meta_info":{"input_token_logprobs":[7],"output_token_ids_logprobs":[[9]]}}"#;
    let data = prefill_data(Merge::InputLogprobs, Batch::Single, prefill).unwrap();
    let mut merger = StreamMerger::new(data);
    for (decode, merged) in [("null", "[9]"), ("[2]", "[2]"), ("[3]", "[3]")] {
        let event = |keys: &str, row: &str| {
            format!(
                "data: {{\"meta_info\":{{\"input_token_logprobs\":[{keys}],\"output_token_ids_logprobs\":[{row}]}}}}\n\n"
            )
        };
        let mut out = BytesMut::new();
        merger
            .event(event("", decode).as_bytes(), &mut out)
            .unwrap();
        assert_eq!(out, event("7", merged).as_bytes());
    }
}

#[test]
fn an_events_index_counts_wherever_it_stands() {
    let prefill = "data: {\"meta_info\":{\"input_token_logprobs\":[1]},\"index\":1}\n\n\
                   data: {\"index\":0,\"meta_info\":{\"input_token_logprobs\":[0]}}\n\ndata: [DONE]\n\n";
    let mut merger =
        StreamMerger::new(prefill_data(Merge::InputLogprobs, Batch::Of(2), prefill).unwrap());
    for (decode, merged) in [
        (
            "data: {\"index\":1,\"meta_info\":{\"input_token_logprobs\":[]}}\r\n\r\n",
            "data: {\"index\":1,\"meta_info\":{\"input_token_logprobs\":[1]}}\r\n\r\n",
        ),
        (
            "id: 7\ndata:{\"meta_info\":{\"input_token_logprobs\":[]},\"index\":0}\n\n",
            "id: 7\ndata:{\"meta_info\":{\"input_token_logprobs\":[0]},\"index\":0}\n\n",
        ),
    ] {
        let mut out = BytesMut::new();
        merger.event(decode.as_bytes(), &mut out).unwrap();
        assert_eq!(out, merged.as_bytes());
    }
}

#[test]
fn what_carries_nothing_to_be_merged_passes_unchanged() {
    let generate = r#"{"meta_info":{"input_token_logprobs":[7]}}"#;
    let echo = r#"{"choices":[{"index":0,"logprobs":{"tokens":["a","b"]}}]}"#;
    for (merge, prefill) in [
        (Merge::InputLogprobs, generate),
        (Merge::Echo, echo),
        (Merge::None, ""),
    ] {
        let mut merger = StreamMerger::new(prefill_data(merge, Batch::Single, prefill).unwrap());
        for event in [
            "data: [DONE]\n\n",
            ": comment\n\n",
            "\n",
            "data: {\"error\":{\"message\":\"m\",\"code\":500}}\n\n",
            "data: {\"choices\":[],\"usage\":{}}\n\n",
            "data: {\"choices\":[{\"index\":0,\"text\":\"\",\"logprobs\":null}]}\n\n",
            "data: {\"a\":\ndata: 1}\n\n",
            "data: plain text\n\n",
            "data: {\"meta_info\":null}\n\n",
        ] {
            let mut out = BytesMut::new();
            merger.event(event.as_bytes(), &mut out).unwrap();
            assert_eq!(out, event.as_bytes());
        }
    }
}

#[test]
fn a_head_is_joined_to_an_empty_list_without_a_comma() {
    let choice = |tokens: &str, top: &str| {
        format!(
            r#"{{"choices":[{{"index":0,"logprobs":{{"tokens":{tokens},"top_logprobs":{top}}}}}]}}"#
        )
    };
    let prefill = choice(r#"[ "a" , "b\"," ,"c"]"#, "[null,[1]]");
    let data = prefill_data(Merge::Echo, Batch::Single, &prefill).unwrap();
    let merged = body(&data, choice("[]", "[ [1] ]").into()).unwrap();
    assert_eq!(merged, choice(r#"[ "a" , "b\","]"#, "[null, [1] ]"));
}

#[test]
fn a_response_that_cannot_be_merged_is_an_error_that_says_why() {
    use Merge::{Echo, InputLogprobs};
    let (one, two) = (Batch::Single, Batch::Of(2));
    for (merge, batch, prefill, message) in [
        (
            InputLogprobs,
            one,
            "",
            "prefill's response is malformed: the text ends too early at byte 0",
        ),
        (
            InputLogprobs,
            one,
            "{} {}",
            "prefill's response is malformed: text after the end of the value at byte 3",
        ),
        (
            InputLogprobs,
            one,
            "[]",
            "prefill's response is malformed: an object was expected at byte 0",
        ),
        (
            InputLogprobs,
            one,
            "{}",
            "prefill's response has no meta_info",
        ),
        (
            InputLogprobs,
            one,
            r#"{"meta_info":{"id":"a"}}"#,
            "prefill's response has no input_token_logprobs",
        ),
        (
            InputLogprobs,
            one,
            r#"{"error":{"message":"m"}}"#,
            "prefill's response is an error",
        ),
        (
            InputLogprobs,
            two,
            r#"{"object":"error","message":"m"}"#,
            "prefill's response is an error",
        ),
        (
            InputLogprobs,
            two,
            r#"[{"meta_info":{}}]"#,
            "prefill's response is for 1 prompts, not for 2",
        ),
        (
            InputLogprobs,
            one,
            "data: [DONE]\n\n",
            "prefill's response is for 0 prompts, not for 1",
        ),
        (
            InputLogprobs,
            one,
            "data: {\"error\":{\"code\":400}}\n\n",
            "prefill's response is an error",
        ),
        (
            InputLogprobs,
            one,
            "data: {\"index\":3,\"meta_info\":{}}\n\n",
            "prefill's response has index 3, but the request has 1 prompts",
        ),
        (
            InputLogprobs,
            one,
            "data: {\"meta_info\":\n\n",
            "prefill's response is malformed: the text ends too early at byte 13",
        ),
        (Echo, one, "{}", "prefill's response has no choices"),
        (
            Echo,
            one,
            r#"{"choices":[]}"#,
            "prefill's response has no logprobs",
        ),
        (
            Echo,
            one,
            r#"{"choices":[{"index":0,"logprobs":null}]}"#,
            "prefill's response has no logprobs",
        ),
        (
            Echo,
            one,
            r#"{"choices":[{"index":0,"logprobs":{}}]}"#,
            "prefill's response has no tokens",
        ),
        (
            Echo,
            one,
            r#"{"choices":[{"index":-1}]}"#,
            "prefill's response has index 18446744073709551615, but the request has 1 prompts",
        ),
        (
            Echo,
            one,
            r#"{"object":"error"}"#,
            "prefill's response is an error",
        ),
    ] {
        let error = prefill_data(merge, batch, prefill).unwrap_err();
        assert_eq!(error.to_string(), message, "{prefill}");
    }
}

#[test]
fn a_response_of_decode_of_another_shape_is_an_error_and_adds_nothing() {
    let prefill = r#"[{"meta_info":{"input_token_logprobs":[7]}}]"#;
    let generate = prefill_data(Merge::InputLogprobs, Batch::Of(1), prefill).unwrap();
    let prefill = r#"{"choices":[{"index":0,"logprobs":{"tokens":["a","b"]}}]}"#;
    let echo = prefill_data(Merge::Echo, Batch::Single, prefill).unwrap();
    for (data, decode, message) in [
        (
            &generate,
            "[]",
            "decode's response is for 0 prompts, not for 1",
        ),
        (&generate, "[{}]", "decode's response has no meta_info"),
        (
            &generate,
            "[{\"error\":1}]",
            "decode's response is an error",
        ),
        (
            &echo,
            "{\"choices\":[]}",
            "decode's response is for 0 prompts, not for 1",
        ),
        (
            &echo,
            "{\"choices\":[{\"index\":0}]}",
            "decode's response has no logprobs",
        ),
        (
            &echo,
            "{\"choices\":[{\"index\":1,\"logprobs\":{}}]}",
            "decode's response has index 1, but the request has 1 prompts",
        ),
    ] {
        let error = body(data, Bytes::from(decode)).unwrap_err();
        assert_eq!(error.to_string(), message, "{decode}");
    }
    for (data, event) in [
        (&generate, "data: {\"meta_info\":{}\n\n"),
        (&generate, "data: {\"index\":1,\"meta_info\":{}}\n\n"),
        (&echo, "data: {\"choices\":[{\"index\":9}]}\n\n"),
    ] {
        let mut out = BytesMut::new();
        StreamMerger::new(data.clone())
            .event(event.as_bytes(), &mut out)
            .unwrap_err();
        assert!(out.is_empty(), "{event}");
    }
}
