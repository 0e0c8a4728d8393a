//! The level words of the log filter: those of Python and of sglang_router become those of `env_logger`.
//!
//! Text in, text out. env_logger takes a single word that is no level for the name of a module, so that `critical` or
//! `inof` would turn off all lines: such a word is refused here, unless it is a module of this program.
//!
//! Source: env_filter 2.0 `parser.rs`; Python 3 `logging` (`_nameToLevel`); sglang,
//! sgl-model-gateway/bindings/python/src/sglang_router/router_args.py (`--log-level`).

use super::settings::nearest;

/// Each accepted word with that of env_logger, the quietest first. Nothing here is logged above `error`.
const LEVELS: [(&str, &str); 10] = [
    ("off", "off"),
    ("critical", "error"),
    ("fatal", "error"),
    ("error", "error"),
    ("warning", "warn"),
    ("warn", "warn"),
    ("info", "info"),
    ("debug", "debug"),
    ("trace", "trace"),
    ("notset", "trace"),
];

/// The crates whose modules may be named without a level.
const CRATES: [&str; 2] = ["mini_lb", "pingora"];

/// A text that is no filter.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoFilter {
    /// The level that the user may have meant.
    pub(super) suggestion: Option<String>,
}

/// The same filter in env_logger's words: `Warning,mini_lb=CRITICAL` becomes `warn,mini_lb=error`.
///
/// # Errors
/// [`NoFilter`].
pub(super) fn translated(text: &str) -> Result<String, NoFilter> {
    // What follows a slash is a pattern for the messages.
    let (directives, pattern) = match text.split_once('/') {
        Some((directives, pattern)) => (directives, Some(pattern)),
        None => (text, None),
    };
    let directives: Vec<_> = directives
        .split(',')
        .map(|directive| translated_directive(directive.trim()))
        .collect::<Result<_, _>>()?;
    let mut filter = directives.join(",");
    if let Some(pattern) = pattern {
        filter.push('/');
        filter.push_str(pattern);
    }
    match env_filter::Builder::new().try_parse(&filter) {
        Ok(_) if !filter.is_empty() => Ok(filter),
        _ => Err(NoFilter { suggestion: None }),
    }
}

fn translated_directive(directive: &str) -> Result<String, NoFilter> {
    match directive.split_once('=') {
        // Without a level, env_logger takes all of them.
        Some((module, "")) => Ok(format!("{module}=")),
        Some((module, word)) => Ok(format!("{module}={}", level(word.trim())?)),
        None if directive.is_empty() || is_module(directive) => Ok(directive.to_owned()),
        None => Ok(level(directive)?.to_owned()),
    }
}

fn is_module(word: &str) -> bool {
    CRATES.iter().any(|name| word.starts_with(name))
}

fn level(word: &str) -> Result<&'static str, NoFilter> {
    let lower = word.to_ascii_lowercase();
    let found = LEVELS.iter().find(|(name, _)| *name == lower);
    found.map(|(_, level)| *level).ok_or_else(|| NoFilter {
        suggestion: nearest(&lower, LEVELS.map(|(name, _)| name)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_python_and_of_the_router_are_levels() {
        for (text, filter) in [
            ("critical", "error"),
            ("FATAL", "error"),
            ("Warning", "warn"),
            (" info ", "info"),
            ("NOTSET", "trace"),
            ("off", "off"),
            (
                "warning,mini_lb::access=CRITICAL",
                "warn,mini_lb::access=error",
            ),
            ("info, mini_lb=debug", "info,mini_lb=debug"),
            ("mini_lb", "mini_lb"),
            ("error,pingora_core=", "error,pingora_core="),
            ("warning/a=b,critical", "warn/a=b,critical"),
        ] {
            assert_eq!(translated(text), Ok(filter.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_word_that_is_no_level_turns_nothing_off() {
        for (text, suggestion) in [
            ("inof", Some("info")),
            ("verbose", None),
            ("info,verbose", None),
            ("mini_lb=wran", Some("warn")),
            ("5", None),
            ("", None),
            (" ", None),
            ("a=b=c", None),
        ] {
            let suggestion = suggestion.map(str::to_owned);
            assert_eq!(translated(text), Err(NoFilter { suggestion }), "{text:?}");
        }
    }
}
