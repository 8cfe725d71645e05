//! Problems as snippets of their files, for terminals.

use std::fmt;

use miette::{
    Diagnostic, GraphicalTheme, LabeledSpan, MietteError, MietteSpanContents, SourceCode, SourceSpan, SpanContents,
};

use super::{Place, Problem, Severity, SourceFile};
use crate::terminal::{Stream, Styled};

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
        if handler.render_report(&mut out, &Snippet(problem)).is_err() {
            out.push_str(&format!("{problem}\n"));
        }
    }
    out
}

/// A [`Problem`] in the shape that miette renders. Its message leaves out the place, since the snippet shows it.
#[derive(Debug)]
struct Snippet<'a>(&'a Problem);

impl fmt::Display for Snippet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Place { source, span: None }) = &self.0.place {
            write!(f, "{}: ", source.name)?;
        }
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Snippet<'_> {}

impl Diagnostic for Snippet<'_> {
    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.0.severity {
            Severity::Info => miette::Severity::Advice,
            Severity::Warning => miette::Severity::Warning,
            Severity::Error => miette::Severity::Error,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.0.hint.as_ref().map(|hint| Box::new(hint) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.0.place.as_ref().map(|place| &*place.source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let (offset, length) = self.0.place.as_ref()?.span?;
        Some(Box::new(std::iter::once(LabeledSpan::new(Some("here".to_owned()), offset, length))))
    }
}
impl SourceCode for SourceFile {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        lines_before: usize,
        lines_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let first = self.line(span.offset()).0.saturating_sub(lines_before);
        let last = self.line(span.offset() + span.len()).0 + lines_after;
        let begin = self.lines().get(first).copied().unwrap_or(0);
        let end = self.lines().get(last + 1).copied().unwrap_or(self.text.len());
        let around = self.text.get(begin..end).ok_or(MietteError::OutOfBounds)?;
        let offset = span.offset().checked_sub(begin).ok_or(MietteError::OutOfBounds)?;
        let found = around.read_span(&SourceSpan::from((offset, span.len())), lines_before, lines_after)?;
        Ok(Box::new(MietteSpanContents::new_named(
            self.name.clone(),
            around
                .as_bytes()
                .get(found.span().offset()..found.span().offset() + found.span().len())
                .unwrap_or_default(),
            SourceSpan::from((found.span().offset() + begin, found.span().len())),
            found.line() + first,
            found.column(),
            found.line_count(),
        )))
    }
}
