//! Lines about a request as lists of fields, in two forms: as text (`key=value`), and as key-values of [`log`] with their
//! types, for loggers that write JSON.
//!
//! A line lists its fields once, in [`Fields::each`], so that the two forms have the same ones.

use std::fmt::{self, Display, Write};
use std::time::Duration;

use http::HeaderValue;
use log::Level;
use log::kv::{self, Key, VisitSource};

/// The value of a field.
pub(super) enum Value<'a> {
    /// A text without spaces and quotes.
    Text(&'a str),
    /// The same, of a value that is no text yet.
    Display(&'a dyn Display),
    /// A request id. In quotes and escaped where a reader of text would take it for something else.
    Id(&'a HeaderValue),
    /// Any other text: in quotes.
    Sentence(&'a str),
    Number(u64),
    /// In milliseconds.
    Time(Duration),
}

/// A line: a constant phrase, and fields.
pub(super) trait Fields {
    /// The phrase.
    fn phrase(&self) -> &'static str;

    /// Shows each field with its name, in their order.
    ///
    /// # Errors
    /// Those of `show`.
    fn each<'a>(&'a self, show: &mut Show<'_, 'a>) -> fmt::Result;
}

/// What the fields of a line are shown to.
pub(super) type Show<'s, 'a> = dyn FnMut(&'static str, Value<'a>) -> fmt::Result + 's;

/// Writes a line to the log, unless its level is off.
pub(super) fn log(target: &str, level: Level, line: &dyn Fields) {
    if level > log::STATIC_MAX_LEVEL || level > log::max_level() {
        return;
    }
    let mut record = log::Record::builder();
    record.target(target).level(level);
    log::logger().log(
        &record
            .key_values(&KeyValues(line))
            .args(format_args!("{}", Text(line)))
            .build(),
    );
}

/// The line as text.
pub(super) struct Text<'a>(pub(super) &'a dyn Fields);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.phrase())?;
        self.0.each(&mut |name, value| {
            f.write_char(' ')?;
            f.write_str(name)?;
            f.write_char('=')?;
            match value {
                Value::Text(text) => f.write_str(text),
                Value::Display(value) => value.fmt(f),
                Value::Sentence(text) => write!(f, "{text:?}"),
                Value::Number(number) => number.fmt(f),
                Value::Time(time) => write_millis(f, time),
                Value::Id(id) => match id.to_str() {
                    Ok(id) if id.contains(['"', '\\', '=']) => write!(f, "{id:?}"),
                    Ok(id) => f.write_str(id),
                    Err(_) => f.write_str("-"),
                },
            }
        })
    }
}

/// The line as key-values. The phrase is the one with the key `message`.
struct KeyValues<'a>(&'a dyn Fields);

impl kv::Source for KeyValues<'_> {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), kv::Error> {
        let mut visit = |name, value| visitor.visit_pair(Key::from_str(name), value);
        visit("message", self.0.phrase().into())?;
        let shown = self.0.each(&mut |name, value| {
            let value = match value {
                Value::Display(value) => kv::Value::from_dyn_display(value),
                Value::Text(text) | Value::Sentence(text) => text.into(),
                Value::Number(number) => number.into(),
                Value::Time(time) => to_the_microsecond(time).into(),
                Value::Id(id) => id.to_str().unwrap_or("-").into(),
            };
            visit(name, value).map_err(|_| fmt::Error)
        });
        Ok(shown?)
    }
}

/// In milliseconds with one digit after the point, without a float, which takes longer to write: most lines have four times.
fn write_millis(f: &mut fmt::Formatter<'_>, time: Duration) -> fmt::Result {
    let tenths = (time.as_nanos() + 50_000) / 100_000;
    // Enough for ten thousand years.
    let tenths = u64::try_from(tenths).unwrap_or(u64::MAX);
    write!(f, "{}.{}", tenths / 10, tenths % 10)
}

/// In milliseconds.
fn to_the_microsecond(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    struct OneTime(Duration);

    impl Fields for OneTime {
        fn phrase(&self) -> &'static str {
            "took"
        }

        fn each<'a>(&'a self, show: &mut Show<'_, 'a>) -> fmt::Result {
            show("time_ms", Value::Time(self.0))
        }
    }

    #[test]
    fn a_time_has_one_digit_after_the_point_and_is_rounded() {
        for (nanos, written) in [
            (0, "0.0"),
            (49_999, "0.0"),
            (50_000, "0.1"),
            (1_234_567, "1.2"),
            (999_950_000, "1000.0"),
            (3_600_000_049_999, "3600000.0"),
        ] {
            let line = OneTime(Duration::from_nanos(nanos));
            assert_eq!(Text(&line).to_string(), format!("took time_ms={written}"));
        }
        let longest = OneTime(Duration::MAX);
        assert!(Text(&longest).to_string().ends_with('5'));
    }
}
