//! The balancer as a library on a runtime with one thread, and the allocations of this thread: only those of the
//! balancer, since workers and clients run on another thread. The log line of each request is formatted as in the
//! binary, and discarded.
//!
//! A plain Pingora proxy with one leg is counted for comparison.

use std::future::Future;
use std::io::sink;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::sync::{Arc, Once};
use std::thread;

use allocation_counter::{AllocationInfo, measure};
use env_logger::Target;
use mini_lb::MiniLoadBalancer;
use pingora::proxy::http_proxy_service;
use pingora::server::configuration::ServerConf;
use pingora::server::{Fds, ListenFds};
use pingora::services::Service;
use support::plain_proxy::Plain;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::yield_now;

use crate::{Counts, Watched};
use support::{Worker, config};

/// After this many turns of the runtime, each of which polls all sockets, no work is left.
const TURNS: usize = 64;

/// The sender for the answer to one question.
type Question = oneshot::Sender<AllocationInfo>;
type Questions = mpsc::UnboundedSender<Question>;

static LOG: Once = Once::new();

/// A balancer on its thread, which ends when this is dropped.
pub(crate) struct Allocated {
    pub(crate) address: SocketAddr,
    questions: Questions,
}

impl Allocated {
    pub(crate) async fn start(prefill: &Worker, decode: &Worker) -> Self {
        LOG.call_once(|| {
            let mut logger = env_logger::Builder::new();
            logger.target(Target::Pipe(Box::new(sink())));
            logger.parse_filters("info,pingora=warn").init();
        });
        let balancer = MiniLoadBalancer::new(config(&[prefill.url()], &[decode.url()])).unwrap();
        let handle = balancer.handle();
        let questions = on_its_thread(async { balancer.start().await.unwrap() });
        Allocated {
            address: handle.address().await.unwrap(),
            questions,
        }
    }

    /// Pingora alone.
    pub(crate) fn plain(worker: &Worker) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        Allocated {
            address,
            questions: on_its_thread(serve_plainly(socket, Plain::new(vec![worker.address]))),
        }
    }

    /// Bytes that the balancer holds now.
    pub(crate) async fn held(&self) -> i64 {
        self.ask().await.bytes_current
    }

    async fn ask(&self) -> AllocationInfo {
        let (answer, answered) = oneshot::channel();
        self.questions.send(answer).unwrap();
        answered.await.unwrap()
    }
}

impl Watched for Allocated {
    async fn quiet(&self) {
        self.ask().await;
    }

    /// With one client and one response at a time there is no need to hold the balancer.
    async fn hold(&self) -> impl Sized {}

    async fn woken(&self) {}

    async fn totals(&self) -> Counts {
        let info = self.ask().await;
        [
            ("allocations", info.count_total),
            ("bytes", info.bytes_total),
        ]
        .map(|(name, count)| (name.to_owned(), count as f64))
        .into()
    }
}

async fn serve_plainly(socket: TcpListener, proxy: Plain) {
    socket.set_nonblocking(true).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let mut service = http_proxy_service(&Arc::new(ServerConf::default()), proxy);
    service.add_tcp(&address);
    let mut sockets = Fds::new();
    sockets.add(address, socket.into_raw_fd());
    let (_open, closed) = watch::channel(false);
    service
        .start_service(Some(ListenFds::new(sockets.into())), closed, 1)
        .await;
}

/// Starts a thread that ends with the other end of the channel. Everything that it allocates between two questions
/// counted.
fn on_its_thread(served: impl Future<Output = ()> + Send + 'static) -> Questions {
    let (questions, mut asked) = mpsc::unbounded_channel::<Question>();
    thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.spawn(served);
        let mut totals = AllocationInfo::default();
        loop {
            let mut question = None;
            totals += measure(|| {
                question = runtime.block_on(async {
                    let question = asked.recv().await;
                    for _ in 0..TURNS {
                        yield_now().await;
                    }
                    question
                });
            });
            match question {
                // The receiver is gone when a test has failed.
                Some(answer) => drop(answer.send(totals)),
                None => return,
            }
        }
    });
    questions
}
