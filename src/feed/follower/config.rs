//! How a store is followed, and what of it is believed.

use deserr::Deserr;
use serde::Serialize;

use super::super::{Limits, last_good};
use crate::decision::freshness;
use crate::problem::Problem;
use crate::store::keys::Trusted;
use crate::store::{Keyring, Role, StoreName};
use crate::units::HumanDuration;
use crate::yaml::Faults;

/// How a store is followed.
#[derive(Debug, Clone, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Config {
    /// The name of the store. Statements of another one are refused.
    pub name: StoreName,
    /// The keys that are trusted, and what with.
    pub keys: Vec<Trusted>,
    /// How long a proof of being current lasts, and what happens after.
    #[deserr(default)]
    pub freshness: freshness::Config,
    /// How far the clocks of store and sidecar may differ. Default: 1s.
    #[deserr(default = default_skew())]
    pub max_clock_skew: HumanDuration,
    /// How often the newest statements are read, whatever was heard. Default: 30s.
    #[deserr(default = default_refresh())]
    pub refresh: HumanDuration,
    /// The pod's name, for what the store is told. Default: `POD_NAME`, else `HOSTNAME`, of the environment.
    #[deserr(default = environment(&["POD_NAME", "HOSTNAME"], "unknown"))]
    pub pod: String,
    /// The pod's namespace. Default: `POD_NAMESPACE` of the environment, else `default`.
    #[deserr(default = environment(&["POD_NAMESPACE"], "default"))]
    pub namespace: String,
    /// The copy on disk of what was in force, for a start without the store. Default: none.
    #[deserr(default)]
    pub last_good: Option<last_good::Config>,
    /// What a bundle's files may amount to.
    #[deserr(default)]
    pub limits: Limits,
}

fn default_skew() -> HumanDuration {
    HumanDuration::seconds(1)
}

fn default_refresh() -> HumanDuration {
    HumanDuration::seconds(30)
}

fn environment(names: &[&str], otherwise: &str) -> String {
    let found = names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    found.unwrap_or_else(|| otherwise.to_owned())
}

impl Config {
    /// What is missing without which nothing would ever be in force.
    ///
    /// # Errors
    /// In words for the operator.
    pub fn check(&self) -> Result<(), Problem> {
        let keyring = Keyring::new(self.keys.iter().cloned());
        match [Role::Publish, Role::Beacon].into_iter().find(|role| !keyring.has(*role)) {
            None => Ok(()),
            Some(role) => Err(Problem::error(format!("`store.keys`: no key has the role `{}`", role.as_str()))
                .hint("add the public key that `stockade keygen` printed, with its roles")),
        }
    }
}
