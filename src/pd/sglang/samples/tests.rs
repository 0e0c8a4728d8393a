#![allow(clippy::unwrap_used)]

use super::super::super::Engine;
use super::super::request::Invalid;
use super::*;

fn parsed(route: Route, body: &str) -> Facts {
    Engine::Sglang.parse(route, body.as_bytes()).unwrap()
}

fn sample(route: Route, body: &str) -> String {
    let sample = Engine::Sglang.sample_body(route, body.as_bytes(), &parsed(route, body));
    String::from_utf8(sample.to_vec()).unwrap()
}

#[test]
fn the_body_of_a_sample_lacks_only_n_and_the_clients_id() {
    for (route, body, wanted) in [
        (
            Route::ChatCompletions,
            r#"{"n":2, "messages" : [{"n":3}],"rid":"a" }"#,
            r#"{ "messages" : [{"n":3}] }"#,
        ),
        (
            Route::Completions,
            r#"{"prompt":["a","b"],"\u006e":3,"rid":["a","b"],"x":1.50,"n":2}"#,
            r#"{"prompt":["a","b"],"x":1.50}"#,
        ),
        (
            Route::Generate,
            r#"{"text":"a","n":7,"sampling_params":{"temperature":1.0,"n":2}}"#,
            r#"{"text":"a","n":7,"sampling_params":{"temperature":1.0}}"#,
        ),
        (
            Route::Generate,
            r#"{"rid":"a","text":["a","b"],"sampling_params":[{"n":2},{"n":2,"top_k":1}]}"#,
            r#"{"text":["a","b"],"sampling_params":[{},{"top_k":1}]}"#,
        ),
        (
            Route::Generate,
            r#"{"text":"a","sampling_params": [ {"n":2,"top_k":1} , {"n":2,"top_k":2} ] }"#,
            r#"{"text":"a","sampling_params":  {"top_k":1} }"#,
        ),
        (Route::Completions, r#"{"n":"2"}"#, "{}"),
        (Route::Completions, r#"{"n":2,"rid":[7]}"#, r#"{"rid":[7]}"#),
    ] {
        assert_eq!(sample(route, body), wanted, "{body}");
        let facts = parsed(route, wanted);
        assert_eq!(
            (facts.n, facts.batch),
            (1, parsed(route, body).batch),
            "{body}"
        );
    }
}

fn refused(route: Route, body: &str) -> Option<Refusal> {
    match Engine::Sglang.parse(route, body.as_bytes()) {
        Ok(_) => None,
        Err(Invalid::Samples(refusal)) => Some(refusal),
        Err(other) => panic!("{body}: {other}"),
    }
}

const DIFFER: &str = "The parallel_sample_num should be the same for all samples in sample params.";
const MISMATCH: &str =
    "The specified rids length mismatch with the batch_size for batch processing.";
const TWICE: &str = "Duplicate request IDs detected within the request: ['a']";

#[test]
fn what_an_ordinary_server_refuses_with_several_samples_is_refused_in_its_words() {
    let list = |name: &str| format!("Cannot use list {name} with parallel_sample_num > 1");
    let two = r#""text":["a","b"]"#;
    for (fields, message) in [
        (r#""return_logprob":[true,false]"#, &*list("return_logprob")),
        (r#""logprob_start_len":[0,0]"#, &list("logprob_start_len")),
        (r#""top_logprobs_num":[]"#, &list("top_logprobs_num")),
        (
            r#""return_sampling_mask":[true]"#,
            &list("return_sampling_mask"),
        ),
        (
            r#""sampling_logprobs_mode":["a"]"#,
            &list("sampling_logprobs_mode"),
        ),
        (
            r#""token_ids_logprob":[[1],[2]]"#,
            &list("token_ids_logprob"),
        ),
        (
            r#""custom_logit_processor":["a","b"]"#,
            &list("custom_logit_processor"),
        ),
        (
            r#""top_logprobs_num":[1],"return_logprob":[true]"#,
            &list("return_logprob"),
        ),
        (r#""rid":["a"],"return_logprob":[true]"#, MISMATCH),
        (r#""rid":["a","b","c","d"]"#, MISMATCH),
        (r#""rid":["a","a"]"#, TWICE),
        (
            r#""rid":["a","a"],"custom_logit_processor":[]"#,
            &list("custom_logit_processor"),
        ),
        (r#""rid":["a"],"sampling_params":[{"n":2},{"n":3}]"#, DIFFER),
        (r#""sampling_params":[{"n":2},{}]"#, DIFFER),
    ] {
        let body = format!(r#"{{{two},"sampling_params":{{"n":2}},{fields}}}"#);
        let refusal = refused(Route::Generate, &body);
        assert_eq!(
            refusal.map(|refusal| refusal.message).as_deref(),
            Some(message),
            "{body}"
        );
    }
}

#[test]
fn a_refusal_of_chat_or_completions_has_the_shape_of_these_endpoints() {
    let quoted = r#"Duplicate request IDs detected within the request: ["it's", 'b\n']"#;
    let quotes = r#"{"n":2,"prompt":["a","b","c","d"],"rid":["it's","b\n","b\n","it's"]}"#;
    let same = r#"{"n":2,"prompt":["x","y"],"rid":["a","a"]}"#;
    for (route, body, message) in [
        (
            Route::ChatCompletions,
            r#"{"messages":[{}],"n":2,"rid":["a","b"]}"#,
            MISMATCH,
        ),
        (Route::Completions, same, TWICE),
        (Route::Completions, quotes, quoted),
    ] {
        let refusal = refused(route, body).unwrap();
        let wanted = serde_json::json!({
            "object": "error", "message": message, "type": "BadRequestError", "param": null, "code": 400,
        });
        assert_eq!(refusal.body, wanted.to_string(), "{body}");
    }
}

#[test]
fn what_an_ordinary_server_takes_with_several_samples_is_taken() {
    for (route, body) in [
        (
            Route::Generate,
            r#"{"text":"a","sampling_params":{"n":2},"rid":"x"}"#,
        ),
        (
            Route::Generate,
            r#"{"text":"a","sampling_params":{"n":2},"rid":["x"]}"#,
        ),
        (
            Route::Generate,
            r#"{"text":["a","b"],"sampling_params":{"n":2},"rid":["x","y"]}"#,
        ),
        (
            Route::Generate,
            r#"{"text":["a"],"sampling_params":{"n":2},"token_ids_logprob":[1,2]}"#,
        ),
        (
            Route::Generate,
            r#"{"text":["a"],"sampling_params":{"n":2},"return_logprob":[true],"return_logprob":true}"#,
        ),
        // With one sample lists are the rule.
        (
            Route::Generate,
            r#"{"text":["a","b"],"return_logprob":[true,false],"rid":["x","x"]}"#,
        ),
        // Other endpoints do not know these fields.
        (
            Route::ChatCompletions,
            r#"{"n":2,"return_logprob":[true],"rid":["x"]}"#,
        ),
        // No list of texts: the worker refuses it.
        (Route::ChatCompletions, r#"{"n":2,"rid":["x",1]}"#),
    ] {
        assert_eq!(refused(route, body), None, "{body}");
    }
}

#[test]
fn a_list_of_equal_ids_is_compared_in_less_than_quadratic_time() {
    let ids = vec!["\"a\""; 200_000].join(",");
    let prompts = vec!["[1]"; 200_000].join(",");
    let body = format!(r#"{{"input_ids":[{prompts}],"rid":[{ids}],"sampling_params":{{"n":2}}}}"#);
    assert!(
        refused(Route::Generate, &body)
            .unwrap()
            .message
            .ends_with("['a']")
    );
}

fn documents(route: Route, body: &str, samples: &[&str]) -> Result<String, GatherError> {
    let gather = Engine::Sglang.gather(route, &parsed(route, body));
    let samples: Vec<Bytes> = samples.iter().map(|text| text.to_string().into()).collect();
    let gathered = gather.document(&samples)?;
    Ok(String::from_utf8(gathered.to_vec()).unwrap())
}

#[test]
fn extensions_of_all_samples_are_joined() {
    for (samples, wanted) in [
        // Nothing of the samples: a list without elements, in front of the token ids.
        (
            [r#"{"cached_tokens_details":{"device":1}}"#, "{}"],
            r#"{"cached_tokens_details":{"device":1},"spec_tokens_details":[]}"#,
        ),
        (
            [
                r#"{"a":1,"input_ids":[7],"output_ids":[[1,2]]}"#,
                r#"{"output_ids":[[3]]}"#,
            ],
            r#"{"a":1,"spec_tokens_details":[],"input_ids":[7],"output_ids":[[1,2],[3]]}"#,
        ),
        (["{}", "{}"], r#"{"spec_tokens_details":[]}"#),
        (
            [
                r#"{"spec_tokens_details":{"x":1}}"#,
                r#"{"spec_tokens_details":{"x":2}}"#,
            ],
            r#"{"spec_tokens_details":[{"x":1},{"x":2}]}"#,
        ),
    ] {
        let document = |ext: &str| format!(r#"{{"choices":[{{"index":0}}],"sglext":{ext}}}"#);
        let [first, second] = samples.map(document);
        let gathered = documents(Route::ChatCompletions, r#"{"n":2}"#, &[&first, &second]);
        let wanted = format!(r#"{{"choices":[{{"index":0}},{{"index":1}}],"sglext":{wanted}}}"#);
        assert_eq!(gathered.unwrap(), wanted);
    }
}

#[test]
fn the_usage_counts_a_prompt_once_and_what_was_generated_in_full() {
    for (samples, wanted) in [
        (
            [
                r#"{"prompt_tokens":5,"total_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":1},"reasoning_tokens":0,"completion_tokens_details":null}"#,
                r#"{"prompt_tokens":5,"total_tokens":8,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4},"reasoning_tokens":2,"completion_tokens_details":{"reasoning_tokens":2}}"#,
            ],
            r#"{"prompt_tokens":5,"total_tokens":12,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":1},"reasoning_tokens":2,"completion_tokens_details":{"reasoning_tokens":2}}"#,
        ),
        (
            [
                r#"{"completion_tokens":1}"#,
                r#"{"completion_tokens":null}"#,
            ],
            r#"{"completion_tokens":1}"#,
        ),
        (
            [
                r#"{"completion_tokens":1,"reasoning_tokens":0}"#,
                r#"{"completion_tokens":2,"reasoning_tokens":1,"completion_tokens_details":{"reasoning_tokens":1}}"#,
            ],
            r#"{"completion_tokens":3,"reasoning_tokens":1,"completion_tokens_details":{"reasoning_tokens":1}}"#,
        ),
    ] {
        let document = |usage: &str| format!(r#"{{"choices":[{{"index":0}}],"usage":{usage}}}"#);
        let [first, second] = samples.map(document);
        let gathered = documents(Route::Completions, r#"{"n":2}"#, &[&first, &second]).unwrap();
        let wanted = format!(r#"{{"choices":[{{"index":0}},{{"index":1}}],"usage":{wanted}}}"#);
        assert_eq!(gathered, wanted);
    }
}

#[test]
fn a_document_that_does_not_fit_the_request_is_an_error_that_names_the_sample() {
    let good = r#"{"choices":[{"index":0}]}"#;
    for (second, message) in [
        ("{", "is malformed: the text ends too early at byte 1"),
        ("{}", "has no choices"),
        (r#"{"choices":[{}]}"#, "has no index"),
        (r#"{"choices":[]}"#, "is for 0 prompts, not for 1"),
        (
            r#"{"choices":[{"index":1}]}"#,
            "has index 1, which is no prompt of the request",
        ),
        (r#"{"object":"error"}"#, "reports an error"),
    ] {
        for route in [Route::ChatCompletions, Route::Completions] {
            let error = documents(route, r#"{"n":2}"#, &[good, second]).unwrap_err();
            let wanted = format!("the response for sample 1 {message}");
            assert_eq!(error.to_string(), wanted);
        }
    }
    let two = r#"{"n":2,"prompt":["a","b"]}"#;
    let both = r#"{"choices":[{"index":0},{"index":1}]}"#;
    let same = r#"{"choices":[{"index":0},{"index":0}]}"#;
    let error = documents(Route::Completions, two, &[both, same]).unwrap_err();
    let fault = GatherFault::Missing("index");
    assert_eq!(error, GatherError { sample: 1, fault });
    for (text, samples, message) in [
        (
            r#"["a"]"#,
            ["[{}]", "[{},{}]"],
            "is for 2 prompts, not for 1",
        ),
        (
            r#""a""#,
            ["{}", "[]"],
            "is malformed: an object was expected at byte 0",
        ),
    ] {
        let body = format!(r#"{{"text":{text},"sampling_params":{{"n":2}}}}"#);
        let error = documents(Route::Generate, &body, &samples).unwrap_err();
        let wanted = format!("the response for sample 1 {message}");
        assert_eq!(error.to_string(), wanted);
    }
}

#[test]
fn no_prompt_gives_no_item() {
    let body = r#"{"text":[],"sampling_params":{"n":2}}"#;
    assert_eq!(
        documents(Route::Generate, body, &["[]", " [ ]"]).unwrap(),
        "[]"
    );
}

/// The output of one sample's events, of a request for two samples.
fn streamed(route: Route, body: &str, events: &[&str]) -> Result<String, GatherError> {
    let gather = Engine::Sglang.gather(route, &parsed(route, body));
    let mut stream = gather.stream(1 << 10);
    let mut out = bytes::BytesMut::new();
    for event in events {
        stream.push(1, event.to_string().into(), &mut out)?;
    }
    Ok(String::from_utf8(out.to_vec()).unwrap())
}

#[test]
fn an_index_is_written_where_the_event_has_none_and_else_replaced() {
    let one = r#"{"text":"a","sampling_params":{"n":2}}"#;
    let two = r#"{"text":["a","b"],"sampling_params":{"n":2}}"#;
    for (body, event, wanted) in [
        (
            one,
            r#"{"text":"\"index\":7}"}"#,
            r#"{"text":"\"index\":7}","index":1}"#,
        ),
        (
            one,
            r#"{"a":1,"b":{"index":3}}"#,
            r#"{"a":1,"b":{"index":3},"index":1}"#,
        ),
        (two, r#"{"a":1,"index":1}"#, r#"{"a":1,"index":3}"#),
        (two, r#"{"index":1,"a":1}"#, r#"{"index":3,"a":1}"#),
        (
            two,
            r#"{"index": 0 ,"a":{"index":1}}"#,
            r#"{"index": 1 ,"a":{"index":1}}"#,
        ),
    ] {
        let event = format!("data: {event}\n\n");
        let wanted = format!("data: {wanted}\n\n");
        assert_eq!(streamed(Route::Generate, body, &[&event]).unwrap(), wanted);
    }
    for (event, fault) in [
        ("data: {\"a\":1}\n\n", GatherFault::Missing("index")),
        ("data: {\"a\":1,\"index\":2}\n\n", GatherFault::Index(2)),
        (
            "data: {\"a\":1,\"index\":-1}\n\n",
            GatherFault::Missing("index"),
        ),
    ] {
        assert_eq!(
            streamed(Route::Generate, two, &[event]).unwrap_err().fault,
            fault
        );
    }
}

#[test]
fn a_chunk_with_several_choices_gets_the_index_of_each() {
    let chunk = |choices: &str| format!("data: {{\"created\":1,\"choices\":[{choices}]}}\n\n");
    let one = chunk(r#"{"index":0,"finish_reason":null}"#);
    let both = chunk(r#"{"index":0,"text":"},{\"index\":1"},{"index":1}"#);
    let body = r#"{"prompt":["a","b"],"n":2}"#;
    let wanted = [
        chunk(r#"{"index":1,"finish_reason":null}"#),
        chunk(r#"{"index":1,"text":"},{\"index\":1"},{"index":3}"#),
        chunk(r#"{"index":1,"finish_reason":null}"#),
    ];
    let out = streamed(Route::Completions, body, &[&one, &both, &one]).unwrap();
    assert_eq!(out, wanted.concat());
}

#[test]
fn comments_pass_and_nothing_comes_behind_the_end_marker() {
    let body = r#"{"n":2}"#;
    let events = [
        ": hello\n\n",
        "data: [DONE]\n\n",
        ": late\n\n",
        "data: {}\n\n",
    ];
    assert_eq!(
        streamed(Route::ChatCompletions, body, &events).unwrap(),
        ": hello\n\n"
    );
    let long = format!("data: {}", "x".repeat(1 << 10));
    let error = streamed(Route::ChatCompletions, body, &[&long]).unwrap_err();
    assert_eq!(error.fault, GatherFault::TooLong(1 << 10));
}
