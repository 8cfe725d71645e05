//! The binary `stockade`: see the library for everything.

use std::process::ExitCode;

/// A check makes and frees some thirty small things. Beside a hundred thousand remembered decisions, glibc's allocator takes a
/// sixth of its time for that (docs/decisions/0005-hot-path.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    stockade::cli::run()
}
