//! What was compiled last: a new version of a bundle costs what differs from the one before. Most publishes change a few policies and
//! no schema, while reading and linking a schema takes longer than all of ten policies.
//!
//! Only what had nothing wrong with it is remembered, so nothing that is to be said of a bundle is said only once.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use cedar_policy::Validator;
use sha2::{Digest, Sha256};

use super::compiled::Compiled;
use super::schema::Types;

/// The schema, and the files of policies, of what was compiled last.
#[derive(Default)]
pub struct Memory {
    schema: Option<Arc<Linked>>,
    /// The files that were held against this schema and found good.
    files: HashMap<FileKey, Arc<GoodFile>>,
}

/// A schema of all bundles over the base.
pub(super) struct Linked {
    /// Over its texts.
    pub(super) digest: [u8; 32],
    pub(super) validator: Validator,
    /// What it says of actions and entity types, before any policy has cut it down.
    pub(super) types: Types,
}

/// Which file it is: its bundle's name and list of annotations, its path and its text decide what its policies are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FileKey([u8; 32]);

impl FileKey {
    pub(super) fn of(bundle: &str, path: &str, text: &str) -> Self {
        // The lengths in front keep the encoding injective.
        let hash = [bundle, path, text]
            .iter()
            .fold(Sha256::new(), |hash, part| hash.chain_update((part.len() as u64).to_le_bytes()).chain_update(part));
        Self(hash.finalize().into())
    }
}

/// A file of static policies. Nothing is wrong with any of them under their schema, not even a warning (what depends on anything else is
/// looked at each time), and none looks further than at the entities of a
/// request (Cedar's validation level 1).
#[derive(Debug)]
pub(super) struct GoodFile {
    /// Each with its place in the file.
    pub(super) policies: Vec<(Arc<Compiled>, Option<(usize, usize)>)>,
}

impl Memory {
    /// What was made of these texts of a schema.
    pub(super) fn schema(&self, digest: &[u8; 32]) -> Option<Arc<Linked>> {
        self.schema.as_ref().filter(|own| own.digest == *digest).map(Arc::clone)
    }

    /// What was made of this file, under the schema that is remembered.
    pub(super) fn file(&self, key: &FileKey) -> Option<&Arc<GoodFile>> {
        self.files.get(key)
    }

    /// Whether nothing is remembered.
    pub(super) fn is_empty(&self) -> bool {
        self.schema.is_none()
    }

    /// Remembers this, and nothing else.
    pub(super) fn replace(&mut self, schema: Arc<Linked>, files: Vec<(FileKey, Arc<GoodFile>)>) {
        *self = Self { schema: Some(schema), files: files.into_iter().collect() };
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("files", &self.files.len()).finish_non_exhaustive()
    }
}
