//! An API server: lists and watches of pods and EndpointSlices, over TLS, with a bearer token. The test changes the objects,
//! and breaks what it likes.
//!
//! As a kube-apiserver it numbers every change, sends a watch the changes after its version, tells a watch with a selector
//! that an object which matches no longer is deleted, and knows changes for a limited time only. Each event comes in two
//! chunks.
//!
//! Source: Kubernetes, "API Concepts" (lists, watches, bookmarks, 410, chunks); error bodies as kube-apiserver writes them.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use support::soon;
use support::tls::{Authority, Signed};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::asked::Asked;

type Body = BoxBody<Bytes, std::io::Error>;

/// A change of an object; the one that was there before, and the one that is.
struct Change {
    version: u64,
    resource: String,
    old: Option<Value>,
    new: Option<Value>,
}

impl Change {
    /// The event of a watch, if it has one.
    fn event(&self, watch: &Asked) -> Option<Value> {
        if watch.resource != self.resource {
            return None;
        }
        let covered = |object: &Option<Value>| object.clone().filter(|object| watch.covers(object));
        match (covered(&self.old), covered(&self.new)) {
            (None, None) => None,
            (None, Some(new)) => Some(json!({ "type": "ADDED", "object": new })),
            (Some(_), Some(new)) => Some(json!({ "type": "MODIFIED", "object": new })),
            (Some(old), None) => {
                // With the version of the change, so that a watch can go on from there.
                let mut object = self.new.clone().unwrap_or(old);
                object["metadata"]["resourceVersion"] = json!(self.version.to_string());
                Some(json!({ "type": "DELETED", "object": object }))
            }
        }
    }
}

/// A watch that is open.
struct Open {
    asked: Asked,
    /// `None` breaks the connection in the middle of a chunk.
    events: mpsc::UnboundedSender<Option<Value>>,
}

#[derive(Default)]
struct Objects {
    version: u64,
    /// Changes before this version are forgotten.
    oldest: u64,
    objects: BTreeMap<(String, String), Value>,
    changes: Vec<Change>,
    watches: Vec<Open>,
    token: String,
    denied: BTreeSet<(&'static str, &'static str)>,
    is_away: bool,
    /// The most objects of a response.
    page: Option<usize>,
}

/// A running server. It ends with the test's runtime.
pub(crate) struct ApiServer {
    /// `https://127.0.0.1:port`.
    pub(crate) url: String,
    pub(crate) authority: Authority,
    objects: Arc<Mutex<Objects>>,
    asked: mpsc::UnboundedReceiver<Asked>,
}

impl ApiServer {
    /// A server without objects, for this token.
    pub(crate) async fn start(token: &str) -> Self {
        let authority = Authority::generate();
        let signed: Signed = authority.sign(&["127.0.0.1"]);
        let acceptor = TlsAcceptor::from(Arc::new(Authority::server(&signed, None)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let objects = Arc::new(Mutex::new(Objects {
            version: 1000,
            token: token.to_owned(),
            ..Objects::default()
        }));
        let (sender, asked) = mpsc::unbounded_channel();
        let of_server = objects.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (objects, sender) = (of_server.clone(), sender.clone());
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // The balancer may close a connection at any time.
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(move |request| {
                        let response = respond(&objects, &sender, &request);
                        async move { response.ok_or(std::io::Error::other("away")) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            url,
            authority,
            objects,
            asked,
        }
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap()
    }

    /// Creates an object, or replaces it. The version of the change.
    pub(crate) fn put(&self, resource: &str, mut object: Value) -> u64 {
        let mut objects = self.objects();
        let version = objects.next_version();
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let old = objects
            .objects
            .insert(key(resource, &object), object.clone());
        objects.note(resource, old, Some(object));
        version
    }

    /// Deletes an object, which must be there. The version of the change.
    pub(crate) fn delete(&self, resource: &str, object: &Value) -> u64 {
        let mut objects = self.objects();
        let version = objects.next_version();
        let old = objects.objects.remove(&key(resource, object));
        assert!(old.is_some(), "{object}");
        objects.note(resource, old, None);
        version
    }

    /// Tells all watches the version that they are at. It is the version of no object.
    pub(crate) fn bookmark(&self) -> u64 {
        let mut objects = self.objects();
        let version = objects.next_version();
        objects.send(|watch| {
            let kind = if watch.resource == "pods" {
                "Pod"
            } else {
                "EndpointSlice"
            };
            let metadata = json!({ "resourceVersion": version.to_string() });
            let group = if kind == "Pod" {
                "v1"
            } else {
                "discovery.k8s.io/v1"
            };
            let object = json!({ "kind": kind, "apiVersion": group, "metadata": metadata });
            json!({ "type": "BOOKMARK", "object": object })
        });
        version
    }

    /// Forgets all changes so far: a watch from an earlier version gets 410.
    pub(crate) fn forget(&self) {
        let mut objects = self.objects();
        objects.oldest = objects.next_version();
        objects.changes.clear();
    }

    /// Tells all watches by an event that their version is too old, and ends them.
    pub(crate) fn expire_watches(&self) {
        let mut objects = self.objects();
        objects.send(|_| json!({ "type": "ERROR", "object": expired() }));
        objects.watches.clear();
    }

    /// Ends all watches, as the server does after their time.
    pub(crate) fn end_watches(&self) {
        self.objects().watches.clear();
    }

    /// Breaks the connections of all watches in the middle of an event.
    pub(crate) fn break_watches(&self) {
        for watch in self.objects().watches.drain(..) {
            let _ = watch.events.send(None);
        }
    }

    /// Whether connections are closed without a response. Those of watches are broken.
    pub(crate) fn set_away(&self, is_away: bool) {
        self.objects().is_away = is_away;
        self.break_watches();
    }

    /// Only this token is good from now on.
    pub(crate) fn set_token(&self, token: &str) {
        self.objects().token = token.to_owned();
    }

    /// The account has not this right.
    pub(crate) fn deny(&self, verb: &'static str, resource: &'static str) {
        self.objects().denied.insert((verb, resource));
    }

    /// It has all rights.
    pub(crate) fn allow(&self) {
        self.objects().denied.clear();
    }

    /// A list has at most this many objects at once.
    pub(crate) fn set_page(&self, objects: usize) {
        self.objects().page = Some(objects);
    }

    /// The next request.
    pub(crate) async fn next(&mut self) -> Asked {
        self.asked.recv().await.expect("the server runs")
    }

    /// The next request with this verb.
    pub(crate) async fn asked(&mut self, verb: &str) -> Asked {
        loop {
            let asked = soon(&format!("a {verb}"), self.next()).await;
            if asked.verb == verb {
                return asked;
            }
        }
    }

    /// The requests since the last call.
    pub(crate) fn all_asked(&mut self) -> Vec<Asked> {
        std::iter::from_fn(|| self.asked.try_recv().ok()).collect()
    }
}

impl Objects {
    fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn note(&mut self, resource: &str, old: Option<Value>, new: Option<Value>) {
        let change = Change {
            version: self.version,
            resource: resource.to_owned(),
            old,
            new,
        };
        for watch in &self.watches {
            if let Some(event) = change.event(&watch.asked) {
                let _ = watch.events.send(Some(event));
            }
        }
        self.changes.push(change);
    }

    fn send(&self, event: impl Fn(&Asked) -> Value) {
        for watch in &self.watches {
            let _ = watch.events.send(Some(event(&watch.asked)));
        }
    }

    fn list(&self, asked: &Asked) -> Response<Body> {
        let all = self.objects.iter();
        let all: Vec<_> = all
            .filter(|((resource, _), object)| *resource == asked.resource && asked.covers(object))
            .map(|(_, object)| object.clone())
            .collect();
        let begin = asked.number("continue").unwrap_or(0);
        let limits = [asked.number("limit"), self.page];
        let limit = limits.into_iter().flatten().min().unwrap_or(usize::MAX);
        let end = all.len().min(begin.saturating_add(limit));
        let mut metadata = json!({ "resourceVersion": self.version.to_string() });
        if end < all.len() {
            metadata["continue"] = json!(end.to_string());
        }
        let list = json!({ "kind": "List", "apiVersion": "v1", "metadata": metadata, "items": all[begin..end] });
        json_response(StatusCode::OK, &list)
    }

    fn watch(&mut self, asked: Asked) -> Response<Body> {
        let version = asked.version();
        if version < self.oldest {
            return json_response(StatusCode::GONE, &expired());
        }
        let (events, receiver) = mpsc::unbounded_channel();
        let missed = self
            .changes
            .iter()
            .filter(|change| change.version > version);
        for event in missed.filter_map(|change| change.event(&asked)) {
            let _ = events.send(Some(event));
        }
        self.watches.push(Open { asked, events });
        let chunks = stream::unfold((receiver, None), next_chunk);
        let body = StreamBody::new(chunks);
        Response::builder()
            .header("content-type", "application/json")
            .body(BodyExt::boxed(body))
            .unwrap()
    }
}

type Rest = (mpsc::UnboundedReceiver<Option<Value>>, Option<Vec<u8>>);

/// The next chunk of a watch: half an event, or the other half.
async fn next_chunk((mut events, rest): Rest) -> Option<(std::io::Result<Frame<Bytes>>, Rest)> {
    if let Some(rest) = rest {
        return Some((Ok(Frame::data(rest.into())), (events, None)));
    }
    Some(match events.recv().await? {
        Some(event) => {
            let mut line = format!("{event}\n").into_bytes();
            let rest = line.split_off(line.len() / 2);
            (Ok(Frame::data(line.into())), (events, Some(rest)))
        }
        None => (Err(std::io::Error::other("broken")), (events, None)),
    })
}

/// `None` closes the connection.
fn respond(
    objects: &Mutex<Objects>,
    sender: &mpsc::UnboundedSender<Asked>,
    request: &Request<Incoming>,
) -> Option<Response<Body>> {
    let asked = Asked::of(request);
    let mut objects = objects.lock().unwrap();
    // The test may have ended.
    let _ = sender.send(asked.clone());
    if objects.is_away {
        return None;
    }
    if asked.token != objects.token {
        let body = status(401, "Unauthorized", "Unauthorized".to_owned());
        return Some(json_response(StatusCode::UNAUTHORIZED, &body));
    }
    if objects
        .denied
        .contains(&(asked.verb, asked.resource.as_str()))
    {
        let body = status(403, "Forbidden", forbidden(&asked));
        return Some(json_response(StatusCode::FORBIDDEN, &body));
    }
    Some(match asked.verb {
        "watch" => objects.watch(asked),
        _ => objects.list(&asked),
    })
}

fn key(resource: &str, object: &Value) -> (String, String) {
    let of = |key: &str| object["metadata"][key].as_str().unwrap();
    let name = format!("{}/{}", of("namespace"), of("name"));
    (resource.to_owned(), name)
}

fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(body.to_string()));
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(body.map_err(|never: Infallible| match never {}).boxed())
        .unwrap()
}

fn status(code: u16, reason: &str, message: String) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

fn expired() -> Value {
    status(
        410,
        "Expired",
        "too old resource version: 1001 (1010)".to_owned(),
    )
}

fn forbidden(asked: &Asked) -> String {
    let place = match &asked.namespace {
        Some(namespace) => format!("in the namespace \"{namespace}\""),
        None => "at the cluster scope".to_owned(),
    };
    format!(
        "{resource} is forbidden: User \"system:serviceaccount:ai:mini-lb\" cannot {verb} resource \"{resource}\" in API \
         group \"{group}\" {place}",
        resource = asked.resource,
        verb = asked.verb,
        group = asked.group,
    )
}
