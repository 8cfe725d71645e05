//! Server processes: started on a core of their own, asked for what they used, stopped.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::client::Address;
use crate::floor;
use crate::workload::{CONFIG, Files};

/// What `--stockade` is if it is not given.
pub(crate) const STOCKADE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/stockade");

/// One core for the server under load, one for the generator.
pub(crate) struct Cores {
    server: CpuSet,
    generator: CpuSet,
}

/// A process whose use of the machine can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pid(rustix::process::Pid);

/// A server this process started. Dropped without [`Server::stop`], it is killed.
pub(crate) struct Server {
    child: Child,
    pub(crate) pid: Pid,
    pub(crate) address: Address,
    /// Its admin endpoint, if it has one.
    admin: Option<Address>,
    /// What it reads, for as long as it runs.
    files: Option<TempDir>,
}

/// Where a Stockade listens.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Listening {
    pub(crate) ext_authz: Address,
    admin: Option<Address>,
}

/// A line of Stockade's log, as far as it matters here.
#[derive(Deserialize)]
pub(crate) struct LogLine {
    pub(crate) message: String,
    listener: Option<String>,
    address: Option<String>,
}

/// Long enough for a bundle of 10,000 policies or 100,000 entities on a busy machine.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(120);
/// More than Stockade takes by default, which answers for a while after it was asked to stop, and then drains.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Tells where to get a Stockade if there is none.
pub(crate) fn ensure_built(program: &Path) -> anyhow::Result<()> {
    let name = program.display();
    ensure!(
        program.is_file(),
        "no stockade at `{name}`: build it with `cargo build --release`, or give another with `--stockade`"
    );
    Ok(())
}

/// Says so if what follows are no measurements.
pub(crate) fn warn_if_debug() {
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build of loadtest: its numbers mean nothing");
    }
}

// === impl Cores ===

impl Cores {
    /// Takes the first two cores this process may run on, and moves to the second.
    pub(crate) fn claim() -> anyhow::Result<Self> {
        let allowed = sched_getaffinity(None).context("cannot read the cores")?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).map(|core| {
            let mut set = CpuSet::new();
            set.set(core);
            set
        });
        let (Some(server), Some(generator)) = (cores.next(), cores.next()) else {
            bail!("a comparison needs two cores, one for the servers and one for the generator");
        };
        sched_setaffinity(None, &generator).context("cannot move to a core")?;
        Ok(Self { server, generator })
    }

    /// A process inherits the core of the thread that starts it.
    fn spawn(&self, command: &mut Command) -> anyhow::Result<Child> {
        let program = command.as_std().get_program().to_owned();
        sched_setaffinity(None, &self.server)?;
        let child = command.stdin(Stdio::null()).kill_on_drop(true).spawn();
        sched_setaffinity(None, &self.generator)?;
        child.with_context(|| format!("cannot start `{}`", program.display()))
    }

    /// Moves all threads of a running process to the servers' core.
    pub(crate) fn adopt(&self, pid: Pid) -> anyhow::Result<()> {
        let failed = || format!("cannot move process {} to a core", pid.0);
        for thread in fs::read_dir(pid.file("task")).with_context(failed)? {
            let name = thread?.file_name();
            let thread = name.to_str().and_then(|name| name.parse().ok());
            let thread = thread.and_then(rustix::process::Pid::from_raw);
            sched_setaffinity(thread, &self.server).with_context(failed)?;
        }
        Ok(())
    }
}

// === impl Pid ===

impl Pid {
    pub(crate) fn new(id: u32) -> Option<Self> {
        i32::try_from(id).ok().and_then(rustix::process::Pid::from_raw).map(Self)
    }

    pub(crate) fn own() -> Self {
        Self(rustix::process::getpid())
    }

    /// User and system time of all threads, in steps of a clock tick (10 ms).
    pub(crate) fn cpu_time(self) -> anyhow::Result<Duration> {
        let path = self.file("stat");
        let stat = fs::read_to_string(&path).with_context(|| format!("cannot read `{path}`"))?;
        let ticks = ticks(&stat).with_context(|| format!("`{path}` has no CPU time"))?;
        Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
    }

    /// The memory that is resident.
    pub(crate) fn rss(self) -> anyhow::Result<u64> {
        let path = self.file("status");
        let status = fs::read_to_string(&path).with_context(|| format!("cannot read `{path}`"))?;
        resident(&status).with_context(|| format!("`{path}` has no `VmRSS`"))
    }

    pub(crate) fn signal(self, signal: Signal) -> anyhow::Result<()> {
        kill_process(self.0, signal).with_context(|| format!("cannot signal process {}", self.0))
    }

    fn file(self, name: &str) -> String {
        format!("/proc/{}/{name}", self.0)
    }
}

/// Adds utime and stime, the fields 14 and 15. The second field, the program's name, is in
/// parentheses and may contain anything, so the count starts after the last one.
fn ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let utime: u64 = fields.next()?.parse().ok()?;
    let stime: u64 = fields.next()?.parse().ok()?;
    Some(utime + stime)
}

fn resident(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

// === impl Server ===

impl Server {
    /// Starts this same program as the floor.
    pub(crate) async fn floor(cores: &Cores) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        let mut child = cores.spawn(command.arg("floor").stdout(Stdio::piped()))?;
        let output = child.stdout.take().context("the floor has no stdout")?;
        let address = timeout(START_LIMIT, floor_address(BufReader::new(output).lines()))
            .await
            .context("the floor did not start in time")??;
        Self::started(child, address, None, None)
    }

    /// Starts `stockade serve` in a directory of its own and waits until it is ready.
    pub(crate) async fn stockade(cores: &Cores, program: &Path, files: &Files) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("cannot make a directory")?;
        write(files, directory.path()).context("cannot write stockade's files")?;
        let mut command = Command::new(program);
        command.arg("serve").arg("--config").arg(directory.path().join(CONFIG));
        let mut child = cores.spawn(command.stdout(Stdio::null()).stderr(Stdio::piped()))?;
        let output = child.stderr.take().context("stockade has no stderr")?;
        let mut log = BufReader::new(output).lines();
        let Listening { ext_authz, admin } =
            timeout(START_LIMIT, stockade_listens(&mut log)).await.context("stockade did not get ready in time")??;
        // It would stop at a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        Self::started(child, ext_authz, admin, Some(directory))
    }

    fn started(child: Child, address: Address, admin: Option<Address>, files: Option<TempDir>) -> anyhow::Result<Self> {
        let pid = child.id().and_then(Pid::new).context("the server ended at once")?;
        Ok(Self { child, pid, address, admin, files })
    }

    /// The address of the admin endpoint.
    pub(crate) fn admin(&self) -> anyhow::Result<&Address> {
        self.admin.as_ref().context("the server has no admin endpoint")
    }

    /// Puts new contents in place of one of its files, all at once: it is never seen half written.
    pub(crate) fn replace(&self, path: &str, text: &str) -> anyhow::Result<()> {
        let directory = self.files.as_ref().context("the server has no files")?.path();
        let new = directory.join("new");
        fs::write(&new, text).and_then(|()| fs::rename(&new, directory.join(path))).context("cannot replace a file")
    }

    /// Ends it as an orchestrator would.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.pid.signal(Signal::TERM)?;
        timeout(STOP_LIMIT, self.child.wait()).await.context("a server did not stop in time")??;
        Ok(())
    }
}

fn write(files: &Files, directory: &Path) -> io::Result<()> {
    for (name, text) in files {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap_or(directory))?;
        fs::write(path, text)?;
    }
    Ok(())
}

async fn floor_address(mut output: Lines<impl AsyncBufRead + Unpin>) -> anyhow::Result<Address>
where
{
    let line = output.next_line().await?.unwrap_or_default();
    let address = line.strip_prefix(floor::LISTENING).context("the floor did not start")?;
    address.parse().map_err(anyhow::Error::msg)
}

/// Reads Stockade's log until it is ready.
pub(crate) async fn stockade_listens(log: &mut Lines<impl AsyncBufRead + Unpin>) -> anyhow::Result<Listening> {
    let (mut ext_authz, mut admin) = (None, None);
    let mut seen = String::new();
    while let Some(line) = log.next_line().await? {
        // What is not such a line is kept, in case it shows why there will be no `ready`.
        if let Ok(line) = serde_json::from_str::<LogLine>(&line) {
            match line.message.as_str() {
                "listening" => match line.listener.as_deref() {
                    Some("ext_authz") => ext_authz = line.address,
                    Some("admin") => admin = line.address,
                    _ => {}
                },
                "ready" => {
                    let parse = |address: String| address.parse::<Address>().map_err(anyhow::Error::msg);
                    let ext_authz = ext_authz.context("stockade is ready, but logged no address")?;
                    return Ok(Listening { ext_authz: parse(ext_authz)?, admin: admin.map(parse).transpose()? });
                }
                _ => {}
            }
        }
        seen.push('\n');
        seen.push_str(&line);
    }
    ensure!(!seen.is_empty(), "stockade ended without a word");
    bail!("stockade ended before it was ready:{seen}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_an_odd_name() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 99 0 0";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("42 (short) S 1"), None);
    }

    #[test]
    fn memory_is_in_bytes() {
        assert_eq!(resident("VmHWM:\t  9 kB\nVmRSS:\t  2048 kB\n"), Some(2 * 1024 * 1024));
        assert_eq!(resident("Name:\tkthreadd\n"), None);
    }

    #[test]
    fn a_missing_stockade_is_told_how_to_be_built() {
        let error = ensure_built(Path::new("/nowhere/stockade")).unwrap_err().to_string();
        assert!(error.contains("cargo build --release"), "{error}");
    }

    #[test]
    fn this_process_can_be_read() {
        assert!(Pid::own().rss().unwrap() > 0);
        assert!(Pid::own().cpu_time().is_ok());
    }

    #[tokio::test]
    async fn stockade_tells_its_address_and_then_that_it_is_ready() {
        let log = br#"starting
{"level":"INFO","message":"listening","listener":"admin","address":"tcp://127.0.0.1:1"}
{"level":"INFO","message":"listening","listener":"ext_authz","address":"tcp://127.0.0.1:2"}
{"level":"INFO","message":"ready"}
{"level":"INFO","message":"more"}
"#;
        let mut lines = BufReader::new(log.as_slice()).lines();
        let tcp = |address: &str| Address::Tcp(address.into());
        let expected = Listening { ext_authz: tcp("127.0.0.1:2"), admin: Some(tcp("127.0.0.1:1")) };
        assert_eq!(stockade_listens(&mut lines).await.unwrap(), expected);
    }

    #[tokio::test]
    async fn a_stockade_that_ends_is_quoted() {
        let log = b"error: no bundle at `./bundle`\n";
        let mut lines = BufReader::new(log.as_slice()).lines();
        let error = stockade_listens(&mut lines).await.unwrap_err().to_string();
        assert!(error.contains("no bundle at `./bundle`"), "{error}");
    }
}
