//! A bundle that is compiled with what is remembered of the version before it is the bundle that is compiled anew, in all that can be
//! seen of it.

use std::time::SystemTime;

use stockade::model::{Attributes, EntityUid, Principal, Proof, Published, Query, Value};
use stockade::policy::{Memory, Snapshot};

use crate::fixture::{files, lines};

const NAME: (&str, &str) = ("bundle.yaml", "name: shop");
const GROUPS: &str = r#"[{"uid": {"type": "Group", "id": "staff"}, "attrs": {}, "parents": []},
    {"uid": {"type": "User", "id": "anna"}, "attrs": {}, "parents": [{"type": "Group", "id": "staff"}]}]"#;
const READ: (&str, &str) =
    ("policies/read.cedar", "permit (principal is User, action in Action::\"read\", resource == Service::\"shop\");");
const NOT_THERE: (&str, &str) = (
    "policies/not-there.cedar",
    "@id(\"no\") forbid (principal is User, action, resource) when { context.path == \"/x\" };",
);

/// Each is published after the one before it.
const VERSIONS: &[&[(&str, &str)]] = &[
    &[NAME, READ],
    &[NAME, READ, NOT_THERE],
    // The same policies deny in another way.
    &[("bundle.yaml", "name: shop\ndenial: {status: 404, message: nothing here}"), READ, NOT_THERE],
    // An error in one file, and a policy that is there twice.
    &[
        NAME,
        READ,
        NOT_THERE,
        ("policies/bad.cedar", "permit (principal is User, action, resource) when { context.nope };"),
    ],
    &[NAME, READ, NOT_THERE, ("policies/again.cedar", "@id(\"no\") permit (principal is User, action, resource);")],
    // What is to be said about one file is said each time.
    &[NAME, READ, ("policies/all.cedar", "permit (principal, action, resource);")],
    &[NAME, READ, ("policies/all.cedar", "permit (principal, action, resource);"), NOT_THERE],
    &[
        NAME,
        READ,
        (
            "schema.cedarschema",
            "action \"GET\" appliesTo { principal: [User], resource: [Service], context: { query: { id: String } } };",
        ),
        (
            "policies/key.cedar",
            "permit (principal is User, action == Action::\"GET\", resource) when { context.query.id == \"1\" };",
        ),
    ],
    // Another schema, under which a policy that was good is not.
    &[
        NAME,
        READ,
        (
            "policies/key.cedar",
            "permit (principal is User, action == Action::\"GET\", resource) when { context.query.id == \"1\" };",
        ),
    ],
    // Templates and links, and entities beside them.
    &[
        NAME,
        READ,
        ("policies/template.cedar", "@id(\"of\") permit (principal == ?principal, action, resource);"),
        ("links.json", r#"[{"template_id": "of", "link_id": "anna", "args": {"?principal": "User::\"anna\""}}]"#),
        ("entities.json", GROUPS),
    ],
    // A link with the id of a policy that is known.
    &[
        NAME,
        READ,
        NOT_THERE,
        ("policies/template.cedar", "@id(\"of\") permit (principal == ?principal, action, resource);"),
        ("links.json", r#"[{"template_id": "of", "link_id": "no", "args": {"?principal": "User::\"anna\""}}]"#),
    ],
    // The same files under the name of another bundle.
    &[("bundle.yaml", "name: store"), READ, NOT_THERE],
    // No schema that anything could be held against.
    &[NAME, READ, ("schema.cedarschema", "entity;")],
    &[NAME, ("policies/none.cedar", "")],
];

fn ask(path: &str) -> Query {
    let uid = |text: &str| text.parse::<EntityUid>().unwrap();
    Query {
        principal: Principal {
            uid: uid("User::\"anna\""),
            attributes: Attributes::new(),
            parents: Vec::new(),
            proof: Proof::Jwt,
        },
        action: uid("Action::\"HEAD\""),
        resource: uid("Service::\"shop\""),
        context: Attributes::from([("path".into(), Value::String(path.into()))]),
    }
}

/// All that can be seen of a version, but for when it was compiled.
fn seen(memory: &mut Memory, version: usize, entries: &[(&str, &str)]) -> String {
    let published = Published { number: version.to_string(), at: SystemTime::UNIX_EPOCH };
    let snapshot = match Snapshot::compile(&[files(&format!("store@{version}"), entries)], Some(published), memory) {
        Ok(snapshot) => snapshot,
        Err(problems) => return format!("{:#?}", lines(&problems)),
    };
    let mut summary = serde_json::to_value(snapshot.summary()).unwrap();
    for when in ["enforced_at", "lead_time_ms"] {
        summary[when].take();
    }
    let decisions = ["/", "/x"].map(|path| snapshot.decide(&ask(path)).unwrap().ruling);
    format!("{summary:#}\n{decisions:#?}\n{:#?}", lines(&snapshot.warnings))
}

#[test]
fn what_is_remembered_changes_nothing_but_the_time_it_takes() {
    let mut memory = Memory::default();
    // Each twice in a row, and each after each other one that is two or three before it.
    let steps = (0..VERSIONS.len()).flat_map(|at| [at, at, at.saturating_sub(2), at, at.saturating_sub(3), at]);
    let mut good = 0;
    for (number, at) in steps.enumerate() {
        let anew = seen(&mut Memory::default(), number, VERSIONS[at]);
        assert_eq!(seen(&mut memory, number, VERSIONS[at]), anew, "version {at}: {:#?}", VERSIONS[at]);
        good += usize::from(anew.contains("\"revision\""));
    }
    assert!(good > VERSIONS.len(), "{good} of them are good");
}
