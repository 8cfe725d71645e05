//! What must come out: plain Cedar over all policies and all entities, nothing remembered, nothing indexed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use cedar_policy::{
    Authorizer as Cedar, Context, Entities, Entity, EntityUid, Policy, PolicyId, PolicySet, Request, Response,
    RestrictedExpression, Schema, SlotId, Template,
};
use stockade::model::{self, Decision, Effect, Reason};

use super::world::{Ask, World};

/// An answer, in everything that a client or a log can see of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub effect: Effect,
    pub reason: Reason,
    pub determining: Vec<String>,
    pub erring: Vec<String>,
    pub message: Option<String>,
    pub shadow: Option<(Effect, Vec<String>, Vec<String>)>,
}

impl Answer {
    /// Whether any policy could not be evaluated.
    pub fn errs(&self) -> bool {
        !self.erring.is_empty() || self.shadow.as_ref().is_some_and(|(_, _, erring)| !erring.is_empty())
    }
}

impl From<&Decision> for Answer {
    fn from(decision: &Decision) -> Self {
        let ids = |ids: &[PolicyId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
        let erring = |errors: &[model::PolicyError]| errors.iter().map(|error| error.policy.to_string()).collect();
        Self {
            effect: decision.effect,
            reason: decision.reason,
            determining: ids(&decision.determining),
            erring: erring(&decision.errors),
            message: decision.denial.as_ref().map(|denial| denial.message.clone()),
            shadow: decision
                .shadow
                .as_ref()
                .map(|shadow| (shadow.effect, ids(&shadow.determining), erring(&shadow.errors))),
        }
    }
}

/// What plain Cedar makes of a request.
pub struct Expected {
    pub answer: Answer,
    /// Whether a policy in scope says that the decision must not be remembered at all.
    pub fleeting: bool,
}

/// Plain Cedar over a world.
pub struct Oracle {
    world: World,
    enforced: PolicySet,
    shadow: PolicySet,
    forbids: HashSet<String>,
    /// Those with `@ttl("0s")`, as permits without a condition.
    fleeting: PolicySet,
    entities: Entities,
    each: Vec<Entity>,
    messages: BTreeMap<String, String>,
    known: Mutex<HashMap<Ask, Arc<Expected>>>,
}

/// What requests are about that lead nowhere else.
const SERVICE: &str = "entity Anonymous; entity Service; action \"read\"; \
                       action \"GET\" in [\"read\"] appliesTo { principal: [User, Anonymous], resource: [Service] };";

impl Oracle {
    pub fn new(world: &World) -> Self {
        let (schema, _) = Schema::from_cedarschema_str(&format!("{SERVICE}{}", world.shape.text())).unwrap();
        let entities = Entities::from_json_value(world.entities(), Some(&schema)).unwrap();
        let mut oracle = Self {
            world: world.clone(),
            enforced: PolicySet::new(),
            shadow: PolicySet::new(),
            forbids: HashSet::new(),
            fleeting: PolicySet::new(),
            each: entities.iter().cloned().collect(),
            entities,
            messages: BTreeMap::new(),
            known: Mutex::default(),
        };
        for (id, rule) in &world.rules {
            let add = |set: &mut PolicySet, text: &str| {
                set.add(Policy::parse(Some(PolicyId::new(id)), text).unwrap()).unwrap();
            };
            add(if rule.shadow { &mut oracle.shadow } else { &mut oracle.enforced }, &rule.text(id));
            if rule.ttl == Some("0s") {
                add(&mut oracle.fleeting, &rule.bare());
            }
        }
        for (id, overlay) in &world.overlays {
            let id = PolicyId::new(format!("overlay/{id}"));
            oracle.enforced.add(Policy::parse(Some(id), overlay.text()).unwrap()).unwrap();
        }
        for (at, template) in &world.templates {
            let id = PolicyId::new(format!("b/t{at}"));
            let add = |set: &mut PolicySet, text: &str| {
                set.add_template(Template::parse(Some(id.clone()), text).unwrap()).unwrap();
                for (at, link) in
                    world.links.iter().filter(|(_, link)| PolicyId::new(format!("b/t{}", link.template)) == id)
                {
                    let values = link.values(template).into_iter().map(|(slot, uid)| {
                        let slot = if slot == "?principal" { SlotId::principal() } else { SlotId::resource() };
                        (slot, uid.parse().unwrap())
                    });
                    set.link(id.clone(), PolicyId::new(format!("b/l{at}")), values.collect()).unwrap();
                }
            };
            add(if template.shadow { &mut oracle.shadow } else { &mut oracle.enforced }, &template.text("t"));
            if template.ttl == Some("0s") {
                add(&mut oracle.fleeting, &template.bare());
            }
        }
        for (id, rule) in world.deciding() {
            if !rule.permit {
                oracle.forbids.insert(id.clone());
            }
            oracle.messages.extend(rule.message.map(|message| (id, format!("m{message}"))));
        }
        oracle
    }

    /// What a request must be answered.
    pub fn expects(&self, ask: &Ask) -> Arc<Expected> {
        // Hashing a request costs less than deciding it once more.
        let mut known = self.known.lock().unwrap();
        Arc::clone(known.entry(ask.clone()).or_insert_with(|| Arc::new(self.decide(ask))))
    }

    fn decide(&self, ask: &Ask) -> Expected {
        let Some(asked) = self.asked(ask) else {
            let message = Some(self.default_message());
            let (determining, erring) = (Vec::new(), Vec::new());
            let reason = Reason::NotApplicable;
            let answer = Answer { effect: Effect::Deny, reason, determining, erring, message, shadow: None };
            return Expected { answer, fleeting: false };
        };
        let respond = |set: &PolicySet| Cedar::new().is_authorized(&asked.request, set, &asked.entities);
        let enforced = respond(&self.enforced);
        let errors = erring(&enforced);
        let erring_forbids: Vec<String> = errors.iter().filter(|id| self.forbids.contains(*id)).cloned().collect();
        let (effect, reason, determining) = if forbids(&enforced) {
            (Effect::Deny, Reason::Policy, reasons(&enforced))
        } else if !erring_forbids.is_empty() {
            (Effect::Deny, Reason::PolicyError, erring_forbids)
        } else if allows(&enforced) {
            (Effect::Allow, Reason::Policy, reasons(&enforced))
        } else {
            (Effect::Deny, Reason::DefaultDeny, Vec::new())
        };
        let message = (effect == Effect::Deny).then(|| {
            let own = if reason == Reason::Policy { determining.as_slice() } else { &[] };
            let shaped = own.iter().find_map(|id| self.messages.get(id));
            shaped.cloned().unwrap_or_else(|| self.default_message())
        });
        let shadow = self.world.deciding().any(|(_, rule)| rule.shadow).then(|| {
            let shadow = respond(&self.shadow);
            let errs = |response: &Response| erring(response).iter().any(|id| self.forbids.contains(id));
            let denied = [&enforced, &shadow].into_iter().any(|response| forbids(response) || errs(response));
            let allow = !denied && (allows(&enforced) || allows(&shadow));
            (if allow { Effect::Allow } else { Effect::Deny }, reasons(&shadow), erring(&shadow))
        });
        let fleeting = self.fleeting.num_of_policies() > 0 && allows(&respond(&self.fleeting));
        Expected { answer: Answer { effect, reason, determining, erring: errors, message, shadow }, fleeting }
    }

    fn default_message(&self) -> String {
        self.world.denial.map_or("access denied".to_owned(), |denial| format!("default {denial}"))
    }

    /// What Cedar is asked; `None` if the schema has no such question.
    fn asked(&self, ask: &Ask) -> Option<Asked> {
        let uid = |text: String| -> EntityUid { text.parse().unwrap() };
        let (action, doc) = self.world.leads(ask);
        if action == "a1" && ask.user.is_none() && !self.world.shape.anonymous {
            return None;
        }
        let principal = match ask.user {
            Some(user) => uid(format!("User::\"u{user}\"")),
            None => uid("Anonymous::\"anonymous\"".to_owned()),
        };
        let resource = doc.map_or("Service::\"default\"".to_owned(), |doc| format!("Doc::\"d{doc}\""));
        let entities = self.with_principal(&principal, ask);
        let action = uid(format!("Action::\"{action}\""));
        let request = Request::new(principal, action, uid(resource), self.context(ask), None).unwrap();
        Some(Asked { request, entities })
    }

    fn context(&self, ask: &Ask) -> Context {
        let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
        let long = RestrictedExpression::new_long;
        let mut query = vec![("n".to_owned(), long(ask.n))];
        query.extend(ask.m.map(|m| ("m".to_owned(), long(m))));
        query.extend(ask.v.map(|v| {
            let v = match self.world.shape.v {
                "Long" => long(v),
                "String" => text(&v.to_string()),
                "Set<Long>" => RestrictedExpression::new_set([long(v)]),
                _ => RestrictedExpression::new_set([text(&v.to_string())]),
            };
            ("v".to_owned(), v)
        }));
        query.extend(ask.boss.map(|boss| {
            let boss = format!("User::\"u{boss}\"").parse().unwrap();
            ("boss".to_owned(), RestrictedExpression::new_entity_uid(boss))
        }));
        let mut headers = Vec::new();
        headers.extend(ask.s.map(|s| ("x-s".to_owned(), text(s))));
        if !ask.tags.is_empty() {
            let tags = ask.tags.iter().map(|tag| text(tag));
            headers.push(("x-tags".to_owned(), RestrictedExpression::new_set(tags)));
        }
        Context::from_pairs([
            ("query".to_owned(), RestrictedExpression::new_record(query).unwrap()),
            ("headers".to_owned(), RestrictedExpression::new_record(headers).unwrap()),
        ])
        .unwrap()
    }

    /// The whole world, with the principal as its token says.
    fn with_principal(&self, principal: &EntityUid, ask: &Ask) -> Entities {
        if ask.user.is_none() || (ask.groups.is_empty() && ask.dept.is_none()) {
            return self.entities.clone();
        }
        let mut attributes: HashMap<String, RestrictedExpression> = HashMap::new();
        let mut parents: HashSet<EntityUid> =
            ask.groups.iter().map(|group| format!("Group::\"g{group}\"").parse().unwrap()).collect();
        attributes.extend(ask.dept.map(|dept| ("dept".to_owned(), RestrictedExpression::new_string(dept.to_owned()))));
        let mut others = Vec::new();
        for entity in &self.each {
            if &entity.uid() != principal {
                others.push(entity.clone());
                continue;
            }
            let (_, known, own_parents) = entity.clone().into_inner();
            attributes.extend(known);
            parents.extend(own_parents);
        }
        others.push(Entity::new(principal.clone(), attributes, parents).unwrap());
        Entities::from_entities(others, None).unwrap()
    }
}

struct Asked {
    request: Request,
    entities: Entities,
}

fn allows(response: &Response) -> bool {
    response.decision() == cedar_policy::Decision::Allow
}

fn forbids(response: &Response) -> bool {
    !allows(response) && response.diagnostics().reason().next().is_some()
}

fn reasons(response: &Response) -> Vec<String> {
    sorted(response.diagnostics().reason().map(ToString::to_string))
}

fn erring(response: &Response) -> Vec<String> {
    let errors = response.diagnostics().errors();
    sorted(errors.map(|cedar_policy::AuthorizationError::PolicyEvaluationError(error)| error.policy_id().to_string()))
}

fn sorted(ids: impl Iterator<Item = String>) -> Vec<String> {
    let mut ids: Vec<String> = ids.collect();
    ids.sort();
    ids
}
