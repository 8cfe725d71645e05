//! Edits of the list of overlays: each makes a new statement of all that are in force.

use std::time::{Duration, SystemTime};

use super::Error;
use crate::store::StoreName;
use crate::store::statement::{OverlayEffect, OverlayEntry, Overlays, Timestamp, Version};

/// What is to become of the list.
#[derive(Debug, Clone)]
pub enum Edit {
    /// One more.
    Add(OverlayEntry),
    /// One ends before its time, by its id.
    End(String),
}

/// The statement that follows `current`: without those that are over, and edited.
///
/// # Errors
/// If there is nothing to end.
pub fn edited(
    current: Option<&Overlays>,
    edit: &Edit,
    store: &StoreName,
    publisher: &str,
    now: SystemTime,
) -> Result<Overlays, Error> {
    let mut overlays: Vec<OverlayEntry> = current.map(|own| own.overlays.clone()).unwrap_or_default();
    overlays.retain(|entry| entry.until.0 > now);
    match edit {
        Edit::Add(entry) => overlays.push(entry.clone()),
        Edit::End(id) => {
            let before = overlays.len();
            overlays.retain(|entry| entry.id != *id);
            if overlays.len() == before {
                return Err(Error::NoOverlay(id.clone()));
            }
        }
    }
    Ok(Overlays {
        store: store.clone(),
        version: current.map_or_else(|| Version::first(now), |own| own.version.next()),
        published_at: Timestamp(now),
        publisher: publisher.to_owned(),
        overlays,
    })
}

/// A name for a new one: what it does, the day, and six random characters.
pub fn new_id(effect: OverlayEffect, now: SystemTime) -> String {
    let word = match effect {
        OverlayEffect::Deny => "deny",
        OverlayEffect::Grant => "grant",
    };
    let date: String = Timestamp(now).to_string().chars().take(10).filter(|c| *c != '-').collect();
    // No vowels, so no words; none that look like another.
    let letters: Vec<char> = "bcdfghjkmnpqrstvwxz23456789".chars().collect();
    let random: String = (0..6).filter_map(|_| fastrand::choice(&letters)).collect();
    format!("{word}-{date}-{random}")
}

/// The line for people: what it does, to whom, until when, and why.
pub fn describe(entry: &OverlayEntry, now: SystemTime) -> String {
    let any = |value: &Option<String>| value.clone().unwrap_or_else(|| "any".to_owned());
    let word = match entry.effect {
        OverlayEffect::Deny => "deny",
        OverlayEffect::Grant => "grant",
    };
    let left = entry.until.0.duration_since(now).unwrap_or_default();
    let left = humantime::format_duration(Duration::from_secs(left.as_secs()));
    let approved = entry.approved_by.as_ref().map(|who| format!(", approved by {who}")).unwrap_or_default();
    format!(
        "{}: {word} principal {}, action {}, resource {}; {left} left, until {}; by {}{approved}: {}",
        entry.id,
        any(&entry.principal),
        any(&entry.action),
        any(&entry.resource),
        entry.until,
        entry.issuer,
        entry.reason
    )
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn entry(id: &str, until: u64) -> OverlayEntry {
        OverlayEntry {
            id: id.to_owned(),
            effect: OverlayEffect::Deny,
            principal: Some("User::\"mallory\"".to_owned()),
            action: None,
            resource: None,
            from: Timestamp(at(0)),
            until: Timestamp(at(until)),
            reason: "stolen laptop".to_owned(),
            issuer: "sre".to_owned(),
            approved_by: None,
        }
    }

    fn ids(overlays: &Overlays) -> Vec<&str> {
        overlays.overlays.iter().map(|entry| entry.id.as_str()).collect()
    }

    #[test]
    fn each_edit_is_a_statement_of_all_that_is_in_force() {
        let store = StoreName::try_from_text("prod".to_owned()).expect("a name");
        let edit = |current: Option<&Overlays>, edit: Edit, now| edited(current, &edit, &store, "sre", at(now));
        let first = edit(None, Edit::Add(entry("a", 100)), 10).expect("a statement");
        assert_eq!((first.version, ids(&first)), (Version { epoch: 10, generation: 1 }, vec!["a"]));
        let second = edit(Some(&first), Edit::Add(entry("b", 200)), 20).expect("a statement");
        assert_eq!((second.version, ids(&second)), (Version { epoch: 10, generation: 2 }, vec!["a", "b"]));
        let third = edit(Some(&second), Edit::Add(entry("c", 300)), 100).expect("a statement");
        assert_eq!(ids(&third), ["b", "c"], "`a` is over at 100");
        let fourth = edit(Some(&third), Edit::End("b".to_owned()), 110).expect("a statement");
        assert_eq!((fourth.version.generation, ids(&fourth)), (4, vec!["c"]));
        let error = edit(Some(&fourth), Edit::End("b".to_owned()), 120).expect_err("it ended").to_string();
        assert!(error.contains("no overlay `b`"), "{error}");
    }

    #[test]
    fn names_say_what_and_when() {
        let id = new_id(OverlayEffect::Deny, at(1_700_000_000));
        assert!(id.starts_with("deny-20231114-") && id.len() == "deny-20231114-".len() + 6, "{id}");
        assert_ne!(id, new_id(OverlayEffect::Deny, at(1_700_000_000)));
        assert!(OverlayEntry { id, ..entry("", 1) }.read().is_ok());
    }

    #[test]
    fn a_line_says_all_of_it() {
        let line = describe(&entry("a", 3700), at(100));
        assert!(line.starts_with("a: deny principal User::\"mallory\", action any, resource any; 1h left"), "{line}");
        assert!(line.ends_with("by sre: stolen laptop"), "{line}");
    }
}
