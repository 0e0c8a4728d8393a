//! The responses of mini-lb that differ by design from those of an ordinary server, with reasons.
//!
//! An entry describes the responses that it covers, and the conditions that must hold for them.

use serde_json::{Map, Value};

use crate::cases::Case;
use crate::comparison::differences;

/// One entry of the table.
struct Expected {
    reason: &'static str,
    /// Whether it covers this case, and its conditions hold for both digests.
    holds: fn(&Case, ordinary: &Value, mini_lb: &Value) -> bool,
}

const EXPECTED: [Expected; 12] = [
    Expected {
        reason: "decode has fetched the tokens that an ordinary server of vLLM has written to its cache, and counts them in",
        holds: created_tokens_counted_in,
    },
    Expected {
        reason: "a list of options that is too short, or is for one prompt, is refused by name, where SGLang fails with a 500",
        holds: short_list,
    },
    Expected {
        reason: "decode shows the logprob of prefill's token although no token was wanted",
        holds: row_of_an_unwanted_token,
    },
    Expected {
        reason: "the worker's message quotes the request for one sample, which has no n",
        holds: quoted_n,
    },
    Expected {
        reason: "a stream that begins with an error has its status in the head: nothing was sent before",
        holds: error_as_status,
    },
    Expected {
        reason: "mini-lb has to read the body itself, and says itself that it is no JSON object",
        holds: unreadable_body,
    },
    Expected {
        reason: "one worker answers, and it says what it is",
        holds: role_of_the_worker,
    },
    Expected {
        reason: "the information of all workers, in the shape that SGLang's benchmarks read",
        holds: information_of_all,
    },
    Expected {
        reason: "mini-lb's own health",
        holds: own_health,
    },
    Expected {
        reason: "every worker is named with its own answer, and one that says no has not done it",
        holds: answers_of_all,
    },
    Expected {
        reason: "mini-lb knows which responses were made by way of it",
        holds: unknown_response,
    },
    Expected {
        reason: "mini-lb knows its paths itself",
        holds: unknown_path,
    },
];

/// The reason why the two responses may differ, if there is one in the table.
pub(crate) fn reason(case: &Case, ordinary: &Value, mini_lb: &Value) -> Option<&'static str> {
    EXPECTED
        .iter()
        .find(|expected| (expected.holds)(case, ordinary, mini_lb))
        .map(|expected| expected.reason)
}

fn created_tokens_counted_in(case: &Case, ordinary: &Value, mini_lb: &Value) -> bool {
    let counted_in = counted_in(ordinary);
    case.request.path == "/v1/messages"
        && counted_in != *ordinary
        && differences(&counted_in, mini_lb, case.leeway).is_empty()
}

/// The tree in which each usage counts the created cache tokens as any other.
fn counted_in(value: &Value) -> Value {
    let created = "cache_creation_input_tokens";
    match value {
        Value::Array(list) => list.iter().map(counted_in).collect(),
        Value::Object(members) => {
            let members = members.iter();
            let members = members.map(|(name, value)| (name.clone(), counted_in(value)));
            let mut members: Map<String, Value> = members.collect();
            let count = |members: &Map<String, Value>, name| members.get(name)?.as_u64();
            if let (Some(input), Some(cached)) =
                (count(&members, "input_tokens"), count(&members, created))
            {
                members.insert("input_tokens".to_owned(), (input + cached).into());
                members.insert(created.to_owned(), 0.into());
            }
            Value::Object(members)
        }
        other => other.clone(),
    }
}

fn short_list(_case: &Case, ordinary: &Value, mini_lb: &Value) -> bool {
    ordinary["status"] == 500
        && mini_lb["status"] == 400
        && message(mini_lb).is_some_and(|message| {
            message.contains("a list must have one for each")
                || message.contains("must not be a list for one prompt")
        })
}

fn quoted_n(case: &Case, ordinary: &Value, mini_lb: &Value) -> bool {
    let n = format!(", 'n': {}", case.samples);
    let without_n = without(ordinary, &|text| text.replace(&n, ""));
    case.samples > 1
        && message(ordinary).is_some_and(|message| message.contains(&n))
        && differences(&without_n, mini_lb, case.leeway).is_empty()
}

fn row_of_an_unwanted_token(case: &Case, ordinary: &Value, mini_lb: &Value) -> bool {
    let differences = differences(ordinary, mini_lb, case.leeway);
    case.name.contains(" 0 new tokens: logprobs")
        && differences
            .iter()
            .all(|difference| difference.path.contains("meta_info.output_"))
}

fn error_as_status(case: &Case, ordinary: &Value, mini_lb: &Value) -> bool {
    let says = &ordinary["body"]["says"];
    let event = &says["events"][0]["error"]["message"];
    let abort = &says["0"]["last"]["meta_info"]["finish_reason"]["message"];
    ordinary["status"] == 200
        && ordinary["framing"] == "events"
        && mini_lb["status"] == case.status
        && mini_lb["framing"] == "whole"
        && message(mini_lb).is_some_and(|message| *event == *message || *abort == *message)
}

fn unreadable_body(case: &Case, ordinary: &Value, mini_lb: &Value) -> bool {
    let readable = serde_json::from_slice::<Map<String, Value>>(&case.request.body).is_ok();
    let mut shape = members(&mini_lb["body"]);
    // What only mini-lb's own errors have.
    shape.retain(|name| name != "error_code" && name != "error.error_code");
    let same_shape = members(&ordinary["body"]) == shape;
    // vLLM has the shape of OpenAI's errors here, which clients of Anthropic's endpoint do not read.
    let of_vllm =
        case.request.path == "/v1/messages" && ordinary["body"]["error"]["param"].is_string();
    !readable && mini_lb["status"] == 400 && message(mini_lb).is_some() && (same_shape || of_vllm)
}

fn role_of_the_worker(case: &Case, ordinary: &Value, mini_lb: &Value) -> bool {
    let mode = "disaggregation_mode";
    let mut as_ordinary = mini_lb.clone();
    let answered = match as_ordinary["body"].get_mut(mode) {
        Some(shown) => std::mem::replace(shown, ordinary["body"][mode].clone()),
        None => return false,
    };
    case.request.path.ends_with("model_info")
        && answered == "prefill"
        && differences(ordinary, &as_ordinary, case.leeway).is_empty()
}

fn information_of_all(case: &Case, ordinary: &Value, mini_lb: &Value) -> bool {
    let body = &mini_lb["body"];
    let mode = |worker: &Value| worker["disaggregation_mode"].clone();
    let all = |role: &str| {
        let workers = body[role].as_array();
        workers
            .is_some_and(|list| !list.is_empty() && list.iter().all(|worker| mode(worker) == role))
    };
    let state = |body: &Value| members(&body["internal_states"][0]);
    case.request.path.ends_with("server_info")
        && mini_lb["status"] == 200
        && all("prefill")
        && all("decode")
        && body["prefill"][0]["tokenizer_path"] == ordinary["body"]["tokenizer_path"]
        && !state(body).is_empty()
        && state(body) == state(&ordinary["body"])
}

fn own_health(case: &Case, ordinary: &Value, mini_lb: &Value) -> bool {
    case.request.path == "/health" && ordinary["status"] == mini_lb["status"]
}

fn unknown_path(case: &Case, ordinary: &Value, mini_lb: &Value) -> bool {
    case.request.path.starts_with("/no/")
        && ordinary["status"] == mini_lb["status"]
        && message(mini_lb).is_some()
}

fn answers_of_all(case: &Case, ordinary: &Value, mini_lb: &Value) -> bool {
    let body = &mini_lb["body"];
    let says_no = ordinary["status"] == 200 && ordinary["body"] == serde_json::json!([false]);
    let status = match says_no {
        true => serde_json::json!(502),
        false => ordinary["status"].clone(),
    };
    let workers = body["workers"].as_array().map_or(&[][..], Vec::as_slice);
    let own = |worker: &Value| {
        let own = worker.get("answer").unwrap_or(&Value::Null);
        *own == ordinary["body"]
    };
    case.name.contains(" administration, ")
        && mini_lb["status"] == status
        && workers.len() > 1
        && workers.iter().all(own)
}

fn unknown_response(case: &Case, ordinary: &Value, mini_lb: &Value) -> bool {
    case.request.path.starts_with("/v1/responses/")
        && ordinary["status"] == 400
        && mini_lb["status"] == 404
        && mini_lb["body"]["error"]["error_code"] == "unknown_response"
}

/// The message of an error in the shape of any endpoint.
fn message(digest: &Value) -> Option<&str> {
    let body = &digest["body"];
    let places = [&body["message"], &body["error"]["message"], &body["error"]];
    places.into_iter().find_map(Value::as_str)
}

/// The names of an object's members, and of the objects in it.
fn members(value: &Value) -> Vec<String> {
    let object = value.as_object().into_iter().flatten();
    let mut names: Vec<String> = object
        .flat_map(|(key, value)| {
            let inner = members(value)
                .into_iter()
                .map(move |inner| format!("{key}.{inner}"));
            inner.chain([key.clone()])
        })
        .collect();
    names.sort();
    names
}

/// The tree with each of its texts shortened.
fn without(value: &Value, shorten: &dyn Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(shorten(text)),
        Value::Array(list) => list.iter().map(|value| without(value, shorten)).collect(),
        Value::Object(object) => {
            let members = object.iter();
            let members = members.map(|(key, value)| (key.clone(), without(value, shorten)));
            Value::Object(members.collect())
        }
        other => other.clone(),
    }
}
