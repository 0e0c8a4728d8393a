//! `/v1/chat/completions`. Source: transcripts `chat_*`.

use bytes::Bytes;

use super::SimOptions;
use super::engine::Step;
use super::errors::Family;
use super::openai::{
    self, Generated, StreamOptions, cached_in_all, head, metadata, name_and_bytes, token_logprob,
    usage,
};
use super::render::{data, separate, string, write_to};
use super::request::Batch;
use super::stream::Render;

/// The response of one request.
pub(crate) struct Chat {
    model: String,
    created: u64,
    choices: Vec<Choice>,
    /// The choices that have ended, in the order in which they ended.
    ended: Vec<usize>,
    /// The choice of the last event.
    latest: usize,
    options: StreamOptions,
}

struct Choice {
    generated: Generated,
    /// Number of top logprobs of a token; none unless logprobs are wanted.
    top: Option<usize>,
    /// Logprobs of the tokens that no event has had yet, as JSON objects.
    logprobs: String,
    begun: bool,
}

impl Chat {
    pub(crate) fn new(
        body: &serde_json::Value,
        options: &SimOptions,
        created: u64,
        batch: &Batch,
    ) -> Chat {
        let choices = batch
            .items
            .iter()
            .map(|item| Choice {
                generated: Generated::new(item, options.cache_report),
                top: item.logprobs.wanted.then_some(item.logprobs.top),
                logprobs: String::new(),
                begun: false,
            })
            .collect();
        Chat {
            model: openai::model(body, &options.model),
            created,
            choices,
            ended: Vec::new(),
            latest: 0,
            options: StreamOptions::of(body),
        }
    }

    fn usage(&self) -> String {
        // All choices share one prompt.
        let prompt = self.choices.first();
        usage(
            prompt.map_or(0, |choice| choice.generated.prompt_tokens),
            self.tokens().sum(),
            cached_in_all(self.choices.iter().map(|choice| &choice.generated)),
        )
    }

    /// The tokens of each choice.
    fn tokens(&self) -> impl Iterator<Item = usize> {
        self.choices.iter().map(|choice| choice.generated.tokens)
    }

    /// An event of choice `index`, with the id of choice `named`.
    fn chunk(
        &self,
        named: usize,
        index: usize,
        delta: &str,
        logprobs: &str,
        finish: &str,
        usage: Option<String>,
    ) -> Bytes {
        let usage = usage.map_or(String::new(), |usage| format!(",\"usage\":{usage}"));
        let head = self.head(named, "chat.completion.chunk");
        data(&format!(
            "{head},\"choices\":[{{\"index\":{index},\"delta\":{{\"reasoning_content\":null{delta}}},\"logprobs\":{logprobs},\
             {finish}}}]{usage}}}"
        ))
    }

    fn head(&self, index: usize, object: &str) -> String {
        let id = self
            .choices
            .get(index)
            .map_or("", |choice| choice.generated.id.as_str());
        head(id, object, self.created, &self.model)
    }
}

impl Render for Chat {
    const FAMILY: Family = Family::OpenAi;

    fn absorb(&mut self, index: usize, step: &Step) {
        let choice = &mut self.choices[index];
        let token = choice.generated.absorb(step);
        if let (Some(_), Some(top), Some(row)) = (token, choice.top, &step.row) {
            separate(&mut choice.logprobs);
            let best = row.top.iter().take(top).copied();
            token_logprob(row, best, named_logprob, &mut choice.logprobs);
        }
    }

    fn events(&mut self, index: usize, step: &Step, out: &mut Vec<Bytes>) {
        self.latest = index;
        if step.finish.is_some() {
            self.ended.push(index);
        }
        const RUNNING: &str = "\"finish_reason\":null,\"matched_stop\":null";
        if !std::mem::replace(&mut self.choices[index].begun, true) {
            out.push(self.chunk(
                index,
                index,
                ",\"role\":\"assistant\",\"content\":\"\"",
                "null",
                RUNNING,
                None,
            ));
        }
        if step.token.is_some() {
            let logprobs = match std::mem::take(&mut self.choices[index].logprobs) {
                none if none.is_empty() => "null".to_owned(),
                rows => format!("{{\"content\":[{rows}]}}"),
            };
            let delta = format!(",\"content\":{}", string(&step.text));
            let choice = &self.choices[index].generated;
            let usage = self
                .options
                .continuous_usage
                .then(|| usage(choice.prompt_tokens, choice.tokens, choice.cached_tokens));
            out.push(self.chunk(index, index, &delta, &logprobs, RUNNING, usage));
        }
    }

    fn end(&mut self, out: &mut Vec<Bytes>) {
        // The finish chunks wait for the end of all choices, and have the id of the choice that ended last.
        // Source: SGLang 0.5.23, a server's responses to `n` of 3.
        for &index in &self.ended {
            let finish = self.choices[index].generated.finish_members();
            out.push(self.chunk(self.latest, index, "", "null", &finish, None));
        }
        if self.options.include_usage {
            let head = self.head(self.latest, "chat.completion.chunk");
            let usage = self.usage();
            out.push(data(&format!("{head},\"choices\":[],\"usage\":{usage}}}")));
        }
        out.push(data("[DONE]"));
    }

    fn whole(&mut self) -> String {
        let mut choices = String::new();
        for (index, choice) in self.choices.iter().enumerate() {
            separate(&mut choices);
            let logprobs = match (choice.top, &choice.logprobs) {
                (None, _) => "null".to_owned(),
                (Some(_), rows) => format!("{{\"content\":[{rows}]}}"),
            };
            let finish = choice.generated.finish_members();
            write_to(
                &mut choices,
                format_args!(
                    "{{\"index\":{index},\"message\":{{\"role\":\"assistant\",\"content\":\"{}\",\
                     \"reasoning_content\":null}},\"logprobs\":{logprobs},{finish}}}",
                    choice.generated.text
                ),
            );
        }
        format!(
            "{},\"choices\":[{choices}],\"usage\":{},{}}}",
            self.head(0, "chat.completion"),
            self.usage(),
            metadata(self.tokens())
        )
    }
}

fn named_logprob(token: u32, logprob: f64, out: &mut String) {
    let (name, bytes) = name_and_bytes(token);
    write_to(
        out,
        format_args!("\"token\":{name},\"bytes\":{bytes},\"logprob\":{logprob:?}"),
    );
}
