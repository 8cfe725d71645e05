//! The names that Stockade brings beside those that bundles declare, and requests that no route names.

use proptest::prelude::*;
use serde_json::json;
use stockade::model::EntityTypeName;

use crate::fixture::{Court, by_token, compile, files, frame, line, problems, shop, sound};

/// What an author may declare a name as.
const WAYS: [(&str, &str); 6] = [
    ("an entity type", "entity NAME;"),
    ("an entity type of a namespace", "namespace Shop { entity NAME; }"),
    ("an entity type of two namespaces", "namespace Shop { entity NAME; } namespace Store { entity NAME; }"),
    ("a common type", "type NAME = { a: String };"),
    ("a common type of a namespace", "namespace Shop { type NAME = { a: String }; entity E { e: NAME }; }"),
    ("an enum", "entity NAME enum [\"a\"];"),
];

const TYPES: [&str; 6] = ["Group", "User", "Workload", "Anonymous", "Service", "Http"];
const ACTIONS: [&str; 11] =
    ["read", "write", "GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "TRACE"];

/// Everything that an author may call a thing of theirs loads, with routes and without.
#[test]
fn no_name_of_ours_is_in_the_way_of_theirs() {
    let permit = ("p.cedar", "@id(\"p\") permit (principal, action, resource);");
    let mut declarations: Vec<String> = Vec::new();
    for name in TYPES {
        declarations.extend(WAYS.iter().map(|(_, way)| way.replace("NAME", name)));
    }
    for name in ACTIONS {
        let applies = "appliesTo { principal: [Clerk], resource: [Desk] }";
        declarations.push(format!("entity Clerk, Desk; action \"{name}\" {applies};"));
        declarations.push(format!("namespace Shop {{ entity Clerk, Desk; action \"{name}\" {applies}; }}"));
    }
    // All of ours at once, as a namespace of theirs.
    declarations.push(format!("namespace Shop {{ entity {}; }}", TYPES.join(", ")));
    for schema in &declarations {
        for unrouted in ["", "\nunrouted: base", "\nunrouted: deny"] {
            for routes in [&[][..], &[("routes.yaml", "routes: []")]] {
                let manifest = format!("name: shop{unrouted}");
                let own = [("bundle.yaml", manifest.as_str()), ("s.cedarschema", schema), permit];
                compile(&[files("shop", &[&own, routes].concat())]);
            }
        }
    }
}

/// The public form of a Cedar schema: everything in a namespace, with a `User` of its own.
const PET_SHOP: &str = r#"
namespace PetShop {
    entity UserGroup;
    entity User in [UserGroup];
    entity Application;
    action "get /pets", "post /pets" appliesTo { principal: [User], resource: [Application] };
}"#;

#[test]
fn a_token_is_the_user_that_the_bundle_declares() {
    let bundle = shop(&[
        ("s.cedarschema", PET_SHOP),
        ("p.cedar", r#"permit (principal == PetShop::User::"ann", action == PetShop::Action::"get /pets", resource);"#),
        // An id is enough where one action has it.
        ("routes.yaml", "routes: [{match: GET /pets, action: get /pets, resource: 'PetShop::Application::\"shop\"'}]"),
    ]);
    let court = Court::new(&[bundle], "service: shop");
    let ask = |sub: &str, method: &str, path: &str| {
        let mut request = by_token(json!({"sub": sub}));
        let http = request.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap();
        (http.method, http.path) = (method.as_bytes().to_vec().into(), path.as_bytes().to_vec().into());
        sound(&court.pipeline.frame(frame(&request), "d"))
    };
    assert_eq!(ask("ann", "GET", "/pets"), "allow");
    assert_eq!(ask("bob", "GET", "/pets"), "default_deny");
    assert_eq!(ask("ann", "POST", "/pets"), "unrouted");
    // Who is not of a type that the action takes.
    assert_eq!(sound(&court.pipeline.frame(frame(&line("GET", "/pets")), "d")), "not_applicable");
}

#[test]
fn our_names_mean_theirs_where_there_is_one() {
    let meant = |schema: &str, name: &str| {
        let snapshot =
            compile(&[shop(&[("s.cedarschema", schema), ("p.cedar", "permit (principal, action, resource);")])]);
        let name: EntityTypeName = name.parse().unwrap();
        let vocabulary = snapshot.types().vocabulary();
        let method = vocabulary.method("GET").map(ToString::to_string);
        (vocabulary.resolve(&name).to_string(), method.unwrap_or_default())
    };
    let expect = |schema: &str, name: &str, ty: &str, action: &str| {
        assert_eq!(meant(schema, name), (ty.to_owned(), format!("{action}::\"GET\"")), "{schema}");
    };
    expect("", "User", "User", "Action");
    expect("entity User;", "User", "User", "Action");
    expect("namespace Shop { entity User; }", "User", "Shop::User", "Action");
    expect("namespace Shop { entity User; }", "Group", "Group", "Action");
    // Which of the two, nobody can tell; so it is neither.
    expect("namespace A { entity User; } namespace B { entity User; }", "User", "Stockade::User", "Action");
    expect(
        "namespace A { entity User; } namespace B { entity User; } entity X { u?: Stockade::User };",
        "User",
        "Stockade::User",
        "Action",
    );
    // In full, ours are there whatever is declared.
    expect("namespace A { entity User; } entity X { u?: Stockade::User };", "User", "Stockade::User", "Action");
    expect("entity X { u?: Stockade::User };", "User", "Stockade::User", "Action");
    // An action of a namespace needs a route.
    expect(
        "namespace A { entity U; action GET appliesTo {principal: U, resource: U}; }",
        "User",
        "User",
        "Stockade::Action",
    );
    expect("action x in [Stockade::Action::\"GET\"];", "User", "User", "Stockade::Action");
}

#[test]
fn what_a_bundle_declares_has_no_members_of_ours() {
    let schema = r#"
        entity Document;
        action "read", "write" appliesTo { principal: [User], resource: [Document] };
    "#;
    let rule =
        r#"@id("staff") permit (principal in Group::"staff", action in [Action::"read", Action::"write"], resource);"#;
    for unrouted in ["", "\nunrouted: base", "\nunrouted: deny"] {
        let bundle = files(
            "docs",
            &[
                ("bundle.yaml", &format!("name: docs{unrouted}")),
                ("s.cedarschema", schema),
                ("p.cedar", rule),
                (
                    "routes.yaml",
                    "routes: [{match: 'GET /documents/{id}', action: read, resource: 'Document::\"{id}\"'}]",
                ),
            ],
        );
        let court = Court::new(&[bundle], "service: docs");
        let ask = |method: &str, path: &str| {
            let mut request = by_token(json!({"sub": "ann", "groups": ["staff"]}));
            let http = request.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap();
            (http.method, http.path) = (method.as_bytes().to_vec().into(), path.as_bytes().to_vec().into());
            sound(&court.pipeline.frame(frame(&request), "d"))
        };
        assert_eq!(ask("GET", "/documents/1"), "allow", "{unrouted}");
        let denied = if unrouted.contains("base") { "default_deny" } else { "unrouted" };
        for (method, path) in [("DELETE", "/admin/everything"), ("GET", "/admin"), ("POST", "/documents/1")] {
            assert_eq!(ask(method, path), denied, "{unrouted}: {method} {path}");
        }
        for method in ["read", "write"] {
            assert_eq!(ask(method, "/admin"), "unrouted", "{unrouted}: {method}");
        }
    }
    // Groups of a token are not those that a bundle calls so, unless it says that a user may be in one.
    let policy = r#"permit (principal in Group::"staff", action, resource);"#;
    let alone = shop(&[("s.cedarschema", "entity Group { topic: String };"), ("p.cedar", policy)]);
    assert!(compile(&[alone]).warnings.iter().any(|warning| warning.to_string().contains("impossible")));
}

#[test]
fn permits_that_no_request_can_meet_are_errors_that_say_what_to_do() {
    let routes = ("routes.yaml", "routes: [{match: GET /a, action: view}]");
    let schema = ("s.cedarschema", "action view appliesTo { principal: [User], resource: [Service] };");
    let with = |policy: &str| shop(&[routes, schema, ("p.cedar", policy)]);
    let get = r#"permit (principal, action in [Action::"view", Action::"GET"], resource);"#;
    assert_eq!(
        problems(&[with(get)]),
        [
            "shop/p.cedar:1:1: `shop/p` permits Action::\"GET\", which no request has: there are routes, and what no route \
          names is denied (give the requests that it is for a route, or write `unrouted: base` into bundle.yaml)"
        ]
    );
    let read = r#"permit (principal, action in Action::"read", resource);"#;
    assert_eq!(
        problems(&[with(read)]),
        [
            "shop/p.cedar:1:1: `shop/p` permits Action::\"read\", a group without any action that a request can have (put \
          actions into the group in the schema; `unrouted: base` in bundle.yaml makes methods actions)"
        ]
    );
    let to_ours = shop(&[
        ("routes.yaml", "routes: [{match: GET /a, action: GET}]"),
        ("p.cedar", "permit (principal, action, resource);"),
    ]);
    let found = problems(&[to_ours]);
    assert!(
        found.iter().any(|line| line.contains("leads to Action::\"GET\", which is for requests that no route names"))
    );
    // A guardrail about methods stands beside any bundle.
    let guard = files(
        "guard",
        &[("bundle.yaml", "name: guard"), ("p.cedar", r#"forbid (principal, action == Action::"TRACE", resource);"#)],
    );
    let view = r#"permit (principal, action == Action::"view", resource);"#;
    let snapshot = compile(&[with(view), guard]);
    assert!(snapshot.warnings.is_empty(), "{:?}", snapshot.warnings);
}

#[test]
fn what_is_contrary_or_ours_is_refused() {
    let bundle = |name: &str, unrouted: &str| {
        files(
            name,
            &[
                ("bundle.yaml", &format!("name: {name}\nunrouted: {unrouted}")),
                ("p.cedar", "permit (principal, action, resource);"),
            ],
        )
    };
    assert_eq!(
        problems(&[bundle("a", "base"), bundle("b", "deny")]),
        [
            "bundle `a` says `unrouted: base`, and bundle `b` denies what no route names (all bundles that have routes must want \
          it)"
        ]
    );
    let reserved = problems(&[shop(&[("s.cedarschema", "namespace Stockade { entity User; }")])]);
    assert!(reserved[0].contains("which is Stockade's own"), "{reserved:?}");
    let both = shop(&[("s.cedarschema", "entity User; entity X { u: Stockade::User };")]);
    assert!(problems(&[both])[0].contains("is declared, and `Stockade::User` is used beside it"));
    assert!(problems(&[bundle("a", "allow")])[0].contains("unrouted"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    /// Whatever is routed and permitted: a request that no route names is denied, whatever its method is called.
    #[test]
    fn what_no_route_names_is_denied(
        actions in proptest::collection::btree_set("(read|write|GET|POST|DELETE|view|PURGE)", 1..4),
        method in "(GET|POST|DELETE|read|write|view|PURGE|HEAD|OPTIONS|[A-Za-z]{1,6})",
        path in "/(routed|other|[a-z]{1,4}(/[a-z]{0,3})?)",
    ) {
        let declared: Vec<String> = actions.iter().map(|action| format!("{action:?}")).collect();
        let schema = format!(
            "action {} appliesTo {{ principal: [User, Workload, Anonymous], resource: [Service] }};", declared.join(", ")
        );
        let routes: String =
            actions.iter().map(|action| format!("  - {{ match: GET /routed/{action}, action: {action} }}\n")).collect();
        let bundle = shop(&[
            ("s.cedarschema", &schema),
            ("routes.yaml", &format!("routes:\n{routes}")),
            ("p.cedar", "permit (principal, action, resource);"),
        ]);
        let court = Court::new(&[bundle], "service: shop");
        let ended = sound(&court.pipeline.frame(frame(&line(&method, &path)), "d"));
        prop_assert!(matches!(ended, "unrouted" | "path"), "{method} {path}: {ended}");
        for action in &actions {
            let ended = sound(&court.pipeline.frame(frame(&line("GET", &format!("/routed/{action}"))), "d"));
            prop_assert_eq!(ended, "allow");
        }
    }
}

/// An emergency denial is about whom a request turns out to be, and about any group that a token names.
#[test]
fn overlays_are_about_whom_a_token_makes() {
    let deny = |principal: &str| stockade::model::Overlay {
        id: "x".to_owned(),
        effect: stockade::model::Effect::Deny,
        principal: Some(principal.parse().unwrap()),
        action: None,
        resource: None,
        from: std::time::UNIX_EPOCH,
        until: std::time::UNIX_EPOCH + std::time::Duration::from_secs(4_000_000_000),
        reason: "because".to_owned(),
    };
    let routes = "routes: [{match: GET /pets, action: get /pets, resource: 'PetShop::Application::\"shop\"'}]";
    let everyone = "permit (principal, action == PetShop::Action::\"get /pets\", resource);";
    let bundle = shop(&[("s.cedarschema", PET_SHOP), ("p.cedar", everyone), ("routes.yaml", routes)]);
    let snapshot = compile(&[bundle]);
    let mut request = by_token(json!({"sub": "ann", "groups": ["banned"]}));
    request.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap().path = "/pets".into();
    let ask = |principal: &str| {
        let overlaid = snapshot.overlaid(&[deny(principal)], None);
        sound(&Court::under(std::sync::Arc::new(overlaid), "service: shop").pipeline.frame(frame(&request), "d"))
    };
    // As written, as it is here, and a group that no policy can speak of.
    for denied in ["User::\"ann\"", "PetShop::User::\"ann\"", "Group::\"banned\""] {
        assert_eq!(ask(denied), "policy", "{denied}");
    }
    for other in ["User::\"bob\"", "Group::\"staff\"", "PetShop::UserGroup::\"banned\""] {
        assert_eq!(ask(other), "allow", "{other}");
    }
}

#[test]
fn forbids_that_routes_take_away_are_warned_of() {
    let guard = |policy: &str| files("guard", &[("bundle.yaml", "name: guard"), ("p.cedar", policy)]);
    let app = shop(&[
        ("s.cedarschema", "action del appliesTo { principal: [User], resource: [Service] };"),
        ("routes.yaml", "routes: [{match: DELETE /docs, action: del}]"),
        ("p.cedar", "permit (principal, action == Action::\"del\", resource);"),
    ]);
    for (policy, warned) in [
        (r#"forbid (principal, action == Action::"DELETE", resource);"#, true),
        (r#"forbid (principal, action in [Action::"TRACE", Action::"DELETE"], resource);"#, true),
        (r#"forbid (principal, action in Action::"write", resource);"#, true),
        (r#"forbid (principal, action in [Action::"TRACE", Action::"CONNECT"], resource);"#, false),
    ] {
        let snapshot = compile(&[guard(policy), app.clone()]);
        let found = snapshot.warnings.iter().any(|warning| warning.to_string().contains("`guard/p` forbids"));
        assert_eq!(found, warned, "{policy}: {:?}", snapshot.warnings);
    }
}

/// HEAD is GET without the body (RFC 9110, 9.3.2): what is forbidden of GET is forbidden of HEAD, where no bundle speaks of HEAD itself.
#[test]
fn head_has_the_action_of_get_where_no_bundle_speaks_of_head() {
    let guard = r#"forbid (principal, action == Action::"GET", resource);"#;
    let all = "permit (principal, action, resource);";
    let base = ("bundle.yaml", "name: shop\nunrouted: base");
    let routes = ("routes.yaml", "routes: [{match: POST /a, action: open}]");
    let open = "action open appliesTo { principal: [User, Anonymous], resource: [Service] };";
    let ask = |files: &[(&str, &str)], method: &str| {
        let court = Court::new(&[shop(files)], "service: shop");
        let query = court.query(&line(method, "/x")).unwrap();
        (query.action.to_string(), sound(&court.pipeline.frame(frame(&line(method, "/x")), "d")))
    };
    let of = |action: &str, ended| (format!("Action::\"{action}\""), ended);
    // Neither comments nor strings nor other actions speak of it, with routes beside or without.
    for more in [
        &[][..],
        &[(
            "x.cedar",
            "// Action::\"HEAD\"\n@id(\"Action::\\\"HEAD\\\"\") permit (principal, action == Action::\"POST\", resource);",
        )],
        &[("x.cedar", "permit (principal, action in Action::\"read\", resource);")],
        &[("bundle.yaml", "name: shop\ndescription: 'Action::\"HEAD\"'")],
        &[base, routes, ("s.cedarschema", open)],
    ] {
        let files = [&[("g.cedar", guard), ("all.cedar", all)], more].concat();
        assert_eq!(ask(&files, "HEAD"), of("GET", "policy"), "{more:?}");
        assert_eq!(ask(&files, "GET"), of("GET", "policy"), "{more:?}");
        assert_eq!(ask(&files, "POST"), of("POST", "allow"), "{more:?}");
    }
    // What speaks of it makes it an action of its own.
    let json = json!({
        "effect": "permit", "principal": {"op": "All"}, "action": {"op": "==", "entity": {"type": "Action", "id": "HEAD"}},
        "resource": {"op": "All"}, "conditions": [],
    });
    let own = r#"action "HEAD" appliesTo { principal: [User, Anonymous], resource: [Service], context: { method?: String } };"#;
    for more in [
        ("x.cedar", "permit (principal, action == Action::\"HEAD\", resource);"),
        ("x.cedar", "permit (principal, action in [Action::\"POST\", Action :: \"\\u{48}EAD\"], resource);"),
        ("x.cedar.json", &json.to_string()),
        ("s.cedarschema", own),
    ] {
        assert_eq!(ask(&[("g.cedar", guard), ("all.cedar", all), more], "HEAD"), of("HEAD", "allow"), "{more:?}");
    }
    let stockades = ("x.cedar", "permit (principal, action == Stockade::Action::\"HEAD\", resource);");
    assert_eq!(ask(&[("all.cedar", all), stockades], "HEAD"), ("Stockade::Action::\"HEAD\"".to_owned(), "allow"));
    // Policies see the method that was sent.
    let only_get = r#"permit (principal, action == Action::"GET", resource) when { context.method == "GET" };"#;
    assert_eq!(ask(&[("p.cedar", only_get)], "HEAD"), of("GET", "default_deny"));
    assert_eq!(ask(&[("p.cedar", only_get)], "GET"), of("GET", "allow"));
}

/// An emergency denial of HEAD that met no request would be none, and an exception for HEAD is none for GET.
#[test]
fn overlays_of_head_are_about_the_action_that_head_has() {
    let overlay = |effect| stockade::model::Overlay {
        id: "x".to_owned(),
        effect,
        principal: None,
        action: Some("Action::\"HEAD\"".parse().unwrap()),
        resource: None,
        from: std::time::UNIX_EPOCH,
        until: std::time::UNIX_EPOCH + std::time::Duration::from_secs(4_000_000_000),
        reason: "because".to_owned(),
    };
    use stockade::model::Effect::{Allow, Deny};
    let silent = shop(&[("p.cedar", "permit (principal, action == Action::\"GET\", resource);")]);
    let denies = shop(&[("p.cedar", "permit (principal, action == Action::\"POST\", resource);")]);
    let speaks = shop(&[("p.cedar", "permit (principal, action in [Action::\"GET\", Action::\"HEAD\"], resource);")]);
    for (bundle, effect, method, ended) in [
        (&silent, Deny, "HEAD", "policy"),
        (&silent, Deny, "GET", "policy"),
        (&denies, Allow, "HEAD", "default_deny"),
        (&denies, Allow, "GET", "default_deny"),
        (&speaks, Deny, "HEAD", "policy"),
        (&speaks, Deny, "GET", "allow"),
    ] {
        let overlaid = compile(std::slice::from_ref(bundle)).overlaid(&[overlay(effect)], None);
        let court = Court::under(std::sync::Arc::new(overlaid), "service: shop");
        assert_eq!(sound(&court.pipeline.frame(frame(&line(method, "/")), "d")), ended, "{effect:?} {method}");
    }
}

/// What routes take away from a guardrail is said whenever routes change, also of files that are known.
#[test]
fn what_routes_take_away_is_said_of_known_files_as_well() {
    let bundles = |routes: &str| {
        let guard = files(
            "guard",
            &[
                ("bundle.yaml", "name: guard"),
                ("p.cedar", r#"forbid (principal, action == Action::"DELETE", resource);"#),
            ],
        );
        let schema = "// del\naction \"delete\", del, other appliesTo { principal: [User], resource: [Service] };";
        let app = shop(&[
            ("s.cedarschema", schema),
            ("routes.yaml", routes),
            ("p.cedar", "permit (principal, action == Action::\"del\", resource);"),
        ]);
        [guard, app]
    };
    let warnings = |memory: &mut stockade::policy::Memory, routes: &str| {
        let snapshot = stockade::policy::Snapshot::compile(&bundles(routes), None, memory).unwrap();
        crate::fixture::lines(&snapshot.warnings)
    };
    let takes = "routes: [{match: DELETE /docs, action: del}]";
    let leaves = "routes: [{match: POST /docs, action: del}] # DELETE";
    let mut memory = stockade::policy::Memory::default();
    for routes in [leaves, takes, leaves, takes] {
        let known = warnings(&mut memory, routes);
        assert_eq!(known, warnings(&mut stockade::policy::Memory::default(), routes), "{routes}");
        let taken = known.iter().filter(|line| line.contains("guard/p.cedar:1:1: `guard/p` forbids")).count();
        assert_eq!(taken, usize::from(routes == takes), "{routes}: {known:?}");
        // The place is the id in the declaration, not the first text that is like it.
        let place = "shop/s.cedarschema:2:8: no route leads to Action::\"delete\"";
        assert!(known.iter().any(|line| line.starts_with(place)), "{known:?}");
        let place = "shop/s.cedarschema:2:23: no route leads to Action::\"other\"";
        assert!(known.iter().any(|line| line.starts_with(place)), "{known:?}");
    }
}
