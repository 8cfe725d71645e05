//! `when_full: undecided`: nothing is decided that is not logged, whatever keeps a record from being written. Each way is a real
//! one: a disk that is full, a limit on files, a directory that is gone, a rotation that fails, a pipe that is closed or that
//! nobody reads. `drop`, the default, is held by the tests of `observe::decision_log`.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use envoy_types::pb::envoy::service::auth::v3::CheckResponse;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use serde_json::Value as Json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, BufReader};
use tokio::process::{ChildStdout, Command};
use tokio::time::timeout;

use testkit::{PATIENCE, Stockade, binary, config, get, skipped, until};

/// A sidecar that must not decide unlogged.
struct Pod {
    sidecar: Stockade,
    /// Where it logs; `None`: to its standard output.
    log: Option<PathBuf>,
    /// The ids of its records of allows that were found in the log so far, and how many say that the log was full.
    logged: BTreeSet<String>,
    undecided: usize,
}

/// What a check was answered.
#[derive(Debug, PartialEq)]
enum Answer {
    /// It was allowed, with this id.
    Allowed(String),
    /// As Undecided is on the wire: an error response.
    Undecided,
}

impl Pod {
    /// By a command that ends in running the binary. `more` stands in `decision_log`.
    async fn start(command: Command, log: Option<&Path>, more: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let bundle = dir.path().join("bundle");
        fs::create_dir(&bundle).unwrap();
        fs::write(bundle.join("bundle.yaml"), "name: shop\n").unwrap();
        fs::write(bundle.join("a.cedar"), "permit (principal, action == Action::\"GET\", resource);\n").unwrap();
        let output = log.map_or_else(|| "stdout".to_owned(), |log| format!("file://{}", log.display()));
        let more = format!(
            "decision_log: {{output: \"{output}\", when_full: undecided{more}}}\nupstream_headers: {{x-id: decision_id}}\n\
             limits: {{deadline: 300ms}}\n"
        );
        let mut sidecar = Stockade::start_by(command, &config(&bundle, &more), dir).await;
        sidecar.log_line(|line| line["message"] == "ready").await;
        Self { sidecar, log: log.map(Path::to_owned), logged: BTreeSet::new(), undecided: 0 }
    }

    async fn ask(&self) -> Answer {
        let CheckResponse { status, http_response, .. } = self.sidecar.check(get("/")).await.unwrap();
        match (status.unwrap().code, http_response.unwrap()) {
            (0, HttpResponse::OkResponse(ok)) => {
                let header = ok.headers.into_iter().filter_map(|own| own.header).find(|own| own.key == "x-id").unwrap();
                let raw = String::from_utf8(header.raw_value).unwrap();
                Answer::Allowed(if raw.is_empty() { header.value } else { raw })
            }
            (_, HttpResponse::ErrorResponse(_)) => Answer::Undecided,
            other => panic!("{other:?}"),
        }
    }

    /// Asks, and holds an allow against the log: its record is there already.
    async fn ask_a_file(&mut self) -> Answer {
        let answer = self.ask().await;
        self.read_files();
        if let Answer::Allowed(id) = &answer {
            assert!(self.logged.contains(id), "{id} was allowed, and there is no record of it");
        }
        answer
    }

    /// As it sees the file system, which may be its own.
    fn seen(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.sidecar.pid()));
        root.join(path.strip_prefix("/").unwrap())
    }

    fn read_files(&mut self) {
        let log = self.log.clone().unwrap();
        for path in [log.clone(), PathBuf::from(format!("{}.1", log.display()))] {
            let text = fs::read_to_string(self.seen(&path)).unwrap_or_default();
            self.note(&text);
        }
    }

    fn note(&mut self, text: &str) {
        for line in text.lines() {
            let record: Json = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            match (record["outcome"].as_str(), record["reason"].as_str()) {
                (Some("allow"), _) => drop(self.logged.insert(record["decision_id"].as_str().unwrap().to_owned())),
                (Some("undecided"), Some("log_full")) => self.undecided += 1,
                other => panic!("{other:?}"),
            }
        }
    }

    async fn metric(&self, series: &str) -> String {
        let (_, text) = self.sidecar.admin("/metrics").await;
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {series}")).to_owned()
    }

    /// It says so, and goes on saying so: nothing gets through.
    async fn is_full(&mut self, cause: &str) {
        for _ in 0..20 {
            assert_eq!(self.ask().await, Answer::Undecided);
        }
        let (status, body) = self.sidecar.admin("/readyz").await;
        assert!(
            status == 503 && body.contains("the decision log cannot be written: ") && body.contains(cause),
            "{body}"
        );
        assert_eq!(self.metric("stockade_decision_log_failing").await, "1");
        assert_eq!(self.metric("stockade_ready").await, "0");
    }

    /// Whatever it was is over: it finds out by itself, and all that could not be written is there.
    async fn is_well_again(&mut self) {
        let ready = async || (self.sidecar.admin("/readyz").await.0 == 200).then_some(());
        until("it finds out that it can write again", ready).await;
        self.undecided = 0;
        for _ in 0..2 {
            assert!(matches!(self.ask_a_file().await, Answer::Allowed(_)));
        }
        assert!(self.undecided > 0, "the check whose record could not be written has one that says so");
        assert_eq!(self.metric("stockade_decision_log_failing").await, "0");
    }

    /// Until a check is Undecided, since whatever it is takes some records to show.
    async fn fills_up(&mut self) {
        let fills_up = async { while self.ask_a_file().await != Answer::Undecided {} };
        timeout(PATIENCE, fills_up).await.expect("it cannot be written for ever");
    }
}

/// The binary, by a shell that does something before.
fn after(script: &str, args: &[&Path]) -> Command {
    let mut command = Command::new("sh");
    let shift = args.iter().map(|_| "shift; ").collect::<String>();
    command.args(["-c", &format!("{script} {shift}exec \"$@\""), "sh"]).args(args).arg(binary());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk() {
    let mount = TempDir::new().unwrap();
    let namespace = "mount -t tmpfs -o size=64k tmpfs \"$1\" || exit 1;";
    // Whoever is not root is root in a namespace of users.
    let mounts = |options: &&[&str]| {
        let mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs"]
            .map(OsStr::new)
            .into_iter()
            .chain([mount.path().as_os_str()]);
        let output = std::process::Command::new("unshare").args(*options).args(mount).output();
        output.is_ok_and(|output| output.status.success())
    };
    let Some(options) = [&["-m"][..], &["-r", "-m"]].into_iter().find(mounts) else {
        return skipped("no file system can be mounted in a namespace of its own here (`unshare -r -m`)");
    };
    let mut command = Command::new("unshare");
    command.args(options).arg("sh").args(after(namespace, &[mount.path()]).as_std().get_args());
    let log = mount.path().join("decisions.jsonl");
    let mut pod = Pod::start(command, Some(&log), "").await;
    assert!(matches!(pod.ask_a_file().await, Answer::Allowed(_)));
    let filler = pod.seen(&mount.path().join("filler"));
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 512]).is_ok() {}
    drop(file);
    // A part of a page may be left.
    pod.fills_up().await;
    pod.is_full("No space left on device").await;
    fs::remove_file(&filler).unwrap();
    pod.is_well_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_limit_of_a_file() {
    let dir = TempDir::new().unwrap();
    let log = dir.path().join("decisions.jsonl");
    // Blocks of 512 or of 1024 bytes. The signal that comes with it does not end the process.
    let mut pod = Pod::start(after("ulimit -f 8;", &[]), Some(&log), "").await;
    pod.fills_up().await;
    pod.is_full("File too large").await;
    fs::File::options().write(true).open(&log).unwrap().set_len(0).unwrap();
    pod.is_well_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_directory_is_gone() {
    let dir = TempDir::new().unwrap();
    let logs = dir.path().join("logs");
    fs::create_dir(&logs).unwrap();
    let log = logs.join("decisions.jsonl");
    let mut pod = Pod::start(Command::new(binary()), Some(&log), "").await;
    assert!(matches!(pod.ask_a_file().await, Answer::Allowed(_)));
    fs::remove_dir_all(&logs).unwrap();
    pod.is_full("No such file or directory").await;
    fs::create_dir(&logs).unwrap();
    pod.is_well_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_file_cannot_be_rotated() {
    let dir = TempDir::new().unwrap();
    let log = dir.path().join("decisions.jsonl");
    // In the way of the first rotated file.
    let obstacle = dir.path().join("decisions.jsonl.1");
    fs::create_dir_all(obstacle.join("not empty")).unwrap();
    let mut pod = Pod::start(Command::new(binary()), Some(&log), ", max_file_size: 2KiB, max_files: 1").await;
    pod.fills_up().await;
    pod.is_full("directory").await;
    fs::remove_dir_all(&obstacle).unwrap();
    pod.is_well_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_device_is_full_from_the_start() {
    let mut pod = Pod::start(after("exec > /dev/full;", &[]), None, "").await;
    pod.is_full("No space left on device").await;
}

/// Reads records until one has an id that was allowed, and is closed then.
async fn read_until(pipe: &mut BufReader<ChildStdout>, pod: &mut Pod, ids: &BTreeSet<String>) {
    let read = async {
        let mut text = String::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = pipe.read(&mut buffer).await.unwrap();
            assert!(count > 0, "it goes on");
            text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
            if text.ends_with('\n') {
                pod.note(&std::mem::take(&mut text));
                if pod.logged.is_superset(ids) {
                    return;
                }
            }
        }
    };
    timeout(PATIENCE, read).await.expect("a record of all that was allowed");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_pipe_that_is_closed() {
    let mut pod = Pod::start(Command::new(binary()), None, "").await;
    let mut pipe = BufReader::new(pod.sidecar.take_stdout());
    let Answer::Allowed(id) = pod.ask().await else { panic!("it is open yet") };
    read_until(&mut pipe, &mut pod, &BTreeSet::from([id])).await;
    drop(pipe);
    pod.is_full("Broken pipe").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_pipe_that_nobody_reads() {
    let mut pod = Pod::start(Command::new(binary()), None, "").await;
    let mut allowed = BTreeSet::new();
    let fills_up = async {
        while let Answer::Allowed(id) = pod.ask().await {
            allowed.insert(id);
        }
    };
    timeout(PATIENCE, fills_up).await.expect("a pipe holds so much");
    assert!(allowed.len() > 20, "{}", allowed.len());
    for _ in 0..3 {
        assert_eq!(pod.ask().await, Answer::Undecided, "within its deadline");
    }
    let mut pipe = BufReader::new(pod.sidecar.take_stdout());
    read_until(&mut pipe, &mut pod, &allowed).await;
    tokio::spawn(async move { while pipe.read(&mut [0; 4096]).await.is_ok_and(|count| count > 0) {} });
    assert!(matches!(pod.ask().await, Answer::Allowed(_)), "it goes on");
}
