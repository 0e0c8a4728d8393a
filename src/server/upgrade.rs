//! The new process's side of an upgrade: it takes the sockets of the old process, and tells it to leave.
//!
//! The old process, having sent its sockets, waits until two files of the new process are gone, and otherwise goes on
//! serving. One is Pingora's upgrade socket, which Pingora removes as soon as the sockets have arrived. The other is
//! the [`marker`], which stays until the new process listens on all its addresses, some of which the old process may
//! not have had: if one of them is busy, the new process ends and the old one must not.
//!
//! Pingora's own upgrade tries for 30 s to listen and ends when it cannot, after the old process has left.
//! Source: pingora-core 0.9.1 `server/transfer_fd/mod.rs` (`get_fds_from`), `listeners/l4.rs` (`bind_tcp`).

use std::collections::HashSet;
use std::os::fd::RawFd;
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use pingora::server::Fds;

use super::StartError;

/// The file that exists until the new process has taken over.
pub(super) fn marker(upgrade_sock: &str) -> PathBuf {
    PathBuf::from(format!("{upgrade_sock}.taking"))
}

/// The old process, which has sent its sockets and waits until they are taken.
pub(super) struct OldProcess {
    sockets: Fds,
    taken: HashSet<String>,
    marker: PathBuf,
}

impl OldProcess {
    /// Blocks until a process that gets SIGQUIT has sent its sockets, for about as long as `wait`.
    ///
    /// # Errors
    /// [`StartError::Upgrade`]: no sockets came, or none can come.
    pub(super) fn await_sockets(upgrade_sock: &str, wait: Duration) -> Result<Self, StartError> {
        let failed = |why: &dyn std::fmt::Display| StartError::Upgrade {
            upgrade_sock: upgrade_sock.to_owned(),
            why: why.to_string(),
        };
        let deadline = Instant::now() + wait;
        let marker = marker(upgrade_sock);
        prepare(upgrade_sock, &marker).map_err(|why| failed(&why))?;
        log::info!(
            "waiting for the sockets of the old process, which sends them at SIGQUIT upgrade_sock={upgrade_sock} \
             wait_secs={}",
            wait.as_secs_f64()
        );
        loop {
            let mut sockets = Fds::new();
            // Pingora looks for them for some seconds. It is not interrupted: what has been sent must be taken.
            match sockets.get_from_sock(upgrade_sock) {
                Ok(()) => {
                    return Ok(Self {
                        sockets,
                        taken: HashSet::new(),
                        marker,
                    });
                }
                Err(_) if Instant::now() < deadline => {}
                Err(error) => {
                    // No old process waits for it.
                    let _ = fs::remove_file(&marker);
                    return Err(failed(&format_args!("none sent in time ({error})")));
                }
            }
        }
    }

    /// Its socket for this address, if it has one.
    pub(super) fn take(&mut self, address: &str) -> Option<RawFd> {
        let socket = self.sockets.get(address).copied()?;
        self.taken.insert(address.to_owned());
        Some(socket)
    }

    /// Lets it leave. Its other sockets are closed, so that no client waits in their backlog.
    pub(super) fn release(mut self) {
        self.sockets.close_unclaimed(&self.taken);
        // Only this process removes it while the old one waits.
        let _ = fs::remove_file(&self.marker);
    }
}

/// Makes the marker, and checks that the upgrade socket can be made, before Pingora makes it.
fn prepare(upgrade_sock: &str, marker: &Path) -> io::Result<()> {
    SocketAddr::from_pathname(upgrade_sock)?;
    remove(marker)?;
    // Only as a new file: in a directory that is writable for all, the name may be a link.
    fs::File::create_new(marker)?;
    remove(Path::new(upgrade_sock)).inspect_err(|_| drop(remove(marker)))
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
