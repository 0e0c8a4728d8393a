//! Everything that can be wrong with a configuration, and where.
//!
//! A problem is data: a place, a fault and a suggestion; this file alone turns them into lines. Nothing
//! is read or decided here.

use std::fmt::{self, Write as _};
use std::path::PathBuf;

use super::worker::UrlFault;

/// Why a configuration cannot be used: every problem that was found, one line each when displayed.
#[derive(Debug)]
pub struct ConfigError {
    /// At least one, in the order in which the parts are read.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// One fault at one place. `Display` is one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where the user wrote it.
    pub place: Place,
    /// What is wrong there.
    pub fault: Fault,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line, whatever line ends there are in names, keys and values.
        write!(OnALine(f), "{}: {}", self.place, self.fault)
    }
}

/// Writes control characters as their escapes.
struct OnALine<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for OnALine<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.split_inclusive(char::is_control) {
            let control = piece.chars().next_back().filter(|last| last.is_control());
            let plain = piece.len() - control.map_or(0, char::len_utf8);
            self.0.write_str(&piece[..plain])?;
            if let Some(control) = control {
                write!(self.0, "{}", control.escape_debug())?;
            }
        }
        Ok(())
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A flag of the command line, with its dashes.
    Flag(String),
    /// A variable of the environment.
    Environment(String),
    /// A key of the file.
    File {
        /// As the user named it.
        path: PathBuf,
        /// Counted from 1; `None` when the parser does not tell.
        line: Option<usize>,
        /// `port`, `prefill[1].url`; empty for the file as a whole.
        key: String,
    },
    /// A field of `MiniLbConfig`.
    Library(String),
    /// Nobody wrote it.
    Default,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Flag(name) | Place::Environment(name) | Place::Library(name) => {
                f.write_str(name)
            }
            Place::File { path, line, key } => {
                write!(f, "{}", path.display())?;
                if let Some(line) = line {
                    write!(f, ":{line}")?;
                }
                if !key.is_empty() {
                    write!(f, ": {key}")?;
                }
                Ok(())
            }
            // What nobody wrote can only be wrong because it is missing.
            Place::Default => f.write_str("configuration"),
        }
    }
}

/// What is wrong. The texts of the user's values are kept, never those of keys and key files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A key of the file that means nothing there.
    UnknownKey {
        /// The nearest key that would.
        suggestion: Option<String>,
        /// The keys that may stand there, where they are few.
        allowed: Option<&'static [&'static str]>,
    },
    /// The file is not YAML; the parser's words.
    Yaml(String),
    /// A value of another YAML type.
    Type {
        /// What it should be, with its article.
        expected: &'static str,
    },
    /// A text that is not one of the values that the option takes.
    Value {
        /// What the user wrote.
        found: String,
        /// What it should be.
        expected: &'static str,
        /// The nearest value that would do.
        suggestion: Option<String>,
    },
    /// The text is not the URL of a worker.
    Url {
        /// What the user wrote.
        found: String,
        /// Why.
        why: UrlFault,
    },
    /// A worker was named before.
    Duplicate {
        /// The canonical URL.
        url: String,
        /// Where it was named first.
        first: Box<Place>,
    },
    /// The same worker is named as prefill and as decode.
    BothRoles {
        /// The canonical URL.
        url: String,
        /// Where it is named as prefill.
        prefill: Box<Place>,
    },
    /// No worker of a role.
    NoWorkers {
        /// The key of the option that would name one.
        key: &'static str,
    },
    /// A worker of the file without its URL.
    NoUrl,
    /// A key of a worker as text and as a file.
    TwoKeys {
        /// The key of the text.
        text: &'static str,
        /// The key of the file.
        file: &'static str,
    },
    /// A file that cannot be read.
    Unreadable {
        /// As the user named it.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// A file that has not the certificate or the key that it should have.
    Tls {
        /// As the user named it.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A certificate without its key, or the reverse.
    Half {
        /// The key of the option that is missing.
        missing: &'static str,
    },
    /// The two listeners have the same address.
    SameAddress,
    /// A text that must not be empty.
    Empty,
    /// Not UTF-8.
    NotUtf8,
    /// A key that no `Authorization` header can carry.
    BadKey,
    /// The stars that `--print-config` writes instead of a key.
    MaskedKey,
    /// `${NAME}` in the file, and the environment has no such variable.
    MissingVariable(String),
    /// `${` in the file without a name and `}` behind it.
    BadVariable,
    /// Pingora refuses the value; its words.
    Server(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::UnknownKey { suggestion, allowed } => {
                f.write_str("unknown key")?;
                match (suggestion, allowed) {
                    (None, Some(allowed)) => write!(f, ", it may be {}", allowed.join(", ")),
                    _ => write_suggestion(f, suggestion),
                }
            }
            Fault::Yaml(why) => write!(f, "not valid YAML: {why}"),
            Fault::Type { expected } => write!(f, "expected {expected}"),
            Fault::Value { found, expected, suggestion } => {
                write!(f, "`{}` is not {expected}", found.escape_debug())?;
                write_suggestion(f, suggestion)
            }
            Fault::Url { found, why } => write!(f, "`{}` is not the URL of a worker: {why}", found.escape_debug()),
            Fault::Duplicate { url, first } => write!(f, "{url} is named twice, first at {first}"),
            Fault::BothRoles { url, prefill } => {
                write!(f, "{url} cannot serve both roles, it is prefill at {prefill}")
            }
            Fault::NoWorkers { key } => {
                write!(f, "at least one {key} worker is needed, for example --{key} http://10.0.0.1:30000")
            }
            Fault::NoUrl => f.write_str("url is missing"),
            Fault::TwoKeys { text, file } => write!(f, "give either {text} or {file}, not both"),
            Fault::Unreadable { path, why } => write!(f, "cannot read {}: {why}", path.display()),
            Fault::Tls { path, why } => write!(f, "cannot use {}: {why}", path.display()),
            Fault::Half { missing } => write!(f, "{missing} is needed as well"),
            Fault::SameAddress => f.write_str("clients connect there already, choose another port"),
            Fault::Empty => f.write_str("must not be empty"),
            Fault::NotUtf8 => f.write_str("not valid UTF-8"),
            Fault::BadKey => f.write_str("the key has characters that an HTTP header cannot carry"),
            Fault::MaskedKey => f.write_str("the stars are what --print-config shows instead of a key, write the key itself"),
            Fault::MissingVariable(name) => write!(f, "the environment has no variable {name}"),
            Fault::BadVariable => f.write_str("`${` must be followed by a variable's name and `}` (a literal `${` is written `$${`)"),
            Fault::Server(why) => f.write_str(why),
        }
    }
}

fn write_suggestion(f: &mut fmt::Formatter<'_>, suggestion: &Option<String>) -> fmt::Result {
    match suggestion {
        Some(name) => write!(f, ", did you mean `{name}`?"),
        None => Ok(()),
    }
}
