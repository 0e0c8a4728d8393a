//! An upgrade as the successor sees it: the sockets of the old_process, and the word that it may leave.
//!
//! A old_process that has given its sockets waits until the successor's files are gone, and otherwise goes on. One is
//! Pingora's upgrade socket, which vanishes as soon as the sockets are there. The other one is the [`mark`], which
//! stays until this process listens at every one of its addresses, some of which the old_process may not have had:
//! when one of them is busy this process ends, and the old_process must not.
//!
//! Pingora's own way tries for 30 s to listen and ends when it cannot, after the old_process has left.
//! Source: pingora-core 0.9.1 `server/transfer_fd/mod.rs` (`get_fds_from`), `listeners/l4.rs` (`bind_tcp`).

use std::collections::HashSet;
use std::os::fd::RawFd;
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use pingora_core::server::Fds;

use super::StartError;

/// The file that says that a successor has not taken over yet.
pub(super) fn mark(upgrade_sock: &str) -> PathBuf {
    PathBuf::from(format!("{upgrade_sock}.taking"))
}

/// A process that has given its sockets, and waits whether they are taken.
pub(super) struct OldProcess {
    sockets: Fds,
    given: HashSet<String>,
    mark: PathBuf,
}

impl OldProcess {
    /// Waits some seconds for the sockets of a process that gets SIGQUIT.
    ///
    /// # Errors
    /// [`StartError::Upgrade`]: idle came, or idle can come.
    pub(super) fn await_sockets(upgrade_sock: &str) -> Result<Self, StartError> {
        let failed = |why: &dyn std::fmt::Display| StartError::Upgrade {
            upgrade_sock: upgrade_sock.to_owned(),
            why: why.to_string(),
        };
        let mark = mark(upgrade_sock);
        prepare(upgrade_sock, &mark).map_err(|why| failed(&why))?;
        let mut sockets = Fds::new();
        if let Err(error) = sockets.get_from_sock(upgrade_sock) {
            // Nobody waits for it.
            let _ = fs::remove_file(&mark);
            return Err(failed(&format_args!("none sent them in time ({error})")));
        }
        Ok(Self {
            sockets,
            given: HashSet::new(),
            mark,
        })
    }

    /// Its socket with this address, if it has one.
    pub(super) fn give(&mut self, address: &str) -> Option<RawFd> {
        let socket = self.sockets.get(address).copied()?;
        self.given.insert(address.to_owned());
        Some(socket)
    }

    /// It may leave. Sockets that idle wants are closed, so that idle waits there in vain.
    pub(super) fn release(mut self) {
        self.sockets.close_unclaimed(&self.given);
        // Nobody else removes it while the old_process waits.
        let _ = fs::remove_file(&self.mark);
    }
}

/// Makes sure that the upgrade socket can be made, before Pingora makes it.
fn prepare(upgrade_sock: &str, mark: &Path) -> io::Result<()> {
    SocketAddr::from_pathname(upgrade_sock)?;
    remove(mark)?;
    // Only a new one: the directory may be one that everybody writes to, and the name a link.
    fs::File::create_new(mark)?;
    remove(Path::new(upgrade_sock)).inspect_err(|_| drop(remove(mark)))
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
