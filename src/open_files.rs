//! The soft limit of open files, raised at the start of the program. What follows from the limit is `server`'s.
//!
//! The soft limit of a shell is 1024 for the sake of programs with `select`, and a process that has none may raise it. With
//! three descriptors for each request that limit would be 174 requests at once.
//! Source: `systemd.exec(5)`, `LimitNOFILE`. The workers and `sglang.bench_serving` raise theirs likewise (`set_ulimit` of SGLang).

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The soft limit that is enough for 21,000 requests at once. A higher one stays, and the hard limit bounds it.
const WANTED: u64 = 65_536;

/// Raises the soft limit as far as the hard one allows. Where that fails the limits of requests follow from the old one.
pub(crate) fn raise() {
    let limit = Resource::RLIMIT_NOFILE;
    if let Ok((soft, hard)) = getrlimit(limit)
        && soft < WANTED.min(hard)
    {
        let _ = setrlimit(limit, WANTED.min(hard), hard);
    }
}
