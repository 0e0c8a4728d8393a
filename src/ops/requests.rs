//! `/debug/requests`: the live requests, the last ones and the slowest ones, as JSON. docs/debug.md describes it.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::StatusCode;
use serde::Serialize;

use super::{Ops, error};
use crate::endpoint::{WholeRequest, WholeResponse};
use crate::error::Code;
use crate::fleet::Role;
use crate::telemetry::{Row, Shown, Snapshot};

/// The most rows of one list.
const MAX_ROWS: usize = 1000;

/// The lists without a query, and how many rows they have then.
const LISTS: [(&str, usize); 3] = [("live", 100), ("last", 20), ("slowest", 20)];

/// The workers that a message names. A large fleet has more.
const MAX_NAMED: usize = 8;

/// The longest text of a query that a message repeats, in characters.
const MAX_QUOTED: usize = 64;

/// What a query asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    id: Option<String>,
    /// The rows of each of [`LISTS`]; `None` where no list is named.
    rows: Option<[usize; LISTS.len()]>,
    /// URLs of workers.
    prefill: Option<String>,
    decode: Option<String>,
}

impl Ops {
    /// The requests that the query asks for.
    pub(super) fn requests(&self, request: &WholeRequest) -> WholeResponse {
        let refused = |code, message: String| error::error(&request.path, code, &message);
        let requests = &self.telemetry.requests;
        if requests.capacity() == 0 {
            let message = "no request is remembered, because debug_requests_capacity is 0";
            return refused(Code::NotFound, message.to_owned());
        }
        let wanted = match Wanted::of(request.query.as_deref().unwrap_or_default()) {
            Ok(wanted) => wanted,
            Err(message) => return refused(Code::BadQuery, message),
        };
        let snapshot = requests.snapshot();
        for (name, role, url) in wanted.workers() {
            if let Some(message) = self.unknown_worker(name, role, url, &snapshot) {
                return refused(Code::BadQuery, message);
            }
        }
        match &wanted.id {
            None => json(&lists(&snapshot, &wanted, requests.capacity())),
            Some(id) => match named(&snapshot, &wanted, id) {
                found if found.is_empty() => refused(Code::UnknownRequest, unknown(&snapshot, id)),
                found => json(&BTreeMap::from([("requests", found)])),
            },
        }
    }

    /// Why this is no worker: neither one of the fleet, nor one that a remembered request had.
    fn unknown_worker(
        &self,
        name: &str,
        role: Role,
        url: &str,
        snapshot: &Snapshot,
    ) -> Option<String> {
        let members = self.fleet.members();
        let workers = members.of(role);
        let is_known = workers.iter().any(|worker| worker.url() == url)
            || snapshot.rows().any(|row| row.is_at(role, url));
        if is_known {
            return None;
        }
        let urls = workers.iter().map(|worker| worker.url());
        let named = urls.take(MAX_NAMED).collect::<Vec<_>>().join(", ");
        let more = match workers.len().saturating_sub(MAX_NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(format!(
            "`{name}` is the URL of a {role} worker as configured, not `{}`; there are {named}{more}",
            quoted(url)
        ))
    }
}

impl Wanted {
    /// # Errors
    /// A sentence about the parameter that is wrong.
    fn of(query: &str) -> Result<Self, String> {
        let mut wanted = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(value)
                .ok_or_else(|| format!("the value of `{}` is no text", quoted(name)))?;
            let text = |what: &str| match value.is_empty() {
                true => Err(format!("`{name}` is {what}, and is empty here")),
                false => Ok(Some(value.clone())),
            };
            match name {
                "id" => wanted.id = text("the id of a request, as `x-request-id` has it")?,
                "prefill" => wanted.prefill = text("the URL of a prefill worker as configured")?,
                "decode" => wanted.decode = text("the URL of a decode worker as configured")?,
                _ => match LISTS.iter().position(|(list, _)| *list == name) {
                    Some(list) => {
                        let rows = wanted.rows.get_or_insert([0; LISTS.len()]);
                        rows[list] = number(name, &value)?;
                    }
                    None => {
                        return Err(format!(
                            "there is no parameter `{}`; there are live, last and slowest (numbers), id, prefill and decode",
                            quoted(name)
                        ));
                    }
                },
            }
        }
        Ok(wanted)
    }

    /// The workers that the rows must be at.
    fn workers(&self) -> impl Iterator<Item = (&'static str, Role, &str)> {
        let prefill = self.prefill.as_deref();
        let prefill = prefill.map(|url| ("prefill", Role::Prefill, url));
        let decode = self.decode.as_deref();
        let decode = decode.map(|url| ("decode", Role::Decode, url));
        prefill.into_iter().chain(decode)
    }

    fn takes(&self, row: &Row) -> bool {
        self.workers().all(|(_, role, url)| row.is_at(role, url))
    }
}

/// The answer without an id. Lists that are not asked for are left out.
#[derive(Serialize)]
struct Lists<'a> {
    capacity: usize,
    finished_total: u64,
    remembered: usize,
    live_total: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<Vec<Shown<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<Vec<Shown<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    slowest: Option<SlowestLists<'a>>,
}

#[derive(Serialize)]
struct SlowestLists<'a> {
    by_ttft: Vec<Shown<'a>>,
    by_e2e: Vec<Shown<'a>>,
}

fn lists<'a>(snapshot: &'a Snapshot, wanted: &Wanted, capacity: usize) -> Lists<'a> {
    let rows = wanted.rows.unwrap_or(LISTS.map(|(_, rows)| rows));
    let is_named = |list: usize| wanted.rows.is_none() || rows[list] > 0;
    let list = |index: usize, of: &'a [Arc<Row>]| -> Vec<Shown<'a>> {
        let taken = of.iter().filter(|row| wanted.takes(row));
        let taken = taken.take(rows[index]);
        taken.map(|row| Shown(row, snapshot.now)).collect()
    };
    Lists {
        capacity,
        finished_total: snapshot.finished_total,
        remembered: snapshot.last.len(),
        live_total: snapshot.live.len(),
        live: is_named(0).then(|| list(0, &snapshot.live)),
        last: is_named(1).then(|| list(1, &snapshot.last)),
        slowest: is_named(2).then(|| SlowestLists {
            by_ttft: list(2, &snapshot.slowest.by_ttft),
            by_e2e: list(2, &snapshot.slowest.by_e2e),
        }),
    }
}

/// The requests with this id: the live ones, then the others, the newest first. Each is there once.
fn named<'a>(snapshot: &'a Snapshot, wanted: &Wanted, id: &str) -> Vec<Shown<'a>> {
    let mut found: Vec<&Arc<Row>> = Vec::new();
    for row in snapshot.rows() {
        let is_new = || !found.iter().any(|other| Arc::ptr_eq(other, row));
        if row.is_called(id) && wanted.takes(row) && is_new() {
            found.push(row);
        }
    }
    let found = found.into_iter().take(MAX_ROWS);
    found.map(|row| Shown(row, snapshot.now)).collect()
}

/// Why there is no request with this id.
fn unknown(snapshot: &Snapshot, id: &str) -> String {
    let id = quoted(id);
    let remembered = snapshot.last.len();
    match snapshot.last.last() {
        Some(oldest) if snapshot.finished_total > remembered as u64 => {
            let ago = snapshot.now.saturating_duration_since(oldest.ended_at());
            format!(
                "no request `{id}` is live or remembered: it never came here, or it finished before the last {remembered} \
                 requests, the oldest of which finished {:.1} s ago, and was none of the slowest",
                ago.as_secs_f64()
            )
        }
        _ => format!(
            "no request `{id}` with two legs has come here: all {remembered} that have finished since the start are remembered"
        ),
    }
}

fn json(body: &impl Serialize) -> WholeResponse {
    // Serializing to memory does not fail.
    let body = serde_json::to_vec(body).unwrap_or_default();
    WholeResponse::new(StatusCode::OK, "application/json", body)
}

fn number(name: &str, value: &str) -> Result<usize, String> {
    let number = value.parse().ok().filter(|rows| *rows <= MAX_ROWS);
    let is_plain = value.bytes().all(|byte| byte.is_ascii_digit());
    number.filter(|_| is_plain).ok_or_else(|| {
        format!(
            "`{name}` is a number of rows from 0 to {MAX_ROWS}, not `{}`",
            quoted(value)
        )
    })
}

/// The beginning of a text of the client, for a message.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// The value of a parameter without its percent signs; `None` where it is no text.
pub(super) fn decoded(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        bytes.push(match first {
            b'+' => b' ',
            b'%' => {
                let (digits, after) = rest.split_at_checked(2)?;
                rest = after;
                // A sign is no digit, though a number may begin with one.
                let digits = std::str::from_utf8(digits).ok()?;
                let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_lists_a_request_and_workers() {
        let wanted =
            Wanted::of("live=3&slowest=0&id=a%2Fb+c&prefill=http://a:1&decode=http%3A%2F%2Fb%3a2");
        let expected = Wanted {
            id: Some("a/b c".to_owned()),
            rows: Some([3, 0, 0]),
            prefill: Some("http://a:1".to_owned()),
            decode: Some("http://b:2".to_owned()),
        };
        assert_eq!(wanted, Ok(expected));
        assert_eq!(Wanted::of("&&"), Ok(Wanted::default()));
    }

    #[test]
    fn a_wrong_parameter_is_named_with_its_form() {
        let long = "x".repeat(10_000);
        for (query, part) in [
            (
                "last=many",
                "`last` is a number of rows from 0 to 1000, not `many`",
            ),
            ("last=-1", "`last` is a number"),
            ("live=+1", "`live` is a number"),
            ("slowest=1001", "`slowest` is a number"),
            ("slowest=", "`slowest` is a number"),
            ("id=", "`id` is the id of a request"),
            ("id=%zz", "the value of `id` is no text"),
            ("id=%+1", "the value of `id` is no text"),
            ("id=%", "the value of `id` is no text"),
            ("id=%ff", "the value of `id` is no text"),
            ("prefill=", "`prefill` is the URL of a prefill worker"),
            ("decode", "`decode` is the URL of a decode worker"),
            (
                "slow=3",
                "there is no parameter `slow`; there are live, last and slowest",
            ),
            (&long, "there is no parameter `xxx"),
        ] {
            let message = Wanted::of(query).expect_err(query);
            assert!(message.contains(part), "{query}: {message}");
            assert!(message.len() < 300, "{message}");
        }
    }
}
