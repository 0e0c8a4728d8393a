//! Properties of the configuration: any file, environment and flags give either a
//! configuration that keeps its documented promises, or problems with their places, one line each. The output of
//! `--print-config` is read as the same configuration.
//!
//! Input, separated by 0xFF: the file; the variables, one `NAME=value` for each line; the flags, one for each line.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use mini_lb::cli::{self, Command};
use mini_lb::config::{Background, Config, ConfigError, Effective, Sources};
use tempfile::NamedTempFile;

/// The outcome of the sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// `clap` refused the flags, or they name another command.
    NoServe,
    /// There are problems.
    Problems,
    /// There is a configuration.
    Usable,
}

/// Separates the three sources. No UTF-8 text has this byte.
const BETWEEN: u8 = 0xff;

pub fn check(bytes: &[u8]) -> Outcome {
    let mut parts = bytes.splitn(3, |byte| *byte == BETWEEN);
    let mut part = || parts.next().unwrap_or_default();
    let (text, variables, flags) = (part(), part(), part());
    let variables: Vec<(&[u8], &[u8])> = lines(variables)
        .filter_map(|line| {
            let equals = line.iter().position(|byte| *byte == b'=')?;
            Some((&line[..equals], &line[equals + 1..]))
        })
        .collect();
    let Some(sources) = sources(flags) else {
        return Outcome::NoServe;
    };
    match load(sources, text, &variables) {
        Ok((config, effective)) => {
            promises_are_kept(&config);
            what_is_printed_means_the_same(config, &effective);
            Outcome::Usable
        }
        Err(error) => {
            assert!(!error.problems.is_empty());
            for problem in &error.problems {
                let line = problem.to_string();
                assert!(!line.contains(['\n', '\r']) && !line.is_empty(), "{line:?}");
            }
            assert_eq!(error.to_string().lines().count(), error.problems.len());
            Outcome::Problems
        }
    }
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = bytes.split(|byte| *byte == b'\n');
    lines.filter(|line| !line.is_empty())
}

/// Building the command line is slow, so it is skipped without flags.
fn sources(flags: &[u8]) -> Option<Sources> {
    if flags.is_empty() {
        return Some(Sources::default());
    }
    let flags = lines(flags).map(|flag| OsString::from_vec(flag.to_vec()));
    match cli::parse([OsString::from("mini-lb")].into_iter().chain(flags)) {
        Ok(Command::Serve(serve)) => Some(serve.sources),
        Ok(_) => None,
        Err(error) => {
            assert!([0, 2].contains(&error.exit_code()));
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

fn load(
    sources: Sources,
    text: &[u8],
    variables: &[(&[u8], &[u8])],
) -> Result<(Config, Effective), ConfigError> {
    thread_local! {
        static FILE: NamedTempFile = NamedTempFile::new().unwrap();
    }
    let file = FILE.with(|file| file.path().to_owned());
    std::fs::write(&file, text).unwrap();
    sources.load(&|name| {
        if name == "MINI_LB_CONF" {
            return Some(file.clone().into());
        }
        let mut found = variables.iter();
        let (_, value) = found.find(|(given, _)| *given == name.as_bytes())?;
        Some(OsString::from_vec(value.to_vec()))
    })
}

/// The promises in the documentation of [`Config`].
fn promises_are_kept(config: &Config) {
    let urls = config.prefill.iter().chain(&config.decode);
    let mut urls: Vec<String> = urls.map(|worker| worker.url.to_string()).collect();
    assert!(!config.prefill.is_empty() && !config.decode.is_empty());
    let workers = urls.len();
    urls.sort();
    urls.dedup();
    assert_eq!(urls.len(), workers);
    let (clients, requests) = (&config.clients, &config.requests);
    assert!(requests.max_body_bytes > 0 && clients.max_buffered_body_bytes > 0);
    assert!(requests.max_inflight_requests != Some(0));
    let mut times = vec![
        config.workers.connect_timeout,
        config.shutdown.grace,
        clients.head_timeout,
        clients.client_idle_timeout,
        requests.body_timeout,
        requests.queue_timeout,
        requests.client_stall_timeout,
        requests.request_timeout,
        requests.first_token_timeout,
        requests.stream_idle_timeout,
    ];
    times.extend(requests.stream_timeout);
    if let Some(breaker) = &config.resilience.breaker {
        times.extend([breaker.window, breaker.pause]);
        assert!(breaker.failures > 0 && breaker.successes > 0);
    }
    if let Some(probes) = &config.resilience.probes {
        times.extend([probes.interval, probes.timeout]);
        assert!(probes.path.starts_with('/'), "{}", probes.path);
    }
    assert!(times.iter().all(|time| !time.is_zero()), "{times:?}");
    // None of them may overflow when it is added to the current time.
    let now = std::time::Instant::now();
    assert!(times.iter().all(|time| now.checked_add(*time).is_some()));
    assert!(config.summary().starts_with("configuration ok"));
    assert!(config.server.threads > 0);
}

fn what_is_printed_means_the_same(mut config: Config, effective: &Effective) {
    let printed = effective.to_string();
    // Keys are printed as stars, which are refused.
    if printed.contains("# not shown;") {
        return;
    }
    let (mut again, _) = load(Sources::default(), printed.as_bytes(), &[])
        .unwrap_or_else(|error| panic!("{error}\n{printed}"));
    // Warnings and the needs of the background name the place of a value, which differs.
    for config in [&mut config, &mut again] {
        config.warnings.clear();
        config.background = Background::default();
    }
    assert_eq!(format!("{again:?}"), format!("{config:?}"), "{printed}");
}
