//! Overlays: emergency denials and time-boxed exceptions beside the policies of bundles.

use std::slice;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proptest::prelude::any;
use stockade::model::{
    Attributes, Decision, Effect, EntityId, EntityUid, Overlay, PolicyId, Principal, Proof, Published, Query, Reason,
};
use stockade::policy::{Files, Snapshot};

use crate::fixture::{compile, files, holds, problems, shop, succeeding};

/// Anna and Bert are of the staff, Bert and whoever has a token that says so are admins, which are staff as well.
const ENTITIES: &str = r#"[
    {"uid": {"type": "Group", "id": "admins"}, "attrs": {}, "parents": [{"type": "Group", "id": "staff"}]},
    {"uid": {"type": "User", "id": "anna"}, "attrs": {}, "parents": [{"type": "Group", "id": "staff"}]},
    {"uid": {"type": "User", "id": "bert"}, "attrs": {}, "parents": [{"type": "Group", "id": "admins"}]},
    {"uid": {"type": "Service", "id": "shop"}, "attrs": {}, "parents": [{"type": "Service", "id": "shops"}]}
]"#;

/// Staff may read; nobody may delete, with a denial of its own.
const RULES: &str = r#"
    @id("staff-reads") permit (principal in Group::"staff", action in Action::"read", resource);
    @id("no-deletes") @status("405") forbid (principal, action == Action::"DELETE", resource);
    @id("no-traces") forbid (principal is User, action == Action::"TRACE", resource) when { context.path like "*" };
"#;

fn bundle() -> Files {
    shop(&[("entities.json", ENTITIES), ("policies/rules.cedar", RULES)])
}

fn uid(text: &str) -> EntityUid {
    text.parse().unwrap()
}

/// `deny anna: User::"anna" Action::"GET" Service::"shop"`, where `*` is all, as an overlay.
fn overlay(text: &str) -> Overlay {
    let (head, scope) = text.split_once(": ").unwrap();
    let (effect, id) = head.split_once(' ').unwrap();
    let mut sides = scope.split(' ').map(|side| (side != "*").then(|| uid(side)));
    let mut side = || sides.next().unwrap();
    Overlay {
        id: id.to_owned(),
        effect: if effect == "deny" { Effect::Deny } else { Effect::Allow },
        principal: side(),
        action: side(),
        resource: side(),
        from: UNIX_EPOCH,
        until: UNIX_EPOCH + Duration::from_secs(4_000_000_000),
        reason: "because".to_owned(),
    }
}

fn overlays(texts: &[&str]) -> Vec<Overlay> {
    texts.iter().map(|text| overlay(text)).collect()
}

/// Somebody does something to the shop: `anna GET`, or `carl+admins GET` for one whose token names a group.
fn asks(text: &str) -> Query {
    let (who, action) = text.split_once(' ').unwrap();
    let (user, groups) = who.split_once('+').unwrap_or((who, ""));
    let parents = groups.split_terminator(',').map(|group| entity("Group", group)).collect();
    Query {
        principal: Principal { uid: entity("User", user), attributes: Attributes::new(), parents, proof: Proof::Jwt },
        action: entity("Action", action),
        resource: entity("Service", "shop"),
        context: Attributes::from([("path".into(), stockade::model::Value::String("/".into()))]),
    }
}

fn entity(entity_type: &str, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(entity_type.parse().unwrap(), EntityId::new(id))
}

/// Such as `allow shop/a, shop/b`, or `deny default_deny`.
fn told(decision: &Decision) -> String {
    let ids: Vec<String> = decision.determining.iter().map(ToString::to_string).collect();
    let why = if decision.reason == Reason::Policy { ids.join(", ") } else { decision.reason.as_str().to_owned() };
    format!("{} {why}", decision.effect.as_str())
}

fn decided(snapshot: &Snapshot, ask: &str) -> String {
    told(&snapshot.decide(&asks(ask)).unwrap())
}

#[test]
fn an_overlay_is_about_what_it_names() {
    let base = compile(&[bundle()]);
    let untouched = "allow shop/staff-reads";
    for (overlay, ask, expected) in [
        // Whom.
        ("deny x: User::\"anna\" * *", "anna GET", "deny overlay/x"),
        ("deny x: User::\"anna\" * *", "bert GET", untouched),
        ("deny x: Group::\"staff\" * *", "anna GET", "deny overlay/x"),
        ("deny x: Group::\"staff\" * *", "bert GET", "deny overlay/x"),
        ("deny x: Group::\"admins\" * *", "bert GET", "deny overlay/x"),
        ("deny x: Group::\"admins\" * *", "anna GET", untouched),
        // A group that only the token names.
        ("deny x: Group::\"admins\" * *", "anna+admins GET", "deny overlay/x"),
        ("deny x: Group::\"staff\" * *", "carl+admins GET", "deny overlay/x"),
        ("deny x: Group::\"temps\" * *", "anna+temps GET", "deny overlay/x"),
        // What they do.
        ("deny x: * Action::\"GET\" *", "anna GET", "deny overlay/x"),
        ("deny x: * Action::\"GET\" *", "anna HEAD", untouched),
        ("deny x: * Action::\"read\" *", "anna HEAD", "deny overlay/x"),
        ("deny x: * Action::\"write\" *", "anna HEAD", untouched),
        // What they do it to.
        ("deny x: * * Service::\"shop\"", "anna GET", "deny overlay/x"),
        ("deny x: * * Service::\"shops\"", "anna GET", "deny overlay/x"),
        ("deny x: * * Service::\"shopping\"", "anna GET", untouched),
        // All of it, and everything.
        ("deny x: User::\"anna\" Action::\"GET\" Service::\"shop\"", "anna GET", "deny overlay/x"),
        ("deny x: User::\"anna\" Action::\"GET\" Service::\"shop\"", "anna HEAD", untouched),
        ("deny x: User::\"anna\" Action::\"GET\" Service::\"depot\"", "anna GET", untouched),
        ("deny x: * * *", "anna GET", "deny overlay/x"),
        ("deny x: * * *", "nobody CONNECT", "deny overlay/x"),
        // What no bundle knows meets no request, and is no mistake.
        ("deny x: Robot::\"anna\" * *", "anna GET", untouched),
        ("deny x: * Robots::Action::\"GET\" *", "anna GET", untouched),
        ("deny x: * User::\"anna\" *", "anna GET", untouched),
        ("deny x: * * Bucket::\"shop\"", "anna GET", untouched),
        ("grant x: Robot::\"anna\" * *", "anna POST", "deny default_deny"),
        // A grant permits, beside others.
        ("grant x: User::\"anna\" Action::\"write\" *", "anna POST", "allow overlay/x"),
        ("grant x: User::\"anna\" Action::\"write\" *", "bert POST", "deny default_deny"),
        ("grant x: Group::\"staff\" * *", "anna GET", "allow overlay/x, shop/staff-reads"),
        ("grant z: * * *", "anna GET", "allow overlay/z, shop/staff-reads"),
        // And no more than that: every forbid wins, also one that cannot be evaluated.
        ("grant x: * * *", "anna DELETE", "deny shop/no-deletes"),
        ("deny x: * * *", "anna DELETE", "deny overlay/x, shop/no-deletes"),
        // What the schema does not let anybody do, nobody can be granted.
        ("grant x: * * *", "anna FETCH", "deny unrouted"),
    ] {
        let overlaid = base.overlaid(&[self::overlay(overlay)], None);
        assert_eq!(decided(&overlaid, ask), expected, "{overlay}, {ask}");
        assert_eq!(decided(&overlaid.overlaid(&[], None), ask), decided(&base, ask), "{overlay}, {ask}");
    }
}

#[test]
fn a_grant_overrides_nothing_that_forbids() {
    let errs = "entity User in [Group] { n?: Long };
                action \"GET\" appliesTo { principal: [User], resource: [Service] };";
    let rules = "@id(\"errs\") forbid (principal, action, resource) when { principal has n && principal.n + 1 < 0 };";
    let base = compile(&[shop(&[("s.cedarschema", errs), ("rules.cedar", rules)])]);
    let overlaid = base.overlaid(&overlays(&["grant all: * * *", "deny anna: User::\"anna\" * *"]), None);
    assert_eq!(decided(&overlaid, "anna GET"), "deny overlay/anna");
    assert_eq!(decided(&overlaid, "bert GET"), "allow overlay/all");
    let mut query = asks("bert GET");
    query.principal.attributes.insert("n".into(), stockade::model::Value::Long(i64::MAX));
    assert_eq!(told(&overlaid.decide(&query).unwrap()), "deny policy_error");
}

#[test]
fn a_denial_looks_as_the_bundle_says() {
    let denial = ("bundle.yaml", "name: shop\ndenial: {status: 451, message: not here}");
    let with_denial = files("shop", &[denial, ("entities.json", ENTITIES), ("policies/rules.cedar", RULES)]);
    let first = compile(&[bundle()]).overlaid(&overlays(&["deny all: * * *"]), None);
    let look = |snapshot: &Snapshot, ask: &str| {
        let decision = snapshot.decide(&asks(ask)).unwrap();
        decision.denial.as_ref().map(|denial| (denial.status, denial.message.clone())).unwrap()
    };
    assert_eq!(look(&first, "anna GET"), (403, "access denied".to_owned()));
    // A policy that shapes denials still shapes its own.
    assert_eq!(look(&first, "anna DELETE"), (405, "access denied".to_owned()));
    // The look is that of the bundle in force, not of the one that the overlay was first in force beside.
    let next = succeeding(Some(&first), &[with_denial], first.overlays()).unwrap();
    assert_eq!(look(&next, "anna GET"), (451, "not here".to_owned()));
}

#[test]
fn shadow_policies_see_overlays_as_what_is_in_force() {
    let rules = format!("{RULES} @id(\"maybe\") @mode(\"shadow\") permit (principal, action, resource);");
    let base = compile(&[shop(&[("entities.json", ENTITIES), ("policies/rules.cedar", &rules)])]);
    let overlaid = base.overlaid(&overlays(&["deny anna: User::\"anna\" * *"]), None);
    for (ask, expected, shadow) in [
        ("anna GET", "deny overlay/anna", Effect::Deny),
        ("bert GET", "allow shop/staff-reads", Effect::Allow),
        ("bert POST", "deny default_deny", Effect::Allow),
    ] {
        let decision = overlaid.decide(&asks(ask)).unwrap();
        let found = decision.shadow.as_ref().unwrap();
        assert_eq!((told(&decision).as_str(), found.effect, found.determining.len()), (expected, shadow, 1), "{ask}");
    }
}

/// Ids of people and of overlays are what people wrote.
#[test]
fn ids_are_texts_and_nothing_else() {
    for id in ["o'neil", "\"quoted\"", "back\\slash", "Größe", "\u{1f512}", "a\nb", "", "\"); permit (*", "\0"] {
        is_a_text(id);
    }
    holds(64, any::<String>(), |text| is_a_text(&text));
}

fn is_a_text(text: &str) {
    let base = compile(&[shop(&[("a.cedar", "permit (principal, action == Action::\"GET\", resource);")])]);
    let own = Overlay { id: text.to_owned(), principal: Some(entity("User", text)), ..overlay("deny x: * * *") };
    let overlaid = base.overlaid(slice::from_ref(&own), None);
    let mut query = asks("anna GET");
    assert_eq!(told(&overlaid.decide(&query).unwrap()), "allow shop/a");
    query.principal.uid = entity("User", text);
    let decision = overlaid.decide(&query).unwrap();
    assert_eq!(
        (decision.effect, &decision.determining),
        (Effect::Deny, &vec![PolicyId::new(format!("overlay/{text}"))])
    );
    assert_eq!(overlaid.summary().overlays[0].id, text);
    assert_eq!(overlaid.summary().overlays[0].principal, Some(entity("User", text).to_string()));
}

#[test]
fn two_of_one_id_are_both_in_force() {
    let base = compile(&[bundle()]);
    let both = overlays(&["deny x: User::\"anna\" * *", "deny x: User::\"bert\" * *"]);
    let overlaid = base.overlaid(&both, None);
    assert_eq!(decided(&overlaid, "anna GET"), "deny overlay/x");
    assert_eq!(decided(&overlaid, "bert GET"), "deny overlay/x");
    let one = overlaid.overlaid(&both[1..], None);
    assert_eq!(decided(&one, "anna GET"), "allow shop/staff-reads");
    assert_eq!(decided(&one, "bert GET"), "deny overlay/x");
    // What was decided by the one that is gone is decided anew, though its id is still there.
    let was = overlaid.decide(&asks("anna GET")).unwrap();
    assert!(!one.spares(overlaid.generation, &was.ruling, &asks("anna GET")));
}

/// Which decisions stand: `then` comes after `first`, beside the same bundle and beside a new version that decides alike.
#[test]
fn what_is_remembered_stands_unless_an_overlay_can_have_altered_it() {
    let base = compile(&[bundle()]);
    let anna = "deny x: User::\"anna\" * *";
    for (first, then, ask, stands) in [
        (&[][..], &[anna][..], "anna GET", false),
        (&[], &[anna], "anna+temps POST", false),
        (&[], &[anna], "bert GET", true),
        (&[anna], &[], "anna GET", false),
        (&[anna], &[], "bert GET", true),
        (&[anna], &[anna], "anna GET", true),
        (&[anna], &["deny y: User::\"anna\" * *"], "anna GET", false),
        (&[anna], &["deny x: User::\"anna\" Action::\"GET\" *"], "anna GET", false),
        (&[anna], &["deny x: User::\"bert\" * *"], "carl POST", true),
        (&[anna], &["grant x: User::\"anna\" * *"], "anna GET", false),
        (&[], &["deny x: Group::\"admins\" * *"], "bert GET", false),
        (&[], &["deny x: Group::\"admins\" * *"], "carl+admins GET", false),
        (&[], &["deny x: Group::\"admins\" * *"], "anna GET", true),
        (&[], &["deny x: * Action::\"read\" *"], "anna GET", false),
        (&[], &["deny x: * Action::\"read\" *"], "anna POST", true),
        (&[], &["deny x: Robot::\"anna\" * *"], "anna GET", true),
        (&[], &["grant x: User::\"anna\" * *"], "anna POST", false),
        (&[], &["grant x: User::\"anna\" * *"], "bert POST", true),
        // Out of scope of what comes, and determined by something else than what goes.
        (&["grant x: User::\"anna\" * *"], &[], "anna DELETE", true),
    ] {
        let before = base.overlaid(&overlays(first), None);
        let ruling = before.decide(&asks(ask)).unwrap().ruling;
        let case = format!("{first:?}, {then:?}, {ask}");
        let after = before.overlaid(&overlays(then), None);
        assert_eq!(after.generation, before.generation + 1);
        assert_eq!(after.spares(before.generation, &ruling, &asks(ask)), stands, "{case}");
        // The same with a new version of the bundle at once.
        let remark = RULES.replace("\n", "\n// remark\n");
        let files = shop(&[("entities.json", ENTITIES), ("policies/rules.cedar", &remark)]);
        let after = succeeding(Some(&before), &[files], &overlays(then)).unwrap();
        assert_eq!(after.generation, before.generation + 1);
        assert_eq!(after.spares(before.generation, &ruling, &asks(ask)), stands, "{case}, with bundles");
        if stands {
            assert_eq!(*after.decide(&asks(ask)).unwrap().ruling, *ruling, "{case}");
        }
    }
}

#[test]
fn overlays_outlive_bundles_and_are_there_from_the_start() {
    let denial = overlays(&["deny anna: User::\"anna\" * *"]);
    let first = succeeding(None, &[bundle()], &denial).unwrap();
    assert_eq!((first.generation, decided(&first, "anna GET").as_str()), (1, "deny overlay/anna"));
    let permits = shop(&[("all.cedar", "permit (principal is User, action, resource);")]);
    let next = succeeding(Some(&first), slice::from_ref(&permits), &denial).unwrap();
    assert_eq!((next.generation, decided(&next, "anna GET").as_str()), (2, "deny overlay/anna"));
    assert_eq!(next.overlays(), denial);
    let bad = shop(&[("all.cedar", "permit (principal is User, action, resource")]);
    assert!(succeeding(Some(&next), &[bad], &denial).is_err());
    let free = succeeding(Some(&next), &[permits], &[]).unwrap();
    assert_eq!((free.generation, decided(&free, "anna GET").as_str()), (3, "allow shop/all"));
}

/// A denial comes, and another one, while new bundles are being compiled.
#[test]
fn a_denial_does_not_wait_for_bundles_that_are_compiled() {
    let first = compile(&[bundle()]);
    let permits = shop(&[("entities.json", ENTITIES), ("all.cedar", "permit (principal is User, action, resource);")]);
    let compiled = succeeding(None, &[permits], &[]).unwrap();
    let denials = overlays(&["deny anna: User::\"anna\" * *", "deny bert: User::\"bert\" * *"]);
    let second = first.overlaid(&denials[..1], None);
    let third = second.overlaid(&denials, None);
    let ruling = |ask| third.decide(&asks(ask)).unwrap().ruling;
    let (anna, carl) = (ruling("anna GET"), ruling("carl GET"));
    let last = compiled.succeeding(Some(&third), &denials);
    assert_eq!(last.generation, 4);
    assert_eq!(
        ["anna GET", "bert GET", "carl GET"].map(|ask| decided(&last, ask)),
        ["deny overlay/anna", "deny overlay/bert", "allow shop/all"]
    );
    // Changes lead there from what it took the place of.
    assert!(!last.spares(3, &carl, &asks("carl GET")) && !last.spares(3, &anna, &asks("anna GET")));
    let same =
        Snapshot::compile(&[bundle()], None, &mut Default::default()).unwrap().succeeding(Some(&third), &denials);
    assert!(same.spares(3, &carl, &asks("carl GET")) && same.spares(3, &anna, &asks("anna GET")));
    let first_known = first.decide(&asks("anna GET")).unwrap().ruling;
    assert!(!same.spares(1, &first_known, &asks("anna GET")) && same.spares(1, &carl, &asks("carl GET")));
}

#[test]
fn a_snapshot_says_which_overlays_are_in_force() {
    let mut two = overlays(&["deny z: User::\"anna\" * *", "grant a: * Action::\"GET\" Service::\"shop\""]);
    two[1].until = SystemTime::now() + Duration::from_secs(u64::from(u32::MAX) * 1_000);
    two[1].reason = "INC-7, \"approved\"".to_owned();
    let snapshot = compile(&[bundle()]).overlaid(&two, None);
    let summary = snapshot.summary();
    let shown = serde_json::to_value(&summary.overlays).unwrap();
    assert_eq!(
        shown,
        serde_json::json!([
            {
                "id": "a", "effect": "grant", "principal": null, "action": "Action::\"GET\"",
                "resource": "Service::\"shop\"", "until": "9999-12-31T23:59:59.000Z", "reason": "INC-7, \"approved\""
            },
            {
                "id": "z", "effect": "deny", "principal": "User::\"anna\"", "action": null, "resource": null,
                "until": "2096-10-02T07:06:40.000Z", "reason": "because"
            },
        ])
    );
    // They are not the bundles', and change nothing of what keys hold.
    assert_eq!((summary.policies.len(), snapshot.policy_count()), (3, 3));
    let footprints = |snapshot: &Snapshot| serde_json::to_value(snapshot.footprints()).unwrap();
    assert_eq!(footprints(&snapshot), footprints(&compile(&[bundle()])));
}

#[test]
fn the_store_gives_a_revision_its_number() {
    let at = SystemTime::now() - Duration::from_secs(60);
    let published = |number: &str, at| Some(Published { number: number.to_owned(), at });
    let plain = compile(&[bundle()]);
    assert_eq!((&plain.revision.number, plain.timeline.changed), (&None, None));
    let first = Snapshot::compile(&[bundle()], published("1.7", at), &mut Default::default()).unwrap();
    assert_eq!((&first.revision.id, &first.revision.digest), (&plain.revision.id, &plain.revision.digest));
    assert_eq!((first.revision.number.as_deref(), first.timeline.changed), (Some("1.7"), Some(at)));
    assert!(first.timeline.lead_time().unwrap() >= Duration::from_secs(60));
    // An overlay is published: another number for the same bundles, and a lead time of its own.
    let later = at + Duration::from_secs(30);
    let next = first.overlaid(&overlays(&["deny x: * * *"]), published("1.8", later));
    assert_eq!((next.revision.number.as_deref(), next.timeline.changed), (Some("1.8"), Some(later)));
    assert_eq!(next.revision.digest, first.revision.digest);
    assert!(next.timeline.enforced >= first.timeline.enforced);
    // It ends by itself: nothing was published.
    let last = next.overlaid(&[], None);
    assert!(Arc::ptr_eq(&last.revision, &next.revision));
    assert_eq!((last.timeline.changed, last.timeline.enforced), (Some(later), next.timeline.enforced));
}

#[test]
fn no_bundle_takes_the_name() {
    let named = |name: &str| files("b", &[("bundle.yaml", &format!("name: {name}")), ("a.cedar", PERMIT)]);
    let reserved = "b/bundle.yaml:1:7: `name`: the name `overlay` is reserved (in logs it stands for overlays: emergency \
                    denials and time-boxed exceptions)";
    assert_eq!(problems(&[named("overlay")]), [reserved]);
    compile(&[named("overlays")]);
}

const PERMIT: &str = "permit (principal is User, action, resource);";
