//! The command line: what each command prints, and what it exits with.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value as Json, json};
use tempfile::TempDir;

use testkit::{binary, repository};

/// What a command came to.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn json(&self) -> Json {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

pub fn run(dir: &Path, args: &[&str], input: &str) -> Ran {
    let mut child = Command::new(binary())
        .args(args)
        .current_dir(dir)
        // The same drawing characters everywhere.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that reads nothing may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Ran { code: output.status.code().expect("no signal"), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Files in a directory of their own.
pub fn dir(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

const SUBCOMMANDS: [&str; 19] = [
    "serve",
    "check-config",
    "validate",
    "decide",
    "footprint",
    "test",
    "keygen",
    "publish",
    "rollback",
    "history",
    "show",
    "pull",
    "status",
    "deny",
    "grant",
    "overlays",
    "beacon",
    "prune",
    "completions",
];

#[test]
fn help_says_what_each_command_does_and_exits_with() {
    let dir = dir(&[]);
    let top = run(dir.path(), &["--help"], "");
    assert_eq!((top.code, top.stderr.as_str()), (0, ""));
    assert!(top.stdout.contains("Exit status: 64 "), "{}", top.stdout);
    for command in SUBCOMMANDS {
        assert!(top.stdout.contains(&format!("\n  {command} ")), "{command} is not in {}", top.stdout);
        let help = run(dir.path(), &[command, "--help"], "");
        assert_eq!(help.code, 0, "{help:?}");
        assert!(help.stdout.contains("Exit status: "), "{command}: {}", help.stdout);
    }
    let version = run(dir.path(), &["--version"], "");
    assert_eq!((version.code, version.stdout), (0, format!("stockade {}\n", env!("CARGO_PKG_VERSION"))));
}

/// 1 to 4 have meanings, so a slip of the pen must not look like a denial.
#[test]
fn a_command_line_that_cannot_be_understood_exits_with_64() {
    let dir = dir(&[]);
    for args in [
        &[][..],
        &["sreve"],
        &["serve", "--port", "1"],
        &["decide"],
        &["decide", "--bundle"],
        &["validate"],
        &["footprint"],
        &["check-config"],
        &["completions"],
        &["completions", "cmd.exe"],
    ] {
        let ran = run(dir.path(), args, "");
        assert_eq!(ran.code, 64, "{args:?}: {ran:?}");
        assert!(ran.stdout.is_empty() && ran.stderr.contains("--help"), "{args:?}: {ran:?}");
    }
    assert!(run(dir.path(), &["sreve"], "").stderr.contains("serve"), "no hint");
}

#[test]
fn completions_are_those_of_the_shell() {
    let dir = dir(&[]);
    for (shell, marker) in
        [("bash", "complete -F _stockade"), ("zsh", "#compdef stockade"), ("fish", "complete -c stockade")]
    {
        let ran = run(dir.path(), &["completions", shell], "");
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{shell}");
        for expected in SUBCOMMANDS.iter().chain([&marker]) {
            assert!(ran.stdout.contains(expected), "{shell}: no {expected}");
        }
    }
}

// === check-config ===

#[test]
fn every_problem_of_a_configuration_is_shown_with_its_place_and_what_to_do() {
    let config = r#"servce: shop
listen: ["tcp://0.0.0.0:9191", "unix://run/authz.sock", "localhost:9191"]
workers: 0
bundles: [{directory: a, dirctory: b}]
identity: [{from: jwt}, {from: peer, type: "no type"}]
paths: {allow: [dubble_slash]}
undecided: error
limits: {in_flight: many, message: 1MB}
decision_log: {output: "file:relative", sample_allow: 2, attributes: [context.headers.cookie]}
log: {level: inof}
feed: {poll: 1ms, watch: maybe}
http2: {max_concurrent_streams: -1}
upstream_headers: {host: principal, x-a: nothing}
admin: {listen: nowhere}
shutdown: {grace: 5}
"#;
    let dir = dir(&[("stockade.yaml", config)]);
    let ran = run(dir.path(), &["check-config", "stockade.yaml"], "");
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{ran:?}");
    for (place, message) in [
        ("1:1", "unknown key `servce`"),
        ("2:10", "`listen[0]`: `tcp://0.0.0.0:9191` can be reached from other machines"),
        ("2:32", "`listen[1]`: `unix://run/authz.sock` is not an absolute path"),
        ("2:57", "`listen[2]`: `localhost:9191` is not an address"),
        ("3:10", "`workers`: 0 is not a number of threads"),
        ("4:26", "`bundles[0]`: unknown key `dirctory`"),
        ("5:12", "`identity[0]`: an entry of a kind that does not exist"),
        ("5:44", "`identity[1].type`: `no type` is not an entity type"),
        ("6:17", "`paths.allow[0]`: unknown value `dubble_slash`"),
        ("7:12", "`undecided`: unknown value `error`"),
        ("8:21", "`limits.in_flight`: expected a number, found a string"),
        ("8:36", "`limits.message`: `1MB` is not a number of bytes"),
        ("9:24", "`decision_log.output`: `file:relative` is not an output"),
        ("9:55", "`decision_log.sample_allow`: `2` is not a share"),
        ("9:71", "`context.headers.cookie` is a credential and never logged"),
        ("10:14", "`log.level`: `inof` is not a level"),
        ("11:26", "`feed.watch`: expected true or false, found a string"),
        ("12:33", "`http2.max_concurrent_streams`: expected a number, found a negative number"),
        ("13:20", "`host` is not ours to set or remove"),
        ("13:42", "`nothing` is not something a header can be set to"),
        ("14:17", "`nowhere` is not an address"),
        ("15:19", "`shutdown.grace`: expected a string, found a number"),
    ] {
        let report = ran.stderr.split("\n  x ").find(|report| report.contains(message));
        let report = report.unwrap_or_else(|| panic!("nothing says {message} in\n{}", ran.stderr));
        assert!(report.contains(&format!("[stockade.yaml:{place}]")), "{message} is not at {place}:\n{report}");
    }
    for hint in
        ["did you mean `service`?", "did you mean `directory`?", "did you mean `double_slash`?", "did you mean `info`?"]
    {
        assert!(ran.stderr.contains(hint), "no {hint}");
    }
    // The place is shown, not only named.
    assert!(ran.stderr.contains("servce: shop"), "{}", ran.stderr);
}

#[test]
fn a_configuration_that_is_none_is_refused() {
    let dir = dir(&[
        ("empty.yaml", ""),
        ("broken.yaml", "bundles: ["),
        ("list.yaml", "[a]"),
        ("two.yaml", "a: 1\n---\nb: 2\n"),
    ]);
    for (file, words) in [
        ("missing.yaml", "missing.yaml cannot be read: No such file or directory"),
        ("empty.yaml", "neither `bundles` nor `store` is there"),
        ("broken.yaml", "not valid YAML"),
        ("list.yaml", "expected a mapping, found a list"),
        ("two.yaml", "a second document in the file"),
    ] {
        let ran = run(dir.path(), &["check-config", file], "");
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{file}: {ran:?}");
        assert!(ran.stderr.contains(words), "{file}: {}", ran.stderr);
        // The sidecar says the same.
        let served = run(dir.path(), &["serve", "--config", file], "");
        assert_eq!((served.code, &served.stderr), (2, &ran.stderr), "{file}");
    }
}

#[test]
fn the_effective_configuration_is_printed_and_is_a_configuration() {
    let dir = dir(&[("conf/stockade.yaml", "bundles: [{directory: bundle}]\nworkers: 3\n")]);
    let good = run(dir.path(), &["check-config", "conf/stockade.yaml"], "");
    assert_eq!((good.code, good.stdout.as_str(), good.stderr.as_str()), (0, "conf/stockade.yaml: good\n", ""));

    let printed = run(dir.path(), &["check-config", "--print", "conf/stockade.yaml"], "");
    assert_eq!((printed.code, printed.stderr.as_str()), (0, ""));
    let config = printed.json();
    // Relative to the file, wherever it was called from.
    assert_eq!(config["bundles"], json!([{"directory": "conf/bundle"}]));
    assert_eq!(config["workers"], json!(3));
    // The defaults that matter most to whoever wires it: closed, local, and nothing let through.
    assert_eq!(config["service"], "default");
    assert_eq!(config["listen"][0]["address"], "tcp://127.0.0.1:9191");
    assert_eq!(config["admin"]["listen"]["address"], "tcp://127.0.0.1:9192");
    assert_eq!(config["undecided"], "error_response");
    assert_eq!(config["paths"], json!({"allow": []}));
    assert_eq!(
        config["limits"],
        json!({"in_flight": 4096, "message": "1MiB", "waiting_bytes": "64MiB", "deadline": "15s", "connections": 256})
    );
    assert_eq!(config["http2"]["reflection"], false);
    assert_eq!(config["decision_log"]["attributes"], json!([]));
    let sources: Vec<&str> =
        config["identity"].as_array().unwrap().iter().map(|s| s["from"].as_str().unwrap()).collect();
    assert_eq!(sources, ["jwt_metadata", "peer", "anonymous"]);

    // JSON is YAML: what was printed can be used as it is, and says the same.
    std::fs::write(dir.path().join("again.yaml"), &printed.stdout).unwrap();
    let again = run(dir.path(), &["check-config", "--print", "again.yaml"], "");
    assert_eq!((again.code, again.stdout), (0, printed.stdout), "{}", again.stderr);
}

// === validate ===

#[test]
fn bundles_that_are_good_are_called_good() {
    let dir = dir(&[]);
    let (bookstore, guardrails) = (repository("policies/bookstore"), repository("policies/guardrails"));
    let [bookstore, guardrails] = [&bookstore, &guardrails].map(|path| path.to_str().unwrap());
    let one = run(dir.path(), &["validate", "--strict", bookstore], "");
    assert_eq!((one.code, one.stderr.as_str()), (0, ""), "{one:?}");
    assert!(one.stdout.starts_with("good: "), "{one:?}");
    let both = run(dir.path(), &["validate", "--strict", bookstore, guardrails], "");
    assert_eq!((both.code, both.stderr.as_str()), (0, ""), "{both:?}");
    let policies = |ran: &Ran| -> u32 { ran.stdout.split(' ').nth(1).unwrap().parse().unwrap() };
    assert_eq!(policies(&both), policies(&one) + 2);
}

#[test]
fn a_bad_bundle_is_shown_whole() {
    let dir = dir(&[
        ("shop/bundle.yaml", "name: shop"),
        ("shop/policies/a.cedar", "permit (principal, action, resource)\nwhen { principal.nmae == \"x\" };"),
        ("shop/policies/b.cedar", "permit (principal, action == Action::\"FETCH\", resource);"),
        ("shop/entities.json", "["),
        ("other/bundle.yaml", "nam: other"),
    ]);
    let ran = run(dir.path(), &["validate", "shop"], "");
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
    for words in [
        // The place, the line itself, and what to do.
        "[shop/policies/a.cedar:2:",
        "when { principal.nmae == \"x\" };",
        "[shop/policies/b.cedar:1:",
        "unrecognized action `Action::\"FETCH\"`",
        "[shop/entities.json:1:1]",
    ] {
        assert!(ran.stderr.contains(words), "no {words} in\n{}", ran.stderr);
    }
    assert!(ran.stderr.ends_with(" errors; a sidecar would refuse this and keep what is in force\n"), "{}", ran.stderr);

    let two = run(dir.path(), &["validate", "other", "nowhere"], "");
    assert_eq!(two.code, 1);
    assert!(two.stderr.contains("there is no directory `nowhere`"), "{}", two.stderr);
    let other = run(dir.path(), &["validate", "other"], "");
    assert!(other.stderr.contains("did you mean `name`?"), "{}", other.stderr);
}

#[test]
fn warnings_count_where_they_are_asked_to() {
    let never = "permit (principal, action == Action::\"GET\", resource) when { principal is User && false };";
    let dir = dir(&[("shop/bundle.yaml", "name: shop"), ("shop/never.cedar", never)]);
    let lenient = run(dir.path(), &["validate", "shop"], "");
    assert_eq!(lenient.code, 0, "{lenient:?}");
    assert!(lenient.stdout.ends_with("; 1 warning\n") && lenient.stderr.contains("never.cedar"), "{lenient:?}");
    let strict = run(dir.path(), &["validate", "--strict", "shop"], "");
    assert_eq!((strict.code, &strict.stderr), (1, &lenient.stderr));
}

// === decide ===

/// A request in protobuf JSON.
fn request(method: &str, path: &str, claims: Json) -> String {
    json!({"attributes": {
        "source": {"address": {"socketAddress": {"address": "192.0.2.7", "portValue": 40000}}},
        "request": {"http": {"method": method, "path": path, "host": "bookstore.example"}},
        "metadataContext": {"filterMetadata": {"envoy.filters.http.jwt_authn": claims}},
    }})
    .to_string()
}

fn decide(args: &[&str], input: &str) -> Ran {
    let bundle = repository("policies/bookstore");
    let config = dir(&[("stockade.yaml", "service: bookstore\nbundles: [{directory: unused}]\n")]);
    let all = [&["decide", "--bundle", bundle.to_str().unwrap(), "--config", "stockade.yaml"], args].concat();
    run(config.path(), &all, input)
}

#[test]
fn decisions_are_explained_and_exit_with_their_status() {
    let allowed = decide(&[], &request("GET", "/books", json!({})));
    assert_eq!((allowed.code, allowed.stderr.as_str()), (0, ""), "{allowed:?}");
    for line in [
        "principal             Anonymous::\"anonymous\"\n",
        "action                Action::\"listBooks\"\n",
        "resource              Service::\"bookstore\"\n",
        "decision              allow\n",
        "determining           bookstore/anyone-lists\n",
        "errors                none\n",
    ] {
        assert!(allowed.stdout.contains(line), "no {line} in\n{}", allowed.stdout);
    }
    let reader = json!({"jwt_payload": {"sub": "alice", "groups": ["readers"]}});
    let no_bool = json!({"jwt_payload": {"sub": "alice", "groups": ["editors"], "mfa": "yes"}});
    for (input, code, decision, reason) in [
        (request("GET", "/books", json!({})), 0, "allow", "policy"),
        (request("GET", "/books/1", reader.clone()), 0, "allow", "policy"),
        (request("GET", "/books/2", reader.clone()), 2, "deny", "default_deny"),
        (request("GET", "/books/3", reader), 2, "deny", "policy"),
        (request("PUT", "/books/1", json!({})), 2, "deny", "not_applicable"),
        (request("PUT", "/books/1", no_bool), 2, "deny", "attribute"),
        // The schema has `book_id` as a Long, but no policy reads it.
        (request("GET", "/books/one", json!({})), 2, "deny", "default_deny"),
        (request("GET", "//books", json!({})), 2, "deny", "path"),
        ("{}".to_owned(), 2, "deny", "incomplete"),
    ] {
        let ran = decide(&["--json"], &input);
        assert_eq!((ran.code, ran.stderr.as_str()), (code, ""), "{input}: {ran:?}");
        let report = ran.json();
        assert_eq!((&report["decision"], &report["reason"]), (&json!(decision), &json!(reason)), "{report:#}");
        let status = report["answer"]["status"]["code"].as_i64();
        assert_eq!(status == Some(0), code == 0, "{report:#}");
    }
}

#[test]
fn the_report_says_everything_there_is_to_say() {
    let claims = json!({"jwt_payload": {"sub": "alice", "groups": ["editors"], "email": "a@x", "mfa": false}});
    let report = decide(&["--json"], &request("PUT", "/books/3", claims)).json();
    assert_eq!(
        report["query"],
        json!({
            "principal": "User::\"alice\"", "principal_attributes": {},
            "principal_parents": ["Group::\"editors\""], "identity": "jwt", "action": "Action::\"editBook\"",
            "resource": "Book::\"3\"",
            // Of all that the schema declares, what the policies of this action read.
            "context": {"claims": {"mfa": false}},
        })
    );
    assert_eq!(report["determining"], json!(["bookstore/edits-need-mfa", "bookstore/embargo"]));
    assert_eq!((&report["errors"], report["revision"].as_str().map(str::len)), (&json!([]), Some(12)));
    let answer = &report["answer"]["denied_response"];
    assert_eq!((&answer["status"], &answer["body"]), (&json!(401), &json!("log in again with a second factor")));
    assert!(answer["headers"]["www-authenticate"].as_str().unwrap().starts_with("Bearer"), "{answer}");
    assert_eq!(report["shadow"]["decision"], "deny");
}

/// The recordings are what people have at hand.
#[test]
fn recorded_requests_can_be_decided() {
    for (number, code) in [(1, 2), (2, 2), (9, 2)] {
        let input = std::fs::read_to_string(repository(&format!("tests/recordings/{number:02}.json"))).unwrap();
        let ran = decide(&["--json"], &input);
        assert_eq!(ran.code, code, "{ran:?}");
        assert_eq!(ran.json()["decision"], "deny");
    }
}

#[test]
fn what_cannot_be_read_exits_with_1() {
    let get = request("GET", "/books", json!({}));
    for (args, input, words) in [
        (&["--bundle", "nowhere"][..], get.as_str(), "there is no directory `nowhere`"),
        (&[], "not JSON", "not JSON: expected ident at line 1 column 2"),
        (
            &[],
            r#"{"attributes": {"request": {"http": {"method": 7}}}}"#,
            "`request.attributes.request.http.method`: invalid type: integer `7`, expected a string",
        ),
        (
            &[],
            r#"{"attributes": {"request": {"http": {"rawBody": "*"}}}}"#,
            "`request.attributes.request.http.rawBody`: invalid base64",
        ),
        (&[], r#"{"attributes": {"request": {"time": "now"}}}"#, "`request.attributes.request.time`: "),
        (&[], "", "not JSON"),
    ] {
        let ran = decide(args, input);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{args:?}: {ran:?}");
        assert!(ran.stderr.contains(words), "{args:?}: {}", ran.stderr);
    }
    let bundle = repository("policies/bookstore");
    let config = dir(&[("stockade.yaml", "bundles: []")]);
    let args = ["decide", "--bundle", bundle.to_str().unwrap(), "--config", "stockade.yaml"];
    assert_eq!(run(config.path(), &args, &get).code, 1);
}

/// Names as they stand in the .proto file are names as well, numbers may be numbers, and `null` is nothing.
#[test]
fn protobuf_json_is_read_in_all_its_spellings() {
    let input = json!({"attributes": {
        "source": {"address": {"socket_address": {"address": "192.0.2.7", "port_value": 40000}}, "principal": null},
        "request": {"http": {
            "method": "POST", "path": "/orders", "host": "h", "size": 30, "raw_body": "eyJib29rX2lkIjoxLCJxdWFudGl0eSI6M30=",
            "header_map": {"headers": [
                {"key": "content-type", "raw_value": "YXBwbGljYXRpb24vanNvbg=="}, {"key": "x", "value": "y"},
            ]},
        }},
        "metadata_context": {"filter_metadata": {"envoy.filters.http.jwt_authn": {"jwt_payload": {"sub": "a", "groups": "readers", "email": "a@x"}}}},
    }});
    // 26 bytes of JSON in a body that says it has 30: only the beginning of it.
    let partial = decide(&["--json"], &input.to_string());
    assert_eq!((partial.code, &partial.json()["reason"]), (2, &json!("attribute")), "{partial:?}");
    let mut whole = input;
    whole["attributes"]["request"]["http"]["size"] = json!("26");
    let whole = decide(&["--json"], &whole.to_string());
    assert_eq!((whole.code, &whole.json()["query"]["context"]["body"]), (0, &json!({"quantity": 3})), "{whole:?}");
    assert_eq!(whole.json()["query"]["principal_attributes"], json!({"email": "a@x"}), "{whole:?}");
}

/// The configuration of the sidecar counts: who is believed, which paths are let through, which headers go up.
#[test]
fn the_configuration_decides_as_it_would_in_a_sidecar() {
    let bundle = repository("policies/bookstore");
    let config = "bundles: [{directory: unused}]\nservice: bookstore\npaths: {allow: [double_slash]}\n\
                  identity: [{from: trusted_header, header: x-user, addresses: [192.0.2.0/24]}]\n\
                  upstream_headers: {x-principal: principal, x-revision: revision, x-claim: 'claim:sub'}\n\
                  remove_headers: [cookie]\n";
    let config = dir(&[("stockade.yaml", config)]);
    let mut input: Json = serde_json::from_str(&request("GET", "/books", json!({}))).unwrap();
    input["attributes"]["request"]["http"]["headers"] = json!({"x-user": "alice"});
    let args = ["decide", "--bundle", bundle.to_str().unwrap(), "--config", "stockade.yaml", "--json"];
    let ran = run(config.path(), &args, &input.to_string());
    let report = ran.json();
    assert_eq!((ran.code, &report["query"]["principal"]), (0, &json!("User::\"alice\"")), "{report:#}");
    let ok = &report["answer"]["ok_response"];
    assert_eq!(ok["headers"]["x-principal"], "User::\"alice\"");
    assert_eq!(ok["headers"]["x-revision"], report["revision"]);
    assert_eq!(ok["headers_to_remove"], json!(["x-claim", "cookie"]));
    // Nobody proved anything, and the list has no `anonymous`.
    let ran = run(config.path(), &args, &request("GET", "/books", json!({})));
    assert_eq!((ran.code, &ran.json()["reason"]), (2, &json!("identity")), "{ran:?}");
}

#[test]
fn the_tests_of_a_bundle_pass_fail_and_are_missing() {
    let ran = run(&repository("."), &["test", "policies/bookstore"], "");
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "2 tests passed\n"), "{ran:?}");

    let request = std::fs::read_to_string(repository("policies/bookstore/tests/view-book.json")).unwrap();
    let bundle = [
        ("bundle.yaml", "name: shop"),
        ("a.cedar", "permit(principal, action == Action::\"GET\", resource);"),
        ("tests/get.json", request.as_str()),
    ];
    let with = |tests: &'static str| {
        let dir = dir(&bundle);
        std::fs::write(dir.path().join("tests/a.yaml"), tests).unwrap();
        run(dir.path(), &["test", "."], "")
    };
    let good = "tests: [{name: one, request: get.json, expect: allow, determining: [shop/a]}]";
    assert_eq!(with(good).code, 0);
    for (tests, said) in [
        ("tests: [{name: one, request: get.json, expect: deny}]", "expected deny, got allow (policy)"),
        ("tests: [{name: one, request: get.json, expect: allow, determining: [b]}]", "by [\"b\"], got allow"),
        (
            "tests: [{name: one, request: get.json, expect: allow, reason: default_deny}]",
            "expected allow (default_deny)",
        ),
        ("tests: [{name: one, request: gone.json, expect: allow}]", "there is no `tests/gone.json`"),
        ("tests: [{name: one, expect: maybe}]", "`request`"),
    ] {
        let ran = with(tests);
        assert!(ran.code == 1 && ran.stderr.contains(said), "{tests}: {ran:?}");
    }
    let none = dir(&bundle);
    let ran = run(none.path(), &["test", "."], "");
    assert!(ran.code == 1 && ran.stderr.contains("there are no tests"), "{ran:?}");
}

/// A request that no policy was asked about is denied under any policies, so a test that expects a denial must not pass for it unseen.
#[test]
fn a_test_passes_for_a_denial_that_no_policy_made_only_if_it_names_it() {
    let schema = r#"
        entity User { level: Long };
        action "view", "audit" appliesTo { principal: [User, Anonymous], resource: [Service] };
        action "staff" appliesTo { principal: [User], resource: [Service] };
    "#;
    let policies = r#"
        @id("allow") permit (principal is Anonymous, action == Action::"view", resource);
        @id("level") permit (principal is User, action in [Action::"view", Action::"staff"], resource)
            when { principal.level > 1 };
        @id("deny") forbid (principal, action == Action::"audit", resource) unless { principal is User };
    "#;
    let routes = "routes: [{match: GET /view, action: view}, {match: GET /staff, action: staff}, {match: GET /audit, action: audit}, \
                  {match: POST /view, action: audit}]";
    let token = json!({"sub": "ann"});
    for (method, path, claims, reason, by_policies) in [
        ("GET", "/audit", None, "policy", true),
        ("POST", "/view", None, "policy", true),
        ("GET", "/elsewhere", None, "unrouted", false),
        ("PURGE", "/view", None, "unrouted", false),
        ("GET", "/staff", None, "not_applicable", false),
        ("GET", "/view", Some(&token), "unknown_principal", false),
        ("GET", "/a/../view", None, "path", false),
        ("GET", "/view", Some(&json!({"sub": 7})), "identity", false),
    ] {
        let mut request = json!({"attributes": {"request": {"http": {"method": method, "path": path}}}});
        if let Some(claims) = claims {
            request["attributes"]["metadata_context"] =
                json!({"filter_metadata": {"envoy.filters.http.jwt_authn": {"jwt_payload": claims}}});
        }
        let test = |more: &str| {
            let dir = dir(&[
                ("bundle.yaml", "name: shop"),
                ("s.cedarschema", schema),
                ("p.cedar", policies),
                ("routes.yaml", routes),
                ("tests/r.json", &request.to_string()),
                ("tests/a.yaml", &format!("tests: [{{name: one, request: r.json, expect: deny{more}}}]")),
            ]);
            run(dir.path(), &["test", "."], "")
        };
        let named = test(&format!(", reason: {reason}"));
        assert_eq!(named.code, 0, "{method} {path}: {named:?}");
        let silent = test("");
        assert_eq!(silent.code == 0, by_policies, "{method} {path}: {silent:?}");
        if !by_policies {
            let hint = format!("got deny ({reason})");
            let add = format!("`reason: {reason}` if the test is about that");
            assert!(silent.stderr.contains(&hint) && silent.stderr.contains(&add), "{silent:?}");
        }
    }
}
