//! The report on footprints: what `stockade footprint`, `stockade validate` and the admin endpoint say of cache keys.

use serde_json::{Value as Json, json};
use stockade::policy::Hits;

use crate::cli::{Ran, dir, run};
use crate::fixture::{compile, lines, shop};
use testkit::repository;

const SCHEMA: &str = r#"
entity Book;
entity User in [Group] { email?: String };
action "viewBook", "editBook" appliesTo {
    principal: [User, Anonymous],
    resource: [Book],
    context: {
        path: String,
        time: datetime,
        params: { id: Long },
        headers: { "x-tenant"?: String, "x-request-id"?: String, "x-debug"?: Bool },
        claims?: { mfa?: Bool },
    },
};
"#;
const ROUTES: &str = r#"
routes:
  - { match: "GET /books/{id}", action: viewBook, resource: 'Book::"{id}"' }
  - { match: "PUT /books/{id}", action: editBook, resource: 'Book::"all"' }
"#;
const POLICIES: &str = r#"
@id("tenant")
permit (principal is User, action, resource) when {
    context has headers && context.headers has "x-tenant" && context.headers["x-tenant"] == "blue"
};
@id("paths")
permit (principal, action in [Action::"viewBook", Action::"editBook"], resource) when { context.path like "/books*" };
@id("headers")
permit (principal == User::"a", action == Action::"viewBook", resource) when {
    [context.headers].contains(context.headers) && principal has email && context has claims
};
@id("clock")
forbid (principal, action == Action::"editBook", resource == Book::"1") when {
    context.time > datetime("2030-01-01") && context.headers has "x-tenant"
};
"#;

/// Runs a command over the bundle `shop` of these policies.
fn shop_command(args: &[&str], policies: &str) -> Ran {
    let dir = dir(&[
        ("shop/bundle.yaml", "name: shop\nunrouted: base"),
        ("shop/schema.cedarschema", SCHEMA),
        ("shop/routes.yaml", ROUTES),
        ("shop/all.cedar", policies),
    ]);
    run(dir.path(), &[args, &["shop"]].concat(), "")
}

/// What a report says of the keys of an action.
fn of<'a>(report: &'a Json, action: &str) -> &'a Json {
    let footprints = report["footprints"].as_array().expect("a list");
    let is_it = |footprint: &&Json| footprint["actions"].as_array().is_some_and(|all| all.contains(&json!(action)));
    let mut found = footprints.iter().filter(is_it);
    let own = found.next().unwrap_or_else(|| panic!("nothing of {action} in {report:#}"));
    assert!(found.next().is_none(), "{action} stands twice in {report:#}");
    own
}

#[test]
fn each_action_says_what_its_keys_hold_and_who_put_it_there() {
    let ran = shop_command(&["footprint", "--json"], POLICIES);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let report = ran.json();
    assert_eq!(report["always"], json!(["principal", "how it was proved", "its groups", "action", "resource"]));
    assert_eq!(report["revision"].as_str().map(str::len), Some(12));
    // place, type, read, hits, and for each policy: id, read, as part of what, whether for all actions
    type Row<'a> = (&'a str, &'a str, &'a str, &'a str, &'a [(&'a str, &'a str, Option<&'a str>, bool)]);
    let tenant = ("shop/tenant", "value", None, true);
    let whole = ("shop/headers", "value", Some("context.headers"), false);
    let paths = ("shop/paths", "value", None, false);
    let view: &[Row] = &[
        ("context.claims", "record", "presence", "usual", &[("shop/headers", "presence", None, false)]),
        ("context.headers.x-debug", "Bool", "value", "usual", &[whole]),
        ("context.headers.x-request-id", "String", "value", "few", &[whole]),
        ("context.headers.x-tenant", "String", "value", "usual", &[whole, tenant]),
        // Action and resource tell it.
        ("context.path", "String", "value", "usual", &[paths]),
        ("principal.email", "String", "value", "usual", &[("shop/headers", "value", None, false)]),
    ];
    let edit: &[Row] = &[
        (
            "context.headers.x-tenant",
            "String",
            "value",
            "usual",
            &[("shop/clock", "presence", None, false), ("shop/tenant", "value", None, true)],
        ),
        ("context.path", "String", "value", "few", &[paths]),
        ("context.time", "datetime", "value", "none", &[("shop/clock", "value", None, false)]),
    ];
    for (action, hits, expected) in [
        ("Action::\"viewBook\"", "few", view),
        ("Action::\"editBook\"", "none", edit),
        ("Action::\"GET\"", "usual", &[]),
    ] {
        let own = of(&report, action);
        assert_eq!(own["hits"], hits, "{action}");
        let places = own["places"].as_array().unwrap();
        assert_eq!(places.len(), expected.len(), "{action}: {own:#}");
        for (place, (name, ty, read, hits, policies)) in places.iter().zip(expected) {
            let found = (&place["place"], &place["type"], &place["read"], &place["hits"]);
            assert_eq!(found, (&json!(name), &json!(ty), &json!(read), &json!(hits)), "{action}");
            assert_eq!(place["why"].is_string() && place["advice"].is_string(), *hits != "usual", "{place:#}");
            let readers: Vec<(&Json, &Json, Option<&str>, &Json)> = place["policies"]
                .as_array()
                .unwrap()
                .iter()
                .map(|own| {
                    assert_eq!(own["file"], "shop/all.cedar");
                    (&own["id"], &own["read"], own["as_part_of"].as_str(), &own["all_actions"])
                })
                .collect();
            let expected: Vec<(Json, Json, Option<&str>, Json)> =
                policies.iter().map(|(id, read, part, all)| (json!(id), json!(read), *part, json!(all))).collect();
            let expected: Vec<_> = expected.iter().map(|(id, read, part, all)| (id, read, *part, all)).collect();
            assert_eq!(readers, expected, "{action}: {name}");
        }
    }
    // Those with the fewest hits first; the actions that routes leave alone stand together.
    let order: Vec<&Json> = report["footprints"].as_array().unwrap().iter().map(|own| &own["hits"]).collect();
    assert_eq!(order, ["none", "few", "usual"]);
    assert_eq!(of(&report, "Action::\"GET\"")["actions"].as_array().map(Vec::len), Some(9));
}

#[test]
fn people_read_the_same() {
    let ran = shop_command(&["footprint"], POLICIES);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    for line in [
        "every key             principal, how it was proved, its groups, action, resource\n",
        "actions               Action::\"editBook\"\nhits                  none: its decisions are not remembered\n",
        "reads                 context.time (datetime)\n                        the clock",
        "                        by shop/clock in shop/all.cedar\n",
        "                        by shop/tenant in shop/all.cedar, which applies to all actions\n",
        "                        by shop/headers in shop/all.cedar, which reads all of `context.headers`\n",
        "reads                 context.claims (record), only whether it is there\n",
        "hits                  as usual\nreads                 nothing more\n",
    ] {
        assert!(ran.stdout.contains(line), "no {line} in\n{}", ran.stdout);
    }
    // The value is in the key although nobody uses it.
    let has = "permit (principal, action == Action::\"viewBook\", resource) when { context.headers has \"x-tenant\" };";
    let ran = shop_command(&["footprint"], has);
    let line = "context.headers.x-tenant (String), only whether it is there; but the key holds its value\n";
    assert!(ran.stdout.contains(line), "{}", ran.stdout);
}

/// The report is not about what policies say, but about what a key is made of: the Query.
#[test]
fn the_places_are_those_of_the_query() {
    fn leaves(place: &str, value: &Json, found: &mut Vec<String>) {
        match value {
            Json::Object(fields) if !fields.is_empty() => {
                fields.iter().for_each(|(name, field)| leaves(&format!("{place}.{name}"), field, found));
            }
            _ => found.push(place.to_owned()),
        }
    }
    let dir = dir(&[]);
    let bundle = repository("policies/bookstore");
    let bundle = bundle.to_str().unwrap();
    let report = run(dir.path(), &["footprint", "--json", bundle], "").json();
    let claims = json!({"jwt_payload": {"sub": "a", "groups": "readers", "email": "a@x", "mfa": true, "iat": 5}});
    let mut actions = 0;
    for (method, path) in [("GET", "/books"), ("GET", "/books/1"), ("PUT", "/books/1"), ("POST", "/orders")] {
        let input = json!({"attributes": {
            "request": {"http": {
                "method": method, "path": path, "host": "h", "headers": {"x-reason": "x", "content-type": "application/json"},
                "body": "{\"book_id\": 1, \"quantity\": 3}", "size": 29,
            }},
            "metadataContext": {"filterMetadata": {"envoy.filters.http.jwt_authn": claims}},
        }});
        let query =
            run(dir.path(), &["decide", "--json", "--bundle", bundle], &input.to_string()).json()["query"].take();
        let mut found = Vec::new();
        for (name, field) in query["context"].as_object().unwrap() {
            leaves(&format!("context.{name}"), field, &mut found);
        }
        for name in query["principal_attributes"].as_object().unwrap().keys() {
            found.push(format!("principal.{name}"));
        }
        let places = of(&report, query["action"].as_str().unwrap())["places"].as_array().unwrap();
        let places: Vec<&str> = places.iter().map(|place| place["place"].as_str().unwrap()).collect();
        assert_eq!(places, found, "{method} {path}");
        actions += found.len();
    }
    assert!(actions >= 3, "a request that has nothing shows nothing");
}

/// What each kind of place does to the hits; whoever reads one that spoils them is warned, and nobody else.
#[test]
fn places_that_spoil_the_hits_are_known() {
    use Hits::{Few, Fewer, None, Usual};
    for (declared, condition, hits) in [
        ("method: String", "context.method == \"GET\"", Usual),
        ("host: String", "context.host == \"h\"", Usual),
        ("time: datetime", "context.time > datetime(\"2030-01-01\")", None),
        ("time?: datetime", "context has time", None),
        ("path: String", "context.path like \"/a*\"", Few),
        ("path?: String", "context has path", Few),
        ("query: { q: String }", "context.query.q == \"x\"", Few),
        ("query: { ids: Set<Long> }", "context.query.ids.contains(1)", Few),
        ("query: { debug: Bool }", "context.query.debug", Usual),
        ("query?: { q?: String }", "context has query", Usual),
        ("query: { q: String }", "[context].contains(context)", Few),
        ("headers: { \"x-request-id\": String }", "context.headers[\"x-request-id\"] == \"x\"", Few),
        ("headers: { \"x-b3-traceid\": String }", "context.headers[\"x-b3-traceid\"] == \"x\"", Few),
        ("headers: { \"x-b\": String }", "context.headers[\"x-b\"] == \"x\"", Usual),
        ("headers: { authorization?: String }", "context.headers has authorization", Few),
        ("headers: { cookie: String }", "context.headers.cookie == \"x\"", Few),
        ("claims: { jti: String }", "context.claims.jti == \"x\"", Few),
        ("claims: { exp: Long }", "context.claims.exp > 1", Few),
        ("claims: { scope: String }", "context.claims.scope == \"x\"", Usual),
        ("metadata: { ns: { jwt: { iat: Long } } }", "context.metadata.ns.jwt.iat > 1", Few),
        ("metadata: { ns: { iat: Long } }", "context.metadata.ns.iat > 1", Usual),
        ("source: { port: Long }", "context.source.port > 1023", Few),
        ("source: { address: ipaddr }", "context.source.address.isLoopback()", Usual),
        ("destination: { port: Long }", "context.destination.port > 1023", Usual),
        ("body: { deep: { n: Long } }", "context.body.deep.n > 1", Fewer),
        ("body: { sure: Bool }", "context.body.sure", Usual),
        ("body_size: Long", "context.body_size > 1", Fewer),
        ("body_partial: Bool", "context.body_partial", Usual),
    ] {
        let schema = format!(
            "action \"a\" appliesTo {{ principal: [User, Anonymous], resource: [Service], context: {{ {declared} }} }};"
        );
        let policy = format!("permit (principal, action == Action::\"a\", resource) when {{ {condition} }};");
        let snapshot = compile(&[shop(&[("schema.cedarschema", &schema), ("policies/p.cedar", &policy)])]);
        let footprints = snapshot.footprints();
        let own = footprints.iter().find(|own| own.actions.contains(&"Action::\"a\"".to_owned())).unwrap();
        assert_eq!(own.hits, hits, "{declared}, {condition}");
        let warnings = lines(&snapshot.warnings);
        let words = match hits {
            Few => {
                vec!["`shop/p` reads `context.", ": decisions about Action::\"a\" are hardly ever found in the cache"]
            }
            None => vec!["`shop/p` reads `context.time`", ": decisions about Action::\"a\" are not remembered"],
            Usual | Fewer => Vec::new(),
        };
        assert_eq!(warnings.len(), usize::from(!words.is_empty()), "{condition}: {warnings:?}");
        for word in words {
            assert!(
                warnings[0].starts_with("shop/policies/p.cedar:1:1: ") && warnings[0].contains(word),
                "{warnings:?}"
            );
        }
    }
}

/// The path costs nothing where action and resource tell it already.
#[test]
fn a_route_can_take_the_place_of_the_path() {
    for (routes, action, hits) in [
        ("", "a", Hits::Few),
        ("{match: GET /a, action: a}", "a", Hits::Usual),
        ("{match: grpc s.S/M, action: a}", "a", Hits::Usual),
        ("{match: 'GET /a/{id}', action: a, resource: 'Thing::\"{id}\"'}", "a", Hits::Usual),
        (
            "{match: 'GET /a/{id}', action: a, resource: 'Thing::\"x-{id}\"'}, {match: GET /a, action: a}",
            "a",
            Hits::Usual,
        ),
        ("{match: 'GET /a/{id}/{*rest}', action: a, resource: 'Thing::\"{id}\"'}", "a", Hits::Few),
        ("{match: 'GET /a/{id}', action: a}, {match: GET /a, action: a}", "a", Hits::Few),
        ("{match: GET /a, action: a}, {match: 'GET /a/{id}', action: a}", "a", Hits::Few),
        // What no route matches is denied, so an action that is called as a method has its route alone.
        ("{match: GET /a, action: GET}", "GET", Hits::Usual),
    ] {
        let schema = format!(
            "entity Thing; action \"{action}\" appliesTo {{
                 principal: [User], resource: [Service, Thing], context: {{ path: String }}
             }};"
        );
        let policy = "permit (principal is User, action, resource) when { context.path like \"/a*\" };";
        let policy = policy.replace("action,", &format!("action == Action::\"{action}\","));
        let routes_file = format!("routes: [{routes}]");
        let snapshot = compile(&[shop(&[
            ("schema.cedarschema", &schema),
            ("routes.yaml", &routes_file),
            ("policies/p.cedar", &policy),
        ])]);
        let name = format!("Action::\"{action}\"");
        let footprints = snapshot.footprints();
        assert_eq!(footprints.iter().find(|own| own.actions.contains(&name)).unwrap().hits, hits, "{routes}");
    }
}

/// One warning for each place, not for each policy and action.
#[test]
fn warnings_are_counted_together() {
    let policies: String = (0..30)
        .map(|n| format!("@id(\"p{n:02}\") permit (principal in Group::\"g{n}\", action, resource) when {{ context.path == \"/\" }};"))
        .collect();
    let snapshot = compile(&[shop(&[("policies/all.cedar", &policies)])]);
    let warnings = lines(&snapshot.warnings);
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    for words in [
        "`shop/p00` and 29 more policies read `context.path`",
        "decisions about Action::\"CONNECT\" and 8 more actions are hardly ever found in the cache",
        "(match the path in routes.yaml, and read `context.params` or the resource instead; `stockade footprint` shows all",
    ] {
        assert!(warnings[0].contains(words), "no {words} in {warnings:?}");
    }
    // A linked policy reads what its template says, and that is where it can be mended.
    let links = r#"[{"template_id": "t", "link_id": "l", "args": {"?principal": "Group::\"g\""}}]"#;
    let template = "@id(\"t\") permit (principal in ?principal, action == Action::\"GET\", resource) when { context.path == \"/\" };";
    let snapshot = compile(&[shop(&[("policies/t.cedar", template), ("policies/links.json", links)])]);
    let warnings = lines(&snapshot.warnings);
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert!(warnings[0].starts_with("shop/policies/t.cedar:1:1: `shop/l` reads `context.path`"), "{warnings:?}");
}

/// Cedar validates this one and cannot give its syntax tree.
#[test]
fn a_policy_that_cannot_be_read_reads_everything() {
    let odd = "@id(\"odd\") permit (principal is User, action == Action::\"viewBook\", resource) when {
        context.headers has \"x-tenant\" || (false && duration(\"1d\", \"2d\") == duration(\"1d\"))
    };";
    let validated = shop_command(&["validate"], odd);
    assert_eq!(validated.code, 0, "{validated:?}");
    for words in [
        "what `shop/odd` reads cannot be determined, so everything is in the key",
        "`shop/odd` reads `context.time`",
        "`shop/odd` reads `context.headers.x-request-id`",
        "[shop/all.cedar:1:1]",
    ] {
        assert!(validated.stderr.contains(words), "no {words} in\n{}", validated.stderr);
    }
    let report = shop_command(&["footprint", "--json"], odd).json();
    let own = of(&report, "Action::\"viewBook\"");
    let places: Vec<(&str, &str)> = own["places"]
        .as_array()
        .unwrap()
        .iter()
        .map(|place| (place["place"].as_str().unwrap(), place["policies"][0]["as_part_of"].as_str().unwrap()))
        .collect();
    assert_eq!(
        places,
        [
            ("context.claims.mfa", "context"),
            ("context.headers.x-debug", "context"),
            ("context.headers.x-request-id", "context"),
            ("context.headers.x-tenant", "context"),
            ("context.params.id", "context"),
            ("context.path", "context"),
            ("context.time", "context"),
            ("principal.email", "principal"),
        ]
    );
}

/// Two hundred routes with a policy each, that all read the same: one paragraph.
#[test]
fn many_actions_with_equal_footprints_are_one_paragraph() {
    let mut schema = String::new();
    let mut policies = String::from(
        "@id(\"tenants\") forbid (principal, action, resource) unless {
             context has headers && context.headers has \"x-tenant\" && context.headers[\"x-tenant\"] == \"blue\"
         };",
    );
    for n in 0..200 {
        schema += &format!(
            "action \"a{n:03}\" appliesTo {{
                 principal: [User], resource: [Service], context: {{ headers: {{ \"x-tenant\"?: String }}, host: String }}
             }};\n"
        );
        policies += &format!(
            "@id(\"p{n:03}\") permit (principal is User, action == Action::\"a{n:03}\", resource) when {{ context.host == \"h\" }};\n"
        );
    }
    let dir =
        dir(&[("shop/bundle.yaml", "name: shop"), ("shop/schema.cedarschema", &schema), ("shop/p.cedar", &policies)]);
    let ran = run(dir.path(), &["footprint", "shop"], "");
    assert!(ran.code == 0 && ran.stdout.lines().count() < 30, "{}", ran.stdout);
    for words in [
        "Action::\"a007\" and 192 more (--json lists them)\n",
        "by shop/p007 in shop/p.cedar, for Action::\"a007\" only\n",
        "and 192 more policies (--json lists them)\n",
        "by shop/tenants in shop/p.cedar, which applies to all actions\n",
    ] {
        assert!(ran.stdout.contains(words), "no {words} in\n{}", ran.stdout);
    }
    let report = run(dir.path(), &["footprint", "--json", "shop"], "").json();
    let own = of(&report, "Action::\"a150\"");
    assert_eq!(own["actions"].as_array().map(Vec::len), Some(200));
    let host = &own["places"][1];
    assert_eq!((&host["place"], host["policies"].as_array().map(Vec::len)), (&json!("context.host"), Some(200)));
    assert_eq!(host["policies"][150]["only_for"], json!(["Action::\"a150\""]));
}

#[test]
fn bundles_that_are_not_good_are_shown_as_validate_shows_them() {
    let broken = "permit (principal);";
    let (shown, validated) = (shop_command(&["footprint"], broken), shop_command(&["validate"], broken));
    assert_eq!((shown.code, shown.stdout.as_str()), (1, ""));
    assert!(!shown.stderr.is_empty() && validated.stderr.starts_with(&shown.stderr), "{shown:?}");
    let nowhere = run(dir(&[]).path(), &["footprint", "nowhere"], "");
    assert!(nowhere.code == 1 && nowhere.stderr.contains("there is no directory `nowhere`"), "{nowhere:?}");
}
