//! The one way out to stdout and stderr. What is printed comes from pods, publishers, servers, bundles and file names: nothing in it
//! may move the cursor, hide itself, or turn the direction of what stands beside it.
//!
//! Whatever goes out is cleaned, by `outln!`, `errln!` and their likes; clippy refuses `println!` elsewhere (`clippy.toml`).
//! Colours are ours alone: a [`Styled`] text is shown as such only if the same text without any colours holds nothing to be cleaned.

#![expect(clippy::disallowed_methods, reason = "this is the one way out")]

use std::borrow::Cow;
use std::fmt;
use std::io::{self, ErrorKind, IsTerminal, Write};

/// Prints to stdout, cleaned.
#[cfg(feature = "cli")]
macro_rules! out {
    ($($text:tt)*) => { $crate::terminal::print(::std::format_args!($($text)*), false) };
}

/// Prints a line to stdout, cleaned.
#[cfg(feature = "cli")]
macro_rules! outln {
    ($($text:tt)*) => { $crate::terminal::print(::std::format_args!($($text)*), true) };
}

/// Prints a line to stderr, cleaned.
#[cfg(feature = "cli")]
macro_rules! errln {
    ($($text:tt)*) => { $crate::terminal::complain(::std::format_args!($($text)*)) };
}

#[cfg(feature = "cli")]
pub(crate) use {errln, out, outln};

/// Whether a character shows nothing by itself and changes how others are shown: controls but for the ends of lines and tabs, line
/// separators, and what Unicode calls format characters.
fn is_hidden(c: char) -> bool {
    matches!(c,
        '\0'..='\u{8}' | '\u{b}'..='\u{1f}' | '\u{7f}'..='\u{9f}'
        | '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}'
        | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e007f}')
}

/// A text in which what is hidden is written out, as `\u001b`: in JSON, that is the same text.
pub fn clean(text: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~' | b'\n' | b'\t');
    if text.bytes().all(is_plain) || !text.chars().any(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut cleaned = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_hidden(c) {
            cleaned.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            cleaned.push(c);
        }
    }
    Cow::Owned(cleaned)
}

/// The same for a part of a line, which ends no line either and has no tabs.
pub fn clean_line(text: &str) -> String {
    clean(text).replace(['\n', '\t'], " ")
}

/// The most characters of a [`clean_excerpt`].
#[cfg(feature = "nats")]
const EXCERPT: usize = 200;

/// The same for what others wrote at any length: it has an end.
#[cfg(feature = "nats")]
pub fn clean_excerpt(text: &str) -> String {
    let mut shown = clean_line(&text.chars().take(EXCERPT).collect::<String>());
    if text.chars().nth(EXCERPT).is_some() {
        shown.push('…');
    }
    shown
}

/// The same for lines of a log.
pub(crate) fn clean_bytes(line: &[u8]) -> Cow<'_, [u8]> {
    if line.iter().all(|byte| matches!(byte, b' '..=b'~')) {
        return Cow::Borrowed(line);
    }
    match String::from_utf8_lossy(line) {
        Cow::Borrowed(text) => match clean(text) {
            Cow::Borrowed(_) => Cow::Borrowed(line),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        },
        Cow::Owned(text) => Cow::Owned(clean(&text).into_owned().into_bytes()),
    }
}

/// A text with colours of ours.
#[derive(Debug)]
pub struct Styled(String);

impl Styled {
    /// `coloured` is `plain` with colours. If that holds something hidden, whoever wrote it may have forged colours, and it has none.
    pub fn new(plain: &str, coloured: String) -> Self {
        match clean(plain) {
            Cow::Borrowed(_) => Self(coloured),
            Cow::Owned(cleaned) => Self(cleaned),
        }
    }

    /// Without any colours.
    pub fn plain(text: &str) -> Self {
        Self(clean(text).into_owned())
    }
}

impl fmt::Display for Styled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where something goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

impl Stream {
    /// Whether a person looks at it, who may want colours.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Out => io::stdout().is_terminal(),
            Self::Err => io::stderr().is_terminal(),
        }
    }

    /// Prints a text with its colours.
    pub fn show(self, text: &Styled) {
        self.write(&text.0);
    }

    /// Whoever reads may have gone away, which is no fault of ours (`stockade history | head`). Anything else that keeps an answer from
    /// being written must not look like success.
    fn write(self, text: &str) {
        let written = match self {
            Self::Out => io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()),
            Self::Err => io::stderr().write_all(text.as_bytes()),
        };
        if let (Self::Out, Err(error)) = (self, written)
            && error.kind() != ErrorKind::BrokenPipe
        {
            complain(format_args!("stdout cannot be written: {error}"));
            std::process::exit(1);
        }
    }
}

/// As `out!` and `outln!`.
pub fn print(text: fmt::Arguments<'_>, is_line: bool) {
    let end = if is_line { "\n" } else { "" };
    Stream::Out.write(&clean(&format!("{text}{end}")));
}

/// As `errln!`.
pub fn complain(text: fmt::Arguments<'_>) {
    Stream::Err.write(&clean(&format!("{text}\n")));
}

/// Clears the screen of a terminal, for what is shown again and again.
pub fn clear() {
    Stream::Out.write("\u{1b}[H\u{1b}[2J");
}

/// Cleans what is written to a log, line by line, but for the colours of who writes it.
#[derive(Debug)]
pub(crate) struct CleanLines<W> {
    pub(crate) inner: W,
    pub(crate) coloured: bool,
}

impl<W: Write> Write for CleanLines<W> {
    /// Takes all of it: a logger gives whole lines.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        if self.coloured {
            // The logger has written out what is not its own.
            let pieces: Vec<Cow<'_, str>> = text.split('\u{1b}').map(clean).collect();
            self.inner.write_all(pieces.join("\u{1b}").as_bytes())?;
        } else {
            self.inner.write_all(clean(&text).as_bytes())?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_is_written_out_and_nothing_else_is_touched() {
        for text in ["", "plain\n\ttext", "naïve Ωμέγα 日本 👍 e\u{301}", "C:\\u001b"] {
            assert!(matches!(clean(text), Cow::Borrowed(own) if own == text), "{text}");
        }
        for (hostile, expected) in [
            ("\u{1b}[2J", "\\u001b[2J"),
            ("a\rb\u{7f}\u{9b}31m", "a\\u000db\\u007f\\u009b31m"),
            ("\u{202e}evil\u{2066}\u{200f}\u{feff}", "\\u202eevil\\u2066\\u200f\\ufeff"),
            ("\u{2028}\u{2029}\u{85}", "\\u2028\\u2029\\u0085"),
            ("\u{e0041}", "\\udb40\\udc41"),
        ] {
            assert_eq!(clean(hostile), expected);
            assert_eq!(clean_bytes(hostile.as_bytes()), expected.as_bytes());
        }
        assert_eq!(clean_line("a\nb\tc\u{1b}"), "a b c\\u001b");
        assert_eq!(clean_bytes(b"a\xffb"), "a\u{fffd}b".as_bytes());
    }

    #[test]
    fn every_control_and_direction_is_hidden() {
        for c in ('\0'..=char::MAX).filter(|c| c.is_control() && !matches!(c, '\n' | '\t')) {
            assert!(is_hidden(c), "{c:?}");
        }
        // Bidi_Control, of Unicode's PropList.txt.
        for c in ['\u{61c}', '\u{200e}', '\u{200f}']
            .into_iter()
            .chain('\u{202a}'..='\u{202e}')
            .chain('\u{2066}'..='\u{2069}')
        {
            assert!(is_hidden(c), "{c:?}");
        }
    }

    #[test]
    fn cleaned_json_says_the_same() {
        let all: String = ('\0'..='\u{ffff}').chain('\u{e0000}'..='\u{e007f}').collect();
        let json = serde_json::json!({ all.clone(): all });
        for text in [json.to_string(), format!("{json:#}")] {
            let cleaned = clean(&text);
            assert!(!cleaned.chars().any(is_hidden));
            assert_eq!(serde_json::from_str::<serde_json::Value>(&cleaned).expect("json"), json);
        }
    }

    #[test]
    fn colours_are_not_forged() {
        let coloured = |text: &str| Styled::new(text, format!("\u{1b}[31m{text}\u{1b}[0m")).to_string();
        assert_eq!(coloured("good"), "\u{1b}[31mgood\u{1b}[0m");
        assert_eq!(coloured("\u{1b}[8mhidden"), "\\u001b[8mhidden");
        assert_eq!(Styled::plain("\u{1b}[8mhidden").to_string(), "\\u001b[8mhidden");
        let mut log = CleanLines { inner: Vec::new(), coloured: false };
        log.write_all("\u{1b}[31m \u{202e}\n".as_bytes()).expect("written");
        assert_eq!(log.inner, b"\\u001b[31m \\u202e\n");
        let mut log = CleanLines { inner: Vec::new(), coloured: true };
        log.write_all("\u{1b}[31m \u{202e}\n".as_bytes()).expect("written");
        assert_eq!(log.inner, b"\x1b[31m \\u202e\n");
    }
}
