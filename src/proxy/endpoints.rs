//! Endpoints without legs: a whole request in, a whole response out.

use bytes::Bytes;
use http::header;
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

use super::Proxy;
use super::request::RequestContext;
use crate::client::{self, Listener};
use crate::endpoint::{ERROR_CODE, REQUEST_ID, WholeRequest, WholeResponse};
use crate::error::{ProxyError, REJECTED};

impl Proxy {
    /// Reads the request, has it answered, and writes the response.
    ///
    /// # Errors
    /// The body cannot be read, or the client has left.
    pub(super) async fn serve_endpoint(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        if ctx.rules.cors.is_preflight(session.req_header()) {
            return self.answer_preflight(session, ctx).await;
        }
        let (request, at_end) = self.read_whole(session, ctx).await?;
        let responding = self.endpoints.respond(request, &ctx.record.request_id);
        let response = tokio::select! {
            response = responding => response,
            // A client can be watched only after its body was read.
            left = client::interrupted(session), if at_end => return Err(left),
        };
        note_response(ctx, &response);
        self.announce_shutdown(session);
        self.write(session, response, ctx).await
    }

    /// Answers the question of a browser whether a page may send a request. No worker is asked, and no key is needed:
    /// browsers send none.
    async fn answer_preflight(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        client::drain_body(session, ctx.rules.limits.body_timeout).await?;
        let Some(response) = ctx.rules.cors.preflight(&session.req_header().headers) else {
            return Err(ctx.refuse(ProxyError::OriginNotAllowed));
        };
        note_response(ctx, &response);
        self.announce_shutdown(session);
        self.write(session, response, ctx).await
    }

    /// Writes a whole response, with its framing, the request id, and the fields for a page of another origin. Every
    /// response that does not stream from decode leaves here.
    ///
    /// # Errors
    /// The client has left.
    pub(super) async fn write(
        &self,
        session: &mut Session,
        response: WholeResponse,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        let mut head = ResponseHeader::build(response.status, Some(response.headers.len() + 2))?;
        for (name, value) in &response.headers {
            head.append_header(name, value)?;
        }
        head.insert_header(header::CONTENT_LENGTH, response.body.len())?;
        head.insert_header(REQUEST_ID, &ctx.record.request_id)?;
        if !ctx.is_page {
            ctx.rules
                .cors
                .apply(&session.req_header().headers, &mut head)?;
        }
        ctx.add_timing(&mut head)?;
        session.write_response_header(Box::new(head), false).await?;
        // Pingora sends no body in response to HEAD.
        session.write_response_body(Some(response.body), true).await
    }

    /// The whole request, and whether the end of its body was reached.
    async fn read_whole(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
    ) -> Result<(WholeRequest, bool)> {
        let head = session.req_header();
        let limit = self.endpoints.body_limit(&head.method, head.uri.path());
        let limit = limit.min(ctx.rules.limits.max_body_bytes);
        let mut request = WholeRequest {
            method: head.method.clone(),
            path: head.uri.path().to_owned(),
            query: head.uri.query().map(str::to_owned),
            headers: head.headers.clone(),
            body: Bytes::new(),
            is_keyed: ctx.rules.keys.has_client_keys(),
            // Such a request without its key has been refused.
            is_trusted: ctx.listener == Listener::Admins || ctx.rules.keys.has_client_keys(),
        };
        let timeout = ctx.rules.limits.body_timeout;
        if limit == 0 {
            let at_end = client::drain_body(session, timeout).await?;
            return Ok((request, at_end));
        }
        let share = ctx.share.insert(self.body_memory.share());
        match client::read_body(session, limit, timeout, 0, share).await? {
            Ok(body) => request.body = body.freeze(),
            Err(error) => return Err(ctx.refuse(error.into())),
        }
        ctx.record.request_bytes = request.body.len();
        Ok((request, true))
    }
}

/// Records the response. An error of a worker has no code of ours.
fn note_response(ctx: &mut RequestContext, response: &WholeResponse) {
    ctx.record.status = response.status.as_u16();
    if response.status.is_client_error() || response.status.is_server_error() {
        let code = response.headers.get(ERROR_CODE);
        let code = code.and_then(|code| code.to_str().ok());
        ctx.record.ended = code.unwrap_or(REJECTED).to_owned().into();
        let of_a_worker = || format!("a worker answered {}", response.status);
        ctx.record.error = Some(response.error.clone().unwrap_or_else(of_a_worker));
    }
}
