//! A file of entities. Cedar reads it against the schema; but it passes over members that it does not know, and of two with
//! one name it takes the last, so those are refused here.

use std::sync::Arc;

use serde_json::Value as Json;

use crate::problem::{Problem, SourceFile};
use crate::strict_json;
use crate::yaml::suggest;

const ENTITY: [&str; 4] = ["uid", "attrs", "parents", "tags"];
const UID: [&str; 2] = ["type", "id"];
const ESCAPED: [&str; 1] = ["__entity"];

/// What is wrong with a file of entities before anything is known of the schema.
pub(super) fn check(source: &Arc<SourceFile>) -> Vec<Problem> {
    let json = match strict_json::parse(source) {
        Ok(json) => json,
        Err(problem) => return vec![problem],
    };
    let mut problems = Vec::new();
    // What is no list of objects Cedar refuses, in better words.
    for entity in json.as_array().into_iter().flatten() {
        only(entity, &ENTITY, "an entity", source, &mut problems);
        let parents = entity.get("parents").and_then(Json::as_array).into_iter().flatten();
        for uid in entity.get("uid").into_iter().chain(parents) {
            match uid.get("__entity") {
                Some(inner) => {
                    only(uid, &ESCAPED, "an escaped entity", source, &mut problems);
                    only(inner, &UID, "the name of an entity", source, &mut problems);
                }
                None => only(uid, &UID, "the name of an entity", source, &mut problems),
            }
        }
    }
    problems
}

fn only(json: &Json, known: &[&str], what: &str, source: &Arc<SourceFile>, problems: &mut Vec<Problem>) {
    let members = json.as_object().into_iter().flatten();
    for (name, _) in members.filter(|(name, _)| !known.contains(&name.as_str())) {
        let problem = Problem::error(format!("{what} has no `{name}`")).hint(suggest(name, known));
        problems.push(problem.at(source, strict_json::member(source, name)));
    }
}
