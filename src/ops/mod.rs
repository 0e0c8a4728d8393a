//! stub
use crate::fleet::Fleet;
use crate::net::{Client, Door, WholeAnswer, WholeRequest};
use async_trait::async_trait;
use http::{HeaderValue, Method, StatusCode};
use std::sync::Arc;
pub(crate) struct Ops;
impl Ops {
    pub(crate) fn new(_: Arc<Fleet>, _: Arc<Client>, _: usize) -> Self {
        Ops
    }
}
#[async_trait]
impl Door for Ops {
    fn body_limit(&self, _m: &Method, _p: &str) -> usize {
        0
    }
    async fn answer(&self, _r: WholeRequest, _i: &HeaderValue) -> WholeAnswer {
        WholeAnswer::new(StatusCode::OK, "text/plain", "ok")
    }
}
