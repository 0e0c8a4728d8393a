//! Two trees, field by field, and the table of fields that differ between any two servers.
//!
//! Keys and values must be equal; numbers with a fraction within a tolerance; tokens of equal logprob in any
//! order. [`IGNORED`] lists the fields that may differ, with reasons.

use serde_json::{Map, Value};

/// Logprobs of two runs of the same engine differ only by the rounding of bfloat16.
const TOLERANCE: f64 = 1e-3;

/// Longer values are cut in a report.
const SHOWN: usize = 160;

/// The properties of a request that decide which fields may differ.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Leeway {
    /// It has more prompts than one.
    pub(crate) batch: bool,
    /// The client chose the request id.
    pub(crate) rid: bool,
}

/// One place in which two responses differ.
#[derive(Debug)]
pub(crate) struct Difference {
    pub(crate) path: String,
    pub(crate) ordinary: String,
    pub(crate) mini_lb: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Difference {
            path,
            ordinary,
            mini_lb,
        } = self;
        write!(f, "{path}: ordinary {ordinary}, mini-lb {mini_lb}")
    }
}

/// A field that is not compared, or not in full.
struct Ignored {
    key: &'static str,
    what: What,
    /// Why two responses of one server differ here as well.
    _reason: &'static str,
}

/// Which part of a field is ignored, and when.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// Its value, unless the client chose it.
    DrawnValue,
    /// Its value.
    Value,
    /// Its value, in a request with more prompts than one.
    BatchValue,
    /// Its value and its presence.
    Field,
}

const IGNORED: [Ignored; 27] = {
    const fn ignored(key: &'static str, what: What, reason: &'static str) -> Ignored {
        Ignored {
            key,
            what,
            _reason: reason,
        }
    }
    const UNMEASURED: &str =
        "measured by each server for itself, and by decode less than by an ordinary one";
    [
        ignored("id", What::DrawnValue, "the server draws it"),
        ignored("item_id", What::Value, "the server draws it"),
        ignored("request_id", What::Value, "the server draws it"),
        ignored(
            "system_fingerprint",
            What::Value,
            "a hash of the server's configuration",
        ),
        ignored(
            "created_cache_tokens",
            What::Value,
            "decode has fetched what an ordinary server has created",
        ),
        ignored(
            "cache_write_tokens",
            What::Value,
            "decode has fetched what an ordinary server has created",
        ),
        ignored("created", What::Value, "a clock"),
        ignored("created_at", What::Value, "a clock"),
        ignored(
            "sequence_number",
            What::Value,
            "counts the events, and tokens are coalesced by a clock",
        ),
        ignored(
            "cached_tokens",
            What::BatchValue,
            "items race for the prefix cache",
        ),
        ignored(
            "cached_tokens_details",
            What::BatchValue,
            "items race for the prefix cache",
        ),
        ignored("e2e_latency", What::Field, UNMEASURED),
        ignored("first_token_latency", What::Field, UNMEASURED),
        ignored("queue_time", What::Field, UNMEASURED),
        ignored("prefill_launch_delay", What::Field, UNMEASURED),
        ignored("prefill_launch_latency", What::Field, UNMEASURED),
        ignored("inference_time", What::Field, UNMEASURED),
        ignored("decode_throughput", What::Field, UNMEASURED),
        ignored("request_received_ts", What::Field, UNMEASURED),
        ignored("api_server_dispatch_finish_ts", What::Field, UNMEASURED),
        ignored("response_sent_to_client_ts", What::Field, UNMEASURED),
        ignored("request_finished_ts", What::Field, UNMEASURED),
        ignored("forward_entry_time", What::Field, UNMEASURED),
        ignored("prefill_finished_time", What::Field, UNMEASURED),
        ignored("prefill_finished_ts", What::Field, UNMEASURED),
        ignored("storage_prefetch_wait", What::Field, UNMEASURED),
        ignored("storage_staging_wait", What::Field, UNMEASURED),
    ]
};

/// Every place in which the trees differ.
pub(crate) fn differences(ordinary: &Value, mini_lb: &Value, leeway: Leeway) -> Vec<Difference> {
    let mut walk = Walk {
        leeway,
        found: Vec::new(),
    };
    walk.values("", "", ordinary, mini_lb);
    walk.found
}

struct Walk {
    leeway: Leeway,
    found: Vec<Difference>,
}

impl Walk {
    fn values(&mut self, path: &str, key: &str, ordinary: &Value, mini_lb: &Value) {
        match what_of(key) {
            Some(What::Field | What::Value) => return,
            Some(What::BatchValue) if self.leeway.batch => return,
            Some(What::DrawnValue) if !self.leeway.rid => return,
            _ => {}
        }
        if key.ends_with("top_logprobs") {
            return self.rows(path, &rows(ordinary), &rows(mini_lb));
        }
        match (ordinary, mini_lb) {
            (Value::Object(a), Value::Object(b)) => self.objects(path, a, b),
            (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
                for (at, (a, b)) in a.iter().zip(b).enumerate() {
                    self.values(&format!("{path}[{at}]"), "", a, b);
                }
            }
            (Value::Array(a), Value::Array(b)) => {
                self.note(
                    path,
                    format!("{} elements {}", a.len(), short(ordinary)),
                    format!("{} elements {}", b.len(), short(mini_lb)),
                );
            }
            (Value::Number(_), Value::Number(_)) if near(ordinary, mini_lb) => {}
            (Value::String(a), Value::String(b)) if plain(a) == plain(b) => {}
            _ if ordinary == mini_lb => {}
            _ => self.note(path, short(ordinary), short(mini_lb)),
        }
    }

    fn objects(&mut self, path: &str, a: &Map<String, Value>, b: &Map<String, Value>) {
        for (key, value) in a {
            let path = format!("{path}.{key}");
            match b.get(key) {
                _ if is_half_of_a_flat_pair(key, a) && is_half_of_a_flat_pair(key, b) => {}
                Some(other) => self.values(&path, key, value, other),
                None if what_of(key) == Some(What::Field) => {}
                None => self.note(&path, short(value), "absent".to_owned()),
            }
        }
        for (key, value) in b {
            if !a.contains_key(key) && what_of(key) != Some(What::Field) {
                let path = format!("{path}.{key}");
                self.note(&path, "absent".to_owned(), short(value));
            }
        }
        for prefix in ["input_top_logprobs", "output_top_logprobs"] {
            if let (Some(a), Some(b)) = (flat_rows(prefix, a), flat_rows(prefix, b)) {
                self.rows(&format!("{path}.{prefix}_*_flat"), &a, &b);
            }
        }
    }

    /// Rows of most probable tokens: the logprobs are equal in order. A token may differ where
    /// its logprob is not unique, and at the end of the row, where the next logprob may be equal.
    fn rows(&mut self, path: &str, ordinary: &[Row], mini_lb: &[Row]) {
        if ordinary.len() != mini_lb.len() {
            let said = |rows: &[Row]| format!("{} rows", rows.len());
            return self.note(path, said(ordinary), said(mini_lb));
        }
        for (at, (a, b)) in ordinary.iter().zip(mini_lb).enumerate() {
            let equal = match (a, b) {
                (None, None) => true,
                (Some(a), Some(b)) => same_row(a, b),
                _ => false,
            };
            if !equal {
                let path = format!("{path}[{at}]");
                self.note(&path, cut(&format!("{a:?}")), cut(&format!("{b:?}")));
            }
        }
    }

    fn note(&mut self, path: &str, ordinary: String, mini_lb: String) {
        self.found.push(Difference {
            path: path.trim_start_matches('.').to_owned(),
            ordinary,
            mini_lb,
        });
    }
}

/// The ignored part of a field, if any.
fn what_of(key: &str) -> Option<What> {
    let ignored = IGNORED.iter().find(|ignored| ignored.key == key);
    ignored.map(|ignored| ignored.what)
}

/// The most probable tokens of one position, or null.
type Row = Option<Vec<(f64, String)>>;

/// The rows of `/generate` (lists of triples), of completions (objects by token) and of chat (one row,
/// a list of objects).
fn rows(value: &Value) -> Vec<Row> {
    let Some(list) = value.as_array() else {
        return vec![None];
    };
    if list.iter().any(|entry| entry.get("token").is_some()) {
        return vec![Some(list.iter().map(entry).collect())];
    }
    let row = |value: &Value| match value {
        Value::Array(triples) => Some(triples.iter().map(entry).collect()),
        Value::Object(names) => {
            let entry = |(name, logprob): (&String, &Value)| (float(logprob), name.clone());
            Some(names.iter().map(entry).collect())
        }
        _ => None,
    };
    list.iter().map(row).collect()
}

fn entry(value: &Value) -> (f64, String) {
    match value {
        Value::Array(triple) => {
            let logprob = triple.first().map_or(f64::NAN, float);
            (
                logprob,
                triple
                    .get(1..)
                    .map(|rest| format!("{rest:?}"))
                    .unwrap_or_default(),
            )
        }
        _ => (float(&value["logprob"]), value["token"].to_string()),
    }
}

/// The rows of the flat form: values, token ids and a shape instead of lists of triples.
///
/// Source: SGLang 0.5.23, `srt/managers/tokenizer_manager.py` (`return_flat_raw_top_logprobs`).
fn flat_rows(prefix: &str, object: &Map<String, Value>) -> Option<Vec<Row>> {
    let list = |name: &str| object.get(&format!("{prefix}_{name}"))?.as_array();
    let width = usize::try_from(list("shape")?.get(1)?.as_u64()?).ok()?;
    let pairs: Vec<(f64, String)> = list("val_flat")?
        .iter()
        .zip(list("idx_flat")?)
        .map(|(value, id)| (float(value), id.to_string()))
        .collect();
    Some(
        pairs
            .chunks(width.max(1))
            .map(|row| Some(row.to_vec()))
            .collect(),
    )
}

fn is_half_of_a_flat_pair(key: &str, object: &Map<String, Value>) -> bool {
    key.strip_suffix("_val_flat")
        .or_else(|| key.strip_suffix("_idx_flat"))
        .is_some_and(|prefix| flat_rows(prefix, object).is_some())
}

fn same_row(a: &[(f64, String)], b: &[(f64, String)]) -> bool {
    let sorted = |row: &[(f64, String)]| {
        let mut row = row.to_vec();
        row.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        row
    };
    let (a, b) = (sorted(a), sorted(b));
    let close = |a: f64, b: f64| (a - b).abs() <= TOLERANCE;
    let tied = |at: usize| {
        at + 1 == a.len() || close(a[at].0, a[at + 1].0) || (at > 0 && close(a[at].0, a[at - 1].0))
    };
    a.len() == b.len()
        && a.iter()
            .zip(&b)
            .enumerate()
            .all(|(at, (a, b))| close(a.0, b.0) && (a.1 == b.1 || tied(at)))
}

/// Whole numbers are compared exactly, others within the tolerance.
fn near(a: &Value, b: &Value) -> bool {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => a == b,
        _ => (float(a) - float(b)).abs() <= TOLERANCE,
    }
}

fn float(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

/// A text without the request ids of the server, which its messages quote.
fn plain(text: &str) -> String {
    let words = text.split_inclusive(|c: char| !c.is_ascii_hexdigit());
    words
        .map(|word| {
            let id = word.trim_end_matches(|c: char| !c.is_ascii_hexdigit());
            match id.len() {
                32 => word.replace(id, "<id>"),
                _ => word.to_owned(),
            }
        })
        .collect()
}

fn short(value: &Value) -> String {
    cut(&value.to_string())
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn paths(ordinary: Value, mini_lb: Value) -> Vec<String> {
        let found = differences(&ordinary, &mini_lb, Leeway::default());
        found
            .into_iter()
            .map(|difference| difference.path)
            .collect()
    }

    #[test]
    fn every_kind_of_difference_is_found_with_its_path() {
        for (ordinary, mini_lb, path) in [
            (
                json!({ "a": [{ "b": 1 }] }),
                json!({ "a": [{ "b": 2 }] }),
                "a[0].b",
            ),
            (json!({ "a": -1.5 }), json!({ "a": -1.502 }), "a"),
            (json!({ "a": null }), json!({}), "a"),
            (json!({}), json!({ "a": null }), "a"),
            (json!({ "a": [] }), json!({ "a": [1] }), "a"),
            (json!({ "a": "x" }), json!({ "a": "y" }), "a"),
            (json!({ "id": "x" }), json!({}), "id"),
            (
                json!({ "cached_tokens": 5 }),
                json!({ "cached_tokens": 6 }),
                "cached_tokens",
            ),
        ] {
            assert_eq!(paths(ordinary, mini_lb), [path]);
        }
    }

    #[test]
    fn what_a_server_draws_or_measures_is_no_difference() {
        let ordinary = json!({ "id": "a", "created": 1, "e2e_latency": 0.5, "a": -1.5, "m": "rid=0123456789abcdef0123456789abcdef" });
        let mini_lb = json!({ "id": "b", "created": 2, "a": -1.5004, "m": "rid=fedcba9876543210fedcba9876543210" });
        assert_eq!(paths(ordinary, mini_lb), [""; 0]);
    }

    #[test]
    fn an_id_that_the_client_chose_is_compared() {
        let leeway = Leeway {
            rid: true,
            batch: false,
        };
        let found = differences(&json!({ "id": "a" }), &json!({ "id": "b" }), leeway);
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn tokens_may_swap_where_their_logprobs_are_equal_and_nowhere_else() {
        let row = |ids: [u32; 4]| {
            let logprobs = [-0.1, -2.0, -2.0, -3.0];
            let triples = logprobs
                .iter()
                .zip(ids)
                .map(|(logprob, id)| json!([logprob, id, null]));
            json!({ "output_top_logprobs": [triples.collect::<Vec<_>>()] })
        };
        let ordinary = row([1, 2, 3, 4]);
        assert_eq!(paths(ordinary.clone(), row([1, 3, 2, 4])), [""; 0]);
        assert_eq!(paths(ordinary.clone(), row([1, 2, 3, 9])), [""; 0]);
        assert_eq!(
            paths(ordinary, row([9, 2, 3, 4])),
            ["output_top_logprobs[0]"]
        );
    }

    #[test]
    fn rows_of_the_flat_form_are_compared_as_rows() {
        let flat = |ids: [u32; 4], values: [f64; 4]| {
            json!({
                "input_top_logprobs_val_flat": values,
                "input_top_logprobs_idx_flat": ids,
                "input_top_logprobs_shape": [2, 2],
            })
        };
        let values = [-0.1, -0.2, -1.0, -1.0];
        let ordinary = flat([1, 2, 3, 4], values);
        assert_eq!(paths(ordinary.clone(), flat([1, 2, 4, 3], values)), [""; 0]);
        let path = "input_top_logprobs_*_flat[0]";
        assert_eq!(paths(ordinary.clone(), flat([9, 2, 3, 4], values)), [path]);
        assert_eq!(
            paths(ordinary, flat([1, 2, 3, 4], [-0.1, -0.3, -1.0, -1.0])),
            [path]
        );
    }
}
