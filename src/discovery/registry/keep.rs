//! The file with the workers that were added by the API, so that they are there after a restart.
//!
//! The file has keys, and only its owner may read it. It is written beside its place and renamed over it, so that a
//! reader never sees half of one.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Registry;
use super::entry::{Entry, Life};
use super::listing::{Description, First, Source};
use crate::fleet::Role;

/// Between two writes of the file. A change after a longer time is written at once.
const PAUSE: Duration = Duration::from_millis(100);

/// The form of the file.
const VERSION: u32 = 1;

/// Why the workers of the file cannot be used.
#[derive(Debug)]
pub(crate) enum KeptError {
    /// The file cannot be read.
    Read(io::Error),
    /// It is not what this program writes.
    Broken(String),
}

impl fmt::Display for KeptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeptError::Read(error) => write!(f, "cannot be read: {error}"),
            KeptError::Broken(why) => write!(
                f,
                "is not a list of workers that mini-lb has written: {why}; repair it, or move it away to start without those workers"
            ),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    workers: Vec<KeptWorker>,
}

#[derive(Serialize, Deserialize)]
struct KeptWorker {
    id: String,
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bootstrap_host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bootstrap_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    admin_api_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<f64>,
}

impl KeptWorker {
    /// `None` for a worker that is not the API's, or was refused.
    fn of(entry: &Entry) -> Option<Self> {
        let mut listings = entry.listings.iter();
        let (_, listed) = listings.find(|(source, _)| *source == Source::Api)?;
        if entry.life == Life::Failed {
            return None;
        }
        let details = &listed.details;
        let described = details.described.clone().unwrap_or_default();
        let worker = &entry.worker;
        Some(Self {
            id: entry.id.clone(),
            url: worker.url().to_owned(),
            worker_type: entry.knows_role().then(|| worker.role().name().to_owned()),
            bootstrap_host: described.bootstrap_host,
            bootstrap_port: described.bootstrap_port.or(entry.learned.bootstrap_port),
            api_key: described.api_key,
            admin_api_key: described.admin_api_key,
            weight: described.weight,
            labels: details.labels.clone(),
            model_id: details.model_id.clone(),
            priority: details.priority,
            cost: details.cost,
        })
    }
}

/// Keeps the workers of the API in a file.
pub(crate) struct Keeper {
    path: PathBuf,
    /// What the file has.
    text: String,
}

impl Keeper {
    /// Adds the workers of the file to the registry, where they are probed. A file that is not there has none.
    ///
    /// # Errors
    /// [`KeptError`]: the file is there, and has no list of workers.
    pub(crate) fn restore(path: &Path, registry: &Registry) -> Result<Self, KeptError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(KeptError::Read(error)),
        };
        if !text.is_empty() {
            let broken = |error: serde_json::Error| KeptError::Broken(error.to_string());
            let kept: Kept = serde_json::from_str(&text).map_err(broken)?;
            if kept.version != VERSION {
                let why = format!("its version is {}, and {VERSION} is known", kept.version);
                return Err(KeptError::Broken(why));
            }
            for worker in kept.workers {
                let url = worker.url.clone();
                add(registry, worker).map_err(|why| KeptError::Broken(format!("{url}: {why}")))?;
            }
        }
        Ok(Self {
            path: path.to_owned(),
            text,
        })
    }

    /// Writes the file after each change of the workers of the API, for ever.
    pub(crate) async fn run(&mut self, registry: &Registry) {
        let mut changed = registry.subscribe();
        loop {
            let text = registry.kept();
            // A file that was never needed is not made.
            let text = text.or_else(|| (!self.text.is_empty()).then(String::new));
            if let Some(text) = text
                && text != self.text
            {
                self.write(text).await;
                // Many that come one after the other are written together.
                tokio::time::sleep(PAUSE).await;
            }
            // Never an error: the registry is borrowed, and has the sender.
            let _ = changed.changed().await;
        }
    }

    async fn write(&mut self, text: String) {
        let (path, written) = (self.path.clone(), text.clone());
        let writing = tokio::task::spawn_blocking(move || write(&path, &written));
        // An error of the task is a panic, which has been reported.
        if let Ok(Err(error)) = writing.await {
            let path = self.path.display();
            log::error!("workers of the API cannot be kept path={path} error=\"{error}\"");
        }
        // One that failed is tried again with the next change.
        self.text = text;
    }
}

impl Registry {
    /// The text of the file; `None` without workers of the API.
    fn kept(&self) -> Option<String> {
        let workers: Vec<_> = self.state().entries().filter_map(KeptWorker::of).collect();
        let kept = Kept {
            version: VERSION,
            workers,
        };
        // It can be written as JSON.
        serde_json::to_string_pretty(&kept)
            .ok()
            .filter(|_| !kept.workers.is_empty())
    }
}

fn add(registry: &Registry, kept: KeptWorker) -> Result<(), String> {
    let role = match kept.worker_type.as_deref() {
        None => None,
        Some(name) => Some(Role::named(name).ok_or("worker_type is prefill or decode")?),
    };
    let description = Description {
        url: kept.url,
        bootstrap_host: kept.bootstrap_host,
        bootstrap_port: kept.bootstrap_port,
        api_key: kept.api_key,
        admin_api_key: kept.admin_api_key,
        weight: kept.weight,
    };
    let first = match role {
        Some(_) => First::Probe,
        None => First::Ask { role: true },
    };
    let mut listed = registry.listed(role.unwrap_or(Role::Decode), &description, first)?;
    listed.details.id = Some(kept.id);
    listed.details.labels = kept.labels;
    listed.details.model_id = kept.model_id;
    listed.details.priority = kept.priority;
    listed.details.cost = kept.cost;
    // The configuration may list it by now, in whatever role: that stands above the file.
    if let Err(present) = registry.add(listed) {
        let url = present.worker.url();
        log::info!("worker of the API is in the configuration by now worker={url}");
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = PathBuf::from(beside);
    let written = write_new(&beside, text).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside); // it may not be there
    }
    written
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file: File = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
