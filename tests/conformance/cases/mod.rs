//! The requests of the suite: a case is a name, a request, and the status of an ordinary server.
//!
//! Cases are products of forms and options when a merge depends on both, and single ones for the traps of a
//! parser. They are the same for every model: texts and token ids, no expected output.

mod administration;
mod anthropic;
mod chat;
mod completions;
mod conversations;
mod errors;
mod generate;
mod responses;
mod samples;
mod single;
mod vllm;
mod wire;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::client::{Framing, Request};
use crate::comparison::Leeway;
use crate::workers::Engine;

/// Generated tokens of short responses, and of most cases.
const FEW: u32 = 8;

/// One request and its properties.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) request: Request,
    /// The status of an ordinary server. A case that is refused for another reason than intended proves
    /// nothing.
    pub(crate) status: u16,
    /// How often it is sent over one connection after a flush of the caches; the last response is compared.
    pub(crate) times: usize,
    pub(crate) leeway: Leeway,
    /// The start of the logprobs in the prompt of a `/generate`, for `invariants`.
    pub(crate) starts_at: Option<usize>,
    /// Samples per prompt.
    pub(crate) samples: u64,
}

impl Case {
    /// A POST of a JSON value.
    fn post(name: impl Into<String>, path: &str, body: &Value) -> Case {
        let leeway = Leeway {
            batch: is_batch(body) || has_samples(body),
            rid: body.get("rid").is_some_and(|rid| !rid.is_null()),
        };
        let starts_at = body["logprob_start_len"].as_u64();
        let wants = body["return_logprob"] == json!(true);
        Case {
            leeway,
            starts_at: starts_at
                .filter(|_| wants)
                .and_then(|at| usize::try_from(at).ok()),
            ..Case::raw(name, path, body.to_string())
        }
    }

    /// A POST of bytes.
    fn raw(name: impl Into<String>, path: &str, body: impl Into<Bytes>) -> Case {
        Case {
            name: format!("{} {}", path.trim_start_matches('/'), name.into()),
            request: Request {
                method: Method::POST,
                path: path.to_owned(),
                content_type: Some("application/json"),
                body: body.into(),
                framing: Framing::Length,
            },
            status: 200,
            times: 1,
            leeway: Leeway::default(),
            starts_at: None,
            samples: 1,
        }
    }

    fn get(path: &str) -> Case {
        let mut case = Case::raw("GET", path, Bytes::new()).method(Method::GET);
        case.request.content_type = None;
        case
    }

    fn method(mut self, method: Method) -> Case {
        self.request.method = method;
        self
    }

    fn framing(mut self, framing: Framing) -> Case {
        self.request.framing = framing;
        self
    }

    fn status(mut self, status: u16) -> Case {
        self.status = status;
        self
    }

    fn times(mut self, times: usize) -> Case {
        self.times = times;
        self
    }
}

/// Whether the request has several prompts, in any of the fields for them.
fn is_batch(body: &Value) -> bool {
    let several = |list: &Vec<Value>| list.len() > 1 && !list[0].is_number();
    ["text", "input_ids", "prompt"]
        .iter()
        .any(|key| body[key].as_array().is_some_and(several))
}

/// Whether the request asks for several samples, which share the prefix cache as the items of a batch do.
fn has_samples(body: &Value) -> bool {
    let several = |n: &Value| n.as_u64().is_some_and(|n| n > 1);
    several(&body["n"]) || several(&body["sampling_params"]["n"])
}

/// The material of the cases for one model.
pub(crate) struct Material {
    pub(crate) engine: Engine,
    pub(crate) model: String,
    /// Prompts of one token, a few, about 200 and about 1500.
    pub(crate) texts: [Text; 4],
    /// Whether a case is sent with each `n` from 2 to 4, or with one of them.
    pub(crate) each_n: bool,
    /// Whether the workers are simulated.
    pub(crate) simulated: bool,
}

/// A prompt and its length.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    pub(crate) name: &'static str,
    pub(crate) text: String,
    pub(crate) tokens: usize,
}

impl Material {
    fn few(&self) -> &Text {
        &self.texts[1]
    }
}

/// Every case.
pub(crate) fn all(material: &Material) -> Vec<Case> {
    match material.engine {
        Engine::Sglang => sglang(material),
        Engine::Vllm => vllm::cases(material),
    }
}

fn sglang(material: &Material) -> Vec<Case> {
    let cases = [
        generate::cases(material),
        chat::cases(material),
        completions::cases(material),
        responses::cases(material),
        anthropic::cases(material),
        single::cases(material),
        errors::cases(material),
        wire::cases(material),
    ]
    .concat();
    let sampled = samples::of(&cases, material.each_n);
    let refused = samples::refused(material);
    [cases, sampled, refused, administration::cases(material)].concat()
}

/// Token ids that any vocabulary has, without the special ones at the start.
fn ids(count: usize, seed: usize) -> Vec<usize> {
    (0..count)
        .map(|at| 20 + (at * 37 + seed * 101) % 1900)
        .collect()
}

/// `base` with the members of `more` over it.
fn with(base: &Value, more: &Value) -> Value {
    let mut sum = base.clone();
    for (key, value) in more.as_object().into_iter().flatten() {
        sum[key] = value.clone();
    }
    sum
}

/// The word for streaming in the name of a case.
fn way(stream: bool) -> &'static str {
    if stream { "stream" } else { "whole" }
}

/// Greedy sampling, so that two servers agree.
fn greedy(tokens: u32) -> Value {
    json!({ "temperature": 0, "max_new_tokens": tokens })
}
