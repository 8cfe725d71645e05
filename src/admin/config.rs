//! `admin:` and `probes:` of the configuration.

use std::num::NonZeroUsize;

use deserr::{Deserr, ValuePointerRef};
use serde::Serialize;

use super::guard::HostName;
use crate::listener;
use crate::yaml::Faults;

/// `admin:`
#[derive(Debug, Clone, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Config {
    /// Where; `none` for nowhere.
    #[deserr(default = Self::default().listen)]
    pub listen: Listen,
    /// How many connections it serves; beyond it, the oldest is closed. Default `32`.
    #[deserr(default = Self::default().connections)]
    pub connections: NonZeroUsize,
    /// Names that requests may ask for in `host`, beside `localhost` and the address itself: without such a list, a page in an
    /// operator's browser could rename itself to our address (DNS rebinding). Default: none.
    #[deserr(default)]
    pub hosts: Vec<HostName>,
}

/// Where the operator's endpoint listens.
#[derive(Debug, Clone)]
pub enum Listen {
    /// Nowhere.
    None,
    /// There.
    At(listener::Config),
}

impl Deserr<Faults> for Listen {
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

impl Serialize for Listen {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_str("none"),
            Self::At(listen) => listen.serialize(serializer),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: Listen::At(listener::Config::loopback(9192)), connections: CONNECTIONS, hosts: Vec::new() }
    }
}

const CONNECTIONS: NonZeroUsize = NonZeroUsize::new(32).unwrap();

/// `probes:`
#[derive(Debug, Clone, Default, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct ProbesConfig {
    /// An address with nothing but `/livez` and `/readyz`, for `httpGet` probes of the kubelet, which does not get to loopback.
    /// It may be reachable from other machines, since it says no more than yes or no. Default: `none`.
    #[deserr(default)]
    pub listen: ProbesListen,
}

/// Where the kubelet's probes are answered.
#[derive(Debug, Clone, Default)]
pub enum ProbesListen {
    /// Nowhere.
    #[default]
    None,
    /// There.
    At(listener::Config),
}

impl Deserr<Faults> for ProbesListen {
    fn deserialize_from_value<V: deserr::IntoValue>(
        value: deserr::Value<V>,
        location: ValuePointerRef<'_>,
    ) -> Result<Self, Faults> {
        let address = String::deserialize_from_value(value, location)?;
        if address == "none" {
            return Ok(Self::None);
        }
        listener::Config::parse_open(&address).map(Self::At).map_err(|invalid| {
            let hint = "`none`, or an address like `tcp://0.0.0.0:9193`".to_owned();
            Faults::new(invalid, Some(hint), location)
        })
    }
}

impl Serialize for ProbesListen {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_str("none"),
            Self::At(listen) => serializer.collect_str(listen),
        }
    }
}
