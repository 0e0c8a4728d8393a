//! `/v1/completions`: prompt lists, echo, and its own shape of logprobs. Source: transcripts `cmpl_*`.

use bytes::Bytes;

use super::engine::Step;
use super::errors::Family;
use super::model::{self, Context};
use super::openai::{
    self, Generated, StreamOptions, cached_details, cached_in_all, head, metadata, openai_finish,
    usage,
};
use super::render::{data, escape_into, separate, string, write_to};
use super::request::{Batch, Item};
use super::stream::Render;
use super::{Role, SimOptions};

/// The response of one request.
pub(crate) struct Completions {
    model: String,
    created: u64,
    choices: Vec<Choice>,
    /// The choice of the last event.
    latest: usize,
    /// Samples per prompt. `usage` counts a prompt once.
    n: usize,
    options: StreamOptions,
}

struct Choice {
    generated: Generated,
    /// The echoed prompt, until it has been sent.
    echo: String,
    logprobs: Option<Lists>,
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
                .map(|item| Choice::new(role, options, echo, item))
                .collect(),
            latest: 0,
            n: batch.n,
            options: StreamOptions::of(body),
        }
    }

    /// Tokens of all prompts, and of all choices.
    fn totals(&self) -> (usize, usize) {
        let prompts = self
            .choices
            .iter()
            .step_by(self.n)
            .map(|choice| choice.generated.prompt_tokens)
            .sum();
        (prompts, self.tokens().sum())
    }

    fn cached_tokens(&self) -> Option<usize> {
        cached_in_all(self.choices.iter().map(|choice| &choice.generated))
    }

    /// The tokens of each choice.
    fn tokens(&self) -> impl Iterator<Item = usize> {
        self.choices.iter().map(|choice| choice.generated.tokens)
    }

    fn head(&self, choice: Option<&Choice>) -> String {
        let id = choice.map_or("", |choice| choice.generated.id.as_str());
        head(id, "text_completion", self.created, &self.model)
    }
}

impl Render for Completions {
    const FAMILY: Family = Family::OpenAi;

    fn absorb(&mut self, index: usize, step: &Step) {
        let choice = &mut self.choices[index];
        let token = choice.generated.absorb(step);
        if let (Some(token), Some(lists), Some(row)) = (token, &mut choice.logprobs, &step.row) {
            lists.push(Some(row.logprob), token, Some(&row.top));
        }
    }

    fn events(&mut self, index: usize, step: &Step, out: &mut Vec<Bytes>) {
        self.latest = index;
        let choice = &mut self.choices[index];
        let text = std::mem::take(&mut choice.echo) + &std::mem::take(&mut choice.generated.text);
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
            true => {
                let generated = &choice.generated;
                usage(
                    generated.prompt_tokens,
                    generated.tokens,
                    generated.cached_tokens,
                )
            }
            false => "null".to_owned(),
        };
        out.push(data(&format!(
            "{},\"choices\":[{{\"index\":{index},\"text\":\"{text}\",\"logprobs\":{logprobs},{finish}}}],\"usage\":{usage}}}",
            self.head(self.choices.get(index))
        )));
    }

    fn end(&mut self, out: &mut Vec<Bytes>) {
        if self.options.include_usage {
            let (prompts, completions) = self.totals();
            out.push(data(&format!(
                "{},\"choices\":[],\"usage\":{}}}",
                self.head(self.choices.get(self.latest)),
                stream_usage(prompts, completions, self.cached_tokens())
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
            let finish = choice.generated.finish_members();
            let (echo, text) = (&choice.echo, &choice.generated.text);
            write_to(
                &mut choices,
                format_args!(
                    "{{\"index\":{index},\"text\":\"{echo}{text}\",\"logprobs\":{logprobs},{finish}}}"
                ),
            );
        }
        let (prompts, completions) = self.totals();
        format!(
            "{},\"choices\":[{choices}],\"usage\":{},{}}}",
            self.head(self.choices.first()),
            usage(prompts, completions, self.cached_tokens()),
            metadata(self.tokens())
        )
    }
}

impl Choice {
    fn new(role: Role, options: &SimOptions, echo: bool, item: &Item) -> Choice {
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
            let mut context = Context::start(options.seed ^ item.sampling.seed);
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
            generated: Generated::new(item, options.cache_report),
            echo: echoed,
            logprobs,
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
fn stream_usage(
    prompt_tokens: usize,
    completion_tokens: usize,
    cached_tokens: Option<usize>,
) -> String {
    let details = cached_tokens.map_or(String::new(), |cached| {
        format!(",\"prompt_tokens_details\":{}", cached_details(cached))
    });
    format!(
        "{{\"prompt_tokens\":{prompt_tokens},\"total_tokens\":{},\"completion_tokens\":{completion_tokens}{details},\
         \"reasoning_tokens\":0}}",
        prompt_tokens + completion_tokens
    )
}
