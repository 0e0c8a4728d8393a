//! The queue of spans that wait to be exported, and the thread that empties it, both the SDK's.
//!
//! A request that ends never waits: where the queue is full its spans are dropped and counted. The SDK counts them for itself
//! alone, so that the places of its queue are counted here, too.

use std::fmt::{self, Debug};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanExporter, SpanProcessor,
};

use super::transport::Transport;
use super::variables::Variables;
use crate::telemetry::DroppedSpans;

/// How long the process waits at its end for spans to be exported.
pub(super) const FLUSH: Duration = Duration::from_secs(5);

/// Takes spans and exports them.
pub(super) struct Exporter {
    /// Started with the first span: a process in the background has forked by then.
    processor: OnceLock<BatchSpanProcessor>,
    /// Until then.
    to: Mutex<Option<Counted>>,
    capacity: usize,
    waiting: Arc<AtomicUsize>,
    dropped: Arc<DroppedSpans>,
}

/// The SDK's exporter, whose failures are counted and logged.
struct Counted {
    exporter: opentelemetry_otlp::SpanExporter,
    waiting: Arc<AtomicUsize>,
    dropped: Arc<DroppedSpans>,
    /// Whether the last export has failed: only a change is logged.
    fails: AtomicBool,
}

impl Exporter {
    /// An exporter to the endpoint of these variables. Nothing is contacted yet.
    ///
    /// # Errors
    /// What is wrong with the variables, in a sentence.
    pub(super) fn new(variables: &Variables, dropped: Arc<DroppedSpans>) -> Result<Self, String> {
        let transport = Transport::new(variables)?;
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(transport)
            .with_endpoint(&*variables.endpoint.uri)
            .build();
        let mut exporter = exporter.map_err(|error| error.to_string())?;
        exporter.set_resource(&resource(variables));
        let waiting = Arc::<AtomicUsize>::default();
        let to = Counted {
            exporter,
            waiting: waiting.clone(),
            dropped: dropped.clone(),
            fails: AtomicBool::new(false),
        };
        Ok(Self {
            processor: OnceLock::new(),
            to: Mutex::new(Some(to)),
            capacity: variables.queue,
            waiting,
            dropped,
        })
    }

    /// Takes a span, or drops it where too many wait.
    pub(super) fn add(&self, span: SpanData) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.capacity {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.dropped.queue_full.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if let Some(processor) = self.processor() {
            processor.on_end(span);
        }
    }

    fn processor(&self) -> Option<&BatchSpanProcessor> {
        if let Some(processor) = self.processor.get() {
            return Some(processor);
        }
        // A second thread waits here until the first one has started it.
        let mut to = self.to.lock().ok()?;
        if let Some(to) = to.take() {
            let config = BatchConfigBuilder::default().with_max_queue_size(self.capacity);
            let processor = BatchSpanProcessor::new(to, config.build());
            let _ = self.processor.set(processor);
        }
        self.processor.get()
    }

    /// Exports what waits, for [`FLUSH`] at most. No span is exported after it.
    pub(super) fn flush(&self) {
        let Some(processor) = self.processor.get() else {
            return;
        };
        if let Err(why) = processor.shutdown_with_timeout(FLUSH) {
            let waiting = self.waiting.load(Ordering::Relaxed);
            log::warn!("not all spans were exported before the end waiting={waiting} why={why}");
        }
    }
}

fn resource(variables: &Variables) -> Resource {
    let version = opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let builder = Resource::builder().with_attribute(version);
    match variables.service_name {
        Some(name) => builder.with_service_name(name).build(),
        None => builder.build(),
    }
}

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        // They have left the queue.
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
        let exported = self.exporter.export(batch).await;
        let failed = &self.dropped.export_failed;
        match &exported {
            Ok(()) if self.fails.swap(false, Ordering::Relaxed) => {
                log::info!("traces are exported again");
            }
            Ok(()) => {}
            Err(why) => {
                failed.fetch_add(spans as u64, Ordering::Relaxed);
                if !self.fails.swap(true, Ordering::Relaxed) {
                    log::warn!("traces are not exported, their spans are dropped: {why}");
                }
            }
        }
        exported
    }
}

impl Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counted").finish_non_exhaustive()
    }
}
