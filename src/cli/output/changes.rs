//! What a new bundle changes.

use std::fmt::Write;

use super::count;
use crate::policy::{Files, PolicyDiff, Snapshot};
use crate::problem;
use crate::publish::Session;
use crate::store::statement::Manifest;
use crate::terminal::clean_line;

/// What differs from the bundle in force. `size` is that of the new one, packed.
pub(crate) async fn since(
    session: &Session,
    current: Option<&Manifest>,
    files: &[Files],
    snapshot: &Snapshot,
    size: u64,
) -> String {
    let Some(current) = current else {
        return format!("the first bundle of the store: {}, {size} bytes\n", count(snapshot.policy_count(), "policy"));
    };
    let old = match session.files(current).await {
        Ok(old) => old,
        Err(error) => return format!("{} is in force, but cannot be compared: {error}\n", current.version),
    };
    match Snapshot::compile(&old, None, &mut Default::default()) {
        Ok(before) => {
            let difference = PolicyDiff::between(&before, snapshot);
            format!("changes since {}:\n{}", current.version, describe(&difference, &other_files(&old, files)))
        }
        Err(problems) => {
            let problems = problem::one_line(&problems);
            format!("{} is in force, but is not valid here, and cannot be compared: {problems}\n", current.version)
        }
    }
}

/// How many names of a kind are shown.
const SHOWN: usize = 50;

fn describe(difference: &PolicyDiff, files: &[String]) -> String {
    let PolicyDiff { added, removed, modified, schema, entities } = difference;
    let mut text =
        format!("  policies: {} added, {} removed, {} modified\n", added.len(), removed.len(), modified.len());
    for (sign, names) in [('+', added), ('-', removed), ('~', modified)] {
        for name in names.iter().take(SHOWN) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "    {sign} {}", clean_line(name));
        }
        let more = names.len().saturating_sub(SHOWN);
        if more > 0 {
            let _ = writeln!(text, "    {sign} and {more} more");
        }
    }
    if *schema {
        text += "  schema: changed\n";
    }
    if !entities.is_empty() {
        let _ = writeln!(text, "  entities: {} added, removed or modified", entities.len());
    }
    if !files.is_empty() {
        let _ = writeln!(text, "  other files: {}", files.join(", "));
    }
    text
}

/// The files that differ, beside policies and schemas: routes, denials, whatever else a bundle holds.
fn other_files(old: &[Files], new: &[Files]) -> Vec<String> {
    let several = old.len().max(new.len()) > 1;
    let mut differing = Vec::new();
    for at in 0..old.len().max(new.len()) {
        let text = |side: &[Files], path: &String| side.get(at).and_then(|files| files.files.get(path)).cloned();
        let paths = [old, new].into_iter().filter_map(|side| side.get(at)).flat_map(|files| files.files.keys());
        let mut paths: Vec<&String> =
            paths.filter(|path| !path.ends_with(".cedar") && !path.ends_with(".cedarschema")).collect();
        paths.sort();
        paths.dedup();
        let other = paths.into_iter().filter(|path| text(old, path) != text(new, path));
        differing.extend(other.map(|path| if several { format!("{at}/{path}") } else { path.clone() }));
    }
    differing
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    fn files(entries: &[(&str, &str)]) -> Files {
        let files = entries.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        Files { root: "test".to_owned(), files, changed: None }
    }

    #[test]
    fn files_that_are_no_policies_are_named() {
        let old = files(&[("a.cedar", "1"), ("routes.yaml", "1"), ("same.json", "1"), ("gone.json", "1")]);
        let new = files(&[("a.cedar", "2"), ("routes.yaml", "2"), ("same.json", "1"), ("new.json", "1")]);
        assert_eq!(other_files(from_ref(&old), from_ref(&new)), ["gone.json", "new.json", "routes.yaml"]);
        assert_eq!(other_files(from_ref(&old), &[old.clone(), new])[0], "1/new.json");
        assert!(other_files(from_ref(&old), from_ref(&old)).is_empty());
    }

    #[test]
    fn changes_are_named() {
        let difference = PolicyDiff {
            added: vec!["shop/a".to_owned()],
            removed: Vec::new(),
            modified: (0..51).map(|n| format!("shop/{n}")).collect(),
            schema: true,
            entities: vec!["User::\"x\"".to_owned()],
        };
        let text = describe(&difference, &["routes.yaml".to_owned()]);
        assert!(
            text.starts_with("  policies: 1 added, 0 removed, 51 modified\n    + shop/a\n    ~ shop/0\n"),
            "{text}"
        );
        assert!(text.ends_with("    ~ and 1 more\n  schema: changed\n  entities: 1 added, removed or modified\n  other files: routes.yaml\n"), "{text}");
    }
}
