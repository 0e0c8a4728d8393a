//! The program in the background: its files, its pid, and the upgrade as the configuration file describes it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::program::get;
use support::{Ended, Process, mini_lb, soon};
use tempfile::TempDir;

/// A directory with a configuration file for the background. The processes whose pid was found are killed at the end.
struct Place {
    directory: TempDir,
    pids: Vec<String>,
}

impl Drop for Place {
    fn drop(&mut self) {
        for pid in &self.pids {
            let _ = Command::new("kill").args(["-9", pid]).output();
        }
    }
}

const WORKERS: &str = "prefill: [http://127.0.0.1:1]\ndecode: [http://127.0.0.1:2]\nhost: 127.0.0.1\nport: 0\nthreads: 1\n";

impl Place {
    fn new(more: &str) -> Self {
        let directory = TempDir::new().unwrap();
        fs::write(
            directory.path().join("conf.yaml"),
            format!("{WORKERS}{more}"),
        )
        .unwrap();
        let pids = Vec::new();
        Self { directory, pids }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn shell(&self, script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-e", "-c", script]);
        command.current_dir(self.directory.path());
        Process::of(command)
    }

    async fn mini_lb(&self, arguments: &str) -> Ended {
        let binary = env!("CARGO_BIN_EXE_mini-lb");
        self.shell(&format!("exec {binary} {arguments}"))
            .end()
            .await
    }

    /// The pid in this file, which is not `other`, once it is there.
    async fn pid(&mut self, file: &str, other: &str) -> String {
        let path = self.path(file);
        let pid = soon("a pid", async {
            loop {
                let text = fs::read_to_string(&path).unwrap_or_default();
                let pid = text.trim();
                if text.ends_with('\n') && pid != other {
                    return pid.to_owned();
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        self.pids.push(pid.clone());
        pid
    }

    /// The address in the last line of the log that has one, once there are so many.
    async fn address(&self, log: &str, lines: usize) -> SocketAddr {
        let path = self.path(log);
        soon("the line that it listens", async {
            loop {
                let text = fs::read_to_string(&path).unwrap_or_default();
                let found = text
                    .lines()
                    .filter_map(|line| line.split_once("listening address="));
                let found: Vec<_> = found.map(|(_, address)| address.to_owned()).collect();
                if let Some(address) = found.get(lines - 1) {
                    return address.parse().unwrap();
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    async fn ends(&self, pid: &str) {
        soon("the end of the process", async {
            while is_running(pid) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    fn names(&self) -> Vec<String> {
        let files = fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<_> = files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// Whether the process is there, and not only because nothing has waited for it.
fn is_running(pid: &str) -> bool {
    let status = fs::read_to_string(Path::new("/proc").join(pid).join("status"));
    status.is_ok_and(|status| !status.contains("\nState:\tZ"))
}

fn kill(signal: &str, pid: &str) {
    let sent = Command::new("kill").args([signal, pid]).status();
    assert!(sent.unwrap().success(), "{signal} {pid}");
}

#[tokio::test]
async fn relative_paths_are_those_of_the_start_and_the_pid_file_goes_with_the_process() {
    let mut place = Place::new(
        "daemon: true\npid_file: here.pid\nerror_log: here.log\nupgrade_sock: here.sock\n",
    );
    let started = place.mini_lb("--conf conf.yaml").await;
    assert_eq!((started.code, &started.lines[..]), (Some(0), &[][..]));
    // The start ends when the process can be signalled.
    let pid = fs::read_to_string(place.path("here.pid")).unwrap();
    let pid = pid.trim();
    place.pids.push(pid.to_owned());
    let address = place.address("here.log", 1).await;
    assert_eq!(get(address, "/health").await.status(), 200);
    kill("-HUP", pid);
    kill("-TERM", pid);
    place.ends(pid).await;
    assert_eq!(place.names(), ["conf.yaml", "here.log"]);
    let log = fs::read_to_string(place.path("here.log")).unwrap();
    assert!(!log.contains("ERROR"), "{log}");
}

#[tokio::test]
async fn the_upgrade_of_the_file_works_line_by_line() {
    let recipe = fs::read_to_string("conf/daemon.yaml").unwrap();
    let mut place = Place::new("");
    let root = place.directory.path().display().to_string();
    // Its paths in the directory of the test, its workers and its address replaced.
    let keys = recipe.lines().filter(|line| !line.starts_with('#'));
    let from = keys
        .clone()
        .position(|line| line.starts_with("version"))
        .unwrap();
    let keys: Vec<_> = keys
        .skip(from)
        .filter(|line| !line.starts_with("threads"))
        .collect();
    let keys = keys.join("\n").replace(": /", &format!(": {root}/"));
    fs::write(place.path("conf.yaml"), format!("{WORKERS}{keys}\n")).unwrap();
    let commands = recipe.lines().filter_map(|line| line.strip_prefix("#   "));
    let commands: Vec<_> = commands
        .map(|line| {
            line.replace(" /", &format!(" {root}/"))
                .replace(
                    "mini-lb --conf",
                    &format!("{} --conf", env!("CARGO_BIN_EXE_mini-lb")),
                )
                .replace("conf/daemon.yaml", "conf.yaml")
        })
        .collect();
    let [directories, start, upgrade, quit] = &commands[..] else {
        panic!("{commands:?}")
    };
    let (pid_file, log) = ("run/mini-lb/mini-lb.pid", "var/log/mini-lb/error.log");
    let ended = place.shell(&format!("{directories}\n{start}")).end().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let old = place.pid(pid_file, "").await;
    let address = place.address(log, 1).await;
    // The successor gets the sockets of this address.
    let conf = fs::read_to_string(place.path("conf.yaml")).unwrap();
    let conf = conf.replace("port: 0", &format!("port: {}", address.port()));
    fs::write(place.path("conf.yaml"), conf).unwrap();
    let ended = place.shell(&format!("{upgrade}\n{quit}")).end().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let new = place.pid(pid_file, &old).await;
    place.ends(&old).await;
    assert_eq!(
        get(place.address(log, 2).await, "/health").await.status(),
        200
    );
    assert_eq!(
        fs::read_to_string(place.path(pid_file)).unwrap().trim(),
        new
    );
    kill("-TERM", &new);
    place.ends(&new).await;
    let left = fs::read_dir(place.path("run/mini-lb")).unwrap().count();
    assert_eq!(left, 0, "{:?}", place.names());
    let log = fs::read_to_string(place.path(log)).unwrap();
    assert!(!log.contains("ERROR"), "{log}");
    assert!(log.contains("INFO"), "{log}");
}

#[tokio::test]
async fn a_successor_in_the_background_that_gets_no_sockets_says_so_and_leaves_the_pid_of_the_other()
 {
    let mut place = Place::new(
        "daemon: true\npid_file: here.pid\nerror_log: here.log\nupgrade_sock: here.sock\nupgrade_wait_secs: 0.1\n",
    );
    fs::write(place.path("here.pid"), "1\n").unwrap();
    let started = place.mini_lb("--conf conf.yaml --upgrade").await;
    assert_eq!(started.code, Some(0), "{started:?}");
    let pid = place.pid("here.pid.new", "").await;
    place.ends(&pid).await;
    let log = fs::read_to_string(place.path("here.log")).unwrap();
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines.len(), 2, "{log}");
    assert!(
        lines[0].contains("INFO") && lines[0].contains("waiting for the sockets"),
        "{log}"
    );
    assert!(
        lines[1].starts_with("mini-lb: no old process handed over"),
        "{log}"
    );
    assert_eq!(place.names(), ["conf.yaml", "here.log", "here.pid"]);
}

/// Needs strace, which delays the parent: Pingora installs its handler in the runtime that the parent creates after the fork.
#[tokio::test]
async fn a_process_that_is_ready_before_its_parent_waits_does_not_kill_it() {
    if Command::new("strace").arg("--version").output().is_err() {
        eprintln!("skipped: there is no strace on this machine");
        return;
    }
    let mut place = Place::new("daemon: true\npid_file: here.pid\nerror_log: here.log\n");
    let binary = env!("CARGO_BIN_EXE_mini-lb");
    let delay = "-e trace=epoll_create1 -e inject=epoll_create1:delay_enter=5000000";
    let strace = format!("exec strace -o trace {delay} {binary} --conf conf.yaml");
    let started = place.shell(&strace).end().await;
    assert_eq!(started.code, Some(0), "{started:?}");
    let pid = place.pid("here.pid", "").await;
    place.address("here.log", 1).await;
    assert!(is_running(&pid));
    // The process in the background is no parent: the signal is logged there.
    Command::new("kill").args(["-USR1", &pid]).status().unwrap();
    soon("the line of the signal", async {
        while !fs::read_to_string(place.path("here.log"))
            .unwrap()
            .contains("SIGUSR1")
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(is_running(&pid));
}

#[tokio::test]
async fn a_missing_directory_is_named_with_its_key_and_line_before_anything_starts() {
    for key in ["pid_file", "error_log"] {
        let place = Place::new(&format!("daemon: true\n{key}: missing/file\n"));
        let missing = place.path("missing");
        for action in ["--test", ""] {
            let ended = place.mini_lb(&format!("--conf conf.yaml {action}")).await;
            assert_eq!(ended.code, Some(1), "{ended:?}");
            let said = format!(
                "mini-lb: conf.yaml:7: {key}: the directory {} does not exist",
                missing.display()
            );
            assert_eq!(ended.lines, [said], "{action}");
        }
    }
}

#[tokio::test]
async fn a_user_that_does_not_exist_is_named_with_its_line_before_anything_starts() {
    let place =
        Place::new("daemon: true\npid_file: pid\nuser: no-such-user\ngroup: no-such-group\n");
    for action in ["--test", ""] {
        let ended = place.mini_lb(&format!("--conf conf.yaml {action}")).await;
        let said = [
            "mini-lb: conf.yaml:8: user: `no-such-user` does not exist",
            "conf.yaml:9: group: `no-such-group` does not exist",
        ];
        assert_eq!(
            (ended.code, &ended.lines[..]),
            (Some(1), &said.map(str::to_owned)[..])
        );
    }
}

#[tokio::test]
async fn files_of_the_background_are_of_no_use_in_the_foreground_which_is_said() {
    let place = Place::new("error_log: missing/log\npid_file: missing/pid\n");
    let said = [
        "conf.yaml:7: pid_file: ignored without --daemon (or daemon: true), no pid file is written",
        "conf.yaml:6: error_log: ignored without --daemon (or daemon: true), the log goes to stderr",
    ];
    let ended = place.mini_lb("--conf conf.yaml --test").await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for line in said {
        let line = format!("warning: {line}");
        assert!(ended.lines.contains(&line), "{line} in {ended:?}");
    }
    let conf = place.path("conf.yaml");
    let mut process = mini_lb!(&["--conf", conf.to_str().unwrap()]);
    for line in said {
        let (_, line) = line.split_once(": ").unwrap();
        process.line(line).await;
    }
    process.address().await;
}
