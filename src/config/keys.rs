//! Keys of clients and workers: text or files become [`Secret`]s that a header can carry.
//!
//! A key itself never appears in an error.

use std::path::Path;

use super::text::read_text;
use super::{ClientKey, Fault, Secret};

/// Reads the key in a file.
pub(super) fn read_key(path: &Path) -> Result<Secret, Fault> {
    // Editors and `echo` end a file with a line break.
    checked_key(read_text(path)?.trim())
}

/// Reads the keys in a file, one per line; a line that begins with `#` is a comment. At least one, because an empty list would admit every client.
pub(super) fn read_keys(path: &Path) -> Result<Vec<ClientKey>, Fault> {
    let text = read_text(path)?;
    let lines = (1..).zip(text.lines().map(str::trim));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let named = lines.map(|(number, line)| {
        named_key(number, line).map_err(|fault| Fault::Line(number, Box::new(fault)))
    });
    let keys = named.collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() {
        return Err(Fault::Empty);
    }
    Ok(keys)
}

/// The key of a line, whose name may follow it: `KEY # NAME`.
fn named_key(number: usize, line: &str) -> Result<ClientKey, Fault> {
    let (key, name) = match line.split_once(" #") {
        Some((key, name)) => (key.trim_end(), checked_name(name.trim())?),
        None => (line, format!("line-{number}")),
    };
    let key = checked_key(key)?;
    Ok(ClientKey { key, name })
}

/// Checks that a name can stand in a field of the log. The sign before it keeps a second key in a line from becoming a
/// name.
fn checked_name(name: &str) -> Result<String, Fault> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    match (1..=64).contains(&name.len()) && name.bytes().all(fits) {
        true => Ok(name.to_owned()),
        false => Err(Fault::BadKeyName),
    }
}

/// Checks that a key can follow `Bearer ` in a header.
pub(crate) fn checked_key(text: &str) -> Result<Secret, Fault> {
    match text {
        "" => Err(Fault::Empty),
        Secret::MASK => Err(Fault::MaskedKey),
        text if text.bytes().all(|b| b.is_ascii_graphic()) => Ok(Secret::new(text)),
        _ => Err(Fault::BadKey),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_key_must_fit_into_a_header() {
        assert_eq!(checked_key("sk-1"), Ok(Secret::new("sk-1")));
        assert_eq!(checked_key(""), Err(Fault::Empty));
        assert_eq!(checked_key("***"), Err(Fault::MaskedKey));
        for text in ["a b", "a\r\nx: y", "schlüssel", "a\u{7f}"] {
            assert_eq!(checked_key(text), Err(Fault::BadKey), "{text:?}");
        }
    }

    #[test]
    fn a_file_of_keys_may_have_comments_and_its_errors_have_the_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            let keys = read_keys(file.path())?;
            Ok(keys.into_iter().map(|key| key.name).collect::<Vec<_>>())
        };
        let names = ["line-2", "team-a"].map(str::to_owned).to_vec();
        assert_eq!(read("# ours\nsk-1\n\n#sk-old\nsk-2 # team-a\n"), Ok(names));
        let fault = Fault::Line(2, Box::new(Fault::BadKeyName));
        assert_eq!(fault.to_string().split(':').next(), Some("line 2"));
        assert_eq!(read("sk-1\nsk-2 # team a\n"), Err(fault));
        assert_eq!(read("# none\n"), Err(Fault::Empty));
    }

    #[test]
    fn a_key_is_named_by_its_line_or_by_what_follows_it() {
        for (line, key, name) in [
            ("sk-1", "sk-1", "line-7"),
            ("sk-1 # team-a", "sk-1", "team-a"),
            ("sk-1  #b.2", "sk-1", "b.2"),
            ("sk#1", "sk#1", "line-7"),
        ] {
            let (key, name) = (Secret::new(key), name.to_owned());
            assert_eq!(named_key(7, line), Ok(ClientKey { key, name }));
        }
        for (line, fault) in [
            ("sk-1 #", Fault::BadKeyName),
            ("sk-1 # a b", Fault::BadKeyName),
            ("sk-1 # a=b", Fault::BadKeyName),
            ("sk-1 sk-2", Fault::BadKey),
            (" # a", Fault::Empty),
        ] {
            assert_eq!(named_key(7, line), Err(fault), "{line}");
        }
    }
}
