//! What the service manager is told (systemd's `sd_notify`), where it has asked for it by `NOTIFY_SOCKET`.
//!
//! Only a whole process tells it. After a takeover the old process says nothing more: the new one is the main process.
//!
//! Source: systemd, sd_notify(3) and systemd.service(5), `Type=notify-reload`.

use std::time::Duration;

use sd_notify::NotifyState;

/// Beyond the time that live requests get to finish: for the end of the process itself.
const MARGIN: Duration = Duration::from_secs(10);

/// This process serves, and is the main process.
pub(super) fn serving() {
    tell(&[NotifyState::Ready, NotifyState::MainPid(std::process::id())]);
}

/// The configuration is read again; [`reloaded`] follows.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => complain(&error),
    }
}

/// The configuration was read, with or without success.
pub(super) fn reloaded() {
    tell(&[NotifyState::Ready]);
}

/// The process ends, after this time at the latest.
pub(super) fn leaving(within: Duration) {
    let microseconds = (within + MARGIN).as_micros();
    let timeout = format!("EXTEND_TIMEOUT_USEC={microseconds}");
    tell(&[NotifyState::Stopping, NotifyState::Custom(&timeout)]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        complain(&error);
    }
}

fn complain(error: &std::io::Error) {
    log::warn!("the service manager cannot be told why={error:?}");
}
