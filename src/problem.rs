//! What is wrong with a file that a person wrote: a configuration or a bundle.
//!
//! Problems are collected, never thrown one by one: whoever fixes a file wants to see them all. They render as
//! one-liners for logs and as snippets (through `miette`) for terminals.

use std::fmt;
use std::sync::{Arc, OnceLock};

use miette::{Diagnostic, LabeledSpan};

#[cfg(feature = "cli")]
mod snippet;
#[cfg(feature = "cli")]
pub use snippet::render;

/// One thing that is wrong, or worth a warning, with its place and a hint.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Whether it stops the file from being used.
    pub severity: Severity,
    /// What is wrong: lower case, no trailing stop, user input in backticks.
    pub message: String,
    /// What to do about it, where that can be guessed.
    pub hint: Option<String>,
    /// Where it is; `None` if it has no place in a file.
    pub place: Option<Place>,
}

/// How bad a [`Problem`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Info,
    /// Worth a look; the file is used.
    Warning,
    /// The file cannot be used.
    Error,
}

/// A place in a file.
#[derive(Debug, Clone)]
pub struct Place {
    /// The file.
    pub source: Arc<SourceFile>,
    /// Byte offset of the first character, and length in bytes.
    pub span: Option<(usize, usize)>,
}

/// Where something was found: its file, and byte offset and length within it.
pub type Found<'a> = (&'a Arc<SourceFile>, Option<(usize, usize)>);

/// A file that was read, kept for the snippets.
#[derive(Debug)]
pub struct SourceFile {
    /// The name to show.
    pub name: String,
    /// Its text.
    pub text: String,
    /// Where each line begins, found once: a file with thousands of policies may have a problem in each of them.
    lines: OnceLock<Vec<usize>>,
}

impl SourceFile {
    /// Keeps a file's text under the name to show.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Arc<Self> {
        Arc::new(Self { name: name.into(), text: text.into(), lines: OnceLock::new() })
    }

    /// Line and column, both from 1, of a byte offset.
    fn line_column(&self, offset: usize) -> (usize, usize) {
        let (line, start) = self.line(offset);
        let column = self.text.get(start..offset).map_or(0, |before| before.chars().count()) + 1;
        (line + 1, column)
    }

    fn lines(&self) -> &[usize] {
        self.lines.get_or_init(|| {
            let after = self.text.match_indices('\n').map(|(at, _)| at + 1);
            std::iter::once(0).chain(after).collect()
        })
    }

    /// The line that a byte offset is in, from 0, and where that begins.
    fn line(&self, offset: usize) -> (usize, usize) {
        let lines = self.lines();
        let line = lines.partition_point(|start| *start <= offset).saturating_sub(1);
        (line, lines.get(line).copied().unwrap_or(0))
    }
}

/// As that of a `str`, but looking at the lines around the span alone and not at all of the file.
impl Problem {
    /// An error without a place.
    pub fn error(message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, message: message.into(), hint: None, place: None }
    }

    /// A warning without a place.
    pub fn warning(message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(message) }
    }

    /// Something that is worth knowing, without a place.
    pub fn info(message: impl Into<String>) -> Self {
        Self { severity: Severity::Info, ..Self::error(message) }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Puts it into a file, without a span.
    #[must_use]
    pub fn in_file(self, source: &Arc<SourceFile>) -> Self {
        self.at(source, None)
    }

    /// Puts it at a place in a file: byte offset and length.
    #[must_use]
    pub fn at(mut self, source: &Arc<SourceFile>, span: Option<(usize, usize)>) -> Self {
        self.place = Some(Place { source: Arc::clone(source), span });
        self
    }

    /// With a place, if it is known.
    pub fn at_known(self, place: Option<Found<'_>>) -> Self {
        match place {
            Some((source, span)) => self.at(source, span),
            None => self,
        }
    }

    /// Takes over message, help and first label of a diagnostic of another crate (Cedar's), placed in `source`.
    pub fn from_diagnostic(diagnostic: &dyn Diagnostic, source: &Arc<SourceFile>) -> Self {
        let labels: Vec<LabeledSpan> = diagnostic.labels().into_iter().flatten().collect();
        let span = labels.first().map(|label| (label.offset(), label.len()));
        let mut message = diagnostic.to_string();
        if let Some(text) = labels.first().and_then(LabeledSpan::label).filter(|text| !message.contains(text)) {
            message = format!("{message}: {text}");
        }
        let severity = match diagnostic.severity() {
            Some(miette::Severity::Warning | miette::Severity::Advice) => Severity::Warning,
            _ => Severity::Error,
        };
        let hint = diagnostic.help().map(|help| help.to_string());
        Self { severity, message, hint, place: Some(Place { source: Arc::clone(source), span }) }
    }

    /// Whether it stops the file from being used.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// Whether it is worth a look, at least.
    pub fn is_warning(&self) -> bool {
        self.severity >= Severity::Warning
    }
}

/// `file:line:column: message (hint)`, on one line.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Place { source, span }) = &self.place {
            write!(f, "{}:", source.name)?;
            if let Some((offset, _)) = span {
                let (line, column) = source.line_column(*offset);
                write!(f, "{line}:{column}:")?;
            }
            f.write_str(" ")?;
        }
        f.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

/// All problems on one line, for logs.
pub fn one_line(problems: &[Problem]) -> String {
    problems.iter().map(|problem| problem.to_string().replace('\n', " ")).collect::<Vec<_>>().join("; ")
}
