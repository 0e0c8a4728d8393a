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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Registry;
use super::entry::{Entry, Life};
use super::listing::{Description, First, Source};
use crate::fleet::Role;

/// Between two writes of the file while the process serves. A change after a longer time is written at once.
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
struct KeptFile {
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

/// Puts a text in the place of the one that was kept.
type Put = Box<dyn Fn(&str) -> io::Result<()> + Send + Sync>;

/// Keeps the workers of the API in a file.
pub(crate) struct Keeper {
    registry: Arc<Registry>,
    path: PathBuf,
    put: Put,
    kept: Mutex<Kept>,
}

/// What is known of the file.
#[derive(Default)]
struct Kept {
    /// What it has.
    text: String,
    /// Whether it is another process' file by now.
    is_handed_over: bool,
}

impl Keeper {
    /// A keeper of the workers of this registry, with nothing in it yet.
    pub(crate) fn new(path: PathBuf, registry: Arc<Registry>) -> Self {
        let place = path.clone();
        let put = Box::new(move |text: &str| write(&place, text));
        Self {
            registry,
            path,
            put,
            kept: Mutex::default(),
        }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds the workers of the file to the registry, where they are probed. A file that is not there has none.
    ///
    /// # Errors
    /// [`KeptError`]: the file is there, and has no list of workers.
    pub(crate) fn restore(&self) -> Result<(), KeptError> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(KeptError::Read(error)),
        };
        if !text.is_empty() {
            let broken = |error: serde_json::Error| KeptError::Broken(error.to_string());
            let file: KeptFile = serde_json::from_str(&text).map_err(broken)?;
            if file.version != VERSION {
                let why = format!("its version is {}, and {VERSION} is known", file.version);
                return Err(KeptError::Broken(why));
            }
            for worker in file.workers {
                let url = worker.url.clone();
                add(&self.registry, worker)
                    .map_err(|why| KeptError::Broken(format!("{url}: {why}")))?;
            }
        }
        self.kept().text = text;
        Ok(())
    }

    /// Writes the file after each change of the workers of the API, for ever. What changes in the [`PAUSE`] after a write
    /// waits for its end: [`Self::keep`] does not.
    pub(crate) async fn run(self: &Arc<Self>) {
        let mut changed = self.registry.subscribe();
        loop {
            if self.keep().await {
                // Many that come one after the other are written together.
                tokio::time::sleep(PAUSE).await;
            }
            // Never an error: the keeper has the registry, which has the sender.
            let _ = changed.changed().await;
        }
    }

    /// Writes the file where the workers of the API have changed since the last time. True where they had.
    pub(crate) async fn keep(self: &Arc<Self>) -> bool {
        let keeper = self.clone();
        // An error of the task is a panic, which has been reported.
        let writing = tokio::task::spawn_blocking(move || keeper.keep_here());
        writing.await.unwrap_or_default()
    }

    /// [`Self::keep`], on this thread.
    pub(crate) fn keep_here(&self) -> bool {
        // Held until the file is written, so that an older text does not take the place of a newer one.
        let mut kept = self.kept();
        // A file that was never needed is not made.
        let text = self.registry.kept();
        let text = text.or_else(|| (!kept.text.is_empty()).then(String::new));
        let Some(text) = text.filter(|text| *text != kept.text && !kept.is_handed_over) else {
            return false;
        };
        if let Err(error) = (self.put)(&text) {
            let path = self.path.display();
            log::error!("workers of the API cannot be kept path={path} error=\"{error}\"");
        }
        // One that failed is tried again with the next change.
        kept.text = text;
        true
    }

    /// Leaves the file to another process: this one writes it no more.
    pub(crate) fn hand_over(&self) {
        self.kept().is_handed_over = true;
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nothing panics while the lock is held.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    /// The text of the file; `None` without workers of the API.
    fn kept(&self) -> Option<String> {
        let workers: Vec<_> = self.state().entries().filter_map(KeptWorker::of).collect();
        let file = KeptFile {
            version: VERSION,
            workers,
        };
        // It can be written as JSON.
        serde_json::to_string_pretty(&file)
            .ok()
            .filter(|_| !file.workers.is_empty())
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::tests::{listed, test};
    use super::*;

    /// A keeper whose file is what was put last, and the number of times that something was put.
    fn keeper(registry: Arc<Registry>) -> (Arc<Keeper>, Arc<AtomicUsize>, Arc<Mutex<String>>) {
        let (puts, last) = (
            Arc::<AtomicUsize>::default(),
            Arc::<Mutex<String>>::default(),
        );
        let (count, file) = (puts.clone(), last.clone());
        let put: Put = Box::new(move |text| {
            count.fetch_add(1, Ordering::Relaxed);
            text.clone_into(&mut file.lock().unwrap());
            Ok(())
        });
        let keeper = Keeper {
            put,
            ..Keeper::new(PathBuf::new(), registry)
        };
        (Arc::new(keeper), puts, last)
    }

    fn add_worker(registry: &Registry, port: u16) {
        let added = registry.add(listed(Role::Decode, port, First::Serve));
        added.ok().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn changes_that_come_one_after_the_other_are_one_write_and_the_end_waits_for_none() {
        let registry = Arc::new(test().registry);
        let (keeper, puts, file) = keeper(registry.clone());
        let puts = || puts.load(Ordering::Relaxed);
        let has = |port: u16| file.lock().unwrap().contains(&format!(":{port}\""));
        let running = tokio::spawn({
            let keeper = keeper.clone();
            async move { keeper.run().await }
        });
        add_worker(&registry, 1);
        // The clock of the test stands still while a file is written.
        tokio::time::sleep(PAUSE / 2).await;
        assert_eq!((puts(), has(1)), (1, true));
        for port in 2..100 {
            add_worker(&registry, port);
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(PAUSE / 4).await;
        assert_eq!((puts(), has(99)), (1, false), "the pause is not over");
        tokio::time::sleep(PAUSE).await;
        assert_eq!((puts(), has(99)), (2, true));
        add_worker(&registry, 100);
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
        assert!(keeper.keep_here());
        assert_eq!((puts(), has(100)), (3, true));
        assert!(!keeper.keep_here(), "nothing has changed");
        assert_eq!(puts(), 3);
    }

    #[test]
    fn a_file_that_is_another_process_is_not_written() {
        let registry = Arc::new(test().registry);
        let (keeper, puts, _) = keeper(registry.clone());
        add_worker(&registry, 1);
        assert!(keeper.keep_here());
        keeper.hand_over();
        add_worker(&registry, 2);
        assert!(!keeper.keep_here());
        assert_eq!(puts.load(Ordering::Relaxed), 1);
    }
}
