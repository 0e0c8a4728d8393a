//! A collector that the test plays: it takes OTLP over HTTP and over gRPC, and decodes what it gets.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use support::soon;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// One export as it arrived.
pub(super) struct Export {
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) request: ExportTraceServiceRequest,
}

/// A listening collector.
pub(super) struct Receiver {
    pub(super) address: SocketAddr,
    exports: mpsc::UnboundedReceiver<Export>,
    connections: Arc<AtomicUsize>,
}

/// The protocol of a collector.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Protocol {
    Http,
    Grpc,
}

impl Receiver {
    pub(super) async fn listen(protocol: Protocol) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, exports) = mpsc::unbounded_channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let sender = sender.clone();
                let service = service_fn(move |request| take(request, protocol, sender.clone()));
                let stream = TokioIo::new(stream);
                match protocol {
                    Protocol::Http => tokio::spawn(async move {
                        let _ = http1::Builder::new()
                            .serve_connection(stream, service)
                            .await;
                    }),
                    Protocol::Grpc => tokio::spawn(async move {
                        let server = http2::Builder::new(TokioExecutor::new());
                        let _ = server.serve_connection(stream, service).await;
                    }),
                };
            }
        });
        Self {
            address,
            exports,
            connections,
        }
    }

    /// The endpoint as a user writes it.
    pub(super) fn endpoint(&self, protocol: Protocol) -> String {
        match protocol {
            Protocol::Http => format!("http://{}", self.address),
            Protocol::Grpc => self.address.to_string(),
        }
    }

    pub(super) async fn export(&mut self) -> Export {
        let export = soon("an export of spans", self.exports.recv()).await;
        export.unwrap()
    }

    /// All spans of the exports so far, at least one.
    pub(super) async fn spans(&mut self) -> Vec<Span> {
        let mut exports = vec![self.export().await];
        exports.extend(std::iter::from_fn(|| self.exports.try_recv().ok()));
        let resources = exports.into_iter().flat_map(|e| e.request.resource_spans);
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        scopes.flat_map(|scope| scope.spans).collect()
    }

    /// Whether a connection was ever opened.
    pub(super) fn was_reached(&self) -> bool {
        self.connections.load(Ordering::SeqCst) > 0
    }
}

async fn take(
    request: Request<Incoming>,
    protocol: Protocol,
    sender: mpsc::UnboundedSender<Export>,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let grpc = protocol == Protocol::Grpc;
    let message = match grpc {
        true => {
            let (prefix, message) = body.split_at(5);
            let length = u32::from_be_bytes(prefix[1..].try_into().unwrap());
            assert_eq!((prefix[0], length as usize), (0, message.len()));
            Bytes::copy_from_slice(message)
        }
        false => body,
    };
    let _ = sender.send(Export {
        path: head.uri.path().to_owned(),
        headers: head.headers,
        request: ExportTraceServiceRequest::decode(message).unwrap(),
    });
    let mut trailers = HeaderMap::new();
    if grpc {
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
    }
    // An empty message, which gRPC has its length in front of.
    let body = Bytes::from_static(if grpc { &[0; 5] } else { &[] });
    let trailers = std::future::ready(grpc.then_some(Ok(trailers)));
    let mut response = Response::new(Full::new(body).with_trailers(trailers));
    let kind = if grpc {
        "application/grpc"
    } else {
        "application/x-protobuf"
    };
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

/// The value of an attribute, as text.
pub(super) fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    Some(match found.value.clone()?.value? {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    })
}
