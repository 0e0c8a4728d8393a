//! More samples than one: every case of an endpoint that takes `n`.

use serde_json::{Value, json};

use super::Case;

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
