//! `watch_config`: a file that has changed is read again, however it was changed.

use std::fs;
use std::os::unix::fs::symlink;

use support::Worker;
use tempfile::TempDir;

use crate::configured::{Configured, pair};

const CHANGED: &str = "config reloaded because=\"a file has changed\"";

fn text(workers: &str, queue: u32) -> String {
    format!(
        "host: 127.0.0.1\nport: 0\nthreads: 2\nwatch_config: true\nqueue_size: {queue}\n{workers}"
    )
}

#[tokio::test]
async fn a_file_is_watched_in_place_renamed_over_and_behind_a_symlink_that_is_switched() {
    let (prefill, decode) = Worker::pair().await;
    let workers = pair(&prefill, &decode);
    let directory = TempDir::new().unwrap();
    let path = directory.path().to_owned();
    // As Kubernetes mounts a ConfigMap: conf.yaml -> ..data/conf.yaml, ..data -> ..1.
    let version = |name: &str, queue| {
        fs::create_dir(path.join(name)).unwrap();
        fs::write(path.join(name).join("conf.yaml"), text(&workers, queue)).unwrap();
    };
    version("..1", 1);
    symlink("..1", path.join("..data")).unwrap();
    symlink("..data/conf.yaml", path.join("mounted.yaml")).unwrap();
    let conf = path.join("mounted.yaml");
    let mut process = support::mini_lb!(&["--conf", conf.to_str().unwrap()]);
    process.address().await;

    version("..2", 2);
    symlink("..2", path.join("..data_tmp")).unwrap();
    fs::rename(path.join("..data_tmp"), path.join("..data")).unwrap();
    fs::remove_dir_all(path.join("..1")).unwrap();
    let line = process.line(CHANGED).await;
    assert!(line.contains("changed=\"queue_size\""), "{line}");

    fs::write(path.join("..2/conf.yaml"), text(&workers, 3)).unwrap();
    process.line(CHANGED).await;

    fs::write(path.join("new"), text(&workers, 4)).unwrap();
    fs::rename(path.join("new"), path.join("..2/conf.yaml")).unwrap();
    process.line(CHANGED).await;
}

#[tokio::test]
async fn files_that_the_file_names_are_watched_and_a_broken_one_is_told_once() {
    let (prefill, decode) = Worker::pair().await;
    let workers = pair(&prefill, &decode);
    let directory = TempDir::new().unwrap();
    let keys = directory.path().join("keys");
    fs::write(&keys, "one\n").unwrap();
    let text = format!(
        "watch_config: true\napi_key_file: {}\n{workers}",
        keys.display()
    );
    let mut server = Configured::start_in(directory, &text).await;
    fs::write(&keys, "").unwrap();
    let line = server.process.line("config not reloaded").await;
    assert!(line.contains("must not be empty"), "{line}");
    fs::write(&keys, "two\n").unwrap();
    let line = server.process.line("reloaded").await;
    assert!(line.contains(CHANGED), "{line}");
    assert!(line.contains("changed=\"api_key_file\""), "{line}");
}
