//! Every configuration in `envoy/`: Envoy takes it, and it does what it says.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use testkit::Stockade;
use testkit::certificates::Authority;
use testkit::envoy::{Envoy, Places, shipped, validate};
use testkit::http::Request;
use testkit::token::Issuer;
use testkit::upstream::Upstream;

/// All of them. `jwt.yaml` and `mtls.yaml` are tested by what they prove, in `identity.rs`.
const ALL: [&str; 7] = [
    "sidecar-uds.yaml",
    "sidecar-tcp.yaml",
    "jwt.yaml",
    "mtls.yaml",
    "request-body.yaml",
    "fail-open.yaml",
    "shadow.yaml",
];

/// The bookstore, listening there.
async fn bookstore(listen: &str) -> Stockade {
    let more = format!("listen: [\"{listen}\"]\nupstream_headers: {{x-stockade-principal: principal}}\n");
    Stockade::with_bundle(&testkit::repository("policies/bookstore"), &more).await
}

fn socket(dir: &TempDir) -> String {
    format!("unix://{}/authz.sock", dir.path().display())
}

async fn start(name: &str, upstream: &Upstream, stockade: &str) -> Envoy {
    let places = Places { app: upstream.address, etc: Path::new("/nowhere"), stockade };
    Envoy::start(&shipped(name, &places)).await
}

#[tokio::test]
async fn envoy_takes_every_configuration() {
    let mut files: Vec<String> = std::fs::read_dir(testkit::repository("envoy"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        // Stockade's own, beside sidecar-tcp.yaml.
        .filter(|name| name.ends_with(".yaml") && name != "stockade.yaml")
        .collect();
    files.sort();
    let mut all = ALL.map(str::to_owned);
    all.sort();
    assert_eq!(files, all, "a configuration that no test knows, or a test without one");

    let readme = std::fs::read_to_string(testkit::repository("envoy/README.md")).unwrap();
    let etc = TempDir::new().unwrap();
    std::fs::write(etc.path().join("jwks.json"), Issuer::new().jwks()).unwrap();
    Authority::new().write_server(&etc.path().join("tls"));
    for name in ALL {
        // As it stands, but for the files that it names: keys and certificates are the operator's.
        let text = std::fs::read_to_string(testkit::repository("envoy").join(name)).unwrap();
        let file = etc.path().join(name);
        std::fs::write(&file, text.replace("/etc/envoy", &etc.path().display().to_string())).unwrap();
        validate(&file).await.unwrap_or_else(|log| panic!("envoy/{name}: {log}"));
        assert!(readme.contains(&format!("[{name}]({name})")), "envoy/README.md does not tell of {name}");
    }
}

/// Many apps take `x_stockade_principal` for `x-stockade-principal`.
#[tokio::test]
async fn no_configuration_lets_headers_with_underscores_through() {
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(testkit::repository(".")).into_iter().filter_entry(|entry| {
        let name = entry.file_name().to_string_lossy();
        !(entry.depth() > 0 && (name == "target" || name.starts_with('.')))
    }) {
        let path = entry.unwrap().into_path();
        if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml" || extension == "md") {
            files.push(path);
        }
    }
    let mut managers = 0;
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let own = text.matches("v3.HttpConnectionManager\n").count();
        let refusing = text.matches("headers_with_underscores_action: REJECT_REQUEST").count();
        assert!(own <= refusing, "{}: a connection manager takes headers with underscores", path.display());
        managers += own;
    }
    assert_eq!(managers, ALL.len());

    // And Envoy does it, in each of them that needs no more than a socket.
    for name in ["sidecar-uds.yaml", "jwt.yaml", "request-body.yaml", "fail-open.yaml", "shadow.yaml"] {
        let (dir, upstream, etc) = (TempDir::new().unwrap(), Upstream::start().await, TempDir::new().unwrap());
        std::fs::write(etc.path().join("jwks.json"), Issuer::new().jwks()).unwrap();
        let stockade = bookstore(&socket(&dir)).await;
        let places = Places { app: upstream.address, etc: etc.path(), stockade: &stockade.addresses[0] };
        let envoy = Envoy::start(&shipped(name, &places)).await;
        let request = Request::get("/books").header("x_stockade_principal", "forged");
        assert_eq!(request.send(envoy.listener("ingress")).await.status, 400, "{name}");
        assert!(upstream.take().is_empty(), "{name}");
    }
}

#[tokio::test]
async fn the_recommended_one_says_in_its_access_log_what_was_decided() {
    let (dir, upstream) = (TempDir::new().unwrap(), Upstream::start().await);
    let stockade = bookstore(&socket(&dir)).await;
    let mut envoy = start("sidecar-uds.yaml", &upstream, &stockade.addresses[0]).await;
    let ingress = envoy.listener("ingress");

    let snapshot: Value = serde_json::from_str(&stockade.admin("/snapshot").await.1).unwrap();
    let table = [
        ("GET", "/books", 200, "via_upstream", json!(["allow", "policy", ["bookstore/anyone-lists"]])),
        ("GET", "/books/1", 403, "ext_authz_denied", json!(["deny", "default_deny", []])),
        ("GET", "/books/3", 451, "ext_authz_denied", json!(["deny", "policy", ["bookstore/embargo"]])),
        ("GET", "/books;v=1", 400, "ext_authz_denied", json!(["deny", "path", []])),
    ];
    for (method, path, status, details, said) in table {
        let answer = Request::new(method, path).send(ingress).await;
        let line = envoy.logged().await;
        let case = format!("{method} {path}: {answer:?} {line}");
        assert_eq!((answer.status, &line["code"]), (status, &json!(status)), "{case}");
        assert_eq!(line["details"], details, "{case}");
        assert_eq!(json!([line["decision"], line["reason"], line["policies"]]), said, "{case}");
        assert!(!line["decision_id"].as_str().unwrap().is_empty(), "{case}");
        if status != 400 {
            assert_eq!(line["revision"], snapshot["snapshot"]["revision"]["id"], "{case}");
        }
        // How long it took is known of what was allowed only.
        assert_eq!(line["authz_ms"].is_number(), status == 200, "{case}");
    }

    // Hygiene before the decision: dot segments and escapes are resolved, escaped slashes and underscores refused.
    upstream.take();
    let resolved = Request::get("/x/..//%62ooks").send(ingress).await;
    assert_eq!(resolved.echo().unwrap().target, "/books");
    assert_eq!(Request::get("/books%2f1").send(ingress).await.status, 400);
    assert_eq!(Request::get("/books").header("x_stockade_principal", "forged").send(ingress).await.status, 400);
    // Without a forbidden mutation; 500 would tell.
    assert_eq!(envoy.stat("http.ingress.ext_authz.stockade.invalid").await, 0);
    assert_eq!(envoy.stat("http.ingress.ext_authz.stockade.ok").await, 2);
}

#[tokio::test]
async fn the_least_one_works_on_a_port() {
    let upstream = Upstream::start().await;
    // Stockade's side as it is shipped, too.
    let own = std::fs::read_to_string(testkit::repository("envoy/stockade.yaml")).unwrap();
    let own = own.replace("127.0.0.1:9191", "127.0.0.1:0");
    let own = own.replace("../policies", testkit::repository("policies").to_str().unwrap());
    let own = format!("{own}\nadmin: {{listen: 'tcp://127.0.0.1:0'}}\nlog: {{format: json}}\n");
    let mut stockade = Stockade::start(&own, TempDir::new().unwrap()).await;
    stockade.log_line(|line| line["message"] == "ready").await;
    let envoy = start("sidecar-tcp.yaml", &upstream, &stockade.addresses[0]).await;
    assert_eq!(Request::get("/books").send(envoy.listener("ingress")).await.status, 200);
    assert_eq!(Request::get("/books/1").send(envoy.listener("ingress")).await.status, 403);
}

#[tokio::test]
async fn failing_open_lets_nobody_in_whom_somebody_denied() {
    let (dir, upstream) = (TempDir::new().unwrap(), Upstream::start().await);
    let mut stockade = bookstore(&socket(&dir)).await;
    let mut envoy = start("fail-open.yaml", &upstream, &stockade.addresses[0]).await;
    let ingress = envoy.listener("ingress");
    let forged = |request: Request| {
        request.header("x-stockade-principal", "User::\"forged\"").header("x-envoy-auth-failure-mode-allowed", "true")
    };

    let seen = forged(Request::get("/books")).send(ingress).await.echo().unwrap();
    assert_eq!(seen.header("x-stockade-principal"), ["Anonymous::\"anonymous\""]);
    assert!(seen.header("x-envoy-auth-failure-mode-allowed").is_empty());
    assert_eq!(envoy.logged().await["failed_open"], Value::Null);
    assert_eq!(Request::get("/books/1").send(ingress).await.status, 403);
    assert_eq!(Request::get("/books/1;v=1").send(ingress).await.status, 400);

    stockade.signal("KILL");
    stockade.wait().await;
    envoy.logged().await;
    envoy.logged().await;
    // Everything passes. What the client says of itself does not.
    let seen = forged(Request::get("/books/1")).send(ingress).await.echo().unwrap();
    assert!(seen.header("x-stockade-principal").is_empty(), "{seen:?}");
    assert_eq!(seen.header("x-envoy-auth-failure-mode-allowed"), ["true"]);
    let line = envoy.logged().await;
    assert_eq!((&line["failed_open"], &line["decision"]), (&json!("true"), &Value::Null), "{line}");
}

#[tokio::test]
async fn in_the_shadow_nobody_is_turned_away() {
    let (dir, upstream) = (TempDir::new().unwrap(), Upstream::start().await);
    let mut stockade = bookstore(&socket(&dir)).await;
    let mut envoy = start("shadow.yaml", &upstream, &stockade.addresses[0]).await;
    let ingress = envoy.listener("ingress");
    for (path, decision, check, status) in [
        ("/books", "allow", "OK", 200),
        ("/books/1", "deny", "DENIED", 403),
        ("/books/3", "deny", "DENIED", 451),
        ("/books;v=1", "deny", "DENIED", 400),
    ] {
        let answer = Request::get(path).send(ingress).await;
        let line = envoy.logged().await;
        let case = format!("{path}: {answer:?} {line}");
        assert_eq!((answer.status, &line["decision"]), (200, &json!(decision)), "{case}");
        assert_eq!(line["shadow"], json!({"check_result": check, "status_code": status}), "{case}");
    }
    stockade.signal("KILL");
    stockade.wait().await;
    assert_eq!(Request::get("/books/1").send(ingress).await.status, 200);
    let line = envoy.logged().await;
    assert_eq!(line["shadow"]["check_result"], "ERROR", "{line}");
    assert_eq!(envoy.stat("http.ingress.ext_authz.stockade.shadow_denied").await, 3);
    assert_eq!(envoy.stat("http.ingress.ext_authz.stockade.shadow_error").await, 1);
}

#[tokio::test]
async fn bodies_are_held_back_where_policies_read_them() {
    let (dir, upstream) = (TempDir::new().unwrap(), Upstream::start().await);
    let bundle = super::lab::bundle(&[
        (
            "schema.cedarschema",
            r#"action "order" appliesTo { principal: [Anonymous], resource: [Service], context: {
                body?: { quantity: Long },
            } };
            action "upload" appliesTo { principal: [Anonymous], resource: [Service], context: {} };"#,
        ),
        (
            "routes.yaml",
            "routes: [{match: POST /orders, action: order}, {match: POST /uploads, action: upload}, \
             {match: POST /misrouted, action: order}]",
        ),
        (
            "policies/all.cedar",
            r#"@id("orders") permit (principal, action == Action::"order", resource) when {
                context has body && context.body.quantity <= 10
            };
            @id("uploads") permit (principal, action == Action::"upload", resource);"#,
        ),
    ]);
    let listen = format!("listen: [\"{}\"]\n", socket(&dir));
    let stockade = Stockade::with_bundle(bundle.path(), &listen).await;
    let envoy = start("request-body.yaml", &upstream, &stockade.addresses[0]).await;
    let ingress = envoy.listener("ingress");
    let post = |path: &str, body: &str| Request::new("POST", path).chunked("application/json", body).clone();
    let long = format!("{{\"quantity\": 3, \"note\": \"{}\"}}", "x".repeat(65536));
    for (path, body, status) in [
        ("/orders", "{\"quantity\": 3}", 200),
        ("/orders", "{\"quantity\": 30}", 403),
        ("/orders", &long, 413),
        ("/uploads", "{\"quantity\": 3}", 200),
        ("/uploads", &long, 200),
        // A policy reads the body, and Envoy does not hold it back.
        ("/misrouted", "{\"quantity\": 3}", 400),
    ] {
        let answer = post(path, body).send(ingress).await;
        assert_eq!(answer.status, status, "{path} {:.40}: {answer:?}", body);
        let bodies: Vec<String> = upstream.take().into_iter().map(|seen| seen.body).collect();
        assert_eq!(bodies.len(), usize::from(status == 200), "{path}");
        assert!(bodies.iter().all(|through| through == body), "{path}");
    }
}
