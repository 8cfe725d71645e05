//! Bundles: what is refused when one is loaded, with which words; and what their policies mean once it is in force.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::slice;
use std::sync::Arc;

use cedar_policy::{
    Authorizer, Context, Decision as Cedar, Entities, Entity, EntityId, EntityUid, PolicySet, Request,
    RestrictedExpression,
};
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::subsequence;
use serde_json::{Value as Json, json};
use stockade::model::{Attributes, Decision, Effect, Principal, Proof, Query, Reason, Value};
use stockade::policy::{Files, Snapshot};

use crate::fixture::{compile, files, holds, lines, problems, shop};

/// A permit, so that a bundle has a policy. It has a scope, so that nothing is to be said against it.
const PERMIT: (&str, &str) = ("policies/permit.cedar", "permit (principal is User, action, resource);");

// === what is refused ===

/// Runs a table: a bundle, and its problems.
#[track_caller]
fn refused<const N: usize>(table: [(Files, &[&str]); N]) {
    for (bundle, expected) in table {
        assert_eq!(problems(slice::from_ref(&bundle)), expected, "{:#?}", bundle.files);
    }
}

#[test]
fn a_bundle_needs_its_manifest() {
    let hint = "(a bundle needs one, with at least `name: <name>`)";
    let manifest = |text: &str| files("shop", &[("bundle.yaml", text), PERMIT]);
    refused([
        (files("some/where", &[PERMIT]), &[&format!("some/where: there is no `bundle.yaml` {hint}")]),
        (manifest(""), &["shop/bundle.yaml:1:1: `name` is missing"]),
        (
            manifest("nmae: shop\nowner: [me]\ncontrols: PCI\nttl: {alow: 5s, deny: soon}"),
            &[
                "shop/bundle.yaml:1:1: unknown key `nmae` (did you mean `name`?)",
                "shop/bundle.yaml:2:8: `owner`: expected a string, found a list",
                "shop/bundle.yaml:3:11: `controls`: expected a list, found a string",
                "shop/bundle.yaml:4:7: `ttl`: unknown key `alow` (did you mean `allow`?)",
                "shop/bundle.yaml:4:23: `ttl.deny`: `soon` is not a length of time: expected number at 0 (like `250ms` \
                 or `30s`)",
                "shop/bundle.yaml:1:1: `name` is missing",
            ],
        ),
        (
            manifest("name: My Shop"),
            &[
                "shop/bundle.yaml:1:7: `name`: `My Shop` is not a name for a bundle (1 to 63 lower-case letters, digits, \
               `-`, `_` or `.`)",
            ],
        ),
        (
            manifest("name: shop\ndenial: {status: 200}"),
            &["shop/bundle.yaml: `denial`: status 200 is not a denial (4xx or 5xx, or 3xx together with a location)"],
        ),
        (
            manifest("name: shop\ndenial: {headers: {Host: evil.example}}"),
            &["shop/bundle.yaml: `denial`: the header `host` cannot be set (Envoy sets it itself)"],
        ),
    ]);
}

#[test]
fn policies_that_do_not_parse_are_named_with_their_place() {
    let bundle = shop(&[
        ("policies/a.cedar", "permit (principal, action, resource);\npermit (principal, action resource);"),
        ("policies/b.cedar", "allow (principal, action, resource);"),
    ]);
    let found = problems(&[bundle]);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("shop/policies/a.cedar:2:27: unexpected token `resource`"), "{}", found[0]);
    assert!(found[1].starts_with("shop/policies/b.cedar:1:1: invalid policy effect: allow"), "{}", found[1]);
}

#[test]
fn ids_are_given_and_given_once() {
    let two = "permit (principal, action, resource);\n\nforbid (principal, action, resource) when { false };";
    let needs_id = "a policy without `@id` in a file of several (give each its `@id(\"...\")`: positions change with \
                    every insertion)";
    let named = "@id(\"one\")\npermit (principal is User, action, resource);";
    let mut found = problems(&[shop(&[("policies/two.cedar", two)])]);
    found.sort();
    let places = ["1:1", "3:1"].map(|place| format!("shop/policies/two.cedar:{place}: {needs_id}"));
    assert_eq!(found, places);
    refused([
        (
            shop(&[("policies/a.cedar", named), ("policies/b.cedar", named)]),
            &["shop/policies/b.cedar:1:1: the id `shop/one` is taken: a policy in shop/policies/a.cedar has it (ids \
               are unique in a bundle)"],
        ),
        // A file's name is an id like any other.
        (
            shop(&[("policies/a.cedar", named), ("policies/one.cedar", PERMIT.1)]),
            &[
                "shop/policies/one.cedar:1:1: the id `shop/one` is taken: a policy in shop/policies/a.cedar has it (ids \
               are unique in a bundle)",
            ],
        ),
        (
            shop(&[("policies/a.cedar", "@id(\"\") permit (principal, action, resource);")]),
            &["shop/policies/a.cedar:1:1: `@id` without an id"],
        ),
    ]);
    // The same id in two bundles is two ids.
    let two = ["one", "two"].map(|name| files(name, &[("bundle.yaml", &format!("name: {name}")), PERMIT]));
    let summary = compile(&two).summary();
    let ids: Vec<&str> = summary.policies.iter().map(|policy| policy.id.as_str()).collect();
    assert_eq!(ids, ["one/permit", "two/permit"]);
}

#[test]
fn annotations_that_would_not_do_what_they_say_are_refused() {
    let policy = |annotations: &str| {
        let text = format!("{annotations}\nforbid (principal, action, resource) when {{ false }};");
        shop(&[("policies/a.cedar", &text)])
    };
    refused([
        (
            policy("@mode(\"shaddow\")"),
            &["shop/policies/a.cedar:1:1: `@mode(\"shaddow\")` is not a mode (`shadow` or `enforce`)"],
        ),
        (
            policy("@status(\"200\")"),
            &["shop/policies/a.cedar:1:1: status 200 is not a denial (4xx or 5xx, or 3xx together with a location)"],
        ),
        (
            policy("@status(\"302\")"),
            &[
                "shop/policies/a.cedar:1:1: status 302 and a location do not go together (a redirect has a status of 3xx \
               and a location, any other denial has neither)",
            ],
        ),
        (
            policy("@ttl(\"a while\") @mode(\"off\")"),
            &[
                "shop/policies/a.cedar:1:1: `@mode(\"off\")` is not a mode (`shadow` or `enforce`)",
                "shop/policies/a.cedar:1:1: `@ttl(\"a while\")` is not a length of time: expected number at 0 (like \
                 `@ttl(\"10s\")`)",
            ],
        ),
        (
            policy("@header(\"x: a\\r\\nb\")"),
            &["shop/policies/a.cedar:1:1: `@header(\"b\")` is not a header (like `@header(\"www-authenticate: \
               Bearer\")`; several are separated by `\\n`)"],
        ),
        (
            shop(&[("a.cedar", "@status(\"401\")\npermit (principal, action, resource);")]),
            &["shop/a.cedar:1:1: `@status` on a `permit`, which never denies (put it on a `forbid`, or into `denial` \
               of bundle.yaml for requests that nothing permits)"],
        ),
    ]);
}

#[test]
fn policies_are_validated_strictly() {
    let policy = |condition: &str| {
        let text = format!("permit (principal, action == Action::\"GET\", resource) when {{ {condition} }};");
        shop(&[("policies/a.cedar", &text)])
    };
    for (condition, message) in [
        ("principal.nmae == \"x\"", "attribute `nmae`"),
        ("context.headers.x == \"x\"", "attribute `headers`"),
        ("context.method == 1", "the types"),
        ("principal == Usr::\"alice\"", "unrecognized entity type `Usr`"),
        (
            "context.source.address.isLoopback()",
            "unable to guarantee safety of access to optional attribute `source.address`",
        ),
        ("principal in [User::\"a\", \"b\"]", "elements of a set"),
    ] {
        let found = problems(&[policy(condition)]);
        assert!(!found.is_empty());
        for problem in &found {
            assert!(problem.starts_with("shop/policies/a.cedar:1:"), "{problem}");
        }
        assert!(found.iter().any(|problem| problem.contains(message)), "{condition}: {found:#?}");
    }
    let unknown = shop(&[("a.cedar", "permit (principal, action == Action::\"FETCH\", resource);")]);
    let found = problems(&[unknown]);
    assert!(found.iter().any(|problem| problem.contains("unrecognized action `Action::\"FETCH\"`")), "{found:#?}");
}

#[test]
fn files_that_would_be_passed_over_are_refused() {
    let text = "forbid (principal, action, resource);";
    let misplaced = [
        ("rules/a.cedar", "policies/a.cedar"),
        ("entities/a.cedar", "policies/a.cedar"),
        ("policies/s.cedarschema", "schemas/s.cedarschema"),
        ("routes.yml", "routes.yaml"),
    ];
    for (path, nearest) in misplaced {
        let hint = format!("(`{nearest}` would be read; or list it under `ignore` in bundle.yaml)");
        assert_eq!(problems(&[shop(&[(path, text)])]), [format!("shop/{path}: nothing reads this file {hint}")]);
    }
    // A team's own files are left alone, and the tests of its policies are for `stockade test` to read.
    compile(&[shop(&[PERMIT, ("README.md", "?"), ("tests/a.yaml", "x: ["), ("tests/a.json", "?")])]);
}

#[test]
fn links_are_of_templates_that_there_are() {
    let template = ("policies/t.cedar", "permit (principal == ?principal, action, resource);");
    let links = |text: &'static str| shop(&[template, ("policies/links.json", text)]);
    let good = |id: &str, template: &str, args: &str| {
        format!("[{{\"template_id\": \"{template}\", \"link_id\": \"{id}\", \"args\": {args}}}]")
    };
    for (text, expected) in [
        (
            good("l", "tee", r#"{"?principal": "User::\"a\""}"#),
            "shop/policies/links.json: link `shop/l` names the template `shop/tee`, which does not exist",
        ),
        (good("l", "t", r#"{"?principal": "alice"}"#), "shop/policies/links.json: link `l`: `alice` is not an entity"),
        (
            good("l", "t", r#"{"principal": "User::\"a\""}"#),
            "shop/policies/links.json: link `shop/l`: `principal` is not a slot (`?principal` or `?resource`)",
        ),
        (good("l", "t", "{}"), "shop/policies/links.json: "),
        (good("t", "t", r#"{"?principal": "User::\"a\""}"#), "shop/policies/links.json: "),
        ("{}".to_owned(), "shop/policies/links.json:1:1: not valid JSON: invalid type: map, expected a sequence"),
    ] {
        let bundle = shop(&[template, ("policies/links.json", &text)]);
        let found = problems(&[bundle]);
        assert!(found[0].starts_with(expected), "{text}: {found:#?}");
    }
    let twice = "[{\"template_id\": \"t\", \"link_id\": \"a\", \"args\": {\"?principal\": \"User::\\\"a\\\"\"}},
                  {\"template_id\": \"t\", \"link_id\": \"a\", \"args\": {\"?principal\": \"User::\\\"b\\\"\"}}]";
    let found = problems(&[links(twice)]);
    assert!(found[0].contains("`shop/a`"), "{found:#?}");
    // A static policy is no template.
    let text = good("l", "permit", r#"{"?principal": "User::\"a\""}"#);
    let found = problems(&[shop(&[PERMIT, ("links.json", &text)])]);
    assert_eq!(found, ["shop/links.json: link `shop/l` names the template `shop/permit`, which does not exist"]);
}

#[test]
fn entities_fit_the_schema_and_stand_once() {
    let schema = ("s.cedarschema", "entity Book { title: String };");
    let entities = |text: &str| shop(&[PERMIT, schema, ("entities/books.json", text)]);
    let book = |attrs: &str| {
        format!("[{{\"uid\": {{\"type\": \"Book\", \"id\": \"1\"}}, \"attrs\": {attrs}, \"parents\": []}}]")
    };
    for (text, words) in [
        (book("{}"), &["Book::\"1\"", "title"][..]),
        (book(r#"{"title": 7}"#), &["Book::\"1\"", "title", "string", "long"]),
        (book(r#"{"title": "x", "isbn": "y"}"#), &["Book::\"1\"", "isbn"]),
        ("[{\"uid\": {\"type\": \"Boook\", \"id\": \"1\"}, \"attrs\": {}, \"parents\": []}]".to_owned(), &["Boook"]),
        (
            "[{\"uid\": {\"type\": \"Service\", \"id\": \"1\"}, \"attrs\": {}, \
             \"parents\": [{\"type\": \"Group\", \"id\": \"g\"}]}]"
                .to_owned(),
            &["Service::\"1\"", "Group"],
        ),
        ("not JSON".to_owned(), &["1:2: not valid JSON: expected ident"]),
    ] {
        let found = problems(&[entities(&text)]);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].starts_with("shop/entities/books.json:"), "{}", found[0]);
        for word in words {
            assert!(found[0].contains(word), "no {word} in {}", found[0]);
        }
    }
    let good = book(r#"{"title": "x"}"#);
    let twice = shop(&[PERMIT, schema, ("entities/a.json", &good), ("entities/b.json", &good)]);
    refused([(twice, &["shop/entities/b.json: Book::\"1\" of bundle `shop` stands in shop/entities/a.json as well"])]);
    let loop_of_groups = r#"[{"uid": {"type": "Group", "id": "a"}, "attrs": {}, "parents": [{"type": "Group", "id": "b"}]},
        {"uid": {"type": "Group", "id": "b"}, "attrs": {}, "parents": [{"type": "Group", "id": "a"}]}]"#;
    assert!(problems(&[entities(loop_of_groups)])[0].contains("cycle"));
    // A loop over two files.
    let [a, b] = [("a", "b"), ("b", "a")].map(|(group, parent)| {
        format!("[{{\"uid\": {{\"type\": \"Group\", \"id\": \"{group}\"}}, \"attrs\": {{}}, \"parents\": [{{\"type\": \"Group\", \"id\": \"{parent}\"}}]}}]")
    });
    let found = problems(&[shop(&[PERMIT, ("entities/a.json", &a), ("entities/b.json", &b)])]);
    assert!(found[0].contains("cycle"), "{found:#?}");
}

/// `routes.yaml`, and what is wrong with it.
const BAD_ROUTES: [(&str, &[&str]); 10] = [
    (
        "routes: [{match: GET /a, action: lsit}]",
        &["shop/routes.yaml:1:18: route `GET /a` leads to Action::\"lsit\", which no schema declares (did you mean \
           `list`?)"],
    ),
    // Without an action, the text of `match` names it.
    (
        "routes: [{match: grpc a.B/C}]",
        &["shop/routes.yaml:1:18: route `grpc a.B/C` leads to Action::\"a.B/C\", which no schema declares (known \
           here: `CONNECT`, `DELETE`, `GET`, `HEAD`, `OPTIONS`, `PATCH`, `POST`, `PUT`, `TRACE`, `list`, `read`, `view`, `write`)"],
    ),
    (
        "routes: [{match: 'GET /b/{id}', action: view, resource: 'Book::\"{book}\"'}]",
        &["shop/routes.yaml:1:19: the resource of route `GET /b/{id}` names `{book}`, which its path has not (it \
           has id)"],
    ),
    (
        "routes: [{match: GET /b, action: view, resource: 'Book::\"{id}\"'}]",
        &[
            "shop/routes.yaml:1:18: the resource of route `GET /b` names `{id}`, which its path has not (it has \
             none)",
            "shop/routes.yaml:1:18: Action::\"view\" needs `context.params.id`, which route `GET /b` has not (put \
             `{id}` into the path, or make it optional in the schema)",
        ],
    ),
    (
        "routes: [{match: 'GET /b/{id}', action: view, resource: 'Shelf::\"{id}\"'}]",
        &["shop/routes.yaml:1:19: route `GET /b/{id}` leads to Action::\"view\", which does not take `Shelf` (add \
           the type to `resource` of the action in the schema)"],
    ),
    (
        "routes: [{match: 'GET /b/{a}', action: list}, {match: 'GET /b/{b}', action: list}]",
        &["shop/routes.yaml:1:56: route `GET /b/{b}` of bundle `shop` conflicts with `GET /b/{a}` of bundle `shop` \
           (one of the two has to go: they match the same requests)"],
    ),
    (
        "routes: [{match: grpc a.B/C, action: list}, {match: grpc a.B/C, action: list}]",
        &["shop/routes.yaml:1:18: route `grpc a.B/C` of bundle `shop` conflicts with `grpc a.B/C` of bundle `shop` \
           (one of the two has to go: they match the same requests)"],
    ),
    (
        "routes: [{match: 'GET /b/{a', action: list}, {match: get /x, action: list}, {mach: GET /y}]",
        &[
            "shop/routes.yaml:1:18: `routes[0].match`: `GET /b/{a` is not a route: its braces do not match \
             (`{name}`, each on its own)",
            "shop/routes.yaml:1:54: `routes[1].match`: `get /x` is not a route: `get` is no method (`GET`: methods \
             are written in capitals)",
            "shop/routes.yaml:1:78: `routes[2]`: unknown key `mach` (did you mean `match`?)",
            "shop/routes.yaml:1:77: `routes[2]`: `match` is missing",
        ],
    ),
    // Without one, the resource is the service; and an action that is a group of others takes none at all.
    (
        "routes: [{match: 'GET /b/{id}', action: view}]",
        &["shop/routes.yaml:1:19: route `GET /b/{id}` leads to Action::\"view\", which does not take `Service` \
           (give the route a `resource`)"],
    ),
    (
        "routes: [{match: GET /b, action: read}]",
        &["shop/routes.yaml:1:18: route `GET /b` leads to Action::\"read\", which does not take `Service` (give \
           the route a `resource`)"],
    ),
];

#[test]
fn routes_are_checked_against_the_schema_and_each_other() {
    let schema = r#"
        entity Book;
        action "view" appliesTo {
            principal: [User], resource: [Book], context: { params: { id: Long, page?: Long } },
        };
        action "list" appliesTo { principal: [User], resource: [Service], context: {} };
    "#;
    let routes = |text: &str| shop(&[PERMIT, ("s.cedarschema", schema), ("routes.yaml", text)]);
    refused(BAD_ROUTES.map(|(text, problems)| (routes(text), problems)));
}

#[test]
fn a_schema_asks_only_for_what_a_request_has() {
    let declared = |context: &str| {
        let schema =
            format!("action \"GET\" appliesTo {{ principal: [User], resource: [Service], context: {{ {context} }} }};");
        shop(&[PERMIT, ("s.cedarschema", &schema)])
    };
    refused([
        (
            declared("header: { x: String }"),
            &["shop/s.cedarschema: `context.header` of Action::\"GET\" is not something a request has; did you mean \
               `headers`?"],
        ),
        (
            declared("method: Long, headers: { x: { y: String } }, time: String, tls: { cn: String }"),
            &[
                "shop/s.cedarschema: `context.headers.x` is a string on the wire and cannot become `record`",
                "shop/s.cedarschema: `context.method` is a `String`, not `Long`",
                "shop/s.cedarschema: `context.time` is a `datetime`, not `String`",
                "shop/s.cedarschema: `context.tls.cn` does not exist; known here: `sni`",
            ],
        ),
        (
            declared("metadata: { ns: String }, claims: Set<String>, query: String, source: { address: String }"),
            &[
                "shop/s.cedarschema: `context.claims` must be a record, not `Set<String>`",
                "shop/s.cedarschema: `context.metadata` must be a record of records: namespaces, and what they hold",
                "shop/s.cedarschema: `context.query` must be a record, not `String`",
                "shop/s.cedarschema: `context.source.address` is a `ipaddr`, not `String`",
            ],
        ),
        (
            declared("destination: { labels: { a: Set<Set<String>> } }"),
            &["shop/s.cedarschema: `context.destination.labels.a` is a string on the wire and cannot become \
               `Set<Set<String>>`"],
        ),
    ]);
    let broken = shop(&[PERMIT, ("s.cedarschema", "entity Book in [Shelf];\nentity Book;")]);
    let found = problems(&[broken]);
    assert_eq!(found, ["shop/s.cedarschema:1:8: error parsing schema: `Book` is declared twice"]);
    let dangling = problems(&[shop(&[PERMIT, ("s.cedarschema", "entity Book in [Shelf];")])]);
    assert!(dangling[0].contains("Shelf"), "{dangling:#?}");
}

#[test]
fn the_base_schema_gives_way_to_what_a_bundle_declares() {
    let own = r#"
        entity User in [Group] { department: String };
        type Http = { method: String };
        action "DELETE" appliesTo { principal: [User], resource: [Service], context: {} };
    "#;
    let uses_it = r#"
        permit (principal is User, action in [Action::"GET", Action::"POST"], resource) when {
            principal.department == "x" && context.method == "GET"
        };
    "#;
    let snapshot = compile(&[shop(&[("s.cedarschema", own), ("a.cedar", uses_it)])]);
    let action = |id: &str| {
        let uid = format!("Action::\"{id}\"").parse().unwrap();
        snapshot.types().action(&uid).unwrap_or_else(|| panic!("no {id}"))
    };
    // What the bundle says of DELETE; the others are ours, whatever it calls `Http`.
    assert!(action("DELETE").context.is_empty());
    assert_eq!(action("POST").context.len(), 1);
    let (workload, service) = ("Workload".parse().unwrap(), "Service".parse().unwrap());
    assert!(action("POST").applies_to(&workload, &service));
    assert!(!action("DELETE").applies_to(&workload, &service));
    let reads_ours = "permit (principal, action == Action::\"GET\", resource) when { context.host == \"x\" };";
    compile(&[shop(&[("s.cedarschema", own), ("a.cedar", reads_ours)])]);
    let found = problems(&[shop(&[("s.cedarschema", own), ("a.cedar", &reads_ours.replace("GET", "DELETE"))])]);
    assert!(found[0].contains("attribute `host`"), "{found:#?}");
}

#[test]
fn what_two_bundles_declare_is_named_with_both() {
    let bundle = |name: &str, more: &[(&str, &str)]| {
        let manifest = format!("name: {name}\nunrouted: base");
        files(name, &[&[("bundle.yaml", manifest.as_str()), PERMIT], more].concat())
    };
    let schema = ("s.cedarschema", "entity Book; type T = String; action \"view\";");
    assert_eq!(
        problems(&[bundle("a", &[schema]), bundle("b", &[schema])]),
        [
            "both bundle `a` and bundle `b` declare action `view` (keep it in one of the two)",
            "both bundle `a` and bundle `b` declare common type `T` (keep it in one of the two)",
            "both bundle `a` and bundle `b` declare entity type `Book` (keep it in one of the two)",
        ]
    );
    let routes = ("routes.yaml", "routes: [{match: 'GET /{a}', action: GET}]");
    let other = ("routes.yaml", "routes: [{match: 'GET /{b}', action: GET}]");
    assert_eq!(
        problems(&[bundle("a", &[routes]), bundle("b", &[other])]),
        ["b/routes.yaml:1:19: route `GET /{b}` of bundle `b` conflicts with `GET /{a}` of bundle `a` (one of the two \
          has to go: they match the same requests)"]
    );
    let group = r#"[{"uid": {"type": "Group", "id": "g"}, "attrs": {}, "parents": []}]"#;
    assert_eq!(
        problems(&[bundle("a", &[("entities.json", group)]), bundle("b", &[("entities.json", group)])]),
        ["b/entities.json: Group::\"g\" of bundle `b` stands in a/entities.json as well"]
    );
    let denial =
        |name: &str| files(name, &[("bundle.yaml", &format!("name: {name}\ndenial: {{status: 401}}")), PERMIT]);
    assert_eq!(
        problems(&[denial("a"), denial("b")]),
        ["both bundle `a` and bundle `b` declare `denial` of bundle.yaml (keep it in one of the two)"]
    );
    assert_eq!(problems(&[denial("a"), denial("a")]), ["two bundles are called `a`"]);
}

#[test]
fn every_problem_of_every_file_is_reported_at_once() {
    // Faults that are found before the schema is there.
    let early = shop(&[
        ("bundle.yaml", "name: shop\ndenial: {status: 99}"),
        ("policies/a.cedar", "permit (principal, action);"),
        ("policies/b.cedar", "@mode(\"x\") forbid (principal, action, resource);"),
        ("rules/c.cedar", ""),
        ("links.json", "{}"),
        ("s.cedarschema", "entity;"),
    ]);
    let found = problems(&[early, files("other", &[("bundle.yaml", "name: O")])]);
    let places: Vec<&str> = found.iter().map(|line| line.split(": ").next().unwrap_or("")).collect();
    let expected = [
        "shop/rules/c.cedar",
        "shop/bundle.yaml",
        "shop/links.json:1:1",
        "shop/policies/a.cedar:1:26",
        "shop/policies/b.cedar:1:1",
        "shop/s.cedarschema:1:7",
        "other/bundle.yaml:1:7",
    ];
    assert_eq!(places, expected, "{found:#?}");
    // Faults that are held against the schema.
    let late = shop(&[
        ("policies/a.cedar", "permit (principal, action, resource) when { principal.x };"),
        ("policies/b.cedar", "permit (principal == Usr::\"a\", action, resource);"),
        ("entities.json", "[{\"uid\": {\"type\": \"Boook\", \"id\": \"1\"}, \"attrs\": {}, \"parents\": []}]"),
        ("routes.yaml", "routes: [{match: GET /, action: FETCH}]"),
        ("links.json", "[{\"template_id\": \"t\", \"link_id\": \"l\", \"args\": {}}]"),
    ]);
    let found = problems(&[late]);
    for file in ["policies/a.cedar", "policies/b.cedar", "entities.json", "routes.yaml", "links.json"] {
        assert!(found.iter().any(|line| line.starts_with(&format!("shop/{file}:"))), "nothing of {file}: {found:#?}");
    }
}

#[test]
fn warnings_do_not_stop_a_bundle() {
    let never = "permit (principal, action == Action::\"GET\", resource) when { principal is User && false };";
    let snapshot = compile(&[shop(&[("policies/never.cedar", never)])]);
    let warnings = lines(&snapshot.warnings);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].starts_with("shop/policies/never.cedar:"), "{warnings:?}");
    let empty = compile(&[shop(&[])]);
    assert_eq!(lines(&empty.warnings), ["there is no policy: every request is denied"]);
}

#[test]
fn a_revision_is_its_content_and_its_order() {
    let one = shop(&[PERMIT]);
    let moved = Files { root: "elsewhere".to_owned(), ..one.clone() };
    let other = shop(&[("policies/permit.cedar", "forbid (principal, action, resource);")]);
    let guard = files("guard", &[("bundle.yaml", "name: guard")]);
    let digest = |bundles: &[Files]| compile(bundles).revision.digest.clone();
    assert_eq!(digest(slice::from_ref(&one)), digest(&[moved]));
    assert_ne!(digest(slice::from_ref(&one)), digest(&[other]));
    assert_ne!(digest(&[one.clone(), guard.clone()]), digest(&[guard, one]));
}

// === what policies decide ===

/// A GET of the service by this principal.
fn get(principal: Principal) -> Query {
    Query { principal, action: uid("Action", "GET"), resource: uid("Service", "shop"), context: Attributes::new() }
}

fn uid(entity_type: &str, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(entity_type.parse().unwrap(), EntityId::new(id))
}

fn user(id: &str) -> Principal {
    Principal { uid: uid("User", id), attributes: Attributes::new(), parents: Vec::new(), proof: Proof::Jwt }
}

/// A bundle of one file of policies, under a schema that lets all of them be written.
fn rules(policies: &str) -> Arc<Snapshot> {
    let schema = "entity User in [Group] { n?: Long, who?: User };
                  action \"GET\", \"POST\" appliesTo { principal: [User], resource: [Service], context: { query?: { n?: Long } } };";
    compile(&[shop(&[("s.cedarschema", schema), ("policies/rules.cedar", policies)])])
}

/// What a decision says: effect, reason, determining policies, and those that could not be evaluated.
fn told(decision: &Decision) -> (Effect, Reason, Vec<String>, Vec<String>) {
    let ids = decision.determining.iter().map(ToString::to_string).collect();
    let errors = decision.errors.iter().map(|error| error.policy.to_string()).collect();
    (decision.effect, decision.reason, ids, errors)
}

fn texts(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| format!("shop/{id}")).collect()
}

/// Overflows for `n: 1`, is false for `n: 0`.
const ERRS: &str = "principal has n && principal.n + 9223372036854775807 < 0";

fn with_n(n: i64) -> Query {
    let mut principal = user("alice");
    principal.attributes.insert("n".into(), Value::Long(n));
    get(principal)
}

#[test]
fn a_permit_that_errs_is_skipped_and_reported() {
    let snapshot = rules(&format!(
        "@id(\"errs\") permit (principal, action, resource) when {{ {ERRS} }};
         @id(\"helps\") permit (principal, action == Action::\"GET\", resource);"
    ));
    let decision = snapshot.decide(&with_n(1)).unwrap();
    assert_eq!(told(&decision), (Effect::Allow, Reason::Policy, texts(&["helps"]), texts(&["errs"])));
    assert!(decision.errors[0].message.contains("overflow"), "{:?}", decision.errors);
    assert!(decision.denial.is_none());
    let alone = Query { action: uid("Action", "POST"), ..with_n(1) };
    let decision = snapshot.decide(&alone).unwrap();
    assert_eq!(told(&decision), (Effect::Deny, Reason::DefaultDeny, Vec::new(), texts(&["errs"])));
    let fine = snapshot.decide(&with_n(0)).unwrap();
    assert_eq!(told(&fine), (Effect::Allow, Reason::Policy, texts(&["helps"]), Vec::new()));
}

#[test]
fn a_forbid_that_errs_denies() {
    let policies = format!(
        "@id(\"all\") permit (principal, action, resource);
         @id(\"errs\") @status(\"401\") forbid (principal, action, resource) when {{ {ERRS} }};
         @id(\"no-posts\") @status(\"405\") forbid (principal, action == Action::\"POST\", resource);"
    );
    let snapshot = rules(&policies);
    // Cedar skips it: a typo would open what it was to close.
    let decision = snapshot.decide(&with_n(1)).unwrap();
    assert_eq!(told(&decision), (Effect::Deny, Reason::PolicyError, texts(&["errs"]), texts(&["errs"])));
    // What it says of its own denials was not reached.
    assert_eq!(decision.denial.as_ref().map(|denial| denial.status), Some(403));
    // One that is satisfied has spoken; that another could not changes nothing, and is reported.
    let decision = snapshot.decide(&Query { action: uid("Action", "POST"), ..with_n(1) }).unwrap();
    assert_eq!(told(&decision), (Effect::Deny, Reason::Policy, texts(&["no-posts"]), texts(&["errs"])));
    assert_eq!(decision.denial.as_ref().map(|denial| denial.status), Some(405));
    let decision = snapshot.decide(&with_n(0)).unwrap();
    assert_eq!(told(&decision), (Effect::Allow, Reason::Policy, texts(&["all"]), Vec::new()));
    // Without any permit, too: the reason is not that nobody spoke.
    let alone = rules(&format!("forbid (principal, action, resource) when {{ {ERRS} }};"));
    let decision = alone.decide(&with_n(1)).unwrap();
    assert_eq!(told(&decision), (Effect::Deny, Reason::PolicyError, texts(&["rules"]), texts(&["rules"])));
}

#[test]
fn an_action_that_does_not_apply_is_denied() {
    let snapshot = rules("permit (principal, action, resource);");
    let by_workload = Principal { uid: uid("Workload", "w"), ..user("") };
    for query in [get(by_workload), Query { resource: uid("Group", "g"), ..get(user("alice")) }] {
        let decision = snapshot.decide(&query).unwrap();
        assert_eq!(told(&decision), (Effect::Deny, Reason::NotApplicable, Vec::new(), Vec::new()), "{query:?}");
        assert!(decision.denial.is_some());
    }
    for action in ["read", "nothing"] {
        let decision = snapshot.decide(&Query { action: uid("Action", action), ..get(user("alice")) }).unwrap();
        assert_eq!(told(&decision), (Effect::Deny, Reason::Unrouted, Vec::new(), Vec::new()), "{action}");
        assert!(decision.denial.is_some());
    }
}

/// Policies in shadow mode have no effect; what they would have done is told. The table: enforced policies, those in
/// shadow, the decision, and the one that would have been.
#[test]
fn shadow_policies_have_no_effect_and_say_what_they_would_have() {
    let errs = format!("when {{ {ERRS} }}");
    let permit = "permit (principal, action, resource)";
    let forbid = "forbid (principal, action, resource)";
    let (erring_permit, erring_forbid) = (format!("{permit} {errs}"), format!("{forbid} {errs}"));
    use Effect::{Allow, Deny};
    for (enforced, shadow, decided, would_be, determining) in [
        (permit, forbid, Allow, Deny, &["shadow"][..]),
        (forbid, permit, Deny, Deny, &["shadow"]),
        ("forbid (principal, action, resource) when { false }", permit, Deny, Allow, &["shadow"]),
        (permit, "forbid (principal, action, resource) when { false }", Allow, Allow, &[]),
        // What holds for enforced policies holds for these: a forbid that errs denies.
        (permit, &erring_forbid, Allow, Deny, &[]),
        (permit, &erring_permit, Allow, Allow, &[]),
        (&erring_forbid, permit, Deny, Deny, &["shadow"]),
    ] {
        let text = format!("@id(\"enforced\") {enforced};\n@id(\"shadow\") @mode(\"shadow\") {shadow};");
        let decision = rules(&text).decide(&with_n(1)).unwrap();
        let own = decision.shadow.as_ref().expect("there is one in shadow");
        let ids: Vec<String> = own.determining.iter().map(ToString::to_string).collect();
        assert_eq!((decision.effect, own.effect, ids), (decided, would_be, texts(determining)), "{text}");
        assert!(
            !decision
                .determining
                .iter()
                .chain(decision.errors.iter().map(|e| &e.policy))
                .any(|id| id.to_string() == "shop/shadow")
        );
        assert_eq!(own.errors.len(), usize::from(shadow.contains("9223372036854775807")), "{text}");
    }
    assert_eq!(rules("permit (principal, action, resource);").decide(&with_n(0)).unwrap().shadow, None);
    // Templates and their links, too.
    let template = "@mode(\"shadow\") forbid (principal == ?principal, action, resource);";
    let link = r#"[{"template_id": "t", "link_id": "l", "args": {"?principal": "User::\"alice\""}}]"#;
    let linked = shop(&[PERMIT, ("policies/t.cedar", template), ("policies/links.json", link)]);
    let decision = compile(&[linked]).decide(&get(user("alice"))).unwrap();
    assert_eq!((decision.effect, decision.shadow.as_ref().unwrap().effect), (Allow, Deny));
}

#[test]
fn the_first_policy_by_id_that_shapes_denials_does() {
    let snapshot = compile(&[shop(&[
        ("bundle.yaml", "name: shop\ndenial: {status: 418, message: ask us}"),
        (
            "policies/rules.cedar",
            "@id(\"b\") @status(\"401\") @message(\"b\") forbid (principal, action, resource);
             @id(\"a\") forbid (principal, action, resource);
             @id(\"c\") @status(\"404\") @header(\"x-c: 1\") forbid (principal, action == Action::\"GET\", resource);",
        ),
    ])]);
    let decision = snapshot.decide(&get(user("alice"))).unwrap();
    assert_eq!(told(&decision).2, texts(&["a", "b", "c"]));
    let denial = decision.denial.clone().unwrap();
    assert_eq!((denial.status, denial.message.as_str(), denial.headers.len()), (401, "b", 0));
    // Nobody shapes it: the bundle does.
    let decision = compile(&[shop(&[("bundle.yaml", "name: shop\ndenial: {status: 418, message: ask us}")])])
        .decide(&get(user("alice")))
        .unwrap();
    let denial = decision.denial.clone().unwrap();
    assert_eq!((decision.reason, denial.status, denial.message.as_str()), (Reason::DefaultDeny, 418, "ask us"));
}

#[test]
fn a_forbid_of_any_bundle_wins() {
    let bundle = |name: &str, policy: &str| {
        files(name, &[("bundle.yaml", &format!("name: {name}")), ("policies/a.cedar", policy)])
    };
    let app = bundle("app", "permit (principal, action, resource);");
    let guard = bundle("guard", "forbid (principal in Group::\"revoked\", action, resource);");
    for bundles in [[app.clone(), guard.clone()], [guard, app]] {
        let snapshot = compile(&bundles);
        let decide = |groups: &[&str]| {
            let parents = groups.iter().map(|id| uid("Group", id)).collect();
            snapshot.decide(&get(Principal { parents, ..user("alice") })).unwrap()
        };
        assert_eq!(decide(&[]).effect, Effect::Allow);
        assert_eq!(told(&decide(&["revoked"])).2, ["guard/a"]);
    }
}

// === entities, against plain Cedar ===

/// The schema of the property below: attributes to go through, and every kind of parent.
const WORLD: &str = r#"
    entity Group in [Group] { boss?: User };
    entity User in [Group] { level: Long, boss?: User, friends?: Set<User>, home?: Doc, card: { owner?: User } };
    entity Folder in [Folder, Group] { keeper?: User };
    entity Doc in [Folder, User] { owner?: User, level?: Long } tags User;
    action "GET" in ["read"] appliesTo {
        principal: [User], resource: [Doc, Folder],
        context: { headers?: { who?: User, others?: Set<User> }, query?: { n?: Long } },
    };
    action "POST" in ["write"] appliesTo {
        principal: [User], resource: [Doc, Folder],
        context: { headers?: { who?: User, others?: Set<User> }, query?: { n?: Long } },
    };
"#;

/// The base schema has more principals and actions.
const WHO: &str = "principal is User, action in [Action::\"GET\", Action::\"POST\"]";

/// Conditions that go from nowhere to far into the entities, through everything that a policy can write. Some err.
const CONDITIONS: &[&str] = &[
    "true",
    "principal in Group::\"3\"",
    "principal in Group::\"2\"",
    "resource in Folder::\"3\"",
    // A document can be below its reader, and with the reader below the groups of a token.
    "resource in principal",
    "resource in Group::\"3\"",
    "resource in Group::\"2\"",
    "resource in User::\"0\"",
    "principal.level + 9223372036854775806 > 0",
    "principal has boss && principal.boss == User::\"1\"",
    "principal has boss && principal.boss.level > 1",
    "principal has boss && principal.boss in Group::\"3\"",
    "principal has boss && principal.boss has boss && principal.boss.boss.level > 1",
    "principal has boss && principal.boss has boss && principal.boss.boss has boss && principal.boss.boss.boss.level > 0",
    "principal has boss && principal.boss has home && principal.boss.home has owner && principal.boss.home.owner in Group::\"0\"",
    "principal.card has owner && principal.card.owner.level == 2",
    "principal has friends && principal.friends.contains(User::\"2\")",
    "resource is Doc && resource has owner && resource.owner == principal",
    "resource is Doc && resource has owner && resource.owner.level > principal.level",
    "resource is Doc && resource has owner && resource.owner has boss && resource.owner.boss == principal",
    "resource is Doc && resource.hasTag(\"reader\") && resource.getTag(\"reader\").level > 0",
    "resource is Folder && resource has keeper && resource.keeper in Group::\"3\"",
    "context has headers && context.headers has who && context.headers.who.level > 1",
    "context has headers && context.headers has who && context.headers.who in Group::\"3\"",
    "context has headers && context.headers has who && context.headers.who has boss && context.headers.who.boss in Group::\"3\"",
    "context has headers && context.headers has others && context.headers.others.contains(principal)",
    "context has query && context.query has n && context.query.n + 9223372036854775807 > 0",
    "action in Action::\"read\"",
    // Entities that the policy names itself.
    "User::\"1\".level > 1",
    "User::\"1\" has boss && User::\"1\".boss in Group::\"0\"",
    "User::\"2\" in Group::\"3\"",
    "Group::\"0\" in Group::\"3\"",
    "Doc::\"1\" has owner && Doc::\"1\".owner.level == 0",
];

/// An entity as data: attributes, tags, and parents.
#[derive(Debug, Clone)]
struct Node {
    uid: EntityUid,
    attributes: BTreeMap<&'static str, Value>,
    tags: BTreeMap<&'static str, Value>,
    parents: Vec<EntityUid>,
}

fn id() -> impl Strategy<Value = u8> {
    0..4_u8
}

fn numbered(entity_type: &str, id: u8) -> EntityUid {
    uid(entity_type, &id.to_string())
}

fn refers_to(entity_type: &'static str) -> impl Strategy<Value = Option<Value>> {
    option::of(id()).prop_map(move |id| id.map(|id| Value::Entity(numbered(entity_type, id))))
}

fn some(fields: Vec<(&'static str, Option<Value>)>) -> BTreeMap<&'static str, Value> {
    fields.into_iter().filter_map(|(name, value)| value.map(|value| (name, value))).collect()
}

fn some_users() -> impl Strategy<Value = Option<Value>> {
    option::of(btree_set(id(), 0..3)).prop_map(|ids| {
        ids.map(|ids| Value::set(ids.into_iter().map(|id| Value::Entity(numbered("User", id))).collect()))
    })
}

/// The attributes that a token or a bundle gives a user.
fn user_attributes() -> impl Strategy<Value = BTreeMap<&'static str, Value>> {
    (0..4_i64, refers_to("User"), some_users(), refers_to("Doc"), refers_to("User")).prop_map(
        |(level, boss, friends, home, owner)| {
            let card = Value::Record(some(vec![("owner", owner)]).into_iter().map(|(n, v)| (n.into(), v)).collect());
            some(vec![
                ("level", Some(Value::Long(level))),
                ("boss", boss),
                ("friends", friends),
                ("home", home),
                ("card", Some(card)),
            ])
        },
    )
}

/// Parents, from below upwards only, so that there is no loop: documents, users, folders, groups; and in a kind, by id.
fn parents(
    own: u8,
    same: Option<&'static str>,
    others: &'static [&'static str],
) -> impl Strategy<Value = Vec<EntityUid>> {
    let all: Vec<EntityUid> = same
        .into_iter()
        .flat_map(|kind| (own + 1..4).map(move |id| numbered(kind, id)))
        .chain(others.iter().flat_map(|kind| (0..4).map(|id| numbered(kind, id))))
        .collect();
    let most = all.len().min(2);
    subsequence(all, 0..=most)
}

fn world() -> impl Strategy<Value = Vec<Node>> {
    let group = |id: u8| {
        (refers_to("User"), parents(id, Some("Group"), &[])).prop_map(move |(boss, parents)| Node {
            uid: numbered("Group", id),
            attributes: some(vec![("boss", boss)]),
            tags: BTreeMap::new(),
            parents,
        })
    };
    let user = |id: u8| {
        (user_attributes(), parents(id, None, &["Group"])).prop_map(move |(attributes, parents)| Node {
            uid: numbered("User", id),
            attributes,
            tags: BTreeMap::new(),
            parents,
        })
    };
    let folder = |id: u8| {
        (refers_to("User"), parents(id, Some("Folder"), &["Group"])).prop_map(move |(keeper, parents)| Node {
            uid: numbered("Folder", id),
            attributes: some(vec![("keeper", keeper)]),
            tags: BTreeMap::new(),
            parents,
        })
    };
    let doc = |id: u8| {
        let attributes = (refers_to("User"), option::of(0..4_i64), refers_to("User"));
        (attributes, parents(id, None, &["Folder", "User"])).prop_map(move |((owner, level, reader), parents)| Node {
            uid: numbered("Doc", id),
            attributes: some(vec![("owner", owner), ("level", level.map(Value::Long))]),
            tags: some(vec![("reader", reader)]),
            parents,
        })
    };
    // Some of them are not there: a reference may lead nowhere.
    let four = |nodes: Vec<proptest::strategy::BoxedStrategy<Node>>| nodes;
    let mut all = Vec::new();
    for id in 0..4 {
        all.extend(four(vec![group(id).boxed(), user(id).boxed(), folder(id).boxed(), doc(id).boxed()]));
    }
    (all, vec(proptest::bool::weighted(0.8), 16)).prop_map(|(nodes, there)| {
        nodes.into_iter().zip(there).filter_map(|(node, there)| there.then_some(node)).collect()
    })
}

/// `[permit or forbid, shadow, condition]`
type Rule = (bool, bool, usize);

fn some_rules() -> impl Strategy<Value = Vec<Rule>> {
    vec((proptest::bool::weighted(0.6), proptest::bool::weighted(0.2), 0..CONDITIONS.len()), 1..6)
}

fn queries() -> impl Strategy<Value = Vec<Query>> {
    let principal =
        (0..6_u8, option::of(user_attributes()), parents(0, None, &["Group"])).prop_map(|(id, attributes, parents)| {
            Principal {
                uid: numbered("User", id),
                attributes: attributes
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(name, value)| (name.into(), value))
                    .collect(),
                parents,
                proof: Proof::Jwt,
            }
        });
    let headers = option::of((refers_to("User"), some_users()));
    let query = (
        principal,
        prop_oneof![Just("GET"), Just("POST")],
        prop_oneof![Just("Doc"), Just("Folder")],
        0..5_u8,
        headers,
        option::of(0..3_i64),
    );
    let query = query.prop_map(|(principal, action, resource, id, headers, n)| {
        let record = |fields: BTreeMap<&'static str, Value>| {
            Value::Record(fields.into_iter().map(|(name, value)| (name.into(), value)).collect())
        };
        let mut context = Attributes::new();
        if let Some((who, others)) = headers {
            context.insert("headers".into(), record(some(vec![("who", who), ("others", others)])));
        }
        if n.is_some() {
            context.insert("query".into(), record(some(vec![("n", n.map(Value::Long))])));
        }
        Query { principal, action: uid("Action", action), resource: numbered(resource, id), context }
    });
    vec(query, 1..12)
}

// --- the same, for Cedar ---

fn expression(value: &Value) -> RestrictedExpression {
    match value {
        Value::Bool(value) => RestrictedExpression::new_bool(*value),
        Value::Long(value) => RestrictedExpression::new_long(*value),
        Value::String(text) => RestrictedExpression::new_string(text.to_string()),
        Value::Entity(uid) => RestrictedExpression::new_entity_uid(uid.clone()),
        Value::Set(members) => RestrictedExpression::new_set(members.iter().map(expression)),
        Value::Record(fields) => {
            RestrictedExpression::new_record(fields.iter().map(|(n, v)| (n.to_string(), expression(v)))).unwrap()
        }
        Value::Extension(..) => unreachable!("the world has none"),
    }
}

fn cedar_entity(node: &Node) -> Entity {
    let named = |fields: &BTreeMap<&'static str, Value>| {
        fields.iter().map(|(name, value)| ((*name).to_owned(), expression(value))).collect::<HashMap<_, _>>()
    };
    let parents: HashSet<EntityUid> = node.parents.iter().cloned().collect();
    Entity::new_with_tags(node.uid.clone(), named(&node.attributes), parents, named(&node.tags)).unwrap()
}

/// The whole store, with the principal as the request proves it: what the bundle knows has the last word, parents add up.
fn whole_store(world: &[Node], principal: &Principal) -> Entities {
    let mut nodes: Vec<Node> = world.to_vec();
    let known = nodes.iter().position(|node| node.uid == principal.uid);
    let mut own = known.map_or_else(
        || Node { uid: principal.uid.clone(), attributes: BTreeMap::new(), tags: BTreeMap::new(), parents: Vec::new() },
        |at| nodes.swap_remove(at),
    );
    let anything = known.is_some() || !principal.attributes.is_empty() || !principal.parents.is_empty();
    for (name, value) in &principal.attributes {
        let name = ["level", "boss", "friends", "home", "card"].into_iter().find(|known| known == name).unwrap();
        own.attributes.entry(name).or_insert_with(|| value.clone());
    }
    own.parents.extend(principal.parents.iter().cloned());
    if anything {
        nodes.push(own);
    }
    let action = |id: &str, parents: &[&str]| {
        let parents = parents.iter().map(|id| uid("Action", id)).collect();
        Entity::new_no_attrs(uid("Action", id), parents)
    };
    let actions = [action("GET", &["read"]), action("POST", &["write"]), action("read", &[]), action("write", &[])];
    Entities::from_entities(nodes.iter().map(cedar_entity).chain(actions), None).expect("no loop")
}

fn entity_json(node: &Node) -> Json {
    fn value(own: &Value) -> Json {
        match own {
            Value::Entity(uid) => json!({"__entity": reference(uid)}),
            Value::Set(members) => members.iter().map(value).collect(),
            Value::Record(fields) => Json::Object(fields.iter().map(|(n, v)| (n.to_string(), value(v))).collect()),
            other => json!(other),
        }
    }
    fn reference(uid: &EntityUid) -> Json {
        json!({"type": uid.type_name().to_string(), "id": uid.id().unescaped()})
    }
    let named = |fields: &BTreeMap<&'static str, Value>| -> Json {
        Json::Object(fields.iter().map(|(name, own)| ((*name).to_owned(), value(own))).collect())
    };
    let parents: Vec<Json> = node.parents.iter().map(reference).collect();
    json!({"uid": reference(&node.uid), "attrs": named(&node.attributes), "tags": named(&node.tags), "parents": parents})
}

fn policy_text(at: usize, (permit, shadow, condition): &Rule) -> String {
    let effect = if *permit { "permit" } else { "forbid" };
    let mode = if *shadow { "@mode(\"shadow\") " } else { "" };
    format!("@id(\"{at}\") {mode}{effect} ({WHO}, resource) when {{ {} }};\n", CONDITIONS[*condition])
}

/// What plain Cedar says: decision, and the ids of satisfied and of erring policies, sorted.
fn plain(rules: &[(usize, &Rule)], query: &Query, entities: &Entities) -> (Cedar, Vec<String>, Vec<String>) {
    let text: String = rules.iter().map(|(at, rule)| policy_text(*at, rule)).collect();
    let parsed: PolicySet = text.parse().unwrap();
    let mut policies = PolicySet::new();
    for policy in parsed.policies() {
        let id = policy.annotation("id").unwrap().parse().unwrap();
        policies.add(policy.new_id(id)).unwrap();
    }
    let context = Context::from_pairs(query.context.iter().map(|(name, value)| (name.to_string(), expression(value))));
    let request =
        Request::new(query.principal.uid.clone(), query.action.clone(), query.resource.clone(), context.unwrap(), None);
    let response = Authorizer::new().is_authorized(&request.unwrap(), &policies, entities);
    let sorted = |ids: Vec<String>| {
        let mut ids = ids;
        ids.sort();
        ids
    };
    let satisfied = sorted(response.diagnostics().reason().map(|id| format!("shop/{id}")).collect());
    let erring = response.diagnostics().errors().map(|error| {
        let cedar_policy::AuthorizationError::PolicyEvaluationError(error) = error;
        format!("shop/{}", error.policy_id())
    });
    (response.decision(), satisfied, sorted(erring.collect()))
}

/// Decisions over slices of the entities are those of plain Cedar over all of them, and the rules for errors and for
/// shadow policies are what design.md says on top of it.
#[test]
fn slices_decide_as_the_whole_store_does() {
    let seen = RefCell::new(HashSet::new());
    holds(96, (world(), some_rules(), queries()), |(world, rules, queries)| {
        let text: String = rules.iter().enumerate().map(|(at, rule)| policy_text(at, rule)).collect();
        let entities: Json = world.iter().map(entity_json).collect();
        let bundle = shop(&[
            ("s.cedarschema", WORLD),
            ("policies/rules.cedar", &text),
            ("entities.json", &entities.to_string()),
        ]);
        let snapshot = compile(&[bundle]);
        let numbered: Vec<(usize, &Rule)> = rules.iter().enumerate().collect();
        let (shadow, enforced): (Vec<_>, Vec<_>) = numbered.into_iter().partition(|(_, (_, shadow, _))| *shadow);
        for query in queries {
            let store = whole_store(&world, &query.principal);
            let decision = snapshot.decide(&query).expect("a decision");
            let (cedar, satisfied, erring) = plain(&enforced, &query, &store);
            let forbids = |ids: &[String]| -> Vec<String> {
                let is_forbid = |id: &&String| !rules[id["shop/".len()..].parse::<usize>().unwrap()].0;
                ids.iter().filter(is_forbid).cloned().collect()
            };
            let spoken = cedar == Cedar::Deny && !satisfied.is_empty();
            let expected = if !spoken && !forbids(&erring).is_empty() {
                (Effect::Deny, Reason::PolicyError, forbids(&erring), erring.clone())
            } else {
                match cedar {
                    Cedar::Allow => (Effect::Allow, Reason::Policy, satisfied.clone(), erring.clone()),
                    Cedar::Deny if spoken => (Effect::Deny, Reason::Policy, satisfied.clone(), erring.clone()),
                    Cedar::Deny => (Effect::Deny, Reason::DefaultDeny, Vec::new(), erring.clone()),
                }
            };
            assert_eq!(told(&decision), expected, "{query:#?}\n{text}{entities:#}");
            seen.borrow_mut().insert(expected.1);
            // In shadow: as if all of them were in force.
            let all: Vec<(usize, &Rule)> = rules.iter().enumerate().collect();
            let (cedar, _, erring) = plain(&all, &query, &store);
            let would_be = match cedar {
                Cedar::Allow if forbids(&erring).is_empty() => Effect::Allow,
                _ => Effect::Deny,
            };
            let own = decision.shadow.as_ref().map(|own| own.effect);
            assert_eq!(own, (!shadow.is_empty()).then_some(would_be), "{query:#?}\n{text}{entities:#}");
        }
    });
    let all = [Reason::Policy, Reason::DefaultDeny, Reason::PolicyError];
    assert!(all.iter().all(|reason| seen.borrow().contains(reason)), "{seen:?}");
}

/// Conditions of the property above that need more than one dereference, and more than all: each of them must have been
/// seen to matter by the level that the validator gives it, or the property says little.
#[test]
fn the_world_needs_slices_of_every_depth() {
    let query = |attributes: &[(&'static str, Value)]| {
        let attributes = attributes.iter().map(|(name, value)| ((*name).into(), value.clone())).collect();
        let principal = Principal { attributes, ..user("me") };
        Query { resource: uid("Doc", "1"), ..get(principal) }
    };
    let boss = |id: &str| ("boss", Value::Entity(uid("User", id)));
    let chain = |id: u8| {
        json!({
            "uid": {"type": "User", "id": id.to_string()}, "parents": [{"type": "Group", "id": "0"}],
            "attrs": {"level": 5, "card": {}, "boss": {"__entity": {"type": "User", "id": (id + 1).to_string()}}},
        })
    };
    // The last two are reached by name only.
    let entities = json!([chain(0), chain(1), chain(2), chain(3), chain(4), chain(8), chain(9)]).to_string();
    for condition in [
        "principal has boss && principal.boss.level == 5",
        "principal has boss && principal.boss in Group::\"0\"",
        "principal has boss && principal.boss has boss && principal.boss.boss.level == 5",
        "principal has boss && principal.boss has boss && principal.boss.boss has boss && principal.boss.boss.boss.level == 5",
        "principal has boss && principal.boss has boss && principal.boss.boss has boss && principal.boss.boss.boss has boss && principal.boss.boss.boss.boss.level == 5",
        "User::\"8\".level == 5",
        "User::\"8\" has boss && User::\"8\".boss in Group::\"0\"",
        "User::\"8\" in Group::\"0\"",
    ] {
        let policy = format!("permit (principal, action, resource) when {{ {condition} }};");
        let bundle = shop(&[("s.cedarschema", WORLD), ("a.cedar", &policy), ("entities.json", &entities)]);
        let decision = compile(&[bundle]).decide(&query(&[boss("0")])).unwrap();
        assert_eq!(decision.effect, Effect::Allow, "{condition}: {:?}", decision.errors);
    }
}

#[test]
fn a_token_and_a_bundle_speak_of_the_same_user() {
    let schema = "entity User in [Group] { department?: String, level?: Long };
                  entity Doc in [User];
                  action \"GET\" appliesTo { principal: [User], resource: [Service, Doc], context: {} };";
    let entities = r#"[
        {"uid": {"type": "User", "id": "alice"}, "attrs": {"department": "books"},
         "parents": [{"type": "Group", "id": "staff"}]},
        {"uid": {"type": "Group", "id": "staff"}, "attrs": {}, "parents": [{"type": "Group", "id": "people"}]},
        {"uid": {"type": "Group", "id": "editors"}, "attrs": {}, "parents": [{"type": "Group", "id": "writers"}]},
        {"uid": {"type": "Group", "id": "writers"}, "attrs": {}, "parents": [{"type": "Group", "id": "creators"}]},
        {"uid": {"type": "Doc", "id": "memoir"}, "attrs": {}, "parents": [{"type": "User", "id": "alice"}]}
    ]"#;
    let decides = |condition: &str, principal: &Principal| {
        let policy = format!("permit (principal, action, resource) when {{ {condition} }};");
        let bundle = shop(&[("s.cedarschema", schema), ("a.cedar", &policy), ("entities.json", entities)]);
        let query = Query { resource: uid("Doc", "memoir"), ..get(principal.clone()) };
        compile(&[bundle]).decide(&query).unwrap().effect == Effect::Allow
    };
    let mut alice = user("alice");
    alice.attributes.insert("department".into(), Value::String("claimed".into()));
    alice.attributes.insert("level".into(), Value::Long(3));
    alice.parents = vec![uid("Group", "editors"), uid("Group", "unknown")];
    for condition in [
        // The bundle has the last word on what it knows; what it does not know, the token says.
        "principal has department && principal.department == \"books\"",
        "principal has level && principal.level == 3",
        "principal in Group::\"staff\"",
        "principal in Group::\"people\"",
        "principal in Group::\"editors\"",
        "principal in Group::\"unknown\"",
        // Through groups of groups, however far.
        "principal in Group::\"writers\"",
        "principal in Group::\"creators\"",
        // And what is below the user is below its groups.
        "resource in principal",
        "resource in Group::\"staff\"",
        "resource in Group::\"editors\"",
        "resource in Group::\"creators\"",
    ] {
        assert!(decides(condition, &alice), "{condition}");
    }
    for condition in ["principal in Group::\"other\"", "principal.department == \"claimed\""] {
        let condition = format!("principal has department && {condition}");
        assert!(!decides(&condition, &alice), "{condition}");
    }
    // A user that no bundle knows is who the token says, and no more.
    let bob = Principal { uid: uid("User", "bob"), ..alice };
    assert!(decides("principal has department && principal.department == \"claimed\"", &bob));
    assert!(decides("principal in Group::\"creators\"", &bob));
    assert!(!decides("principal in Group::\"staff\"", &bob));
    assert!(!decides("resource in Group::\"editors\"", &bob));
    assert!(!decides("principal has department", &user("carol")));
}

/// Names with everything that a name can have.
#[test]
fn ids_of_any_text_are_the_same_on_both_sides() {
    holds(64, any::<String>(), |text| {
        let entities =
            json!([{"uid": {"type": "User", "id": text}, "attrs": {}, "parents": [{"type": "Group", "id": text}]}]);
        let bundle = shop(&[
            ("entities.json", &entities.to_string()),
            ("a.cedar", "permit (principal, action, resource) when { principal in Group::\"other\" };"),
        ]);
        let snapshot = compile(&[bundle]);
        assert!(snapshot.knows(&uid("User", &text)));
        let query = get(Principal { parents: vec![uid("Group", "other")], ..user(&text) });
        let context = Attributes::new();
        assert_eq!(snapshot.decide(&Query { context, ..query }).unwrap().effect, Effect::Allow);
    });
}
