//! `/v1/completions`: prompt lists, echo, and its own shape of logprobs. Source: transcripts `cmpl_*`.

use bytes::Bytes;

use super::engine::{Finish, Step};
use super::errors::Family;
use super::model::{self, Context};
use super::openai::{self, StreamOptions, head, metadata, openai_finish, usage};
use super::render::{data, escape_into, separate, string, write_to};
use super::request::{Batch, Item};
use super::stream::Render;
use super::{Role, SimOptions};

/// The response of one request.
pub(crate) struct Completions {
    model: String,
    created: u64,
    choices: Vec<Choice>,
    /// Samples per prompt. `usage` counts a prompt once.
    n: usize,
    options: StreamOptions,
}

struct Choice {
    id: String,
    prompt_tokens: usize,
    /// The echoed prompt, until it has been sent.
    echo: String,
    text: String,
    logprobs: Option<Lists>,
    tokens: usize,
    finish: Option<Finish>,
}

/// The four lists of `logprobs`, as JSON without brackets.
#[derive(Default)]
struct Lists {
    top: usize,
    offsets: String,
    values: String,
    tokens: String,
    tops: String,
}

impl Completions {
    pub(crate) fn new(
        role: Role,
        options: &SimOptions,
        body: &serde_json::Value,
        created: u64,
        batch: &Batch,
    ) -> Completions {
        let echo = body.get("echo").and_then(serde_json::Value::as_bool) == Some(true);
        Completions {
            model: openai::model(body, &options.model),
            created,
            choices: batch
                .items
                .iter()
                .map(|item| Choice::new(role, options.seed, echo, item))
                .collect(),
            n: batch.n,
            options: StreamOptions::of(body),
        }
    }

    fn totals(&self) -> (usize, usize) {
        let prompts = self
            .choices
            .iter()
            .step_by(self.n)
            .map(|choice| choice.prompt_tokens)
            .sum();
        (
            prompts,
            self.choices.iter().map(|choice| choice.tokens).sum(),
        )
    }
}

impl Render for Completions {
    const FAMILY: Family = Family::OpenAi;

    fn absorb(&mut self, index: usize, step: &Step) {
        let choice = &mut self.choices[index];
        choice.finish.clone_from(&step.finish);
        let Some(token) = step.token else { return };
        choice.tokens += 1;
        escape_into(&step.text, &mut choice.text);
        if let (Some(lists), Some(row)) = (&mut choice.logprobs, &step.row) {
            lists.push(Some(row.logprob), token, Some(&row.top));
        }
    }

    fn events(&mut self, index: usize, step: &Step, out: &mut Vec<Bytes>) {
        let choice = &mut self.choices[index];
        let text = std::mem::take(&mut choice.echo) + &std::mem::take(&mut choice.text);
        let logprobs = choice.logprobs.as_mut().map_or("null".to_owned(), |lists| {
            let top = lists.top;
            std::mem::replace(
                lists,
                Lists {
                    top,
                    ..Lists::default()
                },
            )
            .json()
        });
        let finish = match &step.finish {
            Some(finish) => openai_finish(finish),
            None => "\"finish_reason\":null,\"matched_stop\":null".to_owned(),
        };
        let usage = match self.options.continuous_usage {
            true => usage(choice.prompt_tokens, choice.tokens),
            false => "null".to_owned(),
        };
        out.push(data(&format!(
            "{},\"choices\":[{{\"index\":{index},\"text\":\"{text}\",\"logprobs\":{logprobs},{finish}}}],\"usage\":{usage}}}",
            head(&choice.id, "text_completion", self.created, &self.model)
        )));
    }

    fn end(&mut self, out: &mut Vec<Bytes>) {
        if self.options.include_usage {
            let (prompts, completions) = self.totals();
            let id = self.choices.last().map_or("", |choice| choice.id.as_str());
            out.push(data(&format!(
                "{},\"choices\":[],\"usage\":{}}}",
                head(id, "text_completion", self.created, &self.model),
                stream_usage(prompts, completions)
            )));
        }
        out.push(data("[DONE]"));
    }

    fn whole(&mut self) -> String {
        let mut choices = String::new();
        for (index, choice) in self.choices.iter().enumerate() {
            separate(&mut choices);
            let logprobs = choice
                .logprobs
                .as_ref()
                .map_or("null".to_owned(), Lists::json);
            let finish = choice
                .finish
                .as_ref()
                .map(openai_finish)
                .unwrap_or_default();
            let (echo, text) = (&choice.echo, &choice.text);
            write_to(
                &mut choices,
                format_args!(
                    "{{\"index\":{index},\"text\":\"{echo}{text}\",\"logprobs\":{logprobs},{finish}}}"
                ),
            );
        }
        let (prompts, completions) = self.totals();
        let longest = self
            .choices
            .iter()
            .map(|choice| choice.tokens)
            .max()
            .unwrap_or(0);
        let id = self.choices.first().map_or("", |choice| choice.id.as_str());
        format!(
            "{},\"choices\":[{choices}],\"usage\":{},{}}}",
            head(id, "text_completion", self.created, &self.model),
            usage(prompts, completions),
            metadata(longest)
        )
    }
}

impl Choice {
    fn new(role: Role, seed: u64, echo: bool, item: &Item) -> Choice {
        let mut echoed = String::new();
        if echo {
            escape_into(&model::text_of(&item.prompt), &mut echoed);
        }
        let mut logprobs = item.logprobs.wanted.then(|| Lists {
            top: item.logprobs.top,
            ..Lists::default()
        });
        // Decode echoes the prompt's text, without its logprobs.
        if let (Some(lists), Some(_), false) =
            (&mut logprobs, item.logprobs.start, role == Role::Decode)
        {
            let mut context = Context::start(seed ^ item.sampling.seed);
            for (position, &token) in item.prompt.iter().enumerate() {
                let top = (position > 0).then(|| context.top(lists.top));
                lists.push(
                    (position > 0).then(|| context.logprob(token)),
                    token,
                    top.as_deref(),
                );
                context = context.after(token);
            }
        }
        Choice {
            id: item.rid.clone(),
            prompt_tokens: item.prompt.len(),
            echo: echoed,
            text: String::new(),
            logprobs,
            tokens: 0,
            finish: None,
        }
    }
}

impl Lists {
    fn push(&mut self, logprob: Option<f64>, token: u32, top: Option<&[(f64, u32)]>) {
        [
            &mut self.offsets,
            &mut self.values,
            &mut self.tokens,
            &mut self.tops,
        ]
        .into_iter()
        .for_each(separate);
        self.offsets.push_str("-1");
        match logprob {
            Some(logprob) => write_to(&mut self.values, format_args!("{logprob:?}")),
            None => self.values.push_str("null"),
        }
        self.tokens.push_str(&string(&model::name_of(token)));
        match top {
            Some(top) => {
                let pairs: Vec<String> = top
                    .iter()
                    .map(|(logprob, token)| {
                        format!("{}:{logprob:?}", string(&model::name_of(*token)))
                    })
                    .collect();
                write_to(&mut self.tops, format_args!("{{{}}}", pairs.join(",")));
            }
            None => self.tops.push_str("null"),
        }
    }

    fn json(&self) -> String {
        format!(
            "{{\"text_offset\":[{}],\"token_logprobs\":[{}],\"tokens\":[{}],\"top_logprobs\":[{}]}}",
            self.offsets, self.values, self.tokens, self.tops
        )
    }
}

/// The `usage` object of this endpoint's last event, which has fewer fields than [`usage`].
fn stream_usage(prompt_tokens: usize, completion_tokens: usize) -> String {
    format!(
        "{{\"prompt_tokens\":{prompt_tokens},\"total_tokens\":{},\"completion_tokens\":{completion_tokens},\
         \"reasoning_tokens\":0}}",
        prompt_tokens + completion_tokens
    )
}
