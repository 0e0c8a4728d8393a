//! The problems that a configuration can have, each with its place.
//!
//! A problem is data: a place and a fault. Only this file turns it into text.

use std::fmt::{self, Write as _};
use std::path::PathBuf;

use super::worker::UrlFault;

/// Why a configuration cannot be used: every problem that was found, one line each when displayed.
#[derive(Debug)]
pub struct ConfigError {
    /// At least one. First those of the command line, the environment and the file, then those of the values.
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
    /// The source of the value.
    pub place: Place,
    /// The kind of the problem.
    pub fault: Fault,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names, keys and values may contain line ends.
        write!(OneLine(f), "{}: {}", self.place, self.fault)
    }
}

/// Writes control characters as their escapes.
struct OneLine<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for OneLine<'_, '_> {
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
    /// An environment variable.
    Environment(String),
    /// A key of the file.
    File {
        /// As the user named it.
        path: PathBuf,
        /// Counted from 1; `None` when the parser does not report it.
        line: Option<usize>,
        /// `port`, `prefill[1].url`; empty for the file as a whole.
        key: String,
    },
    /// A setting or an argument of `MiniLbConfig`.
    Library(String),
    /// No source: the default.
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
            // The problem with a default is that the setting is missing.
            Place::Default => f.write_str("configuration"),
        }
    }
}

/// The kind of a problem. Contains the user's values, except API keys and the content of key files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A key that does not exist at its place.
    UnknownKey {
        /// The nearest key that exists there.
        suggestion: Option<String>,
        /// All keys that exist there, when they are few.
        allowed: Option<&'static [&'static str]>,
    },
    /// The file is not YAML; the parser's message.
    Yaml(String),
    /// A value of another YAML type.
    Type {
        /// The expected type, with its article.
        expected: &'static str,
    },
    /// A value that the setting does not accept.
    Value {
        /// What the user wrote.
        found: String,
        /// The accepted values.
        expected: &'static str,
        /// The nearest accepted value.
        suggestion: Option<String>,
    },
    /// A text that is not the URL of a worker.
    Url {
        /// What the user wrote.
        found: String,
        /// The reason.
        why: UrlFault,
    },
    /// A worker that is listed twice in one role.
    Duplicate {
        /// The canonical URL.
        url: String,
        /// The place where it is listed first.
        first: Box<Place>,
    },
    /// A worker that is listed as prefill and as decode.
    BothRoles {
        /// The canonical URL.
        url: String,
        /// The place where it is listed as prefill.
        prefill: Box<Place>,
    },
    /// No worker of a role.
    NoWorkers {
        /// The key of the list.
        key: &'static str,
    },
    /// A name of DNS in a build without the feature for it.
    NoDns,
    /// Workers are to come from Kubernetes, and no selector says which.
    NoSelector,
    /// The program was built without the feature that the setting needs.
    NoFeature(&'static str),
    /// A worker of the file without its URL.
    NoUrl,
    /// An API key of a worker both as text and as a file.
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
        /// The error of the system.
        why: String,
    },
    /// The directory of a file that a process in the background writes does not exist.
    NoDirectory(PathBuf),
    /// A user or a group that a process in the background cannot take.
    Account {
        /// Its name.
        name: String,
        /// Whether it exists, so that only root can take it.
        exists: bool,
    },
    /// A file without a usable certificate or private key.
    Tls {
        /// As the user named it.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// A certificate without its private key, or the reverse.
    Half {
        /// The key of the setting that is missing.
        missing: &'static str,
    },
    /// The two listeners have the same address.
    SameAddress,
    /// An empty text or file where there must be a key.
    Empty,
    /// Not UTF-8.
    NotUtf8,
    /// An API key that an `Authorization` header cannot carry.
    BadKey,
    /// The name behind a key cannot stand in the log.
    BadKeyName,
    /// A fault in this line of a file of keys, counted from 1.
    Line(usize, Box<Fault>),
    /// The stars that `--print-config` prints instead of an API key.
    MaskedKey,
    /// `${NAME}` in the file without such an environment variable.
    MissingVariable(String),
    /// `${` in the file that no name and `}` follow.
    BadVariable,
    /// A value that Pingora refuses; its message.
    Server(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::UnknownKey { suggestion, allowed } => {
                f.write_str("unknown key")?;
                match (suggestion, allowed) {
                    (None, Some(allowed)) => write!(f, ", expected one of {}", allowed.join(", ")),
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
            Fault::Duplicate { url, first } => write!(f, "{url} is listed twice, first at {first}"),
            Fault::BothRoles { url, prefill } => {
                write!(f, "{url} cannot be both, it is listed as prefill at {prefill}")
            }
            Fault::NoWorkers { key } => {
                let example = match *key {
                    "prefill" => "http://10.0.0.1:30000 8998",
                    _ => "http://10.0.0.2:30001",
                };
                write!(f, "at least one {key} worker is required, for example --{key} {example}")
            }
            Fault::NoDns => f.write_str("this build has no resolver for names of workers, it lacks the feature `dns`"),
            Fault::NoSelector => f.write_str(
                "a selector is required as well, for example --prefill-selector app=sglang role=prefill --decode-selector app=sglang role=decode",
            ),
            Fault::NoFeature(feature) => write!(
                f,
                "this program was built without it: build it with `cargo build --release --features {feature}`, or use an image \
                 that has it"
            ),
            Fault::NoUrl => f.write_str("url is missing"),
            Fault::TwoKeys { text, file } => write!(f, "set either {text} or {file}, not both"),
            Fault::Unreadable { path, why } => write!(f, "cannot read {}: {why}", path.display()),
            Fault::NoDirectory(path) => write!(f, "the directory {} does not exist", path.display()),
            Fault::Account { name, exists: true } => write!(f, "only a process of root can take `{name}`"),
            Fault::Account { name, exists: false } => write!(f, "`{name}` does not exist"),
            Fault::Tls { path, why } => write!(f, "cannot use {}: {why}", path.display()),
            Fault::Half { missing } => write!(f, "{missing} is required as well"),
            Fault::SameAddress => f.write_str("clients connect to this address, choose another port"),
            Fault::Empty => f.write_str("must not be empty"),
            Fault::NotUtf8 => f.write_str("not valid UTF-8"),
            Fault::BadKeyName => f.write_str(
                "the name after a key and ` #` needs 1 to 64 letters, digits, dots, hyphens or underscores",
            ),
            Fault::Line(number, fault) => write!(f, "line {number}: {fault}"),
            Fault::BadKey => f.write_str("the key has characters that an HTTP header cannot carry"),
            Fault::MaskedKey => f.write_str("the stars are printed by --print-config instead of the key, write the key itself"),
            Fault::MissingVariable(name) => write!(f, "environment variable {name} is not set"),
            Fault::BadVariable => f.write_str("`${` must be followed by the name of a variable and `}` (write `$${` for a literal `${`)"),
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
