#![allow(clippy::unwrap_used)]

use super::super::super::super::Engine;
use super::*;

fn refusal(route: Route, body: &str) -> Option<Refusal> {
    match Engine::Sglang.parse(route, body.as_bytes()) {
        Ok(_) => None,
        Err(Invalid::Samples(refusal)) => Some(refusal),
        Err(other) => panic!("{body}: {other}"),
    }
}

fn n(route: Route, body: &str) -> u64 {
    Engine::Sglang.parse(route, body.as_bytes()).unwrap().n
}

const LIST: &str = r#""sampling_params":{"n":2},"return_logprob":[true]"#;

#[test]
fn what_the_worker_looks_for_first_is_left_to_it() {
    for (prompt, refused) in [
        // "Either text, input_ids or input_embeds should be provided."
        ("", false),
        (r#""text":null,"input_ids":null,"#, false),
        (
            r#""text":"a","input_ids":[1],"input_embeds":[[0.1]],"#,
            false,
        ),
        // "input_ids cannot be empty."
        (r#""input_ids":[ ],"#, false),
        // `text` decides, and may be empty.
        (r#""text":"a","input_ids":[],"#, true),
        (r#""text":"","#, true),
        (r#""text":[],"#, true),
        (r#""input_embeds":[[0.1]],"#, true),
        (r#""input_ids":[[1],[2]],"text":null,"#, true),
    ] {
        let body = format!("{{{prompt}{LIST}}}");
        assert_eq!(refusal(Route::Generate, &body).is_some(), refused, "{body}");
    }
    let rid = r#""n":2,"rid":["a","b"]"#;
    for (route, prompt, refused) in [
        (Route::Completions, "", false),
        (Route::Completions, r#""prompt":"","#, false),
        (Route::Completions, r#""prompt":[],"#, false),
        (Route::Completions, r#""prompt":"a","#, true),
        (Route::Completions, r#""prompt":[1,2],"#, true),
        (Route::ChatCompletions, r#""prompt":"a","#, false),
        (Route::ChatCompletions, r#""messages":[],"#, false),
        (Route::ChatCompletions, r#""messages":[{}],"#, true),
    ] {
        let body = format!("{{{prompt}{rid}}}");
        assert_eq!(refusal(route, &body).is_some(), refused, "{body}");
    }
    // No object: the worker's schema refuses it.
    let null = r#"{"text":["a","b"],"sampling_params":[{"n":2},null]}"#;
    assert_eq!(
        (refusal(Route::Generate, null), n(Route::Generate, null)),
        (None, 1)
    );
}

#[test]
fn a_refusal_because_of_n_comes_before_those_of_options() {
    let body = format!(r#"{{"text":"a",{LIST},"token_ids_logprob":[-1]}}"#);
    let message = refusal(Route::Generate, &body).unwrap().message;
    assert_eq!(
        message,
        "Cannot use list return_logprob with parallel_sample_num > 1"
    );
}

#[test]
fn only_generate_refuses_in_a_stream_whose_head_is_out() {
    let body = format!(r#"{{"text":"a",{LIST},"stream":true}}"#);
    let streamed = refusal(Route::Generate, &body).unwrap();
    assert!(streamed.streamed);
    // Source: SGLang 0.5.23, the captured stream of another error (`n_err_gen_stream_too_long`).
    assert_eq!(
        streamed.body,
        "data: {\"error\":{\"message\":\"Cannot use list return_logprob with parallel_sample_num > 1\",\
         \"type\":\"invalid_request_error\",\"code\":400,\"retryable\":false}}\n\ndata: [DONE]\n\n"
    );
    for (route, prompt) in [
        (Route::Completions, r#""prompt":"a""#),
        (Route::ChatCompletions, r#""messages":[{}]"#),
    ] {
        let body = format!(r#"{{{prompt},"n":2,"rid":["a","b"],"stream":true}}"#);
        let refusal = refusal(route, &body).unwrap();
        assert!(
            !refusal.streamed && refusal.body.starts_with(b"{"),
            "{body}"
        );
    }
}

#[test]
fn a_number_of_samples_may_be_as_long_as_in_python_but_no_fraction() {
    const MANY: u64 = i64::MAX.cast_unsigned();
    for (number, samples) in [
        ("9223372036854775807", MANY),
        ("9223372036854775808", MANY),
        ("18446744073709551616", MANY),
        ("-9223372036854775809", 1),
        // The worker refuses these.
        ("1e300", 1),
        ("2.0", 1),
        ("null", 1),
    ] {
        let body = format!(r#"{{"text":"a","sampling_params":{{"n":{number}}}}}"#);
        assert_eq!(n(Route::Generate, &body), samples, "{number}");
    }
}
