//! Instructions of a target under a fixed number of requests, counted by valgrind's callgrind.
//!
//! As with system calls, the count is the same on a busy machine; unlike those, it includes the work between
//! two calls. Instructions of the kernel are not counted. A target is about fifty times slower under
//! valgrind, and all of its threads take turns on one CPU.
//!
//! Source: Valgrind's manual, "Callgrind", sections "Command-line options" and "Monitor Commands"; "Callgrind Format
//! Specification", `totals`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use mini_lb::bench::table::{columns, number};

use super::measure::{Effort, Run};
use super::targets::Running;
use super::workloads::Unit;

/// The count ends after this time, with any number of requests.
const LONGEST: Duration = Duration::from_secs(60);
/// The output file, in the directory of the target.
const OUTPUT: &str = "callgrind";

/// The same command under valgrind, with its child processes.
pub fn under_callgrind(command: &Command, files: &Path) -> Command {
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--tool=callgrind", "--trace-children=yes", "--quiet"])
        .arg(format!(
            "--callgrind-out-file={}.%p",
            files.join(OUTPUT).display()
        ))
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => valgrind.env(name, value),
            None => valgrind.env_remove(name),
        };
    }
    valgrind
}

impl Run<'_> {
    /// Instructions per unit; none for a target without a process.
    pub async fn instructions(
        &self,
        running: &Running,
        requests: u64,
        asked: &mut u64,
    ) -> Result<Option<f64>, String> {
        let Some(program) = &running.program else {
            return Ok(None);
        };
        let pids = program.pids();
        for pid in &pids {
            tell(*pid, "zero")?;
        }
        let effort = Effort {
            time: LONGEST,
            requests,
        };
        let units = self.measure(running, effort, asked).await?.units;
        let mut sum = 0;
        for pid in &pids {
            tell(*pid, "dump")?;
            let path = running.files.path().join(format!("{OUTPUT}.{pid}.1"));
            let text = fs::read_to_string(&path)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            sum += total(&text).ok_or("callgrind wrote no totals")?;
        }
        Ok(Some(sum as f64 / units.max(1) as f64))
    }
}

/// The targets, with their ratio to nginx.
pub fn table(workload: &str, unit: Unit, targets: &[(String, f64)]) -> String {
    let unit = match unit {
        Unit::Request => "request",
        Unit::Event => "event",
    };
    let nginx = targets.iter().find(|(name, _)| name == "nginx");
    let head = [
        workload,
        &format!("instructions per {unit}"),
        "ratio to nginx",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (name, count) in targets {
        let ratio = nginx.map_or("-".to_owned(), |(_, nginx)| number(count / nginx));
        rows.push(vec![name.clone(), number(*count), ratio]);
    }
    columns(&rows)
}

/// Sends a command to callgrind, and waits until it is done.
fn tell(pid: u32, command: &str) -> Result<(), String> {
    let told = Command::new("vgdb")
        .arg(format!("--pid={pid}"))
        .arg(command)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|error| format!("vgdb: {error}"))?;
    match told.success() {
        true => Ok(()),
        false => Err(format!("callgrind did not take the command {command}")),
    }
}

/// The total over all functions in an output file.
fn total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("totals: "));
    line?.trim().parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    // Without imports, because a build for `cargo bench` has this module without its tests.
    #[test]
    fn the_total_is_that_of_all_functions() {
        let text = "version: 1\nsummary: 4245435\n\nfn=(1) main\n12 300\ntotals: 4252617\n";
        assert_eq!(super::total(text), Some(4_252_617));
        assert_eq!(super::total("version: 1\n"), None);
    }

    #[test]
    fn a_command_keeps_its_arguments_and_its_environment() {
        let mut command = std::process::Command::new("sleep");
        command.arg("5").env_remove("MINI_LB_PORT").env("A", "b");
        let counted = super::under_callgrind(&command, std::path::Path::new("/files"));
        assert_eq!(counted.get_program(), "valgrind");
        let words: Vec<_> = counted.get_args().collect();
        assert!(words.contains(&"--callgrind-out-file=/files/callgrind.%p".as_ref()));
        assert!(words.ends_with(&["sleep".as_ref(), "5".as_ref()]));
        assert!(counted.get_envs().eq(command.get_envs()));
    }

    #[test]
    fn targets_are_compared_with_nginx() {
        let counts = [
            ("nginx".to_owned(), 20_000.0),
            ("mini-lb".to_owned(), 50_000.0),
        ];
        let table = super::table("chat-1", super::Unit::Request, &counts);
        let last = table.lines().last().unwrap();
        let words: Vec<_> = last.split_whitespace().collect();
        assert_eq!(words, ["mini-lb", "50,000", "2.50"]);
    }
}
