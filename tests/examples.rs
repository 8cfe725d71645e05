//! Cedar's own example applications, with their own names: each loads, and each of its requests is answered as the folder
//! that it stands in says. Their contexts are the application's, so here they travel in the request's body.
//!
//! The examples lie beside the checkout, or where `STOCKADE_CEDAR_EXAMPLES` says; without them the test says so.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cedar_policy::{Entities, PolicySet, Schema, SchemaFragment};
use serde_json::{Map, Value as Json, json};
use stockade::model::EntityUid;
use stockade::policy::Files;

use crate::fixture::{Court, compile, files, frame, metadata, post, problems, sound};

/// The applications that come with requests.
const APPLICATIONS: [&str; 11] = [
    "cedar-example-use-cases/document_cloud",
    "cedar-example-use-cases/github_example",
    "cedar-example-use-cases/hotel_chains/static",
    "cedar-example-use-cases/hotel_chains/templated",
    "cedar-example-use-cases/sales_orgs/static",
    "cedar-example-use-cases/sales_orgs/templated",
    "cedar-example-use-cases/streaming_service",
    "cedar-example-use-cases/tags_n_roles",
    "cedar-example-use-cases/tax_preparer",
    "cedar-policy-language-in-action/GitApp",
    "cedar-policy-language-in-action/PhotoApp",
];

/// Those whose policies read a context that an application makes up.
const WITH_CONTEXT: [&str; 6] = [
    "cedar-example-use-cases/document_cloud",
    "cedar-example-use-cases/sales_orgs/static",
    "cedar-example-use-cases/sales_orgs/templated",
    "cedar-example-use-cases/streaming_service",
    "cedar-example-use-cases/tax_preparer",
    "cedar-policy-language-in-action/PhotoApp",
];

fn examples() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/cedar-examples");
    let folder = std::env::var_os("STOCKADE_CEDAR_EXAMPLES").map(PathBuf::from);
    let folder = folder.or_else(|| beside.exists().then_some(beside));
    if folder.is_none() {
        println!("skipped: Cedar's example applications are not here; STOCKADE_CEDAR_EXAMPLES says where they are");
    }
    folder
}

/// The text of the one file of an application that has this ending.
fn text(folder: &Path, ending: &str) -> Option<String> {
    let mut found = std::fs::read_dir(folder).expect("a folder").filter_map(|entry| {
        let path = entry.expect("an entry").path();
        path.to_str().is_some_and(|path| path.ends_with(ending)).then_some(path)
    });
    let path = found.next()?;
    assert!(found.next().is_none(), "several files with the ending {ending} in {}", folder.display());
    Some(std::fs::read_to_string(path).expect("text"))
}

/// The requests of an application: whether each is to be allowed, its name, and what it asks.
fn requests(folder: &Path) -> Vec<(bool, String, Json)> {
    let mut all = Vec::new();
    for (outcome, allowed) in [("ALLOW", true), ("DENY", false)] {
        for entry in std::fs::read_dir(folder.join(outcome)).expect("a folder of requests") {
            let path = entry.expect("an entry").path();
            let request = std::fs::read_to_string(&path).expect("text");
            all.push((allowed, path.display().to_string(), serde_json::from_str(&request).expect("JSON")));
        }
    }
    all
}

/// The schema with the contexts of its actions under `body`.
fn with_bodies(schema: &str) -> String {
    let (fragment, _) = SchemaFragment::from_cedarschema_str(schema).expect("a schema");
    let mut schema = fragment.to_json_value().expect("JSON");
    for (_, namespace) in schema.as_object_mut().into_iter().flatten() {
        for (_, action) in namespace["actions"].as_object_mut().into_iter().flatten() {
            let Some(applies) = action.get_mut("appliesTo").filter(|applies| !applies.is_null()) else { continue };
            let context = applies.get("context").cloned();
            if let Some(context) = context {
                applies["context"] = json!({"type": "Record", "attributes": {"body": context}});
            }
        }
    }
    SchemaFragment::from_json_value(schema).expect("a schema").to_cedarschema().expect("text")
}

/// Policies that read `context` as read `context.body`.
fn reading_bodies(policy: &str) -> String {
    policy.replace("context.", "context.body.").replace("context has", "context has body && context.body has")
}

/// Each policy in a file of its own, whose name is its id if it has no `@id`.
fn policies(text: &str) -> Vec<(String, String)> {
    let set: PolicySet = text.parse().expect("policies");
    let statics = set.policies().map(|policy| policy.to_cedar().expect("text"));
    let templates = set.templates().map(ToString::to_string);
    statics.chain(templates).enumerate().map(|(at, text)| (format!("policies/p{at}.cedar"), text)).collect()
}

/// Where a request for an action on a resource goes.
fn path(action: &EntityUid, resource: &EntityUid) -> String {
    const KEPT: percent_encoding::AsciiSet = percent_encoding::NON_ALPHANUMERIC.remove(b'.').remove(b'-').remove(b'_');
    let encode = |text: &str| percent_encoding::utf8_percent_encode(text, &KEPT).to_string();
    let ty = resource.type_name().to_string().replace("::", "-");
    format!("/{}/{ty}/{}", encode(action.id().unescaped()), encode(resource.id().unescaped()))
}

fn bundle(folder: &Path, schema: &str, policy: &str, asked: &[(EntityUid, EntityUid, EntityUid)]) -> Files {
    let mut routes = BTreeSet::new();
    for (_, action, resource) in asked {
        let ty = resource.type_name().to_string();
        let path = format!("/{}/{}/{{id}}", action.id().unescaped(), ty.replace("::", "-"));
        routes.insert(format!("  - {{ match: 'POST {path}', action: '{action}', resource: '{ty}::\"{{id}}\"' }}\n"));
    }
    let routes = format!("routes:\n{}", routes.into_iter().collect::<String>());
    let entities = text(folder, "entities.json").expect("entities");
    let entities = conforming(&entities, schema);
    let mut bundle = files(
        "example",
        &[
            ("bundle.yaml", "name: example"),
            ("schema.cedarschema", schema),
            ("routes.yaml", &routes),
            ("entities.json", &entities),
        ],
    );
    bundle.files.extend(policies(policy));
    if let Some(links) = text(folder, "linked") {
        bundle.files.insert("links.json".to_owned(), links);
    }
    bundle
}

/// The entities as their schema has them: some of the examples do not pass Cedar's own strict validation.
fn conforming(entities: &str, schema: &str) -> String {
    let own: Schema = schema.parse().expect("a schema");
    if Entities::from_json_str(entities, Some(&own)).is_ok() {
        return entities.to_owned();
    }
    // Of a type that the schema of `github_example` does not have; its teams stand where these do.
    let mut all: Json = serde_json::from_str(&entities.replace("\"Organization\"", "\"Team\"")).expect("entities");
    for entity in all.as_array_mut().into_iter().flatten() {
        // Lists of sharers in `document_cloud`, written as documents.
        for list in ["viewACL", "modifyACL", "manageACL"] {
            if let Some(uid) = entity["attrs"].get_mut(list).and_then(|list| list.get_mut("__entity")) {
                uid["type"] = json!("DocumentShare");
            }
        }
    }
    all.to_string()
}

/// A value of a context as an application would send it: an entity is its id, an extension value is its text.
fn sent(value: &Json) -> Json {
    let entity = value.get("__entity").and_then(|entity| entity.get("id"));
    let extension = value.get("fn").and(value.get("arg"));
    match (entity.or(extension), value) {
        (Some(text), _) => text.clone(),
        (None, Json::Object(fields)) => {
            Json::Object(fields.iter().map(|(name, field)| (name.clone(), sent(field))).collect::<Map<_, _>>())
        }
        (None, Json::Array(items)) => items.iter().map(sent).collect(),
        (None, other) => other.clone(),
    }
}

#[test]
fn cedars_examples_answer_as_their_folders_say() {
    let Some(folder) = examples() else { return };
    for application in APPLICATIONS {
        let folder = folder.join(application);
        let schema = text(&folder, ".cedarschema").expect("a schema");
        let policy = text(&folder, ".cedar").expect("policies");
        let requests = requests(&folder);
        let uid =
            |request: &Json, part: &str| -> EntityUid { request[part].as_str().expect(part).parse().expect(part) };
        let asked: Vec<_> = requests
            .iter()
            .map(|(_, _, request)| (uid(request, "principal"), uid(request, "action"), uid(request, "resource")))
            .collect();
        let needs = WITH_CONTEXT.contains(&application);
        if needs {
            let mut found = problems(&[bundle(&folder, &schema, &policy, &asked)]);
            // An annotation of the application's own.
            found.retain(|problem| !problem.contains("`@createPolicyWhen` has no effect"));
            assert!(!found.is_empty());
            assert!(found.iter().all(|problem| problem.contains("is not something a request has")), "{found:#?}");
            assert!(found.iter().all(|problem| problem.contains("`context.body.")), "{found:#?}");
        }
        let (schema, policy) = if needs { (with_bodies(&schema), reading_bodies(&policy)) } else { (schema, policy) };
        let snapshot = compile(&[bundle(&folder, &schema, &policy, &asked)]);
        for ((allowed, name, request), (principal, action, resource)) in requests.iter().zip(&asked) {
            let ty = principal.type_name();
            let court = Court::under(snapshot.clone(), &format!("identity: [{{from: jwt_metadata, type: \"{ty}\"}}]"));
            let mut check = post("application/json", &sent(&request["context"]).to_string());
            let attributes = check.attributes.as_mut().unwrap();
            let claims = json!({"jwt_payload": {"sub": principal.id().unescaped()}});
            attributes.metadata_context = Some(metadata(&json!({"envoy.filters.http.jwt_authn": claims})));
            attributes.request.as_mut().unwrap().http.as_mut().unwrap().path = path(action, resource).into();
            let checked = court.pipeline.frame(frame(&check), "d");
            let ended = sound(&checked);
            assert!(matches!(ended, "allow" | "policy" | "default_deny"), "{name}: {ended}: {:?}", checked.outcome);
            assert_eq!(ended == "allow", *allowed, "{name}: {ended}: {:?}", checked.outcome);
        }
    }
}

/// TinyTodo has no requests; what it declares loads beside what we bring.
#[test]
fn tinytodo_loads() {
    let Some(folder) = examples() else { return };
    let folder = folder.join("tinytodo");
    for (schema, policy) in
        [("tinytodo.cedarschema", "policies.cedar"), ("tinytodo-templates.cedarschema", "policies-templates.cedar")]
    {
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect("text");
        let mut bundle =
            files("todo", &[("bundle.yaml", "name: todo\nunrouted: deny"), ("s.cedarschema", &read(schema))]);
        bundle.files.extend(policies(&read(policy)));
        compile(&[bundle]);
    }
}
