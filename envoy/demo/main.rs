//! A tour of Stockade with the real Envoy: `make demo`.
//!
//! Starts an upstream, the sidecar with a copy of the bookstore's policies, and Envoy as in `envoy/jwt.yaml`; sends
//! requests and shows what became of each, and why; then changes the policies under the running sidecar. On a terminal it
//! stays up afterwards, to play with. Without one it ends, and fails if anything did not answer as the tour says.
#![allow(clippy::disallowed_macros, clippy::disallowed_methods, reason = "it prints what it made itself")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod narrator;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use narrator::Narrator;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::envoy::{Envoy, Places, shipped};
use testkit::http::{Answer, Request};
use testkit::token::Issuer;
use testkit::upstream::Upstream;
use testkit::{Stockade, copy_folder};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> ExitCode {
    let interactive = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let mut tour = Tour::start().await;
    tour.permits().await;
    tour.proves_who_asks().await;
    tour.forbids().await;
    tour.sees_what_the_app_gets().await;
    tour.takes_a_change().await;
    tour.refuses_a_mistake().await;
    tour.goes_back().await;
    let end = tour.narrator.end();
    if interactive {
        tour.invite();
        tour.stay().await;
    }
    end
}

/// Who sends a request.
enum Who {
    Nobody,
    /// A name for the tour, and a token.
    Person(&'static str, String),
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
    narrator: Narrator,
    issuer: Issuer,
    upstream: SocketAddr,
    stockade: Stockade,
    envoy: Envoy,
    /// The policies of readers, before the tour changes them.
    readers: String,
    /// The revision at the start.
    first: Value,
}

/// The client is told so where no policy says anything else.
const MESSAGE: &str = "you may not do this; ask the bookstore team";

/// A policy that is added on the way.
const FREE: &str = r#"
@id("free-reading-day")
permit (
    principal is Anonymous,
    action == Action::"viewBook",
    resource in Shelf::"public"
);
"#;

/// A policy that is not accepted.
const TYPO: &str = r#"
@id("embargoed-edits")
forbid (principal, action == Action::"editBook", resource) when {
    resource has embargoed && resource.embargod
};
"#;

impl Tour {
    async fn start() -> Self {
        let (dir, issuer, upstream) = (TempDir::new().unwrap(), Issuer::new(), Upstream::start().await.address);
        for bundle in ["bookstore", "guardrails"] {
            copy_folder(&testkit::repository("policies").join(bundle), &dir.path().join("policies").join(bundle));
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
        stockade.ready().await;
        let readers = std::fs::read_to_string(readers(&stockade)).unwrap();
        let places = Places { app: upstream, etc: stockade.dir.path(), stockade: &stockade.addresses[0] };
        let envoy = Envoy::start(&shipped("jwt.yaml", &places)).await;
        let first = Value::Null;
        let narrator = Narrator::new();
        println!("{}\n", narrator.bold("Stockade: a tour with the real Envoy"));
        let mut tour = Self { narrator, issuer, upstream, stockade, envoy, readers, first };
        tour.first = tour.snapshot().await["snapshot"]["revision"]["id"].clone();
        println!("  envoy      http://{}, as in envoy/jwt.yaml", tour.ingress());
        println!("  stockade   {}", tour.stockade.addresses[0]);
        println!("  policies   {}", tour.policies().display());
        println!("  app        http://{}, which answers with what it got", tour.upstream);
        tour
    }

    fn ingress(&self) -> SocketAddr {
        self.envoy.listener("ingress")
    }

    fn policies(&self) -> PathBuf {
        self.stockade.dir.path().join("policies")
    }

    fn person(&self, name: &'static str, groups: &[&str], claims: Value) -> Who {
        let subject = name.split_once(',').map_or(name, |(subject, _)| subject);
        Who::Person(name, self.issuer.token(subject, groups, claims))
    }

    fn alice(&self) -> Who {
        self.person("alice, of the readers", &["readers"], json!({"email": "alice@example.com"}))
    }

    /// Sends a request, and tells what became of it and why.
    async fn send(&mut self, request: Request, line: &str, who: Who, says: Says<'_>) {
        let (request, who) = match who {
            Who::Nobody => (request, "without a token"),
            Who::Person(name, token) => (request.bearer(&token), name),
        };
        let answer = request.send(self.ingress()).await;
        let logged = self.envoy.logged().await;
        let why = json!([logged["decision"], logged["reason"], logged["policies"]]);
        let through = answer.header("x-upstream").is_some();

        let status = format!("{}", answer.status);
        let status = if through { self.narrator.green(&status) } else { self.narrator.red(&status) };
        println!("   {status}  {line:<28} {}", self.narrator.dim(who));
        println!("        {}", verdict(&logged));
        let shown = shown(&answer);
        for line in &shown {
            println!("        {}", self.narrator.dim(line));
        }
        let missing = says.with.iter().find(|part| !shown.iter().any(|line| line.contains(**part)));
        if answer.status != says.status || why != says.why || missing.is_some() {
            let missing = missing.map_or_else(String::new, |part| format!(", with `{part}`"));
            self.narrator.surprise(&format!("{} {}{missing}", says.status, says.why));
        }
    }

    async fn get(&mut self, path: &str, who: Who, says: Says<'_>) {
        self.send(Request::get(path), &format!("GET {path}"), who, says).await;
    }

    // === the steps ===

    async fn permits(&mut self) {
        self.narrator.title("A policy permits; what none permits is denied, and so is what no route names");
        self.get("/books", Who::Nobody, allowed("bookstore/anyone-lists", &[])).await;
        self.get(
            "/books/1",
            Who::Nobody,
            Says { status: 403, why: json!(["deny", "default_deny", []]), with: &[MESSAGE] },
        )
        .await;
        let says = Says { status: 403, why: json!(["deny", "unrouted", []]), with: &[MESSAGE] };
        self.get("/admin", self.alice(), says).await;
    }

    async fn proves_who_asks(&mut self) {
        self.narrator.title("Envoy verifies the token, its groups are roles, and the app learns who it was");
        let with: &[&str] = &["x-stockade-principal: User::\"alice\"", "x-stockade-email: alice@example.com"];
        self.get("/books/1", self.alice(), allowed("bookstore/readers-view", with)).await;
        println!("   The same, and the client itself says x-stockade-principal: User::\"root\"");
        let forged = Request::get("/books/1").header("x-stockade-principal", "User::\"root\"");
        self.send(forged, "GET /books/1", self.alice(), allowed("bookstore/readers-view", with)).await;
    }

    async fn forbids(&mut self) {
        self.narrator.title("A forbid wins over every permit, and says how the denial looks");
        let says = denied(451, "bookstore/embargo", &["not before publication day"]);
        self.get("/books/3", self.alice(), says).await;
        let put = || Request::new("PUT", "/books/1");
        let eve = self.person("eve, of the editors", &["editors"], json!({}));
        let with: &[&str] = &["www-authenticate", "insufficient_user_authentication"];
        self.send(put(), "PUT /books/1", eve, denied(401, "bookstore/edits-need-mfa", with)).await;
        let eve = self.person("eve, with a second factor", &["editors"], json!({"mfa": true}));
        self.send(put(), "PUT /books/1", eve, allowed("bookstore/editors-edit", &[])).await;

        self.narrator.title("Guardrails of the platform team hold for every app team");
        let mallory = self.person("mallory, of the readers and the revoked", &["readers", "revoked"], json!({}));
        self.get("/books/1", mallory, denied(403, "guardrails/revoked", &["this identity is revoked"])).await;
    }

    async fn sees_what_the_app_gets(&mut self) {
        self.narrator.title(
            "What policies see is what the app gets: Envoy resolves, Stockade refuses what can be read in two ways",
        );
        let with: &[&str] = &["the app got GET /books/1 "];
        self.get("/books/3/../1", self.alice(), allowed("bookstore/readers-view", with)).await;
        for (path, form) in [("/books/1;v=3", "path_parameters"), ("/books/%252e%252e/admin", "double_encoding")] {
            let says = Says { status: 400, why: json!(["deny", "path", []]), with: &[form] };
            self.get(path, self.alice(), says).await;
        }
    }

    async fn takes_a_change(&mut self) {
        self.narrator
            .title("Policies change under the running sidecar: bookstore/policies/readers.cedar gets a new one");
        self.narrator.quote(FREE);
        let saved = Instant::now();
        std::fs::write(readers(&self.stockade), format!("{}{FREE}", self.readers)).unwrap();
        let snapshot = self.wait(|snapshot| snapshot["snapshot"]["revision"]["id"] != self.first).await;
        let (took, now) = (saved.elapsed(), text(&snapshot["snapshot"]["revision"]["id"]));
        println!("   in force after {took:.0?}: revision {} -> {now}", text(&self.first));
        self.get("/books/1", Who::Nobody, allowed("bookstore/free-reading-day", &[])).await;
    }

    async fn refuses_a_mistake(&mut self) {
        self.narrator.title("A mistake is not put in force: the last good policies stay");
        self.narrator.quote(TYPO);
        let before = self.snapshot().await["snapshot"]["revision"]["id"].clone();
        std::fs::write(readers(&self.stockade), format!("{}{FREE}{TYPO}", self.readers)).unwrap();
        let snapshot = self.wait(|snapshot| !snapshot["rejection"].is_null()).await;
        println!("   /snapshot says:");
        for problem in snapshot["rejection"]["problems"].as_array().into_iter().flatten() {
            let problem = text(problem).replace(&format!("{}/", self.policies().display()), "");
            println!("        {}", self.narrator.dim(&problem));
        }
        if snapshot["snapshot"]["revision"]["id"] != before {
            self.narrator.surprise(&format!("revision {}", text(&before)));
        }
        self.get("/books/1", Who::Nobody, allowed("bookstore/free-reading-day", &[])).await;
    }

    async fn goes_back(&mut self) {
        self.narrator.title("The file as it was");
        std::fs::write(readers(&self.stockade), &self.readers).unwrap();
        let snapshot = self.wait(|snapshot| snapshot["snapshot"]["revision"]["id"] == self.first).await;
        println!("   revision {}", text(&snapshot["snapshot"]["revision"]["id"]));
        let says = Says { status: 403, why: json!(["deny", "default_deny", []]), with: &[] };
        self.get("/books/1", Who::Nobody, says).await;
    }

    async fn snapshot(&self) -> Value {
        serde_json::from_str(&self.stockade.admin("/snapshot").await.1).unwrap()
    }

    /// Polls `/snapshot` until it is as wanted.
    async fn wait(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        testkit::until("the change is in force", async || {
            Some(self.snapshot().await).filter(|snapshot| wanted(snapshot))
        })
        .await
    }

    /// Tells what can be tried.
    fn invite(&self) {
        let url = format!("http://{}", self.ingress());
        println!("\n{}", self.narrator.bold("It stays up. Try, in another terminal:"));
        for (name, groups, claims) in
            [("alice", ["readers"], json!({"email": "alice@example.com"})), ("eve", ["editors"], json!({"mfa": true}))]
        {
            println!("\n  {}={}", name.to_uppercase(), self.issuer.token(name, &groups, claims));
        }
        println!("\n  curl -i {url}/books");
        println!("  curl -i {url}/books/1 -H \"authorization: Bearer $ALICE\"");
        println!("  curl -i {url}/books/3 -H \"authorization: Bearer $ALICE\"");
        println!("  curl -i -X PUT {url}/books/1 -H \"authorization: Bearer $EVE\"");
        println!("  curl -i --path-as-is \"{url}/books/1;v=3\"\n");
        println!("  policies, to edit     {}", self.policies().display());
        println!("  decision log          {}/decisions.jsonl", self.stockade.dir.path().display());
        println!("  stockade's admin page http://{}/", self.stockade.admin_address());
        println!("  envoy's admin page    http://{}/\n", self.envoy.admin);
        println!("{}\n", self.narrator.bold("What comes in is shown here. Ctrl-C ends it."));
    }

    /// Stays up until Ctrl-C, and shows what becomes of the requests that come.
    async fn stay(mut self) {
        // However it is ended, also by a terminal that is closed: what is dropped ends the processes that it started.
        let mut closed = signal(SignalKind::hangup()).unwrap();
        let mut terminated = signal(SignalKind::terminate()).unwrap();
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
                _ = terminated.recv() => return,
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

/// The file that the tour changes.
fn readers(stockade: &Stockade) -> PathBuf {
    stockade.dir.path().join("policies/bookstore/policies/readers.cedar")
}

/// Through, by this policy.
fn allowed<'a>(policy: &str, with: &'a [&'a str]) -> Says<'a> {
    Says { status: 200, why: json!(["allow", "policy", [policy]]), with }
}

/// Denied by this policy.
fn denied<'a>(status: u16, policy: &str, with: &'a [&'a str]) -> Says<'a> {
    Says { status, why: json!(["deny", "policy", [policy]]), with }
}
