//! What a process in the background needs of the machine: directories for its files, and its user and group.
//!
//! Kept with the place of each key, and looked for when the process is about to run there: Pingora panics after the fork
//! where one is missing, and the parent does not see it.
//!
//! Source: pingora-core 0.9.1 `server/daemon.rs`.

use std::path::PathBuf;

use nix::unistd::{Group, User, getegid, geteuid};
use pingora::server::configuration::ServerConf;

use super::{Fault, Place, Problem};

/// The needs of a process in the background, each with the place of its key. Empty in the foreground.
#[derive(Debug, Clone, Default)]
pub struct Background {
    /// Absolute paths.
    files: Vec<(Place, PathBuf)>,
    user: Option<(Place, String)>,
    group: Option<(Place, String)>,
}

impl Background {
    /// Those of this configuration.
    pub(super) fn of(server: &ServerConf, place: impl Fn(&str) -> Place) -> Self {
        let files = [
            ("pid_file", Some(&server.pid_file)),
            ("error_log", server.error_log.as_ref()),
            ("upgrade_sock", Some(&server.upgrade_sock)),
        ];
        let files = files.into_iter().filter_map(|(key, path)| {
            let path = path?;
            let absolute = std::path::absolute(path).unwrap_or_else(|_| path.into());
            Some((place(key), absolute))
        });
        let named = |key, name: &Option<String>| name.clone().map(|name| (place(key), name));
        Self {
            files: files.collect(),
            user: named("user", &server.user),
            group: named("group", &server.group),
        }
    }

    /// What this machine does not have.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let missing = self.files.iter().filter_map(|(place, path)| {
            let directory = path.parent()?;
            let fault = || Fault::NoDirectory(directory.to_owned());
            (!directory.is_dir()).then(|| problem(place, fault()))
        });
        let user = self.user.iter().filter_map(|(place, name)| {
            let user = User::from_name(name).ok().flatten();
            account(place, name, user.map(|user| user.uid == geteuid()))
        });
        let group = self.group.iter().filter_map(|(place, name)| {
            let group = Group::from_name(name).ok().flatten();
            account(place, name, group.map(|group| group.gid == getegid()))
        });
        missing.chain(user).chain(group).collect()
    }
}

/// `is_own` is `None` where there is no such user or group.
fn account(place: &Place, name: &str, is_own: Option<bool>) -> Option<Problem> {
    let can_be_taken = is_own.is_some_and(|is_own| is_own || geteuid().is_root());
    let fault = || Fault::Account {
        name: name.to_owned(),
        exists: is_own.is_some(),
    };
    (!can_be_taken).then(|| problem(place, fault()))
}

fn problem(place: &Place, fault: Fault) -> Problem {
    Problem {
        place: place.clone(),
        fault,
    }
}
