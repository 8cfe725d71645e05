use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;

use serde_json::Value as Json;

use crate::admin::{Listen, ProbesListen};
use crate::cli::output::{Error, ended};
use crate::config::Config;
use crate::listener;
use crate::units::HumanDuration;

/// Ask a running sidecar whether it is ready, or alive.
///
/// For an exec probe of the kubelet, where the image has no shell and the admin endpoint is on loopback. Asks the admin endpoint
/// that the configuration names, or the listener for probes where there is no admin endpoint. If not, prints one line with the reason.
///
/// Exit status: 0 if it is, 1 if it is not or does not answer.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ask whether it can decide. This is the default.
    #[arg(long, conflicts_with = "live")]
    ready: bool,
    /// Ask whether the process answers at all.
    #[arg(long)]
    live: bool,
    /// The configuration file of the sidecar.
    #[arg(long, short, value_name = "FILE", default_value = "stockade.yaml", conflicts_with = "admin")]
    config: PathBuf,
    /// The endpoint to ask, instead of the one in the configuration: `tcp://127.0.0.1:9192` or `unix:///path`.
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// How long to wait for the answer. The kubelet kills a probe after `timeoutSeconds`, 1 by default.
    #[arg(long, value_name = "TIME", default_value = "900ms", value_parser = |text: &str| HumanDuration::try_from_text(text.to_owned()).map_err(|invalid| invalid.to_string()))]
    timeout: HumanDuration,
}

pub(super) fn run(args: &Args) -> ExitCode {
    ended(probe(args).map(|()| ExitCode::SUCCESS).map_err(Error::from))
}

/// Why a sidecar does not count as ready, or alive.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum ProbeError {
    /// The configuration cannot be used.
    #[error("{}: {problem}", path.display())]
    Config {
        /// Its file.
        path: PathBuf,
        /// The first thing that is wrong.
        problem: String,
    },
    /// Nothing answers probes.
    #[error("{}: neither `admin` nor `probes` listens", .0.display())]
    NoListener(PathBuf),
    /// Nobody knows where it listens.
    #[error(
        "{}: its admin endpoint takes any free port: name it with `--admin`, or give it a port",
        .0.display()
    )]
    AnyPort(PathBuf),
    /// `--admin` is no address.
    #[error("{0}")]
    Address(String),
    /// It cannot be asked.
    #[error("{endpoint} cannot be asked: {error}")]
    Unreachable {
        /// What was asked.
        endpoint: String,
        /// Why not.
        error: String,
    },
    /// It does not answer.
    #[error("{endpoint} did not answer within {timeout}")]
    TimedOut {
        /// What was asked.
        endpoint: String,
        /// How long.
        timeout: HumanDuration,
    },
    /// Something else listens there.
    #[error("{0} does not speak HTTP")]
    NotHttp(String),
    /// It answers no, without a reason.
    #[error("{endpoint} answers {status}")]
    Status {
        /// What was asked.
        endpoint: String,
        /// The status of its answer.
        status: String,
    },
    /// It answers no.
    #[error("{0}")]
    No(String),
}

fn probe(args: &Args) -> Result<(), ProbeError> {
    let endpoint = match &args.admin {
        Some(url) => parse(url)?,
        None => configured(args)?,
    };
    let path = if args.live { "/livez" } else { "/readyz" };
    let (sender, answered) = mpsc::channel();
    let shown = endpoint.to_string();
    // Connecting to a Unix socket, say, has no timeout of its own.
    thread::spawn(move || sender.send(ask(&endpoint, path)));
    match answered.recv_timeout(args.timeout.0) {
        Ok(Ok(answer)) => read(&shown, &answer),
        Ok(Err(error)) => Err(ProbeError::Unreachable { endpoint: shown, error: error.to_string() }),
        Err(_) => Err(ProbeError::TimedOut { endpoint: shown, timeout: args.timeout }),
    }
}

fn parse(url: &str) -> Result<listener::Config, ProbeError> {
    let address = url.strip_prefix("http://").map_or_else(|| url.to_owned(), |rest| format!("tcp://{rest}"));
    listener::Config::parse_open(address.trim_end_matches('/')).map_err(ProbeError::Address)
}

/// Where the sidecar of this configuration can be asked.
fn configured(args: &Args) -> Result<listener::Config, ProbeError> {
    let config = Config::load(&args.config).map_err(|problems| ProbeError::Config {
        path: args.config.clone(),
        problem: problems.first().map(ToString::to_string).unwrap_or_default(),
    })?;
    let endpoint = match (config.admin.listen, config.probes.listen) {
        (Listen::At(listen), _) | (_, ProbesListen::At(listen)) => listen,
        _ => return Err(ProbeError::NoListener(args.config.clone())),
    };
    match endpoint {
        listener::Config::Tcp { address, .. } if address.port() == 0 => Err(ProbeError::AnyPort(args.config.clone())),
        endpoint => Ok(endpoint),
    }
}

fn ask(endpoint: &listener::Config, path: &str) -> io::Result<String> {
    match endpoint {
        listener::Config::Unix { path: socket, .. } => exchange(UnixStream::connect(socket)?, path),
        listener::Config::Tcp { address, .. } => exchange(TcpStream::connect(reachable(*address))?, path),
    }
}

/// What listens on all addresses is reached on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The answer as it comes; more of it than a list of reasons takes is not read.
fn exchange(mut stream: impl Read + Write, path: &str) -> io::Result<String> {
    stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(1 << 20).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// What an answer means.
fn read(endpoint: &str, answer: &str) -> Result<(), ProbeError> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.strip_prefix("HTTP/1.").and_then(|line| line.split(' ').nth(1)).unwrap_or("");
    if status == "200" {
        return Ok(());
    }
    if status.is_empty() {
        return Err(ProbeError::NotHttp(endpoint.to_owned()));
    }
    let json: Option<Json> = serde_json::from_str(body).ok();
    let reasons: Option<Vec<&str>> =
        json.as_ref().and_then(|json| json["reasons"].as_array()?.iter().map(Json::as_str).collect());
    let why = reasons.map_or_else(|| body.to_owned(), |reasons| format!("not ready: {}", reasons.join("; ")));
    let line: String = why.trim().chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    Err(match line.is_empty() {
        true => ProbeError::Status { endpoint: endpoint.to_owned(), status: status.to_owned() },
        false => ProbeError::No(line),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_by_their_status() {
        for (answer, expected) in [
            ("HTTP/1.0 200 OK\r\n\r\nok\n", Ok(())),
            (
                "HTTP/1.1 503 Service Unavailable\r\nx: y\r\n\r\n{\"ready\": false, \"reasons\": [\"one\", \"two\\nlines\"]}",
                Err("not ready: one; two lines"),
            ),
            ("HTTP/1.0 503 x\r\n\r\nnot ready\n", Err("not ready")),
            ("HTTP/1.0 404 x\r\n\r\n", Err("there answers 404")),
            ("SSH-2.0-OpenSSH\r\n", Err("there does not speak HTTP")),
            ("", Err("there does not speak HTTP")),
        ] {
            let read = read("there", answer).map_err(|error| error.to_string());
            assert_eq!(read, expected.map_err(str::to_owned), "{answer}");
        }
    }

    #[test]
    fn endpoints_are_named_in_several_ways() {
        for (url, expected) in [
            ("tcp://127.0.0.1:9192", Some("tcp://127.0.0.1:9192")),
            ("http://127.0.0.1:9192/", Some("tcp://127.0.0.1:9192")),
            ("http://localhost:9192", Some("tcp://127.0.0.1:9192")),
            ("tcp://10.0.0.7:9192", Some("tcp://10.0.0.7:9192")),
            ("unix:///run/admin.sock", Some("unix:///run/admin.sock")),
            ("127.0.0.1:9192", None),
            ("https://127.0.0.1:9192", None),
        ] {
            assert_eq!(parse(url).ok().map(|endpoint| endpoint.to_string()).as_deref(), expected, "{url}");
        }
        assert_eq!(reachable("0.0.0.0:9192".parse().expect("an address")).to_string(), "127.0.0.1:9192");
        assert_eq!(reachable("[::]:9192".parse().expect("an address")).to_string(), "[::1]:9192");
    }
}
