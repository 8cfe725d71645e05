//! What commands print: errors, counts, tables.

#[cfg(feature = "nats")]
pub(super) mod changes;
mod error;
#[cfg(feature = "nats")]
pub(super) mod rollout;
#[cfg(feature = "nats")]
pub(super) mod sidecars;

use std::process::ExitCode;
#[cfg(feature = "nats")]
use std::time::Duration;

#[cfg(feature = "nats")]
use comfy_table::{Row, Table, presets};

pub(crate) use error::Error;

use crate::problem::{self, Problem};
use crate::terminal::{Stream, errln};

/// Prints problems to stderr, with their places.
pub(crate) fn show(problems: &[Problem]) {
    Stream::Err.show(&problem::render(problems));
}

/// What a command exits with, after its error was printed.
pub(crate) fn ended(ended: Result<ExitCode, Error>) -> ExitCode {
    ended.unwrap_or_else(|error| {
        errln!("{error}");
        ExitCode::FAILURE
    })
}

/// Runs a command that uses the store to its end, and prints why it failed.
#[cfg(feature = "nats")]
pub(crate) fn run(command: impl Future<Output = Result<ExitCode, Error>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    ended(runtime.map_err(Error::Runtime).and_then(|runtime| runtime.block_on(command)))
}

/// A number and its noun: `1 warning`, `2 warnings`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    match (number, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        (_, None) => format!("{number} {noun}s"),
    }
}

/// A table of plain columns, each as wide as its widest cell.
#[cfg(feature = "nats")]
pub(crate) fn columns<const N: usize>(header: &[&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(Row::from(*header));
    table.add_rows(rows.into_iter().map(Row::from));
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 2));
    });
    format!("{}\n", table.trim_fmt())
}

#[cfg(feature = "nats")]
/// A length of time in one unit.
pub(crate) fn ago(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..=119 => format!("{seconds}s"),
        seconds @ 120..=7_199 => format!("{}m", seconds / 60),
        seconds @ 7_200..=172_799 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_agree_with_their_nouns() {
        for (number, noun, expected) in
            [(0, "test", "0 tests"), (1, "policy", "1 policy"), (2, "policy", "2 policies"), (1, "test", "1 test")]
        {
            assert_eq!(count(number, noun), expected);
        }
    }

    #[cfg(feature = "nats")]
    #[test]
    fn columns_are_as_wide_as_what_they_show() {
        let rows = [["a".to_owned(), "1".to_owned()], ["漢字 b".to_owned(), "22".to_owned()]];
        assert_eq!(columns(&["POD", "N"], rows), "POD     N\na       1\n漢字 b  22\n");
    }

    #[cfg(feature = "nats")]
    #[test]
    fn ages_have_one_unit() {
        for (seconds, expected) in [(0, "0s"), (119, "119s"), (120, "2m"), (7_200, "2h"), (172_800, "2d")] {
            assert_eq!(ago(Duration::from_secs(seconds)), expected);
        }
    }
}
