//! The real NATS server as it is measured: what it uses, and what it called an error.

use std::time::Instant;

use anyhow::Context as _;
use testkit::nats::NatsServer;

use crate::server::Pid;

/// A running server. Killed when dropped.
pub(crate) struct Nats {
    server: NatsServer,
    pub(crate) pid: Pid,
    /// The lines of its log that are errors or warnings, of all its lives.
    errors: Vec<String>,
}

/// Written to disk at once, which is what costs a store the most.
const CONFIG: &str = "listen: \"127.0.0.1:@PORT@\"\njetstream { store_dir: \"@DIR@/data\", sync_interval: always }\n";

impl Nats {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("cannot make a directory")?;
        let server = NatsServer::try_launch(directory, CONFIG.to_owned()).await.map_err(anyhow::Error::msg)?;
        let pid = pid(&server)?;
        Ok(Self { server, pid, errors: Vec::new() })
    }

    /// Its address.
    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    /// When it last said that it is ready.
    pub(crate) fn ready(&self) -> Instant {
        self.server.ready
    }

    /// Stops it without ending it: connections stay open, and nothing is answered.
    pub(crate) fn freeze(&self) {
        self.server.freeze();
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.server.thaw();
    }

    /// Ends it as a crash does, and waits until it is gone.
    pub(crate) async fn kill(&mut self) {
        self.server.kill().await;
        self.keep_errors();
    }

    /// Starts it again with what it kept, once it was killed.
    pub(crate) async fn start_again(&mut self) -> anyhow::Result<()> {
        self.server.try_start_again().await.map_err(anyhow::Error::msg)?;
        self.pid = pid(&self.server)?;
        Ok(())
    }

    /// What it called an error, in words for a fault.
    pub(crate) fn faults(&mut self) -> Vec<String> {
        self.keep_errors();
        let first = self.errors.first();
        first
            .map(|first| format!("{} errors in the server's log, the first: {first}", self.errors.len()))
            .into_iter()
            .collect()
    }

    fn keep_errors(&mut self) {
        self.errors.extend(self.server.take_lines().into_iter().filter(|line| is_error(line)));
    }
}

fn pid(server: &NatsServer) -> anyhow::Result<Pid> {
    Pid::new(server.pid()).context("the NATS server ended at once")
}

fn is_error(line: &str) -> bool {
    ["[ERR]", "[FTL]", "[WRN]"].iter().any(|mark| line.contains(mark))
}
