//! Simulated workers as a program of their own.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::balancer::Worker;

/// A process of workers of one role. Killed when dropped.
pub struct Simulated {
    process: Child,
    pub workers: Vec<Worker>,
}

impl Drop for Simulated {
    fn drop(&mut self) {
        // Both fail when the process has already ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Simulated {
    /// Starts workers with these options of `mini-lb sim`, and waits until they serve. They bound no prompt, and keep no
    /// journal but its counters.
    pub fn start(
        mini_lb: &str,
        role: &str,
        count: usize,
        options: &[String],
    ) -> Result<Simulated, String> {
        let mut command = Command::new(mini_lb);
        command
            .args(["sim", role, "--workers", &count.to_string()])
            .args(["--health-ms", "0", "--journal-entries", "0"])
            .args(["--context-length", "100000000", "--kv-slots", "100000"])
            .args(["--max-running-requests", "100000"])
            .args(options);
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{mini_lb} sim {role}: {error}"))?;
        let lines = process.stdout.take();
        let mut simulated = Simulated {
            process,
            workers: Vec::new(),
        };
        let lines = BufReader::new(lines.ok_or("no stdout")?).lines();
        simulated.workers = lines
            .take(count)
            .map_while(Result::ok)
            .filter_map(|line| read_line(&line))
            .collect();
        match simulated.workers.len() == count {
            true => Ok(simulated),
            false => Err(format!("{mini_lb} sim {role} did not start")),
        }
    }
}

/// `prefill http://127.0.0.1:31000 bootstrap 31900`, or `vllm-prefill http://127.0.0.1:31000 side-channel 31900`, whose port
/// no balancer needs.
fn read_line(line: &str) -> Option<Worker> {
    let mut words = line.split(' ').skip(1);
    let address = words.next()?.strip_prefix("http://")?.parse().ok()?;
    let is_for_balancers = words.next() == Some("bootstrap");
    let port = words.next().and_then(|port| port.parse().ok());
    Some(Worker {
        address,
        bootstrap_port: port.filter(|_| is_for_balancers),
    })
}
