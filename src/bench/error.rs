//! Why `mini-lb bench` has no numbers to report, and what to do about it.

use std::fmt;
use std::io;

use super::client::Failure;
use super::trace::TraceError;
use super::url::UrlError;

/// Why there is nothing to report.
#[derive(Debug)]
pub enum BenchError {
    /// A URL is malformed or has no address.
    Url(UrlError),
    /// The first request failed.
    Unusable {
        /// URL of the server, or of its endpoint.
        url: String,
        /// The failure of the request.
        failure: Failure,
        /// The beginning of the response's body, if there was one.
        message: Option<String>,
    },
    /// All requests of all levels failed.
    NothingAnswered,
    /// The API key has characters that a header cannot have.
    Key,
    /// The trace cannot be read.
    Trace(TraceError),
    /// An I/O error on this file, on stdout or of the runtime.
    Io(String, io::Error),
}

impl fmt::Display for BenchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (url, failure, message) = match self {
            BenchError::Url(error) => return error.fmt(f),
            BenchError::Trace(error) => return error.fmt(f),
            BenchError::NothingAnswered => return f.write_str("every request failed"),
            BenchError::Key => {
                return f.write_str("--api-key has characters that a header cannot have");
            }
            BenchError::Io(what, error) => return write!(f, "{what}: {error}"),
            BenchError::Unusable {
                url,
                failure,
                message,
            } => (url, failure, message),
        };
        match failure {
            Failure::Refused => write!(
                f,
                "nothing listens at {url}. Start the server, or give its address with --url; `mini-lb demo` starts one \
                 to try"
            )?,
            Failure::Connect(reason) => write!(f, "cannot connect to {url}: {reason}")?,
            Failure::Status(401 | 403) => {
                write!(
                    f,
                    "{url} requires a key; give it with --api-key ({failure})"
                )?;
            }
            Failure::Status(404) => write!(
                f,
                "{url} has no such endpoint; choose another with --endpoint ({failure})"
            )?,
            Failure::Timeout => write!(f, "{url} did not respond in time; raise --timeout-secs")?,
            other => write!(f, "the first request to {url} failed: {other}")?,
        }
        match message {
            Some(message) => write!(f, "\nThe server responded: {message}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for BenchError {}

impl From<TraceError> for BenchError {
    fn from(error: TraceError) -> BenchError {
        BenchError::Trace(error)
    }
}

impl From<UrlError> for BenchError {
    fn from(error: UrlError) -> BenchError {
        BenchError::Url(error)
    }
}
