//! Prefill's bootstrap registry, on a separate port: from it decode gets the address of prefill's rank.
//!
//! The data parallel ranks of a worker have one address; tp = pp = cp = 1. Framing and headers are aiohttp's, not uvicorn's.
//! Source: SGLang 0.5.23, `disaggregation/common/conn.py`, `CommonKVBootstrapServer`; responses as captured.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::wire::http_date;

/// The path and query for the topology.
pub(crate) const TOPOLOGY: &str =
    "/route?prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1&target_pp_rank=-1";
/// The path and query for the first rank, whose address the others have too.
pub(crate) const FIRST_RANK: &str =
    "/route?prefill_dp_rank=0&prefill_cp_rank=0&target_tp_rank=0&target_pp_rank=0";

/// Timeout of a request to the registry. Source: the GET timeout of SGLang's decode, 5 s.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// The registry of one prefill worker.
pub(crate) struct Registry {
    rank: SocketAddr,
    api_port: u16,
    dp_size: u32,
    /// Address of the rank, which `PUT /route` can change; none before the rank has registered.
    registered: Mutex<Option<SocketAddr>>,
    dp_ranks: Mutex<HashMap<String, u64>>,
}

impl Registry {
    pub(crate) fn new(rank: SocketAddr, api_port: u16, dp_size: u32) -> Arc<Registry> {
        let registered = Mutex::new(Some(rank));
        Arc::new(Registry {
            rank,
            api_port,
            dp_size,
            registered,
            dp_ranks: Mutex::default(),
        })
    }

    /// Responds to one request; `alive` is false when a scripted fault has taken the worker down.
    pub(crate) async fn respond(
        &self,
        request: Request<Incoming>,
        alive: bool,
    ) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let Ok(body) = body.collect().await else {
            return text(StatusCode::BAD_REQUEST, "");
        };
        if !alive {
            return text(StatusCode::SERVICE_UNAVAILABLE, "the worker is down");
        }
        let body = body.to_bytes();
        match (&head.method, head.uri.path()) {
            (&Method::GET, "/health") => text(StatusCode::OK, "OK"),
            (&Method::GET, "/route") => self.route(head.uri.query().unwrap_or_default()),
            (&Method::PUT, "/route") => self.register(&body),
            (_, "/route") => {
                let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed");
                // The real handler sets this content type, although the body is text.
                set_content_type(&mut refused, "application/json; charset=utf-8");
                refused
            }
            (&Method::POST, "/register_dp_rank") => self.register_dp_rank(&body),
            (&Method::POST, "/query_dp_ranks") => self.query_dp_ranks(&body),
            (_, "/health" | "/register_dp_rank" | "/query_dp_ranks") => {
                text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed")
            }
            _ => text(StatusCode::NOT_FOUND, "404: Not Found"),
        }
    }

    fn route(&self, query: &str) -> Response<Full<Bytes>> {
        let names = [
            "prefill_dp_rank",
            "prefill_cp_rank",
            "target_tp_rank",
            "target_pp_rank",
        ];
        let ranks: Vec<i64> = names
            .iter()
            .filter_map(|name| query_number(query, name))
            .collect();
        let &[dp, cp, tp, pp] = ranks.as_slice() else {
            return text(
                StatusCode::BAD_REQUEST,
                "Missing inputs for bootstrap server.",
            );
        };
        let Some(rank) = *self
            .registered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
        else {
            return text(
                StatusCode::SERVICE_UNAVAILABLE,
                "Prefill server not fully registered yet.",
            );
        };
        match (dp, cp, tp, pp) {
            (-1, -1, -1, -1) => json_response(&topology(self.api_port, self.dp_size)),
            (dp, 0, 0, 0) if (0..i64::from(self.dp_size)).contains(&dp) => {
                json_response(&json!({"rank_ip":rank.ip().to_string(),"rank_port":rank.port()}))
            }
            _ => text(
                StatusCode::NOT_FOUND,
                &format!(
                    "Bootstrap info not found for dp_rank={dp} cp_rank={cp} tp_rank={tp} pp_rank={pp}"
                ),
            ),
        }
    }

    /// `PUT /route`: sets the rank's address. The topology stays the same.
    fn register(&self, body: &[u8]) -> Response<Full<Bytes>> {
        let parsed: Option<SocketAddr> =
            serde_json::from_slice::<Value>(body).ok().and_then(|body| {
                let ip = body.get("rank_ip")?.as_str()?.parse().ok()?;
                let port = u16::try_from(body.get("rank_port")?.as_u64()?).ok()?;
                Some(SocketAddr::new(ip, port))
            });
        match parsed {
            Some(rank) if rank.ip() == self.rank.ip() || !rank.ip().is_unspecified() => {
                *self
                    .registered
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = Some(rank);
                text(StatusCode::OK, "OK")
            }
            _ => text(StatusCode::BAD_REQUEST, "rank_ip and rank_port are needed"),
        }
    }

    fn register_dp_rank(&self, body: &[u8]) -> Response<Full<Bytes>> {
        let Ok(body) = serde_json::from_slice::<Value>(body) else {
            return text(StatusCode::BAD_REQUEST, "not JSON");
        };
        let (Some(room), Some(rank)) = (
            body.get("bootstrap_room"),
            body.get("dp_rank").and_then(Value::as_u64),
        ) else {
            return text(
                StatusCode::BAD_REQUEST,
                "bootstrap_room and dp_rank are needed",
            );
        };
        self.dp_ranks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(room.to_string(), rank);
        text(StatusCode::OK, "OK")
    }

    fn query_dp_ranks(&self, body: &[u8]) -> Response<Full<Bytes>> {
        let known = self.dp_ranks.lock().unwrap_or_else(PoisonError::into_inner);
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let rooms = body
            .get("bootstrap_rooms")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let found: serde_json::Map<String, Value> = rooms
            .iter()
            .map(Value::to_string)
            .filter_map(|room| known.get(&room).map(|&rank| (room.clone(), rank.into())))
            .collect();
        json_response(&Value::Object(found))
    }
}

/// Sends a GET to the registry at `address` (`host:port`); none unless the response is 200 with JSON.
pub(crate) async fn ask(address: &str, path: &str) -> Option<Value> {
    let asking = async {
        let stream = TcpStream::connect(address).await.ok()?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .ok()?;
        let request = Request::get(path)
            .header("host", address)
            .header("connection", "close")
            .body(Empty::<Bytes>::new())
            .ok()?;
        let exchange = async {
            let response = sender.send_request(request).await.ok()?;
            let ok = response.status() == StatusCode::OK;
            let body = response.into_body().collect().await.ok()?.to_bytes();
            if ok {
                serde_json::from_slice(&body).ok()
            } else {
                None
            }
        };
        tokio::pin!(connection);
        tokio::pin!(exchange);
        // The connection may end first, when it has read the response already.
        tokio::select! {
            response = &mut exchange => response,
            _ = &mut connection => exchange.await,
        }
    };
    tokio::time::timeout(ASK_TIMEOUT, asking)
        .await
        .ok()
        .flatten()
}

fn topology(api_port: u16, dp_size: u32) -> Value {
    json!({"attn_tp_size":1,"attn_cp_size":1,"dp_size":dp_size,"pp_size":1,"page_size":1,"kv_cache_dtype":"auto",
        "follow_bootstrap_room":true,"enable_dsa_cache_layer_split":false,"decode_allocation_policy":"early",
        "enable_kv_cache_sharding":false,"prefill_http_port":api_port,"target_tp_rank":null,
        "target_tp_ranks":null,"target_cp_ranks":null,"target_pp_ranks":null,"required_dst_info_num":null,
        "required_prefill_response_num":null})
}

fn query_number(query: &str, name: &str) -> Option<i64> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.parse().ok())
}

fn json_response(value: &Value) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::OK, &value.to_string());
    set_content_type(&mut response, "application/json; charset=utf-8");
    response
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *response.status_mut() = status;
    set_content_type(&mut response, "text/plain; charset=utf-8");
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_LENGTH, body.len().into());
    headers.insert(http::header::DATE, http_date());
    let server = http::HeaderValue::from_static("Python/3.11 aiohttp/3.14.5");
    headers.insert(http::header::SERVER, server);
    response
}

fn set_content_type(response: &mut Response<Full<Bytes>>, value: &'static str) {
    let value = http::HeaderValue::from_static(value);
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, value);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn registry() -> Arc<Registry> {
        Registry::new("127.0.0.1:4321".parse().unwrap(), 30000, 1)
    }

    async fn body(response: Response<Full<Bytes>>) -> (u16, String) {
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn the_rank_is_announced_and_others_are_unknown() {
        let registry = registry();
        let query = FIRST_RANK.split_once('?').unwrap().1;
        let (status, rank) = body(registry.route(query)).await;
        assert_eq!(
            (status, rank.as_str()),
            (200, r#"{"rank_ip":"127.0.0.1","rank_port":4321}"#)
        );
        let (status, _) = body(registry.route(&query.replace("dp_rank=0", "dp_rank=7"))).await;
        assert_eq!(status, 404);
        let (status, _) = body(registry.route("prefill_dp_rank=7")).await;
        assert_eq!(status, 400);
    }

    #[tokio::test]
    async fn nothing_is_announced_before_the_rank_registered() {
        let registry = registry();
        *registry.registered.lock().unwrap() = None;
        let query = TOPOLOGY.split_once('?').unwrap().1;
        assert_eq!(body(registry.route(query)).await.0, 503);
        let put = br#"{"rank_ip":"127.0.0.1","rank_port":99}"#;
        assert_eq!(body(registry.register(put)).await.0, 200);
        assert_eq!(body(registry.route(query)).await.0, 200);
    }

    #[tokio::test]
    async fn dp_ranks_are_kept_per_room_beyond_53_bits() {
        let registry = registry();
        let put = br#"{"bootstrap_room":9223372036854775807,"dp_rank":3}"#;
        assert_eq!(body(registry.register_dp_rank(put)).await.0, 200);
        let query = br#"{"bootstrap_rooms":[9223372036854775807,9223372036854775806]}"#;
        let (_, found) = body(registry.query_dp_ranks(query)).await;
        assert_eq!(found, r#"{"9223372036854775807":3}"#);
    }
}
