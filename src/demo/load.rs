//! The load of a demo: streams of made-up chats, so many at a time, so that there is something to see.
//!
//! It runs on a thread of its own, because the load generator does. [`Running::stop`] waits for its end.

use std::error::Error;
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use mini_lb::bench::{Arrivals, Endpoint, InputLength, Load, Prompt, RequestSpec, Target, run};
use tokio::sync::oneshot;

/// The longest prompt and response, in tokens. The shortest are a tenth of them.
const INPUT_TOKENS: usize = 1200;
const OUTPUT_TOKENS: usize = 200;

/// Longer than any demo.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// A load that runs.
pub(super) struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Running {
    /// Ends the load; its live requests are given up.
    pub(super) fn stop(self) {
        // An error means that the thread has ended already, and so does one of the join.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

/// Keeps `users` requests for this model on their way to the balancer at this address.
///
/// # Errors
/// The key is no header value, or the system gives no thread.
pub(super) fn start(
    address: SocketAddr,
    users: usize,
    model: &str,
    key: Option<&str>,
) -> Result<Running, Box<dyn Error>> {
    let mut headers = HeaderMap::new();
    if let Some(key) = key {
        headers.insert(AUTHORIZATION, format!("Bearer {key}").parse()?);
    }
    let host = HeaderValue::try_from(address.to_string())?;
    let load = Load {
        concurrency: users,
        arrivals: Arrivals::WhenFree,
        requests: u64::MAX,
        time: FOR_EVER,
        request_timeout: Duration::from_secs(super::REQUEST_TIMEOUT_SECS),
        seed: 1,
        slo: mini_lb::bench::Slo::default(),
    };
    let prompt = Prompt {
        endpoint: Endpoint::Chat,
        input: InputLength::Tokens(INPUT_TOKENS),
        output_tokens: OUTPUT_TOKENS,
        range_ratio: 0.1,
        stream: true,
        ignore_eos: true,
        model: model.to_owned(),
        extra: serde_json::Map::new(),
        seed: 1,
    };
    let path = prompt.endpoint.path().parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new().name("load".to_owned());
    let thread = thread.spawn(move || {
        let target = Target {
            addresses: vec![address],
            host,
            path,
            headers,
            requests: Box::new(move |number| RequestSpec {
                body: prompt.body(number),
                ..RequestSpec::default()
            }),
        };
        runtime.block_on(async {
            tokio::select! {
                _ = stopped => {}
                _ = run(target, &load, |_| {}) => {}
            }
        });
    })?;
    Ok(Running { stop, thread })
}
