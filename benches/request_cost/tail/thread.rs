//! Threads of the measurement itself: their clock, their priority, their locks.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use hdrhistogram::Histogram;
use tokio::task::LocalSet;

/// The priority of these threads. A target may be run with a lower one (`chrt --fifo 1`), where the machine has other work.
const PRIORITY: &str = "5";

/// The clock of one measurement, which workers and clients share.
#[derive(Debug, Clone)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    /// Nanoseconds since its start.
    pub fn now(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Runs this on a thread with a runtime of its own. With `first` the thread comes before every ordinary one
/// (`SCHED_FIFO`), where the system allows it.
pub fn spawn<F: Future<Output = ()>>(
    name: &str,
    first: bool,
    work: impl FnOnce() -> F + Send + 'static,
) -> Result<JoinHandle<()>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let on_thread = move || {
        if first {
            come_first();
        }
        LocalSet::new().block_on(&runtime, async move { work().await });
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(on_thread)
        .map_err(|error| error.to_string())
}

/// Whether threads may come before all others.
pub fn may_come_first() -> bool {
    let asked = Command::new("chrt")
        .args(["--fifo", PRIORITY, "true"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    asked.is_ok_and(|status| status.success())
}

/// Source: sched(7): a thread of `SCHED_FIFO` preempts all of `SCHED_OTHER` as soon as it can run.
fn come_first() {
    // `PID/task/TID`
    let link = fs::read_link("/proc/thread-self").unwrap_or_default();
    if let Some(thread) = link.file_name() {
        // Where it fails the thread remains an ordinary one.
        let _ = Command::new("chrt")
            .args(["--fifo", "--pid", PRIORITY])
            .arg(thread)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// Latencies in nanoseconds, to three digits.
pub fn histogram() -> Histogram<u64> {
    // Cannot fail with these bounds.
    Histogram::new_with_bounds(1, 3_600_000_000_000, 3)
        .unwrap_or_else(|_| unreachable!("the bounds are valid"))
}

/// The content of a mutex, also after a panic of another thread.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
