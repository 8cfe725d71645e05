//! What is printed of what others wrote: nothing in it reaches a terminal as more than text.

use std::collections::BTreeMap;
use std::fs;

use stockade::terminal::clean;

use crate::cli::{Ran, dir, run};

/// Moves the cursor, clears the screen, sets colours and titles, hides itself, turns directions, and ends lines in every way.
pub const HOSTILE: &str =
    "x\u{1b}[2J\u{1b}[8m\u{1b}]0;title\u{7}\u{9b}31m\r\u{8}\u{7f}\u{202e}\u{2066}\u{200b}\u{2028}\u{85}\u{feff}y";

/// Fails if anything of a command's output is more than text.
pub fn is_text(ran: &Ran) {
    for text in [&ran.stdout, &ran.stderr] {
        assert_eq!(clean(text), text.as_str(), "{ran:?}");
    }
}

#[test]
fn a_hostile_bundle_is_shown_as_text() {
    // YAML and Cedar each have their own idea of which characters may stand where; all of them must come out as text.
    let escaped: String = HOSTILE.chars().map(|c| format!("\\u{{{:x}}}", u32::from(c))).collect();
    let yaml: String = HOSTILE.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect();
    let good = "permit (principal, action, resource);";
    let bundles: BTreeMap<&str, Vec<(&str, String)>> = [
        ("policy", vec![("a.cedar", format!("permit (principal, action, resource) when {{ {HOSTILE} }};"))]),
        ("comment", vec![("a.cedar", format!("// {HOSTILE}\npermit (principal, action, resource) when {{ 1 }};"))]),
        ("id", vec![("a.cedar", format!("@id(\"{escaped}\")\n{good}"))]),
        ("twice", vec![("a.cedar", format!("@id(\"{escaped}\")\n{good}\n@id(\"{escaped}\")\n{good}"))]),
        ("annotation", vec![("a.cedar", format!("@mode(\"{escaped}\")\n{good}"))]),
        ("type", vec![("a.cedar", format!("permit (principal == User::\"{escaped}\", action, resource is Nope);"))]),
        ("raw", vec![("bundle.yaml", format!("name: {HOSTILE}\n")), ("a.cedar", good.to_owned())]),
        ("key", vec![("bundle.yaml", format!("\"{yaml}\": 1\nname: \"{yaml}\"\n")), ("a.cedar", good.to_owned())]),
        ("value", vec![("bundle.yaml", format!("name: a\nversion: \"{yaml}\"\n")), ("a.cedar", good.to_owned())]),
        (
            "routes",
            vec![
                ("routes.yaml", format!("routes: [{{path: \"/{yaml}\", action: \"{yaml}\"}}]")),
                ("a.cedar", good.to_owned()),
            ],
        ),
        ("file", vec![("a\u{1b}[2J\u{202e}.cedar", "nonsense".to_owned())]),
        (
            "tests",
            vec![
                ("a.cedar", good.to_owned()),
                ("tests/a.yaml", format!("tests: [{{name: \"{yaml}\", request: \"{yaml}\", expect: allow}}]")),
            ],
        ),
    ]
    .into();
    for (name, files) in bundles {
        let mut files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
        if !files.iter().any(|(path, _)| *path == "bundle.yaml") {
            files.push(("bundle.yaml", "name: shop"));
        }
        let dir = dir(&files);
        let mut seen = false;
        for args in [&["validate", "."][..], &["footprint", "."], &["footprint", ".", "--json"], &["test", "."]] {
            let ran = run(dir.path(), args, "");
            is_text(&ran);
            seen |= format!("{}{}", ran.stdout, ran.stderr).contains("\\u001b");
            if args.contains(&"--json") && ran.code == 0 {
                ran.json();
            }
        }
        println!("{name}: {}", if seen { "shown" } else { "not shown" });
        // At least what is quoted with its source must have been seen, or this tests nothing.
        assert!(seen || !["policy", "comment", "file"].contains(&name), "{name} was not shown at all");
    }
}

#[test]
fn hostile_arguments_requests_and_configurations_are_shown_as_text() {
    let good = dir(&[("bundle.yaml", "name: shop"), ("a.cedar", "permit (principal, action, resource);")]);
    let request = |path: &str| {
        let body =
            serde_json::json!({"attributes": {"request": {"http": {"method": "GET", "path": path, "host": path}}}});
        body.to_string()
    };
    for args in [&["decide", "--bundle", "."][..], &["decide", "--bundle", ".", "--json"]] {
        for input in
            [request(HOSTILE), request(&format!("/{HOSTILE}")), HOSTILE.to_owned(), format!("{{\"{HOSTILE}\": 1}}")]
        {
            is_text(&run(good.path(), args, &input));
        }
    }
    for args in [
        &["validate", HOSTILE][..],
        &[HOSTILE],
        &["validate", "--nope", HOSTILE],
        &["publish", ".", "--store", HOSTILE],
    ] {
        let ran = run(good.path(), args, "");
        assert_ne!(ran.code, 0);
        is_text(&ran);
    }
    let config = good.path().join("c\u{1b}[2J.yaml");
    fs::write(&config, format!("listen: [\"{HOSTILE}\"]\n# {HOSTILE}\n{HOSTILE}: 1\n")).unwrap();
    let config = config.display().to_string();
    is_text(&run(good.path(), &["check-config", &config], ""));
    is_text(&run(good.path(), &["serve", "--config", &config], ""));
}
