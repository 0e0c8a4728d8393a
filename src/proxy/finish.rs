//! The end of a request: the response to an error, and the record.

use http::StatusCode;
use pingora::proxy::{FailToProxy, Session};
use pingora::{Error, ErrorSource};

use super::Proxy;
use super::request::RequestContext;
use crate::error::{Fault, ProxyError};

/// The connection ends without another response.
const CLOSED: FailToProxy = FailToProxy {
    error_code: 0,
    can_reuse_downstream: false,
};

impl Proxy {
    /// Responds with the fault of a request that has failed: as a response, or, once the first byte is gone, as the last
    /// event of the stream.
    pub(super) async fn respond_with_error(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut RequestContext,
    ) -> FailToProxy {
        ctx.restore(session);
        if ctx.is_delivered() {
            // The client has its whole response; it may have left.
            let _ = session.write_response_body(None, true).await;
            return CLOSED;
        }
        let decided = ctx.is_decided(error) || *error.esource() == ErrorSource::Downstream;
        if !decided {
            ctx.refuse(ProxyError::Internal(error.to_string()));
        }
        let Some(fault) = ctx.take_fault(error) else {
            return CLOSED;
        };
        if let Some(seat) = &ctx.seat {
            seat.fail(fault);
            return CLOSED;
        }
        if !ctx.head_is_out() {
            return self.write_fault(session, fault, ctx).await;
        }
        if ctx.record.status == 0 {
            // A head of our own is out.
            ctx.record.status = StatusCode::OK.as_u16();
        }
        if let Some(event) = ctx.error_event(&fault, self.engine()) {
            // The client may have left as well. The body stays without its end, because the connection closes: a client
            // that took it for complete would send its next request there.
            let _ = session.write_response_body(Some(event), false).await;
        }
        CLOSED
    }

    async fn write_fault(
        &self,
        session: &mut Session,
        fault: Fault,
        ctx: &mut RequestContext,
    ) -> FailToProxy {
        self.announce_shutdown(session);
        ctx.record.status = fault.status().as_u16();
        let reusable = session.is_body_done() && !fault.ends_connection();
        if !reusable {
            session.set_keepalive(None);
        }
        let response = fault.response(self.engine().error_shape(ctx.record.route));
        match self.write(session, response, ctx).await {
            // Pingora itself keeps the connection only of a request that was not sent to a worker. Samples are sent over
            // sessions of their own.
            Ok(()) => {
                let sent = ctx.record.pair.is_some() && ctx.record.samples == 0;
                ctx.keeps = reusable && sent;
            }
            Err(error) => log::debug!(
                "response not written request_id={:?} error={error}",
                ctx.record.request_id
            ),
        }
        FailToProxy {
            error_code: ctx.record.status,
            can_reuse_downstream: reusable,
        }
    }

    /// Ends the request: the client's session goes back to Pingora, or its connection to the listener, prefill's leg may
    /// finish, the record is complete.
    pub(super) async fn finish(
        &self,
        session: &mut Session,
        error: Option<&Error>,
        ctx: &mut RequestContext,
    ) {
        ctx.restore(session);
        ctx.finish(session.body_bytes_sent(), &self.telemetry);
        let served = (error.is_none() || ctx.is_delivered()) && ctx.record.status < 300;
        let stream_error = ctx.stream_error();
        if served && let Some(attempt) = ctx.attempt.as_mut() {
            match stream_error {
                None => attempt.report_success(),
                Some(error) => attempt.report_stream_error(error),
            }
            self.note_served(ctx);
        }
        if ctx.keeps
            && let Some(kept) = ctx.kept.take()
        {
            kept.keep(session).await;
        }
    }
}
