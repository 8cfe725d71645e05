//! Server processes: started on a core of their own, asked for what they used, stopped.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use testkit::{Stockade, process};
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
    program: Program,
    pub(crate) pid: Pid,
    pub(crate) address: Address,
    /// Its admin endpoint, if it has one.
    admin: Option<Address>,
}

/// What can be started as a server.
enum Program {
    Floor(Child),
    Stockade(Box<Stockade>),
}

/// Long enough for a bundle of 10,000 policies or 100,000 entities on a busy machine.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(120);
/// More than Stockade takes by default, which answers for a while after it was told to stop, and then drains.
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

    /// Starts a process, which inherits the core of the thread that starts it.
    fn spawn<T>(&self, start: impl FnOnce() -> io::Result<T>) -> anyhow::Result<T> {
        sched_setaffinity(None, &self.server)?;
        let started = start();
        sched_setaffinity(None, &self.generator)?;
        started.context("cannot start a server")
    }

    /// Moves all threads of a running process to the servers' core.
    pub(crate) fn adopt(&self, pid: Pid) -> anyhow::Result<()> {
        let told = || format!("cannot move process {} to a core", pid.0);
        for thread in fs::read_dir(pid.file("task")).with_context(told)? {
            let name = thread?.file_name();
            let thread = name.to_str().and_then(|name| name.parse().ok());
            let thread = thread.and_then(rustix::process::Pid::from_raw);
            sched_setaffinity(thread, &self.server).with_context(told)?;
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
        command.arg("floor").stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = cores.spawn(|| command.spawn())?;
        let mut output = process::lines(child.stdout.take().context("the floor has no stdout")?);
        let address = process::first("the floor", &mut output, START_LIMIT, |line| {
            line.text.strip_prefix(floor::LISTENING).map(str::to_owned)
        });
        let address = parsed(&address.await.map_err(anyhow::Error::msg)?)?;
        let pid = child.id().and_then(Pid::new).context("the floor ended at once")?;
        Ok(Self { program: Program::Floor(child), pid, address, admin: None })
    }

    /// Starts `stockade serve` in a directory of its own and waits until it is ready.
    pub(crate) async fn stockade(cores: &Cores, program: &Path, files: &Files) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("cannot make a directory")?;
        write(files, directory.path()).context("cannot write stockade's files")?;
        let config = files.iter().find(|(name, _)| name == CONFIG).context("there is no configuration")?;
        let mut command = Command::new(program);
        command.stdout(Stdio::null());
        let stockade = cores.spawn(|| Stockade::spawn(command, &config.1, directory))?;
        let (stockade, address) = ready(stockade).await?;
        let admin = stockade.try_admin_address().map(parsed).transpose()?;
        let pid = Pid::new(stockade.pid()).context("stockade has no process")?;
        Ok(Self { program: Program::Stockade(Box::new(stockade)), pid, address, admin })
    }

    /// The address of the admin endpoint.
    pub(crate) fn admin(&self) -> anyhow::Result<&Address> {
        self.admin.as_ref().context("the server has no admin endpoint")
    }

    /// Puts a new text in place of one of its files, all at once: it is never seen half written.
    pub(crate) fn replace(&self, path: &str, text: &str) -> anyhow::Result<()> {
        let Program::Stockade(stockade) = &self.program else { bail!("the server has no files") };
        let directory = stockade.dir.path();
        let new = directory.join("new");
        fs::write(&new, text).and_then(|()| fs::rename(&new, directory.join(path))).context("cannot replace a file")
    }

    /// Ends it as an orchestrator would.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.pid.signal(Signal::TERM)?;
        let end = async {
            match self.program {
                Program::Floor(mut floor) => floor.wait().await.map(drop),
                Program::Stockade(mut stockade) => stockade.try_wait().await.map(drop),
            }
        };
        timeout(STOP_LIMIT, end).await.context("a server did not stop in time")?.context("a server did not stop")
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

/// A Stockade that was started, once it is ready, and where it answers checks.
pub(crate) async fn ready(mut stockade: Stockade) -> anyhow::Result<(Stockade, Address)> {
    stockade.try_listening(START_LIMIT).await.map_err(anyhow::Error::msg)?;
    stockade.try_ready(START_LIMIT).await.map_err(anyhow::Error::msg)?;
    let address = parsed(stockade.addresses.first().context("stockade is ready, but has no address")?)?;
    Ok((stockade, address))
}

fn parsed(address: &str) -> anyhow::Result<Address> {
    address.parse().map_err(anyhow::Error::msg)
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

    /// A Stockade that is a line of shell, in an empty directory.
    fn fake(script: &str) -> Stockade {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::null());
        Stockade::spawn(command, "", tempfile::tempdir().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn stockade_logs_its_addresses_and_then_that_it_is_ready() {
        let script = r#"cat >&2 <<'END'
starting
{"message":"listening","listener":"admin","address":"tcp://127.0.0.1:1"}
{"message":"listening","listener":"ext_authz","address":"tcp://127.0.0.1:2"}
{"message":"new phase"}
{"message":"ready"}
END
"#;
        let (stockade, address) = ready(fake(script)).await.unwrap();
        assert_eq!(address, Address::Tcp("127.0.0.1:2".into()));
        assert_eq!(stockade.try_admin_address(), Some("127.0.0.1:1"));
    }

    #[tokio::test]
    async fn a_stockade_that_ends_is_quoted() {
        let Err(error) = ready(fake("echo 'error: no bundle at `./bundle`' >&2")).await else { panic!("it is ready") };
        assert!(error.to_string().contains("no bundle at `./bundle`"), "{error}");
    }
}
