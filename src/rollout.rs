//! `mini-lb rollout`: a command for each worker of a running balancer, such as its restart, one after the other.
//!
//! Each worker is drained before its command and probed after it, by the balancer's `/workers`. The first failure ends
//! the rollout, and the worker that it concerns stays drained.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};
use pingora::http::RequestHeader;
use pingora::server::configuration::ServerConf;
use serde_json::{Value, json};

use crate::addresses::Addresses;
use crate::config::WorkerUrl;
use crate::net::{Client, Dialling, Target, Trust};

/// The longest response of a balancer, in bytes: 2,000 workers have about 1 MB.
const RESPONSE_LIMIT: usize = 64 << 20;

/// For a connection to the balancer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// For its response, beyond the time that it may wait.
const MARGIN: Duration = Duration::from_secs(30);

/// The variable with the key, where no file is given.
const KEY_VARIABLE: &str = "MINI_LB_ADMIN_API_KEY";

/// Arguments of `mini-lb rollout`.
#[derive(Debug, Clone, Args)]
pub struct RolloutArgs {
    /// Workers that the command is run for: prefill or decode.
    #[arg(long, value_name = "ROLE", value_parser = ["prefill", "decode"])]
    pub role: String,
    /// Command for a shell, with the worker's URL as `$1` and in MINI_LB_WORKER_URL; its id and role are in
    /// MINI_LB_WORKER_ID and MINI_LB_WORKER_ROLE.
    #[arg(long, value_name = "COMMAND")]
    pub command: String,
    /// URL of the balancer, or of its listener for administration.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:30000")]
    pub url: String,
    /// File with the key for administration; without it the key is in MINI_LB_ADMIN_API_KEY, or none is sent.
    #[arg(long, value_name = "PATH")]
    pub admin_api_key_file: Option<PathBuf>,
    /// How long the requests of a worker may go on before the rollout fails.
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub drain_seconds: u32,
    /// How long a worker may take to be well after the command.
    #[arg(long, value_name = "SECONDS", default_value = "1800", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub ready_seconds: u32,
    /// Go on where a worker is the only one of its role that serves: requests find none meanwhile.
    #[arg(long)]
    pub force: bool,
}

/// A worker of the balancer, as `GET /workers` has it.
struct Worker {
    id: String,
    url: String,
    serves: bool,
}

/// The running balancer.
struct Balancer {
    client: Client,
    addresses: Arc<Addresses>,
    url: WorkerUrl,
    host: HeaderValue,
    key: Option<HeaderValue>,
}

/// Runs the command for each worker. `say` gets a line for each step.
///
/// # Errors
/// A sentence: the first step that failed.
pub async fn run(args: RolloutArgs, say: impl Fn(String)) -> Result<(), String> {
    let balancer = Balancer::of(&args).await?;
    let workers = balancer.workers(&args.role).await?;
    let (count, role) = (workers.len(), &args.role);
    if count == 0 {
        return Err(format!("there is no {role} worker at {}", args.url));
    }
    if workers.iter().filter(|worker| worker.serves).count() < 2 && !args.force {
        return Err(format!(
            "fewer than two {role} workers serve, so that requests would find none: add one, or use --force"
        ));
    }
    for (nth, worker) in (1..).zip(&workers) {
        let url = &worker.url;
        say(format!("[{nth}/{count}] {url}: draining"));
        balancer
            .put(worker, "draining", args.drain_seconds)
            .await
            .map_err(|why| stopped(worker, "it is not drained", &why))?;
        say(format!("[{nth}/{count}] {url}: running the command"));
        command(&args, worker).map_err(|why| stopped(worker, "it is drained", &why))?;
        say(format!("[{nth}/{count}] {url}: waiting until it is well"));
        balancer
            .put(worker, "serving", args.ready_seconds)
            .await
            .map_err(|why| stopped(worker, "it serves once it is well", &why))?;
    }
    say(format!("all {count} {role} workers serve"));
    Ok(())
}

fn stopped(worker: &Worker, state: &str, why: &str) -> String {
    let Worker { id, url, .. } = worker;
    format!(
        "the rollout stops at {url}: {why}; {state}, and PUT /workers/{id} with {{\"state\":\"serving\"}} makes it serve"
    )
}

fn command(args: &RolloutArgs, worker: &Worker) -> Result<(), String> {
    // Nothing else runs in this process meanwhile.
    let status = Command::new("/bin/sh")
        .args(["-c", &args.command, "mini-lb-rollout", &worker.url])
        .env("MINI_LB_WORKER_URL", &worker.url)
        .env("MINI_LB_WORKER_ID", &worker.id)
        .env("MINI_LB_WORKER_ROLE", &args.role)
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("the command failed ({status})")),
        Err(error) => Err(format!("the command cannot be run: {error}")),
    }
}

impl Balancer {
    async fn of(args: &RolloutArgs) -> Result<Self, String> {
        let url =
            WorkerUrl::parse(&args.url).map_err(|fault| format!("--url {}: {fault}", args.url))?;
        let found = tokio::net::lookup_host((url.host(), url.port())).await;
        let found: Vec<_> = found
            .map_err(|error| format!("{}: {error}", args.url))?
            .collect();
        let addresses = Arc::new(Addresses::new(None));
        addresses.set(found);
        let key = match &args.admin_api_key_file {
            Some(path) => Some(
                std::fs::read_to_string(path)
                    .map_err(|error| format!("--admin-api-key-file {}: {error}", path.display()))?,
            ),
            None => std::env::var(KEY_VARIABLE).ok(),
        };
        let bearer = |key: String| HeaderValue::try_from(format!("Bearer {}", key.trim()));
        let dialling = Dialling {
            connect_timeout: CONNECT_TIMEOUT,
            trust: Trust::new(&[], None),
        };
        Ok(Self {
            client: Client::new(&ServerConf::default(), dialling),
            addresses,
            host: HeaderValue::try_from(url.host_field()).map_err(|error| error.to_string())?,
            key: key.map(bearer).transpose().map_err(|_| {
                "the key has characters that an HTTP header cannot carry".to_owned()
            })?,
            url,
        })
    }

    async fn workers(&self, role: &str) -> Result<Vec<Worker>, String> {
        let list = self
            .ask(Method::GET, "/workers", Value::Null, MARGIN)
            .await?;
        let all = list["workers"].as_array().cloned().unwrap_or_default();
        let of_role = all.iter().filter(|worker| worker["worker_type"] == role);
        let read = |worker: &Value| {
            Some(Worker {
                id: worker["id"].as_str()?.to_owned(),
                url: worker["url"].as_str()?.to_owned(),
                serves: worker["is_healthy"] == true,
            })
        };
        let workers: Option<Vec<_>> = of_role.map(read).collect();
        workers.ok_or_else(|| {
            "the balancer's list of workers has another form: is it a mini-lb?".to_owned()
        })
    }

    /// Puts a worker into this state, and waits until it is there.
    async fn put(&self, worker: &Worker, state: &str, seconds: u32) -> Result<(), String> {
        let path = format!("/workers/{}?wait_seconds={seconds}", worker.id);
        let time = Duration::from_secs(seconds.into()) + MARGIN;
        self.ask(Method::PUT, &path, json!({"state": state}), time)
            .await?;
        Ok(())
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Value,
        time: Duration,
    ) -> Result<Value, String> {
        let mut head = RequestHeader::build_no_case(method, path.as_bytes(), None)
            .map_err(|error| error.to_string())?;
        let body = match body {
            Value::Null => Bytes::new(),
            body => Bytes::from(body.to_string()),
        };
        head.insert_header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .map_err(|error| error.to_string())?;
        let to = Target {
            addresses: &self.addresses,
            server_name: self.url.is_tls().then(|| self.url.host()),
            host: &self.host,
            authorization: self.key.as_ref(),
        };
        let asking = self.client.fetch(to, &head, &body, RESPONSE_LIMIT);
        let response = match tokio::time::timeout(time, asking).await {
            Err(_) => return Err(format!("{} does not respond", self.url)),
            Ok(Err(failure)) => return Err(format!("{}: {failure}", self.url)),
            Ok(Ok(response)) => response,
        };
        let answer: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        match response.status {
            status if status.is_success() => Ok(answer),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(format!(
                "{} refuses the key: see --admin-api-key-file, {KEY_VARIABLE}, and --url for the listener of administration",
                self.url
            )),
            status => {
                let message = answer["message"]
                    .as_str()
                    .or(answer["error"]["message"].as_str());
                Err(message.map_or_else(|| format!("{} answers {status}", self.url), str::to_owned))
            }
        }
    }
}
