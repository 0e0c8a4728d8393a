//! What is known of a finished request, and the sinks that report it.
//!
//! The proxy fills one [`Record`] while a request runs and hands it over once, in [`finished`]. Every sink reads that
//! value and nothing else, so that the log line, and whatever is added beside it, cannot disagree.

mod access_log;
mod record;

pub(crate) use record::{Cause, FailedAttempt, Pair, Record};

/// Hands the record of a finished request to every sink.
pub(crate) fn finished(record: &Record) {
    access_log::write(record);
}
