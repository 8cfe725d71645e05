//! What bundles alone make of a snapshot, whatever else is in force beside them.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::compiled::Compiled;
use super::entities::Entities;
use super::header::BundleSummary;
use super::index::Index;
use super::routes::Routes;
use super::schema::{ActionType, Types};
use crate::model::{Denial, EntityUid, Principal, Query, Ruling};

/// What bundles alone make of a snapshot, whatever else is in force beside them.
#[derive(Debug)]
pub(super) struct Base {
    /// By id.
    pub(super) policies: Vec<Arc<Compiled>>,
    pub(super) index: Index,
    /// Whether any policy is in shadow mode.
    pub(super) has_shadow: bool,
    /// Over the texts of all schema files.
    pub(super) schema_digest: [u8; 32],
    pub(super) types: Types,
    pub(super) entities: Entities,
    pub(super) routes: Routes,
    pub(super) default_denial: Arc<Denial>,
    pub(super) silent: Silent,
    pub(super) bundles: Vec<BundleSummary>,
}

/// The rulings that no policy has a part in, each made once.
#[derive(Debug, Default)]
pub(super) struct Silent {
    pub(super) default_deny: OnceLock<Arc<Ruling>>,
    pub(super) not_applicable: OnceLock<Arc<Ruling>>,
    pub(super) unrouted: OnceLock<Arc<Ruling>>,
    pub(super) unknown_principal: OnceLock<Arc<Ruling>>,
}

impl Base {
    /// The action of a query; `None` if no route names the request: its action applies to nothing.
    pub(super) fn routed(&self, query: &Query) -> Option<&ActionType> {
        self.types.action(&query.action).filter(|action| action.applies())
    }

    /// A principal with those of its parents that the schema lets it be in: no policy speaks of the others.
    pub(super) fn admitted<'a>(&self, principal: &'a Principal) -> Cow<'a, Principal> {
        let Some(ancestors) = self.types.ancestors(principal.uid.type_name()) else { return Cow::Borrowed(principal) };
        let is_admitted = |parent: &&EntityUid| ancestors.contains(parent.type_name());
        if principal.parents.iter().all(|parent| is_admitted(&parent)) {
            return Cow::Borrowed(principal);
        }
        let parents = principal.parents.iter().filter(is_admitted).cloned().collect();
        Cow::Owned(Principal { parents, ..principal.clone() })
    }

    /// How long allows and denials may be remembered, as far as a bundle says so.
    pub(super) fn ttl(&self) -> (Option<Duration>, Option<Duration>) {
        let ttl = self.bundles.iter().find_map(|bundle| bundle.ttl);
        (ttl.and_then(|ttl| ttl.allow).map(|span| span.0), ttl.and_then(|ttl| ttl.deny).map(|span| span.0))
    }
}
