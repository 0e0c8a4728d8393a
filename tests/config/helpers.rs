//! Configurations that are resolved and never started. The environment is an argument, so that no test sees the
//! variables of another one.

use std::ffi::OsString;
use std::fs;

use mini_lb::cli::{self, Command, Serve};
use mini_lb::config::{Background, Config, ConfigError, Effective, MiniLbConfig};

pub(crate) fn serve(line: &str) -> Serve {
    let words = std::iter::once("mini-lb").chain(line.split_whitespace());
    match cli::parse(words) {
        Ok(Command::Serve(serve)) => *serve,
        Ok(other) => panic!("{line}: {other:?}"),
        Err(error) => panic!("{line}: {error}"),
    }
}

pub(crate) fn load(
    line: &str,
    variables: &[(&str, &str)],
) -> Result<(Config, Effective), ConfigError> {
    let environment = |name: &str| {
        let found = variables.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| OsString::from(value))
    };
    serve(line).sources.load(&environment)
}

pub(crate) fn config(line: &str, variables: &[(&str, &str)]) -> Config {
    load(line, variables)
        .unwrap_or_else(|error| panic!("{line}: {error}"))
        .0
}

pub(crate) fn problems(line: &str, variables: &[(&str, &str)]) -> String {
    load(line, variables).unwrap_err().to_string()
}

pub(crate) fn temporary(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    file
}

/// What a configuration means, without the warnings and the places of what it needs of the machine.
pub(crate) fn meaning(config: Config) -> String {
    format!(
        "{:?}",
        Config {
            warnings: Vec::new(),
            background: Background::default(),
            ..config
        }
    )
}

/// `http://p:1 p:8998` for a prefill worker, `http://d:1` for a decode worker.
pub(crate) fn workers(config: &Config) -> Vec<String> {
    let all = config.prefill.iter().chain(&config.decode);
    all.map(|worker| match &worker.bootstrap {
        Some(bootstrap) => {
            let port = bootstrap
                .port
                .map_or("null".to_owned(), |port| port.to_string());
            format!("{} {}:{port}", worker.url, bootstrap.host)
        }
        None => worker.url.to_string(),
    })
    .collect()
}

pub(crate) fn library(
    prefill: &[(&str, Option<u16>)],
    decode: &[&str],
    timeout_secs: u64,
) -> MiniLbConfig {
    let prefill = prefill
        .iter()
        .map(|(url, port)| (url.to_string(), *port))
        .collect();
    let decode = decode.iter().map(|url| url.to_string()).collect();
    MiniLbConfig::new("127.0.0.1".to_owned(), 0, prefill, decode, timeout_secs)
}
