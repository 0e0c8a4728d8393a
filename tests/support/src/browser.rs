//! Chromium, driven through the DevTools protocol over two pipes: it needs no client library and no port.
//!
//! Source: Chromium's `--remote-debugging-pipe`: it reads commands at descriptor 3 and writes replies and events at 4, each
//! a JSON text that a zero byte ends.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::soon;

/// The names of the program in distributions.
const NAMES: [&str; 4] = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
];

/// Between two looks at a page that a test waits for. No assertion depends on it.
const LOOK: Duration = Duration::from_millis(20);

/// A browser with one page. Killed when dropped.
pub struct Browser {
    _child: Child,
    _profile: tempfile::TempDir,
    commands: ChildStdin,
    replies: BufReader<ChildStdout>,
    last_id: u64,
    session: String,
    has_loaded: bool,
    /// What the page has complained of: errors of its script, of the console, of its policy, and of the network.
    pub complaints: Vec<String>,
}

/// The colours that a page is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Scheme {
    Light,
    Dark,
}

impl Browser {
    /// Starts it with an empty page; `None` where there is no Chromium, with a line on stderr that says so.
    pub async fn start() -> Option<Self> {
        let Some(program) = program() else {
            eprintln!("skipped: there is no Chromium on this machine");
            return None;
        };
        let profile = tempfile::tempdir().unwrap();
        let mut child = Command::new("sh")
            // The shell moves its own pipes to the descriptors that Chromium uses.
            .args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null", "sh"])
            .arg(program)
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                "--force-color-profile=srgb",
                "--no-first-run",
                "--disable-background-networking",
                "--remote-debugging-pipe",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut browser = Self {
            commands: child.stdin.take().unwrap(),
            replies: BufReader::new(child.stdout.take().unwrap()),
            _child: child,
            _profile: profile,
            last_id: 0,
            session: String::new(),
            has_loaded: false,
            complaints: Vec::new(),
        };
        browser.attach().await;
        Some(browser)
    }

    async fn attach(&mut self) {
        let blank = json!({"url": "about:blank"});
        let target = self.call("Target.createTarget", blank).await["targetId"].take();
        let flat = json!({"targetId": target, "flatten": true});
        let session = self.call("Target.attachToTarget", flat).await;
        self.session = session["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            self.call(&format!("{domain}.enable"), json!({})).await;
        }
    }

    /// Sends a command and returns its result.
    pub async fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let mut command = json!({"id": self.last_id, "method": method, "params": params});
        if !self.session.is_empty() {
            command["sessionId"] = self.session.clone().into();
        }
        let mut bytes = command.to_string().into_bytes();
        bytes.push(0);
        self.commands.write_all(&bytes).await.unwrap();
        loop {
            let message = soon(method, self.message()).await;
            if message["id"] == self.last_id {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
            self.note(&message);
        }
    }

    async fn message(&mut self) -> Value {
        let mut bytes = Vec::new();
        let read = self.replies.read_until(0, &mut bytes).await.unwrap();
        assert!(read > 0, "Chromium has ended");
        bytes.pop();
        serde_json::from_slice(&bytes).unwrap()
    }

    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        match event["method"].as_str().unwrap_or_default() {
            "Page.loadEventFired" => self.has_loaded = true,
            "Runtime.exceptionThrown" => self.complaints.push(params.to_string()),
            "Runtime.consoleAPICalled" if params["type"] == "error" => {
                self.complaints.push(params["args"].to_string());
            }
            "Log.entryAdded" if params["entry"]["level"] == "error" => {
                self.complaints.push(params["entry"].to_string());
            }
            _ => {}
        }
    }

    /// Opens a page in a window of this size.
    pub async fn open(&mut self, url: &str, size: (u32, u32), scheme: Scheme) {
        self.resize(size, 1.0).await;
        let name = match scheme {
            Scheme::Light => "light",
            Scheme::Dark => "dark",
        };
        let features = json!([
            {"name": "prefers-color-scheme", "value": name},
            {"name": "prefers-reduced-motion", "value": "reduce"}
        ]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}))
            .await;
        self.has_loaded = false;
        let opened = self.call("Page.navigate", json!({"url": url})).await;
        assert!(opened["errorText"].is_null(), "{url}: {opened}");
        while !self.has_loaded {
            let message = soon("the page is loaded", self.message()).await;
            self.note(&message);
        }
    }

    /// The size of the window, and the pixels of a picture for each of its own.
    pub async fn resize(&mut self, (width, height): (u32, u32), scale: f64) {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": scale, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// The header fields of every request from now on.
    pub async fn send_headers(&mut self, headers: Value) {
        self.call("Network.setExtraHTTPHeaders", json!({"headers": headers}))
            .await;
    }

    /// The value of an expression in the page.
    pub async fn value(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let result = self.call("Runtime.evaluate", params).await;
        assert!(
            result["exceptionDetails"].is_null(),
            "{expression}: {result}"
        );
        result["result"]["value"].clone()
    }

    /// The text of the element with this id.
    pub async fn text(&mut self, id: &str) -> String {
        let text = format!("document.getElementById('{id}').textContent");
        self.value(&text).await.as_str().unwrap().to_owned()
    }

    /// Returns when an expression is true in the page.
    pub async fn wait_for(&mut self, expression: &str) {
        let what = format!("the page: {expression}");
        let waiting = async {
            while self.value(&format!("Boolean({expression})")).await != json!(true) {
                tokio::time::sleep(LOOK).await;
            }
        };
        soon(&what, waiting).await;
    }

    /// Presses and releases a key, as `KeyboardEvent.key` names it.
    pub async fn press(&mut self, key: &str) {
        let (code, text) = match key {
            "Enter" => (13, "\r"),
            "Tab" => (9, ""),
            "Escape" => (27, ""),
            _ => (0, key),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut params =
                json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
            if kind == "keyDown" && !text.is_empty() {
                params["text"] = text.into();
            }
            self.call("Input.dispatchKeyEvent", params).await;
        }
    }

    /// A picture of the whole page as PNG, in base 64.
    pub async fn picture(&mut self) -> String {
        let whole = json!({"format": "png", "captureBeyondViewport": true});
        let taken = self.call("Page.captureScreenshot", whole).await;
        taken["data"].as_str().unwrap().to_owned()
    }
}

fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let directories: Vec<_> = std::env::split_paths(&path).collect();
    let of_name = |name| {
        directories
            .iter()
            .map(move |directory| directory.join(name))
    };
    let mut programs = NAMES.iter().flat_map(of_name);
    programs.find(|program| program.is_file())
}
