//! gunicorn's published request corpus, from its package: each file as it is, and with an endpoint that is forwarded.
//!
//! The oracle is a count, as in `framing`: a worker sees the requests for which a client got a 2xx, and no other
//! one, each with one Content-Length and no Transfer-Encoding. Two tables list the requests for which the proxy
//! decides otherwise than gunicorn, with reasons.
//!
//! `MINI_LB_TEST_GUNICORN` names the unpacked package. Without it pip downloads the package; if that fails,
//! a few cases of our own are used instead, and a line on stderr says so.
//!
//! Source: gunicorn 23.0.0 (sdist), `tests/requests/`, `tests/treq.py` for the format of the files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};
use support::client::Message;

use crate::witnessed::{LAST, Witnessed};

/// Files of `invalid/` that are forwarded.
const ACCEPTED: &[(&str, &str)] = &[
    (
        "006",
        "a long target, which the aim replaces; as it is, 404",
    ),
    (
        "007",
        "a field that is longer than gunicorn's limit; a head may have 32 KiB here",
    ),
    ("008", "as above, two fields"),
    (
        "010",
        "a limit of 10 bytes for a field, which is gunicorn's configuration in that case",
    ),
    ("011", "a limit of 2 fields, as above"),
    ("012", "a limit of 98 bytes for a field, as above"),
    (
        "016",
        "a malformed target, which the aim replaces; as it is, 400",
    ),
    ("017", "a field that is longer than gunicorn's limit"),
    (
        "019",
        "X-Forwarded-* that contradict each other; neither the proxy nor a worker reads them",
    ),
    (
        "chunked_09",
        "a blank behind the size of a chunk; the body is framed anew",
    ),
    (
        "chunked_12",
        "Pingora reads no size as 0, and what follows as trailers; the body is framed anew, empty",
    ),
    ("chunked_13", "as above"),
];

/// Files of `valid/` that are refused.
const REFUSED: &[(&str, &str)] = &[
    (
        "009",
        "Transfer-Encoding beside Content-Length, and `identity`, which RFC 9112 no longer has",
    ),
    (
        "025",
        "two codings: a worker would get a body that is still compressed",
    ),
    ("025_line", "as above, in one line"),
    (
        "028",
        "a blank before the colon, which gunicorn takes when it is told to",
    ),
    ("029", "`identity` beside `chunked`"),
    ("030", "as above"),
    ("031", "a method that no endpoint has: 405"),
    ("031compat", "as above"),
    ("031compat2", "as above"),
    (
        "040",
        "Transfer_Encoding and Content_Length, which are framing to some parsers",
    ),
    ("040_compat", "as above"),
    ("099", "the body is shorter than it says: 408"),
    (
        "compat_obs_fold",
        "a folded line, which gunicorn takes when it is told to",
    ),
    ("compat_obs_fold_huge", "as above"),
    (
        "pp_01",
        "HAProxy's line before the request, which gunicorn takes when it is told to",
    ),
    ("pp_02", "as above"),
];

/// An endpoint that forwards a body unchanged to one worker.
const AIM: &[u8] = b"/tokenize";

/// One file: its name and the bytes that it describes.
struct Case {
    name: String,
    bytes: Vec<u8>,
}

impl Witnessed {
    /// The number of 200 responses, and of the requests that the workers have seen.
    async fn counts(&self, name: &str, bytes: &[u8]) -> (usize, usize) {
        let client = self.balancer.client().await;
        let answers = client.answers(&[bytes, LAST.as_bytes()].concat()).await;
        let statuses: Vec<u16> = answers.iter().map(Message::status).collect();
        let refusals = |status: &&u16| (400..500).contains(*status) || **status == 501;
        let served = statuses.iter().filter(|status| **status == 200).count();
        let refused = statuses.iter().filter(refusals).count();
        assert_eq!(served + refused, statuses.len(), "{name}: {statuses:?}");
        let mut seen = Vec::new();
        for worker in &self.seen {
            seen.append(&mut worker.lock().unwrap());
        }
        for request in &seen {
            let lines: Vec<String> = request.head.lines().map(str::to_lowercase).collect();
            let count = |name: &str| lines.iter().filter(|line| line.starts_with(name)).count();
            assert_eq!(count("content-length:"), 1, "{name}: {}", request.head);
            assert_eq!(count("transfer-encoding:"), 0, "{name}: {}", request.head);
            assert_eq!(count("host:"), 1, "{name}: {}", request.head);
        }
        (served, seen.len())
    }

    async fn served(&self, cases: &[Case]) -> BTreeSet<String> {
        let mut served = BTreeSet::new();
        for Case { name, bytes } in cases {
            // Unchanged, it requests a path that is not forwarded.
            assert_eq!(self.counts(name, bytes).await.1, 0, "{name}");
            let (answered, seen) = self.counts(name, &aimed(bytes)).await;
            assert_eq!(answered, seen, "{name}");
            if answered > 0 {
                served.insert(name.clone());
            }
        }
        served
    }
}

#[tokio::test]
async fn gunicorns_corpus_smuggles_nothing_and_is_decided_file_by_file() {
    let stage = Witnessed::set().await;
    let Some(package) = package() else {
        eprintln!("gunicorn's package is not to be had: a few cases of our own instead");
        for (text, served) in OWN {
            let case = [Case {
                name: text.to_string(),
                bytes: bytes_of(text.as_bytes()),
            }];
            assert_eq!(!stage.served(&case).await.is_empty(), *served, "{text}");
        }
        return;
    };
    let (invalid, valid) = (cases(&package, "invalid"), cases(&package, "valid"));
    assert!(invalid.len() > 50 && valid.len() > 40);
    let names = |table: &[(&str, &str)]| table.iter().map(|(name, _)| name.to_string()).collect();
    let accepted: BTreeSet<String> = names(ACCEPTED);
    assert_eq!(stage.served(&invalid).await, accepted);
    let served = stage.served(&valid).await;
    let refused = valid.iter().map(|case| case.name.clone());
    let refused: BTreeSet<String> = refused.filter(|name| !served.contains(name)).collect();
    assert_eq!(refused, names(REFUSED));
}

/// Cases in the format of gunicorn's files, and whether they are served.
const OWN: &[(&str, bool)] = &[
    (
        "POST /a HTTP/1.1\\r\\nContent-Length: 5\\r\\n\\r\\nhello",
        true,
    ),
    (
        "POST /a HTTP/1.1\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n5\\r\\nhello\\r\\n0\\r\\n\\r\\n",
        true,
    ),
    (
        "POST /a HTTP/1.1\\r\\nContent-Length: 5\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n",
        false,
    ),
    (
        "POST /a HTTP/1.1\\r\\nContent-Length: 5\\r\\nContent-Length: 6\\r\\n\\r\\nhello",
        false,
    ),
    (
        "POST /a HTTP/1.1\\r\\nTransfer-Encoding:\\r\\n chunked\\r\\n\\r\\n0\\r\\n\\r\\n",
        false,
    ),
    (
        "POST /a HTTP/1.1\\r\\nTransfer_Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n",
        false,
    ),
];

/// Changes every line of the form `METHOD target version` to a POST of [`AIM`], and adds a Host if none follows.
fn aimed(bytes: &[u8]) -> Vec<u8> {
    let mut aimed = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let end = rest
            .windows(2)
            .position(|two| two == b"\r\n")
            .map_or(rest.len(), |at| at + 2);
        let (line, behind) = rest.split_at(end);
        rest = behind;
        let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let [method, target, version] = words[..] else {
            aimed.extend_from_slice(line);
            continue;
        };
        if !version.starts_with(b"HTTP/") || target.is_empty() {
            aimed.extend_from_slice(line);
            continue;
        }
        let method = if [&b"GET"[..], b"PUT"].contains(&method) {
            b"POST"
        } else {
            method
        };
        aimed.extend([method, AIM, version].join(&b' '));
        let head = behind.windows(4).position(|four| four == b"\r\n\r\n");
        let head = behind[..head.unwrap_or(behind.len())].to_ascii_lowercase();
        if !head.windows(5).any(|five| five == b"host:") {
            aimed.extend_from_slice(b"host: a\r\n");
        }
    }
    aimed
}

/// Line feeds only format the file; the bytes to send are escaped.
fn bytes_of(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut text = text.iter().filter(|byte| **byte != b'\n').copied();
    while let Some(byte) = text.next() {
        bytes.push(match byte {
            b'\\' => match text.next() {
                Some(b'r') => b'\r',
                Some(b'n') => b'\n',
                Some(b't') => b'\t',
                Some(b'0') => 0,
                other => panic!("an unknown escape: {other:?}"),
            },
            byte => byte,
        });
    }
    bytes
}

fn cases(package: &Path, kind: &str) -> Vec<Case> {
    let folder = package.join("tests/requests").join(kind);
    let files =
        fs::read_dir(&folder).unwrap_or_else(|error| panic!("{error}: {}", folder.display()));
    let files = files.map(|file| file.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|end| end == "http"));
    let case = |path: PathBuf| Case {
        name: path.file_stem().unwrap().to_string_lossy().into_owned(),
        bytes: bytes_of(&fs::read(&path).unwrap()),
    };
    files.map(case).collect()
}

/// The unpacked package: the named one, or the one that pip downloads.
fn package() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("MINI_LB_TEST_GUNICORN") {
        return Some(named.into());
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let unpacked = folder.join("gunicorn-23.0.0");
    if unpacked.exists() {
        return Some(unpacked);
    }
    let fresh = tempfile::tempdir_in(folder).unwrap();
    let pip = "-m pip download --quiet --timeout 10 --retries 1 --no-deps --no-binary :all: gunicorn==23.0.0 -d";
    runs(
        Command::new("python3")
            .args(pip.split(' '))
            .arg(fresh.path()),
    )?;
    let archive = fresh.path().join("gunicorn-23.0.0.tar.gz");
    let found = Sha256::digest(fs::read(&archive).ok()?);
    let found: String = found.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        found, SHA256,
        "another package than the one that was looked at"
    );
    runs(
        Command::new("tar")
            .arg("-xzf")
            .arg(&archive)
            .arg("-C")
            .arg(fresh.path()),
    )?;
    // Renamed in one step, so that an interrupted test leaves no half package.
    fs::rename(fresh.path().join("gunicorn-23.0.0"), &unpacked).ok()?;
    Some(unpacked)
}

/// Source: PyPI, gunicorn-23.0.0.tar.gz.
const SHA256: &str = "f014447a0101dc57e294f6c18ca6b40227a4c90e9bdb586042628030cba004ec";

/// `None` when the program is missing or fails.
fn runs(command: &mut Command) -> Option<()> {
    let output = command.output().ok()?;
    output.status.success().then_some(())
}
