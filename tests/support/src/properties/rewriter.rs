//! Properties of the rewriter: a body that is not a JSON object is refused; of an object the workers get every byte
//! except the fields of the proxy, which are there once with the values of the proxy.
//!
//! Input: a route, whether ids are added, the number of the first room, the body.

use std::fmt::Write;
use std::marker::PhantomData;

use bytes::BytesMut;
use mini_lb::pd::json::{MAX_DEPTH, Scanner};
use mini_lb::pd::{
    self, Batch, Bootstrap, Facts, Fields, Invalid, RequestId, Rid, Room, Route, inject,
};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::decisions::Decisions;

pub const OWNED: [&str; 4] = [
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
    "disagg_prefill_dp_rank",
];

/// Larger batches are not injected here, because that would only be slow.
const MAX_PROMPTS: usize = 1 << 12;

/// The outcome of the body.
pub enum Outcome {
    Refused,
    Rewritten {
        stream: bool,
        batch: bool,
        /// Whether the client had sent fields of the proxy.
        cut: bool,
    },
}

pub fn check(bytes: &[u8]) -> Outcome {
    let mut choices = Decisions::new(bytes);
    let route = Route::ALL[choices.below(Route::ALL.len())];
    let with_ids = choices.yes();
    let first_room = match choices.byte().unwrap_or_default() {
        0 => Room::MAX - MAX_PROMPTS as u64,
        number => u64::from(number),
    };
    let body = choices.rest();

    the_scanner_takes_what_serde_json_takes(body);
    match pd::parse(route, body) {
        Ok(facts) => {
            let text = std::str::from_utf8(body).unwrap();
            let batch = facts.batch != Batch::Single;
            let outcome = Outcome::Rewritten {
                stream: facts.stream,
                batch,
                cut: is_rewritten(route, text, &facts, with_ids, first_room),
            };
            the_facts_are_what_a_tree_says(route, text, &facts);
            outcome
        }
        Err(why) => {
            is_refused_for_this(route, body, why);
            Outcome::Refused
        }
    }
}

/// Intended differences: serde_json skips values of any depth and the scanner stops at [`MAX_DEPTH`].
pub fn the_scanner_takes_what_serde_json_takes(bytes: &[u8]) -> bool {
    let scans = Scanner::new(bytes).is_ok_and(|mut s| s.skip().is_ok() && s.end().is_ok());
    assert_eq!(scans, is_json(bytes) && depth(bytes) <= MAX_DEPTH);
    scans
}

fn is_json(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok())
}

/// The greatest number of open containers in a JSON text.
fn depth(json: &[u8]) -> usize {
    let (mut open, mut most, mut in_string, mut escaped) = (0usize, 0, false, false);
    for byte in json {
        match byte {
            _ if in_string => {
                in_string = escaped || *byte != b'"';
                escaped = *byte == b'\\' && !escaped;
            }
            b'"' => in_string = true,
            b'{' | b'[' => open += 1,
            b'}' | b']' => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}

fn is_refused_for_this(route: Route, body: &[u8], why: Invalid) {
    let is_object = body.trim_ascii_start().starts_with(b"{");
    let fits = is_json(body) && depth(body) <= MAX_DEPTH;
    match why {
        Invalid::NotJson { offset, .. } => {
            assert!(!is_json(body) && offset <= body.len());
        }
        Invalid::TooDeep { offset } => {
            assert!(depth(&body[..=offset]) > MAX_DEPTH);
        }
        Invalid::NotAnObject => assert!(fits && !is_object),
        Invalid::Option(why) => {
            assert!(fits && is_object);
            let field = why.field.rsplit('.').next().unwrap();
            assert!(why.to_string().contains(field));
            let Some(tree) = tree(std::str::from_utf8(body).unwrap()) else {
                return;
            };
            let in_sampling = |params: &Value| match params {
                Value::Array(list) => list.iter().any(|params| !params[field].is_null()),
                params => !params[field].is_null(),
            };
            assert!(!tree[field].is_null() || in_sampling(&tree["sampling_params"]));
        }
        Invalid::BeamSearch => {
            assert!(fits && is_object && route == Route::Generate);
            let Some(tree) = tree(std::str::from_utf8(body).unwrap()) else {
                return;
            };
            let beams =
                |params: &Value| params["beam_width"].as_u64().is_some_and(|width| width > 1);
            match &tree["sampling_params"] {
                Value::Array(list) => assert!(list.iter().any(beams)),
                params => assert!(beams(params)),
            }
        }
        Invalid::Samples(refusal) => {
            assert!(fits && is_object);
            assert!(is_json(&refusal.body) && !refusal.message.is_empty());
            let Some(tree) = tree(std::str::from_utf8(body).unwrap()) else {
                return;
            };
            let many = |params: &Value| params["n"].as_i64().is_some_and(|n| n > 1);
            match route {
                Route::Generate => match &tree["sampling_params"] {
                    Value::Array(list) => assert!(list.iter().any(many)),
                    params => assert!(many(params)),
                },
                // Another reason than a list of ids does not exist here.
                Route::ChatCompletions | Route::Completions => assert!(tree["rid"].is_array()),
                Route::Responses | Route::Messages => panic!("{body:?} has no samples"),
            }
        }
    }
}

/// Returns whether members of the client were cut out.
fn is_rewritten(route: Route, body: &str, facts: &Facts, with_ids: bool, first_room: u64) -> bool {
    let prompts = facts.batch.prompts();
    if prompts > MAX_PROMPTS {
        return false;
    }
    let rooms =
        |first: u64| -> Vec<Room> { (first..).map_while(Room::new).take(prompts).collect() };
    let ids: Vec<RequestId> = (0..prompts as u128)
        .map(|n| RequestId(n << 64 | u128::from(first_room)))
        .collect();
    // As the proxy does: the id of a client stays, and these two endpoints take none.
    let takes_ids = facts.rid.is_none() && !matches!(route, Route::Responses | Route::Messages);
    let rids = (with_ids && takes_ids).then_some(&ids[..]);
    let bootstrap = Bootstrap::new("fd00::1", Some(8998));
    let numbers = rooms(first_room);
    let fields = Fields {
        bootstrap: &bootstrap,
        rooms: &numbers,
        rank: None,
        rids,
    };
    let mut bytes = BytesMut::with_capacity(body.len() + pd::tail_reserve(prompts));
    bytes.extend_from_slice(body.as_bytes());
    let injected = inject(bytes, facts, &fields);

    let kept = without_owned(body);
    let text = std::str::from_utf8(&injected.body).unwrap();
    let wanted = kept.clone() + &tail(&kept, facts.batch, &fields);
    assert_eq!(text, wanted, "{body}");
    assert!(is_json(text.as_bytes()), "{text}");
    the_members_are_the_clients_and_ours(body, text, facts.batch, &fields);

    // For another pair only the fields change, and the first fields again give the first body.
    let other = Bootstrap::new("p\"\\é", None);
    let numbers = rooms(first_room + 1);
    let others = Fields {
        bootstrap: &other,
        rooms: &numbers,
        rank: Some(7),
        rids,
    };
    let again = injected.again(&others);
    assert_eq!(again.body, inject(body.into(), facts, &others).body);
    assert_eq!(again.again(&fields).body, injected.body);
    kept.len() + 1 < body.trim_end().len()
}

/// A strict parser reads, in order: the client's members without the owned ones, then ours, each once.
/// Not checked when a key cannot be a Rust string.
fn the_members_are_the_clients_and_ours(
    before: &str,
    after: &str,
    batch: Batch,
    fields: &Fields<'_>,
) {
    let (Ok(before), Ok(after)) = (
        serde_json::from_str::<Members>(before),
        serde_json::from_str::<Members>(after),
    ) else {
        return;
    };
    let is_owned = |(name, _): &&(String, Box<RawValue>)| OWNED.contains(&name.as_str());
    let mut wanted: Vec<(&str, String)> = before
        .0
        .iter()
        .filter(|member| !is_owned(member))
        .map(|(name, value)| (name.as_str(), value.get().to_owned()))
        .collect();
    wanted.extend(ours(batch, fields));
    let found: Vec<(&str, String)> = after
        .0
        .iter()
        .map(|(name, value)| (name.as_str(), value.get().to_owned()))
        .collect();
    assert_eq!(found, wanted);
}

/// The members of an object in order, with repeated ones, and their values as they were written.
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct InOrder(PhantomData<()>);

        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        from.deserialize_map(InOrder(PhantomData))
    }
}

/// The members of the proxy as a worker must read them.
fn ours(batch: Batch, fields: &Fields<'_>) -> Vec<(&'static str, String)> {
    let prompts = fields.rooms.len();
    let list = |items: Vec<String>| match batch {
        Batch::Single => items.concat(),
        Batch::Of(_) => format!("[{}]", items.join(",")),
    };
    let host = Value::from(fields.bootstrap.host()).to_string();
    let port = Value::from(fields.bootstrap.port()).to_string();
    let rooms = fields.rooms.iter().map(Room::to_string).collect();
    let mut ours = vec![
        (OWNED[0], list(vec![host; prompts])),
        (OWNED[1], list(vec![port; prompts])),
        (OWNED[2], list(rooms)),
    ];
    if let Some(rank) = fields.rank {
        ours.push((OWNED[3], rank.to_string()));
    }
    if let Some(rids) = fields.rids {
        let rids = rids.iter().map(|id| format!("\"{id}\"")).collect();
        ours.push(("rid", list(rids)));
    }
    ours
}

/// The text that ends an injected body.
fn tail(kept: &str, batch: Batch, fields: &Fields<'_>) -> String {
    let mut first = kept.trim().trim_start_matches('{').trim().is_empty();
    let mut tail = String::new();
    for (name, value) in ours(batch, fields) {
        let comma = if std::mem::take(&mut first) { "" } else { "," };
        write!(tail, "{comma}\"{name}\":{value}").unwrap();
    }
    tail + "}"
}

/// The body up to its closing brace without the owned members and one comma for each, found character by
/// character: an object is what stands between its commas.
fn without_owned(body: &str) -> String {
    let (mut depth, mut in_string, mut escaped) = (0, false, false);
    let (mut kept, mut member, mut any_kept) = (String::new(), String::new(), false);
    for c in body.chars() {
        if in_string {
            in_string = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            member.push(c);
            continue;
        }
        in_string = c == '"';
        match c {
            '{' if depth == 0 => {
                depth = 1;
                kept = member.split_off(0) + "{";
                continue;
            }
            ',' | '}' if depth == 1 => {
                let name = member.trim_start();
                if name.is_empty() || is_owned(name) {
                    let spaces = member.len() - name.len();
                    kept += &member[..spaces];
                    kept += &name[name.trim_end().len()..];
                } else {
                    kept += if any_kept { "," } else { "" };
                    kept += &member;
                    any_kept = true;
                }
                member.clear();
                if c == '}' {
                    return kept;
                }
                continue;
            }
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            _ => {}
        }
        member.push(c);
    }
    panic!("no object: {body}");
}

/// Whether a member, `"key" : value`, has a key of the proxy's.
fn is_owned(member: &str) -> bool {
    let mut strings = serde_json::Deserializer::from_str(member).into_iter::<String>();
    strings
        .next()
        .unwrap()
        .is_ok_and(|key| OWNED.contains(&key.as_str()))
}

/// A tree with the last of repeated members; `None` when serde_json makes none, because of a lone
/// surrogate or a reserved key.
fn tree(body: &str) -> Option<Value> {
    let tree = serde_json::from_str(body).ok()?;
    (!body.contains("$serde_json")).then_some(tree)
}

fn the_facts_are_what_a_tree_says(route: Route, body: &str, facts: &Facts) {
    let Some(tree) = tree(body) else {
        return;
    };
    match &tree["stream"] {
        Value::Bool(stream) => assert_eq!(facts.stream, *stream, "{body}"),
        Value::Null => assert!(!facts.stream, "{body}"),
        _ => assert!(!facts.stream || route != Route::Generate, "{body}"),
    }
    let rid = match &tree["rid"] {
        Value::String(id) => Some(Rid::One(id.clone())),
        Value::Array(ids) => Some(Rid::Many(ids.len())),
        _ => None,
    };
    assert_eq!(facts.rid, rid, "{body}");
    if route == Route::Generate {
        assert_eq!(facts.batch, batch_of_generate(&tree), "{body}");
    }
}

/// The first prompt field that is present decides. A list of lists or of strings is a batch; any other value
/// is one prompt, as is the empty list of tokens.
fn batch_of_generate(tree: &Value) -> Batch {
    let list = |prompts: &Value, passes: &dyn Fn(&Value) -> bool| {
        let prompts = prompts.as_array()?;
        prompts.iter().all(passes).then_some(prompts.len())
    };
    let nested = |prompt: &Value| {
        let vectors = prompt.as_array();
        vectors.is_some_and(|vectors| vectors.first().is_some_and(Value::is_array))
    };
    let some = |prompts: &usize| *prompts > 0;
    let (text, ids, embeds) = (&tree["text"], &tree["input_ids"], &tree["input_embeds"]);
    let found = if !text.is_null() {
        list(text, &Value::is_string)
    } else if !ids.is_null() {
        list(ids, &Value::is_array).filter(some)
    } else {
        list(embeds, &nested).filter(some)
    };
    found.map_or(Batch::Single, Batch::Of)
}
