//! A body to a batch of items, one function for each endpoint, with vLLM's checks in vLLM's order.
//!
//! Source: transcripts 01 to 24; vLLM 0.32.0, `entrypoints/*/protocol.py`, `sampling_params.py`.

use serde_json::Value;

use super::body::{self, Kind};
use super::{errors, transfer};
use crate::sim::errors::Failure;
use crate::sim::request::fields::{boolean, common_sampling, integer, strings, token_ids};
use crate::sim::request::openai::{message_text, openai_prompts, role_text};
use crate::sim::request::{Batch, Item, LogprobPlan, Sampling, chat_text};
use crate::sim::{SimOptions, model};

/// The most samples of a prompt: one request must not fill the memory of the machine.
const MAX_SAMPLES: i128 = 1024;

/// A request before its items are made.
pub(super) struct Ask<'a> {
    pub(super) body: &'a Value,
    pub(super) options: &'a SimOptions,
    /// What the ids of the response and of its items are made of.
    pub(super) id: String,
    /// `X-data-parallel-rank`.
    pub(super) rank: Option<usize>,
}

/// The items of a request, and the id of its response.
pub(super) struct Asked {
    pub(super) id: String,
    pub(super) batch: Batch,
}

/// The tokens that a request may generate, and how its field is called.
struct Limit {
    name: &'static str,
    asked: Option<usize>,
    default: Option<usize>,
}

impl Ask<'_> {
    /// `/v1/chat/completions`.
    pub(super) fn chat(&self) -> Result<Asked, Failure> {
        self.chat_of(&["messages"])?;
        let messages = self.body.get("messages").and_then(Value::as_array);
        if messages.is_some_and(Vec::is_empty) {
            return Err(no_conversation());
        }
        let prompt = model::encode(&chat_text(self.body));
        let id = format!("chatcmpl-{}", self.id);
        let named = vec![(id.clone(), prompt)];
        let batch = self.batch(self.body, named, &self.chat_limit(), self.chat_logprobs())?;
        Ok(Asked { id, batch })
    }

    /// `/v1/chat/completions/batch`: a list of conversations. Streams and samples are not supported.
    pub(super) fn chat_batch(&self) -> Result<Asked, Failure> {
        self.chat_of(&["messages"])?;
        let id = format!("chatcmpl-{}", self.id);
        let conversations = self.body.get("messages").and_then(Value::as_array);
        let mut named = Vec::new();
        for (index, messages) in conversations.into_iter().flatten().enumerate() {
            let messages = messages.as_array().filter(|messages| !messages.is_empty());
            let messages = messages.ok_or_else(no_conversation)?;
            let text: String = messages.iter().map(message_text).collect();
            let prompt = model::encode(&(text + "<|assistant|>"));
            named.push((format!("{id}_{index}"), prompt));
        }
        let limit = self.chat_limit();
        let mut batch = self.batch(self.body, named, &limit, self.chat_logprobs())?;
        batch.stream = false;
        // The params are accepted, and without effect.
        for item in &mut batch.items {
            item.transfer = transfer::Transfer::Alone;
        }
        Ok(Asked { id, batch })
    }

    /// `/v1/completions`.
    pub(super) fn completions(&self) -> Result<Asked, Failure> {
        let fields = [("logprobs", Kind::Integer), ("echo", Kind::Boolean)];
        self.check(&[], &fields)?;
        let list = self.body.get("prompt").and_then(Value::as_array);
        if list.is_some_and(Vec::is_empty) {
            let message = "You must pass at least one prompt".to_owned();
            return Err(errors::bad_request(None, message));
        }
        let (prompts, _) = openai_prompts(self.body);
        if prompts.is_empty() || prompts.iter().any(Vec::is_empty) {
            let message = "Either prompt or prompt_embeds must be provided and non-empty.";
            return Err(errors::invalid("prompt", message));
        }
        let id = format!("cmpl-{}", self.id);
        let named = prompts.into_iter().enumerate();
        let named = named.map(|(index, prompt)| (format!("{id}-{index}"), prompt));
        let limit = Limit {
            name: "max_tokens",
            asked: size(self.body, "max_tokens"),
            default: Some(16),
        };
        let top = size(self.body, "logprobs");
        let echoes = boolean(self.body.get("echo")) && top.is_some();
        let logprobs = LogprobPlan {
            wanted: top.is_some(),
            start: (echoes || self.wants_prompt_logprobs()).then_some(0),
            top: top.unwrap_or(0),
            ..LogprobPlan::default()
        };
        let batch = self.batch(self.body, named.collect(), &limit, logprobs)?;
        Ok(Asked { id, batch })
    }

    /// `/v1/responses`. `max_tokens` is ignored.
    pub(super) fn responses(&self) -> Result<Asked, Failure> {
        self.check(&["input"], &[("max_output_tokens", Kind::Integer)])?;
        let instructions = self.body.get("instructions").unwrap_or(&Value::Null);
        let mut text = role_text("system", instructions);
        match self.body.get("input") {
            Some(Value::Array(messages)) => {
                messages
                    .iter()
                    .for_each(|message| text += &message_text(message));
            }
            input => text += &role_text("user", input.unwrap_or(&Value::Null)),
        }
        let prompt = model::encode(&(text + "<|assistant|>"));
        let limit = Limit {
            name: "max_output_tokens",
            asked: size(self.body, "max_output_tokens"),
            default: None,
        };
        // The header's id is not used here.
        let id = format!("resp_{:016x}", rand::random::<u64>());
        let named = vec![(format!("{id}_0"), prompt)];
        let batch = self.batch(self.body, named, &limit, LogprobPlan::default())?;
        Ok(Asked { id, batch })
    }

    /// `/v1/messages`.
    pub(super) fn messages(&self) -> Result<Asked, Failure> {
        self.check(
            &["model", "messages", "max_tokens"],
            &[("messages", Kind::List)],
        )?;
        let system = role_text("system", self.body.get("system").unwrap_or(&Value::Null));
        let prompt = model::encode(&(system + &chat_text(self.body)));
        let id = format!("chatcmpl-{}", self.id);
        let limit = Limit {
            name: "max_tokens",
            asked: size(self.body, "max_tokens"),
            default: None,
        };
        let named = vec![(id.clone(), prompt)];
        let mut batch = self.batch(self.body, named, &limit, LogprobPlan::default())?;
        for item in &mut batch.items {
            item.sampling.stop = strings(self.body.get("stop_sequences"));
        }
        Ok(Asked { id, batch })
    }

    /// `/inference/v1/generate`: token ids, and the sampling in an object of its own.
    pub(super) fn tokens(&self) -> Result<Asked, Failure> {
        self.check(
            &["token_ids", "sampling_params"],
            &[("token_ids", Kind::List)],
        )?;
        let prompt = self.body.get("token_ids").map(token_ids);
        let prompt = prompt.filter(|prompt| !prompt.is_empty());
        let Some(prompt) = prompt else {
            let message = "token_ids must not be empty.".to_owned();
            return Err(errors::bad_request(None, message));
        };
        let empty = Value::Object(serde_json::Map::new());
        let parameters = self.body.get("sampling_params").unwrap_or(&empty);
        let limit = Limit {
            name: "max_tokens",
            asked: size(parameters, "max_tokens"),
            default: Some(16),
        };
        let id = format!("generate-tokens-{}", self.id);
        let named = vec![(id.clone(), prompt)];
        let batch = self.batch(parameters, named, &limit, LogprobPlan::default())?;
        Ok(Asked { id, batch })
    }

    fn chat_of(&self, needed: &[&str]) -> Result<(), Failure> {
        let fields = [
            ("messages", Kind::List),
            ("max_completion_tokens", Kind::Integer),
            ("top_logprobs", Kind::Integer),
            ("logprobs", Kind::Boolean),
        ];
        self.check(needed, &fields)
    }

    /// `max_completion_tokens` wins.
    fn chat_limit(&self) -> Limit {
        let newer = size(self.body, "max_completion_tokens");
        let name = match newer {
            Some(_) => "max_completion_tokens",
            None => "max_tokens",
        };
        Limit {
            name,
            asked: newer.or_else(|| size(self.body, "max_tokens")),
            default: None,
        }
    }

    fn chat_logprobs(&self) -> LogprobPlan {
        LogprobPlan {
            wanted: boolean(self.body.get("logprobs")),
            start: self.wants_prompt_logprobs().then_some(0),
            top: size(self.body, "top_logprobs").unwrap_or(0),
            ..LogprobPlan::default()
        }
    }

    fn wants_prompt_logprobs(&self) -> bool {
        size(self.body, "prompt_logprobs").is_some()
    }

    /// The schema, then the model.
    fn check(&self, needed: &[&str], fields: &[(&str, Kind)]) -> Result<(), Failure> {
        body::check(self.body, needed, fields)?;
        let served = &self.options.model;
        match self.body.get("model").and_then(Value::as_str) {
            Some(name) if name != served => Err(errors::unknown_model(name, served)),
            _ => Ok(()),
        }
    }

    /// The items of these prompts with their names, with the sampling of `parameters`.
    fn batch(
        &self,
        parameters: &Value,
        named: Vec<(String, Vec<u32>)>,
        limit: &Limit,
        logprobs: LogprobPlan,
    ) -> Result<Batch, Failure> {
        let transfer = transfer::of(self.body, self.options.connector())?;
        let context = self.options.context_length;
        let n = samples(parameters)?;
        let mut items = Vec::with_capacity(named.len() * n);
        for (name, prompt) in named {
            if prompt.len() > context {
                return Err(errors::too_long(context + 1, context));
            }
            let tokens = limit.tokens(context, prompt.len())?;
            check_minimum(parameters, tokens)?;
            for sample in 0..n {
                let suffix = rand::random::<u32>();
                let rid = match n {
                    1 => format!("{name}-{suffix:08x}"),
                    _ => format!("{sample}_{name}-{suffix:08x}"),
                };
                items.push(Item {
                    rid,
                    prompt: prompt.clone(),
                    sampling: sampling(parameters, tokens, sample),
                    logprobs: logprobs.clone(),
                    transfer: transfer.clone(),
                    rank: self.rank,
                    ..Item::default()
                });
            }
        }
        Ok(Batch {
            items,
            list: false,
            stream: boolean(self.body.get("stream")),
            n,
        })
    }
}

impl Limit {
    fn tokens(&self, context: usize, prompt: usize) -> Result<usize, Failure> {
        if let Some(asked) = self.asked.filter(|&asked| asked > context) {
            return Err(errors::too_many_tokens(self.name, asked, context));
        }
        let left = (context - prompt).max(1);
        Ok(self.asked.or(self.default).unwrap_or(left).min(left))
    }
}

fn no_conversation() -> Failure {
    let message =
        "Cannot apply chat template to an empty conversation. Provide at least one message.";
    errors::bad_request(None, message.to_owned())
}

/// A number of the body. One below 0 is 0.
fn size(body: &Value, name: &str) -> Option<usize> {
    let value = body.get(name).and_then(integer)?;
    Some(usize::try_from(value).unwrap_or(0))
}

fn is_greedy(parameters: &Value) -> bool {
    parameters.get("temperature").and_then(Value::as_f64) == Some(0.0)
}

/// `n`.
fn samples(parameters: &Value) -> Result<usize, Failure> {
    let n = parameters.get("n").and_then(integer).unwrap_or(1);
    if n < 1 {
        return Err(errors::bad_request(
            None,
            format!("n must be at least 1, got {n}."),
        ));
    }
    if n > 1 && is_greedy(parameters) {
        let message = format!("n must be 1 when using greedy sampling, got {n}.");
        return Err(errors::bad_request(None, message));
    }
    Ok(usize::try_from(n.min(MAX_SAMPLES)).unwrap_or(1))
}

fn check_minimum(parameters: &Value, tokens: usize) -> Result<(), Failure> {
    match size(parameters, "min_tokens").filter(|&least| least > tokens) {
        None => Ok(()),
        Some(least) => {
            let message = format!(
                "min_tokens must be less than or equal to max_tokens={tokens}, got {least}."
            );
            Err(errors::bad_request(None, message))
        }
    }
}

fn sampling(parameters: &Value, max_new_tokens: usize, sample: usize) -> Sampling {
    let seed = parameters.get("seed").and_then(integer).unwrap_or(0);
    let seed = match is_greedy(parameters) {
        true => 0,
        // The samples of a seed differ, and those of another seed from them.
        false => (seed as u64)
            .wrapping_mul(MAX_SAMPLES as u64)
            .wrapping_add(sample as u64),
    };
    Sampling {
        max_new_tokens,
        seed,
        ..common_sampling(parameters, "seed")
    }
}
