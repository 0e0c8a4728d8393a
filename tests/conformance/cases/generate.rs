//! `/generate`: forms of the prompt by streaming by logprob options, and the fields that a proxy parses.
//!
//! Source: SGLang 0.5.23, `srt/managers/io_struct.py` (`GenerateReqInput`).

use http::Method;
use serde_json::{Value, json};

use super::{Case, FEW, Material, Text, greedy, ids, way, with};

const PATH: &str = "/generate";

pub(super) fn cases(material: &Material) -> Vec<Case> {
    [
        options_by_form(material),
        options_by_length(material),
        lengths_of_answers(material),
        lists_per_item(material),
        parameters(material),
        spellings(material),
    ]
    .concat()
}

/// An option that SGLang accepts only without streaming.
const FLAT_OUTPUT: &str = "flat on both sides";

/// A form of the prompt, and the length of its shortest prompt.
struct Form {
    name: &'static str,
    body: Value,
    shortest: usize,
}

fn forms(material: &Material) -> [Form; 6] {
    let few = material.few();
    let one = &material.texts[0];
    let form = |name, body, shortest| Form {
        name,
        body,
        shortest,
    };
    [
        form("text", json!({ "text": few.text }), few.tokens),
        form(
            "texts",
            json!({ "text": [few.text, one.text, "three more words"] }),
            one.tokens,
        ),
        form(
            "list of one text",
            json!({ "text": [few.text] }),
            few.tokens,
        ),
        form("ids", json!({ "input_ids": ids(9, 1) }), 9),
        form(
            "lists of ids",
            json!({ "input_ids": [ids(5, 1), ids(12, 2), ids(7, 3)] }),
            5,
        ),
        form(
            "list of one list of ids",
            json!({ "input_ids": [ids(9, 4)] }),
            9,
        ),
    ]
}

/// The same rows as arrays of numbers.
fn flat_options() -> Vec<(&'static str, Value)> {
    let start = json!({ "return_logprob": true, "logprob_start_len": 0 });
    vec![
        (
            "flat top 3",
            with(
                &start,
                &json!({ "top_logprobs_num": 3, "return_flat_raw_top_logprobs": true }),
            ),
        ),
        (
            "flat in base64",
            with(
                &start,
                &json!({
                    "top_logprobs_num": 3, "return_flat_raw_top_logprobs": true, "return_flat_raw_top_logprobs_b64": true,
                }),
            ),
        ),
        (
            FLAT_OUTPUT,
            with(
                &start,
                &json!({
                    "top_logprobs_num": 3, "return_flat_raw_top_logprobs": true, "return_flat_raw_output_top_logprobs": true,
                }),
            ),
        ),
    ]
}

fn options(shortest: usize) -> Vec<(&'static str, Value)> {
    let from = |start: usize| json!({ "return_logprob": true, "logprob_start_len": start });
    let start = from(0);
    vec![
        ("no logprobs", json!({})),
        ("default start", json!({ "return_logprob": true })),
        (
            "default start, top 5",
            json!({ "return_logprob": true, "top_logprobs_num": 5 }),
        ),
        ("start 0", start.clone()),
        ("start 3", from(shortest.min(3))),
        ("start at the last", from(shortest - 1)),
        ("start at the end", from(shortest)),
        (
            "top 1 with texts",
            with(
                &start,
                &json!({ "top_logprobs_num": 1, "return_text_in_logprobs": true }),
            ),
        ),
        ("top 5", with(&start, &json!({ "top_logprobs_num": 5 }))),
        (
            "token ids, default start",
            json!({ "return_logprob": true, "token_ids_logprob": [5, 700, 33] }),
        ),
        (
            "token ids, top 2 and texts",
            with(
                &start,
                &json!({
                    "token_ids_logprob": [5, 700, 33], "top_logprobs_num": 2, "return_text_in_logprobs": true,
                }),
            ),
        ),
        (
            "asked for with false",
            json!({ "return_logprob": false, "logprob_start_len": 0 }),
        ),
    ]
}

fn case(name: impl Into<String>, body: &Value, stream: bool, more: &Value) -> Case {
    let base = json!({ "stream": stream, "sampling_params": greedy(FEW) });
    let name = format!("{}, {}", way(stream), name.into());
    Case::post(name, PATH, &with(&with(body, &base), more))
}

fn options_by_form(material: &Material) -> Vec<Case> {
    let mut cases = Vec::new();
    for form in forms(material) {
        for (option, more) in [options(form.shortest), flat_options()].concat() {
            for stream in [false, true] {
                let case = case(
                    format!("{}: {option}", form.name),
                    &form.body,
                    stream,
                    &more,
                );
                cases.push(match (option, stream) {
                    (FLAT_OUTPUT, true) => case.status(400),
                    _ => case,
                });
            }
        }
    }
    cases
}

fn options_by_length(material: &Material) -> Vec<Case> {
    let [one, _, long, longest] = &material.texts;
    let options = [
        ("no logprobs", json!({})),
        (
            "start 0",
            json!({ "return_logprob": true, "logprob_start_len": 0 }),
        ),
        (
            "top 5 with texts",
            json!({
                "return_logprob": true, "logprob_start_len": 0, "top_logprobs_num": 5,
                "return_text_in_logprobs": true,
            }),
        ),
    ];
    let mut cases = Vec::new();
    for Text { name, text, tokens } in [one, long, longest] {
        for (option, more) in &options {
            for stream in [false, true] {
                let text = json!({ "text": text });
                cases.push(case(
                    format!("{name} as text: {option}"),
                    &text,
                    stream,
                    more,
                ));
                let list = json!({ "input_ids": ids(*tokens, 7) });
                cases.push(case(
                    format!("{name} as ids: {option}"),
                    &list,
                    stream,
                    more,
                ));
            }
        }
    }
    cases
}

fn lengths_of_answers(material: &Material) -> Vec<Case> {
    let text = json!({ "text": material.few().text });
    let logprobs = json!({
        "return_logprob": true, "logprob_start_len": 0, "top_logprobs_num": 1, "token_ids_logprob": [9],
    });
    let mut cases = Vec::new();
    for tokens in [0, 1, 2, 32] {
        for (option, more) in [("no logprobs", json!({})), ("logprobs", logprobs.clone())] {
            for stream in [false, true] {
                let more = with(&more, &json!({ "sampling_params": greedy(tokens) }));
                cases.push(case(
                    format!("{tokens} new tokens: {option}"),
                    &text,
                    stream,
                    &more,
                ));
            }
        }
    }
    cases
}

/// Options that a batch may have per item.
fn lists_per_item(material: &Material) -> Vec<Case> {
    let texts = json!({ "text": ["the first of them", material.few().text, "and the last"] });
    let start = json!({ "return_logprob": true, "logprob_start_len": 0 });
    let lists = [
        (
            "return_logprob",
            json!({ "return_logprob": [true, false, true], "logprob_start_len": 0 }),
        ),
        (
            "return_logprob of none",
            json!({ "return_logprob": [false, false, false], "logprob_start_len": 0 }),
        ),
        (
            "logprob_start_len",
            json!({ "return_logprob": true, "logprob_start_len": [0, -1, 2] }),
        ),
        (
            "top_logprobs_num",
            with(&start, &json!({ "top_logprobs_num": [2, 0, 1] })),
        ),
        (
            "token_ids_logprob",
            with(
                &start,
                &json!({ "token_ids_logprob": [[5, 6], [700], [8, 9, 10]] }),
            ),
        ),
        (
            "all",
            json!({
                "return_logprob": [true, false, true], "logprob_start_len": [1, -1, -1],
                "top_logprobs_num": [3, 0, 1], "token_ids_logprob": [[5], [6], [7]],
            }),
        ),
        (
            "sampling_params",
            with(
                &start,
                &json!({ "sampling_params": [greedy(1), greedy(9), greedy(4)] }),
            ),
        ),
        (
            "rid",
            with(
                &start,
                &json!({ "rid": ["conformance-a", "conformance-b", "conformance-c"] }),
            ),
        ),
    ];
    let mut cases = Vec::new();
    for (name, more) in lists {
        for stream in [false, true] {
            cases.push(case(format!("list of {name}"), &texts, stream, &more));
        }
    }
    cases
}

/// Requests that a proxy passes unchanged unless it parses too much or too little.
fn parameters(material: &Material) -> Vec<Case> {
    let text = json!({ "text": material.few().text });
    let logprobs = json!({ "return_logprob": true, "logprob_start_len": 0 });
    let sampling = |more: Value| json!({ "sampling_params": with(&greedy(16), &more) });
    let parameters = [
        ("a stop string", sampling(json!({ "stop": ["e", "o"] }))),
        (
            "a stop string with logprobs",
            with(&logprobs, &sampling(json!({ "stop": "e" }))),
        ),
        (
            "stop token ids",
            sampling(json!({ "stop_token_ids": ids(400, 3) })),
        ),
        ("ignore_eos", sampling(json!({ "ignore_eos": true }))),
        ("min_new_tokens", sampling(json!({ "min_new_tokens": 4 }))),
        ("a penalty", sampling(json!({ "frequency_penalty": 0.5 }))),
        (
            "skip_special_tokens off",
            sampling(json!({ "skip_special_tokens": false })),
        ),
        (
            "a rid",
            with(&logprobs, &json!({ "rid": "conformance-one" })),
        ),
        ("n of one", sampling(json!({ "n": 1 }))),
        ("text and ids", json!({ "input_ids": [50, 51, 52] })),
        (
            "nulls",
            json!({ "input_ids": null, "rid": null, "return_logprob": null, "image_data": null }),
        ),
    ];
    let mut cases = Vec::new();
    for (name, more) in parameters {
        for stream in [false, true] {
            cases.push(case(name, &text, stream, &more));
        }
    }
    let grammar = with(
        &logprobs,
        &sampling(json!({ "regex": "(yes|no), (yes|no)" })),
    );
    for stream in [false, true] {
        cases.push(case("a grammar", &text, stream, &grammar));
        cases.push(case(
            "two samples",
            &text,
            stream,
            &sampling(json!({ "n": 2 })),
        ));
        cases.push(case("by PUT", &text, stream, &logprobs).method(Method::PUT));
        cases.push(case("in a warm cache", &text, stream, &logprobs).times(2));
        cases.push(case("no logprobs in a warm cache", &text, stream, &json!({})).times(2));
    }
    cases
}

/// Bodies whose bytes matter. `$T` stands for a text in quotes, `$S` and `$L` for the members that
/// most of them have.
const SPELLINGS: [(&str, &str); 12] = [
    (
        "an unknown field",
        r#"{"text":$T,"no_such_field":[{"a":"}]"}],$S}"#,
    ),
    (
        "a repeated field",
        r#"{"text":"not this one","text":$T,$S}"#,
    ),
    (
        "a repeated flag",
        r#"{"return_logprob":false,"text":$T,$L,$S}"#,
    ),
    (
        "a client's bootstrap fields",
        r#"{"bootstrap_host":"192.0.2.1","bootstrap_port":1,"text":$T,"bootstrap_room":0,$S}"#,
    ),
    (
        "a client's bootstrap lists",
        r#"{"text":[$T,"b"],$S,"bootstrap_room":[1,1],"bootstrap_host":["2.2.2.2","2.2.2.2"]}"#,
    ),
    (
        "an escaped bootstrap field",
        r#"{"text":$T,$S,"boot\u0073trap_host":"192.0.2.1"}"#,
    ),
    (
        "an escaped name",
        r#"{"t\u0065xt":$T,"return\u005flogprob":true,"logprob_start_len":0,$S}"#,
    ),
    (
        "escapes",
        r#"{"text":"a\"b\\c\/d\n\t\u00e9\ud83d\ude00 \u0000 data: [DONE]\n\n",$L,$S}"#,
    ),
    (
        "unicode",
        r#"{"text":"é 語 😀 { } [ ] \u2028","return_text_in_logprobs":true,$L,$S}"#,
    ),
    ("white space", " \r\n{ \"text\" :\t$T ,\n $L , $S\n} \n\n"),
    ("the flag last", r#"{$S,"text":$T,"stream":true}"#),
    (
        "nested objects",
        r#"{"text":$T,"custom":{"stream":true,"text":["a","b"],"bootstrap_room":5},$S}"#,
    ),
];

fn spellings(material: &Material) -> Vec<Case> {
    let quoted = json!(material.few().text).to_string();
    let case = |(name, template): (&str, &str)| {
        let body = template
            .replace(
                "$S",
                r#""sampling_params":{"temperature":0,"max_new_tokens":8}"#,
            )
            .replace("$L", r#""return_logprob":true,"logprob_start_len":0"#)
            .replace("$T", &quoted);
        let mut case = Case::raw(format!("spelled with {name}"), PATH, body);
        case.leeway.batch = name.ends_with("lists");
        case
    };
    SPELLINGS.into_iter().map(case).collect()
}
