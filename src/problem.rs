//! What is wrong with a file that a person wrote: a configuration or a bundle.
//!
//! Problems are collected, never thrown one by one: whoever fixes a file wants to see them all. They render as
//! one-liners for logs and as snippets (through `miette`) for terminals.

use std::fmt;
use std::sync::Arc;

use miette::{Diagnostic, GraphicalTheme, LabeledSpan, NamedSource, SourceCode};

use crate::terminal::{Stream, Styled};

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

/// A file that was read, kept for the snippets.
#[derive(Debug)]
pub struct SourceFile {
    /// The name to show.
    pub name: String,
    /// Its text.
    pub text: String,
}

impl SourceFile {
    /// Keeps a file's text under the name to show.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Arc<Self> {
        Arc::new(Self { name: name.into(), text: text.into() })
    }

    /// Line and column, both from 1, of a byte offset.
    fn line_column(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(&self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
        (line, column)
    }
}

impl Problem {
    /// An error without a place.
    pub fn error(message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, message: message.into(), hint: None, place: None }
    }

    /// A warning without a place.
    pub fn warning(message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(message) }
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

/// Renders problems with source snippets, for a terminal. Sources are of others, so what is hidden in them is written out, and then
/// nothing has colours.
pub fn render(problems: &[Problem]) -> Styled {
    let coloured = snippets(problems, GraphicalTheme::default());
    // As miette decides on it.
    match Stream::Out.is_terminal() && Stream::Err.is_terminal() {
        true => Styled::new(&snippets(problems, GraphicalTheme::unicode_nocolor()), coloured),
        false => Styled::plain(&coloured),
    }
}

fn snippets(problems: &[Problem], theme: GraphicalTheme) -> String {
    let handler = miette::GraphicalReportHandler::new_themed(theme);
    let mut out = String::new();
    for problem in problems {
        // Writing to a String cannot fail; if rendering does, the one-liner still says what is wrong.
        if handler.render_report(&mut out, &Snippet::new(problem)).is_err() {
            out.push_str(&format!("{problem}\n"));
        }
    }
    out
}

/// A [`Problem`] in the shape that miette renders. Its message leaves out the place, since the snippet shows it.
#[derive(Debug)]
struct Snippet<'a> {
    problem: &'a Problem,
    source: Option<NamedSource<String>>,
}

impl<'a> Snippet<'a> {
    fn new(problem: &'a Problem) -> Self {
        let source =
            problem.place.as_ref().map(|place| NamedSource::new(&place.source.name, place.source.text.clone()));
        Self { problem, source }
    }
}

impl fmt::Display for Snippet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Place { source, span: None }) = &self.problem.place {
            write!(f, "{}: ", source.name)?;
        }
        f.write_str(&self.problem.message)
    }
}

impl std::error::Error for Snippet<'_> {}

impl Diagnostic for Snippet<'_> {
    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.problem.severity {
            Severity::Warning => miette::Severity::Warning,
            Severity::Error => miette::Severity::Error,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.problem.hint.as_ref().map(|hint| Box::new(hint) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.as_ref().map(|source| source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let (offset, length) = self.problem.place.as_ref()?.span?;
        Some(Box::new(std::iter::once(LabeledSpan::new(Some("here".to_owned()), offset, length))))
    }
}
