//! Files that a configuration names, as bytes or as text, without the byte order mark that some editors write first.
//!
//! Source: RFC 3629, section 6 (a mark at the begin of UTF-8 is a signature and no part of the text).

use std::path::Path;

use super::Fault;

/// U+FEFF in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The bytes of a file, without a byte order mark.
///
/// # Errors
/// [`Fault::Unreadable`].
pub(super) fn read_bytes(path: &Path) -> Result<Vec<u8>, Fault> {
    let mut bytes = std::fs::read(path).map_err(|error| Fault::Unreadable {
        path: path.to_owned(),
        why: error.to_string(),
    })?;
    if bytes.starts_with(BYTE_ORDER_MARK) {
        bytes.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(bytes)
}

/// The text of a file, without a byte order mark.
///
/// # Errors
/// [`Fault::Unreadable`], [`Fault::NotUtf8`].
pub(super) fn read_text(path: &Path) -> Result<String, Fault> {
    String::from_utf8(read_bytes(path)?).map_err(|_| Fault::NotUtf8)
}
