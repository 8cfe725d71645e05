//! The configuration file: composes what the components own, resolves paths, and reports every problem at once.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use deserr::{Deserr, ValuePointerRef};
use serde::Serialize;
use tokio::sync::watch;

use crate::decision::authorizer::Authorizer;
use crate::ext_authz::identity::{self, Source};
use crate::ext_authz::judge::Judge;
use crate::ext_authz::request::{Mapping, ServiceName};
use crate::ext_authz::response::{Answers, HeaderName, HeaderSource, UndecidedAnswer};
use crate::ext_authz::{path, server, service};
use crate::observe::{decision_log, metrics, tracing};
use crate::policy::Snapshot;
use crate::problem::{Problem, SourceFile};
use crate::yaml::{self, Faults};
use crate::{feed, listener, shutdown};

/// `stockade.yaml`. The README describes each key; a test holds the two together.
#[derive(Debug, Clone, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields, validate = Config::validate -> Faults)]
pub struct Config {
    /// The service that the sidecar stands beside: the resource of requests that no route gives another one.
    #[deserr(default = ServiceName("default".to_owned()))]
    pub service: ServiceName,
    /// Where Envoy's checks are answered.
    #[deserr(default = default_listen())]
    pub listen: Vec<listener::Config>,
    /// How many threads answer checks. Default: as many as there are cores, at most 4.
    #[deserr(default = default_workers())]
    pub workers: usize,
    /// The bundles to follow, merged into one snapshot.
    pub bundles: Vec<BundleSource>,
    /// How their directories are followed.
    #[deserr(default)]
    pub feed: feed::directory::Config,
    /// Proofs of identity, in the order in which they count.
    #[deserr(default = identity::default_sources())]
    pub identity: Vec<Source>,
    /// Which forms of paths are let through.
    #[deserr(default)]
    pub paths: path::Config,
    /// How Undecided looks on the wire.
    #[deserr(default)]
    pub undecided: UndecidedAnswer,
    /// Headers that the upstream gets with an allowed request; copies that the client sent are replaced or removed.
    #[deserr(default)]
    pub upstream_headers: std::collections::BTreeMap<HeaderName, HeaderSource>,
    /// Headers that the upstream does not get.
    #[deserr(default)]
    pub remove_headers: Vec<HeaderName>,
    /// What may be in flight, and how large.
    #[deserr(default)]
    pub limits: service::Config,
    /// Limits of the connections.
    #[deserr(default)]
    pub http2: server::Config,
    /// The record of every decision.
    #[deserr(default)]
    pub decision_log: decision_log::Config,
    /// What is counted.
    #[deserr(default)]
    pub metrics: metrics::Config,
    /// The operator's HTTP endpoint.
    #[deserr(default)]
    pub admin: AdminConfig,
    /// The program's own log.
    #[deserr(default)]
    pub log: tracing::Config,
    /// How the process ends.
    #[deserr(default)]
    pub shutdown: shutdown::Config,
}

/// One entry of `bundles:`.
#[derive(Debug, Clone, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct BundleSource {
    /// A directory; a relative one counts from the configuration file.
    pub directory: String,
}

/// `admin:`
#[derive(Debug, Clone, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct AdminConfig {
    /// Where; `none` for nowhere.
    #[deserr(default = AdminConfig::default().listen)]
    pub listen: AdminListen,
}

/// Where the operator's endpoint listens.
#[derive(Debug, Clone)]
pub enum AdminListen {
    /// Nowhere.
    None,
    /// There.
    At(listener::Config),
}

impl Deserr<Faults> for AdminListen {
    fn deserialize_from_value<V: deserr::IntoValue>(
        value: deserr::Value<V>,
        location: ValuePointerRef<'_>,
    ) -> Result<Self, Faults> {
        if matches!(&value, deserr::Value::String(text) if text == "none") {
            return Ok(Self::None);
        }
        let listen = listener::Config::deserialize_from_value(value, location)?;
        if listen.has_tls() {
            let hint = Some("keep it on loopback, or put a proxy that does TLS in front".to_owned());
            return Err(Faults::new("the admin endpoint does not do TLS", hint, location));
        }
        Ok(Self::At(listen))
    }
}

impl Serialize for AdminListen {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_str("none"),
            Self::At(listen) => listen.serialize(serializer),
        }
    }
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { listen: AdminListen::At(loopback(9192)) }
    }
}

fn default_listen() -> Vec<listener::Config> {
    vec![loopback(9191)]
}

fn loopback(port: u16) -> listener::Config {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    listener::Config::Tcp { address, allow_remote: false, tls: None }
}

fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(4))
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// Every problem of the file.
    pub fn load(file: &Path) -> Result<Self, Vec<Problem>> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| vec![Problem::error(format!("{} cannot be read: {error}", file.display()))])?;
        let mut config: Self = yaml::parse(&SourceFile::new(file.display().to_string(), text))?;
        let base = file.parent().unwrap_or(Path::new(""));
        for bundle in &mut config.bundles {
            bundle.directory = base.join(&bundle.directory).display().to_string();
        }
        Ok(config)
    }

    /// The directories of the bundles.
    pub fn directories(&self) -> Vec<PathBuf> {
        self.bundles.iter().map(|bundle| PathBuf::from(&bundle.directory)).collect()
    }

    /// What judges requests as this configuration says, under the snapshot that the channel holds.
    pub fn judge(&self, snapshots: watch::Receiver<Option<Arc<Snapshot>>>) -> Judge {
        Judge {
            authorizer: Authorizer::new(snapshots),
            mapping: Mapping::new(&self.service, self.paths.clone(), self.identity.clone()),
            answers: Answers {
                undecided: self.undecided,
                upstream_headers: self.upstream_headers.clone(),
                remove_headers: self.remove_headers.clone(),
            },
        }
    }

    /// What no component can see alone.
    fn validate(self, location: ValuePointerRef<'_>) -> Result<Self, Faults> {
        let fault =
            |key, message: &str, hint: &str| Err(Faults::new(message, Some(hint.to_owned()), location.push_key(key)));
        if self.bundles.is_empty() {
            return fault("bundles", "there is no bundle", "name at least one directory");
        }
        if self.listen.is_empty() {
            return fault("listen", "there is no address to listen on", "like `tcp://127.0.0.1:9191`");
        }
        if self.identity.is_empty() {
            return fault("identity", "there is no proof of identity", "leave the key out for the defaults");
        }
        for (at, source) in self.identity.iter().enumerate() {
            if let Some((message, hint)) = source.fault() {
                let list = location.push_key("identity");
                return Err(Faults::new(message, Some(hint.to_owned()), list.push_index(at)));
            }
        }
        if self.workers == 0 || self.workers > 64 {
            return fault("workers", "the number of threads is out of range", "1 to 64");
        }
        if self.limits.in_flight == 0 {
            return fault("limits", "`in_flight` of 0 would shed every check", "at least 1");
        }
        Ok(self)
    }
}
