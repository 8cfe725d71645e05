//! The configuration reference in docs/configuration.md is the configuration: every key, with its default.

use std::collections::BTreeSet;

use saphyr::{LoadableYamlNode, Yaml};
use serde_json::Value;
use stockade::config::Config;

/// The keys of a document, as paths. Lists count as one: their items are examples.
fn keys(yaml: &Yaml<'_>, path: &str, found: &mut BTreeSet<String>) {
    match yaml {
        Yaml::Mapping(entries) => {
            for (key, value) in entries {
                let path = format!("{path}.{}", key.as_str().expect("a text as a key"));
                found.insert(path.clone());
                keys(value, &path, found);
            }
        }
        Yaml::Sequence(items) => items.iter().for_each(|item| keys(item, path, found)),
        _ => {}
    }
}

#[test]
fn the_configuration_page_has_every_key_with_its_default() {
    let page = std::fs::read_to_string(testkit::repository("docs/configuration.md")).unwrap();
    let block = page.split("<!-- reference -->").nth(1).expect("the reference");
    let block = block.split("```yaml").nth(1).unwrap().split("```").next().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let load = |name: &str, text: &str| -> Value {
        let file = dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        serde_json::to_value(Config::load(&file).unwrap_or_else(|problems| panic!("{problems:?}"))).unwrap()
    };
    let mut documented = load("documented.yaml", block);
    let defaults = load("defaults.yaml", "bundles: [{directory: bundle}]");
    // The number of cores is nobody's to document.
    documented["workers"] = defaults["workers"].clone();
    assert_eq!(documented, defaults);

    let named = |text: &str| {
        let mut found = BTreeSet::new();
        keys(&Yaml::load_from_str(text).unwrap()[0], "", &mut found);
        found
    };
    // JSON is YAML, so what the code knows is read the same way.
    assert_eq!(named(block), named(&defaults.to_string()));
}

#[test]
fn the_page_of_the_store_has_every_key_with_its_default() {
    let page = std::fs::read_to_string(testkit::repository("docs/store.md")).unwrap();
    let block = page.split("<!-- reference -->").nth(1).expect("the reference");
    let block = block.split("```yaml").nth(1).unwrap().split("```").next().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("stockade.yaml");
    let load = |text: &str| -> Value {
        std::fs::write(&file, text).unwrap();
        serde_json::to_value(Config::load(&file).unwrap_or_else(|problems| panic!("{problems:?}"))).unwrap()
    };
    let documented = load(block);
    // What has no default, from the page; the rest as it is by default.
    let (store, nats) = (&documented["store"], &documented["nats"]);
    let required = serde_json::json!({
        "store": {
            "name": store["name"],
            "keys": store["keys"],
            "pod": store["pod"],
            "namespace": store["namespace"],
            "last_good": {"directory": store["last_good"]["directory"]},
        },
        "nats": {"servers": nats["servers"], "credentials": nats["credentials"]},
    });
    let defaults = load(&required.to_string());
    assert_eq!(documented, defaults);

    let named = |yaml: &Yaml<'_>| {
        let mut found = BTreeSet::new();
        keys(yaml, "", &mut found);
        found
    };
    let text = serde_json::json!({"store": defaults["store"], "nats": defaults["nats"]}).to_string();
    assert_eq!(named(&Yaml::load_from_str(block).unwrap()[0]), named(&Yaml::load_from_str(&text).unwrap()[0]));
}

/// What a page promises is held by tests that are there.
#[test]
fn pages_name_tests_that_are_there() {
    for (page, least) in [("docs/limits.md", 15), ("docs/threat-model.md", 30)] {
        let text = std::fs::read_to_string(testkit::repository(page)).unwrap();
        let named: Vec<&str> =
            text.split('`').filter(|word| word.contains("::") && !word.contains([' ', '"', '|'])).collect();
        let tests = named.iter().filter(|name| name.chars().next().is_some_and(char::is_lowercase));
        let mut count = 0;
        for name in tests {
            let (module, test) = name.rsplit_once("::").unwrap();
            // Some stand beside the code.
            let beside = ["feed::", "ext_authz::"].iter().any(|prefix| module.starts_with(prefix));
            let folder = testkit::repository(if beside { "src" } else { "tests" });
            let file = folder.join(module.replace("::", "/")).with_extension("rs");
            let text = std::fs::read_to_string(&file).unwrap_or_else(|_| panic!("{page}: no file of `{name}`"));
            assert!(text.contains(&format!("fn {test}(")), "{page}: no test `{name}`");
            count += 1;
        }
        assert!(count >= least, "{page}: {count} tests named");
    }
}
