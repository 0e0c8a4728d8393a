//! The log of the binary: lines on stderr, and the filter of the levels, which a reload of the configuration replaces.
//!
//! `env_logger` writes the lines and cannot change its filter, so that it gets every record that the filter here lets pass.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use env_filter::Filter;
use env_logger::fmt::Formatter;
use env_logger::{Logger, Target, WriteStyle};
use log::{LevelFilter, Log, Metadata, Record};

use crate::{Form, log_json, stderr};

/// Holds most lines, in bytes.
const MOST_LINES: usize = 512;

static LINES: OnceLock<Lines> = OnceLock::new();

struct Lines {
    writer: Logger,
    filter: ArcSwap<Filter>,
}

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.load().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.filter.load().matches(record) {
            self.writer.log(record);
        }
    }

    fn flush(&self) {
        self.writer.flush();
    }
}

/// Writes the log to stderr from now on: directly, or by a thread where stderr may block.
pub(crate) fn start(filter: &str, form: Form, directly: bool) {
    let mut writer = env_logger::Builder::new();
    writer.filter_level(LevelFilter::Trace);
    if form == Form::Json || !io::stderr().is_terminal() {
        // Lines have no colours then. Whatever the style is, env_logger takes each line to pieces again to look for some, which
        // costs a request a twentieth of its instructions, unless it may always write them. To its own stderr it asks for each
        // line whether that is a terminal, which is a system call; of another writer it does not ask.
        writer
            .format(plain)
            .write_style(WriteStyle::Always)
            .target(Target::Pipe(Box::new(io::stderr())));
    }
    if !directly
        && stderr::may_block()
        && let Ok(lines) = stderr::Lines::start(form)
    {
        writer.target(Target::Pipe(Box::new(lines)));
    }
    if form == Form::Json {
        writer.format(log_json::write);
        // A panic is a line like any other.
        std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    }
    let filter = built(filter);
    let level = filter.filter();
    let lines = LINES.get_or_init(|| Lines {
        writer: writer.build(),
        filter: ArcSwap::from_pointee(filter),
    });
    // Refused only where there is a logger already: the process has this one alone.
    let _ = log::set_logger(lines);
    log::set_max_level(level);
}

/// A line as env_logger writes it where there are no colours. It is formatted as a text first: the line of a request has
/// some seventy parts, each of which costs more in a [`Formatter`].
fn plain(line: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let mut text = String::with_capacity(MOST_LINES);
    let (time, level, target) = (line.timestamp(), record.level(), record.target());
    writeln!(text, "[{time} {level:<5} {target}] {}", record.args())
        .map_err(|_| io::ErrorKind::InvalidData)?;
    line.write_all(text.as_bytes())
}

/// Lets other records pass from now on. Without [`start`] nothing happens.
pub(crate) fn set_filter(filter: &str) {
    if let Some(lines) = LINES.get() {
        let filter = built(filter);
        let level = filter.filter();
        lines.filter.store(Arc::new(filter));
        log::set_max_level(level);
    }
}

/// Pingora's log lines are for its developers, and some repeat bytes of clients, keys included: hidden unless the
/// filter names Pingora. Also hides the TLS close errors of clients that have already disconnected.
fn built(filter: &str) -> Filter {
    let mut built = env_filter::Builder::new();
    let level = filter.trim().to_ascii_lowercase();
    if !level.contains("kube") {
        // Each failure once more, with the response as Rust prints it.
        built.filter_module("kube_", LevelFilter::Off);
    }
    if !level.contains("pingora") {
        // One error each second while a process waits for its old one. The server module says it in one line.
        built.filter_module("pingora_core::server::transfer_fd", LevelFilter::Off);
    }
    if ["info", "warn"].contains(&level.as_str()) {
        built.filter_module("pingora_core::protocols::tls", LevelFilter::Error);
    }
    match level.as_str() {
        "info" => built.filter_module("pingora", LevelFilter::Warn),
        "debug" | "trace" => built.filter_module("pingora", LevelFilter::Info),
        _ => &mut built,
    };
    built.parse(filter).build()
}
