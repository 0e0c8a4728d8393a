//! How a stream ends: the end marker of its endpoint, and an error that the worker reports under the status 200.
//!
//! What lives here: finding both in the bytes that go to the client, whatever the chunking. Only the first bytes of a line
//! are compared with the few lines that matter; no event is parsed, except one that reports an error. What may not: what
//! follows from either for the request.
//!
//! An ordinary server ends every stream with its marker, also after an error event. Source: SGLang 0.5.23,
//! `srt/entrypoints/http_server.py` (`stream_results`), `srt/entrypoints/openai/serving_chat.py`,
//! `serving_completions.py` and `serving_responses.py`, `srt/entrypoints/anthropic/serving.py` (`_flush_on_error`).

use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::super::Route;
use super::super::json::Scanner;
use super::super::sse::{Boundary, Part};
use super::outcome::{status, stream_error};

/// The longest line that is compared, in bytes: `event: response.incomplete` has 26.
const LINE_HEAD: usize = 32;

/// The longest error event of which the code is read, in bytes. SGLang's have a few hundred.
const ERROR_LIMIT: usize = 64 << 10;

/// What only an aborted request of `/generate` has: inside a string its quotes would be escaped.
static ABORT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#""type":"abort""#));

/// Follows the bytes of one stream: its events, its end marker, and the first error that the worker reports in it.
#[derive(Debug, Default)]
pub struct StreamEnd {
    /// `None` where nothing is looked for, because the bytes cannot be read.
    route: Option<Route>,
    events: Boundary,
    /// The begin of a line that was cut before it could be compared.
    held: Vec<u8>,
    /// The text of a line that reports an error, while more of it may come.
    report: Option<Report>,
    /// Whether a line of the present event is the marker.
    ends_here: bool,
    complete: bool,
    error: Option<StreamError>,
}

/// An error that a worker reports in a stream that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamError {
    /// The HTTP status that the error names, 400..=599; `None` where it names none.
    pub status: Option<u16>,
}

/// A line that reports an error.
#[derive(Debug)]
enum Report {
    /// From its first byte.
    Event(Vec<u8>),
    /// From the first member of the object `finish_reason` of an aborted request.
    Abort(Vec<u8>),
}

/// What a line means.
enum Meaning {
    Nothing,
    /// It is the end marker.
    End,
    /// The data are an error.
    Error,
    /// An error whose event names no status.
    ErrorWithoutStatus,
    /// Both: the stream ends as failed.
    FailedEnd,
}

impl StreamEnd {
    /// Before the first byte of a stream of this route.
    pub fn new(route: Route) -> Self {
        Self {
            route: Some(route),
            ..Self::default()
        }
    }

    /// A stream whose bytes cannot be read, because they are compressed: it has no marker and lacks none.
    pub fn unread() -> Self {
        Self::default()
    }

    /// Whether the bytes can be read.
    pub fn is_read(&self) -> bool {
        self.route.is_some()
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let Some(route) = self.route else {
            return self.events.update(bytes);
        };
        let mut events = std::mem::take(&mut self.events);
        events.follow(bytes, |part| match part {
            Part::Line { text, begins, ends } => {
                if begins {
                    self.end_line(route);
                }
                self.line(route, text, begins, ends);
            }
            Part::EventEnd => {
                self.end_line(route);
                self.complete |= std::mem::take(&mut self.ends_here);
            }
        });
        self.events = events;
    }

    /// The number of whole events so far.
    pub fn events(&self) -> u64 {
        self.events.events()
    }

    /// Whether another event may follow: the bytes so far end with a blank line, or there are none.
    pub fn is_at_event_end(&self) -> bool {
        self.events.is_at_event_end()
    }

    /// Whether the end marker has passed, so that the client has the whole response.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The first error that the worker has reported.
    pub fn error(&self) -> Option<StreamError> {
        self.error
    }

    /// Whether the stream, which has ended, lacks its marker. An error that was reported explains the lack.
    pub fn lacks_end(&mut self) -> bool {
        let Some(route) = self.route else {
            return false;
        };
        // A last line without its line end counts.
        self.end_line(route);
        !self.complete && !self.ends_here && self.error.is_none()
    }

    #[inline]
    fn line(&mut self, route: Route, text: &[u8], begins: bool, ends: bool) {
        if begins {
            self.begin_line(route, text, ends);
        } else if let Some(report) = &mut self.report {
            report.extend(text);
        } else if !self.held.is_empty() {
            let mut line = std::mem::take(&mut self.held);
            line.extend_from_slice(text);
            self.begin_line(route, &line, ends);
        }
        if route == Route::Generate && self.error.is_none() && self.report.is_none() {
            self.find_abort(text);
        }
    }

    /// Compares a line as soon as enough of it is known.
    #[inline]
    fn begin_line(&mut self, route: Route, text: &[u8], ends: bool) {
        if !ends && text.len() < LINE_HEAD {
            self.held = text.to_vec();
        } else {
            self.read_line(route, text);
        }
    }

    #[inline]
    fn read_line(&mut self, route: Route, text: &[u8]) {
        match meaning(route, text) {
            Meaning::Nothing => {}
            Meaning::End => self.ends_here = true,
            Meaning::Error => self.report = Some(Report::Event(text.to_vec())),
            Meaning::ErrorWithoutStatus => self.note_error(None),
            Meaning::FailedEnd => {
                self.ends_here = true;
                self.note_error(None);
            }
        }
    }

    /// Looks for an abort of `/generate`, which stands deep in an event. One whose word is cut by the end of a chunk is not
    /// noticed.
    fn find_abort(&mut self, text: &[u8]) {
        if let Some(at) = ABORT.find(text) {
            self.report = Some(Report::Abort([b"{", &text[at..]].concat()));
        }
    }

    fn note_error(&mut self, status: Option<u16>) {
        self.error.get_or_insert(StreamError { status });
    }

    /// The last line is whole.
    #[inline]
    fn end_line(&mut self, route: Route) {
        // Most lines lie within one chunk and report no error.
        if !self.held.is_empty() || self.report.is_some() {
            self.settle_line(route);
        }
    }

    #[cold]
    fn settle_line(&mut self, route: Route) {
        if !self.held.is_empty() {
            let line = std::mem::take(&mut self.held);
            self.read_line(route, &line);
        }
        match self.report.take() {
            None => {}
            Some(Report::Event(text)) => {
                let status = stream_error(route, &text).map(|error| error.status);
                self.note_error(status);
            }
            // An abort that the client asked for has no status, and is no error.
            Some(Report::Abort(text)) => {
                if let Some(status) = abort_status(&text) {
                    self.note_error(Some(status));
                }
            }
        }
    }
}

impl Report {
    fn extend(&mut self, more: &[u8]) {
        let (Self::Event(text) | Self::Abort(text)) = self;
        let room = ERROR_LIMIT.saturating_sub(text.len());
        text.extend_from_slice(&more[..more.len().min(room)]);
    }
}

#[inline]
fn meaning(route: Route, line: &[u8]) -> Meaning {
    match route {
        Route::Generate | Route::ChatCompletions | Route::Completions => {
            let Some(data) = value(line, b"data:") else {
                return Meaning::Nothing;
            };
            match data {
                b"[DONE]" => Meaning::End,
                data if data.starts_with(b"{\"error\"") => Meaning::Error,
                _ => Meaning::Nothing,
            }
        }
        Route::Responses => match value(line, b"event:") {
            Some(b"response.completed" | b"response.incomplete" | b"response.cancelled") => {
                Meaning::End
            }
            Some(b"response.failed") => Meaning::FailedEnd,
            Some(b"error") => Meaning::ErrorWithoutStatus,
            _ => Meaning::Nothing,
        },
        Route::Messages => match value(line, b"event:") {
            Some(b"message_stop") => Meaning::End,
            Some(b"error") => Meaning::ErrorWithoutStatus,
            _ => Meaning::Nothing,
        },
    }
}

/// The value of a field of an event, without the space that may follow the colon.
#[inline]
fn value<'a, const N: usize>(line: &'a [u8], name: &[u8; N]) -> Option<&'a [u8]> {
    let (begin, value) = line.split_first_chunk()?;
    (begin == name).then(|| value.strip_prefix(b" ").unwrap_or(value))
}

/// The status of an aborted request, from the object that says why it ended; more text may follow the object.
fn abort_status(text: &[u8]) -> Option<u16> {
    let mut found = None;
    let mut scanner = Scanner::new(text).ok()?;
    // Where the text was cut, the status may stand before its end.
    let _ = scanner.object(|s, member| {
        let span = s.skip()?;
        if member.name == "status_code" {
            found = Some(span);
        }
        Ok(())
    });
    // `null`, where the client asked for the abort, is no number.
    status(&text[found?])
}

#[cfg(test)]
mod tests;
