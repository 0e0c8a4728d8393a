//! The binary with its defaults on one thread, and its system calls by name, counted with ptrace: without root,
//! strace or perf.
//!
//! With more threads the counts would depend on the number of CPUs and on which of them is free. Health
//! probes are off and stderr is a file, because both would be work by the clock. For the same reason the threads
//! in [`CLOCKS`] are not counted.
//!
//! Source: ptrace(2), `PTRACE_SEIZE`; proc_pid_stat(5).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::libc::PTRACE_SYSCALL_INFO_ENTRY;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use syscalls::Sysno;
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::yield_now;

use crate::{Counts, Watched};
use support::{Worker, soon};

/// Threads that run periodically, with or without requests: Pingora's clock, and jemalloc's
/// purging of memory.
const CLOCKS: [&str; 2] = ["Timer thread", "jemalloc_bg_thd"];

/// Thread states: waiting in the kernel, or for the tracer.
const SLEEPS: u8 = b'S';
const IS_TRACED: u8 = b't';

/// Number of calls for each system call number.
type Calls = Arc<Mutex<BTreeMap<u64, u64>>>;

/// The holder of this lock decides when threads continue at the beginning or end of a call.
type Gate = Arc<AsyncMutex<()>>;

/// A running binary whose system calls are counted. Killed when dropped.
pub(crate) struct Traced {
    pub(crate) address: SocketAddr,
    child: Child,
    calls: Calls,
    gate: Gate,
    tracer: Option<JoinHandle<()>>,
    _files: tempfile::TempDir,
}

impl Traced {
    /// `None` when ptrace is not permitted.
    pub(crate) async fn start(prefill: &Worker, decode: &Worker) -> Option<Self> {
        let files = tempfile::tempdir().unwrap();
        let (conf, log) = (files.path().join("conf.yaml"), files.path().join("log"));
        let text = format!(
            "host: 127.0.0.1\nport: 0\nthreads: 1\ndisable_health_check: true\n\
             prefill:\n  - url: {}\n    bootstrap_port: 8998\ndecode:\n  - {}\n",
            prefill.url(),
            decode.url()
        );
        fs::write(&conf, text).unwrap();
        let mut child = program(&conf)
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let address = soon("the balancer listens", listening(&log, &mut child)).await;
        let pid = Pid::from_raw(child.id().cast_signed());
        let (calls, gate) = (Calls::default(), Gate::default());
        let (counted, passed) = (calls.clone(), gate.clone());
        let (begun, has_begun) = mpsc::channel();
        let tracer = thread::spawn(move || match seize(pid) {
            Ok(()) => {
                begun.send(true).unwrap();
                trace(&counted, &passed);
            }
            Err(_) => begun.send(false).unwrap(),
        });
        let traced = Traced {
            address,
            child,
            calls,
            gate,
            tracer: Some(tracer),
            _files: files,
        };
        has_begun.recv().unwrap().then_some(traced)
    }
}

impl Watched for Traced {
    /// Whether every thread sleeps, so that all input has been read.
    async fn quiet(&self) {
        soon("the balancer is quiet", self.all_in(&[SLEEPS])).await;
    }

    async fn hold(&self) -> impl Sized {
        self.gate.lock().await
    }

    async fn woken(&self) {
        soon("the balancer is held", self.all_in(&[SLEEPS, IS_TRACED])).await;
    }

    async fn totals(&self) -> Counts {
        let calls = self.calls.lock().unwrap();
        let mut counts = Counts::from([("all".to_owned(), 0.0)]);
        for (number, count) in calls.iter() {
            counts.insert(format!("of which {}", name(*number)), *count as f64);
            *counts.get_mut("all").unwrap() += *count as f64;
        }
        counts
    }
}

impl Traced {
    /// Returns when every thread is in one of these states.
    async fn all_in(&self, states: &[u8]) {
        let directory = format!("/proc/{}/task", self.child.id());
        let is_there = |task: String| is_clock(&task) || is_in(&task, states);
        while !tasks(&directory).all(is_there) {
            yield_now().await;
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // The tracer waits for the process and ends with it; without a tracer it is waited for here.
        let _ = self.child.kill();
        let _ = self.tracer.take().map(JoinHandle::join);
        let _ = self.child.wait();
    }
}

fn program(conf: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mini-lb"));
    command.arg("--conf").arg(conf);
    // Settings of the developer must not change the counts.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MINI_LB_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

async fn listening(log: &Path, child: &mut Child) -> SocketAddr {
    loop {
        let text = fs::read_to_string(log).unwrap();
        let line = text
            .lines()
            .find(|line| line.contains("listening address="));
        if let Some((_, address)) = line.and_then(|line| line.rsplit_once('=')) {
            return address.parse().unwrap();
        }
        assert!(child.try_wait().unwrap().is_none(), "it ended: {text}");
        yield_now().await;
    }
}

/// Attaches to all threads, and to those that they start. Only this thread may then wait for them.
fn seize(pid: Pid) -> nix::Result<()> {
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE;
    let directory = format!("/proc/{pid}/task");
    let mut seized = BTreeSet::new();
    loop {
        let found: BTreeSet<_> = tasks(&directory).map(|task| thread_id(&task)).collect();
        let new: Vec<_> = found.difference(&seized).copied().collect();
        if new.is_empty() {
            return Ok(());
        }
        for thread in new {
            // A thread that an attached thread has started is attached already.
            match ptrace::seize(thread, options) {
                Ok(()) => ptrace::interrupt(thread)?,
                Err(Errno::EPERM) if !seized.is_empty() => {}
                Err(error) => return Err(error),
            }
            seized.insert(thread);
        }
    }
}

/// A system call in progress.
struct Call {
    number: u64,
    /// The timeout of a wait.
    fourth: u64,
}

/// Counts until the process has ended.
fn trace(calls: &Calls, gate: &Gate) {
    let mut begun = BTreeMap::new();
    // Other children belong to other tests.
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    while let Ok(status) = waitpid(None, Some(flags)) {
        let Some(thread) = status.pid() else { continue };
        let mut signal = None;
        match status {
            WaitStatus::PtraceSyscall(_) => step(thread, &mut begun, calls),
            WaitStatus::Stopped(_, delivered) => signal = Some(delivered),
            _ => {}
        }
        let _open = gate.blocking_lock();
        // The next wait reports a thread that was killed meanwhile.
        let _ = ptrace::syscall(thread, signal);
    }
}

/// Handles the beginning of a call, or its end, when it is counted.
fn step(thread: Pid, begun: &mut BTreeMap<Pid, Call>, calls: &Calls) {
    let (Ok(info), Some(registers)) = (ptrace::syscall_info(thread), registers(thread)) else {
        return;
    };
    if info.op == PTRACE_SYSCALL_INFO_ENTRY {
        begun.insert(thread, registers.call);
    } else if let Some(call) = begun.remove(&thread)
        && !is_timer(&call, registers.result)
        && !is_clock(&format!("/proc/{thread}/task/{thread}"))
    {
        *calls.lock().unwrap().entry(call.number).or_default() += 1;
    }
}

/// Whether a wait for sockets timed out, which depends on how long the units take.
fn is_timer(call: &Call, result: u64) -> bool {
    name(call.number).starts_with("epoll_") && call.fourth != 0 && result == 0
}

fn name(number: u64) -> String {
    let name = usize::try_from(number).ok().and_then(Sysno::new);
    name.map_or(number.to_string(), |name| name.to_string())
}

/// The system call in the registers of a thread. Source: syscall(2), "Architecture calling conventions".
struct Registers {
    call: Call,
    /// The result, at the end of the call.
    result: u64,
}

#[cfg(target_arch = "x86_64")]
fn registers(thread: Pid) -> Option<Registers> {
    let all = ptrace::getregs(thread).ok()?;
    let (number, fourth) = (all.orig_rax, all.r10);
    let call = Call { number, fourth };
    let result = all.rax;
    Some(Registers { call, result })
}

#[cfg(target_arch = "aarch64")]
fn registers(thread: Pid) -> Option<Registers> {
    let all = ptrace::getregs(thread).ok()?;
    let (number, fourth) = (all.regs[8], all.regs[3]);
    let call = Call { number, fourth };
    let result = all.regs[0];
    Some(Registers { call, result })
}

fn is_clock(task: &str) -> bool {
    let name = fs::read_to_string(format!("{task}/comm")).unwrap_or_default();
    CLOCKS.contains(&name.trim())
}

/// A thread that has ended counts as being in every state.
fn is_in(task: &str, states: &[u8]) -> bool {
    let stat = fs::read_to_string(format!("{task}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.as_bytes()[0]);
    state.is_none_or(|state| states.contains(&state))
}

/// The `/proc` directories of the threads.
fn tasks(directory: &str) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().to_string_lossy().into_owned())
}

fn thread_id(task: &str) -> Pid {
    Pid::from_raw(task.rsplit_once('/').unwrap().1.parse().unwrap())
}
