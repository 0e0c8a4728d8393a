//! The form and the bounds of a setting's values: what every source is checked against.
//!
//! Only text is looked at here. Files that a value names are opened by `resolve.rs`, which also checks values of a
//! finer form (hosts, policies, log filters) itself.

use std::net::SocketAddr;
use std::time::Duration;

use super::Role;
use super::labels::Labels;
use super::origins::AllowedOrigins;
use crate::limits::FromText;

/// The form of a setting's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    /// A text that is never shown.
    Secret,
    Path,
    /// Any number of paths: behind the flag, as a list in the file, with commas in the environment.
    Paths,
    /// Any number of addresses with their ports, in the same forms as paths.
    Addresses,
    /// Origins of web pages, in the same forms as paths, or `*`, or `none`.
    Origins,
    /// Labels of Kubernetes as `key=value`, in the same forms as paths.
    Labels,
    /// One of these words.
    Word(&'static [&'static str]),
    /// The path of a URL.
    UrlPath,
    /// A whole number within these bounds, both included.
    Number {
        min: i64,
        max: u64,
    },
    /// Seconds with a fraction, above zero and at most a year.
    Seconds,
    /// The same, or zero.
    SecondsOrZero,
    /// A flag without a value; true or false in the file and the environment.
    Switch,
    Workers(Role),
}

impl Kind {
    /// At least one byte.
    pub(crate) const BYTES: Kind = Kind::at_least(1);

    pub(crate) const fn at_least(min: i64) -> Kind {
        Kind::Number { min, max: u64::MAX }
    }

    pub(crate) const fn between(min: i64, max: u64) -> Kind {
        Kind::Number { min, max }
    }

    /// Whether the value may be a list: behind the flag, in the file, and with commas as text.
    pub(crate) fn is_list(self) -> bool {
        matches!(
            self,
            Kind::Paths | Kind::Addresses | Kind::Origins | Kind::Labels
        )
    }

    /// Whether a text has this form and is within the bounds.
    pub(crate) fn accepts(self, text: &str) -> bool {
        match self {
            // What these may be is checked where they are used.
            Kind::Text | Kind::Secret | Kind::Path | Kind::Paths | Kind::Workers(_) => true,
            Kind::Word(words) => words.contains(&text),
            Kind::UrlPath => {
                text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic())
            }
            Kind::Number { min, max } => text
                .parse::<i128>()
                .is_ok_and(|number| (min.into()..=max.into()).contains(&number)),
            Kind::Seconds => is_duration(text),
            Kind::SecondsOrZero => is_duration(text) || text.parse() == Ok(0.0),
            Kind::Switch => text.parse::<bool>().is_ok(),
            Kind::Addresses => addresses(text).is_some(),
            Kind::Origins => AllowedOrigins::from_text(text).is_some(),
            Kind::Labels => Labels::from_text(text).is_some(),
        }
    }

    /// The end of the sentence "`x` is not ...".
    pub(crate) const fn expects(self) -> &'static str {
        match self {
            Kind::Text => "text",
            Kind::Word(_) => "one of the words",
            Kind::Secret => "a key",
            Kind::Path => "the path of a file",
            Kind::Paths => "a list of paths",
            Kind::Addresses => "a list of addresses with their ports, such as 10.0.0.10:53",
            Kind::Origins => "`*`, `none`, or origins such as https://app.example",
            Kind::Labels => "a list of labels: KEY=VALUE ...",
            Kind::UrlPath => "a path that begins with /",
            Kind::Number { .. } => "a number",
            Kind::Seconds => "a number of seconds above 0 and at most a year",
            Kind::SecondsOrZero => "a number of seconds up to a year",
            Kind::Switch => "true or false",
            Kind::Workers(Role::Prefill) => "a list of prefill workers",
            Kind::Workers(Role::Decode) => "a list of decode workers",
        }
    }

    /// The names of the values in `--help`.
    pub(crate) const fn value_names(self) -> &'static [&'static str] {
        match self {
            Kind::Text => &["TEXT"],
            Kind::Word(_) => &["WORD"],
            Kind::Secret => &["KEY"],
            Kind::Path | Kind::Paths | Kind::UrlPath => &["PATH"],
            Kind::Origins => &["ORIGIN"],
            Kind::Addresses => &["ADDRESS:PORT"],
            Kind::Labels => &["KEY=VALUE"],
            Kind::Number { .. } => &["N"],
            Kind::Seconds | Kind::SecondsOrZero => &["SECONDS"],
            Kind::Switch => &[],
            Kind::Workers(Role::Prefill) => &["URL", "BOOTSTRAP"],
            Kind::Workers(Role::Decode) => &["URL"],
        }
    }
}

/// The addresses of a list; `None` where one of them is none, or has no port.
pub(super) fn addresses(text: &str) -> Option<Vec<SocketAddr>> {
    let items = text.split(',').map(str::trim);
    let items = items.filter(|item| !item.is_empty());
    items
        .map(|item| item.parse().ok().filter(|at: &SocketAddr| at.port() > 0))
        .collect()
}

/// Above zero, and small enough that a deadline can be computed from it on every platform.
fn is_duration(text: &str) -> bool {
    let year = 365.0 * 24.0 * 3600.0;
    text.parse::<f64>().is_ok_and(|seconds| {
        seconds <= year
            && Duration::try_from_secs_f64(seconds).is_ok_and(|duration| !duration.is_zero())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_positive_finite_and_at_most_a_year() {
        for text in ["1800", "0.25", "31536000"] {
            assert!(Kind::Seconds.accepts(text), "{text}");
        }
        for text in [
            "0", "-1", "0.0", "1e-12", "NaN", "inf", "1e300", "31536001", "", "2s",
        ] {
            assert!(!Kind::Seconds.accepts(text), "{text}");
        }
        assert!(Kind::SecondsOrZero.accepts("0.0"));
        assert!(!Kind::SecondsOrZero.accepts("1e-12"));
    }

    #[test]
    fn the_bounds_of_a_number_are_included() {
        let kind = Kind::between(-1, 65535);
        for text in ["-1", "0", "65535"] {
            assert!(kind.accepts(text), "{text}");
        }
        for text in ["-2", "65536", "", "1.0", "1e3", "ten"] {
            assert!(!kind.accepts(text), "{text}");
        }
        assert!(Kind::BYTES.accepts("18446744073709551615"));
        assert!(!Kind::BYTES.accepts("18446744073709551616"));
    }
}
