//! Reads YAML files that people write (the configuration, `bundle.yaml`, `routes.yaml`) and reports every problem in
//! them at once, each with its place.
//!
//! `saphyr` gives the tree with places, `deserr` the derived types that go on after the first fault; this file only
//! marries the two. See docs/decisions/0002-yaml.md for why.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::ops::ControlFlow;
use std::str::FromStr;
use std::sync::Arc;

use deserr::{
    DeserializeError, Deserr, ErrorKind, IntoValue, MergeWithError, Sequence, Value, ValueKind, ValuePointerRef,
};
use saphyr::{LoadableYamlNode, MarkedYamlOwned, ScalarOwned, YamlDataOwned};
use serde::Serialize;

use crate::problem::{Problem, SourceFile};

/// Reads one document into `T`.
///
/// # Errors
/// All problems of the file: a syntax error alone, else every key and value that does not fit.
pub fn parse<T: Deserr<Faults>>(source: &Arc<SourceFile>) -> Result<T, Vec<Problem>> {
    // `value_from_str` would make a string of it.
    let text = if source.text.trim().is_empty() { "{}" } else { &source.text };
    let documents = MarkedYamlOwned::load_from_str(text).map_err(|error| {
        let at = error.marker();
        let offset = offset(&source.text, at.line(), at.col());
        vec![Problem::error(format!("not valid YAML: {}", error.info())).at(source, Some((offset, 1)))]
    })?;
    let mut documents = documents.into_iter();
    let root = documents.next().unwrap_or_else(|| MarkedYamlOwned::value_from_str("{}"));
    if let Some(second) = documents.next() {
        let problem = Problem::error("a second document in the file").hint("keep one, without `---` in between");
        return Err(vec![problem.at(source, Some(span(&source.text, &second)))]);
    }
    let mut tags = Vec::new();
    tagged(&root, source, &mut tags);
    if !tags.is_empty() {
        return Err(tags);
    }
    deserr::deserialize(Node(root.clone()))
        .map_err(|Faults(faults)| faults.into_iter().map(|fault| fault.into_problem(source, &root)).collect())
}

/// Reports tags (`!secret x`), which nothing reads: those of YAML itself are resolved before.
fn tagged(node: &MarkedYamlOwned, source: &Arc<SourceFile>, problems: &mut Vec<Problem>) {
    match &node.data {
        YamlDataOwned::Tagged(tag, _) => {
            let problem = Problem::error(format!("the tag `{}{}` means nothing here", tag.handle, tag.suffix));
            problems.push(problem.hint("write the value without it").at(source, Some(span(&source.text, node))));
        }
        YamlDataOwned::Sequence(items) => items.iter().for_each(|item| tagged(item, source, problems)),
        YamlDataOwned::Mapping(entries) => {
            for (key, value) in entries {
                tagged(key, source, problems);
                tagged(value, source, problems);
            }
        }
        _ => {}
    }
}

/// What deserr collects: every fault with the path to its place.
#[derive(Debug)]
pub struct Faults(Vec<Fault>);

#[derive(Debug)]
struct Fault {
    path: Vec<Step>,
    /// The key at `path` that the fault is about, where it is about a key.
    key: Option<String>,
    message: String,
    hint: Option<String>,
}

#[derive(Debug)]
enum Step {
    Key(String),
    Index(usize),
}

fn path(location: ValuePointerRef<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut at = &location;
    loop {
        at = match at {
            ValuePointerRef::Origin => break,
            ValuePointerRef::Key { key, prev } => {
                steps.push(Step::Key((*key).to_owned()));
                prev
            }
            ValuePointerRef::Index { index, prev } => {
                steps.push(Step::Index(*index));
                prev
            }
        };
    }
    steps.reverse();
    steps
}

impl Faults {
    /// A fault that a `validate` or `try_from` function found, at the place that deserr is at.
    pub fn new(message: impl Into<String>, hint: Option<String>, location: ValuePointerRef<'_>) -> Self {
        Self(vec![Fault { path: path(location), key: None, message: message.into(), hint }])
    }
}

/// What a field's own parser says of a string that it cannot take: a message and a hint.
#[derive(Debug)]
pub struct Invalid {
    message: String,
    hint: Option<String>,
}

impl Invalid {
    /// What is wrong.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// For the command line, where nothing stands beside it.
impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

impl MergeWithError<Faults> for Faults {
    fn merge(own: Option<Self>, other: Faults, _: ValuePointerRef<'_>) -> ControlFlow<Self, Self> {
        let mut all = own.map_or_else(Vec::new, |faults| faults.0);
        all.extend(other.0);
        ControlFlow::Continue(Self(all))
    }
}

impl MergeWithError<Invalid> for Faults {
    fn merge(own: Option<Self>, other: Invalid, location: ValuePointerRef<'_>) -> ControlFlow<Self, Self> {
        Self::merge(own, Self::new(other.message, other.hint, location), location)
    }
}

impl DeserializeError for Faults {
    fn error<V: IntoValue>(
        own: Option<Self>,
        error: ErrorKind<'_, V>,
        location: ValuePointerRef<'_>,
    ) -> ControlFlow<Self, Self> {
        let mut key = None;
        let mut hint = None;
        let message = match error {
            ErrorKind::IncorrectValueKind { actual, accepted } => {
                let accepted = accepted.iter().map(|kind| kind_name(*kind)).collect::<Vec<_>>();
                let found = match actual.kind() {
                    ValueKind::NegativeInteger => "a negative number",
                    kind => kind_name(kind),
                };
                format!("expected {}, found {found}", one_of(&accepted))
            }
            ErrorKind::MissingField { field } => format!("`{field}` is missing"),
            ErrorKind::UnknownKey { key: unknown, accepted } => {
                key = Some(unknown.to_owned());
                hint = Some(suggest(unknown, accepted));
                format!("unknown key `{unknown}`")
            }
            ErrorKind::UnknownValue { value, accepted } => {
                hint = Some(suggest(value, accepted));
                format!("unknown value `{value}`")
            }
            ErrorKind::BadSequenceLen { actual, expected } => {
                format!("expected {expected} items, found {}", actual.len())
            }
            // deserr does not say what the tag was or could have been.
            ErrorKind::Unexpected { msg } if msg == "Incorrect tag value" => {
                hint = Some("the configuration reference lists the kinds".to_owned());
                "an entry of a kind that does not exist".to_owned()
            }
            ErrorKind::Unexpected { msg } => msg,
        };
        let fault = Fault { path: path(location), key, message, hint };
        Self::merge(own, Self(vec![fault]), location)
    }
}

/// "did you mean" for a word that is close to one of `known`, else all of them.
pub fn suggest(word: &str, known: &[&str]) -> String {
    match nearest(word, known) {
        Some(candidate) => format!("did you mean `{candidate}`?"),
        None => format!("known here: {}", known.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ")),
    }
}

/// The word that was probably meant, if any of them is near.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |candidate: &str| match word.eq_ignore_ascii_case(candidate) {
        true => usize::from(word != candidate),
        false => strsim::damerau_levenshtein(word, candidate),
    };
    let nearest = known.iter().map(|candidate| (distance(candidate), *candidate)).min();
    // Half of a word is another word: `a` is no slip of `id`.
    let near = |(distance, candidate): &(usize, &str)| {
        *distance <= 2.max(candidate.len() / 3) && *distance * 2 <= candidate.len().max(word.len())
    };
    nearest.filter(near).map(|(_, candidate)| candidate)
}

fn one_of(words: &[&str]) -> String {
    let mut words = words.to_vec();
    words.dedup();
    words.join(" or ")
}

fn kind_name(kind: ValueKind) -> &'static str {
    match kind {
        ValueKind::Null => "nothing",
        ValueKind::Boolean => "true or false",
        ValueKind::Integer | ValueKind::NegativeInteger => "a number",
        ValueKind::Float => "a number with a fraction",
        ValueKind::String => "a string",
        ValueKind::Sequence => "a list",
        ValueKind::Map => "a mapping",
    }
}

impl Fault {
    fn into_problem(self, source: &Arc<SourceFile>, root: &MarkedYamlOwned) -> Problem {
        let mut node = root;
        let mut path = String::new();
        for step in &self.path {
            let child = match step {
                Step::Key(key) => {
                    path.push_str(if path.is_empty() { "" } else { "." });
                    path.push_str(key);
                    entry(node, key).map(|(_, value)| value)
                }
                Step::Index(index) => {
                    path.push_str(&format!("[{index}]"));
                    match &node.data {
                        YamlDataOwned::Sequence(items) => items.get(*index),
                        _ => None,
                    }
                }
            };
            // The tree is the one that was read, so the way is there; if not, the nearest ancestor has to do.
            let Some(child) = child else { break };
            node = child;
        }
        let about = self.key.and_then(|key| entry(node, &key)).map_or(node, |(key, _)| key);
        let message = if path.is_empty() { self.message } else { format!("`{path}`: {}", self.message) };
        let problem = Problem::error(message).at(source, Some(span(&source.text, about)));
        match self.hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }
}

/// A key of a mapping and its value.
fn entry<'a>(node: &'a MarkedYamlOwned, key: &str) -> Option<(&'a MarkedYamlOwned, &'a MarkedYamlOwned)> {
    match &node.data {
        YamlDataOwned::Mapping(entries) => entries.iter().find(|(candidate, _)| key_text(candidate) == key),
        _ => None,
    }
}

/// Byte offset and length of a node; of the first line of one that spans several.
fn span(text: &str, node: &MarkedYamlOwned) -> (usize, usize) {
    let start = offset(text, node.span.start.line(), node.span.start.col());
    let end = offset(text, node.span.end.line(), node.span.end.col()).max(start);
    let first_line = text.get(start..end).map_or(0, |part| part.lines().next().unwrap_or("").trim_end().len());
    (start, first_line.max(1))
}

/// Byte offset of a line (from 1) and column (from 0, in characters).
fn offset(text: &str, line: usize, column: usize) -> usize {
    let line_start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let rest = text.get(line_start..).unwrap_or("");
    line_start + rest.char_indices().nth(column).map_or(rest.len(), |(at, _)| at)
}

/// A list that must not be empty.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct AtLeastOne<T>(pub Vec<T>);

impl<T: Deserr<Faults>> Deserr<Faults> for AtLeastOne<T> {
    fn deserialize_from_value<V: IntoValue>(value: Value<V>, location: ValuePointerRef<'_>) -> Result<Self, Faults> {
        let items = Vec::deserialize_from_value(value, location)?;
        if items.is_empty() {
            let hint = "leave the key out where it has a default".to_owned();
            return Err(Faults::new("there must be at least one", Some(hint), location));
        }
        Ok(Self(items))
    }
}

/// A mapping with keys that are data. deserr's own impl for maps forgets the faults that it found (0.6.4) and would leave
/// out the entries that they are in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Table<K: Ord, T>(pub BTreeMap<K, T>);

impl<K: Ord, T> Default for Table<K, T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + FromStr<Err: Into<Invalid>>, T: Deserr<Faults>> Deserr<Faults> for Table<K, T> {
    fn deserialize_from_value<V: IntoValue>(value: Value<V>, location: ValuePointerRef<'_>) -> Result<Self, Faults> {
        let Value::Map(entries) = value else {
            let error = ErrorKind::IncorrectValueKind { actual: value, accepted: &[ValueKind::Map] };
            return Err(deserr::take_cf_content(Faults::error(None, error, location)));
        };
        let (mut table, mut faults) = (BTreeMap::new(), Vec::new());
        for (name, value) in deserr::Map::into_iter(entries) {
            let value = T::deserialize_from_value(value.into_value(), location.push_key(&name));
            match (K::from_str(&name), value) {
                // Different strings may be one key, such as the name of a header.
                (Ok(key), Ok(_)) if table.contains_key(&key) => {
                    let message = format!("`{name}` is there twice: another key means the same");
                    let hint = Some("keep one of the two".to_owned());
                    faults.push(Fault { path: path(location), key: Some(name), message, hint });
                }
                (Ok(key), Ok(value)) => {
                    table.insert(key, value);
                }
                (key, value) => {
                    if let Err(invalid) = key {
                        let Invalid { message, hint } = invalid.into();
                        faults.push(Fault { path: path(location), key: Some(name), message, hint });
                    }
                    faults.extend(value.err().into_iter().flat_map(|own| own.0));
                }
            }
        }
        if faults.is_empty() { Ok(Self(table)) } else { Err(Faults(faults)) }
    }
}

impl From<Infallible> for Invalid {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

// === the tree, as deserr wants to see it ===

struct Node(MarkedYamlOwned);

fn key_text(node: &MarkedYamlOwned) -> String {
    match &node.data {
        YamlDataOwned::Value(ScalarOwned::String(text)) => text.clone(),
        YamlDataOwned::Value(ScalarOwned::Boolean(value)) => value.to_string(),
        YamlDataOwned::Value(ScalarOwned::Integer(value)) => value.to_string(),
        YamlDataOwned::Value(ScalarOwned::FloatingPoint(value)) => value.to_string(),
        YamlDataOwned::Representation(text, _, _) => text.clone(),
        _ => String::from("?"),
    }
}

impl IntoValue for Node {
    type Sequence = Nodes;
    type Map = Entries;

    fn kind(&self) -> ValueKind {
        match &self.0.data {
            YamlDataOwned::Value(ScalarOwned::Boolean(_)) => ValueKind::Boolean,
            YamlDataOwned::Value(ScalarOwned::Integer(value)) if *value < 0 => ValueKind::NegativeInteger,
            YamlDataOwned::Value(ScalarOwned::Integer(_)) => ValueKind::Integer,
            YamlDataOwned::Value(ScalarOwned::FloatingPoint(_)) => ValueKind::Float,
            YamlDataOwned::Value(ScalarOwned::String(_)) | YamlDataOwned::Representation(..) => ValueKind::String,
            YamlDataOwned::Sequence(_) => ValueKind::Sequence,
            YamlDataOwned::Mapping(_) => ValueKind::Map,
            _ => ValueKind::Null,
        }
    }

    fn into_value(self) -> Value<Self> {
        match self.0.data {
            YamlDataOwned::Value(ScalarOwned::Boolean(value)) => Value::Boolean(value),
            YamlDataOwned::Value(ScalarOwned::Integer(value)) => {
                u64::try_from(value).map_or(Value::NegativeInteger(value), Value::Integer)
            }
            YamlDataOwned::Value(ScalarOwned::FloatingPoint(value)) => Value::Float(value.into_inner()),
            YamlDataOwned::Value(ScalarOwned::String(text)) | YamlDataOwned::Representation(text, _, _) => {
                Value::String(text)
            }
            YamlDataOwned::Sequence(items) => Value::Sequence(Nodes(items)),
            YamlDataOwned::Mapping(entries) => {
                Value::Map(Entries(entries.into_iter().map(|(key, value)| (key_text(&key), value)).collect()))
            }
            YamlDataOwned::Tagged(_, inner) => Node(*inner).into_value(),
            _ => Value::Null,
        }
    }
}

struct Nodes(Vec<MarkedYamlOwned>);

impl Sequence for Nodes {
    type Value = Node;
    type Iter = std::iter::Map<std::vec::IntoIter<MarkedYamlOwned>, fn(MarkedYamlOwned) -> Node>;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn into_iter(self) -> Self::Iter {
        self.0.into_iter().map(Node)
    }
}

struct Entries(Vec<(String, MarkedYamlOwned)>);

impl deserr::Map for Entries {
    type Value = Node;
    type Iter =
        std::iter::Map<std::vec::IntoIter<(String, MarkedYamlOwned)>, fn((String, MarkedYamlOwned)) -> (String, Node)>;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn remove(&mut self, key: &str) -> Option<Node> {
        let at = self.0.iter().position(|(candidate, _)| candidate == key)?;
        Some(Node(self.0.remove(at).1))
    }

    fn into_iter(self) -> Self::Iter {
        self.0.into_iter().map(|(key, value)| (key, Node(value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserr, PartialEq)]
    #[deserr(error = Faults, deny_unknown_fields)]
    struct Sample {
        name: String,
        #[deserr(default)]
        sizes: Vec<u16>,
    }

    #[test]
    fn reports_every_problem_with_its_place() {
        let source = SourceFile::new("sample.yaml", "nmae: x\nsizes:\n  - 1\n  - two\n  - -3\n");
        let problems = parse::<Sample>(&source).expect_err("three faults");
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "sample.yaml:1:1: unknown key `nmae` (did you mean `name`?)",
                "sample.yaml:4:5: `sizes[1]`: expected a number, found a string",
                "sample.yaml:5:5: `sizes[2]`: expected a number, found a negative number",
                "sample.yaml:1:1: `name` is missing",
            ]
        );
    }

    #[test]
    fn tables_forget_no_fault() {
        let source = SourceFile::new("t.yaml", "a: 1\nb: x\nc: -1\n");
        let problems = parse::<Table<String, u8>>(&source).expect_err("two faults");
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("t.yaml:2:4: `b`: ") && lines[1].starts_with("t.yaml:3:4: `c`: "), "{lines:?}");
    }

    #[test]
    fn places_are_right_after_characters_of_several_bytes() {
        let source = SourceFile::new("s.yaml", "name: \"größe\"\nsizés: 1\n");
        let problems = parse::<Sample>(&source).expect_err("one fault");
        assert_eq!(problems[0].to_string(), "s.yaml:2:1: unknown key `sizés` (did you mean `sizes`?)");
    }

    #[test]
    fn syntax_errors_duplicate_keys_and_second_documents_are_refused() {
        for text in ["name: [", "name: a\nname: b", "name: a\n---\nname: b\n"] {
            let problems = parse::<Sample>(&SourceFile::new("s.yaml", text)).expect_err(text);
            assert_eq!(problems.len(), 1, "{problems:?}");
        }
    }
}
