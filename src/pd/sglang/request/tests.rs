#![allow(clippy::unwrap_used)]

use super::*;

fn facts(route: Route, body: &str) -> Facts {
    parse(route, body.as_bytes()).unwrap_or_else(|e| panic!("{body}: {e}"))
}

#[test]
fn stream_is_true_as_the_worker_reads_it() {
    for (value, strict, lax) in [
        ("true", true, true),
        ("false", false, false),
        ("null", false, false),
        ("1", false, true),
        ("1.0", false, true),
        ("2", false, false),
        ("\"TRUE\"", false, true),
        ("\"yes\"", false, true),
        ("\" true\"", false, false),
        ("[true]", false, false),
    ] {
        let body = format!("{{\"stream\":{value}}}");
        assert_eq!(facts(Route::Generate, &body).stream, strict, "{body}");
        for route in Route::ALL
            .into_iter()
            .filter(|route| *route != Route::Generate)
        {
            assert_eq!(facts(route, &body).stream, lax, "{body}");
        }
    }
    assert!(!facts(Route::Generate, "{}").stream);
}

#[test]
fn the_last_of_repeated_keys_counts_in_any_spelling() {
    let stream = |body| facts(Route::ChatCompletions, body).stream;
    assert!(stream(r#"{"stream":false,"stream":true}"#));
    assert!(!stream(r#"{"stream":true,"str\u0065am":false}"#));
    let body = r#"{"text":["a","b"],"t\u0065xt":"a","sampling_params":{"n":3,"n":2}}"#;
    assert_eq!(facts(Route::Generate, body).batch, Batch::Single);
    assert_eq!(facts(Route::Generate, body).n, 2);
    assert_eq!(
        facts(Route::Generate, r#"{"rid":"a","rid":null}"#).rid,
        None
    );
}

#[test]
fn generate_is_a_batch_when_the_first_given_kind_of_prompt_is_a_list() {
    for (body, batch) in [
        (r#"{}"#, Batch::Single),
        (r#"{"text":"a"}"#, Batch::Single),
        (r#"{"text":[]}"#, Batch::Of(0)),
        (r#"{"text":["a"]}"#, Batch::Of(1)),
        (r#"{"text":["a","[,]","{"]}"#, Batch::Of(3)),
        (r#"{"text":["a",1]}"#, Batch::Single),
        (r#"{"text":null,"input_ids":[[1],[2]]}"#, Batch::Of(2)),
        (r#"{"input_ids":[[1],[2]],"text":"a"}"#, Batch::Single),
        (r#"{"input_ids":[1,2]}"#, Batch::Single),
        (r#"{"input_ids":[]}"#, Batch::Single),
        (r#"{"input_ids":[[]]}"#, Batch::Of(1)),
        (r#"{"input_ids":[[1],2]}"#, Batch::Single),
        (r#"{"input_embeds":[[0.5,1],[2,3]]}"#, Batch::Single),
        (r#"{"input_embeds":[[[0.5,1]],[[2,3]]]}"#, Batch::Of(2)),
        (r#"{"input_embeds":[]}"#, Batch::Single),
        (r#"{"prompt":["a","b"]}"#, Batch::Single),
    ] {
        assert_eq!(facts(Route::Generate, body).batch, batch, "{body}");
    }
}

#[test]
fn completions_is_a_batch_when_the_prompt_is_a_list_of_strings_or_of_lists() {
    for (body, batch) in [
        (r#"{"prompt":"a"}"#, Batch::Single),
        (r#"{"prompt":[1,2]}"#, Batch::Single),
        (r#"{"prompt":["a"]}"#, Batch::Of(1)),
        (r#"{"prompt":["1","2"]}"#, Batch::Of(2)),
        (r#"{"prompt":[[1],[2],[]]}"#, Batch::Of(3)),
        (r#"{"prompt":["1",2]}"#, Batch::Single),
        (r#"{"prompt":["1",[2]]}"#, Batch::Single),
        (r#"{"prompt":[]}"#, Batch::Single),
        (r#"{"text":["a","b"]}"#, Batch::Single),
    ] {
        assert_eq!(facts(Route::Completions, body).batch, batch, "{body}");
        assert_eq!(
            facts(Route::ChatCompletions, body).batch,
            Batch::Single,
            "{body}"
        );
    }
}

#[test]
fn n_is_what_the_worker_would_sample() {
    for (value, strict, lax) in [
        ("2", 2, 2),
        ("1", 1, 1),
        ("0", 1, 1),
        ("-2", 1, 1),
        ("null", 1, 1),
        ("2.0", 1, 2),
        ("2.5", 1, 1),
        ("\"2\"", 1, 2),
        ("\" 1_0 \"", 1, 10),
        ("[2]", 1, 1),
        ("9223372036854775807", i64::MAX as u64, i64::MAX as u64),
        ("1000000000000000000000", i64::MAX as u64, i64::MAX as u64),
    ] {
        let body = format!("{{\"n\":{value},\"sampling_params\":{{\"n\":{value}}},\"best_of\":9}}");
        assert_eq!(facts(Route::Generate, &body).n, strict, "{body}");
        assert_eq!(facts(Route::Completions, &body).n, lax, "{body}");
        assert_eq!(facts(Route::ChatCompletions, &body).n, lax, "{body}");
        assert_eq!(facts(Route::Messages, &body).n, 1, "{body}");
    }
    for (list, n) in [
        (r#"[{"n":4},{"n":4,"top_k":1}]"#, 4),
        (r#"[{"n":0},{}]"#, 1),
        // The worker refuses a value that is no integer.
        (r#"[{"n":4},{"n":4.0}]"#, 1),
        (r#"[{"n":4},{"n":null}]"#, 1),
    ] {
        let body = format!("{{\"sampling_params\":{list}}}");
        assert_eq!(facts(Route::Generate, &body).n, n, "{list}");
    }
}

#[test]
fn prompt_logprobs_are_merged_only_when_prefill_has_some() {
    for (fields, merge) in [
        (r#""logprob_start_len":0"#, Merge::None),
        (r#""return_logprob":true"#, Merge::None),
        (r#""return_logprob":true,"top_logprobs_num":2"#, Merge::None),
        (
            r#""return_logprob":true,"logprob_start_len":-1"#,
            Merge::None,
        ),
        (
            r#""return_logprob":true,"logprob_start_len":[-1,-1]"#,
            Merge::None,
        ),
        (
            r#""return_logprob":true,"logprob_start_len":null,"token_ids_logprob":[]"#,
            Merge::None,
        ),
        (
            r#""return_logprob":true,"token_ids_logprob":null"#,
            Merge::None,
        ),
        (
            r#""return_logprob":[false],"logprob_start_len":0"#,
            Merge::None,
        ),
        (r#""return_logprob":1,"logprob_start_len":0"#, Merge::None),
        (
            r#""return_logprob":true,"logprob_start_len":0"#,
            Merge::InputLogprobs,
        ),
        (
            r#""return_logprob":[false,true],"logprob_start_len":[-1,7]"#,
            Merge::InputLogprobs,
        ),
        (
            r#""return_logprob":true,"token_ids_logprob":[3]"#,
            Merge::InputLogprobs,
        ),
        (
            r#""return_logprob":true,"token_ids_logprob":[[3],[4]]"#,
            Merge::InputLogprobs,
        ),
        (r#""echo":true,"logprobs":1"#, Merge::None),
    ] {
        assert_eq!(
            facts(Route::Generate, &format!("{{{fields}}}")).merge,
            merge,
            "{fields}"
        );
    }
}

#[test]
fn an_echoed_prompt_is_merged_when_logprobs_is_a_number_other_than_zero() {
    for (fields, merge) in [
        (r#""echo":true"#, Merge::None),
        (r#""logprobs":1"#, Merge::None),
        (r#""echo":true,"logprobs":null"#, Merge::None),
        (r#""echo":true,"logprobs":0"#, Merge::None),
        (r#""echo":true,"logprobs":false"#, Merge::None),
        (r#""echo":false,"logprobs":1"#, Merge::None),
        (r#""echo":true,"logprobs":1"#, Merge::Echo),
        (r#""echo":1,"logprobs":true"#, Merge::Echo),
        (r#""echo":true,"logprobs":"2""#, Merge::Echo),
        (r#""echo":true,"logprobs":-1"#, Merge::Echo),
    ] {
        let body = format!("{{{fields}}}");
        assert_eq!(facts(Route::Completions, &body).merge, merge, "{fields}");
        assert_eq!(
            facts(Route::ChatCompletions, &body).merge,
            Merge::None,
            "{fields}"
        );
    }
}

#[test]
fn the_clients_own_request_id_is_found() {
    for (value, rid) in [
        (r#""a\u0062""#, Some(Rid::One("ab".to_owned()))),
        (r#"["a","b"]"#, Some(Rid::Many(2))),
        ("null", None),
        ("7", None),
    ] {
        assert_eq!(
            facts(Route::Generate, &format!("{{\"rid\":{value}}}")).rid,
            rid,
            "{value}"
        );
    }
}

#[test]
fn what_is_no_object_is_invalid_with_a_clear_word() {
    let deep = "[".repeat(200);
    for (body, message) in [
        (
            "",
            "the body is not valid JSON: the text ends too early at byte 0",
        ),
        (
            "{\"a\":}",
            "the body is not valid JSON: a value was expected at byte 5",
        ),
        (
            "{} x",
            "the body is not valid JSON: text after the end of the value at byte 3",
        ),
        ("[1]", "the body must be a JSON object"),
        (
            "[1",
            "the body is not valid JSON: the text ends too early at byte 2",
        ),
        (
            &deep,
            "the body is nested more than 128 levels deep at byte 128",
        ),
    ] {
        for route in Route::ALL {
            let invalid = parse(route, body.as_bytes()).unwrap_err();
            assert_eq!(invalid.to_string(), message, "{body}");
        }
    }
}
