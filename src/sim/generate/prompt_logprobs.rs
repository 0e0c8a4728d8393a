//! The keys of `meta_info` about the prompt's logprobs, nested or flat.

use crate::sim::model::Context;
use crate::sim::render::{separate, triple, triples, write_to};
use crate::sim::request::Item;

/// Logprobs of the prompt positions that a request asks for, as JSON members with a comma before them.
#[derive(Default)]
pub(super) struct PromptLogprobs {
    pub(super) tokens: String,
    pub(super) top: String,
    pub(super) ids: String,
}

impl PromptLogprobs {
    /// Empty lists, as decode sends them. Source: SGLang 0.5.23, `managers/.../output_streamer.py`.
    pub(super) fn absent(item: &Item) -> PromptLogprobs {
        let plan = &item.logprobs;
        let top = match (plan.top, plan.flat_input) {
            (0, _) => String::new(),
            (_, false) => ",\"input_top_logprobs\":[]".to_owned(),
            (top, true) => flat_input("", "", 0, top, 0),
        };
        PromptLogprobs {
            tokens: ",\"input_token_logprobs\":[]".to_owned(),
            top,
            ids: ",\"input_token_ids_logprobs\":[]".to_owned(),
        }
    }

    pub(super) fn of(item: &Item, seed: u64) -> PromptLogprobs {
        let plan = &item.logprobs;
        let Some(start) = plan.start.filter(|_| plan.wanted) else {
            return PromptLogprobs::absent(item);
        };
        let wanted_ids = plan.token_ids.as_deref().unwrap_or_default();
        let (mut tokens, mut top, mut ids) = (String::new(), String::new(), String::new());
        let (mut values, mut flat_ids, mut rows) = (String::new(), String::new(), 0);
        let start = start.min(item.prompt.len());
        let mut context =
            Context::start(seed ^ item.sampling.seed).after_all(&item.prompt[..start]);
        for (position, &token) in item.prompt[start..].iter().enumerate() {
            [&mut tokens, &mut top, &mut ids]
                .into_iter()
                .for_each(separate);
            // The first position has no logprob.
            let known = position > 0;
            triple(
                known.then(|| context.logprob(token)),
                token,
                plan.text,
                &mut tokens,
            );
            let best = if known {
                context.top(plan.top)
            } else {
                Vec::new()
            };
            triples(known.then_some(&best), plan.text, &mut top);
            let asked: Vec<_> = wanted_ids
                .iter()
                .map(|&id| (context.logprob(id), id))
                .collect();
            triples(known.then_some(&asked), plan.text, &mut ids);
            rows += usize::from(known);
            for (logprob, token) in best {
                [&mut values, &mut flat_ids].into_iter().for_each(separate);
                write_to(&mut values, format_args!("{logprob:?}"));
                write_to(&mut flat_ids, format_args!("{token}"));
            }
            context = context.after(token);
        }
        let top = match (plan.top, plan.flat_input) {
            (0, _) => String::new(),
            (_, false) => format!(",\"input_top_logprobs\":[{top}]"),
            (k, true) => flat_input(&values, &flat_ids, rows, k, usize::from(!tokens.is_empty())),
        };
        PromptLogprobs {
            tokens: format!(",\"input_token_logprobs\":[{tokens}]"),
            top,
            ids: format!(",\"input_token_ids_logprobs\":[{ids}]"),
        }
    }
}

fn flat_input(values: &str, ids: &str, rows: usize, top: usize, null_prefix: usize) -> String {
    format!(
        ",\"input_top_logprobs_val_flat\":[{values}],\"input_top_logprobs_idx_flat\":[{ids}],\
         \"input_top_logprobs_shape\":[{rows},{top}],\"input_top_logprobs_null_prefix\":{null_prefix}"
    )
}
