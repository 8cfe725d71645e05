//! The arrows of ARCHITECTURE.md are those of the code: a module imports what its row of the table allows, and nothing leads back
//! to itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use testkit::repository;

/// What everything may import, as the page says below the table.
const BASE: [&str; 6] = ["claim_path", "problem", "strict_json", "terminal", "units", "yaml"];

/// Modules by name, with the modules that their files import.
type Arrows = BTreeMap<String, BTreeSet<String>>;

/// The words in backticks.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Which modules a file imports, its tests left out.
fn imports(text: &str) -> BTreeSet<String> {
    let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
    let code: String =
        code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let name =
        |text: &str| text.trim_start().split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap().to_owned();
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            // The names at the top of the list; those within are of the modules themselves.
            Some(list) => {
                let mut depth = 0;
                for part in list.split_inclusive([',', '{', '}']) {
                    if depth == 0 {
                        found.insert(name(part));
                    }
                    for c in part.chars() {
                        depth += i32::from(c == '{') - i32::from(c == '}');
                    }
                    if depth < 0 {
                        break;
                    }
                }
            }
            None => _ = found.insert(name(rest)),
        }
    }
    found.retain(|module| !module.is_empty());
    found
}

fn read(folder: &Path, module: Option<&str>, arrows: &mut Arrows) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let module = module.unwrap_or(&stem).to_owned();
        // Files that are tests as a whole.
        if ["tests", "properties", "simulation", "signer", "lib", "main"].contains(&stem.as_str()) {
            continue;
        }
        if path.is_dir() {
            read(&path, Some(&module), arrows);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let found = imports(&fs::read_to_string(&path).unwrap());
            arrows.entry(module.clone()).or_default().extend(found.into_iter().filter(|other| *other != module));
        }
    }
}

fn arrows() -> Arrows {
    let mut arrows = Arrows::new();
    read(&repository("src"), None, &mut arrows);
    let modules: BTreeSet<String> = arrows.keys().cloned().collect();
    arrows.values_mut().for_each(|imported| imported.retain(|module| modules.contains(module)));
    arrows
}

#[test]
fn modules_import_what_the_page_allows() {
    let page = fs::read_to_string(repository("ARCHITECTURE.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| `")).map(|line| line.split(" | ").collect::<Vec<_>>());
    let mut allowed = Arrows::new();
    for row in rows {
        let [modules, _, may] = row.as_slice() else { panic!("{row:?}") };
        quoted(modules).into_iter().for_each(|module| _ = allowed.insert(module, quoted(may)));
    }
    let arrows = arrows();
    assert!(arrows.len() > 15, "{arrows:?}");
    for (module, imported) in &arrows {
        let may = allowed.get(module).unwrap_or_else(|| panic!("ARCHITECTURE.md has no row of `{module}`"));
        let beyond: Vec<_> =
            imported.iter().filter(|other| !may.contains(*other) && !BASE.contains(&other.as_str())).collect();
        assert!(beyond.is_empty(), "`{module}` imports {beyond:?}, which its row in ARCHITECTURE.md does not allow");
    }
}

#[test]
fn no_arrow_leads_back() {
    let mut arrows = arrows();
    // What imports nothing that is left is at the bottom; what is left in the end is in a circle.
    while let Some(bottom) = arrows.iter().find(|(_, imported)| imported.is_empty()).map(|(module, _)| module.clone()) {
        arrows.remove(&bottom);
        arrows.values_mut().for_each(|imported| _ = imported.remove(&bottom));
    }
    assert!(arrows.is_empty(), "in a circle: {arrows:?}");
}

#[test]
fn imports_are_found_in_lists_too() {
    let text = "use crate::policy::{Files, model};\nuse crate::{admin, feed::{cedar, files}, x};\n// crate::no\nfn f() { crate::units::g() }\n\
                #[cfg(test)]\nmod tests { use crate::app; }\n";
    let expected = ["admin", "feed", "policy", "units", "x"].map(str::to_owned);
    assert_eq!(imports(text), expected.into());
}
