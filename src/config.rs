//! The configuration file: composes what the components own, resolves paths, and reports every problem at once.

use std::path::{Path, PathBuf};

use deserr::Deserr;
use serde::Serialize;

use crate::decision::cache;
use crate::decision::freshness::LastProof;
use crate::ext_authz::identity_source::{self, IdentitySource};
use crate::ext_authz::request::ServiceName;
use crate::ext_authz::response::{Errors, HeaderName, HeaderSource, Responder, UndecidedResponse};
use crate::ext_authz::{body, check, path};
#[cfg(feature = "server")]
use crate::ext_authz::{server, service};
use crate::feed;
#[cfg(feature = "nats")]
use crate::nats;
use crate::observe::{decision_log, metrics, tracing};
use crate::problem::{Problem, SourceFile};
#[cfg(feature = "server")]
use crate::yaml::Invalid;
use crate::yaml::{self, AtLeastOne, Faults, Table};
#[cfg(feature = "server")]
use crate::{admin, listener, shutdown};

/// `stockade.yaml`. docs/configuration.md describes each key; a test holds the two together.
#[derive(Debug, Clone, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Config {
    /// The service that the sidecar stands beside: the resource of requests that no route gives another one.
    #[deserr(default = ServiceName("default".to_owned()))]
    pub service: ServiceName,
    /// Where Envoy's checks are answered.
    #[cfg(feature = "server")]
    #[deserr(default = default_listen())]
    pub listen: AtLeastOne<listener::Config>,
    /// How many threads answer checks. Default: as many as there are cores, at most 4.
    #[cfg(feature = "server")]
    #[deserr(default)]
    pub workers: Workers,
    /// The bundles to follow, merged into one snapshot; either these or `store`.
    #[deserr(default)]
    pub bundles: Vec<BundleSource>,
    /// How their directories are followed.
    #[deserr(default)]
    pub feed: feed::directory::Config,
    /// The central store to follow, and what of it is believed.
    #[deserr(default)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<feed::follower::Config>,
    /// How the store's NATS servers are reached.
    #[cfg(feature = "nats")]
    #[deserr(default)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nats: Option<nats::Config>,
    /// Proofs of identity, in the order in which they count.
    #[deserr(default = AtLeastOne(identity_source::default_sources()))]
    pub identity: AtLeastOne<IdentitySource>,
    /// Which forms of paths are let through.
    #[deserr(default)]
    pub paths: path::Config,
    /// What becomes of bodies that cannot be read.
    #[deserr(default)]
    pub bodies: body::Config,
    /// How Undecided looks on the wire.
    #[deserr(default)]
    pub undecided: UndecidedResponse,
    /// What clients learn of refusals.
    #[deserr(default)]
    pub errors: Errors,
    /// Headers that the upstream gets with an allowed request; copies that the client sent are replaced or removed.
    #[deserr(default)]
    pub upstream_headers: Table<HeaderName, HeaderSource>,
    /// Headers that the upstream does not get.
    #[deserr(default)]
    pub remove_headers: Vec<HeaderName>,
    /// What may be in flight, and how large.
    #[cfg(feature = "server")]
    #[deserr(default)]
    pub limits: service::Config,
    /// Limits of the connections.
    #[cfg(feature = "server")]
    #[deserr(default)]
    pub http2: server::Config,
    /// The record of every decision.
    #[deserr(default)]
    pub decision_log: decision_log::Config,
    /// What is remembered.
    #[deserr(default)]
    pub cache: cache::Config,
    /// What is counted.
    #[deserr(default)]
    pub metrics: metrics::Config,
    /// The operator's HTTP endpoint.
    #[cfg(feature = "server")]
    #[deserr(default)]
    pub admin: admin::Config,
    /// The kubelet's HTTP probes.
    #[cfg(feature = "server")]
    #[deserr(default)]
    pub probes: admin::ProbesConfig,
    /// The program's own log.
    #[deserr(default)]
    pub log: tracing::Config,
    /// How the process ends.
    #[cfg(feature = "server")]
    #[deserr(default)]
    pub shutdown: shutdown::Config,
}

/// `workers:`
#[cfg(feature = "server")]
#[derive(Debug, Clone, Copy, Deserr, Serialize)]
#[deserr(error = Faults, try_from(usize) = Workers::new -> Invalid)]
#[serde(transparent)]
pub struct Workers(pub usize);

#[cfg(feature = "server")]
impl Workers {
    fn new(threads: usize) -> Result<Self, Invalid> {
        match threads {
            1..=64 => Ok(Self(threads)),
            _ => Err(Invalid::new(format!("{threads} is not a number of threads")).hint("1 to 64")),
        }
    }
}

#[cfg(feature = "server")]
impl Default for Workers {
    fn default() -> Self {
        Self(std::thread::available_parallelism().map_or(1, |cores| cores.get().min(4)))
    }
}

/// One entry of `bundles:`.
#[derive(Debug, Clone, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct BundleSource {
    /// A directory; a relative one counts from the configuration file.
    pub directory: String,
}

#[cfg(feature = "server")]
fn default_listen() -> AtLeastOne<listener::Config> {
    AtLeastOne(vec![listener::Config::loopback(9191)])
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
        config.check()?;
        let base = file.parent().unwrap_or(Path::new(""));
        for bundle in &mut config.bundles {
            bundle.directory = base.join(&bundle.directory).display().to_string();
        }
        if let Some(last_good) = config.store.as_mut().and_then(|store| store.last_good.as_mut()) {
            last_good.directory = base.join(&last_good.directory).display().to_string();
        }
        Ok(config)
    }

    /// What no key can know by itself: where bundles come from, and which proofs of identity get a turn.
    fn check(&self) -> Result<(), Vec<Problem>> {
        let idle = identity_source::out_of_turn(&self.identity.0);
        if !idle.is_empty() {
            return Err(idle);
        }
        let problem = match (&self.store, self.bundles.is_empty()) {
            (None, true) => Problem::error("neither `bundles` nor `store` is there, so nothing would ever be in force")
                .hint("`bundles: [{directory: /etc/stockade/bundle}]`, or a `store`"),
            (Some(_), false) => Problem::error("both `bundles` and `store` are there")
                .hint("keep one: `stockade publish` puts several directories into one store"),
            (Some(store), true) => {
                let checked = store.check().and_then(|()| self.check_nats()).and_then(|()| self.check_feed());
                return checked.map_err(|problem| vec![problem]);
            }
            (None, false) => return self.check_directories().map_err(|problem| vec![problem]),
        };
        Err(vec![problem])
    }

    /// `feed` is about directories.
    fn check_feed(&self) -> Result<(), Problem> {
        match self.feed == feed::directory::Config::default() {
            true => Ok(()),
            false => Err(Problem::error("`feed` is about directories, and has no effect beside `store`")
                .hint("remove it; what a bundle may amount to is `store.limits` here")),
        }
    }

    /// `nats` is about the store.
    fn check_directories(&self) -> Result<(), Problem> {
        #[cfg(feature = "nats")]
        if self.nats.is_some() {
            return Err(Problem::error("`nats` has no effect without `store`").hint("add `store`, or remove it"));
        }
        Ok(())
    }

    /// Keys that were set, and have no effect beside others: worth a look, while somebody may have switched something off
    /// for a while.
    pub fn without_effect(&self) -> Vec<Problem> {
        let (log, default) = (&self.decision_log, decision_log::Config::default());
        let is_off = log.output == decision_log::Output::None;
        let is_file = matches!(log.output, decision_log::Output::File(_));
        let has_files = log.max_file_size != default.max_file_size || log.max_files != default.max_files;
        let idle = [
            (
                !is_file && !is_off && has_files,
                "`decision_log`: `max_file_size` and `max_files` have no effect without a file as `output`",
            ),
            (
                is_off && *log != (decision_log::Config { output: log.output.clone(), ..default }),
                "`decision_log`: nothing in it has an effect with `output: none`",
            ),
            #[cfg(feature = "server")]
            (
                matches!(self.admin.listen, admin::Listen::None) && self.metrics != metrics::Config::default(),
                "`metrics` has no effect with `admin: {listen: none}`: nothing can read them",
            ),
        ];
        idle.into_iter().filter(|(is_idle, _)| *is_idle).map(|(_, message)| Problem::warning(message)).collect()
    }

    #[cfg(feature = "nats")]
    fn check_nats(&self) -> Result<(), Problem> {
        match self.nats {
            Some(_) => Ok(()),
            None => Err(Problem::error("`store` needs `nats`: how its servers are reached")
                .hint("`nats: {servers: [nats://nats.stockade:4222]}`")),
        }
    }

    #[cfg(not(feature = "nats"))]
    fn check_nats(&self) -> Result<(), Problem> {
        Err(Problem::error("`store`: this binary was built without the feature `nats`"))
    }

    /// The directories of the bundles.
    pub fn directories(&self) -> Vec<PathBuf> {
        self.bundles.iter().map(|bundle| PathBuf::from(&bundle.directory)).collect()
    }

    /// What has to be proved of what is in force.
    pub fn proof(&self) -> LastProof {
        self.store.as_ref().map_or_else(LastProof::none, |store| LastProof::required(store.freshness))
    }

    /// What it has to say of the way of a request.
    pub fn pipeline(&self) -> check::Config<'_> {
        check::Config {
            service: &self.service,
            paths: &self.paths,
            identity: &self.identity.0,
            logged: &self.decision_log.attributes,
            bodies: self.bodies,
            responder: Responder {
                undecided: self.undecided,
                errors: self.errors,
                upstream_headers: self.upstream_headers.0.clone(),
                remove_headers: self.remove_headers.clone(),
            },
        }
    }
}
