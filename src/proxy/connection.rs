//! One connection of a client: its requests one after the other, and how long it may take to ask.
//!
//! Pingora's own loop bounds each read, so that a client that sends a byte at a time holds a connection for
//! ever. This loop bounds the whole head. What happens once the head is there is the corridor's.
//!
//! Source: pingora-core 0.9.1 `apps/mod.rs` (`process_new`), pingora-proxy 0.9.1 `lib.rs` (`process_new_http`).

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::apps::{HttpServerApp, ReusedHttpStream, ServerApp};
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::ShutdownWatch;
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::{HttpProxy, http_proxy};
use tokio::sync::oneshot;

use super::{CLIENT_IDLE_SECS, Inflight, Proxy};

/// The application of the listener.
pub(crate) struct Connections {
    proxy: Arc<HttpProxy<Proxy>>,
    head_timeout: Duration,
    /// Who is connected. Pingora closes idle connections as soon as it stops listening; here they stay for a
    /// last request, until the process has left.
    open: Arc<Inflight>,
}

impl Connections {
    /// Serves the corridor. The head of a request must be there `head_timeout` after the connection was opened,
    /// or after an idle one was given up.
    pub(crate) fn new(
        conf: &Arc<ServerConf>,
        proxy: Proxy,
        head_timeout: Duration,
        open: Arc<Inflight>,
    ) -> Self {
        Self {
            proxy: Arc::new(http_proxy(conf, proxy)),
            head_timeout,
            open,
        }
    }

    /// Pingora's part, which closes the idle connections of a listener that has ended.
    pub(crate) fn proxy(&self) -> Arc<HttpProxy<Proxy>> {
        self.proxy.clone()
    }

    /// One request. The connection, when another one may follow.
    async fn request(
        &self,
        mut session: ServerSession,
        patience: Duration,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let (arrived, arrival) = oneshot::channel();
        session.set_connection_user_context(Some(Box::new(HeadArrived(arrived))));
        let overdue = async {
            match tokio::time::timeout(patience, arrival).await {
                Err(_) => {}
                // Arrived, or refused by Pingora's parser: either way it is being answered.
                Ok(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            next = self.proxy.process_new_http(session, shutdown) => next,
            () = overdue => {
                log::debug!("connection closed, the head of a request did not arrive in time");
                None
            }
        }
    }
}

/// Told when a head has been read. Pingora hands it to the corridor as the context of the connection.
struct HeadArrived(oneshot::Sender<()>);

/// The corridor has a head.
pub(super) fn note_head(context: Box<dyn Any + Send + Sync>) {
    if let Ok(arrived) = context.downcast::<HeadArrived>() {
        // Nobody waits any more when the deadline has just passed.
        let _ = arrived.0.send(());
    }
}

#[async_trait]
impl ServerApp for Connections {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let _connected = self.open.enter();
        let mut session = ServerSession::new_http1(stream);
        let open = !*shutdown.borrow();
        session.set_keepalive(open.then_some(CLIENT_IDLE_SECS));
        let mut patience = self.head_timeout;
        while let Some(next) = self.request(session, patience, shutdown).await {
            let (stream, settings) = next.consume();
            session = ServerSession::new_http1(stream);
            if let Some(settings) = settings {
                settings.apply_to_session(&mut session);
            }
            // Pingora ends the idle time by itself when nothing comes at all.
            patience = Duration::from_secs(CLIENT_IDLE_SECS) + self.head_timeout;
        }
        None
    }
}
