//! JSON by hand, for the parts that are written once per token: strings, floats, logprob rows; and SSE events.
//!
//! A `serde_json::Value` per event would be the largest cost of the simulator in a benchmark. The shapes of single
//! endpoints are in their files. Source: the transcripts.

use std::fmt::Write;

use super::model;

/// A JSON string with its quotes.
pub(crate) fn string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    escape_into(text, &mut out);
    out.push('"');
    out
}

/// Appends a text as the inside of a JSON string. Characters beyond ASCII are not escaped, as by orjson.
pub(crate) fn escape_into(text: &str, out: &mut String) {
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if (control as u32) < 0x20 => {
                write_to(out, format_args!("\\u{:04x}", control as u32))
            }
            other => out.push(other),
        }
    }
}

/// A float, with `.0` if it is an integer.
pub(crate) fn float(value: f64) -> String {
    format!("{value:?}")
}

/// `[logprob|null, token, text|null]`.
pub(crate) fn triple(logprob: Option<f64>, token: u32, with_text: bool, out: &mut String) {
    match logprob {
        Some(logprob) => write_to(out, format_args!("[{logprob:?},{token},")),
        None => write_to(out, format_args!("[null,{token},")),
    }
    if with_text {
        out.push_str(&string(&model::name_of(token)));
    } else {
        out.push_str("null");
    }
    out.push(']');
}

/// A list of triples, or null.
pub(crate) fn triples(row: Option<&[(f64, u32)]>, with_text: bool, out: &mut String) {
    let Some(row) = row else {
        return out.push_str("null");
    };
    out.push('[');
    for (index, (logprob, token)) in row.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        triple(Some(*logprob), *token, with_text, out);
    }
    out.push(']');
}

/// Appends a comma to a list that has an element already.
pub(crate) fn separate(list: &mut String) {
    if !list.is_empty() {
        list.push(',');
    }
}

/// `write!` into a String, which cannot fail.
pub(crate) fn write_to(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(arguments);
}

/// One SSE event.
pub(crate) fn data(json: &str) -> bytes::Bytes {
    format!("data: {json}\n\n").into()
}

/// One named SSE event.
pub(crate) fn named(name: &str, json: &str) -> bytes::Bytes {
    format!("event: {name}\ndata: {json}\n\n").into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn strings_read_back_as_they_were() {
        for text in [
            "",
            "\"\\\n\r\t\u{1}\u{7f}",
            "é 語 😀 \u{2028}",
            "data: [DONE]",
        ] {
            assert_eq!(serde_json::from_str::<String>(&string(text)).unwrap(), text);
        }
    }

    #[test]
    fn rows_have_null_where_nothing_is_known() {
        let mut out = String::new();
        triple(None, model::EOS, true, &mut out);
        triples(Some(&[(-1.0, 8191 + 65)]), true, &mut out);
        triples(None, true, &mut out);
        assert_eq!(out, r#"[null,8190,"</s>"][[-1.0,8256,"A"]]null"#);
    }
}
