//! Keys of clients and workers: text or files become [`Secret`]s that a header can carry.
//!
//! A key itself never appears in an error.

use std::path::Path;

use super::text::read_text;
use super::{Fault, Secret};

/// Reads the key in a file.
pub(super) fn read_key(path: &Path) -> Result<Secret, Fault> {
    // Editors and `echo` end a file with a line break.
    checked_key(read_text(path)?.trim())
}

/// Reads the keys in a file, one per line. At least one, because an empty list would admit every client.
pub(super) fn read_keys(path: &Path) -> Result<Vec<Secret>, Fault> {
    let text = read_text(path)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let keys: Vec<_> = lines.map(checked_key).collect::<Result<_, _>>()?;
    if keys.is_empty() {
        return Err(Fault::Empty);
    }
    Ok(keys)
}

/// Checks that a key can follow `Bearer ` in a header.
pub(super) fn checked_key(text: &str) -> Result<Secret, Fault> {
    match text {
        "" => Err(Fault::Empty),
        Secret::MASK => Err(Fault::MaskedKey),
        text if text.bytes().all(|b| b.is_ascii_graphic()) => Ok(Secret::new(text)),
        _ => Err(Fault::BadKey),
    }
}

#[cfg(test)]
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
}
