//! The process and the service manager: what systemd is told, its unit, and the takeover that a reload of the unit makes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::program::get;
use support::{CHAT, Client, Process, STREAM, Signal, Worker, post, soon};
use tempfile::TempDir;
use tokio::net::UnixDatagram;

const UNIT: &str = "deploy/systemd/mini-lb.service";

/// A service manager, with the workers and the files of one balancer.
struct Manager {
    directory: TempDir,
    socket: UnixDatagram,
    prefill: Worker,
    decode: Worker,
}

impl Manager {
    async fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        let (prefill, decode) = Worker::pair().await;
        Self {
            directory,
            socket,
            prefill,
            decode,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn configure(&self, port: u16) {
        let text = format!(
            "host: 127.0.0.1\nport: {port}\nprefill: [{}]\ndecode: [{}]\ndisable_health_check: true\nthreads: 1\n\
             upgrade_sock: {}\n",
            self.prefill.url(),
            self.decode.url(),
            self.path("up.sock").display()
        );
        fs::write(self.path("conf.yaml"), text).unwrap();
    }

    /// Runs a program as a part of the unit.
    fn run(&self, program: &Path, arguments: &[&str], main: u32) -> Process {
        let mut command = Command::new(program);
        command.args(arguments);
        command.env("NOTIFY_SOCKET", self.path("notify"));
        command.env("MAINPID", main.to_string());
        Process::of(command)
    }

    /// The lines of the next message.
    async fn told(&self) -> Vec<String> {
        let mut message = [0; 4096];
        let length = soon("a message", self.socket.recv(&mut message))
            .await
            .unwrap();
        let text = String::from_utf8(message[..length].to_vec()).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

/// A process that is no child of the test. It is ended at the end of the test.
struct Successor(u64);

impl Drop for Successor {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.to_string()).status();
    }
}

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_mini-lb"))
}

fn number(line: &str, key: &str) -> u64 {
    line.strip_prefix(key)
        .unwrap_or_else(|| panic!("{line}: {key}"))
        .parse()
        .unwrap()
}

#[tokio::test]
async fn systemd_is_told_when_the_process_serves_reloads_and_ends() {
    let manager = Manager::new().await;
    manager.configure(0);
    let conf = manager.path("conf.yaml");
    let arguments = [
        "--conf",
        conf.to_str().unwrap(),
        "--shutdown-grace-period-secs",
        "1000",
    ];
    let mut process = manager.run(binary(), &arguments, 0);
    let main = format!("MAINPID={}", process.id());
    assert_eq!(manager.told().await, ["READY=1", &main]);
    process.address().await;

    process.signal(Signal::Hangup).await;
    let reloading = manager.told().await;
    assert_eq!((reloading.len(), reloading[0].as_str()), (2, "RELOADING=1"));
    assert!(number(&reloading[1], "MONOTONIC_USEC=") > 0);
    assert_eq!(manager.told().await, ["READY=1"]);

    process.signal(Signal::Terminate).await;
    let stopping = manager.told().await;
    assert_eq!((stopping.len(), stopping[0].as_str()), (2, "STOPPING=1"));
    assert!(number(&stopping[1], "EXTEND_TIMEOUT_USEC=") > 1_000_000_000);
    assert!(process.ended().await.success());
}

/// Puts a copy of the program here. `cp` writes it: programs that this process starts meanwhile would inherit the open file.
fn install(program: &Path) {
    let mut copy = Command::new("cp");
    let copied = copy.arg(binary()).arg(program).status().unwrap();
    assert!(copied.success());
}

#[tokio::test]
async fn a_reload_of_the_unit_reads_the_configuration_or_changes_the_program_and_cuts_no_stream() {
    let mut manager = Manager::new().await;
    // A copy, because the program that a package replaces is another file.
    let program = manager.path("mini-lb");
    install(&program);
    let conf = manager.path("conf.yaml");
    let conf = conf.to_str().unwrap();
    manager.configure(0);
    let mut old = manager.run(&program, &["--conf", conf], 0);
    manager.told().await;
    let address = old.address().await;
    // The successor gets the sockets of this address.
    manager.configure(address.port());
    let reload = fs::canonicalize("deploy/systemd/reload").unwrap();
    let of_unit = [program.to_str().unwrap(), "--conf", conf];
    let reloaded = manager.run(&reload, &of_unit, old.id()).end().await;
    assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
    assert_eq!(manager.told().await[0], "RELOADING=1");
    assert_eq!(manager.told().await, ["READY=1"]);

    let mut client = Client::connect(address).await;
    client.send(post(CHAT, STREAM)).await;
    manager.prefill.request().await.answer("200 OK", "{}").await;
    let mut decode = manager.decode.request().await;
    decode.begin_stream().await;
    decode.chunk("data: 1\n\n").await;
    client.head().await;
    assert_eq!(client.chunk().await.as_deref(), Some("data: 1\n\n"));

    fs::remove_file(&program).unwrap();
    install(&program);
    let mut reload = manager.run(&reload, &of_unit, old.id());
    let told = manager.told().await;
    assert_eq!((told.len(), told[0].as_str()), (2, "READY=1"));
    let successor = Successor(number(&told[1], "MAINPID="));
    assert!(successor.0 != u64::from(old.id()));
    assert!(reload.ended().await.success());
    old.line("successor listens").await;
    decode.chunk("data: [DONE]\n\n").await;
    assert_eq!(client.chunk().await.as_deref(), Some("data: [DONE]\n\n"));
    decode.chunk("").await;
    assert_eq!(client.chunk().await, None);
    assert!(old.ended().await.success());
    assert_eq!(get(address, "/health").await.status(), 200);
    drop(successor);
    assert_eq!(manager.told().await[0], "STOPPING=1");
}

#[tokio::test]
async fn a_reload_of_the_unit_with_a_wrong_file_fails_and_changes_nothing() {
    let manager = Manager::new().await;
    manager.configure(0);
    let conf = manager.path("conf.yaml");
    let conf = conf.to_str().unwrap();
    let mut process = manager.run(binary(), &["--conf", conf], 0);
    manager.told().await;
    let address = process.address().await;
    fs::write(conf, "port: many\n").unwrap();
    let reload = fs::canonicalize("deploy/systemd/reload").unwrap();
    let arguments = [binary().to_str().unwrap(), "--conf", conf];
    let ended = manager.run(&reload, &arguments, process.id()).end().await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.text().contains("port: `many` is not"), "{ended:?}");
    let health = get(address, "/health").await;
    assert_eq!(health.status(), 200);
    process.signal(Signal::Interrupt).await;
    assert!(process.ended().await.success());
}

/// Runs `systemd-analyze`, which must succeed and say nothing on stderr; its stdout. `None` where it is not installed.
fn analyzed(arguments: &[&str], unit: &Path) -> Option<String> {
    let output = Command::new("systemd-analyze")
        .args(arguments)
        .arg(unit)
        .output();
    let Ok(output) = output else {
        eprintln!("the unit was not analyzed: there is no systemd-analyze");
        return None;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.is_empty(),
        "{arguments:?}: {said}{text}"
    );
    Some(text)
}

#[test]
fn systemd_takes_the_unit_and_its_exposure_is_below_2_5() {
    let directory = TempDir::new().unwrap();
    let unit = directory.path().join("mini-lb.service");
    let reload = fs::canonicalize("deploy/systemd/reload").unwrap();
    let text = fs::read_to_string(UNIT).unwrap();
    // The programs of the unit are looked for.
    let here = text
        .replace("=/usr/bin/mini-lb", &format!("={}", binary().display()))
        .replace(
            "=/usr/lib/mini-lb/reload",
            &format!("={}", reload.display()),
        );
    fs::write(&unit, here).unwrap();
    analyzed(&["verify", "--man=no"], &unit);
    analyzed(
        &["security", "--offline=true", "--no-pager", "--threshold=25"],
        Path::new(UNIT),
    );
}

/// The time that systemd gives it is longer than the one that it gives live requests by default.
#[test]
fn the_unit_waits_for_live_requests() {
    let text = fs::read_to_string(UNIT).unwrap();
    let seconds = text
        .lines()
        .find_map(|line| line.strip_prefix("TimeoutStopSec="));
    let help = mini_lb::cli::command();
    let grace = help
        .get_arguments()
        .find(|argument| argument.get_id() == "shutdown_grace_period_secs")
        .and_then(|argument| argument.get_help().map(ToString::to_string))
        .unwrap();
    assert!(grace.contains("[default: 180]"), "{grace}");
    assert!(seconds.unwrap().parse::<u32>().unwrap() > 180);
}
