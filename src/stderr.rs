//! Log lines to stderr without blocking a request.
//!
//! A pipe that is not read fills up, and then a write to it blocks: a log collector that hangs would stop the load
//! balancer. So a thread writes to pipes, and lines that do not fit into its queue are dropped and counted. Files and
//! terminals are written to directly, and so is a daemon's stderr, because a fork does not copy threads.

use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use log::Level;

use crate::Form;

/// The most lines that wait for the thread: a few MiB.
const QUEUE: usize = 8192;

/// The most bytes of one write: the size of a pipe.
const BATCH: usize = 64 << 10;

/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

static WRITER: OnceLock<SyncSender<Message>> = OnceLock::new();

enum Message {
    Line(Vec<u8>),
    /// Answered when all lines before it have been written.
    Flush(SyncSender<()>),
}

/// Whether stderr is a pipe or a socket.
pub(crate) fn may_block() -> bool {
    std::fs::metadata("/proc/self/fd/2").is_ok_and(|stderr| {
        let kind = stderr.file_type();
        kind.is_fifo() || kind.is_socket()
    })
}

/// The logger's end of the queue: one write is one line.
pub(crate) struct Lines {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

impl Lines {
    /// Starts the thread, which lives as long as the process.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn start(form: Form) -> io::Result<Self> {
        let (queue, lines) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let lost = dropped.clone();
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write(&lines, &lost, form, &mut io::stderr()))?;
        let _ = WRITER.set(queue.clone()); // never set before: there is one logger
        Ok(Self { queue, dropped })
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Message::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until the lines so far have been written, or until [`LAST_LINES`] is over.
pub(crate) fn flush() {
    let (done, written) = sync_channel(1);
    if let Some(queue) = WRITER.get()
        && queue.try_send(Message::Flush(done)).is_ok()
    {
        let _ = written.recv_timeout(LAST_LINES); // stderr is not being read
    }
}

/// Writes lines as they come, those that wait together in one write. Errors of a closed stderr are ignored.
fn write(lines: &Receiver<Message>, dropped: &AtomicU64, form: Form, stderr: &mut impl Write) {
    let mut batch = Vec::new();
    let mut waiting = Vec::new();
    while let Ok(first) = lines.recv() {
        let more = std::iter::from_fn(|| lines.try_recv().ok());
        for message in std::iter::once(first).chain(more) {
            match message {
                Message::Line(line) => batch.extend(line),
                Message::Flush(done) => waiting.push(done),
            }
            if batch.len() >= BATCH {
                break;
            }
        }
        let _ = stderr.write_all(&batch);
        batch.clear();
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let message = format!("log lines dropped because stderr was not read lines={lost}");
            let _ = writeln!(stderr, "{}", form.line(Level::Warn, message));
        }
        for done in waiting.drain(..) {
            let _ = done.send(());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_in_their_order_and_lost_ones_are_counted() {
        let (queue, lines) = sync_channel(3);
        let dropped = Arc::new(AtomicU64::new(0));
        let mut log = Lines {
            queue,
            dropped: dropped.clone(),
        };
        for line in ["a\n", "b\n", "c\n", "d\n", "e\n"] {
            assert_eq!(log.write(line.as_bytes()).unwrap(), 2);
        }
        drop(log);
        let mut written = Vec::new();
        write(&lines, &dropped, Form::Text, &mut written);
        let written = String::from_utf8(written).unwrap();
        assert!(
            written.starts_with("a\nb\nc\nlog lines dropped"),
            "{written}"
        );
        assert!(written.ends_with("lines=2\n"), "{written}");
    }

    #[test]
    fn a_closed_stderr_ends_nothing() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (queue, lines) = sync_channel(3);
        let (done, written) = sync_channel(1);
        queue.send(Message::Line(b"a\n".to_vec())).unwrap();
        queue.send(Message::Flush(done)).unwrap();
        drop(queue);
        write(&lines, &AtomicU64::new(0), Form::Json, &mut Closed);
        written.recv().unwrap();
    }
}
