//! The log of the program, on stderr, and the ids of a trace that a request belongs to.

use std::error::Error;
use std::fmt;
use std::io;

use deserr::Deserr;
use serde::{Serialize, Serializer};
use tracing::Dispatch;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::terminal::{CleanLines, Stream};
use crate::yaml::{Faults, Invalid, suggest};

/// `log:` the program's own log. It goes to stderr.
#[derive(Debug, Clone, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Config {
    /// What is logged: a level, or directives such as `info,stockade::feed=debug`. Default `info`.
    #[deserr(default = Self::default().level, try_from(String) = directives -> Invalid)]
    pub level: String,
    /// `json`, one object per line, or `text` for people. Default `json`.
    #[deserr(default)]
    pub format: Format,
}

/// The shape of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserr, Serialize)]
#[deserr(error = Faults, rename_all = lowercase)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object per line, its fields at the top level.
    #[default]
    Json,
    /// For people.
    Text,
}

impl Default for Config {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: Format::Json }
    }
}

/// Starts logging. Once per process.
///
/// # Errors
/// If a subscriber is there already, or the level does not parse, which [`Config`] has made sure of.
#[expect(clippy::disallowed_methods, reason = "what goes there is cleaned line by line")]
pub fn init(config: &Config) -> Result<(), Box<dyn Error + Send + Sync>> {
    Ok(dispatch(config, io::stderr, Stream::Err.is_terminal())?.try_init()?)
}

fn dispatch<W>(config: &Config, writer: W, colours: bool) -> Result<Dispatch, Box<dyn Error + Send + Sync>>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // What is logged comes from others too.
    let coloured = colours && config.format == Format::Text;
    let writer = Cleaning { inner: writer, coloured };
    let builder = tracing_subscriber::fmt().with_env_filter(EnvFilter::try_new(&config.level)?).with_writer(writer);
    Ok(match config.format {
        Format::Json => builder.json().flatten_event(true).with_current_span(false).with_span_list(false).into(),
        Format::Text => builder.with_ansi(colours).into(),
    })
}

/// Makes writers that clean what they write.
struct Cleaning<W> {
    inner: W,
    coloured: bool,
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for Cleaning<W> {
    type Writer = CleanLines<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        CleanLines { inner: self.inner.make_writer(), coloured: self.coloured }
    }
}

fn directives(text: String) -> Result<String, Invalid> {
    for directive in text.split(',').map(str::trim) {
        // A misspelt level would be read as the name of a target, and silence everything else.
        let bare = !directive.contains(['=', '[']);
        if bare && directive.parse::<LevelFilter>().is_err() {
            let hint = suggest(directive, &["error", "warn", "info", "debug", "trace", "off"]);
            return Err(Invalid::new(format!("`{directive}` is not a level")).hint(hint));
        }
    }
    match EnvFilter::builder().parse(&text) {
        Ok(_) => Ok(text),
        Err(error) => {
            Err(Invalid::new(format!("`{text}`: {error}")).hint("like `info` or `info,stockade::feed=debug`"))
        }
    }
}

// === W3C Trace Context ===

/// A `traceparent` header (<https://www.w3.org/TR/trace-context/#traceparent-header>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace that the request belongs to.
    pub trace_id: TraceId,
    /// The span that called us.
    pub parent_id: SpanId,
    /// Whether the caller records the trace.
    pub sampled: bool,
}

/// Sixteen bytes, not all zero; written as 32 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

/// Eight bytes, not all zero; written as 16 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(u64);

impl TraceParent {
    /// Reads the header's value; `None` if it breaks the rules, and then the request has no trace. Versions to come may
    /// append fields, which are skipped; version `ff` never comes.
    pub fn parse(value: &str) -> Option<Self> {
        let mut fields = value.split('-');
        let version = hex(fields.next()?, 2)?;
        let trace_id = hex(fields.next()?, 32).filter(|id| *id != 0)?;
        let parent_id = hex(fields.next()?, 16).filter(|id| *id != 0)?;
        let flags = hex(fields.next()?, 2)?;
        if version == 0xff || (version == 0 && fields.next().is_some()) {
            return None;
        }
        let parent_id = SpanId(u64::try_from(parent_id).ok()?);
        Some(Self { trace_id: TraceId(trace_id), parent_id, sampled: flags & 1 == 1 })
    }
}

/// So many lower-case hex digits, and nothing else: no sign, no upper case.
fn hex(field: &str, digits: usize) -> Option<u128> {
    let plain = field.len() == digits && field.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    plain.then(|| u128::from_str_radix(field, 16).ok()).flatten()
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for TraceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::problem::SourceFile;
    use crate::yaml;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn traceparent_is_read_by_the_book() {
        let good = [
            (format!("00-{TRACE}-{SPAN}-01"), true),
            (format!("00-{TRACE}-{SPAN}-00"), false),
            (format!("00-{TRACE}-{SPAN}-03"), true),
            (format!("01-{TRACE}-{SPAN}-01"), true),
            (format!("cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like"), true),
        ];
        for (text, sampled) in good {
            let parsed = TraceParent::parse(&text).expect(&text);
            assert_eq!((parsed.trace_id.to_string(), parsed.parent_id.to_string()), (TRACE.into(), SPAN.into()));
            assert_eq!(parsed.sampled, sampled, "{text}");
        }
        let zeros = "0".repeat(32);
        for bad in [
            String::new(),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{zeros}-{SPAN}-01"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-01-"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("cc-{TRACE}-{SPAN}-01.more"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-+{}-{SPAN}-01", &TRACE[1..]),
            format!(" 00-{TRACE}-{SPAN}-01"),
            format!("00-{SPAN}-{TRACE}-01"),
        ] {
            assert_eq!(TraceParent::parse(&bad), None, "{bad}");
        }
    }

    #[test]
    fn levels_are_checked() {
        let check = |text: &str| yaml::parse::<Config>(&SourceFile::new("c.yaml", text));
        assert_eq!(check("{}").expect("defaults"), Config::default());
        for good in ["level: warn", "level: \"info,stockade::feed=debug\"", "format: text"] {
            check(good).expect(good);
        }
        for (bad, message) in [
            ("level: inof", "c.yaml:1:8: `level`: `inof` is not a level (did you mean `info`?)"),
            ("format: xml", "c.yaml:1:9: `format`: unknown value `xml` (known here: `json`, `text`)"),
        ] {
            assert_eq!(check(bad).expect_err(bad)[0].to_string(), message);
        }
        assert!(check("level: \"stockade=loud\"").is_err());
    }

    #[test]
    fn json_lines_have_their_fields_at_the_top() {
        #[derive(Clone, Default)]
        struct Shared(Arc<Mutex<Vec<u8>>>);
        impl io::Write for Shared {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().expect("alone").write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let out = Shared::default();
        let writer = out.clone();
        let dispatch = dispatch(&Config::default(), move || writer.clone(), false).expect("the default level");
        tracing::dispatcher::with_default(&dispatch, || {
            tracing::info!(listener = "admin", address = "tcp://127.0.0.1:123", "listening");
            tracing::debug!("too low");
            tracing::info!(pod = "\u{1b}[2J\u{9b}\u{202e}\n", "hostile");
        });
        let text = String::from_utf8(out.0.lock().expect("alone").clone()).expect("text");
        let [text, hostile] = text.lines().collect::<Vec<_>>().try_into().expect("two lines");
        assert!(hostile.contains(r#""pod":"\u001b[2J\u009b\u202e\n""#), "{hostile}");
        let line: serde_json::Value = serde_json::from_str(text).expect("a line of JSON");
        assert_eq!((&line["level"], &line["message"]), (&"INFO".into(), &"listening".into()));
        assert_eq!((&line["listener"], &line["address"]), (&"admin".into(), &"tcp://127.0.0.1:123".into()));
    }
}
