use super::super::{params, parse};
use super::*;

const ASK: &str = r#""kv_transfer_params":{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}}"#;

fn facts(route: Route, body: &str) -> Facts {
    parse(route, body.as_bytes()).expect("a body that is valid")
}

fn prefill(route: Route, body: &str) -> String {
    let facts = facts(route, body);
    let body = prefill_body(route, body.as_bytes(), &facts, None).expect("a body for prefill");
    assert!(
        serde_json::from_slice::<serde_json::Value>(&body).is_ok(),
        "{body:?}"
    );
    String::from_utf8(body.to_vec()).expect("UTF-8")
}

fn decode(route: Route, body: &'static str, response: Option<&'static str>) -> String {
    let facts = facts(route, body);
    let params = response.and_then(|response| params(&Bytes::from_static(response.as_bytes())));
    let body = decode_body(
        &Bytes::from_static(body.as_bytes()),
        &facts,
        params.as_ref(),
    );
    assert!(
        serde_json::from_slice::<serde_json::Value>(&body).is_ok(),
        "{body:?}"
    );
    String::from_utf8(body.to_vec()).expect("UTF-8")
}

#[test]
fn prefill_gets_the_clients_bytes_with_the_limit_of_each_endpoint() {
    for (route, body, begin, limit) in [
        (
            Route::ChatCompletions,
            r#"{ "model": "m","max_tokens": 9, "messages":[{"role":"user","content":"\u00e4"}] ,"temperature":0.50}"#,
            r#"{ "model": "m", "messages":[{"role":"user","content":"\u00e4"}] ,"temperature":0.50"#,
            r#""max_tokens":1"#,
        ),
        (
            Route::Completions,
            r#"{"prompt":"a","seed":1}"#,
            r#"{"prompt":"a","seed":1"#,
            r#""max_tokens":1"#,
        ),
        (
            Route::Responses,
            r#"{"input":"a","max_output_tokens":7,"max_tokens":3,"store":true}"#,
            r#"{"input":"a","max_tokens":3"#,
            r#""max_output_tokens":1,"store":false"#,
        ),
        (
            Route::Messages,
            r#"{"max_tokens":5,"messages":[]}"#,
            r#"{"messages":[]"#,
            r#""max_tokens":1"#,
        ),
    ] {
        let wanted = format!(r#"{begin},{limit},"stream":false,{ASK}"#);
        assert_eq!(prefill(route, body), wanted, "{}", route.name());
    }
}

#[test]
fn the_limit_of_the_engines_own_endpoint_is_among_its_sampling_params() {
    for (sampling, limited) in [
        ("{}", r#"{"max_tokens":1}"#),
        (r#"{"max_tokens":9}"#, r#"{"max_tokens":1}"#),
        (
            r#"{"temperature":0}"#,
            r#"{"temperature":0,"max_tokens":1}"#,
        ),
        (
            r#"{ "min_tokens": 2 , "temperature":0, "n":1,"max_tokens":4 }"#,
            r#"{    "temperature":0  ,"max_tokens":1}"#,
        ),
        (
            r#"{"extra_args":{"a":1,"kv_transfer_params":{"b":2}},"max_tokens":4}"#,
            r#"{"extra_args":{"a":1},"max_tokens":1}"#,
        ),
    ] {
        let body = format!(r#"{{"token_ids":[1,2],"sampling_params":{sampling},"stream":true}}"#);
        let wanted =
            format!(r#"{{"token_ids":[1,2],"sampling_params":{limited},"stream":false,{ASK}"#);
        let squeezed = |text: &str| text.replace(' ', "");
        assert_eq!(
            squeezed(&prefill(Route::Generate, &body)),
            squeezed(&wanted),
            "{sampling}"
        );
    }
}

#[test]
fn prefill_gets_nothing_that_may_not_stand_beside_one_token() {
    for spelled in [
        r#"{"stream":true,"stream_options":{"include_usage":true},"prompt":"a","min_tokens":2,"n":1}"#,
        r#"{"prompt":"a","stream":true,"stream":true,"str\u0065am_options":{}}"#,
        r#"{"max_tokens":3,"prompt":"a","max\u005ftokens":4}"#,
        r#"{"kv_transfer_params":{"a":1},"prompt":"a","kv\u005ftransfer_params":[{}]}"#,
    ] {
        let wanted = format!(r#"{{"prompt":"a","max_tokens":1,"stream":false,{ASK}"#);
        assert_eq!(prefill(Route::Completions, spelled), wanted, "{spelled}");
    }
    let chat = r#"{"max_completion_tokens":8,"max_tokens":8}"#;
    let wanted = format!(r#"{{"max_tokens":1,"stream":false,{ASK}"#);
    assert_eq!(prefill(Route::ChatCompletions, chat), wanted);
    assert_eq!(prefill(Route::ChatCompletions, "{}"), wanted);
}

#[test]
fn decode_gets_the_clients_bytes_and_prefills_parameters_byte_for_byte() {
    let response = include_str!("../../../../tests/fixtures/vllm-0.32.0/prefill/chat.json");
    let begin = response.find("{\"do_remote_prefill\"").expect("parameters");
    let end = response[begin..].find('}').expect("their end") + begin + 1;
    let params = &response[begin..end];
    for (body, begin) in [
        (
            r#"{"model": "tiny", "max_tokens": 8 , "stream":true,"stream_options":{"include_usage":true} } "#,
            r#"{"model": "tiny", "max_tokens": 8 , "stream":true,"stream_options":{"include_usage":true} ,"#,
        ),
        (
            r#"{"kv_transfer_params":{"remote_host":"10.0.0.1"},"model":"a","kv\u005ftransfer_params":null}"#,
            r#"{"model":"a","#,
        ),
        (r#"{"kv_transfer_params":{}}"#, "{"),
        ("{ }", "{ "),
        (
            r#"{"vllm_xargs":{"kv_transfer_params":{},"a":1}}"#,
            r#"{"vllm_xargs":{"a":1},"#,
        ),
    ] {
        let wanted = format!(r#"{begin}"kv_transfer_params":{params}}}"#);
        assert_eq!(decode(Route::ChatCompletions, body, Some(response)), wanted);
    }
}

#[test]
fn decode_alone_gets_the_clients_body_without_parameters() {
    let unchanged = r#"{"prompt":["a","b"] } "#;
    assert_eq!(decode(Route::Completions, unchanged, None), unchanged);
    let own = r#"{"prompt":["a","b"],"kv_transfer_params":{"do_remote_prefill":true},"n":2}"#;
    assert_eq!(
        decode(Route::Completions, own, None),
        r#"{"prompt":["a","b"],"n":2}"#
    );
}

#[test]
fn two_requests_that_differ_in_their_own_parameters_alone_are_equal() {
    let part = |body: &str| {
        let facts = facts(Route::Completions, body);
        facts
            .client_part(body.as_bytes())
            .collect::<Vec<_>>()
            .concat()
    };
    let body = r#"{"prompt":"a","kv_transfer_params":{"a":1}}"#;
    assert_eq!(part(body), part(r#"{"prompt":"a"}"#));
}
