//! The values of labels that come from a fixed list, as numbers: no label is built and none is looked up by a client's text.

use std::sync::LazyLock;

use crate::error::{Code, STREAM_ERROR};
use crate::pd::Route;

/// The routes by their number, and the last one for every other path.
pub(super) const ROUTES: [&str; Route::ALL.len() + 1] = {
    let mut names = ["other"; Route::ALL.len() + 1];
    let mut number = 0;
    while number < Route::ALL.len() {
        names[number] = Route::ALL[number].name();
        number += 1;
    }
    names
};

/// The number of a route.
pub(super) fn route_number(route: Option<Route>) -> usize {
    // In the order of `Route::ALL`, as a test checks.
    route.map_or(Route::ALL.len(), |route| route as usize)
}

/// How a request ended, besides the codes of errors.
const WORDS: [&str; 7] = [
    "ok",
    "client_left",
    "client_stalled",
    "rejected",
    "prefill_rejected",
    "decode_rejected",
    STREAM_ERROR,
];

/// How requests end: [`WORDS`], the codes, and a last one for what is none of them.
pub(super) const ENDS: usize = WORDS.len() + Code::ALL.len() + 1;

static ENDED: LazyLock<[&str; ENDS]> = LazyLock::new(|| {
    let mut ended = ["other"; ENDS];
    let names = WORDS
        .into_iter()
        .chain(Code::ALL.into_iter().map(Code::name));
    for (place, name) in ended.iter_mut().zip(names) {
        *place = name;
    }
    ended
});

/// The number of what a record says about its end.
pub(super) fn end_number(ended: &str) -> usize {
    // Most requests end well.
    if ended == WORDS[0] {
        return 0;
    }
    let found = ENDED.iter().position(|known| *known == ended);
    found.unwrap_or(ENDS - 1)
}

/// The word for a number.
pub(super) fn end_name(number: usize) -> &'static str {
    ENDED.get(number).copied().unwrap_or("other")
}

/// The code with this number; `None` where it is a word.
pub(super) fn end_code(number: usize) -> Option<Code> {
    Code::ALL.get(number.checked_sub(WORDS.len())?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_and_every_end_has_its_number() {
        for (number, route) in Route::ALL.into_iter().enumerate() {
            assert_eq!(route_number(Some(route)), number);
            assert_eq!(ROUTES[number], route.name());
        }
        assert_eq!(ROUTES[route_number(None)], "other");
        for (number, name) in ENDED.iter().enumerate() {
            assert_eq!(end_number(name), number);
            assert_eq!(end_name(number), *name);
        }
        for code in Code::ALL {
            assert_eq!(end_code(end_number(code.name())), Some(code));
        }
        assert_eq!(end_code(end_number("ok")), None);
        assert_eq!(end_name(end_number("a worker's own word")), "other");
    }
}
