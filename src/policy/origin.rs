//! Where in the files of bundles something stands.

use cedar_policy::Schema;
use cedar_policy_core::validator::ValidatorSchema;

use super::bundle::Bundle;
use super::layout::Form;
use super::mentions;
use crate::model::{EntityUid, PolicyId};
use crate::problem::Found;
use crate::strict_json;

/// Where a policy stands.
pub(super) fn origin<'a>(bundles: &'a [Bundle], id: &PolicyId) -> Option<Found<'a>> {
    let mut fresh = bundles.iter().flat_map(|bundle| &bundle.policies);
    let mut known = bundles
        .iter()
        .flat_map(|bundle| &bundle.known)
        .flat_map(|(_, good, source)| good.policies.iter().map(move |(policy, span)| (&policy.id, source, *span)));
    let found = fresh.find(|own| own.id() == id).map(|own| (&own.source, own.span));
    found.or_else(|| known.find(|(own, ..)| *own == id).map(|(_, source, span)| (source, span)))
}

/// Where the schema declares an action.
pub(super) fn declaration<'a>(bundles: &'a [Bundle], schema: &Schema, action: &EntityUid) -> Option<Found<'a>> {
    let schema: &ValidatorSchema = schema.as_ref();
    let declared = schema.get_action_id(action.as_ref())?;
    let mut sources = bundles.iter().flat_map(|bundle| &bundle.schemas);
    if let Some(loc) = declared.loc() {
        let (_, source) = sources.find(|(_, source)| *source.text == *loc.src)?;
        let declaration = source.text.get(loc.start()..loc.end())?;
        let found = mentions::declared_at(declaration, action.id().unescaped());
        return Some((source, Some(found.map_or((loc.start(), 1), |(at, length)| (loc.start() + at, length)))));
    }
    // Cedar knows no places in JSON.
    let namespace = action.type_name().namespace();
    sources.find_map(|(form, source)| {
        let json = (*form == Form::Json).then(|| strict_json::parse(source).ok()).flatten()?;
        let id: &str = action.id().unescaped();
        json.get(&namespace)?.get("actions")?.get(id)?;
        Some((source, strict_json::only_member(source, id)))
    })
}
