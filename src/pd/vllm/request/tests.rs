use super::super::steps::prefill_body;
use super::*;

fn facts(route: Route, body: &str) -> Facts {
    parse(route, body.as_bytes()).expect("a body that is valid")
}

#[test]
fn one_prompt_goes_through_prefill() {
    for (route, body) in [
        (
            Route::ChatCompletions,
            r#"{"messages":[],"logprobs":true,"top_logprobs":2,"n":1,"seed":1}"#,
        ),
        (
            Route::ChatCompletions,
            r#"{"max_completion_tokens":null,"stream":true,"stream_options":{}}"#,
        ),
        (
            Route::ChatCompletions,
            r#"{"prompt_logprobs":null,"min_tokens":0}"#,
        ),
        (Route::Completions, r#"{"prompt":"a","echo":true}"#),
        (
            Route::Completions,
            r#"{"prompt":"a","logprobs":5,"echo":false}"#,
        ),
        (Route::Completions, r#"{"prompt":["a"]}"#),
        (Route::Completions, r#"{"prompt":[1,2,3]}"#),
        (Route::Completions, r#"{"prompt":[[1,2,3]]}"#),
        (Route::Completions, r#"{"prompt":"a","n":2,"n":1}"#),
        (
            Route::Responses,
            r#"{"input":"a","previous_response_id":null,"store":true}"#,
        ),
        (
            Route::Messages,
            r#"{"messages":[],"max_tokens":4,"stream":true}"#,
        ),
        (
            Route::Generate,
            r#"{"token_ids":[1],"sampling_params":{"max_tokens":4}}"#,
        ),
    ] {
        let facts = facts(route, body);
        assert!(facts.needs_prefill(), "{body}");
        assert!(
            prefill_body(route, body.as_bytes(), &facts, None).is_some(),
            "{body}"
        );
    }
}

#[test]
fn a_request_whose_blocks_might_not_be_fetched_once_goes_to_decode_as_it_is() {
    for (route, body) in [
        // Several prompts, or none.
        (Route::Completions, r#"{"prompt":["a","b"]}"#),
        (Route::Completions, r#"{"prompt":[[1],[2]]}"#),
        (Route::Completions, r#"{"prompt":[]}"#),
        (
            Route::ChatCompletions,
            r#"{"messages":[[{"role":"user","content":"a"}],[]]}"#,
        ),
        (Route::Completions, r#"{"prompt_embeds":"AAAA"}"#),
        // Several samples.
        (Route::ChatCompletions, r#"{"n":2}"#),
        (Route::ChatCompletions, r#"{"n":"2"}"#),
        (Route::Completions, r#"{"n":1,"n":3}"#),
        (Route::Generate, r#"{"sampling_params":{"n":4}}"#),
        (Route::ChatCompletions, r#"{"use_beam_search":true}"#),
        // Logprobs of the prompt.
        (Route::ChatCompletions, r#"{"prompt_logprobs":0}"#),
        (
            Route::Completions,
            r#"{"prompt":"a","echo":true,"logprobs":0}"#,
        ),
        (
            Route::Generate,
            r#"{"sampling_params":{"prompt_logprobs":1}}"#,
        ),
        // What one worker has stored.
        (Route::Responses, r#"{"previous_response_id":"resp_1"}"#),
        (Route::Responses, r#"{"background":true}"#),
        // What decode would refuse.
        (Route::ChatCompletions, r#"{"max_tokens":0}"#),
        (
            Route::ChatCompletions,
            r#"{"max_completion_tokens":"many"}"#,
        ),
        (Route::Completions, r#"{"min_tokens":-1}"#),
        (Route::Responses, r#"{"max_output_tokens":1.5}"#),
        (Route::Responses, r#"{"store":"maybe"}"#),
        (Route::Messages, r#"{"max_tokens":[]}"#),
        (Route::Messages, "{}"),
        (Route::Messages, r#"{"max_tokens":8,"max_tokens":null}"#),
        (Route::Messages, r#"{"max_tokens":8,"stream":"yes"}"#),
        (Route::ChatCompletions, r#"{"stream_options":{}}"#),
        (
            Route::ChatCompletions,
            r#"{"stream":true,"stream_options":1}"#,
        ),
        (Route::Generate, r#"{"token_ids":[1]}"#),
        (
            Route::Generate,
            r#"{"sampling_params":{},"sampling_params":null}"#,
        ),
    ] {
        let facts = facts(route, body);
        assert!(!facts.needs_prefill(), "{body}");
        assert_eq!(
            prefill_body(route, body.as_bytes(), &facts, None),
            None,
            "{body}"
        );
    }
}

#[test]
fn the_facts_are_those_that_the_proxy_goes_by() {
    let stream = facts(Route::ChatCompletions, r#"{"stream":true,"n":3}"#);
    assert!(stream.stream);
    assert_eq!(
        (stream.n, stream.batch),
        (1, Batch::Single),
        "samples are the engine's own"
    );
    let list = facts(Route::Completions, r#"{"prompt":["a","b"],"stream":null}"#);
    assert_eq!((list.stream, list.batch), (false, Batch::Of(2)));
}

#[test]
fn a_body_that_is_no_object_is_refused() {
    for body in ["", "[]", "{", r#"{"a":}"#] {
        assert!(
            parse(Route::ChatCompletions, body.as_bytes()).is_err(),
            "{body}"
        );
    }
}
