//! The targets: the programs between the load and the workers, with their configuration files.

use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::fleet::Fleet;
use super::instructions::under_callgrind;
use crate::programs::balancer::{ReservedPort, Worker, serving, with_defaults};
use crate::programs::process::Program;

/// Connections that nginx keeps open to a worker.
const NGINX_KEEPALIVE: usize = 512;

/// The program that is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// None: the load goes to ordinary workers.
    Direct,
    /// None, and the load generator sends both legs.
    DirectLegs,
    /// nginx in front of ordinary workers.
    Nginx,
    /// nginx with the request mirrored to prefill: two legs whose room the load generator has chosen.
    NginxMirror,
    /// HAProxy in front of ordinary workers.
    Haproxy,
    /// Pingora in front of ordinary workers.
    Pingora,
    /// mini-lb with its defaults.
    MiniLb,
    /// mini-lb without a log line for each request.
    MiniLbQuiet,
    /// A command from `--target`.
    Command(String),
}

/// A kind and its name in the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub name: String,
    pub kind: Kind,
    /// Whether it runs under callgrind, which makes it slow.
    pub under_callgrind: bool,
}

/// The built-in targets.
pub const BUILT_IN: [(&str, Kind); 8] = [
    ("direct", Kind::Direct),
    ("direct-legs", Kind::DirectLegs),
    ("nginx", Kind::Nginx),
    ("haproxy", Kind::Haproxy),
    ("pingora", Kind::Pingora),
    ("nginx-mirror", Kind::NginxMirror),
    ("mini-lb", Kind::MiniLb),
    ("mini-lb-quiet", Kind::MiniLbQuiet),
];

/// The form of the requests that a target takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Legs {
    /// The request of a client.
    Plain,
    /// With a room, and a header with the index of the prefill worker.
    Room,
    /// With a room, sent to a decode worker and a prefill worker.
    RoomBeside,
}

impl Kind {
    /// The form of the requests that it takes.
    pub fn legs(&self) -> Legs {
        match self {
            Kind::DirectLegs => Legs::RoomBeside,
            Kind::NginxMirror => Legs::Room,
            _ => Legs::Plain,
        }
    }

    /// Whether a program stands before the workers.
    pub fn is_program(&self) -> bool {
        !matches!(self, Kind::Direct | Kind::DirectLegs)
    }
}

/// A running target and its address.
pub struct Running {
    pub addresses: Vec<SocketAddr>,
    /// None for `direct`.
    pub program: Option<Program>,
    pub legs: Legs,
    /// Time from its start to its first 200.
    pub started_in: Duration,
    /// The directory with its configuration and output.
    pub files: tempfile::TempDir,
}

impl Target {
    /// Whether its program is installed.
    pub fn is_there(&self) -> bool {
        let program = match &self.kind {
            Kind::Nginx | Kind::NginxMirror => "nginx",
            Kind::Haproxy => "haproxy",
            _ => return true,
        };
        let asked = Command::new(program)
            .arg("-v")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        asked.is_ok_and(|status| status.success())
    }

    /// Whether the load generator chooses the room in which the legs meet, as only SGLang's do.
    pub fn needs_rooms(&self) -> bool {
        matches!(self.kind, Kind::DirectLegs | Kind::NginxMirror)
    }

    /// Starts it in front of the workers, and waits until it serves.
    pub async fn start(&self, mini_lb: &str, fleet: &Fleet) -> Result<Running, String> {
        let files = tempfile::tempdir().map_err(|error| error.to_string())?;
        let legs = self.kind.legs();
        let direct = match self.kind {
            Kind::Direct => Some(&fleet.single),
            Kind::DirectLegs => Some(&fleet.decode),
            _ => None,
        };
        if let Some(workers) = direct {
            return Ok(Running {
                addresses: workers.iter().map(|worker| worker.address).collect(),
                program: None,
                legs,
                started_in: Duration::ZERO,
                files,
            });
        }
        let port = ReservedPort::new()?;
        let mut command = self.command(mini_lb, fleet, port.number(), files.path())?;
        if self.under_callgrind {
            command = under_callgrind(&command, files.path());
        }
        let log = files.path().join("log");
        let begun = Instant::now();
        let program = serving(&self.name, &mut command, &port, &log).await?;
        Ok(Running {
            addresses: vec![port.address],
            program: Some(program),
            legs,
            started_in: begun.elapsed(),
            files,
        })
    }

    fn command(
        &self,
        mini_lb: &str,
        fleet: &Fleet,
        port: u16,
        files: &Path,
    ) -> Result<Command, String> {
        let mut command;
        match &self.kind {
            Kind::Direct | Kind::DirectLegs => return Err("nothing to start".to_owned()),
            Kind::Nginx | Kind::NginxMirror => {
                let text = match self.kind {
                    Kind::Nginx => nginx(files, port, &fleet.single, &[]),
                    _ => nginx(files, port, &fleet.decode, &fleet.prefill),
                };
                command = Command::new("nginx");
                command
                    .arg("-p")
                    .arg(files)
                    .arg("-c")
                    .arg(written(files, "nginx.conf", &text)?);
            }
            Kind::Haproxy => {
                command = Command::new("haproxy");
                let text = haproxy(port, &fleet.single);
                command
                    .args(["-db", "-f"])
                    .arg(written(files, "haproxy.cfg", &text)?);
            }
            Kind::Pingora => {
                let workers = fleet.single.iter().map(|worker| worker.address);
                let addresses: Vec<String> = [local(port)]
                    .into_iter()
                    .chain(workers)
                    .map(|address| address.to_string())
                    .collect();
                let this = std::env::current_exe().map_err(|error| error.to_string())?;
                command = Command::new(this);
                command.arg("--serve-plainly").arg(addresses.join(","));
            }
            Kind::MiniLb => {
                let template = with_defaults(fleet.engine);
                command = fleet.of_roles().command(&template, mini_lb, port);
            }
            Kind::MiniLbQuiet => {
                let quiet = format!("{} --log-level warn", with_defaults(fleet.engine));
                command = fleet.of_roles().command(&quiet, mini_lb, port);
            }
            Kind::Command(template) => {
                command = fleet.of_roles().command(template, mini_lb, port);
            }
        }
        Ok(command)
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// The cheapest nginx proxy: keep-alive to the workers, no buffering, no log.
fn nginx(files: &Path, port: u16, workers: &[Worker], prefill: &[Worker]) -> String {
    let files = files.display();
    let server = |worker: &Worker| format!("server {};", worker.address);
    let mut upstreams = format!(
        "upstream workers {{ {} keepalive {NGINX_KEEPALIVE}; keepalive_requests 1000000000; }}\n",
        workers.iter().map(server).collect::<String>()
    );
    let (mut map, mut mirror, mut mirrored) = (String::new(), "", String::new());
    for (index, worker) in prefill.iter().enumerate() {
        let _ = writeln!(
            upstreams,
            "upstream prefill{index} {{ {} keepalive {NGINX_KEEPALIVE}; keepalive_requests 1000000000; }}",
            server(worker)
        );
        let _ = write!(map, "{index} prefill{index};");
    }
    let mut request_buffering = "off";
    if !prefill.is_empty() {
        // nginx mirrors a request only when it has the whole body.
        request_buffering = "on";
        mirror = "mirror /to-prefill;";
        map = format!("map $http_x_prefill $prefill {{ default prefill0; {map} }}");
        mirrored = "location = /to-prefill { internal; proxy_pass http://$prefill$request_uri; }"
            .to_owned();
    }
    format!(
        "daemon off;\nuser root;\nworker_processes 2;\nworker_rlimit_nofile 20000;\npid {files}/nginx.pid;\n\
         error_log {files}/error.log crit;\nevents {{ worker_connections 16384; }}\nhttp {{\naccess_log off;\n\
         client_body_temp_path {files}/body;\nproxy_temp_path {files}/proxy;\nfastcgi_temp_path {files}/fastcgi;\n\
         uwsgi_temp_path {files}/uwsgi;\nscgi_temp_path {files}/scgi;\nclient_max_body_size 0;\n\
         client_body_buffer_size 20m;\nkeepalive_requests 1000000000;\nproxy_http_version 1.1;\n\
         proxy_set_header Connection \"\";\nproxy_buffering off;\nproxy_request_buffering {request_buffering};\n\
         proxy_read_timeout 600s;\n{map}\n{upstreams}\
         server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ {mirror} proxy_pass http://workers; }} {mirrored} }}\n}}\n"
    )
}

fn haproxy(port: u16, workers: &[Worker]) -> String {
    let mut text = format!(
        "global\n nbthread 2\n maxconn 9000\ndefaults\n mode http\n timeout connect 5s\n timeout client 600s\n\
         timeout server 600s\n option http-keep-alive\nfrontend clients\n bind 127.0.0.1:{port} backlog 4096\n\
         default_backend workers\nbackend workers\n balance random\n http-reuse always\n"
    );
    for (index, worker) in workers.iter().enumerate() {
        let _ = writeln!(text, " server worker{index} {}", worker.address);
    }
    text
}

fn written(files: &Path, name: &str, text: &str) -> Result<PathBuf, String> {
    let path = files.join(name);
    fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}
