//! What the bundles of all scenarios share: a service with folders, which users in teams look at and change.

use std::fmt::Write as _;

use crate::workload::{CONFIG, Files};

/// What a scenario sets in Stockade's configuration; the rest is as it is by default.
pub(crate) struct Settings {
    /// `sample_allow` of the decision log. It goes to standard output, and that to `/dev/null`: what is measured is
    /// making and writing the lines, not a disk.
    pub(crate) sample_allow: f64,
    /// `size` of the cache.
    pub(crate) cache_size: &'static str,
}

/// The file that a push changes.
pub(crate) const PUSHED: &str = "bundle/policies/pushed.cedar";

/// How many policies or entities are in a file: far from the limits of what the feed reads.
const PER_FILE: usize = 1_000;

const SCHEMA: &str = r#"entity Project;
entity Folder in [Project] { owner?: User };

type Asked = {
    source?: { address?: ipaddr },
    headers: { "x-tenant"?: String },
    query: { session?: String },
};

action "viewFolder" in ["read"] appliesTo { principal: [User], resource: [Folder], context: Asked };
action "editFolder" in ["write"] appliesTo { principal: [User], resource: [Folder], context: Asked };
"#;

const ROUTES: &str = r#"routes:
  - match: GET /folders/{folder}
    action: viewFolder
    resource: 'Folder::"{folder}"'
  - match: PUT /folders/{folder}
    action: editFolder
    resource: 'Folder::"{folder}"'
"#;

impl Default for Settings {
    /// Denials and 1 % of the allows are logged; 100,000 decisions find room in the cache.
    fn default() -> Self {
        Self { sample_allow: 0.01, cache_size: "96MiB" }
    }
}

impl Settings {
    /// One worker, since a server has one core. TTLs are long enough for any run: a hit is to be a hit.
    fn configuration(&self) -> String {
        format!(
            r#"service: shop
workers: 1
listen: ["tcp://127.0.0.1:0"]
bundles:
  - directory: ./bundle
admin:
  listen: "tcp://127.0.0.1:0"
cache:
  size: {}
  allow_ttl: 2h
  deny_ttl: 2h
decision_log:
  output: stdout
  sample_allow: {}
log:
  format: json
shutdown:
  grace: 100ms
  drain: 1s
"#,
            self.cache_size, self.sample_allow
        )
    }

    /// The files of a Stockade with these policies and entities, the latter as JSON.
    pub(crate) fn files(&self, policies: &[String], entities: &[String]) -> Files {
        let mut files: Files = vec![
            (CONFIG.into(), self.configuration()),
            ("bundle/bundle.yaml".into(), "name: shop\n".into()),
            ("bundle/schema.cedarschema".into(), SCHEMA.into()),
            ("bundle/routes.yaml".into(), ROUTES.into()),
        ];
        let parts = policies.chunks(PER_FILE).enumerate();
        files.extend(parts.map(|(part, own)| (format!("bundle/policies/{part:03}.cedar"), own.concat())));
        let parts = entities.chunks(PER_FILE).enumerate();
        files.extend(
            parts.map(|(part, own)| (format!("bundle/entities/{part:03}.json"), format!("[{}]\n", own.join(",\n")))),
        );
        files
    }
}

/// A policy with an id, as text.
pub(crate) fn policy(id: &str, effect: &str, scope: &str, condition: &str) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(text, "@id(\"{id}\")\n{effect} ({scope})\nwhen {{ {condition} }};\n");
    text
}

/// A folder in a project, as JSON of Cedar's entities.
pub(crate) fn folder(id: &str, project: &str, owner: Option<&str>) -> String {
    let attributes = match owner {
        Some(owner) => serde_json::json!({"owner": {"__entity": {"type": "User", "id": owner}}}),
        None => serde_json::json!({}),
    };
    let parents = [serde_json::json!({"type": "Project", "id": project})];
    serde_json::json!({"uid": {"type": "Folder", "id": id}, "attrs": attributes, "parents": parents}).to_string()
}

/// A condition on a header that is there.
pub(crate) fn tenant_is(tenant: &str) -> String {
    format!("context.headers has \"x-tenant\" && context.headers[\"x-tenant\"] == \"{tenant}\"")
}

/// A condition on the address of the caller, which is there.
pub(crate) fn address_in(range: &str) -> String {
    format!("context has source && context.source has address && context.source.address.isInRange(ip(\"{range}\"))")
}
