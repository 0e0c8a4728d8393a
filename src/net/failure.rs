//! Why an exchange with a worker failed, as data: [`Failure`].
//!
//! The texts go to the log and to the client. They name what happened and the operating system's or the parser's
//! reason for it, never bytes that the worker sent.

use std::fmt;

use http::StatusCode;
use pingora::{Error, ErrorType, ImmutStr};

use super::coding::CodingError;

/// Why an exchange gave no complete response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The worker refuses connections, its host cannot be reached, or the TLS handshake failed. No byte of the
    /// request was sent.
    Unreachable(String),
    /// This process or this machine has no socket left. Says nothing about the worker.
    NoSocket(String),
    /// The connection was not established in time.
    ConnectTimeout,
    /// The connection ended before the response did.
    Lost(String),
    /// A connection from the pool ended before a byte of the response. The worker may have closed it while it was idle,
    /// or have read the request.
    Stale(String),
    /// The body cannot be decoded.
    Encoded(String),
    /// The worker did not send valid HTTP.
    NotHttp(String),
    /// The response is longer than this limit, in bytes.
    TooLong(usize),
    /// The response has a status that cannot be passed on.
    Unusable(StatusCode),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Unreachable(why) => write!(f, "cannot be reached ({why})"),
            Failure::NoSocket(why) => {
                write!(
                    f,
                    "cannot be reached, the load balancer has no free socket ({why})"
                )
            }
            Failure::ConnectTimeout => f.write_str("did not accept a connection in time"),
            Failure::Lost(why) | Failure::Stale(why) => {
                write!(f, "closed the connection before its response ended ({why})")
            }
            Failure::Encoded(why) => write!(f, "sent a response that cannot be read ({why})"),
            Failure::NotHttp(why) => write!(f, "sent a response that is not valid HTTP ({why})"),
            Failure::TooLong(limit) => write!(f, "sent more than {limit} bytes"),
            Failure::Unusable(status) => write!(f, "answered {status}, which cannot be passed on"),
        }
    }
}

impl std::error::Error for Failure {}

impl From<CodingError> for Failure {
    fn from(error: CodingError) -> Self {
        match error {
            CodingError::TooLong(limit) => Failure::TooLong(limit),
            error => Failure::Encoded(error.to_string()),
        }
    }
}

impl Failure {
    /// The failure of a worker that had closed another connection with the request on it before. The loss is the cause of
    /// a refusal that follows.
    pub(crate) fn after_loss(self) -> Self {
        match self {
            Failure::Unreachable(why) => Failure::Lost(format!("then it refused another: {why}")),
            Failure::ConnectTimeout => Failure::Lost("then it accepted no other in time".into()),
            other => other,
        }
    }

    /// The failure behind an error that Pingora reports on the way to or from a worker.
    pub(crate) fn from_pingora(error: &Error) -> Self {
        let why = reason(error);
        if is_out_of_sockets(error) {
            return Failure::NoSocket(why);
        }
        match error.etype() {
            ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => Failure::ConnectTimeout,
            ErrorType::ConnectRefused
            | ErrorType::ConnectNoRoute
            | ErrorType::ConnectError
            | ErrorType::SocketError
            | ErrorType::TLSHandshakeFailure
            | ErrorType::InvalidCert
            | ErrorType::HandshakeError
            | ErrorType::BindError => Failure::Unreachable(why),
            ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed => {
                Failure::Lost(why)
            }
            // A firewall that forbids the connection, and a socket that the system does not make.
            ErrorType::InternalError if of_system(error).is_some() => Failure::Unreachable(why),
            _ => Failure::NotHttp(safe_reason(error)),
        }
    }
}

/// Whether the file descriptors (of the process or the machine) or the local ports are used up.
///
/// Source: errno(3) of Linux (ENFILE, EMFILE, EADDRNOTAVAIL); pingora-core 0.9.1 `connectors/l4.rs`, which reports
/// them as internal errors.
fn is_out_of_sockets(error: &Error) -> bool {
    matches!(
        of_system(error).and_then(std::io::Error::raw_os_error),
        Some(23 | 24 | 99)
    )
}

/// The error of the operating system that is behind this one. Pingora's own search ends at an error of Pingora, and at
/// the one that says which local address a connection had (pingora-core 0.9.1 `protocols/l4/ext.rs`).
fn of_system(error: &Error) -> Option<&std::io::Error> {
    let mut cause: &(dyn std::error::Error + 'static) = error.root_cause();
    loop {
        if let Some(of_system) = cause.downcast_ref() {
            return Some(of_system);
        }
        cause = match cause.downcast_ref::<Error>() {
            Some(of_pingora) => of_pingora.cause.as_deref()?,
            None => cause.source()?,
        };
    }
}

/// The operating system's error message, else Pingora's.
fn reason(error: &Error) -> String {
    match of_system(error) {
        Some(cause) => cause.to_string(),
        None => match &error.context {
            // Pingora writes a chain of errors into one text; its last part is the first cause.
            Some(context) => {
                let text = context.as_str();
                let cause = text.rsplit_once(" cause: ");
                cause.map_or(text, |(_, cause)| cause).to_owned()
            }
            None => error.etype().as_str().to_owned(),
        },
    }
}

/// The reason why a response is not valid HTTP, without a byte of it.
fn safe_reason(error: &Error) -> String {
    let cause = error.root_cause();
    if let Some(cause) = cause.downcast_ref::<httparse::Error>() {
        return cause.to_string();
    }
    if let Some(cause) = cause.downcast_ref::<std::io::Error>() {
        return cause.to_string();
    }
    match &error.context {
        // Pingora's static messages are safe. A formatted one (`Owned`) may repeat what the worker sent.
        Some(ImmutStr::Static(text)) => (*text).to_owned(),
        Some(ImmutStr::Owned(_)) | None => error.etype().as_str().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_response_is_described_without_its_bytes() {
        let header = ErrorType::InvalidHTTPHeader;
        let parser = Error::because(
            header.clone(),
            "buf: sk-1".to_owned(),
            httparse::Error::HeaderName,
        );
        let chunk = Error::explain(
            ErrorType::InvalidHTTPHeader,
            format!("Invalid chunk: {}", "sk-1"),
        );
        let ours = Error::explain(header, "two Content-Lengths");
        for (error, why) in [
            (parser, "invalid header name"),
            (chunk, "InvalidHTTPHeader"),
            (ours, "two Content-Lengths"),
        ] {
            assert_eq!(
                Failure::from_pingora(&error),
                Failure::NotHttp(why.to_owned())
            );
        }
    }

    #[test]
    fn exhausted_descriptors_are_not_blamed_on_the_worker() {
        let cause = std::io::Error::from_raw_os_error(24);
        let error = Error::because(ErrorType::InternalError, "dialling", cause);
        assert!(matches!(
            Failure::from_pingora(&error),
            Failure::NoSocket(_)
        ));
    }

    #[test]
    fn a_connection_that_the_system_forbids_is_no_response() {
        let cause = std::io::Error::from_raw_os_error(1);
        let why = cause.to_string();
        let error = Error::because(ErrorType::InternalError, "dialling", cause);
        assert_eq!(
            Failure::from_pingora(&error),
            Failure::Unreachable(why.clone())
        );
        let socket = std::io::Error::from_raw_os_error(1);
        let socket = Error::because(ErrorType::SocketError, "its options", socket);
        let error = Error::because(ErrorType::InternalError, "dialling", socket);
        assert_eq!(Failure::from_pingora(&error), Failure::Unreachable(why));
    }

    #[test]
    fn a_worker_that_refuses_a_connection_after_a_loss_was_lost() {
        let unreachable = Failure::Unreachable("no route".into());
        for (failure, expected) in [
            (
                unreachable,
                "closed the connection before its response ended (then it refused another: no route)",
            ),
            (
                Failure::ConnectTimeout,
                "closed the connection before its response ended (then it accepted no other in time)",
            ),
            (Failure::TooLong(5), "sent more than 5 bytes"),
        ] {
            assert_eq!(failure.after_loss().to_string(), expected);
        }
    }

    #[test]
    fn each_stage_of_an_exchange_has_its_failure() {
        let failure = |etype| Failure::from_pingora(&Error::new(etype));
        for (etype, expected) in [
            (ErrorType::ConnectTimedout, Failure::ConnectTimeout),
            (ErrorType::TLSHandshakeTimedout, Failure::ConnectTimeout),
            (
                ErrorType::ConnectRefused,
                Failure::Unreachable("ConnectRefused".into()),
            ),
            (
                ErrorType::InvalidCert,
                Failure::Unreachable("InvalidCert".into()),
            ),
            (
                ErrorType::ConnectionClosed,
                Failure::Lost("ConnectionClosed".into()),
            ),
            (ErrorType::ReadError, Failure::Lost("ReadError".into())),
            (
                ErrorType::InvalidHTTPHeader,
                Failure::NotHttp("InvalidHTTPHeader".into()),
            ),
        ] {
            assert_eq!(failure(etype), expected);
        }
    }

    /// An error that only its source explains, as Pingora's about a connection that had a local address.
    #[derive(Debug)]
    struct Wrapped(std::io::Error);

    impl fmt::Display for Wrapped {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("with a local address")
        }
    }

    impl std::error::Error for Wrapped {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn the_reason_is_the_first_cause_of_a_chain() {
        let os = std::io::Error::from_raw_os_error(111);
        let with_os = Error::because(ErrorType::ConnectRefused, "to a worker", os);
        let os = std::io::Error::from_raw_os_error(113);
        let with_context = Error::because(ErrorType::ConnectNoRoute, "connect", os)
            .more_context("to a worker".to_owned());
        let chain = Error::explain(ErrorType::ConnectError, "handshake cause: no route");
        let os = std::io::Error::from_raw_os_error(111);
        let with_address = Error::because(ErrorType::ConnectRefused, "connect", Wrapped(os))
            .more_context("to a worker".to_owned());
        for (error, why) in [
            (with_os, "Connection refused (os error 111)"),
            (with_address, "Connection refused (os error 111)"),
            (with_context, "No route to host (os error 113)"),
            (chain, "no route"),
        ] {
            assert_eq!(
                Failure::from_pingora(&error),
                Failure::Unreachable(why.into())
            );
        }
    }
}
