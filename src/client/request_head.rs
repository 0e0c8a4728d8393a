//! Which request heads are accepted: those that have the same meaning for every parser that may read them later.
//!
//! A pure function over the raw bytes of the head. The parsed head would not do: Pingora's parser is lenient and
//! normalises before a filter runs (it deletes a Content-Length beside a Transfer-Encoding and accepts bare line
//! feeds). Heads that Pingora refuses by itself, with 400, never come here; some are refused here too, where that
//! costs nothing.
//!
//! Source: RFC 9112 (its section stands beside each rule); pingora-core 0.9.1 `protocols/http/v1/server.rs`.

use std::fmt;

/// The longest head, in bytes: four times the limit of other servers for one line, thirty times the heads of usual
/// clients.
pub(super) const MAX_HEAD_BYTES: usize = 32 << 10;

/// The most header fields.
pub(super) const MAX_FIELDS: usize = 100;

/// Names of framing and routing fields as a parser sees them that takes `_` for `-`, as CGI and WSGI do.
const UNDERSCORE_ALIASES: [&str; 4] = ["content_length", "transfer_encoding", "host", "connection"];

/// Why a head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadHead {
    /// The head is longer than [`MAX_HEAD_BYTES`].
    TooLong,
    /// The head has more fields than [`MAX_FIELDS`].
    TooManyFields,
    /// A line feed without a carriage return before it, or the reverse.
    LineEnd,
    /// The request line is not three words, the last of them a version.
    RequestLine,
    /// The target is neither a path nor a URL, or contains a control character, escaped or not, or a second version.
    Target,
    /// A line is not a field, or continues the field before.
    Field,
    /// Both Content-Length and Transfer-Encoding are present.
    TwoFramings,
    /// More than one Content-Length, or one that is not a plain number.
    ContentLength,
    /// A Transfer-Encoding other than a single `chunked`, or one in HTTP/1.0.
    TransferEncoding,
    /// No Host in HTTP/1.1, more than one, or one with characters that no host and port has.
    Host,
    /// A field has one of the names in [`UNDERSCORE_ALIASES`].
    UnderscoreAlias,
}

impl BadHead {
    /// Whether the head is only too large, so that 431 is the status, and not 400.
    pub(crate) fn is_too_large(self) -> bool {
        matches!(self, BadHead::TooLong | BadHead::TooManyFields)
    }
}

impl fmt::Display for BadHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BadHead::TooLong => {
                return write!(
                    f,
                    "the head of the request is longer than {MAX_HEAD_BYTES} bytes"
                );
            }
            BadHead::TooManyFields => {
                return write!(f, "the request has more than {MAX_FIELDS} header fields");
            }
            BadHead::LineEnd => "each line of the request head must end with CR LF",
            BadHead::RequestLine => "the request line must be a method, a target and a version",
            BadHead::Target => {
                "the request target must be a path or a URL, without control characters, escaped or not"
            }
            BadHead::Field => "a line of the request head is not a header field",
            BadHead::TwoFramings => "Content-Length and Transfer-Encoding exclude each other",
            BadHead::ContentLength => "Content-Length must appear once and be a plain number",
            BadHead::TransferEncoding => {
                "Transfer-Encoding must appear once and be `chunked`, in HTTP/1.1"
            }
            BadHead::Host => "the request must have exactly one Host, and a valid one",
            BadHead::UnderscoreAlias => {
                "a header field has the name of a framing or routing field, written with `_`"
            }
        })
    }
}

/// Checks a whole head, including the empty line at its end.
///
/// # Errors
/// The first rule that the head breaks.
pub fn check(head: &[u8]) -> Result<(), BadHead> {
    if head.len() > MAX_HEAD_BYTES {
        return Err(BadHead::TooLong);
    }
    // Section 2.2: a server should ignore empty lines before the request line.
    let mut lines = Lines(head).skip_while(|line| *line == Ok(b""));
    let version = request_line(lines.next().unwrap_or(Err(BadHead::RequestLine))?)?;
    let mut fields = FieldCounts::default();
    for line in lines {
        match line? {
            b"" => break,
            line => fields.add(line)?,
        }
    }
    fields.check(version)
}

/// The lines of a head, without their line ends.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = Result<&'a [u8], BadHead>;

    fn next(&mut self) -> Option<Self::Item> {
        let end = memchr::memchr(b'\n', self.0)?;
        let (line, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        // Section 2.2: a bare CR or LF ends a line for some parsers, and not for others.
        Some(match line.strip_suffix(b"\r") {
            Some(line) if memchr::memchr(b'\r', line).is_none() => Ok(line),
            _ => Err(BadHead::LineEnd),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Http10,
    Http11,
}

/// The version in a request line whose method, target and version are valid (section 3).
fn request_line(line: &[u8]) -> Result<Version, BadHead> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(BadHead::RequestLine);
    };
    if is_ambiguous(target) || !has_known_form(target, method) {
        return Err(BadHead::Target);
    }
    match version {
        b"HTTP/1.0" => Ok(Version::Http10),
        b"HTTP/1.1" => Ok(Version::Http11),
        _ => Err(BadHead::RequestLine),
    }
}

/// Whether the target is a path, a URL, `*`, or the authority of CONNECT (section 3.2).
fn has_known_form(target: &[u8], method: &[u8]) -> bool {
    let is_url = || {
        let scheme = memchr::memmem::find(target, b"://").map(|end| &target[..end]);
        scheme.is_some_and(|scheme| {
            scheme.eq_ignore_ascii_case(b"http") || scheme.eq_ignore_ascii_case(b"https")
        })
    };
    // Two spaces after the method arrive as a target that begins with `%20`, which is none of these.
    target.starts_with(b"/") || target == b"*" || method == b"CONNECT" || is_url()
}

/// Whether another parser may find another end of the target: it contains a control character, escaped or not, or a
/// space followed by something like a version.
pub(super) fn is_ambiguous(target: &[u8]) -> bool {
    // Other spaces are accepted. Pingora has escaped them, so that they cannot be told from a `%20` that the client
    // sent, in the name of a model for example; and workers get the escaped target (section 3.2 allows that).
    let hex = |byte: u8| char::from(byte).to_digit(16);
    let mut escaped = target.windows(3).filter_map(|window| match *window {
        [b'%', high, low] => u8::try_from(hex(high)? * 16 + hex(low)?).ok(),
        _ => None,
    });
    target.iter().any(u8::is_ascii_control)
        || escaped.any(|byte| byte.is_ascii_control())
        || memchr::memmem::find(target, b"%20HTTP/").is_some()
}

/// How often the fields with a meaning for framing and routing have appeared.
#[derive(Default)]
struct FieldCounts {
    fields: usize,
    lengths: usize,
    encodings: usize,
    hosts: usize,
}

impl FieldCounts {
    /// Counts one field, and checks what can be said of it alone.
    fn add(&mut self, line: &[u8]) -> Result<(), BadHead> {
        self.fields += 1;
        if self.fields > MAX_FIELDS {
            return Err(BadHead::TooManyFields);
        }
        let colon = memchr::memchr(b':', line).ok_or(BadHead::Field)?;
        let (name, value) = (&line[..colon], trim_blanks(&line[colon + 1..]));
        // Sections 5.1 and 5.2: no space before the colon, and no folded line.
        if name.is_empty() || name.iter().any(|byte| !byte.is_ascii_graphic()) {
            return Err(BadHead::Field);
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            self.lengths += 1;
            // Section 6.3: some parsers take a list of equal numbers for one number.
            if self.lengths > 1 || value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
                return Err(BadHead::ContentLength);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.encodings += 1;
            // Section 6.1: an unknown coding is refused, and `chunked` is the only one known here.
            if self.encodings > 1 || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(BadHead::TransferEncoding);
            }
        } else if name.eq_ignore_ascii_case(b"host") {
            self.hosts += 1;
            // Section 3.2: an invalid Host is refused like a missing one.
            if self.hosts > 1 || !value.iter().all(is_authority_byte) {
                return Err(BadHead::Host);
            }
        } else if is_underscore_alias(name) {
            return Err(BadHead::UnderscoreAlias);
        }
        Ok(())
    }

    /// Checks the fields of the whole head together.
    fn check(&self, version: Version) -> Result<(), BadHead> {
        // Section 6.1: a server may refuse the combination; another parser may follow either of the two.
        if self.lengths > 0 && self.encodings > 0 {
            return Err(BadHead::TwoFramings);
        }
        if self.encodings > 0 && version == Version::Http10 {
            return Err(BadHead::TransferEncoding);
        }
        // Section 3.2: HTTP/1.1 requires Host.
        match (version, self.hosts) {
            (_, 1) | (Version::Http10, 0) => Ok(()),
            _ => Err(BadHead::Host),
        }
    }
}

/// Whether the byte can be part of a host and a port. Source: RFC 3986, section 3.2.2.
pub(super) fn is_authority_byte(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte)
}

/// The value without the blanks that section 5.1 allows around it. Not `trim_ascii`, which removes other white space.
fn trim_blanks(value: &[u8]) -> &[u8] {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !is_blank(byte));
    let end = value.iter().rposition(|byte| !is_blank(byte));
    match (start, end) {
        (Some(start), Some(end)) => &value[start..=end],
        _ => &[],
    }
}

pub(super) fn is_underscore_alias(name: &[u8]) -> bool {
    let is_named = |alias: &&str| {
        name.len() == alias.len()
            && name.iter().zip(alias.bytes()).all(|(byte, wanted)| {
                let byte = if *byte == b'-' { b'_' } else { *byte };
                byte.eq_ignore_ascii_case(&wanted)
            })
    };
    memchr::memchr(b'_', name).is_some() && UNDERSCORE_ALIASES.iter().any(is_named)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A POST with these lines after Host.
    fn with(lines: &str) -> Result<(), BadHead> {
        check(format!("POST /generate HTTP/1.1\r\nHost: a\r\n{lines}\r\n").as_bytes())
    }

    fn line(line: &str) -> Result<(), BadHead> {
        check(format!("{line}\r\nHost: a\r\n\r\n").as_bytes())
    }

    #[test]
    fn heads_of_usual_clients_are_accepted() {
        for lines in [
            "",
            "Content-Length: 5\r\n",
            "content-length:5 \r\n",
            "Transfer-Encoding: chunked\r\n",
            "transfer-encoding:\tChunked\r\n",
            "X-Empty:\r\n",
            "X_Custom: 1\r\n",
            "X-Utf8: \u{e4}\r\n",
            "Connection: keep-alive\r\nX-A: b:c\r\n",
        ] {
            assert_eq!(with(lines), Ok(()), "{lines:?}");
        }
        assert_eq!(check(b"GET / HTTP/1.0\r\n\r\n"), Ok(()));
        assert_eq!(check(b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), Ok(()));
        for target in [
            "/a?b=%2F&c=%25",
            "http://a/generate",
            "*",
            "/%",
            "/%+1",
            "/a%20b",
        ] {
            assert_eq!(line(&format!("GET {target} HTTP/1.1")), Ok(()), "{target}");
        }
    }

    #[test]
    fn a_body_has_one_framing() {
        for (lines, why) in [
            (
                "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                BadHead::TwoFramings,
            ),
            (
                "Transfer-Encoding: chunked\r\ncontent-length: 5\r\n",
                BadHead::TwoFramings,
            ),
            (
                "Content-Length: 5\r\nContent-Length: 5\r\n",
                BadHead::ContentLength,
            ),
            ("Content-Length: 5, 5\r\n", BadHead::ContentLength),
            ("Content-Length: +5\r\n", BadHead::ContentLength),
            ("Content-Length: 0x5\r\n", BadHead::ContentLength),
            ("Content-Length:\r\n", BadHead::ContentLength),
            (
                "Transfer-Encoding: gzip, chunked\r\n",
                BadHead::TransferEncoding,
            ),
            (
                "Transfer-Encoding: chunked;a=b\r\n",
                BadHead::TransferEncoding,
            ),
            (
                "Transfer-Encoding: \u{b}chunked\r\n",
                BadHead::TransferEncoding,
            ),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                BadHead::TransferEncoding,
            ),
            (
                "Transfer-Encoding: chunked\u{c}\r\n",
                BadHead::TransferEncoding,
            ),
            ("Transfer-Encoding: identity\r\n", BadHead::TransferEncoding),
            ("Content_Length: 5\r\n", BadHead::UnderscoreAlias),
            ("TRANSFER_ENCODING: chunked\r\n", BadHead::UnderscoreAlias),
            ("Content-Length : 5\r\n", BadHead::Field),
            (" Content-Length: 5\r\n", BadHead::Field),
            ("X-A: b\r\n c\r\n", BadHead::Field),
            ("no colon\r\n", BadHead::Field),
        ] {
            assert_eq!(with(lines), Err(why), "{lines:?}");
        }
        let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(check(old), Err(BadHead::TransferEncoding));
    }

    #[test]
    fn a_line_ends_with_cr_and_lf() {
        for head in [
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
            "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert_eq!(check(head.as_bytes()), Err(BadHead::LineEnd), "{head:?}");
        }
    }

    #[test]
    fn a_request_has_one_host_and_one_target() {
        assert_eq!(check(b"GET / HTTP/1.1\r\n\r\n"), Err(BadHead::Host));
        assert_eq!(with("host: a\r\n"), Err(BadHead::Host));
        for (host, verdict) in [
            ("", Ok(())),
            ("a.b-c:80", Ok(())),
            ("[::1]:8080", Ok(())),
            ("a b", Err(BadHead::Host)),
            ("a/b", Err(BadHead::Host)),
            ("a@b", Err(BadHead::Host)),
            ("\u{a0}a", Err(BadHead::Host)),
        ] {
            let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert_eq!(check(head.as_bytes()), verdict, "{host:?}");
        }
        assert_eq!(with("HOST_: a\r\n"), Ok(()));
        assert_eq!(line("CONNECT a:1 HTTP/1.1"), Ok(()));
        for target in [
            "/a%20HTTP/1.1",
            "/a?b=%0d%0A",
            "/%00",
            "/a%7f",
            "/a\tb",
            "%20/a",
            "a",
            "?a",
            "ftp://a/b",
            "a:1",
        ] {
            let head = format!("GET {target} HTTP/1.1");
            assert_eq!(line(&head), Err(BadHead::Target), "{target}");
        }
        for wrong in [
            "GET / HTTP/1.1 ",
            "GET  / HTTP/1.1",
            "GET /a b HTTP/1.1",
            "GET /",
            "GET / HTTP/0.9",
            "GET / HTTP/2.0",
            "GET / http/1.1",
        ] {
            assert_eq!(line(wrong), Err(BadHead::RequestLine), "{wrong}");
        }
        assert_eq!(check(b""), Err(BadHead::RequestLine));
    }

    #[test]
    fn the_size_and_the_number_of_fields_are_limited() {
        // Host is one of the fields.
        assert_eq!(with(&"X-A: b\r\n".repeat(MAX_FIELDS - 1)), Ok(()));
        let many = with(&"X-A: b\r\n".repeat(MAX_FIELDS));
        assert_eq!(many, Err(BadHead::TooManyFields));
        let around = "POST /generate HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n".len();
        let long = |bytes| with(&format!("X: {}\r\n", "a".repeat(bytes - around)));
        assert_eq!(long(MAX_HEAD_BYTES), Ok(()));
        assert_eq!(long(MAX_HEAD_BYTES + 1), Err(BadHead::TooLong));
        assert!(BadHead::TooLong.is_too_large() && !BadHead::Host.is_too_large());
    }
}
