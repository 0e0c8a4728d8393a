//! The balancer as a library, on a runtime that is one thread, and what this thread allocates: its own work and
//! nobody else's, since workers and clients live on another thread. The log line of each request is made as in the
//! binary, and thrown away.
//!
//! Beside it a plain proxy of Pingora, with one leg and nothing of ours: the floor.

use std::future::Future;
use std::io::sink;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::sync::{Arc, Once};
use std::thread;

use allocation_counter::{AllocationInfo, measure};
use env_logger::Target;
use mini_lb::MiniLoadBalancer;
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{Fds, ListenFds};
use pingora_core::services::Service;
use pingora_proxy::http_proxy_service;
use support::plain_proxy::Plain;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::yield_now;

use crate::{Counts, Watched};
use support::{Worker, config};

/// After so many turns of the runtime, each of which looks at all sockets, nothing is left that could be done.
const TURNS: usize = 64;

/// Where the answer goes.
type Question = oneshot::Sender<AllocationInfo>;
type Questions = mpsc::UnboundedSender<Question>;

static LOG: Once = Once::new();

/// A balancer on its thread, which ends with this.
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

    /// One client and one answer at a time: there is nothing to hold it for.
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

/// A thread that ends with the other end of the channel. Between two questions everything that it allocates is
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
                // Nobody waits for the answer when a test has failed.
                Some(answer) => drop(answer.send(totals)),
                None => return,
            }
        }
    });
    questions
}
