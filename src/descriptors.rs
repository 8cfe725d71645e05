//! File descriptors: as many as the kernel grants, shared out so that no listener can take those of another.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Kept for everything that is no accepted connection: files, the store, logs, what the runtime needs.
const RESERVED: usize = 64;

/// Raises the limit of open files to what the process may have at most; what it is then, `None` if there is no limit.
pub fn raise() -> Option<usize> {
    let before = getrlimit(Resource::Nofile);
    // If it fails, what was there before still holds.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: before.maximum, ..before });
    getrlimit(Resource::Nofile).current.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// How many connections each listener may have, of those that it wants: all of them, or in proportion if the limit is too
/// low for that. Together they leave what is reserved.
pub fn share<const N: usize>(limit: Option<usize>, wanted: [usize; N]) -> [usize; N] {
    let total = wanted.iter().fold(0_usize, |total, own| total.saturating_add(*own)).max(1);
    // Where there is next to nothing, half of it is kept.
    let available = limit.map_or(usize::MAX, |limit| limit.saturating_sub(RESERVED).max(limit / 2));
    if total <= available {
        return wanted;
    }
    let part = |own: usize| usize::try_from(own as u128 * available as u128 / total as u128).unwrap_or(own);
    wanted.map(|own| part(own).max(1).min(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_shared_in_proportion() {
        for (limit, wanted, expected) in [
            (None, [320, 32, 0], [320, 32, 0]),
            (Some(1 << 20), [320, 32, 32], [320, 32, 32]),
            (Some(416), [320, 32, 0], [320, 32, 0]),
            (Some(240), [320, 32, 0], [160, 16, 0]),
            (Some(64), [320, 32, 32], [26, 2, 2]),
            (Some(4), [320, 32, 0], [1, 1, 0]),
            (Some(1 << 20), [usize::MAX, 32, 0], [1_048_512, 1, 0]),
            (Some(1024), [0, 0, 0], [0, 0, 0]),
        ] {
            let shared = share(limit, wanted);
            assert_eq!(shared, expected, "{limit:?} {wanted:?}");
        }
    }
}
