//! What the system says about this process, in the names that every client library of Prometheus uses.
//!
//! Read from `/proc`, five values of four files: the crates for it bring a parser for all of `/proc`, and this program
//! asks for nothing else of it. Elsewhere than on Linux the values are absent.
//!
//! Source: proc(5) of Linux; prometheus/client_python `prometheus_client/process_collector.py`.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

/// The ticks of a second in `/proc`: a constant of Linux for programs, whatever the kernel's own clock.
/// Source: Linux `include/asm-generic/param.h`, `USER_HZ`.
const TICKS: f64 = 100.0;

/// The values of one moment; `None` for those that the system does not give.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Process {
    pub(super) cpu_seconds: Option<f64>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) virtual_bytes: Option<u64>,
    pub(super) threads: Option<u64>,
    pub(super) open_files: Option<u64>,
    /// `None` also where there is no limit.
    pub(super) max_files: Option<u64>,
    /// Since the epoch.
    pub(super) started_seconds: Option<f64>,
}

/// The time of the system's clock, in seconds since the epoch. A date to show, which no deadline depends on.
pub(super) fn unix_seconds() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

impl Process {
    /// The values now.
    pub(super) fn now() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let mut process = Self::parse(
            &read("/proc/self/stat"),
            &read("/proc/self/status"),
            &read("/proc/self/limits"),
            &read("/proc/stat"),
        );
        // One of them is that of the directory itself.
        let files = fs::read_dir("/proc/self/fd").ok();
        process.open_files = files.map(|files| (files.count() as u64).saturating_sub(1));
        process
    }

    fn parse(stat: &str, status: &str, limits: &str, system: &str) -> Self {
        // The name of the program stands in parentheses, and may have some of its own.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // From the third field on: 14 and 15 are the times of user and system, 22 is the start after that of the system.
        let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
        let kilobytes = |name| number(status, name).map(|kilobytes| kilobytes * 1024);
        let after_boot = ticks(22).map(|ticks| ticks / TICKS);
        let boot = number(system, "btime ").map(|seconds| seconds as f64);
        Self {
            cpu_seconds: ticks(14)
                .zip(ticks(15))
                .map(|(user, system)| (user + system) / TICKS),
            resident_bytes: kilobytes("VmRSS:"),
            virtual_bytes: kilobytes("VmSize:"),
            threads: number(status, "Threads:"),
            open_files: None,
            max_files: number(limits, "Max open files"),
            started_seconds: boot.zip(after_boot).map(|(boot, after)| boot + after),
        }
    }
}

/// The first number behind a name at the begin of a line.
fn number(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_are_those_of_the_system() {
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 250 50 13 14 15 16 17 18 4200 20";
        let status = "Name:\tx\nVmSize:\t  2048 kB\nVmRSS:\t  1024 kB\nThreads:\t9\n";
        let limits = "Limit  Soft  Hard\nMax open files            1024    4096    files\n";
        let process = Process::parse(stat, status, limits, "cpu 1\nbtime 1000\n");
        assert_eq!(
            process,
            Process {
                cpu_seconds: Some(3.0),
                resident_bytes: Some(1 << 20),
                virtual_bytes: Some(2 << 20),
                threads: Some(9),
                open_files: None,
                max_files: Some(1024),
                started_seconds: Some(1042.0),
            }
        );
        let absent = Process::parse("", "", "Max open files unlimited", "");
        assert_eq!(absent, Process::default());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_all_of_them() {
        let now = Process::now();
        assert!(now.cpu_seconds.is_some_and(|seconds| seconds < 1e6));
        assert!(now.open_files.is_some_and(|files| files > 2));
        assert!(now.resident_bytes < now.virtual_bytes);
        assert!(now.started_seconds.is_some_and(|seconds| seconds > 1.7e9));
    }
}
