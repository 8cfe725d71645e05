//! What is accepted is in force: files, annotations, routes and keys that nothing would read are refused, with what would be.

use std::slice;

use cedar_policy::{PolicySet, SchemaFragment};
use proptest::prelude::{Strategy, any};
use serde_json::json;
use stockade::model::Effect;
use stockade::policy::{Memory, Snapshot};

use crate::cli::{dir, run};
use crate::fixture::{Court, compile, files, frame, holds, line, lines, problems, shop};

const PERMIT: (&str, &str) = ("policies/permit.cedar", "permit (principal is User, action, resource);");

const SCHEMA: (&str, &str) = (
    "s.cedarschema",
    r#"
    entity Doc;
    entity Stage enum ["dev", "prod"];
    action "open" appliesTo { principal: [User, Anonymous], resource: [Service], context: { method?: String } };
    action "read" appliesTo { principal: [User, Anonymous], resource: [Doc, Stage], context: {} };
    "#,
);

/// Anyone may open what is open, so that a route is seen to match by what is allowed.
const OPEN: (&str, &str) = ("policies/open.cedar", "permit (principal, action == Action::\"open\", resource);");

// === files ===

#[test]
fn files_that_nothing_reads_are_refused_with_the_nearest_that_would_be() {
    let rule = "forbid (principal, action, resource);";
    for (path, hint) in [
        ("policies/deny.CEDAR", "`policies/deny.cedar` would be read"),
        ("deny.cedar.txt", "`policies/deny.cedar` would be read"),
        ("rules/deny.cedar", "`policies/deny.cedar` would be read"),
        ("entities/deny.cedar", "`policies/deny.cedar` would be read"),
        ("policies/s.cedarschema", "`schemas/s.cedarschema` would be read"),
        ("routes.yml", "`routes.yaml` would be read"),
        ("Routes.yaml", "`routes.yaml` would be read"),
        ("conf/links.json", "`links.json` would be read"),
        ("tests/a.yml", "`tests/a.yaml` would be read"),
        ("policies/deny.cedar~", "remove it"),
        ("ci/pipeline.yaml", "what is read: `bundle.yaml`"),
    ] {
        let found = problems(&[shop(&[PERMIT, (path, rule)])]);
        assert_eq!(found.len(), 1, "{path}: {found:?}");
        assert!(found[0].starts_with(&format!("shop/{path}: nothing reads ")), "{found:?}");
        assert!(found[0].contains(hint), "{path}: {found:?}");
    }
    let found = problems(&[files("shop", &[("Bundle.yaml", "name: shop"), PERMIT])]);
    assert!(found[0].contains("`bundle.yaml` would be read"), "{found:?}");
}

/// What a bundle says is not its own is left alone, and nothing that would be read can be taken away by it.
#[test]
fn what_a_bundle_ignores_is_never_what_is_read() {
    let ignoring = |ignore: &str| {
        let manifest = format!("name: shop\nignore: [{ignore}]");
        files("shop", &[("bundle.yaml", &manifest), PERMIT, ("ci/pipeline.yaml", "x: ["), ("deny.cedar.old", "?")])
    };
    compile(&[ignoring("ci/, deny.cedar.old")]);
    for (ignore, expected) in [
        ("ci", "shop/ci/pipeline.yaml: nothing reads this file"),
        ("ci/, deny.cedar.old, policies/", "shop/policies/permit.cedar: `ignore` in bundle.yaml has `policies/`"),
        ("ci/, deny.cedar.old, 'policies/*'", "`policies/*` is no path in the bundle"),
        ("ci/, /deny.cedar.old", "`/deny.cedar.old` is no path in the bundle"),
        ("ci/, ../x", "`../x` is no path in the bundle"),
    ] {
        let found = problems(&[ignoring(ignore)]);
        assert!(found.iter().any(|line| line.contains(expected)), "{ignore}: {found:?}");
    }
}

// === annotations ===

#[test]
fn annotations_that_mean_nothing_are_told() {
    let forbid = "forbid (principal is User, action, resource) when { false };";
    let bundle = |manifest: &str, annotations: &str| {
        let policy = format!("{annotations} {forbid}");
        files("shop", &[("bundle.yaml", &format!("name: shop\n{manifest}")), ("a.cedar", &policy)])
    };
    for (annotation, meant) in [
        ("@mod(\"shadow\")", "@mode(\"shadow\")"),
        ("@Mode(\"shadow\")", "@mode(\"shadow\")"),
        ("@shadow", "@mode(\"shadow\")"),
        ("@disabled", "@mode(\"shadow\")"),
        ("@statis(\"401\")", "@status(\"...\")"),
        ("@http_status(\"401\")", "@status(\"...\")"),
        ("@Id(\"a\")", "@id(\"...\")"),
        ("@redirect(\"/\")", "@location(\"...\")"),
    ] {
        let found = problems(&[bundle("", annotation)]);
        assert_eq!(found.len(), 1, "{annotation}: {found:?}");
        let hint = format!("has no effect (did you mean `{meant}`?");
        assert!(found[0].starts_with("shop/a.cedar:1:1: `@") && found[0].contains(&hint), "{found:?}");
    }
    let warnings = |manifest: &str| {
        let bundle = bundle(manifest, "@owner(\"me\") @team_jira(\"X-1\") @id(\"a\")");
        let warnings = lines(&compile(&[bundle]).warnings);
        warnings.into_iter().filter(|line| line.contains("no effect")).collect::<Vec<_>>()
    };
    assert_eq!(
        warnings("annotations: [owner]"),
        [
            "shop/a.cedar:1:1: `@team_jira` has no effect (if it is yours, list it in bundle.yaml: `annotations: [team_jira]`)"
        ]
    );
    assert_eq!(warnings("annotations: [owner, team_]"), [""; 0]);
    assert_eq!(warnings("").len(), 2);
    // Cedar itself refuses one that is there twice.
    let found = problems(&[bundle("", "@mode(\"shadow\") @mode(\"enforce\")")]);
    assert!(found[0].contains("duplicate annotation"), "{found:?}");
    let found = problems(&[bundle("annotations: [mode, 'team-']", "")]);
    assert_eq!(found.len(), 2, "{found:?}");
}

/// What was good under one list of annotations is looked at again under another.
#[test]
fn a_shorter_list_of_annotations_is_heard() {
    let bundle = |manifest: &str| {
        files(
            "shop",
            &[("bundle.yaml", manifest), ("a.cedar", "@mod(\"shadow\") permit (principal is User, action, resource);")],
        )
    };
    let mut memory = Memory::default();
    let listed = bundle("name: shop\nannotations: [mod]");
    assert!(Snapshot::compile(slice::from_ref(&listed), None, &mut memory).is_ok());
    let found = Snapshot::compile(&[bundle("name: shop")], None, &mut memory).expect_err("`@mod`");
    assert!(lines(&found)[0].contains("`@mod` has no effect"), "{found:?}");
}

// === Cedar's JSON forms ===

/// What Cedar itself makes of policies and a schema in its own syntax is the same bundle in JSON.
#[test]
fn policies_and_schemas_in_json_are_those_in_cedars_syntax() {
    let text = r#"
        @id("staff") @ttl("10s")
        permit (principal in Group::"staff", action == Action::"open", resource) when { context has method };
        @id("nobody") @status("451")
        forbid (principal == User::"mallory", action, resource);
        @id("share")
        permit (principal == ?principal, action == Action::"read", resource == ?resource);
    "#;
    let links = r#"[{"template_id": "share", "link_id": "one", "args": {"?principal": "User::\"a\"", "?resource": "Doc::\"1\""}}]"#;
    let in_cedar = shop(&[SCHEMA, ("policies/all.cedar", text), ("links.json", links)]);

    let parsed: PolicySet = text.parse().unwrap();
    let mut named = PolicySet::new();
    for policy in parsed.policies() {
        named.add(policy.new_id(policy.annotation("id").unwrap().parse().unwrap())).unwrap();
    }
    for template in parsed.templates() {
        named.add_template(template.new_id(template.annotation("id").unwrap().parse().unwrap())).unwrap();
    }
    let values = [
        (cedar_policy::SlotId::principal(), "User::\"a\"".parse().unwrap()),
        (cedar_policy::SlotId::resource(), "Doc::\"1\"".parse().unwrap()),
    ];
    named.link("share".parse().unwrap(), "one".parse().unwrap(), values.into()).unwrap();
    let policies = named.to_json().unwrap();
    let (fragment, _) = SchemaFragment::from_cedarschema_str(SCHEMA.1).unwrap();
    let schema = fragment.to_json_string().unwrap();
    let in_json = shop(&[("schemas/s.cedarschema.json", &schema), ("policies/all.json", &policies.to_string())]);

    let told = |bundle| {
        let mut summary = serde_json::to_value(compile(slice::from_ref(bundle)).summary()).unwrap();
        for policy in summary["policies"].as_array_mut().unwrap() {
            policy.as_object_mut().unwrap().remove("file");
        }
        summary["policies"].take()
    };
    assert_eq!(told(&in_cedar), told(&in_json));
    assert_eq!(told(&in_json).as_array().map(Vec::len), Some(3));

    // The keys of a set are ids, and so is the name of a file with one policy, which may be a template.
    let bare = json!({"effect": "permit", "principal": {"op": "All"}, "action": {"op": "All"}, "resource": {"op": "All"}, "conditions": []});
    let set = json!({"staticPolicies": {"key": bare}, "templates": {}, "templateLinks": []});
    let slot = json!({"effect": "permit", "principal": {"op": "==", "slot": "?principal"}, "action": {"op": "All"}, "resource": {"op": "All"}, "conditions": []});
    let links = r#"[{"template_id": "tee", "link_id": "linked", "args": {"?principal": "User::\"a\""}}]"#;
    let bundle = shop(&[
        ("set.cedar.json", &set.to_string()),
        ("policies/one.cedar.json", &bare.to_string()),
        ("policies/tee.json", &slot.to_string()),
        ("policies/links.json", links),
    ]);
    let ids: Vec<String> = compile(&[bundle]).summary().policies.into_iter().map(|policy| policy.id).collect();
    assert_eq!(ids, ["shop/key", "shop/linked", "shop/one"]);
}

#[test]
fn what_is_wrong_in_json_is_named_with_its_place() {
    let all = r#""principal": {"op": "All"}, "action": {"op": "All"}, "resource": {"op": "All"}, "conditions": []"#;
    let good = format!("{{\"effect\": \"permit\", {all}}}");
    for (text, expected) in [
        ("{\n  \"effect\": permit\n}".to_owned(), ":2:13: not valid JSON: expected value"),
        (
            format!("{{\"effect\": \"permit\", \"effect\": \"forbid\", {all}}}"),
            ":1:29: not valid JSON: `effect` is there twice",
        ),
        ("[]".to_owned(), ": no policies in Cedar's JSON form (an object: a policy set"),
        (format!("{{\"effect\": \"allow\", {all}}}"), "unknown variant `allow`"),
        (format!("{{\"effect\": \"permit\", \"when\": true, {all}}}"), "unknown field `when`"),
        (
            format!("{{\"staticPolices\": {{\"x\": {good}}}}}"),
            ":1:2: unknown key `staticPolices` of a policy set (did you mean `staticPolicies`?)",
        ),
        (format!("{{\"staticPolicies\": [{good}]}}"), ":1:2: `staticPolicies` is no object of policies by their ids"),
        ("{\"staticPolicies\": {\n\"x\": {\"efect\": 1}}}".to_owned(), ":2:1: `x`: "),
        (format!("{{\"staticPolicies\": {{\"x\": {good}, \"x\": {good}}}}}"), "`x` is there twice"),
        (
            r#"{"templateLinks": [{"templateId": "t", "newId": "l", "values": {}}]}"#.to_owned(),
            "link `l` names the template `t`, which is not in this file",
        ),
        (r#"{"templateLinks": [{"templateId": "t", "newID": "l", "values": {}}]}"#.to_owned(), "unknown field `newID`"),
        (
            good.replace("\"conditions\"", "\"annotations\": {\"mod\": \"shadow\"}, \"conditions\""),
            "`@mod` has no effect (did you mean `@mode",
        ),
    ] {
        let found = problems(&[shop(&[("policies/a.json", &text)])]);
        assert!(found[0].starts_with("shop/policies/a.json:") && found[0].contains(expected), "{text}: {found:?}");
    }
    // Two with one id, in whatever form.
    let found = problems(&[shop(&[PERMIT, ("policies/permit.json", &good)])]);
    assert!(found[0].contains("the id `shop/permit` is taken"), "{found:?}");
    for (text, expected) in [
        ("{\"\": {\"entityTypes\": {}, \"entityTypes\": {}, \"actions\": {}}}", "`entityTypes` is there twice"),
        ("{\"\": {\"entityTypes\": {}, \"action\": {}}}", "action"),
        ("{", ":1:1: not valid JSON: EOF"),
    ] {
        let found = problems(&[shop(&[PERMIT, ("s.cedarschema.json", text)])]);
        assert!(found[0].starts_with("shop/s.cedarschema.json:") && found[0].contains(expected), "{text}: {found:?}");
    }
    let twice =
        r#"[{"template_id": "t", "link_id": "l", "args": {"?principal": "User::\"a\"", "?principal": "User::\"b\""}}]"#;
    let found = problems(&[shop(&[PERMIT, ("links.json", twice)])]);
    assert!(found[0].contains("`?principal` is there twice"), "{found:?}");
}

/// What Cedar would pass over in entities is refused before it reads them.
#[test]
fn unknown_keys_of_entities_are_refused() {
    for (text, expected) in [
        (
            r#"[{"uid": {"type": "User", "id": "a"}, "attrs": {}, "parents": [], "tag": {}}]"#,
            ":1:67: an entity has no `tag` (did you mean `tags`?)",
        ),
        (r#"[{"uid": {"type": "User", "id": "a"}, "attributes": {}, "parents": []}]"#, "an entity has no `attributes`"),
        (
            r#"[{"uid": {"type": "User", "id": "a", "kind": 1}, "attrs": {}, "parents": []}]"#,
            "the name of an entity has no `kind`",
        ),
        (
            r#"[{"uid": {"__entity": {"type": "User", "id": "a"}, "x": 1}, "attrs": {}, "parents": []}]"#,
            "an escaped entity has no `x`",
        ),
        (
            r#"[{"uid": {"type": "User", "id": "a"}, "attrs": {}, "parents": [{"type": "Group", "id": "g", "of": 1}]}]"#,
            "the name of an entity has no `of`",
        ),
        (r#"[{"uid": {"type": "User", "id": "a"}, "attrs": {"x": 1, "x": 2}, "parents": []}]"#, "`x` is there twice"),
    ] {
        let found = problems(&[shop(&[PERMIT, ("entities.json", text)])]);
        assert!(found[0].contains(expected), "{text}: {found:?}");
    }
}

// === routes ===

/// Each is what another router has, or what no request has: refused, with what to write instead.
const REFUSED: [(&str, &str, &str); 62] = [
    ("GET /a/:id", "`:id` is a parameter in other routers", "`{id}`"),
    ("GET /a/:id/b", "`:id` is a parameter in other routers", "`{id}`"),
    ("GET /a/:from-:to", "`:from-:to` is a parameter in other routers", "`{from-:to}`"),
    ("GET /a/<id>", "`<id>` is a parameter in other routers", "`{id}`"),
    ("GET /a/<int:id>", "`<int:id>` is a parameter in other routers", "`{int:id}`"),
    ("GET /a/[id]", "`[id]` is a parameter in other routers", "`{id}`"),
    ("GET /a/${id}", "`${..}` is a parameter in other routers", "`{id}`"),
    ("GET /a/*", "`*` is a wildcard in other routers", "`{*rest}`"),
    ("GET /a/**", "`**` is a wildcard in other routers", "`{*rest}`"),
    ("GET /a/*rest", "`*rest` is a wildcard in other routers", "`{*rest}`"),
    ("GET /a/*.html", "`*.html` is a wildcard in other routers", "`{*rest}`"),
    ("GET /a*", "`a*` is a wildcard in other routers", "`{*rest}`"),
    ("GET /**/a", "`**` is a wildcard in other routers", "`{*rest}`"),
    ("GET /a/{id:[0-9]+}", "`{id:[0-9]+}` has a pattern", "`{id}`"),
    ("GET /a/{id:int}", "`{id:int}` has a pattern", "`{id}`"),
    ("GET /a/{id:[0-9]{3}}", "has a pattern", "`{id}`"),
    ("GET /a/{id:\\d+}", "`{id:\\d+}` has a pattern", "`{id}`"),
    ("GET /a/{id=5}", "`{id=5}` has a pattern", "`{id}`"),
    ("GET /v1/{name=shelves/*}", "is the rest of the path in other routers", "`{*name}`"),
    ("GET /a/{path:.*}", "`{path:.*}` is the rest of the path in other routers", "`{*path}`"),
    ("GET /a/{id?}", "`{id?}` is optional in other routers", "two routes"),
    ("GET /a/{...rest}", "`{...rest}` is the rest of the path in other routers", "`{*rest}`"),
    ("GET /a/{rest...}", "`{rest...}` is the rest of the path in other routers", "`{*rest}`"),
    ("GET /a/{**rest}", "`{**rest}` is the rest of the path in other routers", "`{*rest}`"),
    ("GET /a/{rest*}", "`{rest*}` is the rest of the path in other routers", "`{*rest}`"),
    ("GET /a/{+rest}", "`{+rest}` is the rest of the path in other routers", "`{*rest}`"),
    ("GET /a/{}", "`{}` has no name", "`{id}`"),
    ("GET /a/{*}", "`{*}` has no name", "`{*rest}`"),
    ("GET /a/{{id}}", "`{{id}` is no parameter", "`{id}`"),
    ("GET /a/{my id}", "`{my id}` is no parameter", "`{my}`"),
    ("GET /a/{id", "its braces do not match", "`{name}`"),
    ("GET /a/id}", "its braces do not match", "`{name}`"),
    ("GET /a/{*rest}/b", "`{*name}` is not at the end", "`{name}` for one segment"),
    ("GET /a/x{*rest}", "`{*name}` shares its segment", "`/{*rest}`"),
    ("GET /a/{x}-{y}", "a segment has two parameters", "one parameter for each segment"),
    ("GET /a/{x}{y}", "a segment has two parameters", "one parameter for each segment"),
    ("GET /a/{id}/b/{id}", "`{id}` is there twice", "its own name"),
    ("GET /a//b", "it has an empty segment", "are refused before they reach a route"),
    ("GET //a", "it has an empty segment", "are refused before they reach a route"),
    ("GET /a/../b", "it has a dot segment, `..`", "are refused before they reach a route"),
    ("GET /a/.", "it has a dot segment, `.`", "are refused before they reach a route"),
    ("GET /caf%C3%A9", "`%C3` is an escape", "write `café`"),
    ("GET /a/b%20{id}", "`%20` is an escape", "write `b {..}`"),
    ("GET /a%2Fb", "`%2F` is an escape that no path has", "before"),
    ("GET /a%2E%2E", "`%2E` is an escape", "write `a..`"),
    ("GET /%2E%2E/a", "`%2E` is an escape that no path has", "before"),
    ("GET /a;v=1", "`;` begins path parameters", "without them"),
    ("GET /a\\b", "no literal has `\\\\`", "`{name}`"),
    ("GET /a?x=1", "a query is not matched", "`context.query`"),
    ("GET /a/?", "a query is not matched", "`context.query`"),
    ("GET /a#b", "it has a fragment", "the path alone"),
    ("GET /a/(b|c)", "no literal has `|`", "regular expressions"),
    ("GET /^a", "no literal has `^`", "regular expressions"),
    ("GET /a/b$", "`b$` ends like a regular expression", "regular expressions"),
    ("GET /a(/b)", "`a(` is a part that other routers take for optional", "two routes"),
    ("GET /a(.:format)", "`a(.:format)` is a part that other routers take for optional", "two routes"),
    ("GET https://shop.example/a", "it has a scheme and a host", "`context.host`"),
    ("GET shop.example/a", "`shop.example/a` does not begin with `/`", "like `GET"),
    ("GET  /a", "` /a` does not begin with `/`", "like `GET"),
    ("GET /a HTTP/1.1", "it has a version of HTTP", "method and path alone"),
    ("OPTIONS *", "`*` does not begin with `/`", "like `GET"),
    ("/a", "it has no method", "`GET /a`"),
];

const REFUSED_METHODS: [(&str, &str, &str); 14] = [
    ("get /a", "`get` is no method", "`GET`"),
    ("Get /a", "`Get` is no method", "`GET`"),
    ("ANY /a", "`ANY` is no method", "name each"),
    ("all /a", "`all` is no method", "name each"),
    ("* /a", "`*` is no method", "name each"),
    ("GET,POST /a", "methods are separated by `|`", "`GET|POST`"),
    ("GET|get /a", "`get` is no method", "`GET`"),
    ("GET|GET /a", "`GET` is there twice", "once"),
    ("GET| /a", "`` is no method", "like"),
    ("PSOT /a", "no request has the method `PSOT`", "`POST`"),
    ("GRPC a.B/C", "`GRPC` is no method", "in lower case"),
    ("grpc /a.B/C", "`/a.B/C` is no service and method", "no slash in front"),
    ("grpc a.B/*", "a gRPC route is one method", "a route for each"),
    ("grpc a.B.C", "`a.B.C` is no service and method", "one before the method"),
];

fn routed(pattern: &str) -> stockade::policy::Files {
    let routes = json!({"routes": [{"match": pattern, "action": "open"}]}).to_string();
    shop(&[SCHEMA, OPEN, ("routes.yaml", &routes)])
}

#[test]
fn routes_in_the_form_of_other_routers_are_refused_with_the_right_one() {
    for (pattern, what, hint) in REFUSED.into_iter().chain(REFUSED_METHODS) {
        let found = problems(&[routed(pattern)]);
        assert_eq!(found.len(), 1, "{pattern}: {found:?}");
        let start = format!("`routes[0].match`: `{pattern}` is not a route: ");
        assert!(found[0].contains(&start) && found[0].contains(what) && found[0].contains(hint), "{found:?}");
        assert!(!found[0].contains("one of the two has to go"), "{found:?}");
    }
    // Literals of OData and FHIR look like parameters of others.
    let doubt = lines(&compile(&[routed("GET /Patient/$everything")]).warnings);
    assert!(doubt.iter().any(|line| line.contains("`$everything` in route")), "{doubt:?}");
}

/// Any path that is accepted as a template without parameters matches the request of that path, in whatever way it is
/// escaped; and with a parameter, the request in which something stands for it.
#[test]
fn what_is_accepted_matches() {
    let court = |pattern: &str| {
        Snapshot::compile(&[routed(pattern)], None, &mut Default::default())
            .ok()
            .map(|snapshot| Court::under(snapshot.into(), ""))
    };
    let is_open = |court: &Court, method: &str, path: &str| {
        court.query(&line(method, path)).is_ok_and(|query| query.action.id().unescaped() == "open")
    };
    for (pattern, path) in [
        ("GET /v1/shelves/{id}:checkout", "/v1/shelves/7:checkout"),
        ("GET /v1/shelves:batchGet", "/v1/shelves:batchGet"),
        ("GET /img-{id}.png", "/img-7.png"),
        ("GET /Products({id})", "/Products(7)"),
        ("GET /café/{*rest}", "/caf%C3%A9/a/b"),
        ("GET /a b", "/a%20b"),
        ("GET /~me/@you/a,b", "/~me/@you/a,b"),
        ("GET /100%", "/100%25"),
        ("GET /a/", "/a/"),
        ("GET /", "/"),
        ("GET /.well-known/x", "/.well-known/x"),
    ] {
        assert!(is_open(&court(pattern).expect(pattern), "GET", path), "{pattern}");
    }
    let seen = std::cell::Cell::new(0);
    // Characters that mean something to some router, and some that do not.
    let text = proptest::collection::vec(
        proptest::sample::select("ab/:*{}<>[]()%2F4$~.;\\?#|^+é =@!'\"-".chars().collect::<Vec<_>>()),
        0..7,
    );
    holds(2048, text, |chars| {
        let path: String = std::iter::once('/').chain(chars).collect();
        let Some(court) = court(&format!("GET {path}")) else { return };
        if path.contains('{') {
            return;
        }
        seen.set(seen.get() + 1);
        let escaped = percent_encoding::utf8_percent_encode(&path, percent_encoding::NON_ALPHANUMERIC).to_string();
        let escaped = escaped.replace("%2F", "/").replace("%2E", ".");
        assert!(is_open(&court, "GET", &escaped), "{path} is accepted, and {escaped} does not match");
    });
    assert!(seen.get() > 100, "{}", seen.get());
}

#[test]
fn a_route_that_another_always_wins_over_is_refused() {
    for routes in [
        r#"[{"match": "grpc a.B/C", "action": "open"}, {"match": "POST /a.B/C", "action": "open"}]"#,
        r#"[{"match": "GET|POST /a.B/C", "action": "open"}, {"match": "grpc a.B/C", "action": "open"}]"#,
        r#"[{"match": "GET|POST /a/{x}", "action": "open"}, {"match": "POST /a/{y}", "action": "open"}]"#,
    ] {
        let bundle = shop(&[SCHEMA, OPEN, ("routes.yaml", &format!("{{\"routes\": {routes}}}"))]);
        let found = problems(&[bundle]);
        assert!(found.len() == 1 && found[0].contains("one of the two has to go"), "{routes}: {found:?}");
    }
    let wide =
        r#"{"routes": [{"match": "POST /{a}/{b}", "action": "open"}, {"match": "grpc a.B/C", "action": "open"}]}"#;
    compile(&[shop(&[SCHEMA, OPEN, ("routes.yaml", wide)])]);
}

/// RFC 9110, 9.3.2: HEAD is GET without the body. Whatever a route says of HEAD counts, however general.
#[test]
fn head_is_get_where_no_route_says_otherwise() {
    let routes = r#"
        routes:
          - { match: GET|POST /open, action: open }
          - { match: GET /closed, action: open }
          - { match: "HEAD /clos{rest}", action: shut }
    "#;
    let schema = r#"action "open", "shut" appliesTo {
        principal: [User, Anonymous], resource: [Service], context: { method?: String, path?: String },
    };"#;
    let get_only = r#"forbid (principal, action == Action::"open", resource)
        when { context has method && context.method == "HEAD" && context has path && context.path == "/open" };"#;
    let decide = |policies: &[(&str, &str)], method: &str, path: &str| {
        let bundle = [&[("s.cedarschema", schema), ("routes.yaml", routes), OPEN], policies].concat();
        let court = Court::new(&[shop(&bundle)], "");
        let query = court.query(&line(method, path)).unwrap();
        (query.action.id().unescaped().to_owned(), court.snapshot.decide(&query).unwrap().effect)
    };
    for (method, path, action, effect) in [
        ("GET", "/open", "open", Effect::Allow),
        ("POST", "/open", "open", Effect::Allow),
        ("HEAD", "/open", "open", Effect::Allow),
        ("OPTIONS", "/open", "OPTIONS", Effect::Deny),
        ("GET", "/closed", "open", Effect::Allow),
        ("HEAD", "/closed", "shut", Effect::Deny),
        ("POST", "/closed", "POST", Effect::Deny),
    ] {
        assert_eq!(decide(&[], method, path), (action.to_owned(), effect), "{method} {path}");
    }
    // Policies see the method that the request has.
    assert_eq!(decide(&[("get-only.cedar", get_only)], "HEAD", "/open").1, Effect::Deny);
    assert_eq!(decide(&[("get-only.cedar", get_only)], "GET", "/open").1, Effect::Allow);
}

// === resources ===

#[test]
fn resources_that_run_together_or_do_not_exist_are_refused() {
    let refused = |path: &str, resource: &str| {
        let routes = json!({"routes": [{"match": path, "action": "read", "resource": resource}]}).to_string();
        Snapshot::compile(&[shop(&[SCHEMA, PERMIT, ("routes.yaml", &routes)])], None, &mut Default::default())
            .err()
            .map(|found| lines(&found))
    };
    for (path, resource, expected) in [
        ("GET /{t}/{d}", "Doc::\"{t}-{d}\"", "`{t}` and `{d}` run together"),
        ("GET /{t}/{d}", "Doc::\"{t}{d}\"", "`{t}` and `{d}` run together"),
        ("GET /{t}/{d}/{e}", "Doc::\"{t}/{d}:{e}\"", "`{d}` and `{e}` run together"),
        ("GET /{t}/{*r}", "Doc::\"{r}/{t}\"", "`{r}` and `{t}` run together"),
        ("GET /{t}", "Doc::\":t\"", "`:t` in the resource of route `GET /{t}` is a literal"),
        ("GET /{t}", "Doc::\"x-$t\"", "`$t` in the resource"),
        ("GET /{t}", "Doc::\"<t>\"", "`<t>` in the resource"),
        ("GET /{t}", "Doc::\"{t}}\"", "is not a resource"),
        ("GET /{t}", "Doc::\"{*t}\"", "names `{*t}`, which its path has not"),
        ("GET /x", "Stage::\"Prod\"", "is Stage::\"Prod\", which its enum does not have (did you mean `prod`?)"),
        ("GET /x", "Stage::\"\"", "which its enum does not have"),
    ] {
        let found = refused(path, resource).unwrap_or_else(|| panic!("{path} {resource} is accepted"));
        assert!(found.iter().any(|line| line.contains(expected)), "{found:?}");
    }
    for (path, resource) in [
        ("GET /{t}/{d}", "Doc::\"{t}/{d}\""),
        ("GET /{t}/{*r}", "Doc::\"{t}/x/{r}\""),
        ("GET /{t}/{d}", "Doc::\"a-{d}-b\""),
        ("GET /x", "Stage::\"prod\""),
        ("GET /{s}", "Stage::\"{s}\""),
    ] {
        assert_eq!(refused(path, resource), None, "{path} {resource}");
    }
}

/// Two requests of a route name one resource only if their parameters are the same, whatever forms of paths are allowed.
#[test]
fn different_parameters_name_different_resources() {
    let routes =
        json!({"routes": [{"match": "GET /{a}/{b}/{*c}", "action": "read", "resource": "Doc::\"{a}/{b}/{c}\""}]});
    let config = "paths: {allow: [encoded_slash, double_encoding, encoded_dot, backslash, malformed_escape]}";
    let bundle = shop(&[
        SCHEMA,
        ("p.cedar", "permit (principal, action, resource is Doc);"),
        ("routes.yaml", &routes.to_string()),
    ]);
    let court = Court::new(&[bundle], config);
    let part =
        || proptest::collection::vec(proptest::sample::select(vec!["a", "%2F", "%25", "%252F", "2", "F", "%5C"]), 1..4);
    let parts = (part(), part(), part()).prop_map(|(a, b, c)| [a, b, c].map(|part| part.concat()));
    let decoded = |parts: &[String; 3]| {
        parts.clone().map(|part| percent_encoding::percent_decode_str(&part).decode_utf8_lossy().into_owned())
    };
    holds(2048, (parts, any::<u8>()), |(one, at)| {
        // The same bytes, cut elsewhere.
        let all = one.concat();
        let cuts: Vec<usize> = (1..all.len()).filter(|at| all.is_char_boundary(*at)).collect();
        let Some(cut) = cuts.get(usize::from(at) % cuts.len().max(1)).copied().filter(|cut| all.len() > cut + 1) else {
            return;
        };
        let other = [all[..cut].to_owned(), all[cut..=cut].to_owned(), all[cut + 1..].to_owned()];
        let [one_id, other_id] = [&one, &other]
            .map(|parts| court.query(&line("GET", &format!("/{}", parts.join("/")))).map(|query| query.resource));
        if let (Ok(one_id), Ok(other_id)) = (one_id, other_id) {
            assert_eq!(decoded(&one) == decoded(&other), one_id == other_id, "{one:?} {other:?}: {one_id}");
        }
    });
}

// === actions and routes ===

#[test]
fn actions_without_routes_and_routes_without_policies_are_told() {
    let told = |files: &[(&str, &str)]| {
        let snapshot = compile(&[shop(files)]);
        let of_routes = |line: &String| line.contains("no route leads") || line.contains("no policy is about");
        lines(&snapshot.warnings).into_iter().filter(of_routes).collect::<Vec<_>>()
    };
    let open = ("routes.yaml", "routes: [{match: GET /a, action: open}]");
    let unrouted = "shop/s.cedarschema:5:12: no route leads to Action::\"read\", so no request has it (add a route to routes.yaml, or remove the \
                    action from the schema)";
    assert_eq!(told(&[SCHEMA, OPEN, open]), [unrouted]);
    assert_eq!(told(&[SCHEMA, PERMIT, open]), [unrouted]);
    // Without routes, nothing is said about them.
    assert_eq!(told(&[SCHEMA, OPEN]), [""; 0]);
    let both = json!({"routes": [
        {"match": "GET /a", "action": "open"},
        {"match": "GET /d/{id}", "action": "read", "resource": "Doc::\"{id}\""},
    ]});
    assert_eq!(
        told(&[SCHEMA, OPEN, ("routes.yaml", &both.to_string())]),
        ["no policy is about Action::\"read\": the requests of route `GET /d/{id}` of bundle `shop` are denied"]
    );
    assert_eq!(told(&[SCHEMA, PERMIT, ("routes.yaml", &both.to_string())]), [""; 0]);

    // The first is a warning, the second is not.
    for (routes, code, warnings) in [(open.1.to_owned(), 1, "1 warning"), (both.to_string(), 0, "0 warnings")] {
        let dir = dir(&[("bundle.yaml", "name: shop"), SCHEMA, OPEN, ("routes.yaml", &routes)]);
        let ran = run(dir.path(), &["validate", "--strict", "."], "");
        assert_eq!(ran.code, code, "{ran:?}");
        assert!(ran.stdout.ends_with(&format!("; {warnings}\n")), "{ran:?}");
        assert!(ran.stderr.contains("Action::\"read\""), "{ran:?}");
    }
}

// === tests of bundles ===

#[test]
fn tests_that_say_nothing_are_refused_and_requests_without_tests_are_told() {
    let request = json!({"attributes": {"request": {"http": {"method": "GET", "path": "/"}}}}).to_string();
    let test = |tests: &str, request: &str| {
        let dir = dir(&[
            ("bundle.yaml", "name: shop"),
            ("a.cedar", "permit (principal, action == Action::\"GET\", resource);"),
            ("tests/get.json", request),
            ("tests/other.json", request),
            ("tests/a.yaml", tests),
        ]);
        run(dir.path(), &["test", "."], "")
    };
    let one = "{name: one, request: get.json, expect: allow}";
    let good = test(&format!("tests: [{one}]"), &request);
    assert_eq!((good.code, good.stdout.as_str()), (0, "1 test passed\n"), "{good:?}");
    assert!(good.stderr.contains("./tests/other.json: no test is about this request"), "{good:?}");
    assert!(!good.stderr.contains("get.json"), "{good:?}");
    for (tests, request, said) in [
        ("tests: []".to_owned(), request.as_str(), "there must be at least one"),
        (format!("tests: [{one}, {one}]"), &request, "two tests are called `one`"),
        ("tests: [{name: one, request: get.json, expects: allow}]".to_owned(), &request, "did you mean `expect`?"),
        (format!("tests: [{one}]"), r#"{"method": "GET"}"#, "it belongs to `attributes.request.http`"),
    ] {
        let ran = test(&tests, request);
        assert!(ran.code == 1 && ran.stderr.contains(said), "{tests}: {ran:?}");
    }
}

// === the configuration ===

#[test]
fn keys_of_a_configuration_without_effect_are_told() {
    let check = |config: &str| {
        let dir = dir(&[("stockade.yaml", config)]);
        run(dir.path(), &["check-config", "stockade.yaml"], "")
    };
    let keys = dir(&[]);
    let made = run(keys.path(), &["keygen", "key", "--role", "publish", "--role", "beacon"], "");
    let (_, printed) = made.stdout.split_once("store:\n").expect("what to add to a configuration");
    let store = format!("store:\n  name: prod\n{printed}nats: {{servers: ['nats://localhost:4222']}}\n");
    assert_eq!(check(&store).code, 0, "{store}");
    for (config, said) in [
        (
            "bundles: [{directory: b}]\nnats: {servers: ['nats://localhost:4222']}".to_owned(),
            "`nats` has no effect without `store`",
        ),
        (format!("{store}\nfeed: {{poll: 1s}}"), "`feed` is about directories"),
        ("bundles: [{directory: b}]\nservice: !secret x".to_owned(), "the tag `!secret` means nothing here"),
    ] {
        let ran = check(&config);
        assert!(ran.code == 2 && ran.stderr.contains(said), "{config}: {ran:?}");
    }
    for (config, said) in [
        ("decision_log: {max_files: 3}", "`max_file_size` and `max_files` have no effect without a file"),
        ("decision_log: {output: none, queue: 100}", "nothing in it has an effect with `output: none`"),
        ("metrics: {policy_label: true}\nadmin: {listen: none}", "`metrics` has no effect"),
    ] {
        let ran = check(&format!("bundles: [{{directory: b}}]\n{config}"));
        assert!(ran.code == 0 && ran.stderr.contains(said), "{config}: {ran:?}");
    }
    let ran = check("bundles: [{directory: b}]\ndecision_log: {output: 'file:///tmp/x', max_files: 3}");
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
}

#[test]
fn keys_that_never_count_are_refused() {
    let check = |config: &str| {
        let dir = dir(&[("stockade.yaml", &format!("bundles: [{{directory: b}}]\n{config}"))]);
        run(dir.path(), &["check-config", "stockade.yaml"], "")
    };
    let sources = [
        "{from: jwt_metadata}",
        "{from: peer}",
        "{from: trusted_header, header: x-user, addresses: ['10.0.0.0/8']}",
        "{from: anonymous}",
    ];
    // Whatever comes after `anonymous` or after itself.
    for (at, source) in sources.iter().enumerate() {
        assert_eq!(check(&format!("identity: [{source}]")).code, 0, "{source}");
        for before in [sources[3], source] {
            let ran = check(&format!("identity: [{before}, {source}]"));
            let said = ran.stderr.contains("`identity[1]`") && ran.stderr.contains("never gets a turn");
            assert!(ran.code == 2 && said, "{before} {source}: {ran:?}");
        }
        for before in sources.iter().take(at) {
            let ran = check(&format!("identity: [{before}, {source}]"));
            assert_eq!(ran.code, 0, "{before} {source}: {ran:?}");
        }
    }
    let trusted = |header: &str, addresses: &str| {
        format!("{{from: trusted_header, header: {header}, addresses: ['{addresses}']}}")
    };
    let both = |one: &str, other: &str| check(&format!("identity: [{one}, {other}]")).code;
    assert_eq!(both(&trusted("x-user", "10.0.0.0/8"), &trusted("X-User", "10.1.0.0/16")), 2);
    assert_eq!(both(&trusted("x-user", "10.1.0.0/16"), &trusted("x-user", "10.0.0.0/8")), 0);
    assert_eq!(both("{from: jwt_metadata}", "{from: jwt_metadata, payload_key: payload}"), 2);
    assert_eq!(both("{from: jwt_metadata}", "{from: jwt_metadata, payload_key: staff}"), 0);
    for (config, said) in [
        ("upstream_headers: {X-User: principal, x-user: principal_id}", "`x-user` is there twice"),
        (
            "identity: [{from: trusted_header, header: x-user, addresses: ['::ffff:10.0.0.0/104']}]",
            "no address is in `::ffff:10.0.0.0/104`",
        ),
        ("identity: [{from: trusted_header, header: x-user, addresses: ['::ffff:10.0.0.1']}]", "`10.0.0.1/32`"),
    ] {
        let ran = check(config);
        assert!(ran.code == 2 && ran.stderr.contains(said), "{config}: {ran:?}");
    }
    assert_eq!(
        check("identity: [{from: trusted_header, header: x-user, addresses: ['::/0', '2001:db8::/32']}]").code,
        0
    );
}

#[test]
fn ids_of_a_configuration_that_an_enum_does_not_list_are_told() {
    let schema = r#"
        entity Anonymous enum ["nobody"];
        entity Service enum ["shop"];
        action "open" appliesTo { principal: [Anonymous], resource: [Service] };
    "#;
    let check = |config: &str| {
        let dir = dir(&[
            ("stockade.yaml", &format!("bundles: [{{directory: b}}]\n{config}")),
            ("b/bundle.yaml", "name: b"),
            ("b/s.cedarschema", schema),
            ("b/p.cedar", "permit (principal, action == Action::\"open\", resource);"),
        ]);
        run(dir.path(), &["check-config", "--bundles", "stockade.yaml"], "").stderr
    };
    let said = check("service: shp");
    assert!(said.contains("Anonymous::\"anonymous\" is not one of the ids") && said.contains("nobody"), "{said}");
    assert!(said.contains("Service::\"shp\" is not one of the ids") && said.contains("did you mean `shop`?"), "{said}");
    let good = check("service: shop\nidentity: [{from: anonymous, id: nobody}]");
    assert!(!good.contains("is not one of the ids"), "{good}");
}

/// Names of headers that no request has, or that are one header.
#[test]
fn headers_that_no_request_has_are_refused() {
    let with = |names: &str| {
        let schema = format!(
            "action \"open\" appliesTo {{ principal: [Anonymous], resource: [Service], context: {{ headers: {{ {names} }} }} }};"
        );
        Snapshot::compile(&[shop(&[("s.cedarschema", &schema), OPEN])], None, &mut Default::default())
            .err()
            .map(|found| lines(&found).join("\n"))
    };
    for (names, said) in [
        ("\"x tenant\"?: String", "`x tenant`, which no header can be called"),
        ("\"\"?: String", "``, which no header can be called"),
        ("\"x:y\"?: String", "`x:y`, which no header can be called"),
        ("\"x-é\"?: String", "which no header can be called"),
        ("\":path\"?: String", "declare `context.path`"),
        ("\":authority\"?: String", "declare `context.host`"),
        ("Host?: String", "declare `context.host`"),
        ("\"X-Tenant\"?: String, \"x-tenant\": String", "`X-Tenant` and `x-tenant`, which are one header"),
        ("x_tenant?: String", "has a `_`"),
    ] {
        let found = with(names).unwrap_or_else(|| panic!("{names} is accepted"));
        assert!(found.contains(said), "{names}: {found}");
    }
    assert_eq!(with("\"X-Tenant\"?: String, \"x-tenants\"?: String"), None);
}

#[test]
fn parameters_that_no_route_has_are_refused() {
    let with = |routes: &str| {
        let schema = r#"
            entity Doc;
            action "view", "list" appliesTo { principal: [User], resource: [Service], context: { params?: { doc?: String } } };
        "#;
        let permit = ("p.cedar", "permit (principal is User, action, resource);");
        let bundle = shop(&[("s.cedarschema", schema), permit, ("routes.yaml", &format!("routes: [{routes}]"))]);
        Snapshot::compile(&[bundle], None, &mut Default::default()).err().map(|found| lines(&found))
    };
    let list = "{match: 'GET /{doc}/all', action: list}";
    let found = with(&format!("{{match: 'GET /{{dco}}', action: view}}, {list}")).expect("`dco`");
    assert_eq!(
        found,
        [
            "shop/s.cedarschema:3:20: no route that leads to Action::\"view\" has `{doc}`, so `context.params.doc` is never there \
          (did you mean `dco`?)"
        ]
    );
    // One of the routes to an action is enough.
    assert_eq!(
        with(&format!("{{match: 'GET /{{doc}}', action: view}}, {{match: GET /x, action: view}}, {list}")),
        None
    );
}

#[test]
fn templates_without_links_and_files_that_are_not_there_are_told() {
    let template = ("t.cedar", "permit (principal == ?principal, action == Action::\"GET\", resource);");
    let link = r#"[{"template_id": "t", "link_id": "l", "args": {"?principal": "User::\"a\""}}]"#;
    let unlinked = |more: &[(&str, &str)]| {
        let warnings = lines(&compile(&[shop(&[&[template, PERMIT], more].concat())]).warnings);
        warnings.iter().any(|line| line.contains("no link uses the template `shop/t`"))
    };
    assert!(unlinked(&[]));
    assert!(!unlinked(&[("links.json", link)]));

    let validate = |ignore: &str| {
        let manifest = format!("name: shop\nignore: [{ignore}]");
        let dir = dir(&[("bundle.yaml", &manifest), PERMIT, ("ci/pipeline.yaml", "x"), ("kustomization.yaml", "x")]);
        run(dir.path(), &["validate", "--strict", "."], "")
    };
    assert_eq!(validate("ci/, kustomization.yaml").code, 0);
    let ran = validate("ci/, kustomization.yaml, kustomisation.yaml, cd/");
    assert_eq!(ran.code, 1, "{ran:?}");
    for said in ["`ignore` has `kustomisation.yaml`", "`ignore` has `cd/`"] {
        assert!(ran.stderr.contains(said), "{ran:?}");
    }
}

#[test]
fn guardrails_that_forbid_nothing_are_told() {
    let shown = |schema: &str, policy: &str| {
        let bundle = shop(&[("s.cedarschema", schema), ("p.cedar", policy)]);
        match Snapshot::compile(&[bundle], None, &mut Default::default()) {
            Ok(snapshot) => lines(&snapshot.warnings).join("\n"),
            Err(found) => lines(&found).join("\n"),
        }
    };
    let group = r#"forbid (principal in Group::"banned", action, resource);"#;
    let found = shown("entity Group { topic: String };", group);
    assert!(found.contains("`shop/p` forbids nothing: no request that the schema allows meets it"), "{found}");
    // Cedar knows no such type, and does not know that tokens become members of another.
    let own = "namespace Shop { entity Group; entity User in [Group]; }";
    let found = shown(own, group);
    assert!(found.contains("write `Shop::Group`"), "{found}");
    // What is compared with what no request has.
    let found =
        shown("", "forbid (principal, action == Action::\"GET\", resource) when { context.identity == \"JWT\" };");
    assert!(
        found.contains("compares `context.identity` with `JWT`, which it never is (did you mean `jwt`?)"),
        "{found}"
    );
}

/// What is only logged is no reason to refuse a request, and a value that does not fit takes no other with it.
#[test]
fn attributes_that_do_not_fit_are_left_out_of_the_log_alone() {
    let schema = r#"
        entity User { email?: String, level?: Long };
        action "GET" appliesTo {
            principal: [User], resource: [Service], context: { headers?: { "x-a"?: String, "x-n"?: Long } },
        };
    "#;
    let bundle = shop(&[
        ("s.cedarschema", schema),
        ("p.cedar", "permit (principal is User, action == Action::\"GET\", resource);"),
    ]);
    let named = "principal.email, principal.level, context.headers.x-a, context.headers.x-n";
    let court = Court::new(&[bundle], &format!("decision_log: {{attributes: [{named}]}}"));
    let logged = |level: serde_json::Value, number: &str| {
        let mut request = crate::fixture::by_token(json!({"sub": "ann", "email": "a@b.example", "level": level}));
        let http = request.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap();
        http.headers = crate::fixture::pairs(&[("x-a", "one"), ("x-n", number)]);
        let checked = court.pipeline.frame(frame(&request), "d");
        assert_eq!(crate::fixture::sound(&checked), "allow");
        serde_json::to_value(checked.logged).unwrap()
    };
    let whole =
        json!({"context": {"headers": {"x-a": "one", "x-n": 5}}, "principal": {"email": "a@b.example", "level": 7}});
    assert_eq!(logged(json!(7), "5"), whole);
    let fitting = json!({"context": {"headers": {"x-a": "one"}}, "principal": {"email": "a@b.example"}});
    assert_eq!(logged(json!("seven"), "five"), fitting);
}
