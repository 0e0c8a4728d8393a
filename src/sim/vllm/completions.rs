//! `/v1/completions`: lists of prompts, echo, and logprobs as four lists. Source: transcripts 03, 04, 07, 08, 20.

use bytes::Bytes;
use serde_json::Value;

use super::choice::{Answer, prompt_logprobs, prompt_rows, with_top};
use crate::sim::engine::Step;
use crate::sim::errors::Family;
use crate::sim::model;
use crate::sim::render::{data, escape_into, separate, string, write_to};
use crate::sim::request::fields::boolean;
use crate::sim::request::{Batch, Item};
use crate::sim::stream::{FailedItem, Render};

/// The response of one request.
pub(super) struct Completions {
    answer: Answer,
    parts: Vec<Part>,
}

/// What a choice has beyond those of other endpoints.
struct Part {
    /// The echoed prompt, until it has been sent.
    echo: String,
    lists: Option<Lists>,
    prompt_logprobs: String,
}

/// The four lists of `logprobs`, as JSON without brackets.
struct Lists {
    top: usize,
    /// Characters before the next token.
    at: usize,
    offsets: String,
    values: String,
    tokens: String,
    tops: String,
}

impl Completions {
    pub(super) fn new(answer: Answer, body: &Value, seed: u64, batch: &Batch) -> Completions {
        let echo = boolean(body.get("echo"));
        let asked = body.get("prompt_logprobs").and_then(Value::as_u64);
        let asked = asked.map(|top| usize::try_from(top).unwrap_or(0));
        let parts = batch.items.iter();
        Completions {
            parts: parts
                .map(|item| Part::new(item, echo, asked, seed))
                .collect(),
            answer,
        }
    }
}

impl Render for Completions {
    const FAMILY: Family = Family::Vllm;

    fn absorb(&mut self, index: usize, step: &Step) {
        let token = self.answer.choices[index].absorb(step);
        if let (Some(token), Some(lists), Some(row)) =
            (token, &mut self.parts[index].lists, &step.row)
        {
            let top = with_top(row, lists.top);
            lists.push(Some(row.logprob), token, Some(&top));
        }
    }

    fn events(&mut self, index: usize, step: &Step, out: &mut Vec<Bytes>) {
        let part = &mut self.parts[index];
        let mut text = std::mem::take(&mut part.echo);
        escape_into(&step.text, &mut text);
        let logprobs = part
            .lists
            .as_mut()
            .map_or("null".to_owned(), Lists::take_json);
        let choice = &self.answer.choices[index];
        let tokens = choice.generated.tokens;
        let tail = self.answer.event_tail(index, tokens, step.finish.is_some());
        out.push(data(&format!(
            "{},\"choices\":[{{\"index\":{index},\"text\":\"{text}\",\"logprobs\":{logprobs},{},\
             \"prompt_token_ids\":null,\"token_ids\":null}}]{tail}}}",
            self.answer.head("text_completion"),
            choice.finish()
        )));
    }

    fn failed(&mut self, item: &FailedItem<'_>, out: &mut Vec<Bytes>) -> bool {
        self.answer.fail(item.failure, out)
    }

    fn end(&mut self, out: &mut Vec<Bytes>) {
        let open = format!("{},\"choices\":[]", self.answer.head("text_completion"));
        let print = string(&self.answer.fingerprint);
        let close = format!(",\"system_fingerprint\":{print}");
        let usage = self.answer.stream_usage(false);
        self.answer.end(&open, &usage, &close, out);
    }

    fn whole(&mut self) -> String {
        let mut choices = String::new();
        let all = self.answer.choices.iter().zip(&mut self.parts);
        for (index, (choice, part)) in all.enumerate() {
            separate(&mut choices);
            let logprobs = part
                .lists
                .as_mut()
                .map_or("null".to_owned(), Lists::take_json);
            write_to(
                &mut choices,
                format_args!(
                    "{{\"index\":{index},\"text\":\"{}{}\",\"logprobs\":{logprobs},{},\"token_ids\":null,\
                     \"prompt_logprobs\":{},\"prompt_token_ids\":null,\"routed_experts\":null}}",
                    part.echo,
                    choice.generated.text,
                    choice.finish(),
                    part.prompt_logprobs
                ),
            );
        }
        format!(
            "{},\"choices\":[{choices}],{},\"usage\":{},\"kv_transfer_params\":{},\"ec_transfer_params\":null,\
             \"metrics\":null}}",
            self.answer.head("text_completion"),
            self.answer.tier(),
            self.answer.usage(false),
            // Of a list of prompts the params are the first one's, of samples the last one's.
            self.answer.params(self.answer.n - 1)
        )
    }
}

impl Part {
    fn new(item: &Item, echo: bool, asked: Option<usize>, seed: u64) -> Part {
        let plan = &item.logprobs;
        let mut lists = plan.wanted.then(|| Lists::new(plan.top));
        let mut echoed = String::new();
        if echo {
            escape_into(&model::text_of(&item.prompt), &mut echoed);
        }
        let with_logprobs = asked.or(plan.wanted.then_some(plan.top).filter(|_| echo));
        if let (Some(lists), Some(first), true) = (&mut lists, item.prompt.first(), echo) {
            lists.push(None, *first, None);
            let rows = prompt_rows(seed, &item.prompt, lists.top);
            for ((row, _), token) in rows.zip(&item.prompt[1..]) {
                lists.push(row.first().map(|(logprob, _)| *logprob), *token, Some(&row));
            }
        }
        Part {
            echo: echoed,
            lists,
            prompt_logprobs: with_logprobs.map_or("null".to_owned(), |top| {
                prompt_logprobs(seed, &item.prompt, top)
            }),
        }
    }
}

impl Lists {
    fn new(top: usize) -> Lists {
        Lists {
            top,
            at: 0,
            offsets: String::new(),
            values: String::new(),
            tokens: String::new(),
            tops: String::new(),
        }
    }

    fn push(&mut self, logprob: Option<f64>, token: u32, top: Option<&[(f64, u32)]>) {
        let lists = [
            &mut self.offsets,
            &mut self.values,
            &mut self.tokens,
            &mut self.tops,
        ];
        lists.into_iter().for_each(separate);
        let name = model::name_of(token);
        write_to(&mut self.offsets, format_args!("{}", self.at));
        self.at += name.chars().count();
        match logprob {
            Some(logprob) => write_to(&mut self.values, format_args!("{logprob:?}")),
            None => self.values.push_str("null"),
        }
        self.tokens.push_str(&string(&name));
        match top {
            Some(top) => {
                let pair = |(logprob, token): &(f64, u32)| {
                    format!("{}:{logprob:?}", string(&model::name_of(*token)))
                };
                let pairs: Vec<String> = top.iter().map(pair).collect();
                write_to(&mut self.tops, format_args!("{{{}}}", pairs.join(",")));
            }
            None => self.tops.push_str("null"),
        }
    }

    /// The lists so far, which begin anew.
    fn take_json(&mut self) -> String {
        let json = format!(
            "{{\"text_offset\":[{}],\"token_logprobs\":[{}],\"tokens\":[{}],\"top_logprobs\":[{}]}}",
            self.offsets, self.values, self.tokens, self.tops
        );
        for list in [
            &mut self.offsets,
            &mut self.values,
            &mut self.tokens,
            &mut self.tops,
        ] {
            list.clear();
        }
        json
    }
}
