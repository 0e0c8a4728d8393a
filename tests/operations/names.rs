//! Names of workers that have two addresses, of which one refuses connections.

use std::path::Path;
use std::process::Command;

use support::pair::serve;
use support::{BODY, Client, Process, Worker, post};

/// A command with a view of the file system of its own, in which this is `/etc/hosts`. `None` where the system does not
/// permit that.
fn with_hosts(hosts: &Path, command: &str) -> Option<Command> {
    let line = format!("mount --bind {} /etc/hosts && {command}", hosts.display());
    let unshared = |line: &str| {
        let mut unshared = Command::new("unshare");
        unshared.args(["--map-root-user", "--mount", "sh", "-c", line]);
        unshared
    };
    let tried = unshared("mount --bind /etc/hosts /etc/hosts").output();
    tried
        .is_ok_and(|tried| tried.status.success())
        .then(|| unshared(&line))
}

#[tokio::test]
async fn a_worker_is_reached_at_the_address_of_its_name_that_does_not_refuse() {
    let directory = tempfile::tempdir().unwrap();
    let hosts = directory.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 both.test\n127.0.0.2 both.test\n").unwrap();
    // Whichever address comes first: one of the workers refuses there.
    let mut prefill = Worker::listen_on(([127, 0, 0, 1], 0).into()).await;
    let mut decode = Worker::listen_on(([127, 0, 0, 2], 0).into()).await;
    let command = format!(
        "exec {} --host 127.0.0.1 --port 0 --disable-health-check --prefill http://both.test:{} 8998 --decode \
         http://both.test:{}",
        env!("CARGO_BIN_EXE_mini-lb"),
        prefill.address.port(),
        decode.address.port()
    );
    let Some(command) = with_hosts(&hosts, &command) else {
        eprintln!("skipped: this system gives no process a file system of its own");
        return;
    };
    let mut process = Process::of(command);
    let mut client = Client::connect(process.address().await).await;
    for _ in 0..2 {
        client.send(post("/generate", BODY)).await;
        serve((prefill.request().await, decode.request().await)).await;
        assert_eq!(client.answer().await.status(), 200);
        let line = process.line("request finished").await;
        assert!(line.contains(" prefill=http://both.test:"), "{line}");
        assert!(!line.contains(" failed="), "{line}");
    }
}
