//! What all processes have in common: a log that is read as it comes, an instant at which they are ready, signals.

use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// A line of a log.
#[derive(Debug)]
pub struct Line {
    /// When it was read.
    pub at: Instant,
    /// The line, without its end.
    pub text: String,
}

/// Lines that were read, in their order; it ends with the stream.
pub type Lines = mpsc::UnboundedReceiver<Line>;

/// Reads a stream line by line to its end, whether or not anyone takes the lines: who writes them never waits at a full pipe.
pub fn lines(stream: impl AsyncRead + Unpin + Send + 'static) -> Lines {
    let (sender, receiver) = mpsc::unbounded_channel();
    let mut lines = BufReader::new(stream).lines();
    tokio::spawn(async move {
        while let Ok(Some(text)) = lines.next_line().await {
            // Once nobody takes them, they are dropped.
            let _ = sender.send(Line { at: Instant::now(), text });
        }
    });
    receiver
}

/// What `read` makes of the first line of a log that it makes something of.
///
/// # Errors
/// With all that was read, if the process ends first or the time is over.
pub async fn first<T>(
    name: &str,
    log: &mut Lines,
    limit: Duration,
    mut read: impl FnMut(&Line) -> Option<T>,
) -> Result<T, String> {
    let mut seen = String::new();
    let search = async {
        while let Some(line) = log.recv().await {
            if let Some(found) = read(&line) {
                return Some(found);
            }
            seen.push('\n');
            seen.push_str(&line.text);
        }
        None
    };
    match timeout(limit, search).await {
        Ok(Some(found)) => Ok(found),
        Ok(None) if seen.is_empty() => Err(format!("{name} ended without a word")),
        Ok(None) => Err(format!("{name} ended before it was ready; its log:{seen}")),
        Err(_) => Err(format!("{name} was not ready after {} s; its log:{seen}", limit.as_secs())),
    }
}

/// Sends a signal, such as `TERM`, to a process.
pub fn signal(pid: u32, signal: &str) {
    let status = std::process::Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status();
    assert!(status.unwrap().success(), "cannot send SIG{signal} to process {pid}");
}
