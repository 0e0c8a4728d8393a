//! The client of the API server: credentials, and what is added to every request.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{Request, Response};
use kube::client::{Body, Client, ClientBuilder};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use tower::layer::layer_fn;
use tower::limit::RateLimitLayer;
use tower::{BoxError, Service};

/// How long the server lets a watch run. A connection that has died unnoticed is noticed a few seconds after that.
pub(super) const WATCH_SECONDS: u32 = 120;

/// The longest silence of a connection: a watch is not silent for longer, and a list that hangs ends.
const READ_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 10);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests of one watch in [`PACE`], at most. A server that ends each watch at once would else be asked without a pause.
const REQUESTS: u64 = 10;
const PACE: Duration = Duration::from_secs(2);

/// A client with the credentials of the kubeconfig at this path. Without one, as `kubectl` finds them: `KUBECONFIG`,
/// `~/.kube/config`, then the service account of the pod. `on_watch` is called when the server has begun a watch.
///
/// # Errors
/// Those of the kubeconfig, of the service account and of TLS.
pub(super) async fn connect(
    kubeconfig: Option<&Path>,
    on_watch: impl Fn() + Clone + Send + 'static,
) -> Result<Client, kube::Error> {
    let mut config = match kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?
        }
        None => Config::infer().await.map_err(kube::Error::InferConfig)?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    // The watch has its own.
    config.default_retry = false;
    let builder = ClientBuilder::try_from(config)?
        .with_layer(&RateLimitLayer::new(REQUESTS, PACE))
        .with_layer(&layer_fn(move |inner| Noted {
            inner,
            on_watch: on_watch.clone(),
        }));
    Ok(builder.build())
}

/// Tells when a watch begins: the stream of events is silent about it until something changes.
struct Noted<S, F> {
    inner: S,
    on_watch: F,
}

impl<S, B, F> Service<Request<Body>> for Noted<S, F>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
    F: Fn() + Clone + Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let query = request.uri().query().unwrap_or_default();
        let is_watch = query.split('&').any(|pair| pair.starts_with("watch="));
        let response = self.inner.call(request);
        let on_watch = self.on_watch.clone();
        Box::pin(async move {
            let response = response.await?;
            let status = response.status();
            let is_json = response.headers().get(CONTENT_TYPE).is_some_and(|kind| {
                let kind = kind.as_bytes();
                kind.starts_with(b"application/json")
            });
            match (is_watch, status.is_success()) {
                (true, true) => on_watch(),
                // kube would read the page of a proxy as events.
                (true, false) if !is_json => return Err(format!("HTTP status {status}").into()),
                _ => {}
            }
            Ok(response)
        })
    }
}
