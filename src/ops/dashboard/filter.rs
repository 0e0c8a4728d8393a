//! Which requests the dashboard shows: the workers in the query, by their URLs.

use crate::fleet::{Members, Role, WorkerId};
use crate::telemetry::Filter;

/// Reads `prefill=URL&decode=URL`; each may be left out.
///
/// # Errors
/// What is wrong, in a sentence.
pub(super) fn parse(query: Option<&str>, members: &Members) -> Result<Filter, String> {
    let mut filter = Filter::default();
    let pairs = query.unwrap_or_default().split('&');
    for pair in pairs.filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (role, place) = match name {
            "prefill" => (Role::Prefill, &mut filter.prefill),
            "decode" => (Role::Decode, &mut filter.decode),
            _ => {
                return Err(
                    "the query of the dashboard takes prefill=URL and decode=URL".to_owned(),
                );
            }
        };
        if place.is_some() {
            return Err(format!("the query names more than one {role} worker"));
        }
        *place = Some(worker(members, role, value)?);
    }
    Ok(filter)
}

fn worker(members: &Members, role: Role, value: &str) -> Result<WorkerId, String> {
    let url = decoded(value);
    let mut of_role = members.of(role).iter();
    let found = of_role.find(|worker| url.as_deref() == Some(worker.url().as_bytes()));
    // The value is not repeated: it may be anything.
    let none = || format!("the query names a {role} worker that is not one of this balancer");
    found.map(|worker| worker.id()).ok_or_else(none)
}

/// The bytes of a value with percent signs; `None` where one is not followed by two digits.
fn decoded(value: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first != b'%' {
            decoded.push(*first);
            continue;
        }
        let (digits, behind) = rest.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok()?;
        decoded.push(u8::from_str_radix(digits, 16).ok()?);
        rest = behind;
    }
    Some(decoded)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fleet::Worker;

    fn members() -> Members {
        let worker = |role, port| Arc::new(Worker::for_tests(role, port));
        Members::new([worker(Role::Prefill, 1), worker(Role::Decode, 2)])
    }

    #[test]
    fn a_worker_is_named_by_its_url() {
        let members = members();
        let id = |role| Some(members.of(role)[0].id());
        let parse = |query| parse(query, &members);
        assert_eq!(parse(None), Ok(Filter::default()));
        assert_eq!(parse(Some("")), Ok(Filter::default()));
        let one = parse(Some("prefill=http%3A%2F%2F127.0.0.1%3a1")).unwrap();
        assert_eq!((one.prefill, one.decode), (id(Role::Prefill), None));
        let both = parse(Some("decode=http://127.0.0.1:2&prefill=http://127.0.0.1:1")).unwrap();
        assert_eq!(
            (both.prefill, both.decode),
            (id(Role::Prefill), id(Role::Decode))
        );
    }

    #[test]
    fn a_wrong_filter_is_an_error_that_does_not_repeat_it() {
        let members = members();
        for query in [
            "prefill=",
            "prefill",
            "prefill=http://127.0.0.1:2",
            "decode=%",
            "decode=%zz",
            "decode=%f",
            "decode=%ff%fe",
            "x=<script>",
            "prefill=http://127.0.0.1:1&prefill=http://127.0.0.1:1",
        ] {
            let why = parse(Some(query), &members).unwrap_err();
            assert!(!why.contains('<') && !why.contains("zz"), "{why}");
        }
    }
}
