//! Lines of the log as JSON: one object for each, with `time`, `level`, `target` and `message`, and the fields of a line that
//! has them as values.

use std::fmt::Display;
use std::io::{self, Write};

use jiff::Timestamp;
use log::kv::{self, Key, VisitSource};
use log::{Level, Record};
use serde_json::{Map, Value};

/// The names of every line. A field of another crate with such a name is left out.
const OWN: [&str; 4] = ["time", "level", "target", "message"];

/// Writes a line of the log.
///
/// # Errors
/// Those of `out`.
pub(crate) fn write(out: &mut impl Write, record: &Record<'_>) -> io::Result<()> {
    let fields = record.key_values();
    // A line whose fields are values has its phrase among them. Its text repeats them.
    let mut object = match fields.get(Key::from_str("message")) {
        Some(phrase) => object(record.level(), record.target(), &phrase),
        None => object(record.level(), record.target(), record.args()),
    };
    // Errors are those of a source, none of which is ours.
    let _ = fields.visit(&mut Fields(&mut object));
    serde_json::to_writer(&mut *out, &object)?;
    out.write_all(b"\n")
}

/// A line that is not the log's.
pub(crate) fn line(level: Level, message: impl Display) -> String {
    Value::Object(object(level, env!("CARGO_CRATE_NAME"), &message)).to_string()
}

fn object(level: Level, target: &str, message: &impl Display) -> Map<String, Value> {
    let level = level.as_str().to_ascii_lowercase();
    let time = format!("{:.3}", Timestamp::now());
    let values = [time, level, target.to_owned(), message.to_string()];
    let names = OWN.map(str::to_owned).into_iter();
    names.zip(values.map(Value::from)).collect()
}

struct Fields<'a>(&'a mut Map<String, Value>);

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        if !OWN.contains(&key.as_str()) {
            self.0.insert(key.to_string(), json(&value));
        }
        Ok(())
    }
}

/// A number as a number, anything else as text.
fn json(value: &kv::Value<'_>) -> Value {
    None.or_else(|| value.to_u64().map(Value::from))
        .or_else(|| value.to_i64().map(Value::from))
        .or_else(|| value.to_f64().map(Value::from))
        .or_else(|| value.to_bool().map(Value::from))
        .unwrap_or_else(|| value.to_string().into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn written(record: &Record<'_>) -> Value {
        let mut line = Vec::new();
        write(&mut line, record).unwrap();
        let text = String::from_utf8(line).unwrap();
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_line_is_one_object_whatever_its_characters() {
        let strange = "a \"quoted\"\\ line\r\nand another\u{0}\u{1b}[31m\u{2028}\u{fffd}";
        let line = written(
            &Record::builder()
                .level(Level::Warn)
                .target("a::b")
                .args(format_args!("{strange}"))
                .build(),
        );
        assert_eq!(line["message"], strange);
        assert_eq!(line["level"], "warn");
        assert_eq!(line["target"], "a::b");
        let time: Timestamp = line["time"].as_str().unwrap().parse().unwrap();
        assert!(time <= Timestamp::now());
        assert_eq!(line.as_object().unwrap().len(), 4);
        let other: Value = serde_json::from_str(&super::line(Level::Error, strange)).unwrap();
        assert_eq!(other["message"], strange);
    }

    #[test]
    fn fields_are_values_with_their_types_and_replace_the_text() {
        let fields: [(&str, kv::Value<'_>); 6] = [
            ("message", "phrase".into()),
            ("time", "another".into()),
            ("count", 7u64.into()),
            ("millis", 0.1f64.into()),
            ("not_a_number", f64::NAN.into()),
            ("text", "7".into()),
        ];
        let line = written(
            &Record::builder()
                .level(Level::Info)
                .key_values(&fields)
                .args(format_args!("phrase count=7"))
                .build(),
        );
        assert_eq!(line["message"], "phrase");
        assert_ne!(line["time"], "another");
        assert_eq!(line["count"].as_u64(), Some(7));
        assert_eq!(line["millis"].to_string(), "0.1");
        assert_eq!(line["not_a_number"], Value::Null);
        assert_eq!(line["text"], "7");
    }
}
