//! A client of a running balancer: health, models, chat, streamed chat, and logprobs of a prompt.
//!
//! ```text
//! cargo run -- demo                                    # in another terminal
//! cargo run --example mini_lb_client
//! cargo run --example mini_lb_client -- http://HOST:PORT
//! ```
//!
//! All requests share one connection. The exit code is 1 when a request fails.

use std::error::Error;
use std::process::ExitCode;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

#[tokio::main]
async fn main() -> ExitCode {
    let url = std::env::args().nth(1);
    let url = url.as_deref().unwrap_or("http://127.0.0.1:8080");
    match show(url).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mini_lb_client: {url}: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn show(url: &str) -> Result<(), Box<dyn Error>> {
    let mut balancer = Balancer::connect(url).await?;

    balancer.get("/health").await?;
    println!("health    ok");

    let models: Value = serde_json::from_slice(&balancer.get("/v1/models").await?)?;
    let model = text(&models, "/data/0/id")?.to_owned();
    println!("model     {model}");

    let chat = json!({
        "model": model,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 12,
    });
    let response = balancer.post("/v1/chat/completions", &chat).await?;
    let response: Value = serde_json::from_slice(&whole(response).await?)?;
    println!(
        "chat     {}",
        text(&response, "/choices/0/message/content")?
    );

    let mut streamed = chat;
    streamed["stream"] = true.into();
    let response = balancer.post("/v1/chat/completions", &streamed).await?;
    print!("stream   ");
    let events = stream(response, |event| {
        if let Ok(delta) = text(event, "/choices/0/delta/content") {
            print!("{delta}");
        }
    })
    .await?;
    println!("  ({events} events)");

    let generate = json!({
        "text": "The capital of France is",
        "return_logprob": true,
        "logprob_start_len": 0,
        "return_text_in_logprobs": true,
        "sampling_params": {"max_new_tokens": 4},
    });
    let response = balancer.post("/generate", &generate).await?;
    let response: Value = serde_json::from_slice(&whole(response).await?)?;
    println!("generate {}", text(&response, "/text")?);
    let logprobs = response.pointer("/meta_info/input_token_logprobs");
    for row in logprobs
        .and_then(Value::as_array)
        .ok_or("no logprobs of the prompt")?
    {
        println!("  prompt  {:<12} {}", row[2].to_string(), row[0]);
    }
    Ok(())
}

/// A connection to the balancer.
struct Balancer {
    authority: String,
    connection: SendRequest<Full<Bytes>>,
}

impl Balancer {
    async fn connect(url: &str) -> Result<Balancer, Box<dyn Error>> {
        let url: Uri = url.parse()?;
        let authority = url.authority().ok_or("expected http://HOST:PORT")?;
        let port = authority.port_u16().unwrap_or(80);
        let stream = TcpStream::connect((authority.host(), port)).await?;
        let (connection, driver) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(driver);
        Ok(Balancer {
            authority: authority.to_string(),
            connection,
        })
    }

    async fn get(&mut self, path: &str) -> Result<Bytes, Box<dyn Error>> {
        let request = Request::get(path).header("host", &self.authority);
        whole(self.send(request.body(Full::default())?).await?).await
    }

    async fn post(
        &mut self,
        path: &str,
        body: &Value,
    ) -> Result<Response<Incoming>, Box<dyn Error>> {
        let request = Request::post(path)
            .header("host", &self.authority)
            .header("content-type", "application/json");
        self.send(request.body(body.to_string().into())?).await
    }

    /// Sends a request. A response without a 2xx status is an error with the response's body.
    async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Box<dyn Error>> {
        self.connection.ready().await?;
        let path = request.uri().to_string();
        let response = self.connection.send_request(request).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = whole(response).await?;
        Err(format!("{path}: {status}: {}", String::from_utf8_lossy(&body)).into())
    }
}

async fn whole(response: Response<Incoming>) -> Result<Bytes, Box<dyn Error>> {
    Ok(response.into_body().collect().await?.to_bytes())
}

/// Calls `each` with the JSON of every event and returns their number. A network chunk is not an event: it may hold
/// several, or a part of one.
async fn stream(
    response: Response<Incoming>,
    mut each: impl FnMut(&Value),
) -> Result<usize, Box<dyn Error>> {
    let mut body = response.into_body();
    let (mut received, mut events, mut done) = (Vec::new(), 0, false);
    // To the end of the body: the connection can be used again only then.
    while let Some(frame) = body.frame().await {
        received.extend_from_slice(&frame?.into_data().unwrap_or_default());
        while let Some(end) = received.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = received.drain(..end + 2).collect();
            let Some(data) = event.trim_ascii_end().strip_prefix(b"data: ") else {
                continue;
            };
            if data == b"[DONE]" {
                done = true;
                continue;
            }
            let event: Value = serde_json::from_slice(data)?;
            // SGLang and the balancer report a failure after the first event this way.
            if let Some(error) = event.get("error") {
                return Err(error.to_string().into());
            }
            each(&event);
            events += 1;
        }
    }
    if done {
        return Ok(events);
    }
    Err("the stream ended without [DONE]".into())
}

fn text<'a>(value: &'a Value, pointer: &str) -> Result<&'a str, Box<dyn Error>> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.ok_or_else(|| format!("no text at {pointer} in {value}").into())
}
