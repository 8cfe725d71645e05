//! A tour of Stockade with the real Envoy: `make demo`.
//!
//! Starts an upstream, the sidecar with a copy of the bookstore's policies, and Envoy as in `envoy/jwt.yaml`; sends
//! requests and shows what became of each, and why; then changes the policies under the running sidecar. On a terminal it
//! stays up afterwards, to play with. Without one it ends, and fails if anything did not answer as the tour says.
#![allow(clippy::disallowed_macros, clippy::disallowed_methods, reason = "it prints what it made itself")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod style;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use style::Style;
use tempfile::TempDir;
use testkit::Stockade;
use testkit::envoy::{Envoy, Places, shipped};
use testkit::http::{Answer, Request};
use testkit::token::Issuer;
use testkit::upstream::Upstream;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> ExitCode {
    let interactive = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let mut tour = Tour::start(Style(std::io::stdout().is_terminal())).await;
    tour.requests().await;
    tour.changes().await;
    tour.say("");
    match tour.surprises {
        0 => tour.say("Everything answered as the tour says."),
        surprises => tour.say(&tour.style.red(&format!("{surprises} answers were not what the tour says."))),
    }
    let surprises = tour.surprises;
    if interactive {
        tour.stay().await;
    }
    if surprises == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Who sends a request.
#[derive(Clone, Copy)]
enum Who<'a> {
    Nobody,
    /// A name for the tour, and a token.
    Person(&'a str, &'a str),
}

/// What the tour says that comes back.
struct Says<'a> {
    status: u16,
    /// Decision, reason and determining policies, as Envoy's access log has them.
    why: Value,
    /// What the answer or, if it went through, the upstream's view of the request contains.
    with: &'a [&'a str],
}

struct Tour {
    style: Style,
    /// Steps that have been told.
    step: u32,
    surprises: u32,
    issuer: Issuer,
    upstream: SocketAddr,
    stockade: Stockade,
    envoy: Envoy,
}

impl Tour {
    async fn start(style: Style) -> Self {
        let (dir, issuer, upstream) = (TempDir::new().unwrap(), Issuer::new(), Upstream::start().await.address);
        for bundle in ["bookstore", "guardrails"] {
            copy(&testkit::repository("policies").join(bundle), &dir.path().join("policies").join(bundle));
        }
        std::fs::write(dir.path().join("jwks.json"), issuer.jwks()).unwrap();
        let home = dir.path().display();
        let config = format!(
            "service: bookstore
listen: [\"unix://{home}/authz.sock\"]
bundles: [{{directory: policies/bookstore}}, {{directory: policies/guardrails}}]
upstream_headers: {{x-stockade-principal: principal, x-stockade-email: 'claim:email'}}
errors: {{detail: full}}
decision_log: {{output: 'file://{home}/decisions.jsonl'}}
admin: {{listen: 'tcp://127.0.0.1:0'}}
log: {{format: json}}
"
        );
        let mut stockade = Stockade::start(&config, dir).await;
        stockade.log_line(|line| line["message"] == "ready").await;
        let places = Places { app: upstream, etc: stockade.dir.path(), stockade: &stockade.addresses[0] };
        let envoy = Envoy::start(&shipped("jwt.yaml", &places)).await;
        let tour = Self { style, step: 0, surprises: 0, issuer, upstream, stockade, envoy };
        tour.say(&style.bold("Stockade: a tour with the real Envoy"));
        tour.say("");
        tour.say(&format!("  envoy      http://{}, as in envoy/jwt.yaml", tour.ingress()));
        tour.say(&format!("  stockade   {}", tour.stockade.addresses[0]));
        tour.say(&format!("  policies   {}", tour.policies().display()));
        tour.say(&format!("  app        http://{}, which answers with what it got", tour.upstream));
        tour
    }

    fn ingress(&self) -> SocketAddr {
        self.envoy.listener("ingress")
    }

    fn policies(&self) -> PathBuf {
        self.stockade.dir.path().join("policies")
    }

    fn say(&self, text: &str) {
        println!("{text}");
    }

    fn title(&mut self, text: &str) {
        self.step += 1;
        self.say("");
        self.say(&self.style.bold(&format!("{}. {text}", self.step)));
    }

    /// Sends a request, and tells what became of it and why.
    async fn send(&mut self, request: Request, line: &str, who: Who<'_>, says: Says<'_>) {
        let (request, who) = match who {
            Who::Nobody => (request, "without a token"),
            Who::Person(name, token) => (request.bearer(token), name),
        };
        let answer = request.send(self.ingress()).await;
        let logged = self.envoy.logged().await;
        let why = json!([logged["decision"], logged["reason"], logged["policies"]]);
        let through = answer.header("x-upstream").is_some();

        let status = format!("{}", answer.status);
        let status = if through { self.style.green(&status) } else { self.style.red(&status) };
        self.say(&format!("   {status}  {line:<28} {}", self.style.dim(who)));
        self.say(&format!("        {}", verdict(&logged)));
        let shown = shown(&answer);
        for line in &shown {
            self.say(&format!("        {}", self.style.dim(line)));
        }
        let missing = says.with.iter().find(|part| !shown.iter().any(|line| line.contains(**part)));
        if answer.status != says.status || why != says.why || missing.is_some() {
            let missing = missing.map_or_else(String::new, |part| format!(", with `{part}`"));
            self.surprise(&format!("{} {}{missing}", says.status, says.why));
        }
    }

    fn surprise(&mut self, expected: &str) {
        self.surprises += 1;
        self.say(&self.style.red(&format!("        but the tour says: {expected}")));
    }

    async fn requests(&mut self) {
        let get = |path: &str| Request::get(path);
        let alice = self.issuer.token("alice", &["readers"], json!({"email": "alice@example.com"}));
        let alice = Who::Person("alice, of the readers", &alice);
        let eve = self.issuer.token("eve", &["editors"], json!({}));
        let eve = Who::Person("eve, of the editors", &eve);
        let eve_mfa = self.issuer.token("eve", &["editors"], json!({"mfa": true}));
        let eve_mfa = Who::Person("eve, with a second factor", &eve_mfa);
        let mallory = self.issuer.token("mallory", &["readers", "revoked"], json!({}));
        let mallory = Who::Person("mallory, of the readers and the revoked", &mallory);

        self.title("A policy permits; what none permits is denied, and so is what no route names");
        let says = Says { status: 200, why: json!(["allow", "policy", ["bookstore/anyone-lists"]]), with: &[] };
        self.send(get("/books"), "GET /books", Who::Nobody, says).await;
        let message = "you may not do this; ask the bookstore team";
        let says = Says { status: 403, why: json!(["deny", "default_deny", []]), with: &[message] };
        self.send(get("/books/1"), "GET /books/1", Who::Nobody, says).await;
        let says = Says { status: 403, why: json!(["deny", "unrouted", []]), with: &[message] };
        self.send(get("/admin"), "GET /admin", alice, says).await;

        self.title("Envoy verifies the token, its groups are roles, and the app learns who it was");
        let with: &[&str] = &["x-stockade-principal: User::\"alice\"", "x-stockade-email: alice@example.com"];
        let viewed = |with| Says { status: 200, why: json!(["allow", "policy", ["bookstore/readers-view"]]), with };
        self.send(get("/books/1"), "GET /books/1", alice, viewed(with)).await;
        self.say("   The same, and the client itself says x-stockade-principal: User::\"root\"");
        let forged = get("/books/1").header("x-stockade-principal", "User::\"root\"");
        self.send(forged, "GET /books/1", alice, viewed(with)).await;

        self.title("A forbid wins over every permit, and says how the denial looks");
        let says = Says {
            status: 451,
            why: json!(["deny", "policy", ["bookstore/embargo"]]),
            with: &["not before publication day"],
        };
        self.send(get("/books/3"), "GET /books/3", alice, says).await;
        let says = Says {
            status: 401,
            why: json!(["deny", "policy", ["bookstore/edits-need-mfa"]]),
            with: &["www-authenticate", "insufficient_user_authentication"],
        };
        self.send(Request::new("PUT", "/books/1"), "PUT /books/1", eve, says).await;
        let says = Says { status: 200, why: json!(["allow", "policy", ["bookstore/editors-edit"]]), with: &[] };
        self.send(Request::new("PUT", "/books/1"), "PUT /books/1", eve_mfa, says).await;

        self.title("Guardrails of the platform team hold for every app team");
        let says = Says {
            status: 403,
            why: json!(["deny", "policy", ["guardrails/revoked"]]),
            with: &["this identity is revoked"],
        };
        self.send(get("/books/1"), "GET /books/1", mallory, says).await;

        self.title(
            "What policies see is what the app gets: Envoy resolves, Stockade refuses what can be read in two ways",
        );
        self.send(get("/books/3/../1"), "GET /books/3/../1", alice, viewed(&["the app got GET /books/1 "])).await;
        for (path, form) in [("/books/1;v=3", "path_parameters"), ("/books/%252e%252e/admin", "double_encoding")] {
            let says = Says { status: 400, why: json!(["deny", "path", []]), with: &[form] };
            self.send(get(path), &format!("GET {path}"), alice, says).await;
        }
    }

    async fn changes(&mut self) {
        let file = self.policies().join("bookstore/policies/readers.cedar");
        let before = std::fs::read_to_string(&file).unwrap();
        let free = r#"
@id("free-reading-day")
permit (
    principal is Anonymous,
    action == Action::"viewBook",
    resource in Shelf::"public"
);
"#;
        self.title("Policies change under the running sidecar: bookstore/policies/readers.cedar gets a new one");
        self.quote(free);
        let first = self.snapshot().await["snapshot"]["revision"]["id"].clone();
        let saved = Instant::now();
        std::fs::write(&file, format!("{before}{free}")).unwrap();
        let snapshot = self.wait(|snapshot| snapshot["snapshot"]["revision"]["id"] != first).await;
        let revision = &snapshot["snapshot"]["revision"]["id"];
        self.say(&format!(
            "   in force after {:.0?}: revision {} -> {}",
            saved.elapsed(),
            text(&first),
            text(revision)
        ));
        let free_day =
            || Says { status: 200, why: json!(["allow", "policy", ["bookstore/free-reading-day"]]), with: &[] };
        self.send(Request::get("/books/1"), "GET /books/1", Who::Nobody, free_day()).await;

        self.title("A mistake is not put in force: the last good policies stay");
        let typo = r#"
@id("embargoed-edits")
forbid (principal, action == Action::"editBook", resource) when {
    resource has embargoed && resource.embargod
};
"#;
        self.quote(typo);
        std::fs::write(&file, format!("{before}{free}{typo}")).unwrap();
        let snapshot = self.wait(|snapshot| !snapshot["rejection"].is_null()).await;
        self.say("   /snapshot says:");
        for problem in snapshot["rejection"]["problems"].as_array().into_iter().flatten() {
            let problem = text(problem).replace(&format!("{}/", self.policies().display()), "");
            self.say(&format!("        {}", self.style.dim(&problem)));
        }
        if snapshot["snapshot"]["revision"]["id"] != *revision {
            self.surprise(&format!("revision {}", text(revision)));
        }
        self.send(Request::get("/books/1"), "GET /books/1", Who::Nobody, free_day()).await;

        self.title("The file as it was");
        std::fs::write(&file, &before).unwrap();
        let snapshot = self.wait(|snapshot| snapshot["snapshot"]["revision"]["id"] == first).await;
        self.say(&format!("   revision {}", text(&snapshot["snapshot"]["revision"]["id"])));
        let says = Says { status: 403, why: json!(["deny", "default_deny", []]), with: &[] };
        self.send(Request::get("/books/1"), "GET /books/1", Who::Nobody, says).await;
    }

    fn quote(&self, policy: &str) {
        for line in policy.trim().lines() {
            self.say(&format!("   {}", self.style.dim(&format!("| {line}"))));
        }
    }

    async fn snapshot(&self) -> Value {
        serde_json::from_str(&self.stockade.admin("/snapshot").await.1).unwrap()
    }

    /// Polls `/snapshot` until it is as wanted.
    async fn wait(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let poll = async {
            loop {
                let snapshot = self.snapshot().await;
                if wanted(&snapshot) {
                    return snapshot;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(testkit::PATIENCE, poll).await.expect("a change in time")
    }

    /// Stays up until Ctrl-C, and tells what becomes of the requests that come.
    async fn stay(mut self) {
        let url = format!("http://{}", self.ingress());
        self.say("");
        self.say(&self.style.bold("It stays up. Try, in another terminal:"));
        for (name, groups, claims) in
            [("alice", ["readers"], json!({"email": "alice@example.com"})), ("eve", ["editors"], json!({"mfa": true}))]
        {
            self.say(&format!("\n  {}={}", name.to_uppercase(), self.issuer.token(name, &groups, claims)));
        }
        self.say(&format!("\n  curl -i {url}/books"));
        self.say(&format!("  curl -i {url}/books/1 -H \"authorization: Bearer $ALICE\""));
        self.say(&format!("  curl -i {url}/books/3 -H \"authorization: Bearer $ALICE\""));
        self.say(&format!("  curl -i -X PUT {url}/books/1 -H \"authorization: Bearer $EVE\""));
        self.say(&format!("  curl -i --path-as-is \"{url}/books/1;v=3\""));
        self.say("");
        self.say(&format!("  policies, to edit     {}", self.policies().display()));
        self.say(&format!("  decision log          {}/decisions.jsonl", self.stockade.dir.path().display()));
        self.say(&format!("  stockade's admin page http://{}/", self.stockade.admin_address()));
        self.say(&format!("  envoy's admin page    http://{}/", self.envoy.admin));
        self.say("");
        self.say(&self.style.bold("What comes in is shown here. Ctrl-C ends it."));
        self.say("");
        // However it is told to go, also by a terminal that is closed: whoever is dropped takes along what it started.
        let mut closed = signal(SignalKind::hangup()).unwrap();
        let mut told = signal(SignalKind::terminate()).unwrap();
        loop {
            tokio::select! {
                line = self.envoy.follow() => match line {
                    Some(line) => {
                        let (method, path) = (text(&line["method"]), text(&line["path"]));
                        println!("  {}  {method} {path:<20} {}", line["code"], verdict(&line));
                    }
                    None => return,
                },
                _ = tokio::signal::ctrl_c() => return,
                _ = closed.recv() => return,
                _ = told.recv() => return,
            }
        }
    }
}

/// Decision, reason and determining policies of a line of the access log.
fn verdict(line: &Value) -> String {
    let Some(decision) = line["decision"].as_str() else { return "nobody was asked".to_owned() };
    let policies = line["policies"].as_array().into_iter().flatten().map(text);
    let words = [decision, ": ", text(&line["reason"])].concat();
    std::iter::once(words.as_str()).chain(policies).collect::<Vec<_>>().join(" ")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

/// What of an answer is worth showing: a denial's message and header, or what the app learned.
fn shown(answer: &Answer) -> Vec<String> {
    match answer.echo() {
        Some(seen) => {
            let learned = seen.headers.iter().filter(|(name, _)| name.starts_with("x-stockade-"));
            let learned: Vec<String> = learned.map(|(name, value)| format!("{name}: {value}")).collect();
            vec![format!("the app got {} {} with {}", seen.method, seen.target, learned.join(", "))]
        }
        None => {
            let header = answer.header("www-authenticate").map(|value| format!("www-authenticate: {value}"));
            [Some(answer.body.clone()), header].into_iter().flatten().collect()
        }
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in walkdir::WalkDir::new(from) {
        let entry = entry.unwrap();
        let target = to.join(entry.path().strip_prefix(from).unwrap());
        if entry.file_type().is_dir() {
            std::fs::create_dir_all(target).unwrap();
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
