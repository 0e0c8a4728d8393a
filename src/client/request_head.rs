//! What a request's head must look like to be let in: one meaning, for every parser that may read it later.
//!
//! A pure function over the bytes of the head as they came. Pingora's parser is lenient and tidies up before a
//! filter runs (it deletes a Content-Length beside a Transfer-Encoding and takes bare line feeds),
//! so the parsed head cannot tell. What Pingora itself refuses with 400 does not come here, but is refused here
//! too where that costs nothing.
//!
//! Source: RFC 9112 (the section stands beside each rule); pingora-core 0.9.1 `protocols/http/v1/server.rs`.

use std::fmt;

/// The longest head, in bytes. Four times what other servers take for one line, and thirty times what clients
/// send.
const MAX_HEAD_BYTES: usize = 32 << 10;

/// The most header fields.
const MAX_FIELDS: usize = 100;

/// Fields whose names mean framing or routing to a parser that takes `_` for `-`, as CGI and WSGI do.
const UNDERSCORE_ALIASES: [&str; 4] = ["content_length", "transfer_encoding", "host", "connection"];

/// Why a head is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadHead {
    /// Longer than [`MAX_HEAD_BYTES`].
    TooLong,
    /// More fields than [`MAX_FIELDS`].
    TooManyFields,
    /// A line feed without a carriage return before it, or the reverse.
    LineEnd,
    /// Not three words of which the last is a version.
    RequestLine,
    /// Neither a path nor a URL, or one with a control character, escaped or not, or a second version.
    Target,
    /// A line that is no field, or continues one.
    Field,
    /// Both Content-Length and Transfer-Encoding.
    TwoFramings,
    /// More than one Content-Length, or one that is no plain number.
    ContentLength,
    /// Anything but one `chunked`, or one in HTTP/1.0.
    TransferEncoding,
    /// None in HTTP/1.1, more than one, or one that is no name, address and port.
    Host,
    /// One of [`UNDERSCORE_ALIASES`].
    UnderscoreAlias,
}

impl BadHead {
    /// Whether it is only too large, not wrong.
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
            BadHead::LineEnd => "the lines of a request's head must end with CR LF",
            BadHead::RequestLine => "the request line is not METHOD, target and version",
            BadHead::Target => {
                "the target must be a path or a URL, without control characters, escaped or not"
            }
            BadHead::Field => "a line of the head is not a header field",
            BadHead::TwoFramings => "Content-Length and Transfer-Encoding exclude each other",
            BadHead::ContentLength => "Content-Length must be there once and be a plain number",
            BadHead::TransferEncoding => {
                "Transfer-Encoding must be there once and be `chunked`, in HTTP/1.1"
            }
            BadHead::Host => "a request needs exactly one Host, and a valid one",
            BadHead::UnderscoreAlias => {
                "a header field has the name of a framing field, written with `_`"
            }
        })
    }
}

/// Looks at a whole head, with the empty line at its end.
///
/// # Errors
/// The first rule that it breaks.
pub fn check(head: &[u8]) -> Result<(), BadHead> {
    if head.len() > MAX_HEAD_BYTES {
        return Err(BadHead::TooLong);
    }
    // Section 2.2: empty lines before the request line are ignored.
    let mut lines = Lines(head).skip_while(|line| *line == Ok(b""));
    let version = request_line(lines.next().unwrap_or(Err(BadHead::RequestLine))?)?;
    let mut seen = Seen::default();
    for line in lines {
        match line? {
            b"" => break,
            line => seen.field(line)?,
        }
    }
    seen.verdict(version)
}

/// The lines without their ends.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = Result<&'a [u8], BadHead>;

    fn next(&mut self) -> Option<Self::Item> {
        let end = memchr::memchr(b'\n', self.0)?;
        let (line, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        // Section 2.2: a lone CR or LF is a line's end to some parsers and not to others.
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

/// Section 3.
fn request_line(line: &[u8]) -> Result<Version, BadHead> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(BadHead::RequestLine);
    };
    if is_ambiguous(target) || !has_form(target, method) {
        return Err(BadHead::Target);
    }
    match version {
        b"HTTP/1.0" => Ok(Version::Http10),
        b"HTTP/1.1" => Ok(Version::Http11),
        _ => Err(BadHead::RequestLine),
    }
}

/// Section 3.2: a path, a URL, `*`, or the authority of CONNECT. Two spaces behind the method come here as a
/// target that begins with `%20`.
fn has_form(target: &[u8], method: &[u8]) -> bool {
    let is_url = || {
        let scheme = memchr::memmem::find(target, b"://").map(|end| &target[..end]);
        scheme.is_some_and(|scheme| {
            scheme.eq_ignore_ascii_case(b"http") || scheme.eq_ignore_ascii_case(b"https")
        })
    };
    target.starts_with(b"/") || target == b"*" || method == b"CONNECT" || is_url()
}

/// Whether another parser may find another end of the target: a control character, escaped or not, or what
/// looks like a version behind a space.
///
/// Other spaces pass. Pingora has escaped the raw ones, so that they cannot be told from `%20`, which a model's
/// name may have; and a worker gets the escaped target in a request line of our own (section 3.2 allows that).
fn is_ambiguous(target: &[u8]) -> bool {
    let hex = |byte: u8| char::from(byte).to_digit(16);
    let mut escaped = target.windows(3).filter_map(|window| match *window {
        [b'%', high, low] => u8::try_from(hex(high)? * 16 + hex(low)?).ok(),
        _ => None,
    });
    target.iter().any(u8::is_ascii_control)
        || escaped.any(|byte| byte.is_ascii_control())
        || memchr::memmem::find(target, b"%20HTTP/").is_some()
}

/// What the fields have said so far.
#[derive(Default)]
struct Seen {
    fields: usize,
    lengths: usize,
    encodings: usize,
    hosts: usize,
}

impl Seen {
    fn field(&mut self, line: &[u8]) -> Result<(), BadHead> {
        self.fields += 1;
        if self.fields > MAX_FIELDS {
            return Err(BadHead::TooManyFields);
        }
        let colon = memchr::memchr(b':', line).ok_or(BadHead::Field)?;
        let (name, value) = (&line[..colon], trimmed(&line[colon + 1..]));
        // Sections 5.1 and 5.2: neither space before the colon nor a folded line.
        if name.is_empty() || name.iter().any(|byte| !byte.is_ascii_graphic()) {
            return Err(BadHead::Field);
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            self.lengths += 1;
            // Section 6.3: a list of equal numbers is a number to some.
            if self.lengths > 1 || value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
                return Err(BadHead::ContentLength);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.encodings += 1;
            // Section 6.1: a coding that is not understood is refused, and only `chunked` is.
            if self.encodings > 1 || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(BadHead::TransferEncoding);
            }
        } else if name.eq_ignore_ascii_case(b"host") {
            self.hosts += 1;
            // Section 3.2: one that is not valid is refused too.
            if self.hosts > 1 || !value.iter().all(is_of_authority) {
                return Err(BadHead::Host);
            }
        } else if is_shadow(name) {
            return Err(BadHead::UnderscoreAlias);
        }
        Ok(())
    }

    fn verdict(&self, version: Version) -> Result<(), BadHead> {
        // Section 6.1: a server may refuse the pair, and the next parser may take either.
        if self.lengths > 0 && self.encodings > 0 {
            return Err(BadHead::TwoFramings);
        }
        if self.encodings > 0 && version == Version::Http10 {
            return Err(BadHead::TransferEncoding);
        }
        // Section 3.2.
        match (version, self.hosts) {
            (_, 1) | (Version::Http10, 0) => Ok(()),
            _ => Err(BadHead::Host),
        }
    }
}

/// What a host and a port are written with. Source: RFC 3986, section 3.2.2.
fn is_of_authority(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte)
}

/// Without the white space that section 5.1 allows around a value, and no other.
fn trimmed(value: &[u8]) -> &[u8] {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !is_blank(byte));
    let end = value.iter().rposition(|byte| !is_blank(byte));
    match (start, end) {
        (Some(start), Some(end)) => &value[start..=end],
        _ => &[],
    }
}

fn is_shadow(name: &[u8]) -> bool {
    let is_called = |shadowed: &&str| {
        name.len() == shadowed.len()
            && name.iter().zip(shadowed.bytes()).all(|(byte, wanted)| {
                let byte = if *byte == b'-' { b'_' } else { *byte };
                byte.eq_ignore_ascii_case(&wanted)
            })
    };
    memchr::memchr(b'_', name).is_some() && UNDERSCORE_ALIASES.iter().any(is_called)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A POST with these lines behind Host.
    fn with(lines: &str) -> Result<(), BadHead> {
        check(format!("POST /generate HTTP/1.1\r\nHost: a\r\n{lines}\r\n").as_bytes())
    }

    fn line(line: &str) -> Result<(), BadHead> {
        check(format!("{line}\r\nHost: a\r\n\r\n").as_bytes())
    }

    #[test]
    fn what_clients_send_is_let_in() {
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
    fn a_line_ends_with_both_characters() {
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
    fn a_request_names_one_host_and_one_target() {
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
    fn a_head_has_a_size_and_a_number_of_fields() {
        // Host is one of them.
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
