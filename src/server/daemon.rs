//! The files of a process that runs in the background, before and after the fork.
//!
//! Pingora forks, writes the pid file and opens the log, and panics where it cannot: so both are tried here first. It
//! never removes the pid file, and changes to the root directory: so the paths are made absolute here.
//!
//! A process that takes over from another one forks before it waits, and its pid is not the one to be found in the file
//! until it listens: Pingora writes it to another file, which takes the place of the old one then.
//!
//! Source: pingora-core 0.9.1 `server/daemon.rs`; daemonix 0.1.0 `lib.rs`.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io};

use pingora::server::configuration::ServerConf;
use signal_hook::consts::SIGUSR1;
use signal_hook::flag::register_conditional_shutdown;

use super::StartError;

/// The pid file of a process that runs in the background.
#[derive(Debug, Clone)]
pub(super) struct PidFile {
    path: PathBuf,
    /// Pingora's, in a process that takes over.
    pending: Option<PathBuf>,
}

impl PidFile {
    /// Prepares the files of a process that will run in the background; `None` for one in the foreground.
    ///
    /// # Errors
    /// [`StartError::File`].
    pub(super) fn prepare(
        conf: &mut ServerConf,
        takes_over: bool,
    ) -> Result<Option<Self>, StartError> {
        conf.upgrade_sock = absolute(&conf.upgrade_sock);
        if !conf.daemon {
            return Ok(None);
        }
        conf.working_directory = conf.working_directory.as_deref().map(absolute_path);
        conf.error_log = conf.error_log.as_deref().map(absolute);
        if let Some(path) = &conf.error_log {
            can_append(path).map_err(|why| unwritable("error_log", path, why))?;
        }
        conf.pid_file = absolute(&conf.pid_file);
        let path = PathBuf::from(&conf.pid_file);
        if takes_over {
            conf.pid_file.push_str(".new");
            // Of a process that was killed while it waited.
            let _ = fs::remove_file(&conf.pid_file);
        }
        can_create(&conf.pid_file).map_err(|why| unwritable("pid_file", &conf.pid_file, why))?;
        let pending = takes_over.then(|| PathBuf::from(&conf.pid_file));
        Ok(Some(Self { path, pending }))
    }

    /// Puts the pid of a process that has taken over where that of the old one was.
    pub(super) fn take_over(&self) {
        if let Some(pending) = &self.pending
            && let Err(error) = fs::rename(pending, &self.path)
        {
            log::error!(
                "pid file not written pid_file={} error=\"{error}\"",
                self.path.display()
            );
        }
    }

    /// Removes the pid of this process; that of a process that has taken over from it stays.
    pub(super) fn remove(&self) {
        let own = std::process::id().to_string();
        for path in std::iter::once(&self.path).chain(&self.pending) {
            let is_own = fs::read_to_string(path).is_ok_and(|pid| pid.trim() == own);
            if is_own && let Err(error) = fs::remove_file(path) {
                log::warn!(
                    "pid file not removed pid_file={} error=\"{error}\"",
                    path.display()
                );
            }
        }
    }
}

/// Whether this process is the parent that waits for the one in the background, and ends when that is ready.
///
/// The process in the background tells it by SIGUSR1. Pingora installs its handler after the fork: a process that is ready
/// at once would kill its parent, and the start would look failed.
#[derive(Debug, Clone)]
pub(super) struct WaitingParent(Arc<AtomicBool>);

impl WaitingParent {
    /// From now on SIGUSR1 ends this process with success.
    ///
    /// # Errors
    /// The handler cannot be installed.
    pub(super) fn before_fork() -> io::Result<Self> {
        let waits = Arc::new(AtomicBool::new(true));
        register_conditional_shutdown(SIGUSR1, 0, waits.clone())?;
        Ok(Self(waits))
    }

    /// The process in the background is not the parent: SIGUSR1 does not end it.
    pub(super) fn after_fork(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

fn unwritable(key: &'static str, path: &str, why: io::Error) -> StartError {
    StartError::File {
        key,
        path: path.into(),
        why,
    }
}

/// A directory that has been removed makes no path absolute: the path stays as it is.
fn absolute_path(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn absolute(path: &str) -> String {
    let absolute = absolute_path(path.as_ref()).into_os_string();
    absolute.into_string().unwrap_or_else(|_| path.to_owned())
}

fn can_append(path: &str) -> io::Result<()> {
    OpenOptions::new().append(true).create(true).open(path)?;
    Ok(())
}

/// Leaves nothing behind. A file that is there stays as it is.
fn can_create(path: &str) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            OpenOptions::new().write(true).open(path)?;
            Ok(())
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Files {
        directory: tempfile::TempDir,
        conf: ServerConf,
    }

    impl Files {
        fn new() -> Self {
            let directory = tempfile::TempDir::new().unwrap();
            let in_it = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
            let conf = ServerConf {
                daemon: true,
                pid_file: in_it("pid"),
                error_log: Some(in_it("log")),
                ..ServerConf::default()
            };
            Self { directory, conf }
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.directory.path().join(name), text).unwrap();
        }

        fn names(&self) -> Vec<String> {
            let files = fs::read_dir(self.directory.path()).unwrap();
            let mut names: Vec<_> = files
                .map(|file| file.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    fn own_pid() -> String {
        format!("{}\n", std::process::id())
    }

    #[test]
    fn the_pid_file_is_removed_by_the_process_that_it_names() {
        let mut files = Files::new();
        let pid_file = PidFile::prepare(&mut files.conf, false).unwrap().unwrap();
        assert_eq!(files.names(), ["log"]);
        files.write("pid", "1\n");
        pid_file.remove();
        assert_eq!(files.names(), ["log", "pid"]);
        files.write("pid", &own_pid());
        pid_file.remove();
        assert_eq!(files.names(), ["log"]);
    }

    #[test]
    fn a_successor_leaves_the_pid_of_the_old_process_until_it_takes_over() {
        let mut files = Files::new();
        files.write("pid", "1\n");
        files.write("pid.new", "2\n");
        let pid_file = PidFile::prepare(&mut files.conf, true).unwrap().unwrap();
        assert_eq!(files.names(), ["log", "pid"]);
        assert!(files.conf.pid_file.ends_with("pid.new"));
        files.write("pid.new", &own_pid());
        pid_file.take_over();
        assert_eq!(files.names(), ["log", "pid"]);
        pid_file.remove();
        assert_eq!(files.names(), ["log"]);
        // One that gives up before it has taken over.
        files.write("pid", "1\n");
        files.write("pid.new", &own_pid());
        pid_file.remove();
        assert_eq!(files.names(), ["log", "pid"]);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_an_error_with_its_key() {
        for (key, path) in [("error_log", "missing/log"), ("pid_file", "missing/pid")] {
            let mut files = Files::new();
            let path = files.directory.path().join(path);
            let path = path.to_str().unwrap().to_owned();
            match key {
                "pid_file" => files.conf.pid_file.clone_from(&path),
                _ => files.conf.error_log = Some(path.clone()),
            }
            let error = PidFile::prepare(&mut files.conf, false).unwrap_err();
            let said = format!("cannot write {key} {path}: ");
            assert!(error.to_string().starts_with(&said), "{error}");
        }
    }

    #[test]
    fn relative_paths_are_those_of_the_directory_of_the_start() {
        let here = std::env::current_dir().unwrap();
        let mut conf = ServerConf {
            upgrade_sock: "target/a/up.sock".to_owned(),
            ..ServerConf::default()
        };
        assert!(PidFile::prepare(&mut conf, false).unwrap().is_none());
        assert_eq!(Path::new(&conf.upgrade_sock), here.join("target/a/up.sock"));
        assert_eq!(absolute("pid"), here.join("pid").to_str().unwrap());
        assert_eq!(absolute("/run/pid"), "/run/pid");
    }
}
