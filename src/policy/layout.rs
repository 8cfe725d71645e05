//! What each file of a bundle is, by its path: read, plainly somebody else's, or an error. A rule in a file that nobody
//! reads is not in force, and nobody would notice; so a file that is in no place where anything reads it is an error, which
//! names the nearest place that something would.

use crate::problem::{Problem, SourceFile};

/// What a file of a bundle is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// `bundle.yaml`
    Header,
    /// Cedar's schema.
    Schema(Form),
    /// Policies and templates; in JSON links, too.
    Policies(Form),
    /// Links of templates.
    Links,
    /// Entities.
    Entities,
    /// `routes.yaml`
    Routes,
    /// A file of tests.
    Tests,
    /// A request that tests are about.
    Request,
    /// What stands beside: README, LICENSE, OWNERS. Never read.
    Foreign,
}

/// The two forms that Cedar has for schemas and policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// What people write.
    Cedar,
    /// What programs write.
    Json,
}

/// What is read, for whoever has nothing of it.
pub const READ: &str = "`bundle.yaml`, `routes.yaml`, `policies/*.cedar`, `schema.cedarschema`, `entities/*.json`, \
                        `tests/*.yaml`; policies/README.md has the whole list";

/// What a file is that nothing reads.
#[derive(Debug, PartialEq, Eq)]
pub struct Stray {
    /// What is wrong with it.
    pub message: &'static str,
    /// The nearest thing that would be read.
    pub hint: String,
}

impl FileKind {
    /// What the file at this path is, relative to its bundle.
    ///
    /// # Errors
    /// If nothing reads it.
    pub fn of(path: &str) -> Result<Self, Stray> {
        let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
        let folder = folders.split('/').next().unwrap_or("");
        let at_root = folders.is_empty();
        let read = match name {
            "bundle.yaml" if at_root => Some(Self::Header),
            "routes.yaml" if at_root => Some(Self::Routes),
            "entities.json" if at_root => Some(Self::Entities),
            _ if name.ends_with("links.json") && (at_root || folder == "policies") => Some(Self::Links),
            _ if folder == "entities" && is(name, ".json") => Some(Self::Entities),
            _ if folder == "tests" && is(name, ".yaml") => Some(Self::Tests),
            _ if folder == "tests" && is(name, ".json") => Some(Self::Request),
            _ => schema(name, at_root, folder).or_else(|| policies(name, at_root, folder)),
        };
        match read {
            Some(kind) => Ok(kind),
            None if is_foreign(name) => Ok(Self::Foreign),
            None => Err(Stray::of(path)),
        }
    }

    /// Whether a hidden file is one that would be read under its name without the dot. What editors (`.#x`, `.x.swp`),
    /// macOS (`._x`) and the kubelet (`..data`) hide is none.
    pub fn is_hidden_one(path: &str) -> bool {
        let (folders, name) = path.rsplit_once('/').map_or(("", path), |(folders, name)| (folders, name));
        let Some(bare) = name.strip_prefix('.').filter(|bare| !bare.starts_with(['.', '#', '_'])) else { return false };
        let bare = if folders.is_empty() { bare.to_owned() } else { format!("{folders}/{bare}") };
        Self::of(&bare).is_ok_and(|kind| kind != Self::Foreign)
    }
}

/// Whether a name is one with this ending, and more than the ending.
fn is(name: &str, ending: &str) -> bool {
    name.strip_suffix(ending).is_some_and(|stem| !stem.is_empty())
}

fn schema(name: &str, at_root: bool, folder: &str) -> Option<FileKind> {
    let in_folder = folder == "schemas";
    match () {
        () if !at_root && !in_folder => None,
        () if is(name, ".cedarschema") => Some(FileKind::Schema(Form::Cedar)),
        () if is(name, ".cedarschema.json") => Some(FileKind::Schema(Form::Json)),
        () => None,
    }
}

fn policies(name: &str, at_root: bool, folder: &str) -> Option<FileKind> {
    let in_folder = folder == "policies";
    match () {
        () if !at_root && !in_folder => None,
        () if name.ends_with(".cedarschema.json") => None,
        () if is(name, ".cedar") => Some(FileKind::Policies(Form::Cedar)),
        () if is(name, ".cedar.json") || (in_folder && is(name, ".json")) => Some(FileKind::Policies(Form::Json)),
        () => None,
    }
}

/// Files that repositories have everywhere, and that no one takes for a rule.
fn is_foreign(name: &str) -> bool {
    const NAMES: [&str; 8] =
        ["readme", "license", "licence", "notice", "changelog", "contributing", "owners", "codeowners"];
    const EXACT: [&str; 3] = ["Makefile", "Dockerfile", "Jenkinsfile"];
    let lower = name.to_ascii_lowercase();
    let (stem, ending) = lower.split_once('.').unwrap_or((&lower, ""));
    let is_text = ["", "md", "txt", "rst", "adoc"].contains(&ending);
    (NAMES.contains(&stem) && is_text) || lower.ends_with(".md") || EXACT.contains(&name)
}

// === strays ===

/// What editors and tools leave beside a file.
const LEFTOVERS: [&str; 12] =
    ["~", ".swp", ".swo", ".swx", ".bak", ".orig", ".rej", ".tmp", ".old", ".save", ".disabled", ".off"];

impl Stray {
    fn of(path: &str) -> Self {
        let name = path.rsplit('/').next().unwrap_or(path);
        let lower = name.to_ascii_lowercase();
        let is_leftover =
            LEFTOVERS.iter().any(|ending| lower.ends_with(ending)) || name.starts_with('#') || name == "4913";
        if is_leftover {
            let hint = "remove it; a rule that is not to count has no place in a bundle".to_owned();
            return Self { message: "nothing reads what editors and tools leave behind", hint };
        }
        let hint = match nearest(path) {
            Some(nearest) => format!("`{nearest}` would be read; or list it under `ignore` in bundle.yaml"),
            None => format!("what is read: {READ}; or list it under `ignore` in bundle.yaml"),
        };
        Self { message: "nothing reads this file", hint }
    }

    /// The problem, with the file that it is about.
    pub fn problem(&self, root: &str, path: &str) -> Problem {
        let file = SourceFile::new(format!("{}/{path}", root.trim_end_matches('/')), "");
        Problem::error(self.message).hint(self.hint.clone()).in_file(&file)
    }
}

/// The path that is most like this one and would be read.
fn nearest(path: &str) -> Option<String> {
    let lower = path.to_ascii_lowercase();
    let (folders, name) = lower.rsplit_once('/').unwrap_or(("", &lower));
    let folder = folders.split('/').next().unwrap_or("");
    let folders = [("policies", "policy"), ("schemas", "schema"), ("entities", "entity"), ("tests", "test")];
    let top = folders.into_iter().find(|(many, one)| near(folder, many) || near(folder, one)).map(|(many, _)| many);
    // `rules.cedar.txt`: what is before the first dot is the name, whatever comes after it.
    let (stem, endings) = name.split_once('.').unwrap_or((name, ""));
    let stem = if stem.is_empty() { "x" } else { stem };
    let whole = ["bundle.yaml", "routes.yaml", "links.json", "entities.json"];
    let whole = whole.into_iter().find(|known| near(name, known) || Some(stem) == known.split('.').next());
    let mut parts = endings.split('.');
    let first = parts.next().unwrap_or("");
    let is_json = endings.split('.').any(|part| near(part, "json"));
    let json = if is_json { ".json" } else { "" };
    let candidate = if near(first, "cedarschema") {
        format!("schemas/{stem}.cedarschema{json}")
    } else if near(first, "cedar") {
        format!("policies/{stem}.cedar{json}")
    } else {
        match (whole, top) {
            (Some(whole), None) => whole.to_owned(),
            (_, Some("tests")) if is_json => format!("tests/{stem}.json"),
            (_, Some("tests")) => format!("tests/{stem}.yaml"),
            (_, Some("entities")) => format!("entities/{stem}.json"),
            (_, Some("schemas")) => format!("schemas/{stem}.cedarschema{json}"),
            (_, Some("policies")) => format!("policies/{stem}.cedar{json}"),
            _ if is_json && stem.contains("schema") => format!("schemas/{stem}.cedarschema.json"),
            _ if is_json && stem.contains("polic") => format!("policies/{stem}.json"),
            _ if is_json && stem.contains("entit") => format!("entities/{stem}.json"),
            _ => return None,
        }
    };
    FileKind::of(&candidate).is_ok().then_some(candidate)
}

fn near(word: &str, known: &str) -> bool {
    word == known || (!word.is_empty() && strsim::damerau_levenshtein(word, known) <= known.len().div_ceil(4).min(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::slips::slips;

    /// Paths that are read, of every kind.
    const KNOWN: [&str; 17] = [
        "bundle.yaml",
        "routes.yaml",
        "links.json",
        "entities.json",
        "deny.cedar",
        "policies/deny.cedar",
        "policies/deep/deny.cedar",
        "deny.cedar.json",
        "policies/deny.cedar.json",
        "policies/deny.json",
        "policies/links.json",
        "schema.cedarschema",
        "schema.cedarschema.json",
        "schemas/shop.cedarschema",
        "entities/groups.json",
        "tests/shop.yaml",
        "tests/requests/view.json",
    ];

    /// Slips of the keyboard, of the shell and of memory: a letter dropped, doubled, swapped or in the other case, and other
    /// endings and folders.
    fn near_misses(path: &str) -> Vec<String> {
        let mut all = slips(path);
        for ending in ["~", ".txt", ".bak", ".swp", ".disabled", ".gz", ".yml", ".jsonc", ".json5", "c", " ", "."] {
            all.push(format!("{path}{ending}"));
        }
        let (stem, _) = path.rsplit_once('.').expect("an ending");
        all.extend(
            ["yml", "jsonc", "json5", "toml", "cedr", "ceder", "rego", "polar", ""].map(|e| format!("{stem}.{e}")),
        );
        all.extend(["policy/", "rules/", "src/", "bundle/"].map(|folder| format!("{folder}{path}")));
        all
    }

    #[test]
    fn a_slip_is_read_or_refused_and_never_passed_over() {
        let mut refused = 0;
        for path in KNOWN {
            assert!(FileKind::of(path).is_ok_and(|kind| kind != FileKind::Foreign), "{path}");
            for slip in near_misses(path) {
                match FileKind::of(&slip) {
                    Ok(kind) => assert_ne!(kind, FileKind::Foreign, "{slip}"),
                    Err(stray) => {
                        refused += 1;
                        // Where it names a path, that one is read.
                        let named = stray.hint.split('`').nth(1);
                        let is_read = named.is_some_and(|named| FileKind::of(named).is_ok());
                        assert!(is_read || stray.hint.starts_with("remove it"), "{slip}: {stray:?}");
                    }
                }
            }
        }
        assert!(refused > 1000, "{refused}");
    }

    #[test]
    fn the_nearest_is_named() {
        for (path, nearest) in [
            ("policies/deny.CEDAR", "policies/deny.cedar"),
            ("x.cedar.txt", "policies/x.cedar"),
            ("policy/x.cedar", "policies/x.cedar"),
            ("polices/x.json", "policies/x.cedar.json"),
            ("policies/x.cedr", "policies/x.cedar"),
            ("policies/s.cedarschema", "schemas/s.cedarschema"),
            ("schema/s.cedarschema.json", "schemas/s.cedarschema.json"),
            ("entities/x.jsonc", "entities/x.json"),
            ("entity/x.json", "entities/x.json"),
            ("config/links.json", "links.json"),
            ("tests/x.yml", "tests/x.yaml"),
            ("tests/x.yaml.txt", "tests/x.yaml"),
            ("test/x.json", "tests/x.json"),
            ("Bundle.yaml", "bundle.yaml"),
            ("bundle.yml", "bundle.yaml"),
            ("Routes.yaml", "routes.yaml"),
            ("conf/routes.yaml", "routes.yaml"),
            ("schema.json", "schemas/schema.cedarschema.json"),
        ] {
            let stray = FileKind::of(path).expect_err(path);
            assert_eq!(stray.hint.split('`').nth(1), Some(nearest), "{path}: {stray:?}");
        }
    }

    #[test]
    fn what_people_put_beside_is_left_alone() {
        for path in ["README.md", "docs/why.md", "LICENSE", "policies/README", "OWNERS", "CODEOWNERS", "Makefile"] {
            assert_eq!(FileKind::of(path), Ok(FileKind::Foreign), "{path}");
        }
        for path in ["readme.cedar", "policies/owners.json", "license.cedar.json"] {
            assert!(matches!(FileKind::of(path), Ok(FileKind::Policies(_))), "{path}");
        }
        for (path, hidden) in [
            (".deny.cedar", true),
            ("policies/.deny.cedar", true),
            (".routes.yaml", true),
            (".deny.cedar.swp", false),
            (".#deny.cedar", false),
            ("._deny.cedar", false),
            ("..data", false),
            (".gitlab-ci.yml", false),
        ] {
            assert_eq!(FileKind::is_hidden_one(path), hidden, "{path}");
        }
    }
}
