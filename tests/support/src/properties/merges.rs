//! Properties of the merges: no two responses make them panic, and when two can be merged the result is the one that
//! trees of serde_json values give, for a document and for each event of a stream.
//!
//! Input: the kind of merge, the number of prompts, document or stream; prefill's response, a byte 0xFF, decode's.

use std::collections::HashSet;
use std::fmt;

use bytes::{Bytes, BytesMut};
use mini_lb::pd::{Batch, Merge, PrefillData, StreamMerger, merge, sse};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::decisions::Decisions;
use super::splitter::events;

/// The outcome of the two responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Prefill's response cannot be used.
    PrefillRefused,
    /// Decode's response cannot be used.
    DecodeRefused,
    /// Merged, and equal to the trees.
    Compared,
    /// Merged; the trees cannot represent the result.
    Merged,
}

/// Separates the two responses. No UTF-8 text has this byte.
pub const BETWEEN: u8 = 0xff;

pub fn check(bytes: &[u8]) -> Outcome {
    let mut choices = Decisions::new(bytes);
    let merge = [Merge::InputLogprobs, Merge::Echo, Merge::None][choices.below(3)];
    let batch = match choices.below(4) {
        0 => Batch::Single,
        prompts => Batch::Of(prompts),
    };
    let streamed = choices.yes();
    let rest = choices.rest();
    let between = rest.iter().position(|byte| *byte == BETWEEN);
    let (prefill, decode) = rest.split_at(between.unwrap_or(rest.len()));
    let prefill = Bytes::copy_from_slice(prefill);
    let decode = Bytes::copy_from_slice(decode.get(1..).unwrap_or_default());

    if streamed {
        stream(merge, batch, &prefill, &decode)
    } else {
        document(merge, batch, &prefill, &decode)
    }
}

fn document(merge: Merge, batch: Batch, prefill: &Bytes, decode: &Bytes) -> Outcome {
    let Ok(side) = PrefillData::from_body(merge, batch, prefill.clone()) else {
        return Outcome::PrefillRefused;
    };
    let Ok(merged) = merge::body(&side, decode.clone()) else {
        return Outcome::DecodeRefused;
    };
    if merge == Merge::None {
        assert_eq!(merged, decode);
        return Outcome::Merged;
    }
    let (Some(prefill), Some(decode)) = (tree(prefill), tree(decode)) else {
        return Outcome::Merged;
    };
    let mut sides = Sides::new(merge, batch);
    sides.read(&prefill, None);
    let wanted = sides.document(decode);
    assert_eq!(text(&merged), wanted.to_string());
    Outcome::Compared
}

/// Any chunking of decode's stream gives the same events ([`super::splitter`]), so one is enough.
fn stream(merge: Merge, batch: Batch, prefill: &Bytes, decode: &Bytes) -> Outcome {
    let Ok(side) = PrefillData::from_stream(merge, batch, prefill.clone()) else {
        return Outcome::PrefillRefused;
    };
    let mut sides = (merge != Merge::None).then(|| Sides::new(merge, batch));
    for event in sse::events(prefill.clone()) {
        match payload(&event).map(tree) {
            None => {}
            Some(Some(document)) => {
                if let Some(sides) = &mut sides {
                    sides.read(&document, index(&document));
                }
            }
            Some(None) => sides = None,
        }
    }
    let mut merger = StreamMerger::new(side);
    let mut outcome = Outcome::Merged;
    for event in events(std::slice::from_ref(decode)) {
        let mut out = BytesMut::new();
        if merger.event(&event, &mut out).is_err() {
            assert!(out.is_empty());
            return Outcome::DecodeRefused;
        }
        let (Some(before), false) = (payload(&event), merge == Merge::None) else {
            assert_eq!(out, event);
            continue;
        };
        let out = out.freeze();
        let after = payload(&out).unwrap();
        same_frame(&event, before, &out, after);
        let Some(known) = &mut sides else {
            continue;
        };
        match tree(before) {
            Some(document) => {
                assert_eq!(text(after), known.event(document).to_string());
                outcome = Outcome::Compared;
            }
            // This may have been the first event of a choice.
            None => sides = None,
        }
    }
    outcome
}

fn same_frame(event: &[u8], before: &[u8], out: &[u8], after: &[u8]) {
    let start = before.as_ptr() as usize - event.as_ptr() as usize;
    assert_eq!(out[..start], event[..start]);
    let (behind, end) = (start + before.len(), start + after.len());
    assert_eq!(out[end..], event[behind..]);
}

fn payload(event: &[u8]) -> Option<&[u8]> {
    sse::data(event).filter(|payload| payload.starts_with(b"{"))
}

fn index(document: &Value) -> Option<usize> {
    document["index"].as_u64().map(|index| index as usize)
}

/// Prefill's data as trees.
struct Sides {
    merge: Merge,
    batch: Batch,
    /// For each prompt: `meta_info`, or the `logprobs` of a choice.
    prompts: Vec<Option<Map<String, Value>>>,
    echoed: HashSet<usize>,
}

const LISTS: [&str; 4] = ["tokens", "token_logprobs", "text_offset", "top_logprobs"];

impl Sides {
    fn new(merge: Merge, batch: Batch) -> Self {
        Self {
            merge,
            batch,
            prompts: vec![None; batch.prompts()],
            echoed: HashSet::new(),
        }
    }

    /// Adds a document of prefill. An event names its prompt by an index; without one it is the first.
    fn read(&mut self, document: &Value, event: Option<usize>) {
        match (self.merge, document) {
            (Merge::Echo, _) => {
                for choice in document["choices"].as_array().into_iter().flatten() {
                    let place = &mut self.prompts[index(choice).unwrap_or_default()];
                    if let Some(logprobs) = choice["logprobs"].as_object() {
                        *place = Some(logprobs.clone());
                    }
                }
            }
            (_, Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    self.prompts[index] = item["meta_info"].as_object().cloned();
                }
            }
            (_, item) => {
                self.prompts[event.unwrap_or_default()] = item["meta_info"].as_object().cloned();
            }
        }
    }

    fn document(&mut self, mut decode: Value) -> Value {
        match (self.merge, self.batch, &mut decode) {
            (Merge::Echo, ..) => self.echo(&mut decode, false),
            (_, Batch::Of(_), Value::Array(items)) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.fill(index, item);
                }
            }
            (_, _, item) => self.fill(0, item),
        }
        decode
    }

    fn event(&mut self, mut decode: Value) -> Value {
        match self.merge {
            Merge::Echo => self.echo(&mut decode, true),
            _ => self.fill(index(&decode).unwrap_or_default(), &mut decode),
        }
        decode
    }

    fn fill(&self, index: usize, item: &mut Value) {
        let Some(Value::Object(decode)) = item.get_mut("meta_info") else {
            return;
        };
        let prefill = self.prompts[index].as_ref().unwrap();
        let is_prompts = |name: &&String| name.starts_with("input_") && name.contains("logprobs");
        let names: Vec<&String> = prefill.keys().filter(is_prompts).collect();
        let nested = "input_top_logprobs";
        let flat = names
            .iter()
            .any(|name| name.starts_with("input_top_logprobs_"));
        if flat && !prefill.contains_key(nested) {
            decode.shift_remove(nested);
        }
        for name in names {
            decode.insert(name.clone(), prefill[name].clone());
        }
        let rows = "output_token_ids_logprobs";
        let is_empty = |row: &Value| row.is_null() || row.as_array().is_some_and(Vec::is_empty);
        let first = prefill.get(rows).and_then(|rows| rows.get(0));
        if let (Some(first), Some(Value::Array(rows))) = (first, decode.get_mut(rows))
            && rows.first().is_some_and(is_empty)
            && !is_empty(first)
        {
            rows[0] = first.clone();
        }
    }

    /// In a stream only the first event of a choice gets prefill's data.
    fn echo(&mut self, decode: &mut Value, once: bool) {
        let Some(Value::Array(choices)) = decode.get_mut("choices") else {
            return;
        };
        for choice in choices {
            let index = index(choice).unwrap_or_default();
            let Some(Value::Object(logprobs)) = choice.get_mut("logprobs") else {
                continue;
            };
            if once && !self.echoed.insert(index) {
                continue;
            }
            let prefill = self.prompts[index].as_ref().unwrap();
            for name in LISTS {
                let (Some(Value::Array(prompt)), Some(Value::Array(list))) =
                    (prefill.get(name), logprobs.get_mut(name))
                else {
                    continue;
                };
                let head = &prompt[..prompt.len().saturating_sub(1)];
                list.splice(0..0, head.iter().cloned());
            }
        }
    }
}

fn text(merged: &[u8]) -> String {
    tree(merged).expect("what is merged is JSON").to_string()
}

/// A tree that keeps numbers as they were written; `None` when serde_json makes none, because of a lone
/// surrogate or a reserved key, and when it would lose a repeated key.
fn tree(json: &[u8]) -> Option<Value> {
    let json = std::str::from_utf8(json).ok()?;
    serde_json::from_str::<WithoutRepetition>(json).ok()?;
    let tree = serde_json::from_str(json).ok()?;
    (!json.contains("$serde_json")).then_some(tree)
}

/// A document in which no object has a key twice.
struct WithoutRepetition;

impl<'de> Deserialize<'de> for WithoutRepetition {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for WithoutRepetition {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        let mut names = HashSet::new();
        while let Some((name, Self)) = map.next_entry::<String, Self>()? {
            if !names.insert(name) {
                return Err(A::Error::custom("a key is there twice"));
            }
        }
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self, A::Error> {
        while list.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }
}
