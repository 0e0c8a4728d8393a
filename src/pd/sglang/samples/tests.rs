#![allow(clippy::unwrap_used)]

use super::super::super::Engine;
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
