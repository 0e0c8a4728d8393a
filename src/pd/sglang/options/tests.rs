#![allow(clippy::unwrap_used)]

use super::super::request::{Invalid, parse};
use super::*;
use Route::{ChatCompletions, Completions, Generate, Messages, Responses};

/// The words in which a request is refused; `None` where it is not.
fn refusal(route: Route, body: &str) -> Option<String> {
    match parse(route, body.as_bytes()) {
        Ok(_) => None,
        Err(Invalid::Option(error)) => Some(error.to_string()),
        Err(other) => panic!("{body}: {other}"),
    }
}

#[test]
fn a_value_that_no_worker_may_get_is_refused_with_its_field_and_bound() {
    for (route, body, words) in [
        (
            Generate,
            r#"{"return_logprob":true,"logprob_start_len":-2}"#,
            "logprob_start_len must be at least -1, got -2.",
        ),
        (
            Generate,
            r#"{"text":["a","b"],"return_logprob":[false,true],"logprob_start_len":[0,-7]}"#,
            "logprob_start_len must be at least -1, got -7.",
        ),
        (
            Generate,
            r#"{"text":"a","return_logprob":[true]}"#,
            "return_logprob must not be a list for one prompt.",
        ),
        (
            Generate,
            r#"{"input_ids":[1,2],"top_logprobs_num":[1,2]}"#,
            "top_logprobs_num must not be a list for one prompt.",
        ),
        (
            Generate,
            r#"{"text":"a","sampling_params":[{}]}"#,
            "sampling_params must not be a list for one prompt.",
        ),
        (
            Generate,
            r#"{"text":"a","rid":["b"]}"#,
            "rid must not be a list for one prompt.",
        ),
        (
            Completions,
            r#"{"prompt":"a","rid":["b","c"]}"#,
            "rid must not be a list for one prompt.",
        ),
        (
            ChatCompletions,
            r#"{"messages":[{}],"rid":["b"]}"#,
            "rid must not be a list for one prompt.",
        ),
        (
            Generate,
            r#"{"text":"a","token_ids_logprob":[[1]]}"#,
            "token_ids_logprob must be a flat list of integers.",
        ),
        (
            Generate,
            r#"{"text":["a","b"],"return_logprob":[true]}"#,
            "return_logprob has 1 values for 2 prompts: a list must have one for each.",
        ),
        (
            Generate,
            r#"{"text":["a","b","c"],"sampling_params":[{},{}]}"#,
            "sampling_params has 2 values for 3 prompts: a list must have one for each.",
        ),
        (
            Generate,
            r#"{"input_ids":[[1],[2]],"token_ids_logprob":[[1]]}"#,
            "token_ids_logprob has 1 values for 2 prompts: a list must have one for each.",
        ),
        (
            Generate,
            r#"{"input_ids":[5, -1]}"#,
            "input_ids must have token ids of at least 0, got -1.",
        ),
        (
            Generate,
            r#"{"input_ids":[[5],[ -12 ,3]]}"#,
            "input_ids must have token ids of at least 0, got -12.",
        ),
        (
            ChatCompletions,
            r#"{"input_ids":[-5]}"#,
            "input_ids must have token ids of at least 0, got -5.",
        ),
        (
            Completions,
            r#"{"prompt":[1,-2]}"#,
            "prompt must have token ids of at least 0, got -2.",
        ),
        (
            Completions,
            r#"{"prompt":[[1],[-2]]}"#,
            "prompt must have token ids of at least 0, got -2.",
        ),
        (
            Generate,
            r#"{"text":"a","token_ids_logprob":[1,-2]}"#,
            "token_ids_logprob must have token ids of at least 0, got -2.",
        ),
        (
            ChatCompletions,
            r#"{"stop_token_ids":[-1]}"#,
            "stop_token_ids must have token ids of at least 0, got -1.",
        ),
        (
            Generate,
            r#"{"text":"a","sampling_params":{"stop_token_ids":[7,-1]}}"#,
            "sampling_params.stop_token_ids must have token ids of at least 0, got -1.",
        ),
        (
            Messages,
            r#"{"top_k":2147483648}"#,
            "top_k must be at most 2147483647, got 2147483648.",
        ),
        (
            Generate,
            r#"{"text":["a","b"],"sampling_params":[{"top_k":99999999999999999999},{}]}"#,
            "sampling_params.top_k must be at most 2147483647, got 9223372036854775807.",
        ),
        (
            Completions,
            r#"{"min_tokens":1e12}"#,
            "min_tokens must be at most 2147483647, got 1000000000000.",
        ),
        (
            Generate,
            r#"{"text":"a","sampling_params":{"min_new_tokens":3000000000}}"#,
            "sampling_params.min_new_tokens must be at most 2147483647, got 3000000000.",
        ),
        (
            ChatCompletions,
            r#"{"logit_bias":{"5":1e39}}"#,
            "logit_bias must have values of at most 3.4028235e38.",
        ),
        (
            Generate,
            r#"{"text":"a","sampling_params":{"logit_bias":{"5":-1e39}}}"#,
            "sampling_params.logit_bias must have values of at most 3.4028235e38.",
        ),
    ] {
        assert_eq!(refusal(route, body).as_deref(), Some(words), "{body}");
    }
}

/// What the schemas of SGLang 0.5.23 take, or refuse in words of their own.
#[test]
fn what_an_ordinary_server_takes_or_explains_itself_is_never_refused() {
    for (route, bodies) in [
        (
            Generate,
            &[
                r#"{"text":"a","return_logprob":true,"top_logprobs_num":0,"logprob_start_len":-1}"#,
                r#"{"text":"a","return_logprob":true,"top_logprobs_num":20,"logprob_start_len":0}"#,
                r#"{"text":"a","return_logprob":null,"top_logprobs_num":null,"logprob_start_len":null}"#,
                // Without `return_logprob` it has no effect.
                r#"{"text":"a","logprob_start_len":-5}"#,
                r#"{"text":"a","return_logprob":false,"logprob_start_len":-5}"#,
                r#"{"text":"a","return_logprob":true,"token_ids_logprob":[0,5]}"#,
                r#"{"text":"a","return_logprob":true,"token_ids_logprob":[]}"#,
                r#"{"text":["a","b"],"return_logprob":[true,false],"top_logprobs_num":[5,0]}"#,
                // The rest of a longer list is ignored.
                r#"{"text":["a","b"],"return_logprob":[true,false,true],"top_logprobs_num":[5,0,7]}"#,
                r#"{"text":["a","b"],"sampling_params":[{"top_k":1},{"top_k":-1}]}"#,
                r#"{"text":["a","b"],"token_ids_logprob":[1,2,3]}"#,
                r#"{"text":["a","b"],"token_ids_logprob":[[1],[2]]}"#,
                r#"{"text":["a","b"],"rid":["c","d"]}"#,
                // Refused by the worker in its own words.
                r#"{"text":["a","b"],"rid":["c"]}"#,
                r#"{"text":"a","sampling_params":{"temperature":-1,"top_p":2,"top_k":0,"min_new_tokens":-1}}"#,
                r#"{"text":"a","top_logprobs_num":"x","logprob_start_len":1.5,"return_logprob":true}"#,
                r#"{"text":[],"return_logprob":[]}"#,
                r#"{"text":["a"],"return_logprob":[true],"logprob_start_len":[0],"sampling_params":[{}]}"#,
                r#"{"input_ids":[0,1,2147483647]}"#,
                r#"{"input_ids":[[0],[-0]]}"#,
                r#"{"input_embeds":[[-0.5,1.0]]}"#,
                r#"{"text":"-1","sampling_params":null}"#,
                r#"{"text":"a","sampling_params":{"top_k":2147483647,"min_new_tokens":2,"stop_token_ids":null}}"#,
                r#"{"text":"a","sampling_params":{"logit_bias":{"5":-100,"6":3.4e38},"stop":["[-1"]}}"#,
                r#"{"text":"a","sampling_params":{"stop_token_ids":[0,5]}}"#,
                // Without a prompt the worker has its own words.
                r#"{"return_logprob":[true],"sampling_params":[{}]}"#,
                // A field of another endpoint.
                r#"{"text":"a","top_logprobs":-1,"logprobs":-1,"prompt":[-1]}"#,
            ][..],
        ),
        (
            ChatCompletions,
            &[
                r#"{"logprobs":true,"top_logprobs":0}"#,
                r#"{"logprobs":true,"top_logprobs":20}"#,
                r#"{"logprobs":false,"top_logprobs":null}"#,
                r#"{"top_logprobs":"5","top_k":-1,"min_tokens":0,"logit_bias":null}"#,
                r#"{"stop_token_ids":null,"input_ids":null}"#,
                r#"{"logit_bias":{"5":"100"},"stop_token_ids":[7]}"#,
                r#"{"messages":[{"role":"user","content":"[-1]"}],"metadata":{"top_k":-7}}"#,
            ],
        ),
        (
            Completions,
            &[
                r#"{"prompt":"a","logprobs":5}"#,
                r#"{"prompt":"a","logprobs":true}"#,
                r#"{"prompt":["[-1]",",-1","-1"],"logprobs":null}"#,
                r#"{"prompt":[[1,2],[3]],"logprobs":0}"#,
                r#"{"prompt":[1,2,3]}"#,
                r#"{"prompt":[]}"#,
                r#"{"prompt":["a"],"rid":["b"]}"#,
            ],
        ),
        (
            Responses,
            &[
                r#"{"top_logprobs":null}"#,
                r#"{"top_logprobs":20,"top_k":50}"#,
            ],
        ),
        (
            Messages,
            &[r#"{"top_k":null}"#, r#"{"top_k":40,"top_logprobs":-1}"#],
        ),
    ] {
        for body in bodies {
            assert_eq!(refusal(route, body), None, "{body}");
        }
    }
}

#[test]
fn the_last_of_repeated_fields_counts() {
    for (body, refused) in [
        (
            r#"{"text":"a","return_logprob":true,"logprob_start_len":-2,"logprob_start_len":1}"#,
            false,
        ),
        (
            r#"{"text":"a","return_logprob":true,"logprob_start_len":1,"logprob_start_len":-2}"#,
            true,
        ),
        (
            r#"{"text":"a","return_logprob":[true],"return_logprob":true}"#,
            false,
        ),
        (r#"{"text":"a","r\u0069d":["b"]}"#, true),
        (
            r#"{"text":"a","sampling_params":{"top_k":3000000000},"sampling_params":{}}"#,
            false,
        ),
        (
            r#"{"text":"a","sampling_params":{"top_k":3000000000,"top_k":1}}"#,
            false,
        ),
        (
            r#"{"text":["a","b"],"sampling_params":[{"top_k":3000000000},{"top_k":1}]}"#,
            true,
        ),
    ] {
        assert_eq!(refusal(Generate, body).is_some(), refused, "{body}");
    }
}

#[test]
fn alternatives_out_of_range_are_refused_by_the_name_of_the_endpoints_field() {
    for (route, body, words) in [
        (
            Generate,
            r#"{"text":["a","b"],"top_logprobs_num":[1,1025]}"#,
            "top_logprobs_num must be in [0, 1024], got 1025.",
        ),
        (
            Generate,
            r#"{"text":["a","b"],"top_logprobs_num":[1,-3]}"#,
            "top_logprobs_num must be in [0, 1024], got -3.",
        ),
        (
            Generate,
            r#"{"text":"a","top_logprobs_num":-1}"#,
            "top_logprobs_num must be in [0, 1024], got -1.",
        ),
        (
            ChatCompletions,
            r#"{"top_logprobs":"1025"}"#,
            "top_logprobs must be in [0, 1024], got 1025.",
        ),
        (
            ChatCompletions,
            r#"{"top_logprobs":"-1"}"#,
            "top_logprobs must be in [0, 1024], got -1.",
        ),
        (
            Responses,
            r#"{"top_logprobs":-2.0}"#,
            "top_logprobs must be in [0, 1024], got -2.",
        ),
        (
            Completions,
            r#"{"logprobs":99999999999999999999}"#,
            "logprobs must be in [0, 1024], got 9223372036854775807.",
        ),
    ] {
        let facts = parse(route, body.as_bytes()).unwrap();
        let error = limit_top_logprobs(route, &facts, 1024).unwrap_err();
        assert_eq!(error.to_string(), words);
    }
    for (route, body) in [
        (
            ChatCompletions,
            r#"{"top_logprobs":5000,"top_logprobs":1024}"#,
        ),
        (ChatCompletions, r#"{"top_logprobs":null}"#),
        (Completions, r#"{"logprobs":true}"#),
        (
            Generate,
            r#"{"text":"a","top_logprobs_num":[],"top_logprobs_num":0}"#,
        ),
        // A field of another endpoint.
        (Messages, r#"{"top_logprobs":-1}"#),
    ] {
        let facts = parse(route, body.as_bytes()).unwrap();
        assert_eq!(limit_top_logprobs(route, &facts, 1024), Ok(()), "{body}");
    }
}

#[test]
fn with_samples_the_lists_are_checked_by_the_rules_for_samples() {
    let body = r#"{"text":"a","sampling_params":[{"n":2}],"rid":["b"]}"#;
    assert_eq!(refusal(Generate, body), None);
}
