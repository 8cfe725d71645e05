//! What the documents tell people to type works: every block of commands is run as it is printed, with the real binary and the real
//! nats-server, or a comment before it says why not:
//!
//! - `<!-- not run: needs a cluster -->`
//! - `<!-- run beside: a sidecar -->`: with something running that the text takes for granted ([`BESIDE`]).

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

#[cfg(feature = "nats")]
use testkit::nats;
use testkit::{binary, copy_folder, repository};

/// Languages of blocks that people type or paste.
const SHELLS: [&str; 4] = ["sh", "bash", "shell", "console"];

/// What a command begins with. A block of no language that has one is a block of commands that does not say so.
const COMMANDS: [&str; 9] =
    ["stockade", "cargo", "make", "curl", "nats-server", "loadtest", "kubectl", "docker", "nats"];

/// What a block may take for granted: its name in the comment, and what starts it.
const BESIDE: [(&str, &str); 1] = [(
    "a sidecar",
    "printf 'service: bookstore\\nbundles: [{directory: policies/bookstore}]\\n' > sidecar.yaml\n\
     stockade serve --config sidecar.yaml &\n\
     cp policies/bookstore/tests/view-book.json request.json\n",
)];

/// What is waited for after a line that leaves something running: the port that it listens on, in a shell that has no other use of it.
const PORTS: [(&str, u16); 2] = [("nats-server", 4222), ("stockade serve", 9192)];

/// A block of commands in a document.
#[derive(Debug)]
struct Block {
    /// Such as `README.md:27`.
    place: String,
    script: String,
    run: Run,
}

#[derive(Debug, PartialEq)]
enum Run {
    Alone,
    Beside(String),
    Not,
}

/// The documents, except those of dependencies and of other tools.
fn documents(under: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(under).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            documents(&path, found);
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

fn is_command(line: &str) -> bool {
    let first = line.trim_start_matches("$ ").split([' ', '\t']).next().unwrap_or_default();
    COMMANDS.contains(&first) && line.contains(' ')
}

/// The blocks of commands of a document, and what is wrong with how they are marked.
fn blocks(name: &str, text: &str) -> Result<Vec<Block>, String> {
    let mut found = Vec::new();
    let mut lines = text.lines().enumerate();
    let mut before = "";
    while let Some((at, line)) = lines.next() {
        let Some(language) = line.trim_start().strip_prefix("```") else {
            before = if line.trim().is_empty() { before } else { line };
            continue;
        };
        let indent = line.len() - line.trim_start().len();
        let body: Vec<&str> = lines
            .by_ref()
            .map(|(_, line)| line)
            .take_while(|line| !line.trim_start().starts_with("```"))
            .map(|line| line.get(indent..).unwrap_or(line.trim_start()))
            .collect();
        let place = format!("{name}:{}", at + 1);
        let marked = |word: &str| {
            let rest = before.trim().strip_prefix("<!-- ")?.strip_prefix(word)?.strip_prefix(": ")?;
            rest.strip_suffix(" -->").filter(|rest| !rest.trim().is_empty())
        };
        let run = match (marked("not run"), marked("run beside")) {
            (Some(_), _) => Run::Not,
            (None, Some(what)) => Run::Beside(what.to_owned()),
            (None, None) => Run::Alone,
        };
        before = "";
        let is_shell = SHELLS.contains(&language.trim());
        if !is_shell && language.trim().is_empty() && body.iter().any(|line| is_command(line)) {
            return Err(format!("{place}: a block of commands says so: ```sh"));
        }
        if !is_shell && run != Run::Alone {
            return Err(format!("{place}: only a block of commands is run, or not"));
        }
        if is_shell {
            // What a console shows beside what is typed is for people.
            let typed = |line: &&str| language.trim() != "console" || line.starts_with("$ ");
            let script = body.iter().filter(|line| typed(line)).map(|line| line.trim_start_matches("$ "));
            found.push(Block { place, script: script.collect::<Vec<_>>().join("\n"), run });
        }
    }
    Ok(found)
}

/// A line that leaves something running is followed by waiting until it listens.
fn with_waiting(script: &str) -> String {
    let mut whole = String::new();
    for line in script.lines() {
        whole += &format!("{line}\n");
        let code = line.split(" #").next().unwrap_or(line).trim_end();
        let port = PORTS.iter().find(|(command, _)| code.ends_with('&') && code.contains(command));
        if let Some((_, port)) = port {
            whole += &format!("until (: < /dev/tcp/127.0.0.1/{port}) 2>/dev/null; do sleep 0.05; done\n");
        }
    }
    whole
}

/// A copy of what blocks work on, and what they call.
fn desk() -> TempDir {
    let desk = TempDir::new().unwrap();
    for part in ["policies", "envoy", "k8s"] {
        copy_folder(&repository(part), &desk.path().join(part));
    }
    let bin = desk.path().join("bin");
    fs::create_dir(&bin).unwrap();
    symlink(binary(), bin.join("stockade")).unwrap();
    #[cfg(feature = "nats")]
    symlink(nats::binary(), bin.join("nats-server")).unwrap();
    // The binary is built already, and this is how a checkout runs it.
    let cargo = "#!/bin/sh\nif [ \"$1 $2\" = 'run --' ]; then shift 2; exec stockade \"$@\"; fi\n\
                 echo \"cargo $*: only 'cargo run --' is run here\" >&2\nexit 1\n";
    fs::write(bin.join("cargo"), cargo).unwrap();
    fs::set_permissions(bin.join("cargo"), fs::Permissions::from_mode(0o755)).unwrap();
    desk
}

/// A shell in a network and a list of processes of its own, so that ports are as printed and nothing outlives it.
const ALONE: [&str; 6] = ["unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child"];

fn can_be_alone() -> bool {
    let tried = Command::new(ALONE[0]).args(&ALONE[1..]).args(["ip", "link", "set", "lo", "up"]).output();
    tried.is_ok_and(|output| output.status.success())
}

/// Runs a block as it is printed. What went wrong, if it did.
fn run(block: &Block, alone: bool) -> Result<(), String> {
    let desk = desk();
    let beside = match &block.run {
        Run::Not => return Ok(()),
        Run::Alone => "",
        Run::Beside(what) => {
            let known = BESIDE.iter().find(|(name, _)| name == what);
            known.ok_or_else(|| format!("{}: nothing is known of `{what}` to run it beside", block.place))?.1
        }
    };
    let up = if alone { "ip link set lo up\n" } else { "" };
    let script = format!("set -euo pipefail\n{up}{}", with_waiting(&format!("{beside}{}", block.script)));
    fs::write(desk.path().join("script"), format!("{script}\nkill $(jobs -p) 2>/dev/null || true\n")).unwrap();
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "120"]).args(if alone { &ALONE[..] } else { &[] }).args(["bash", "script"]);
    let path = format!("{}:{}", desk.path().join("bin").display(), std::env::var("PATH").unwrap());
    let log = fs::File::create(desk.path().join("log")).unwrap();
    let status = command
        .current_dir(desk.path())
        .env("PATH", path)
        .env_remove("HOSTNAME")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .process_group(0)
        .status()
        .unwrap();
    let log = fs::read_to_string(desk.path().join("log")).unwrap_or_default();
    if status.success() { Ok(()) } else { Err(format!("{}: {status}\n{script}\n{log}", block.place)) }
}

#[test]
fn blocks_of_commands_are_found_with_what_is_said_of_them() {
    let text = "Text.\n\n<!-- not run: needs a cluster -->\n```sh\nkubectl get pods\n```\n\n```console\n$ stockade x\nout\n```\n\
                <!-- run beside: a sidecar -->\n\n```sh\ncurl x\n```\n```\na picture\n```\n";
    let found = blocks("d.md", text).unwrap();
    let shown: Vec<_> = found.iter().map(|own| (own.place.as_str(), own.script.as_str(), &own.run)).collect();
    let beside = Run::Beside("a sidecar".to_owned());
    assert_eq!(
        shown,
        [
            ("d.md:4", "kubectl get pods", &Run::Not),
            ("d.md:8", "stockade x", &Run::Alone),
            ("d.md:14", "curl x", &beside)
        ]
    );
    assert!(
        blocks("d.md", "```\nstockade status\n```\n").unwrap_err().starts_with("d.md:1: a block of commands says so")
    );
    assert!(blocks("d.md", "<!-- not run: why -->\n```yaml\na: b\n```\n").is_err());
    let empty = blocks("d.md", "<!-- not run:  -->\n```sh\nx\n```\n").unwrap();
    assert_eq!(empty[0].run, Run::Alone, "a reason is a reason");
    assert_eq!(
        with_waiting("nats-server -js &  # first\nstockade x & y"),
        "nats-server -js &  # first\nuntil (: < /dev/tcp/127.0.0.1/4222) 2>/dev/null; do sleep 0.05; done\nstockade x & y\n"
    );
}

/// The targets of a document's links within the repository.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#', ' ']).next());
    targets.filter(|target| !target.is_empty() && !target.contains("://"))
}

#[test]
fn links_lead_to_what_is_there() {
    let mut paths = Vec::new();
    documents(&repository(""), &mut paths);
    let mut count = 0;
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        for target in links(&text) {
            let there = path.parent().unwrap().join(target);
            assert!(there.exists(), "{}: `{target}` is not there", path.display());
            count += 1;
        }
    }
    assert!(count > 50, "{count} links");
}

/// A page that is on no map is read by nobody.
#[test]
fn the_map_has_every_page() {
    let map = fs::read_to_string(repository("docs/README.md")).unwrap();
    for entry in fs::read_dir(repository("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            name == "README.md" || links(&map).any(|link| link.trim_end_matches('/') == name),
            "docs/README.md: {name}"
        );
    }
}

#[cfg(feature = "nats")]
#[test]
fn what_the_documents_say_to_type_works() {
    let mut paths = Vec::new();
    documents(&repository(""), &mut paths);
    assert!(paths.len() > 10, "{paths:?}");
    let alone = can_be_alone();
    if !alone {
        println!("there are no namespaces here: blocks use the ports 4222, 9191 and 9192 of this machine");
    }
    let (mut ran, mut wrong) = (0, Vec::new());
    for path in paths {
        let name = path.strip_prefix(repository("")).unwrap().display().to_string();
        match blocks(&name, &fs::read_to_string(&path).unwrap()) {
            Ok(blocks) => {
                ran += blocks.iter().filter(|block| block.run != Run::Not).count();
                wrong.extend(blocks.iter().filter_map(|block| run(block, alone).err()));
            }
            Err(error) => wrong.push(error),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(ran >= 3, "{ran} blocks were run");
}
