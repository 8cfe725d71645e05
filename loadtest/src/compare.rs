//! Several servers in one run: the same requests, the same core, turn by turn.
//!
//! Machines drift: they get warm, they get neighbours. So no target is measured to the end before
//! the next begins. Each round measures every target once, a different one first each time, and
//! what is compared with the floor is the ratio within a round.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::rc::Rc;
use std::str::FromStr;

use crate::client::Address;
use crate::load::{self, Pace, Shape};
use crate::one_policy;
use crate::report::{Row, Series};
use crate::server::{self, Cores, Pid, Server};
use crate::workload::{Expect, Workload};

/// What is compared, and how thoroughly.
pub(crate) struct Comparison {
    pub(crate) stockade: Option<PathBuf>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) rounds: NonZeroUsize,
    /// Of the open loop.
    pub(crate) rate: Option<f64>,
    pub(crate) shape: Shape,
}

/// A server that somebody else started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    name: String,
    address: Address,
    pid: Option<Pid>,
}

/// One of the servers compared, with its measurements so far.
struct Target {
    peer: Peer,
    closed: Series,
    open: Series,
}

/// The open loop's share of what the target reached in its first closed loop. At half its
/// throughput a server has short queues, so that its latency is its own.
const OPEN_SHARE: f64 = 0.5;

// === impl Comparison ===

impl Comparison {
    /// Starts the servers, measures all targets, and stops the servers. The first target is the
    /// floor.
    pub(crate) async fn run(self) -> anyhow::Result<Vec<Row>> {
        server::warn_if_debug();
        if let Some(program) = &self.stockade {
            server::ensure_built(program)?;
        }
        let workload = Rc::new(one_policy::workload(Expect::Allow));
        let cores = Cores::claim()?;
        let mut servers = vec![("floor", Server::floor(&cores).await?)];
        if let Some(program) = &self.stockade {
            servers.push(("stockade", Server::stockade(&cores, program, &one_policy::files()).await?));
        }
        for peer in &self.peers {
            peer.pid.map_or(Ok(()), |pid| cores.adopt(pid))?;
        }

        let started = servers.iter().map(|(name, server)| Peer {
            name: (*name).into(),
            address: server.address.clone(),
            pid: Some(server.pid),
        });
        let mut targets: Vec<_> = started.chain(self.peers.clone()).map(Target::new).collect();
        for round in 0..self.rounds.get() {
            self.measure(&mut targets, &workload, round).await?;
        }
        for (_, server) in servers {
            server.stop().await?;
        }
        Ok(rows(&targets))
    }

    /// Measures every target once at each pace, beginning with another target each round.
    async fn measure(&self, targets: &mut [Target], workload: &Rc<Workload>, round: usize) -> anyhow::Result<()> {
        let (later, first) = targets.split_at_mut(round % targets.len());
        for target in first.iter_mut().chain(&mut *later) {
            target.measure(Pace::Closed, workload, self.shape).await?;
        }
        for target in first.iter_mut().chain(later) {
            let rate = self.rate.unwrap_or_else(|| target.comfortable_rate());
            target.measure(Pace::Open { rate }, workload, self.shape).await?;
        }
        Ok(())
    }
}

fn rows(targets: &[Target]) -> Vec<Row> {
    let floor = targets.first().map(|floor| &floor.closed);
    let closed = targets.iter().map(|target| Row::new(&target.closed, floor));
    // The open loop's rate is given, not reached, so a ratio would say nothing.
    let open = targets.iter().map(|target| Row::new(&target.open, None));
    closed.chain(open).collect()
}

// === impl Target ===

impl Target {
    fn new(peer: Peer) -> Self {
        let series =
            |scenario: &str| Series { target: peer.name.clone(), scenario: scenario.into(), samples: Vec::new() };
        let (closed, open) = (series("closed"), series("open"));
        Self { peer, closed, open }
    }

    async fn measure(&mut self, pace: Pace, workload: &Rc<Workload>, shape: Shape) -> anyhow::Result<()> {
        let sample = load::measure(&self.peer.address, self.peer.pid, workload, pace, shape).await?;
        let series = match pace {
            Pace::Closed => &mut self.closed,
            Pace::Open { .. } => &mut self.open,
        };
        eprintln!("{} {}: {sample}", series.target, series.scenario);
        series.samples.push(sample);
        Ok(())
    }

    fn comfortable_rate(&self) -> f64 {
        let reached = self.closed.samples.first().map_or(0.0, |sample| sample.rps);
        (reached * OPEN_SHARE).max(1.0)
    }
}

// === impl Peer ===

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_once('=').ok_or("give NAME=ADDRESS[,pid=PID]")?;
        let (address, pid) = match rest.split_once(",pid=") {
            Some((address, pid)) => {
                let pid = pid.parse().ok().and_then(Pid::new);
                (address, Some(pid.ok_or("the pid is no process id")?))
            }
            None => (rest, None),
        };
        Ok(Self { name: name.into(), address: address.parse()?, pid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_a_name_an_address_and_perhaps_a_pid() {
        let peer: Peer = "opa=127.0.0.1:9191,pid=42".parse().unwrap();
        assert_eq!(peer.name, "opa");
        assert_eq!(peer.address, Address::Tcp("127.0.0.1:9191".into()));
        assert_eq!(peer.pid, Pid::new(42));
        assert_eq!("opa=127.0.0.1:9191".parse::<Peer>().unwrap().pid, None);
        for text in ["127.0.0.1:9191", "opa=nowhere", "opa=127.0.0.1:9191,pid=0"] {
            assert!(text.parse::<Peer>().is_err(), "{text}");
        }
    }
}
