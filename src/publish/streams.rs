//! How the two streams of a store are set up, and which differences from that would break it.

use serde_json::{Value as Json, json};

use super::Error;
use crate::store::layout::Layout;
use crate::units::Bytes;

/// What the operator may choose.
#[derive(Debug, Clone)]
pub struct Settings {
    /// On how many servers each stream lies: 1, 3 or 5.
    pub replicas: u8,
    /// How large the stream of statements and bundles may become.
    pub max_bytes: Bytes,
}

impl Default for Settings {
    fn default() -> Self {
        Self { replicas: 1, max_bytes: Bytes(1 << 30) }
    }
}

/// How many statements of a kind are kept: the history that `stockade history` shows. Beacons come once a second.
const HISTORY: u64 = 1024;

/// How long a sidecar's status lives. It is repeated every 30 seconds, so what is older is that of a pod that reports no more:
/// it stays in sight for a day, unless the pod said goodbye.
const STATUS_AGE_NANOS: u64 = 24 * 3600 * 1_000_000_000;

/// How large all statuses together may become: a hundred thousand of them, at some 2 KiB each.
const STATUS_BYTES: u64 = 256 << 20;

/// How large one status may be.
const STATUS_SIZE: u64 = 16 << 10;

/// No consumers are needed; a few are left for people who look at a stream with tools of their own. Without a limit, a
/// mistake in a client would be the server's problem.
const CONSUMERS: u64 = 8;

/// A stream as it should be.
#[derive(Debug)]
pub struct Desired {
    name: String,
    config: Json,
    /// The keys of the configuration that matter: with other values, something that was promised would not hold.
    matter: &'static [&'static str],
}

impl Desired {
    /// The stream of statements and blobs. When it is full it refuses: it must never drop what is in force.
    pub fn of_statements(layout: &Layout, settings: &Settings) -> Self {
        let events = layout.events();
        let config = json!({
            "name": layout.stream(),
            "description": "Stockade: statements and bundles",
            "subjects": [layout.heads(), layout.blobs()],
            "retention": "limits",
            "storage": "file",
            "discard": "new",
            "max_bytes": settings.max_bytes.0,
            "max_msgs": -1,
            "max_msgs_per_subject": HISTORY,
            "max_msg_size": 1 << 20,
            "max_age": 0,
            "max_consumers": CONSUMERS,
            "num_replicas": settings.replicas,
            "allow_direct": true,
            "deny_delete": true,
            "republish": {"src": layout.heads(), "dest": events},
        });
        let matter = &["subjects", "retention", "storage", "discard", "max_age", "allow_direct", "republish"];
        Self { name: layout.stream(), config, matter }
    }

    /// The stream of what sidecars report: the last of each, in memory. One that was made when statuses lived for 90 seconds still does what
    /// it must; pods that vanish are then gone from it sooner.
    pub fn of_statuses(layout: &Layout, settings: &Settings) -> Self {
        let config = json!({
            "name": layout.status_stream(),
            "description": "Stockade: what sidecars enforce",
            "subjects": [layout.statuses()],
            "retention": "limits",
            "storage": "memory",
            "discard": "old",
            "max_bytes": STATUS_BYTES,
            "max_msgs": -1,
            "max_msgs_per_subject": 1,
            "max_msg_size": STATUS_SIZE,
            "max_age": STATUS_AGE_NANOS,
            "max_consumers": CONSUMERS,
            "num_replicas": settings.replicas,
            "allow_direct": true,
        });
        let matter = &["subjects", "retention", "max_msgs_per_subject", "allow_direct"];
        Self { name: layout.status_stream(), config, matter }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What to ask the server for.
    pub fn config(&self) -> &Json {
        &self.config
    }

    /// Whether a stream is as it should be, in what matters.
    ///
    /// # Errors
    /// What is not, all of it.
    pub fn check(&self, actual: &Json) -> Result<(), Error> {
        let differences: Vec<String> = self
            .matter
            .iter()
            .filter(|key| !is_same(self.config.get(**key), actual.get(**key)))
            .map(|key| {
                let shown = |value: Option<&Json>| value.map_or_else(|| "nothing".to_owned(), Json::to_string);
                format!("`{key}` is {}, not {}", shown(actual.get(*key)), shown(self.config.get(*key)))
            })
            .collect();
        match differences.is_empty() {
            true => Ok(()),
            false => Err(Error::StreamDiffers { stream: self.name.clone(), differences: differences.join(", ") }),
        }
    }
}

/// The server leaves out what is nothing, in some versions, and lists subjects in any order.
fn is_same(desired: Option<&Json>, actual: Option<&Json>) -> bool {
    match (desired, actual) {
        (Some(Json::Array(desired)), Some(Json::Array(actual))) => {
            desired.len() == actual.len() && desired.iter().all(|item| actual.contains(item))
        }
        (Some(Json::Object(desired)), Some(Json::Object(actual))) => {
            desired.iter().all(|(key, value)| actual.get(key) == Some(value))
        }
        (Some(desired), None) => desired.as_u64() == Some(0),
        (desired, actual) => desired == actual,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreName;

    fn layout() -> Layout {
        Layout::new(StoreName::try_from_text("prod".to_owned()).expect("a name"))
    }

    #[test]
    fn a_stream_may_differ_in_what_does_not_matter() {
        let desired = Desired::of_statements(&layout(), &Settings::default());
        let mut actual = desired.config().clone();
        actual["max_bytes"] = json!(5);
        actual["num_replicas"] = json!(3);
        actual["subjects"] = json!(["stockade.prod.blob.>", "stockade.prod.head.>"]);
        actual["republish"]["headers_only"] = json!(null);
        actual.as_object_mut().expect("an object").remove("max_age");
        desired.check(&actual).expect("as it should be");
    }

    #[test]
    fn but_not_in_what_does() {
        let desired = Desired::of_statements(&layout(), &Settings::default());
        for (key, value) in [
            ("storage", json!("memory")),
            ("discard", json!("old")),
            ("max_age", json!(1)),
            ("allow_direct", json!(false)),
            ("subjects", json!(["stockade.prod.head.>"])),
            ("republish", json!({"src": "stockade.prod.head.>", "dest": "elsewhere.>"})),
            ("republish", json!(null)),
        ] {
            let mut actual = desired.config().clone();
            actual[key] = value;
            let error = desired.check(&actual).expect_err(key).to_string();
            assert!(error.contains(&format!("`{key}` is ")), "{error}");
        }
    }
}
