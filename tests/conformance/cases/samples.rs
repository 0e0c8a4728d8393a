//! More samples than one: every case of an endpoint that takes `n`.

use serde_json::{Value, json};

use super::{Case, Material, way, with};

/// The options of `/generate` that may be lists for a batch, but not where a prompt has several samples.
///
/// Source: SGLang 0.5.23, `srt/managers/io_struct.py` (`_handle_parallel_sampling`).
const SCALARS: [&str; 3] = ["return_logprob", "logprob_start_len", "top_logprobs_num"];

/// Each of the cases that does not say its `n`, with each of 2 to 4 samples, or with one of these in turn.
pub(super) fn of(cases: &[Case], each: bool) -> Vec<Case> {
    let counts = |at: usize| (2..=4).filter(move |n| each || *n == 2 + at as u64 % 3);
    let of_case = |(at, case)| counts(at).filter_map(move |n| sampled(case, n));
    cases.iter().enumerate().flat_map(of_case).collect()
}

fn sampled(case: &Case, n: u64) -> Option<Case> {
    let mut body: Value = serde_json::from_slice(&case.request.body).ok()?;
    if body.get("text").is_some() && body.get("input_ids").is_some() {
        // With several samples an ordinary server of SGLang 0.5.23 fails, so that there is nothing to compare with.
        return None;
    }
    match case.request.path.as_str() {
        "/generate" => set_in_sampling_params(&mut body, n)?,
        "/v1/chat/completions" | "/v1/completions" => set(&mut body, n)?,
        _ => return None,
    }
    let lists = SCALARS.iter().any(|name| body[*name].is_array());
    let rows = body["token_ids_logprob"][0].is_array();
    let refused = case.request.path == "/generate" && (rows || lists);
    let mut sampled = case.clone();
    sampled.name = format!("{}, {n} samples", case.name);
    sampled.request.body = body.to_string().into();
    sampled.samples = n;
    // The samples share the prefix cache, and each has an id that the server draws.
    sampled.leeway.batch = true;
    sampled.leeway.rid = false;
    if refused {
        sampled.status = 400;
    }
    Some(sampled)
}

/// Sets `n`; none where the case has one.
fn set(object: &mut Value, n: u64) -> Option<()> {
    let object = object.as_object_mut()?;
    if object.contains_key("n") {
        return None;
    }
    object.insert("n".to_owned(), json!(n));
    Some(())
}

fn set_in_sampling_params(body: &mut Value, n: u64) -> Option<()> {
    let parameters = body
        .as_object_mut()?
        .entry("sampling_params")
        .or_insert_with(|| json!({}));
    match parameters {
        Value::Array(list) => list.iter_mut().try_for_each(|each| set(each, n)),
        one => set(one, n),
    }
}

/// Requests that are refused because of their `n`, and requests in which something else is refused first.
pub(super) fn refused(material: &Material) -> Vec<Case> {
    [native_refused(), openai_refused(material)].concat()
}

fn native_refused() -> Vec<Case> {
    let two = json!({ "sampling_params": { "n": 2, "max_new_tokens": 1 } });
    let lists = json!({ "return_logprob": [true], "top_logprobs_num": [1] });
    let differ = json!({ "sampling_params": [{ "n": 2 }, { "n": 3 }] });
    let of_n = [
        ("lists", json!({ "text": "a" }), &lists),
        ("lists for no prompt", json!({ "text": [] }), &lists),
        (
            "other ids and lists",
            json!({ "text": "a", "rid": ["a", "b"] }),
            &lists,
        ),
        (
            "equal ids and lists",
            json!({ "text": ["a", "b"], "rid": ["a", "a"] }),
            &lists,
        ),
        (
            "equal ids",
            json!({ "text": ["a", "b"], "rid": ["a", "a"] }),
            &json!({}),
        ),
        ("no ids", json!({ "text": "a", "rid": [] }), &json!({})),
        (
            "other n and ids",
            json!({ "text": ["a", "b"], "rid": ["a"] }),
            &differ,
        ),
        (
            "lists and a negative temperature",
            json!({ "text": "a", "return_logprob": [true] }),
            &json!({ "sampling_params": { "n": 2, "temperature": -1 } }),
        ),
    ];
    let ids = json!({ "rid": ["a", "b"] });
    let first = [
        ("lists, no prompt", json!({}), &lists),
        (
            "other ids, empty input_ids",
            json!({ "text": null, "input_ids": [] }),
            &ids,
        ),
        (
            "a number that is no integer",
            json!({ "text": "a" }),
            &json!({ "sampling_params": { "n": 1e300 } }),
        ),
    ];
    let mut cases = Vec::new();
    for (name, body, more) in of_n.iter().chain(&first) {
        for stream in [false, true] {
            let body = with(&with(&with(&two, body), more), &json!({ "stream": stream }));
            let name = format!("refused, {}, samples, {name}", way(stream));
            cases.push(Case::post(name, "/generate", &body).status(400));
        }
    }
    for stream in [json!("true"), json!(1), json!("no"), json!(null)] {
        let body = with(
            &with(&two, &json!({ "text": "a" })),
            &json!({ "stream": stream }),
        );
        let name = format!("refused, {stream} as stream, samples");
        cases.push(Case::post(name, "/generate", &body).status(400));
    }
    cases
}

fn openai_refused(material: &Material) -> Vec<Case> {
    let base = json!({ "model": material.model, "max_tokens": 1, "n": 2, "temperature": 0 });
    let chat = json!([{ "role": "user", "content": "a" }]);
    let mut cases = Vec::new();
    for (path, name, body) in [
        (
            "/v1/completions",
            "two ids of one prompt",
            json!({ "prompt": "a", "rid": ["a", "b"] }),
        ),
        (
            "/v1/completions",
            "two ids of one list",
            json!({ "prompt": [50, 60], "rid": ["a", "b"] }),
        ),
        (
            "/v1/completions",
            "equal ids",
            json!({ "prompt": ["a", "b"], "rid": ["a", "a"] }),
        ),
        (
            "/v1/chat/completions",
            "two ids",
            json!({ "messages": chat, "rid": ["a", "b"] }),
        ),
        (
            "/v1/chat/completions",
            "ids and no message",
            json!({ "messages": [], "rid": ["a", "b"] }),
        ),
    ] {
        for stream in [false, true] {
            let body = with(&with(&base, &body), &json!({ "stream": stream }));
            let name = format!("refused, {}, samples, {name}", way(stream));
            cases.push(Case::post(name, path, &body).status(400));
        }
    }
    let single = json!({ "n": 1, "prompt": "a", "messages": chat, "rid": ["a", "b"] });
    for path in ["/v1/completions", "/v1/chat/completions"] {
        let name = "refused, whole, one sample, two ids of one prompt";
        cases.push(Case::post(name, path, &with(&base, &single)).status(500));
    }
    cases
}
