//! One request that is always allowed, and the one policy that it needs: the price of a call and little else.

use crate::request;
use crate::workload::{Ask, CONFIG, Expect, Files, Workload};

/// Always the same request.
pub(crate) fn workload(expect: Expect) -> Workload {
    Workload::in_turn([Ask::new(&request::product_list(), expect)].into())
}

/// A Stockade that allows it.
pub(crate) fn files() -> Files {
    const CONFIGURATION: &str = r#"service: bench
workers: 1
listen: ["tcp://127.0.0.1:0"]
bundles:
  - directory: ./bundle
admin:
  listen: "tcp://127.0.0.1:0"
decision_log:
  output: none
log:
  format: json
"#;
    const POLICY: &str = r#"@id("allow-get")
permit (principal, action == Action::"GET", resource == Service::"bench");
"#;
    let files =
        [(CONFIG, CONFIGURATION), ("bundle/bundle.yaml", "name: bench\n"), ("bundle/policies/allow.cedar", POLICY)];
    files.map(|(path, text)| (path.into(), text.into())).into()
}
