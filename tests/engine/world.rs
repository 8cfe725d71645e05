//! Bundles and requests as the dice make them, and what may become of a bundle from one push to the next.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde_json::{Value as Json, json};
use stockade::model::{Effect, EntityUid, Overlay};
use stockade::policy::Files;
use stockade::proto::wire;

use super::Dice;

/// The actions that routes lead to.
pub const ACTIONS: [&str; 2] = ["a0", "a1"];

/// What a condition can read of a request, beside its principal, action and resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `context.query.n`
    N,
    /// `context.query.m`
    M,
    /// `context.query.v`
    V,
    /// `context.query.boss`
    Boss,
    /// `context.headers["x-s"]`
    S,
    /// `context.headers["x-tags"]`
    Tags,
    /// The claim `dept`.
    Dept,
    /// A header that the schema does not name.
    Noise,
}

/// A condition of a policy, and what of a request is in its footprint.
#[derive(Debug)]
pub struct Condition {
    pub text: &'static str,
    pub reads: &'static [Part],
}

const fn condition(text: &'static str, reads: &'static [Part]) -> Condition {
    Condition { text, reads }
}

const PRINCIPALS: [&str; 10] = [
    "principal",
    "principal",
    "principal == User::\"u0\"",
    "principal == User::\"u1\"",
    "principal in Group::\"g0\"",
    "principal in Group::\"g1\"",
    "principal in Group::\"g2\"",
    "principal is User",
    "principal is User in Group::\"g1\"",
    "principal is Anonymous",
];
/// Scopes of actions that are about documents only, each with the actions that it is about, the group aside.
const DOC_ACTIONS: [&str; 5] = [
    "action in Action::\"ga\"",
    "action == Action::\"a0\"",
    "action in Action::\"ga\"",
    "action in [Action::\"a1\"]",
    "action in [Action::\"a0\", Action::\"a1\"]",
];
/// Scopes that other actions meet as well: with conditions that hold for every type of resource.
const ALL_ACTIONS: [&str; 3] = ["action", "action == Action::\"GET\"", "action in Action::\"read\""];
const RESOURCES: [&str; 8] = [
    "resource",
    "resource",
    "resource == Doc::\"d0\"",
    "resource in Folder::\"f0\"",
    "resource in Folder::\"f1\"",
    "resource in Folder::\"f2\"",
    "resource is Doc",
    "resource is Doc in Folder::\"f1\"",
];
static DOC_CONDITIONS: [Condition; 23] = [
    condition("", &[]),
    condition("", &[]),
    condition("context.query.n > 2", &[Part::N]),
    condition("context.headers has \"x-s\"", &[Part::S]),
    condition("context.headers has \"x-s\" && context.headers[\"x-s\"] == \"a\"", &[Part::S]),
    condition("context.headers has \"x-tags\" && context.headers[\"x-tags\"].contains(\"t\")", &[Part::Tags]),
    condition("resource.level > 1", &[]),
    condition("resource has owner && resource.owner == principal", &[]),
    condition("principal is User && principal has dept && principal.dept == \"eng\"", &[Part::Dept]),
    condition("resource in Folder::\"f1\"", &[]),
    condition("principal in Group::\"g1\"", &[]),
    // Errs for one of the numbers.
    condition("context.query.n + 9223372036854775805 > 0", &[Part::N]),
    condition(
        "[context.query].contains(context.query) && context.query has m",
        &[Part::N, Part::M, Part::V, Part::Boss],
    ),
    condition("action in Action::\"ga\"", &[]),
    condition("context.query has m && context.query.m == context.query.n", &[Part::N, Part::M]),
    condition("(if context.query.n > 1 then context.headers else context.headers) has \"x-s\"", &[Part::N, Part::S]),
    condition("context.query has v", &[Part::V]),
    condition("context.query has boss && context.query.boss in Group::\"g1\"", &[Part::Boss]),
    condition("context.query has boss && context.query.boss in Group::\"g0\"", &[Part::Boss]),
    condition(
        "context.query has boss && context.query.boss has dept && context.query.boss.dept == \"eng\"",
        &[Part::Boss, Part::Dept],
    ),
    // The names of tags are computed, so what is read of entities has no names: all of it.
    condition("resource.hasTag(\"k\") && resource.getTag(\"k\") == \"v1\"", &[Part::Dept]),
    condition("resource.hasTag(\"k\")", &[Part::Dept]),
    condition("resource in principal || principal is Anonymous", &[]),
];
static ALL_CONDITIONS: [Condition; 4] = [
    condition("", &[]),
    condition("", &[]),
    condition("principal in Group::\"g1\"", &[]),
    condition("principal is User && principal has dept && principal.dept == \"ops\"", &[Part::Dept]),
];
/// These reach entities that a request does not name.
static DEEP: [Condition; 2] = [
    condition("resource has owner && resource.owner has dept && resource.owner.dept == \"eng\"", &[Part::Dept]),
    condition("resource has owner && resource.owner in Group::\"g1\"", &[]),
];

/// Those that forbid remembering can be seen by that; the others only shape the content of a policy.
const TTLS: [&str; 4] = ["0s", "0s", "0s", "1h"];

const SLOTS: [(&str, &str); 6] = [
    ("principal == ?principal", "resource"),
    ("principal in ?principal", "resource"),
    ("principal is User in ?principal", "resource in Folder::\"f1\""),
    ("principal", "resource == ?resource"),
    ("principal", "resource in ?resource"),
    ("principal in ?principal", "resource in ?resource"),
];

/// People choose these.
const OVERLAYS: [&str; 3] = ["2026-11-22", "mallory's \"laptop\" \\", "Größe-\u{1f512}\n"];
/// What overlays are about. Some of it no bundle knows.
const SUBJECTS: [Option<&str>; 8] = [
    None,
    Some("User::\"u0\""),
    Some("User::\"u1\""),
    Some("User::\"u2\""),
    Some("Group::\"g1\""),
    Some("Group::\"g0\""),
    Some("Anonymous::\"anonymous\""),
    Some("Robot::\"u0\""),
];
const DOINGS: [Option<&str>; 7] = [
    None,
    None,
    Some("Action::\"ga\""),
    Some("Action::\"a0\""),
    Some("Action::\"read\""),
    Some("Action::\"GET\""),
    Some("Robots::Action::\"a0\""),
];
const OBJECTS: [Option<&str>; 8] = [
    None,
    None,
    Some("Doc::\"d0\""),
    Some("Doc::\"d1\""),
    Some("Folder::\"f0\""),
    Some("Folder::\"f1\""),
    Some("Service::\"default\""),
    Some("Vault::\"d0\""),
];

/// An overlay: principal, action and resource as Cedar writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    grant: bool,
    principal: Option<&'static str>,
    action: Option<&'static str>,
    resource: Option<&'static str>,
    /// Means nothing: the reason that was given for it.
    remark: usize,
}

/// A policy or a template.
#[derive(Debug, Clone)]
pub struct Rule {
    pub permit: bool,
    principal: &'static str,
    action: &'static str,
    resource: &'static str,
    pub condition: &'static Condition,
    pub shadow: bool,
    /// Shapes the denial; on a `forbid` only.
    pub message: Option<usize>,
    pub ttl: Option<&'static str>,
    /// Means nothing: an annotation of the team's own.
    note: usize,
    /// Means nothing: white space, comments, parentheses, and the file that it stands in.
    layout: usize,
}

/// A link of a template.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    pub template: usize,
    /// What its slots stand for: a user or group, a document or folder of this number.
    principal: usize,
    resource: usize,
}

/// Where requests for one of the paths lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// To an action on the document of the path.
    To(usize),
    /// To an action on a document that the path does not name.
    Fixed(usize),
    /// Nowhere, so the method is the action, on the service.
    None,
}

/// What the schema says that may change from push to push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Whether `a1` is in the group `ga`.
    pub grouped: bool,
    /// Whether `a1` is for callers without a proof.
    pub anonymous: bool,
    /// The type of `context.query.v`.
    pub v: &'static str,
    /// Means nothing.
    remark: usize,
}

/// A document: its folder, its owner, its level, the value of its tag.
type Doc = (Option<usize>, Option<usize>, usize, Option<usize>);

/// A bundle, and a smaller one of guardrails beside it.
#[derive(Debug, Clone)]
pub struct World {
    /// By full id, such as `b/p1`; those of bundle `a` are the guardrails.
    pub rules: BTreeMap<String, Rule>,
    pub templates: BTreeMap<usize, Rule>,
    pub links: BTreeMap<usize, Link>,
    docs: BTreeMap<usize, Doc>,
    /// Folder in folder, group in group. The parent has the smaller number: hierarchies have no circles.
    folders: BTreeMap<usize, Option<usize>>,
    groups: BTreeMap<usize, Option<usize>>,
    users: BTreeMap<usize, (Option<&'static str>, Vec<usize>)>,
    pub shape: Shape,
    pub routes: [Route; 2],
    /// By id, without the `overlay/`.
    pub overlays: BTreeMap<&'static str, Exception>,
    /// `denial` of bundle.yaml.
    pub denial: Option<usize>,
    theme: Theme,
}

/// What a world has more of than others. Where everything is equally likely, what only shows in the company of something
/// else hardly ever does, and a change that alters everything hides what the ones before it have left behind.
#[derive(Debug, Clone)]
struct Theme {
    conditions: Vec<&'static Condition>,
    changes: Vec<Change>,
}

/// A kind of change.
#[derive(Debug, Clone, Copy)]
enum Change {
    AddRule,
    RemoveRule,
    AlterRule,
    Restyle,
    Annotate,
    AddTemplate,
    AlterTemplate,
    RemoveTemplate,
    Link,
    Unlink,
    Doc,
    Folder,
    Group,
    User,
    Schema,
    Route,
    Denial,
    Overlay,
}

/// Changes that are best seen among themselves, the likelier ones several times.
const OF_RULES: [Change; 11] = [
    Change::AddRule,
    Change::AddRule,
    Change::AddRule,
    Change::AddRule,
    Change::AddRule,
    Change::RemoveRule,
    Change::RemoveRule,
    Change::AlterRule,
    Change::AlterRule,
    Change::Restyle,
    Change::Annotate,
];
const OF_TEMPLATES: [Change; 6] =
    [Change::AddTemplate, Change::AlterTemplate, Change::RemoveTemplate, Change::Link, Change::Link, Change::Unlink];
const OF_ENTITIES: [Change; 9] = [
    Change::Doc,
    Change::Doc,
    Change::Folder,
    Change::Folder,
    Change::Group,
    Change::Group,
    Change::User,
    Change::User,
    Change::User,
];
const OF_THE_REST: [Change; 3] = [Change::Schema, Change::Route, Change::Denial];
const OF_OVERLAYS: [Change; 4] = [Change::Overlay; 4];

/// All changes of a bundle.
fn of_bundles() -> Vec<Change> {
    [&OF_RULES[..], &OF_TEMPLATES, &OF_ENTITIES, &OF_THE_REST].concat()
}

/// All changes there are.
fn of_everything() -> Vec<Change> {
    [&of_bundles()[..], &OF_OVERLAYS].concat()
}

impl Theme {
    fn new(dice: &mut Dice, deep: bool) -> Self {
        let mut conditions: Vec<_> = (0..3).map(|_| dice.pick(&DOC_CONDITIONS)).collect();
        conditions.extend(DEEP.iter().filter(|_| deep));
        let all = of_everything();
        // Entities twice: most of what can go wrong is about them.
        let families: [&[Change]; 6] = [&OF_RULES, &OF_TEMPLATES, &OF_ENTITIES, &OF_ENTITIES, &OF_OVERLAYS, &all];
        let family = *dice.pick(&families);
        Self { conditions, changes: (0..3).map(|_| *dice.pick(family)).collect() }
    }

    fn condition(&self, dice: &mut Dice) -> &'static Condition {
        if dice.roll(6) > 0 { dice.pick::<&Condition>(&self.conditions) } else { dice.pick(&DOC_CONDITIONS) }
    }
}

/// What is known of a change without looking at what the engine makes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touches {
    /// Nothing that decides: formatting, comments, order, annotations without a meaning.
    Nothing,
    /// Where requests for this path lead.
    Path(usize),
    /// How denials look.
    Denials,
    /// An overlay that is about this user.
    User(usize),
    /// Anything.
    Anything,
}

impl Rule {
    fn new(dice: &mut Dice, theme: &Theme) -> Self {
        let everywhere = dice.roll(8) == 0;
        let condition = if everywhere { dice.pick(&ALL_CONDITIONS) } else { theme.condition(dice) };
        let mut own = Self {
            permit: dice.roll(3) > 0,
            principal: *dice.pick(&PRINCIPALS),
            action: if everywhere { *dice.pick(&ALL_ACTIONS) } else { *dice.pick(&DOC_ACTIONS) },
            resource: if everywhere { "resource" } else { *dice.pick(&RESOURCES) },
            condition,
            shadow: dice.roll(8) == 0,
            message: None,
            ttl: dice.maybe(8, |dice| *dice.pick(&TTLS)),
            note: 0,
            layout: dice.roll(4),
        };
        own.message = dice.maybe(2, |dice| dice.roll(3)).filter(|_| !own.permit);
        own
    }

    fn template(dice: &mut Dice, theme: &Theme) -> Self {
        let (principal, resource) = *dice.pick(&SLOTS);
        let action = *dice.pick(&DOC_ACTIONS);
        let condition = theme.condition(dice);
        Self { principal, resource, action, condition, ..Self::new(dice, theme) }
    }

    /// The same, but for one thing.
    fn alter(&mut self, dice: &mut Dice, other: Self) {
        match dice.roll(7) {
            0 => {
                self.permit = !self.permit;
                self.message = None;
            }
            1 if !self.is_slotted() => self.principal = other.principal,
            2 => self.shadow = !self.shadow,
            3 => self.ttl = other.ttl,
            4 if !self.permit => self.message = other.message.or(Some(3)),
            5 if self.is_slotted() => (self.principal, self.resource) = (other.principal, other.resource),
            // These have to fit each other.
            _ => {
                (self.action, self.condition) = (other.action, other.condition);
                if !self.is_slotted() {
                    self.resource = other.resource;
                }
            }
        }
    }

    fn is_slotted(&self) -> bool {
        self.principal.contains('?') || self.resource.contains('?')
    }

    /// Whether its scope is about an action.
    pub fn is_about(&self, action: &str, shape: &Shape) -> bool {
        match self.action {
            "action" => true,
            "action in Action::\"ga\"" => action == "a0" || (action == "a1" && shape.grouped),
            "action in Action::\"read\"" => action == "GET",
            scope => scope.contains(&format!("\"{action}\"")),
        }
    }

    fn scope(&self) -> String {
        [self.principal, self.action, self.resource].join(", ")
    }

    /// A permit of the same scope without a condition.
    pub fn bare(&self) -> String {
        format!("permit ({});", self.scope())
    }

    /// In Cedar's syntax, under this id.
    pub fn text(&self, id: &str) -> String {
        let mut text = format!("@id(\"{id}\")\n");
        let mut annotate = |name: &str, value: String| text.push_str(&format!("@{name}(\"{value}\")\n"));
        if self.shadow {
            annotate("mode", "shadow".to_owned());
        }
        self.message.iter().for_each(|message| annotate("message", format!("m{message}")));
        self.ttl.iter().for_each(|ttl| annotate("ttl", (*ttl).to_owned()));
        if self.note > 0 {
            annotate("owner", format!("team {}", self.note));
        }
        let effect = if self.permit { "permit" } else { "forbid" };
        let condition = match (self.condition.text, self.layout % 2) {
            ("", _) => String::new(),
            (condition, 0) => format!(" when {{ {condition} }}"),
            (condition, _) => format!("\n// {}\nwhen {{\n    ({condition})\n}}", self.layout),
        };
        format!("{text}{effect} ({}){condition};\n", self.scope())
    }
}

impl Exception {
    fn new(dice: &mut Dice) -> Self {
        Self {
            grant: dice.roll(2) == 0,
            principal: *dice.pick(&SUBJECTS),
            action: *dice.pick(&DOINGS),
            resource: *dice.pick(&OBJECTS),
            remark: 0,
        }
    }

    /// The same, but for one thing.
    fn alter(&mut self, dice: &mut Dice) {
        let other = Self::new(dice);
        match dice.roll(5) {
            0 => self.grant = !self.grant,
            1 => self.principal = other.principal,
            2 => self.action = other.action,
            3 => self.resource = other.resource,
            _ => self.remark += 1,
        }
    }

    /// The number of the user that it is about, if it is about one.
    fn user(&self) -> Option<usize> {
        self.principal?.strip_prefix("User::\"u")?.strip_suffix('"')?.parse().ok()
    }

    /// In Cedar's syntax.
    pub fn text(&self) -> String {
        let side = |name: &str, own: Option<&str>| own.map_or(name.to_owned(), |own| format!("{name} in {own}"));
        format!(
            "{} ({}, {}, {});",
            if self.grant { "permit" } else { "forbid" },
            side("principal", self.principal),
            side("action", self.action),
            side("resource", self.resource),
        )
    }
}

impl Link {
    /// What the slots of its template stand for.
    pub fn values(&self, template: &Rule) -> Vec<(&'static str, String)> {
        let mut values = Vec::new();
        if template.principal.contains('?') {
            let ty = if template.principal.contains("==") { "User" } else { "Group" };
            values.push(("?principal", format!("{ty}::\"{}{}\"", &ty.to_lowercase()[..1], self.principal)));
        }
        if template.resource.contains('?') {
            let ty = if template.resource.contains("==") { "Doc" } else { "Folder" };
            values.push(("?resource", format!("{ty}::\"{}{}\"", &ty.to_lowercase()[..1], self.resource)));
        }
        values
    }
}

impl Shape {
    /// The schema of the bundle.
    pub fn text(&self) -> String {
        let context = format!(
            "{{ query: {{ n: Long, m?: Long, boss?: User, v?: {} }}, \
               headers: {{ \"x-s\"?: String, \"x-tags\"?: Set<String> }} }}",
            self.v
        );
        format!(
            "// {}\nentity Group in [Group];\nentity User in [Group] {{ dept?: String }};\n\
             entity Doc in [Folder] {{ owner?: User, level: Long }} tags String;\nentity Folder in [Folder];\n\
             action \"ga\";\n\
             action \"a0\" in [\"ga\"] appliesTo {{ principal: [User, Anonymous], resource: [Doc], context: {context} }};\n\
             action \"a1\"{} appliesTo {{ principal: [User{}], resource: [Doc], context: {context} }};\n",
            self.remark,
            if self.grouped { " in [\"ga\"]" } else { "" },
            if self.anonymous { ", Anonymous" } else { "" },
        )
    }
}

impl World {
    pub fn new(dice: &mut Dice, deep: bool) -> Self {
        let mut world = Self {
            rules: BTreeMap::new(),
            templates: BTreeMap::new(),
            links: BTreeMap::new(),
            docs: BTreeMap::new(),
            folders: BTreeMap::new(),
            groups: BTreeMap::new(),
            users: BTreeMap::new(),
            shape: Shape { grouped: true, anonymous: true, v: "Long", remark: 0 },
            routes: [Route::To(0), Route::To(1)],
            overlays: BTreeMap::new(),
            denial: None,
            theme: Theme::new(dice, deep),
        };
        // Overlays are the exception. Where there are some, they hide what else goes on.
        let kinds = if dice.roll(3) == 0 { of_everything() } else { of_bundles() };
        for _ in 0..48 {
            let kind = *dice.pick(&kinds);
            world.change_of(kind, dice);
        }
        world.routes = [Route::To(0), Route::To(1)];
        world
    }

    /// Adds, alters or removes something. Afterwards it is a good bundle again.
    pub fn change(&mut self, dice: &mut Dice) -> Touches {
        let kind = if dice.roll(8) > 0 { *dice.pick(&self.theme.changes) } else { *dice.pick(&of_everything()) };
        self.change_of(kind, dice)
    }

    fn change_of(&mut self, kind: Change, dice: &mut Dice) -> Touches {
        match kind {
            Change::AddRule | Change::RemoveRule | Change::AlterRule => self.change_rule(kind, dice),
            Change::Restyle => return self.restyle(dice),
            Change::Annotate => self.annotate(dice),
            Change::AddTemplate | Change::AlterTemplate | Change::RemoveTemplate => self.change_template(kind, dice),
            Change::Link => {
                let link = Link { template: dice.roll(2), principal: dice.roll(3), resource: dice.roll(3) };
                if self.templates.contains_key(&link.template) {
                    self.links.insert(dice.roll(4), link);
                }
            }
            Change::Unlink => drop(self.links.remove(&dice.roll(4))),
            Change::Doc => self.change_doc(dice),
            Change::Folder => raise(&mut self.folders, dice),
            Change::Group => raise(&mut self.groups, dice),
            Change::User => self.change_user(dice),
            Change::Schema => match dice.roll(8) {
                0 | 1 => self.shape.grouped = !self.shape.grouped,
                2 | 3 => self.shape.anonymous = !self.shape.anonymous,
                4 | 5 => self.shape.v = *dice.pick(&["Long", "String", "Set<String>", "Set<Long>"]),
                _ => self.shape.remark += 1,
            },
            Change::Route => {
                let path = dice.roll(2);
                self.routes[path] = match dice.roll(6) {
                    0 => Route::None,
                    1 => Route::Fixed(dice.roll(2)),
                    _ => Route::To(dice.roll(2)),
                };
                return Touches::Path(path);
            }
            Change::Denial => {
                self.denial = dice.maybe(3, |dice| dice.roll(3));
                return Touches::Denials;
            }
            Change::Overlay => return self.except(dice),
        }
        Touches::Anything
    }

    fn change_rule(&mut self, kind: Change, dice: &mut Dice) {
        match kind {
            Change::AddRule => {
                let rule = Rule::new(dice, &self.theme);
                let id = self.rule_id(dice);
                self.rules.insert(id, rule);
            }
            Change::RemoveRule => {
                let id = self.rule_id(dice);
                self.rules.remove(&id);
            }
            _ => {
                let (id, other) = (self.rule_id(dice), Rule::new(dice, &self.theme));
                if let Some(rule) = self.rules.get_mut(&id) {
                    rule.alter(dice, other);
                }
            }
        }
    }

    fn change_template(&mut self, kind: Change, dice: &mut Dice) {
        match kind {
            Change::AddTemplate => {
                let template = Rule::template(dice, &self.theme);
                self.templates.insert(dice.roll(2), template);
            }
            Change::AlterTemplate => {
                let other = Rule::template(dice, &self.theme);
                if let Some(template) = self.templates.get_mut(&dice.roll(2)) {
                    template.alter(dice, other);
                }
            }
            _ => {
                let template = dice.roll(2);
                if dice.roll(3) == 0 && self.templates.remove(&template).is_some() {
                    self.links.retain(|_, link| link.template != template);
                }
            }
        }
    }

    fn change_doc(&mut self, dice: &mut Dice) {
        let folder = (dice.roll(4) > 0).then(|| dice.roll(3));
        let owner = (dice.roll(4) > 0).then(|| dice.roll(3));
        let doc = (folder, owner, dice.roll(4), dice.maybe(2, |dice| dice.roll(2)));
        let at = dice.roll(4);
        match (self.docs.get_mut(&at), dice.roll(8)) {
            (Some(_), 0) => drop(self.docs.remove(&at)),
            // One thing, and nothing else.
            (Some(known), 1) => known.0 = doc.0,
            (Some(known), 2) => known.1 = doc.1,
            (Some(known), 3..=5) => known.3 = if known.3 == Some(1) { doc.3 } else { Some(1) },
            _ => drop(self.docs.insert(at, doc)),
        }
    }

    fn change_user(&mut self, dice: &mut Dice) {
        let dept = dice.maybe(2, |dice| *dice.pick(&["eng", "ops"]));
        let groups = dice.maybe(2, |dice| dice.roll(3)).into_iter().collect();
        let at = dice.roll(3);
        match (self.users.get_mut(&at), dice.roll(4)) {
            (Some(_), 0) => drop(self.users.remove(&at)),
            (Some(known), 1) => known.1 = groups,
            (Some(known), 2) => known.0 = dept,
            _ => drop(self.users.insert(at, (dept, groups))),
        }
    }

    /// An overlay that denies everything to everybody.
    pub fn except_everybody(&mut self) {
        let everything = Exception { grant: false, principal: None, action: None, resource: None, remark: 0 };
        self.overlays.insert(OVERLAYS[0], everything);
    }

    /// An overlay comes, goes or alters.
    fn except(&mut self, dice: &mut Dice) -> Touches {
        let id = *dice.pick(&OVERLAYS);
        let before = self.overlays.get(id).copied();
        match (self.overlays.get_mut(id), dice.roll(3)) {
            (Some(_), 0) => drop(self.overlays.remove(id)),
            (Some(known), 1) => known.alter(dice),
            _ => drop(self.overlays.insert(id, Exception::new(dice))),
        }
        let after = self.overlays.get(id).copied();
        let scope = |exception: Exception| Exception { remark: 0, ..exception };
        if before.map(scope) == after.map(scope) {
            return Touches::Nothing;
        }
        let mut users = before.iter().chain(&after).map(Exception::user);
        match (users.next().flatten(), users.next()) {
            (Some(user), None) => Touches::User(user),
            (Some(user), Some(other)) if other == Some(user) => Touches::User(user),
            _ => Touches::Anything,
        }
    }

    /// An annotation that means something, and nothing else.
    fn annotate(&mut self, dice: &mut Dice) {
        let mut rules: Vec<&mut Rule> = self.rules.values_mut().chain(self.templates.values_mut()).collect();
        let at = dice.roll(rules.len().max(1));
        let Some(rule) = rules.get_mut(at) else { return };
        match dice.roll(4) {
            0 => rule.shadow = !rule.shadow,
            1 if !rule.permit => rule.message = Some(dice.roll(4)),
            _ => rule.ttl = if rule.ttl.is_none() { Some(*dice.pick(&TTLS)) } else { None },
        }
    }

    /// Guardrails stand in a bundle of their own.
    fn rule_id(&self, dice: &mut Dice) -> String {
        if dice.roll(5) == 0 { format!("a/p{}", dice.roll(2)) } else { format!("b/p{}", dice.roll(7)) }
    }

    /// Another look of the same.
    pub fn restyle(&mut self, dice: &mut Dice) -> Touches {
        for rule in self.rules.values_mut().chain(self.templates.values_mut()) {
            match dice.roll(3) {
                0 => rule.layout = dice.roll(4),
                1 => rule.note = dice.roll(3),
                _ => {}
            }
        }
        Touches::Nothing
    }

    /// Permits what was forbidden and forbids what was permitted: another world with the same footprints.
    pub fn reverse(&mut self) {
        for rule in self.rules.values_mut().chain(self.templates.values_mut()) {
            (rule.permit, rule.message) = (!rule.permit, None);
        }
    }

    /// Removes a policy.
    pub fn forget(&mut self, dice: &mut Dice) {
        let ids: Vec<String> = self.rules.keys().cloned().collect();
        if !ids.is_empty() {
            self.rules.remove(dice.pick(&ids));
        }
    }

    /// The action that a request leads to, and the document unless that is for the service.
    pub fn leads(&self, ask: &Ask) -> (&'static str, Option<usize>) {
        match self.routes[ask.path] {
            Route::To(action) => (ACTIONS[action], Some(ask.doc)),
            Route::Fixed(action) => (ACTIONS[action], Some(0)),
            Route::None => ("GET", None),
        }
    }

    /// Everything that decides, under full ids: policies, and templates once for each link.
    pub fn deciding(&self) -> impl Iterator<Item = (String, &Rule)> {
        let links =
            self.links.iter().filter_map(|(id, link)| Some((format!("b/l{id}"), self.templates.get(&link.template)?)));
        self.rules.iter().map(|(id, rule)| (id.clone(), rule)).chain(links)
    }

    pub fn entities(&self) -> Json {
        let uid = |ty: &str, id: String| json!({"type": ty, "id": id});
        let mut all: Vec<Json> = Vec::new();
        for (doc, (folder, owner, level, tag)) in &self.docs {
            let mut attrs = json!({"level": level});
            if let Some(owner) = owner {
                attrs["owner"] = json!({"__entity": uid("User", format!("u{owner}"))});
            }
            let parents: Vec<Json> = folder.iter().map(|folder| uid("Folder", format!("f{folder}"))).collect();
            let tags = tag.map_or(json!({}), |tag| json!({"k": format!("v{tag}")}));
            all.push(json!({"uid": uid("Doc", format!("d{doc}")), "attrs": attrs, "parents": parents, "tags": tags}));
        }
        for (ty, own) in [("Folder", &self.folders), ("Group", &self.groups)] {
            let letter = &ty.to_lowercase()[..1];
            for (at, parent) in own {
                let parents: Vec<Json> = parent.iter().map(|parent| uid(ty, format!("{letter}{parent}"))).collect();
                all.push(json!({"uid": uid(ty, format!("{letter}{at}")), "attrs": {}, "parents": parents}));
            }
        }
        for (user, (dept, groups)) in &self.users {
            let attrs = dept.map_or(json!({}), |dept| json!({"dept": dept}));
            let parents: Vec<Json> = groups.iter().map(|group| uid("Group", format!("g{group}"))).collect();
            all.push(json!({"uid": uid("User", format!("u{user}")), "attrs": attrs, "parents": parents}));
        }
        Json::Array(all)
    }

    /// As the feed would have them.
    pub fn overlays(&self) -> Vec<Overlay> {
        let uid = |text: Option<&str>| -> Option<EntityUid> { text.map(|text| text.parse().unwrap()) };
        let overlay = |(id, own): (&&str, &Exception)| Overlay {
            id: (*id).to_owned(),
            effect: if own.grant { Effect::Allow } else { Effect::Deny },
            principal: uid(own.principal),
            action: uid(own.action),
            resource: uid(own.resource),
            from: SystemTime::UNIX_EPOCH,
            until: SystemTime::now() + Duration::from_secs(3600),
            reason: format!("because {}", own.remark),
        };
        self.overlays.iter().map(overlay).collect()
    }

    /// As they stand in two directories.
    pub fn files(&self) -> [Files; 2] {
        let mut policies: BTreeMap<(&str, usize), String> = BTreeMap::new();
        for (id, rule) in &self.rules {
            let (bundle, id) = id.split_once('/').unwrap();
            policies.entry((bundle, rule.layout / 2)).or_default().push_str(&rule.text(id));
        }
        for (at, template) in &self.templates {
            policies.entry(("b", template.layout / 2)).or_default().push_str(&template.text(&format!("t{at}")));
        }
        let links: Vec<Json> = self
            .links
            .iter()
            .map(|(id, link)| {
                let args: BTreeMap<_, _> = link.values(&self.templates[&link.template]).into_iter().collect();
                json!({"template_id": format!("t{}", link.template), "link_id": format!("l{id}"), "args": args})
            })
            .collect();
        let mut routes = "routes:\n".to_owned();
        for (path, route) in self.routes.iter().enumerate() {
            let (action, resource) = match route {
                Route::To(action) => (ACTIONS[*action], "{doc}"),
                Route::Fixed(action) => (ACTIONS[*action], "d0"),
                Route::None => continue,
            };
            let line = format!("match: \"GET /r{path}/{{doc}}\", action: {action}, resource: 'Doc::\"{resource}\"'");
            routes.push_str(&format!("  - {{ {line} }}\n"));
        }
        if routes.lines().count() == 1 {
            routes = "routes: []\n".to_owned();
        }
        let denial = self.denial.map_or(String::new(), |denial| format!("denial: {{ message: default {denial} }}\n"));
        let own = [
            ("bundle.yaml", format!("name: b\nunrouted: base\n{denial}")),
            ("schema.cedarschema", self.shape.text()),
            ("routes.yaml", routes),
            ("entities.json", self.entities().to_string()),
            ("links.json", json!(links).to_string()),
        ];
        let mut files = ["a", "b"].map(|root| Files { root: root.to_owned(), files: BTreeMap::new(), changed: None });
        files[0].files.insert("bundle.yaml".to_owned(), "name: a\n".to_owned());
        files[1].files.extend(own.map(|(path, text)| (path.to_owned(), text)));
        for ((bundle, file), text) in policies {
            files[usize::from(bundle == "b")].files.insert(format!("policies/{file}.cedar"), text);
        }
        files
    }
}

/// Moves one of three to another place of its hierarchy. All of them are there afterwards.
fn raise(all: &mut BTreeMap<usize, Option<usize>>, dice: &mut Dice) {
    (0..3).for_each(|at| {
        all.entry(at).or_insert(None);
    });
    let at = 1 + dice.roll(2);
    let parent = if all[&at].is_some() { None } else { Some(dice.roll(at)) };
    all.insert(at, parent);
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ask {
    pub user: Option<usize>,
    pub groups: Vec<usize>,
    pub dept: Option<&'static str>,
    /// Which of the paths.
    pub path: usize,
    pub doc: usize,
    pub n: i64,
    pub m: Option<i64>,
    pub v: Option<i64>,
    pub boss: Option<usize>,
    pub s: Option<&'static str>,
    pub tags: Vec<&'static str>,
    pub noise: i64,
}

impl Ask {
    pub fn new(dice: &mut Dice) -> Self {
        Self {
            user: (dice.roll(5) > 0).then(|| dice.roll(3)),
            groups: dice.maybe(2, |dice| dice.roll(3)).into_iter().collect(),
            dept: dice.maybe(2, |dice| *dice.pick(&["eng", "ops"])),
            path: dice.roll(2),
            doc: dice.roll(4),
            n: dice.roll(4) as i64,
            m: dice.maybe(3, |dice| dice.roll(3) as i64),
            v: dice.maybe(3, |dice| dice.roll(2) as i64),
            boss: dice.maybe(2, |dice| dice.roll(3)),
            s: dice.maybe(2, |dice| *dice.pick(&["a", "b"])),
            tags: dice.maybe(2, |dice| *dice.pick(&["t", "u"])).into_iter().collect(),
            noise: 0,
        }
    }

    /// The same, but for one part.
    pub fn with_another(&self, part: Part) -> Self {
        let mut other = self.clone();
        let toggle = |own: Option<i64>| if own.is_some() { None } else { Some(1) };
        match part {
            Part::N => other.n = (self.n + 1) % 4,
            Part::M => other.m = toggle(self.m),
            Part::V => other.v = if self.v == Some(0) { Some(1) } else { toggle(self.v) },
            Part::Boss => other.boss = if self.boss == Some(0) { Some(1) } else { Some(0) },
            Part::S => other.s = if self.s == Some("a") { Some("b") } else { Some("a") },
            Part::Tags => other.tags = if self.tags.is_empty() { vec!["t", "u"] } else { Vec::new() },
            Part::Dept => other.dept = if self.dept == Some("eng") { None } else { Some("eng") },
            Part::Noise => other.noise += 1,
        }
        other
    }

    /// The path and the query, as the client wrote them.
    fn target(&self) -> String {
        let optional =
            |name: &str, value: Option<String>| value.map_or(String::new(), |value| format!("&{name}={value}"));
        let (m, v) = (optional("m", self.m.map(|m| m.to_string())), optional("v", self.v.map(|v| v.to_string())));
        let boss = optional("boss", self.boss.map(|boss| format!("u{boss}")));
        format!("/r{}/d{}?n={}{m}{v}{boss}", self.path, self.doc, self.n)
    }

    /// As Envoy would send it.
    pub fn request(&self) -> wire::CheckRequest {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let header = |key: &str, value: &str| wire::HeaderValue {
            key: bytes(key),
            value: Bytes::new(),
            raw_value: bytes(value),
        };
        let path = self.target();
        let noise = header("x-noise", &self.noise.to_string());
        let mut headers = vec![header(":method", "GET"), header(":path", &path), noise];
        headers.extend(self.s.map(|s| header("x-s", s)));
        headers.extend(self.tags.iter().map(|tag| header("x-tags", tag)));
        let text = |text: String| wire::StructValue { kind: Some(wire::Kind::String(text)) };
        let metadata = self.user.map(|user| {
            let groups = self.groups.iter().map(|group| text(format!("g{group}"))).collect();
            let mut fields = HashMap::from([
                ("sub".to_owned(), text(format!("u{user}"))),
                (
                    "groups".to_owned(),
                    wire::StructValue { kind: Some(wire::Kind::List(wire::ListValue { values: groups })) },
                ),
            ]);
            fields.extend(self.dept.map(|dept| ("dept".to_owned(), text(dept.to_owned()))));
            let payload = wire::StructValue { kind: Some(wire::Kind::Struct(wire::Struct { fields })) };
            let space = wire::Struct { fields: HashMap::from([("jwt_payload".to_owned(), payload)]) };
            wire::Metadata { filter_metadata: HashMap::from([("envoy.filters.http.jwt_authn".to_owned(), space)]) }
        });
        wire::CheckRequest {
            attributes: Some(wire::AttributeContext {
                request: Some(wire::Request {
                    time: None,
                    http: Some(wire::HttpRequest {
                        method: bytes("GET"),
                        path: bytes(&path),
                        host: bytes("docs.example"),
                        header_map: Some(wire::HeaderMap { headers }),
                        ..wire::HttpRequest::default()
                    }),
                }),
                metadata_context: metadata,
                ..wire::AttributeContext::default()
            }),
        }
    }
}
