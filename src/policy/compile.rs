//! From the files of bundles to the [`Base`] of a snapshot: all or nothing, off the path of requests, with every problem reported.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Files;
use super::base::{Base, Silent};
use super::bundle::{self, Bundle};
use super::compiled::{Compiled, Side};
use super::core::{core, with_causes};
use super::entities::{Entities, Reach};
use super::entity_file;
use super::footprint::Footprint;
use super::index::Index;
use super::memory::{FileKey, GoodFile, Linked, Memory};
use super::open;
use super::origin::{declaration, origin};
use super::policy_file::{Body, Parsed};
use super::routes::Routes;
use super::schema::Types;
use super::unreachable;
use super::vocabulary::{self, Unrouted, Vocabulary, Wanted};
use crate::model::{Denial, EntityTypeName, EntityUid, PolicyId};
use crate::problem::{Problem, Severity, SourceFile};
use cedar_policy::{
    Effect, Entities as CedarEntities, Entity, Policy, PolicySet, Schema, SlotId, ValidationError, ValidationMode,
    Validator,
};

/// Compiles the files of one or several bundles; gives their warnings, too. What is in memory is not compiled again, and what comes of
/// it is there the next time.
///
/// # Errors
/// Every problem of every bundle; warnings are among them only if there are errors.
pub(super) fn compile(files: &[Files], memory: &mut Memory) -> Result<(Base, Vec<Problem>), Vec<Problem>> {
    let compiled = Compiler::default().run(files, memory);
    if compiled.is_ok() || memory.is_empty() {
        return compiled;
    }
    // What is wrong is reported as if nothing were known: which of two is the one too many depends on the order in which they are met.
    Compiler::default().run(files, &mut Memory::default())
}

#[derive(Default)]
struct Compiler {
    problems: Vec<Problem>,
}

impl Compiler {
    fn run(mut self, files: &[Files], memory: &mut Memory) -> Result<(Base, Vec<Problem>), Vec<Problem>> {
        let wanted = bundle::wanted(files);
        let schema_digest = bundle::schema_digest(files, &wanted);
        let known = memory.schema(&schema_digest);
        let mut bundles = Vec::new();
        for files in files {
            match bundle::parse(files, known.is_some().then_some(&*memory)) {
                Ok(mut bundle) => {
                    self.problems.append(&mut bundle.warnings);
                    bundles.push(bundle);
                }
                Err(problems) => self.problems.extend(problems),
            }
        }
        // What follows needs all bundles: a missing one would make others look wrong.
        self.stop_at_errors()?;
        self.one_of_each(&bundles);
        // Cedar would say it again, of one name and without the bundles.
        self.stop_at_errors()?;
        let linked = known.or_else(|| self.schema(schema_digest, &bundles, &wanted).map(Arc::new));
        self.stop_at_errors()?;
        let Some(linked) = linked else { return Err(self.problems) };
        let mut types = linked.types.clone();
        let mut sets = self.policies(&bundles);
        let (unreached, problems) = unreachable::policies(&bundles, &types);
        self.problems.extend(problems);
        for id in unreached {
            // Cedar finds it impossible, which is known, and said better where it is a fault. Templates are left to it.
            let _ = sets.all.remove_static(id);
        }
        self.slots(&bundles, &types);
        let reach = self.validate(&sets, &linked);
        let good = self.good_files(&bundles, &sets, &reach);
        let entities = self.entities(&bundles, linked.validator.schema());
        let mut routes = Routes::default();
        for bundle in &bundles {
            if let Some(source) = &bundle.routes {
                routes.add(&bundle.header.name.0, source, &types, &mut self.problems);
            }
        }
        self.problems.extend(unreachable::parameters(&bundles, &routes, &types, linked.validator.schema()));
        self.stop_at_errors()?;
        let entities = Entities::new(&entities, reach);
        let mut policies = sets.compiled;
        policies.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        let index = Index::new(&policies, entities.actions().map(Side::of));
        types.narrow(|action| index.footprint(action.as_ref()));
        let base =
            Base {
                has_shadow: policies.iter().any(|policy| policy.shadow),
                policies,
                index,
                schema_digest,
                types,
                entities,
                routes,
                default_denial: Arc::new(bundles.iter().find_map(|bundle| bundle.denial.clone()).unwrap_or_else(
                    || Denial { status: 403, message: "access denied".to_owned(), headers: Vec::new() },
                )),
                silent: Silent::default(),
                bundles: bundles.iter().map(|bundle| bundle.header.summary()).collect(),
            };
        self.problems.extend(unreachable::taken_by_routes(&bundles, &base));
        self.problems.extend(base.warn_of_keys(|id| origin(&bundles, id)));
        self.problems.extend(base.warn_of_routes(|uid| declaration(&bundles, linked.validator.schema(), uid)));
        self.problems.extend(base.warn_of_literals(|id| origin(&bundles, id)));
        self.problems.extend(base.lint(|id| origin(&bundles, id)));
        memory.replace(linked, good);
        Ok((base, self.problems))
    }

    fn stop_at_errors(&mut self) -> Result<(), Vec<Problem>> {
        if self.problems.iter().any(Problem::is_error) { Err(std::mem::take(&mut self.problems)) } else { Ok(()) }
    }

    /// What may stand in one bundle only, named with both bundles where it stands in two.
    fn one_of_each(&mut self, bundles: &[Bundle]) {
        let mut seen: BTreeMap<String, &str> = BTreeMap::new();
        for bundle in bundles {
            let name = &bundle.header.name.0;
            let mut own: Vec<String> = bundle
                .fragments
                .iter()
                .flat_map(|fragment| &fragment.declared)
                .map(|declared| declared.to_string())
                .collect();
            own.sort_unstable();
            // Twice in the same bundle is for Cedar to report, with the place.
            own.dedup();
            own.extend(bundle.denial.iter().map(|_| "`denial` of bundle.yaml".to_owned()));
            own.extend(bundle.header.ttl.iter().map(|_| "`ttl` of bundle.yaml".to_owned()));
            let contrary = bundles.iter().find(|other| {
                let denies = other.header.unrouted == Some(Unrouted::Deny)
                    || (other.header.unrouted.is_none() && other.routes.is_some());
                bundle.header.unrouted == Some(Unrouted::Base) && denies
            });
            if let Some(other) = contrary {
                let message = format!(
                    "bundle `{name}` says `unrouted: base`, and bundle `{}` denies what no route names",
                    other.header.name.0
                );
                self.problems.push(Problem::error(message).hint("all bundles that have routes must want it"));
            }
            if bundles.iter().filter(|other| &other.header.name.0 == name).count() > 1 {
                self.problems.push(Problem::error(format!("two bundles are called `{name}`")));
                return;
            }
            for what in own {
                if let Some(other) = seen.get(&what) {
                    let problem = Problem::error(format!("both bundle `{other}` and bundle `{name}` declare {what}"));
                    self.problems.push(problem.hint("keep it in one of the two"));
                }
                seen.entry(what).or_insert(name);
            }
        }
    }

    fn schema(&mut self, digest: [u8; 32], bundles: &[Bundle], wanted: &Wanted) -> Option<Linked> {
        let fragments = || bundles.iter().flat_map(|bundle| &bundle.fragments);
        let mut own = Vec::new();
        for fragment in fragments() {
            let reserved = fragment.declared.iter().filter_map(|declared| declared.reserved());
            self.problems.extend(reserved.map(|problem| problem.in_file(&fragment.source)));
            own.extend(fragment.declared.iter().cloned());
        }
        self.problems.extend(wanted.conflicts(&own));
        if self.problems.iter().any(Problem::is_error) {
            return None;
        }
        let beside = vocabulary::beside(&own, wanted);
        let (base, vocabulary) = beside.map_err(|message| self.problems.push(Problem::error(message))).ok()?;
        let all = std::iter::once(base).chain(fragments().map(|fragment| fragment.schema.clone()));
        let schema = match Schema::from_schema_fragments(all) {
            Ok(schema) => schema,
            Err(error) => {
                let source = fragments().next().map(|fragment| Arc::clone(&fragment.source));
                let source = source.unwrap_or_else(|| SourceFile::new("base.cedarschema", vocabulary::BASE));
                // Cedar's places are relative to a fragment that it does not name; with one fragment we know which.
                let mut problem = Problem::from_diagnostic(&error, &source);
                if fragments().count() != 1 {
                    problem.place = None;
                }
                self.problems.push(problem);
                return None;
            }
        };
        match Types::read(&schema, vocabulary) {
            Ok(types) => Some(Linked { digest, validator: Validator::new(schema), types }),
            Err(faults) => {
                let source = fragments().next().map(|fragment| &fragment.source);
                self.problems.extend(faults.into_iter().map(|fault| match source {
                    Some(source) => Problem::error(fault).in_file(source),
                    None => Problem::error(fault),
                }));
                None
            }
        }
    }

    fn policies(&mut self, bundles: &[Bundle]) -> Sets {
        let mut sets = Sets::default();
        for (_, good, source) in bundles.iter().flat_map(|bundle| &bundle.known) {
            for (policy, _) in &good.policies {
                sets.sources.insert(policy.id.clone(), Arc::clone(source));
                sets.compiled.push(Arc::new(policy.renewed(source.name.clone())));
            }
        }
        let parsed: Vec<&Parsed> = bundles.iter().flat_map(|bundle| &bundle.policies).collect();
        for own in &parsed {
            let id = own.id();
            if let Some(first) = sets.sources.get(id) {
                let message = format!("the id `{id}` is taken: a policy in {} has it", first.name);
                self.problems
                    .push(Problem::error(message).hint("ids are unique in a bundle").at(&own.source, own.span));
                continue;
            }
            sets.sources.insert(id.clone(), Arc::clone(&own.source));
            let added = match &own.body {
                Body::Static(policy) => {
                    sets.compiled.push(Arc::new(own.compiled(policy, &mut self.problems)));
                    sets.all.add(policy.as_ref().clone())
                }
                Body::Template(template) => sets.all.add_template(template.as_ref().clone()),
            };
            if let Err(error) = added {
                self.problems.push(Problem::from_diagnostic(&error, &own.source));
            }
        }
        let templates: HashMap<&PolicyId, &&Parsed> =
            parsed.iter().filter(|own| matches!(own.body, Body::Template(_))).map(|own| (own.id(), own)).collect();
        for link in bundles.iter().flat_map(|bundle| &bundle.links) {
            let Some(template) = templates.get(&link.template) else {
                let message =
                    format!("link `{}` names the template `{}`, which does not exist", link.id, link.template);
                self.problems.push(Problem::error(message).in_file(&link.source));
                continue;
            };
            let mut values = HashMap::new();
            for (slot, uid) in &link.values {
                let slot = match slot.as_str() {
                    "?principal" => SlotId::principal(),
                    "?resource" => SlotId::resource(),
                    other => {
                        let message = format!("link `{}`: `{other}` is not a slot", link.id);
                        let problem = Problem::error(message).hint("`?principal` or `?resource`");
                        self.problems.push(problem.in_file(&link.source));
                        continue;
                    }
                };
                values.insert(slot, uid.clone());
            }
            // Cedar sees it only among the policies that were compiled anew.
            if let Some(first) = sets.sources.get(&link.id).filter(|_| sets.all.policy(&link.id).is_none()) {
                let message = format!("the id `{}` is taken: a policy in {} has it", link.id, first.name);
                self.problems.push(Problem::error(message).in_file(&link.source));
                continue;
            }
            match sets.all.link(link.template.clone(), link.id.clone(), values) {
                Ok(()) => {
                    let linked = sets.all.policy(&link.id);
                    sets.compiled.extend(linked.map(|policy| Arc::new(template.compiled(policy, &mut self.problems))));
                    sets.sources.insert(link.id.clone(), Arc::clone(&link.source));
                }
                Err(error) => {
                    let message = format!("link `{}`: {}", link.id, with_causes(&error));
                    self.problems.push(Problem::error(message).in_file(&link.source));
                }
            }
        }
        let linked: BTreeSet<&PolicyId> =
            bundles.iter().flat_map(|bundle| &bundle.links).map(|link| &link.template).collect();
        for own in parsed.iter().filter(|own| matches!(own.body, Body::Template(_)) && !linked.contains(own.id())) {
            let message = format!("no link uses the template `{}`, so it is not in force", own.id());
            let problem = Problem::warning(message).hint("add a link to links.json, or remove the template");
            self.problems.push(problem.at(&own.source, own.span));
        }
        if sets.compiled.is_empty() && !self.problems.iter().any(Problem::is_error) {
            self.problems.push(Problem::warning("there is no policy: every request is denied"));
        }
        sets
    }

    /// Holds what stands in the slots of links against the schema. Cedar validates templates, and not what is put in their slots:
    /// a link to an entity that cannot be would never hold, and a `forbid` like that goes unnoticed.
    fn slots(&mut self, bundles: &[Bundle], types: &Types) {
        for link in bundles.iter().flat_map(|bundle| &bundle.links) {
            for (slot, uid) in &link.values {
                let ty = uid.type_name();
                let message = if types.entity(ty).is_none() {
                    format!("link `{}`: `{slot}` is {uid}, and no schema declares `{ty}`", link.id)
                } else if !types.admits(uid) {
                    format!("link `{}`: `{slot}` is {uid}, which is not one of the ids that the schema lists", link.id)
                } else {
                    continue;
                };
                self.problems.push(Problem::error(message).in_file(&link.source));
            }
        }
    }

    /// Strict validation; and how far policies reach into the entities, which the slices follow. The policies of known files were
    /// validated, and reach no further than level 1, so that they add nothing to either.
    fn validate(&mut self, sets: &Sets, linked: &Linked) -> Reach {
        let validator = &linked.validator;
        let first = validator.validate_with_level(&sets.all, ValidationMode::Strict, 1);
        let (result, depth) = if first.validation_passed() {
            (first, Some(1))
        } else {
            let plain = validator.validate(&sets.all, ValidationMode::Strict);
            let deeper = plain.validation_passed().then(|| {
                (2..=3).find(|level| {
                    let result = validator.validate_with_level(&sets.all, ValidationMode::Strict, *level);
                    result.validation_passed()
                })
            });
            (plain, deeper.flatten())
        };
        let place = |id: &PolicyId, diagnostic: &dyn miette::Diagnostic| match sets.sources.get(id) {
            Some(source) => Problem::from_diagnostic(diagnostic, source),
            None => Problem::error(diagnostic.to_string()),
        };
        let vocabulary = linked.types.vocabulary();
        let errors = result.validation_errors().map(|error| {
            let problem = place(error.policy_id(), error);
            match moved(error, vocabulary) {
                Some(meant) => problem.hint(format!("write `{meant}`")),
                None => problem,
            }
        });
        let warnings = result.validation_warnings().map(|warning| {
            let id = warning.policy_id();
            let problem = Problem { severity: Severity::Warning, ..place(id, warning) };
            match sets.effect(id) {
                Some(Effect::Forbid) => forbids_nothing(id, problem),
                _ => problem,
            }
        });
        let mut found: Vec<Problem> = errors.chain(warnings).collect();
        // Cedar reports them in another order each time.
        found.sort_by_cached_key(|problem| {
            let place = problem.place.as_ref().map(|place| (place.source.name.clone(), place.span));
            (place, problem.message.clone())
        });
        self.problems.extend(one_for_each_place(found));
        let literals = match depth {
            // A bounded level means that no policy dereferences an entity that it names (RFC 76).
            Some(_) => Vec::new(),
            None => sets.all.policies().flat_map(|policy| policy.entity_literals()).collect(),
        };
        Reach { depth: depth.map(|level| usize::try_from(level).unwrap_or(1)), literals }
    }

    /// The files that need not be looked at again as long as neither they nor the schema change. `self.problems` are those of the
    /// policies so far.
    fn good_files(&self, bundles: &[Bundle], sets: &Sets, reach: &Reach) -> Vec<(FileKey, Arc<GoodFile>)> {
        let compiled: HashMap<&PolicyId, &Arc<Compiled>> = sets.compiled.iter().map(|own| (&own.id, own)).collect();
        // Those of this version, so that nothing is kept of the one before.
        let renewed = |good: &GoodFile| GoodFile {
            policies: good
                .policies
                .iter()
                .filter_map(|(own, span)| Some((Arc::clone(compiled.get(&own.id)?), *span)))
                .collect(),
        };
        let known = bundles.iter().flat_map(|bundle| &bundle.known);
        let mut files: Vec<_> = known.map(|(key, good, _)| (*key, Arc::new(renewed(good)))).collect();
        // Beyond level 1 it is not known which of the policies go there.
        if reach.depth != Some(1) {
            return files;
        }
        let mut by_file: HashMap<*const SourceFile, Vec<&Parsed>> = HashMap::new();
        for own in bundles.iter().flat_map(|bundle| &bundle.policies) {
            by_file.entry(Arc::as_ptr(&own.source)).or_default().push(own);
        }
        for (key, source) in bundles.iter().flat_map(|bundle| &bundle.fresh) {
            let of_file = |problem: &Problem| match &problem.place {
                Some(place) => Arc::ptr_eq(&place.source, source),
                // It may be about anything.
                None => true,
            };
            if self.problems.iter().any(of_file) {
                continue;
            }
            let own = by_file.remove(&Arc::as_ptr(source)).unwrap_or_default().into_iter();
            let policies = own.map(|own| match own.body {
                Body::Static(_) => Some((Arc::clone(compiled.get(own.id())?), own.span)),
                Body::Template(_) => None,
            });
            if let Some(policies) = policies.collect::<Option<Vec<_>>>() {
                files.push((*key, Arc::new(GoodFile { policies })));
            }
        }
        files
    }

    fn entities(&mut self, bundles: &[Bundle], schema: &Schema) -> CedarEntities {
        let mut seen: HashMap<EntityUid, &str> = HashMap::new();
        let mut all: Vec<Entity> = Vec::new();
        for (bundle, source) in bundles.iter().flat_map(|b| b.entities.iter().map(move |source| (b, source))) {
            let strange = entity_file::check(source);
            if !strange.is_empty() {
                self.problems.extend(strange);
                continue;
            }
            let file = match CedarEntities::from_json_str(&source.text, Some(schema)) {
                Ok(entities) => entities,
                Err(error) => {
                    self.problems.push(Problem::error(with_causes(&error)).in_file(source));
                    continue;
                }
            };
            for entity in file.iter().filter(|entity| !core(&entity.uid()).is_action()) {
                if let Some(first) = seen.insert(entity.uid(), &source.name) {
                    let (uid, name) = (entity.uid(), &bundle.header.name.0);
                    let message = format!("{uid} of bundle `{name}` stands in {first} as well");
                    self.problems.push(Problem::error(message).in_file(source));
                }
                all.push(entity.clone());
            }
        }
        match CedarEntities::from_entities(all, Some(schema)) {
            Ok(entities) => entities,
            Err(error) => {
                if !self.problems.iter().any(Problem::is_error) {
                    self.problems.push(Problem::error(format!("entities: {}", with_causes(&error))));
                }
                CedarEntities::empty()
            }
        }
    }
}

/// Cedar says the same of a place once for each action and type of principal that a policy is about. Whoever mends it
/// needs to hear it once.
fn one_for_each_place(sorted: Vec<Problem>) -> Vec<Problem> {
    let place = |problem: &Problem| {
        let place = problem.place.as_ref();
        (problem.severity, place.map(|place| (place.source.name.clone(), place.span)))
    };
    let mut kept: Vec<(Problem, usize)> = Vec::new();
    for problem in sorted {
        match kept.last_mut() {
            Some((last, more)) if place(last) == place(&problem) => *more += 1,
            _ => kept.push((problem, 0)),
        }
    }
    let tell = |(problem, more): (Problem, usize)| match more {
        0 => problem,
        _ => Problem { message: format!("{} (and {more} more like it at this place)", problem.message), ..problem },
    };
    kept.into_iter().map(tell).collect()
}

impl Parsed {
    /// A policy that this stands for: itself, or linked from it.
    fn compiled(&self, policy: &Policy, problems: &mut Vec<Problem>) -> Compiled {
        let footprint = Footprint::of(policy).unwrap_or_else(|error| {
            let message =
                format!("what `{}` reads cannot be determined, so everything is in the key: {error}", policy.id());
            let hint = "decisions of its actions are remembered for requests that are equal in all that is declared";
            problems.push(Problem::warning(message).hint(hint).at(&self.source, self.span));
            Footprint::everything()
        });
        let compiled = Compiled::new(policy, footprint, self.annotations.clone(), self.source.name.clone());
        if open::is_open(&compiled) {
            problems.push(open::warning(&compiled.id).at(&self.source, self.span));
        } else if compiled.is_unscoped() {
            let message = format!("`{}` has no scope: every decision that is made evaluates it", policy.id());
            // `cargo bench --bench unscoped`: 1,000 more of them add 480 to 660 us on two busy cores.
            let hint =
                "about half a microsecond each; name a principal, an action or a resource where the rule has one";
            problems.push(Problem::warning(message).hint(hint).at(&self.source, self.span));
        }
        compiled
    }
}

/// The policies of all bundles: as one set for validation, and each for evaluation.
#[derive(Default)]
struct Sets {
    all: PolicySet,
    compiled: Vec<Arc<Compiled>>,
    sources: HashMap<PolicyId, Arc<SourceFile>>,
}

impl Sets {
    fn effect(&self, id: &PolicyId) -> Option<Effect> {
        let policy = self.all.policy(id).map(Policy::effect);
        policy.or_else(|| self.all.template(id).map(cedar_policy::Template::effect))
    }
}

/// The type that was meant, where Cedar does not know one because a bundle declares it in a namespace.
fn moved<'a>(error: &ValidationError, vocabulary: &'a Vocabulary) -> Option<&'a EntityTypeName> {
    let ValidationError::UnrecognizedEntityType(error) = error else { return None };
    let text = error.to_string();
    vocabulary
        .moved()
        .find(|(short, _)| text.contains(&format!("unrecognized entity type `{short}`")))
        .map(|(_, meant)| meant)
}

/// A forbid that Cedar finds impossible is a guardrail that is not there, which Cedar's words do not say.
fn forbids_nothing(id: &PolicyId, problem: Problem) -> Problem {
    let hint = "hold its scope and its conditions against the schema: which types an action takes, and what they can be in \
                (`entity User in [Group]`)";
    let message = format!("`{id}` forbids nothing: no request that the schema allows meets it");
    Problem { message, hint: Some(problem.hint.unwrap_or_else(|| hint.to_owned())), ..problem }
}
