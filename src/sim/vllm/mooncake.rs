//! What differs with Mooncake's connector: a bootstrap server tells prefill's engine, and both requests name the transfer.
//!
//! The blocks go the way of NIXL's: decode reads them over prefill's side channel, which is the bootstrap server as well. In
//! vLLM prefill writes them, and decode may come first and wait; no balancer here sends it first.
//!
//! Source: vLLM 0.32.0, `kv_connector/v1/mooncake/mooncake_connector.py`, `mooncake_utils.py` (`/query`); transcript 40.

use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, BufReader, Lines};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::transfer::{Remote, Transfer};

/// What prefill's params ask for. Without a transfer nothing is sent.
pub(super) fn hold(params: &Value) -> Transfer {
    let transfer = params["transfer_id"].as_str();
    transfer.map_or(Transfer::Alone, |id| Transfer::HoldFor(id.into()))
}

/// The blocks that decode's params name.
pub(super) fn remote(params: &Value) -> Option<Remote> {
    let text = |name: &str| params[name].as_str();
    let server = text("remote_bootstrap_addr")?.strip_prefix("http://")?;
    let (host, port) = server.rsplit_once(':')?;
    Some(Remote {
        blocks: Vec::new(),
        engine_id: text("remote_engine_id")?.to_owned(),
        request_id: text("transfer_id")?.to_owned(),
        host: host.to_owned(),
        port: port.parse().ok()?,
        tokens: usize::MAX,
        // Decode counts the whole prompt as cached.
        cached_tokens: None,
    })
}

/// Answers one request for HTTP and closes the connection.
pub(super) async fn respond(
    request_line: &str,
    headers: &mut Lines<BufReader<OwnedReadHalf>>,
    writer: &mut OwnedWriteHalf,
    engine_id: &str,
) {
    while let Ok(Some(line)) = headers.next_line().await {
        if line.is_empty() {
            break;
        }
    }
    let (status, body) = match request_line.split(' ').nth(1) {
        Some("/query") => (
            "200 OK",
            json!({"0":{"engine_id":engine_id,"worker_addr":{"0":{"0":"tcp://127.0.0.1:0"}}}}),
        ),
        _ => ("404 Not Found", json!({"detail":"Not Found"})),
    };
    let body = body.to_string();
    let response = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // The client may have left.
    let _ = writer.write_all(response.as_bytes()).await;
}
