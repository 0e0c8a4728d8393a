//! The configuration, read again while the process runs: which settings have changed, and which of those take effect.
//!
//! The sources are those of the start: the same flags, the same variables, and the file that they name. Which settings take
//! effect without a new process is a column of the table of settings. What a file holds is compared, not when it was
//! written: a rename, a symlink that is switched and a write in place look the same.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_yaml::Value;
use sha2::{Digest, Sha256};

use super::draft::{Draft, Given};
use super::settings::{Setting, find, settings};
use super::{ClientKeys, Config, ConfigError, DnsSpec, Effective, Sources, Tls, WorkerSpec};

/// The configuration that runs, and where it comes from.
#[doc(hidden)]
pub struct Reloader {
    sources: Sources,
    running: Running,
    contents: Contents,
    log_filter: fn(&str),
}

/// The configuration that runs, for a comparison with another one.
#[doc(hidden)]
pub struct Running {
    draft: Draft,
    read: Read,
}

/// Without the values, which may be secret.
impl fmt::Debug for Reloader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloader")
            .field("files", &self.running.read.files)
            .finish_non_exhaustive()
    }
}

/// What the files have in them that settings name: it changes while the settings do not.
struct Read {
    workers: [Vec<WorkerSpec>; 2],
    dns: Vec<DnsSpec>,
    keys: ClientKeys,
    tls: Tls,
    warnings: Vec<String>,
    files: Vec<PathBuf>,
}

/// A configuration that was read again.
#[doc(hidden)]
pub struct Reloaded {
    /// The values. Those of [`Reloaded::at_start`] have no effect.
    pub config: Config,
    /// The keys of the settings that take effect, in alphabetical order.
    pub changed: Vec<&'static str>,
    /// The keys of settings that differ from what runs and need a new process, Pingora's among them.
    pub at_start: Vec<String>,
    /// Those of [`Config::warnings`] that the running configuration does not have.
    pub warnings: Vec<String>,
    draft: Draft,
}

/// The contents of files, as digests. `None` for one that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[doc(hidden)]
pub struct Contents(Vec<(PathBuf, Option<[u8; 32]>)>);

impl Contents {
    /// Those of these files now. What is no regular file, such as a pipe, is not read: it would be used up. Blocks.
    pub fn of(files: &[PathBuf]) -> Self {
        let digest = |path: &Path| {
            let is_file = std::fs::metadata(path).is_ok_and(|found| found.is_file());
            let bytes = is_file.then(|| std::fs::read(path).ok()).flatten()?;
            Some(Sha256::digest(bytes).into())
        };
        Self(
            files
                .iter()
                .map(|path| (path.clone(), digest(path)))
                .collect(),
        )
    }
}

impl Read {
    fn of(config: &Config) -> Self {
        Self {
            workers: [config.prefill.clone(), config.decode.clone()],
            dns: config.dns.clone(),
            keys: config.client_keys.clone(),
            tls: config.tls.clone(),
            warnings: config.warnings.clone(),
            files: config.files.0.clone(),
        }
    }

    /// The settings by which these and the new values differ.
    fn changes(&self, new: &Read) -> impl Iterator<Item = &'static str> {
        let [prefill, decode] = &self.workers;
        let [new_prefill, new_decode] = &new.workers;
        let changes = [
            ("prefill", prefill != new_prefill || self.dns != new.dns),
            ("decode", decode != new_decode || self.dns != new.dns),
            ("api_key_file", self.keys.api != new.keys.api),
            ("admin_api_key", self.keys.admin != new.keys.admin),
            ("tls_cert_path", self.tls.listener != new.tls.listener),
            ("client_cert_path", self.tls.client != new.tls.client),
            ("ca_cert_paths", self.tls.roots != new.tls.roots),
        ];
        changes
            .into_iter()
            .filter_map(|(key, changed)| changed.then_some(key))
    }
}

impl Reloader {
    /// The configuration that these sources gave. A process that `forks` leaves its directory, so that relative paths are
    /// those of the directory that it has now. `log_filter` sets the filter of the log.
    pub fn new(
        sources: Sources,
        config: &Config,
        effective: Effective,
        forks: bool,
        log_filter: fn(&str),
    ) -> Self {
        let base = match forks {
            true => std::env::current_dir().unwrap_or_default(),
            false => PathBuf::new(),
        };
        let mut running = Running::new(config, effective);
        for file in &mut running.read.files {
            *file = base.join(&*file);
        }
        Self {
            sources: Sources { base, ..sources },
            contents: Contents::of(&running.read.files),
            running,
            log_filter,
        }
    }

    /// The files whose contents matter.
    pub fn files(&self) -> &[PathBuf] {
        &self.running.read.files
    }

    /// What these files had in them when they were read last, with or without success.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Reads all sources again. Nothing has taken effect by that. Blocks.
    ///
    /// # Errors
    /// Every problem of every source, as at the start.
    pub fn read(&mut self) -> Result<Reloaded, ConfigError> {
        // Before they are read, so that a change in between is seen by the next look.
        self.contents = Contents::of(self.files());
        let environment = |name: &str| -> Option<OsString> { std::env::var_os(name) };
        let (config, effective) = self.sources.clone().load(&environment)?;
        Ok(self.running.compare(config, effective))
    }

    /// Notes that a configuration has taken effect, as far as it could, and sets the filter of the log.
    pub fn applied(&mut self, reloaded: Reloaded) {
        (self.log_filter)(&reloaded.config.log_filter);
        let before = self.files().to_vec();
        self.running.applied(reloaded);
        if self.files() != before {
            self.contents = Contents::of(self.files());
        }
    }
}

impl Running {
    /// What runs with this configuration, whose settings are those.
    pub fn new(config: &Config, effective: Effective) -> Self {
        Self {
            draft: effective.0,
            read: Read::of(config),
        }
    }

    /// What changes with another configuration, whose settings are those.
    pub fn compare(&self, config: Config, effective: Effective) -> Reloaded {
        let Effective(draft) = effective;
        let text = |draft: &Draft, key| draft.scalars.get(key).map(|given| given.value.clone());
        let by_value = settings().filter(|one| text(&self.draft, one.key) != text(&draft, one.key));
        let read = Read::of(&config);
        let by_file = self.read.changes(&read).filter_map(find);
        let all: Vec<&Setting> = by_value.chain(by_file).collect();
        let keys = |reloads| {
            let keys = all.iter().filter(move |setting| setting.reloads == reloads);
            keys.map(|setting| setting.key).collect::<BTreeSet<_>>()
        };
        let own = keys(false).into_iter().map(str::to_owned);
        let is_new = |warning: &&String| !self.read.warnings.contains(warning);
        Reloaded {
            changed: keys(true).into_iter().collect(),
            at_start: own.chain(server_changes(&self.draft, &draft)).collect(),
            warnings: config.warnings.iter().filter(is_new).cloned().collect(),
            config,
            draft,
        }
    }

    /// Notes that a configuration has taken effect, as far as it could.
    pub fn applied(&mut self, reloaded: Reloaded) {
        let (mut draft, mut old) = (reloaded.draft, std::mem::take(&mut self.draft));
        // These run as they were, and are named again until the sources say so too.
        for setting in settings().filter(|setting| !setting.reloads) {
            match old.scalars.remove(setting.key) {
                Some(given) => draft.scalars.insert(setting.key, given),
                None => draft.scalars.remove(setting.key),
            };
        }
        draft.server = old.server;
        let mut read = Read::of(&reloaded.config);
        read.tls = Tls {
            listener: read.tls.listener,
            ..self.read.tls.clone()
        };
        (self.draft, self.read) = (draft, read);
    }
}

/// Pingora's keys whose values differ.
fn server_changes(old: &Draft, new: &Draft) -> Vec<String> {
    let value = |given: Option<&Given<Value>>| given.map(|given| given.value.clone());
    let keys: BTreeSet<_> = old.server.keys().chain(new.server.keys()).collect();
    let differs = |key: &&String| value(old.server.get(*key)) != value(new.server.get(*key));
    keys.into_iter().filter(differs).cloned().collect()
}
