//! What of a request may be logged, beside what policies read.

use smol_str::SmolStr;

use super::attributes::Place;
use super::context::ContextReader;
use crate::claim_path::{ClaimPath, Step};
use crate::model::{AttributeType, Attributes, RecordType, Root, Type, Value};
use crate::observe::decision_log::{Attribute, Of};
use crate::policy::ActionType;

/// What of a request may be logged, beside what policies read.
#[derive(Debug, Clone, Default)]
pub(super) struct Logged {
    /// All of it, as the configuration has it.
    pub(super) all: Vec<Attribute>,
    /// Attributes of the principal.
    pub(super) principal: Vec<SmolStr>,
    /// Places in the context whose types a schema says.
    context: Vec<ClaimPath>,
    /// The others, cut down to what is named.
    fixed: Vec<(Root, AttributeType)>,
}

impl Logged {
    /// What these attributes of the configuration name.
    pub(super) fn new(logged: &[Attribute]) -> Self {
        let under = |root: Of| logged.iter().filter(move |attribute| attribute.of() == root).map(Attribute::path);
        let principal = under(Of::Principal).map(|path| path.name().into()).collect();
        let context: Vec<ClaimPath> = under(Of::Context).cloned().collect();
        let fixed = Root::ALL.into_iter().filter_map(|root| {
            let ty = narrow(&root.fixed()?, &below(root, &context))?;
            Some((root, AttributeType { ty, required: false }))
        });
        Self { all: logged.to_vec(), principal, fixed: fixed.collect(), context }
    }

    /// Whether anything of the context may be logged.
    pub(super) fn has_context(&self) -> bool {
        !self.context.is_empty()
    }

    /// What may be logged of the context, by the types that the schema declares, or that are the same for all. What does not fit is
    /// left out: the log is no reason to refuse a request.
    pub(super) fn of_context(&self, reader: &ContextReader<'_, '_>, action: &ActionType) -> Attributes {
        let mut record = Attributes::new();
        let mut add = |root: Root, narrowed: &AttributeType| {
            if let Some(value) = fitting(reader, root, narrowed) {
                record.insert(root.as_str().into(), value);
            }
        };
        self.fixed.iter().for_each(|(root, narrowed)| add(*root, narrowed));
        for (root, attribute) in &action.declared {
            if self.fixed.iter().any(|(fixed, _)| fixed == root) {
                continue;
            }
            if let Some(ty) = narrow(&attribute.ty, &below(*root, &self.context)) {
                add(*root, &AttributeType { ty, required: false });
            }
        }
        record
    }
}

/// What fits of a root: all of it, or those of its fields that do.
fn fitting(reader: &ContextReader<'_, '_>, root: Root, narrowed: &AttributeType) -> Option<Value> {
    let place = Place::new(root.as_str());
    let misfit = match reader.root(root, narrowed, &place) {
        Ok(value) => return value,
        Err(misfit) => misfit,
    };
    tracing::debug!(%misfit, "an attribute that is to be logged does not fit, and is left out");
    let mut all = Attributes::new();
    for (name, field) in narrowed.ty.fields().into_iter().flatten() {
        let ty = Type::Record(RecordType::from([(name.clone(), field.clone())]));
        if let Ok(Some(Value::Record(own))) = reader.root(root, &AttributeType { ty, required: false }, &place) {
            all.extend(own);
        }
    }
    (!all.is_empty()).then_some(Value::Record(all))
}

/// What is left of the paths that lead through a root.
fn below(root: Root, paths: &[ClaimPath]) -> Vec<&[Step]> {
    paths.iter().filter(|path| path.name() == root.as_str()).map(ClaimPath::steps).collect()
}

/// A type cut down to these paths, with nothing required; `None` if nothing is left.
fn narrow(ty: &Type, paths: &[&[Step]]) -> Option<Type> {
    if paths.iter().any(|path| path.is_empty()) {
        return Some(ty.clone());
    }
    let Type::Record(fields) = ty else { return None };
    let narrowed: RecordType = fields
        .iter()
        .filter_map(|(name, field)| {
            let rests = paths.iter().filter_map(|path| match path.split_first() {
                Some((Step::Name(first), rest)) if first == name => Some(rest),
                _ => None,
            });
            let ty = narrow(&field.ty, &rests.collect::<Vec<_>>())?;
            Some((name.clone(), AttributeType { ty, required: false }))
        })
        .collect();
    (!narrowed.is_empty()).then_some(Type::Record(narrowed))
}
