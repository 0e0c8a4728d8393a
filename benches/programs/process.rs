//! Measured programs: start, end, and their CPU time and memory from /proc.
//!
//! Source: proc(5), `/proc/pid/stat`, `/proc/pid/status`; the kernel's `Documentation/scheduler/sched-stats.rst`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Length of a tick of `/proc/pid/stat`: `USER_HZ` is 100 on every architecture that Rust's std has.
const TICK: Duration = Duration::from_millis(10);

/// A program with its children. Killed when dropped.
pub struct Program {
    child: Child,
}

/// CPU time of a tree of processes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu {
    /// Of living threads, to the nanosecond.
    threads: Duration,
    /// Of all threads, ended ones included, to the tick.
    ticks: Duration,
}

/// Memory of a tree of processes, in bytes: the sum over its processes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// Resident now.
    pub resident: u64,
    /// Peak of the resident memory.
    pub peak: u64,
}

impl Program {
    /// Starts the program with its output in a file.
    pub fn start(command: &mut Command, log: &Path) -> Result<Program, String> {
        let name = command.get_program().display().to_string();
        let failed = |error| format!("{name}: {error}");
        let log = fs::File::create(log).map_err(failed)?;
        let errors = log.try_clone().map_err(failed)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn();
        Ok(Program {
            child: child.map_err(failed)?,
        })
    }

    /// Whether the program has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// The program and all processes that it has started, parents first.
    pub fn pids(&self) -> Vec<u32> {
        let parents = parents();
        let mut tree = vec![self.child.id()];
        let mut at = 0;
        while let Some(&parent) = tree.get(at) {
            tree.extend(
                parents
                    .iter()
                    .filter(|(_, of)| **of == parent)
                    .map(|(pid, _)| pid),
            );
            at += 1;
        }
        tree
    }

    /// The CPU time of all its processes so far.
    pub fn cpu(&self) -> Cpu {
        cpu_of(&self.pids())
    }

    /// The memory of all its processes.
    pub fn memory(&self) -> Memory {
        let mut sum = Memory::default();
        for pid in self.pids() {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let bytes = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                1024 * nth(line.unwrap_or_default(), 0)
            };
            sum.resident += bytes("VmRSS:");
            sum.peak += bytes("VmHWM:");
        }
        sum
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Parents first: nginx's master would replace a killed child.
        for pid in self.pids() {
            let _ = Command::new("kill")
                .args(["-KILL", &pid.to_string()])
                .stderr(Stdio::null())
                .status();
        }
        let _ = self.child.wait();
    }
}

impl Cpu {
    /// CPU time since an earlier reading.
    pub fn since(self, earlier: Cpu) -> Duration {
        let threads = self.threads.saturating_sub(earlier.threads);
        let ticks = self.ticks.saturating_sub(earlier.ticks);
        // A thread that ended in between is only counted in ticks.
        match ticks > threads + 3 * TICK + threads / 50 {
            true => ticks,
            false => threads,
        }
    }
}

/// The CPU time of these processes so far.
pub fn cpu_of(pids: &[u32]) -> Cpu {
    let mut sum = Cpu::default();
    for pid in pids {
        for thread in threads(*pid) {
            let path = format!("/proc/{pid}/task/{thread}/schedstat");
            let text = fs::read_to_string(path).unwrap_or_default();
            sum.threads += Duration::from_nanos(nth(&text, 0));
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // utime, stime, cutime and cstime; the name before them may contain spaces.
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        let ticks: u64 = (11..15).map(|field| nth(fields, field)).sum();
        sum.ticks += TICK * u32::try_from(ticks).unwrap_or(u32::MAX);
    }
    sum
}

/// The threads of a process.
pub fn threads(pid: u32) -> Vec<u32> {
    numbers(&format!("/proc/{pid}/task"))
}

/// Every process with its parent.
fn parents() -> BTreeMap<u32, u32> {
    let parent = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, fields) = stat.rsplit_once(") ")?;
        Some((pid, u32::try_from(nth(fields, 1)).ok()?))
    };
    numbers("/proc").into_iter().filter_map(parent).collect()
}

fn numbers(directory: &str) -> Vec<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

fn nth(text: &str, index: usize) -> u64 {
    let word = text.split_whitespace().nth(index);
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}
