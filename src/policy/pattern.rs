//! What a route matches: methods and a path template, or a gRPC method.
//!
//! There is one form of template. What other routers write (`:id`, `<id>`, `/*`, `{id:[0-9]+}`) would be a literal here
//! that no request has, and a rule about such a route would never be in force. So each is refused, with the form that is
//! meant; and so is every literal that no canonical path has (`ext_authz::path`).

use deserr::Deserr;

use crate::yaml::{Faults, Invalid};

/// What a route matches.
#[derive(Debug, Clone, PartialEq, Eq, Deserr)]
#[deserr(error = Faults, try_from(String) = Pattern::parse -> Invalid)]
pub enum Pattern {
    /// Methods and a path template.
    Http {
        /// The methods, in capitals.
        methods: Vec<String>,
        /// The template, in matchit's syntax: `{name}` for a segment, `{*name}` for the rest.
        path: String,
        /// Its parameters, in its order.
        parameters: Vec<Parameter>,
    },
    /// A gRPC method.
    Grpc {
        /// `package.Service`
        service: String,
        /// `Method`
        method: String,
    },
}

/// A parameter of a path template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Whether it is the rest of the path, `{*name}`, which can have slashes.
    pub is_rest: bool,
}

/// What is wrong, and what to do about it.
type Fault = (String, String);

const LIKE: &str = "like `GET /books/{book_id}` or `grpc bookstore.v1.Books/GetBook`";

impl Pattern {
    fn parse(text: String) -> Result<Self, Invalid> {
        read(&text).map_err(|(what, hint)| Invalid::new(format!("`{text}` is not a route: {what}")).hint(hint))
    }

    /// The parameters of the template, in its order.
    pub fn parameters(&self) -> &[Parameter] {
        match self {
            Self::Http { parameters, .. } => parameters,
            Self::Grpc { .. } => &[],
        }
    }

    /// The path that it matches, the names of parameters aside.
    pub fn shape(&self) -> String {
        match self {
            Self::Http { path, parameters, .. } => parameters.iter().fold(path.clone(), |shape, own| {
                let star = if own.is_rest { "*" } else { "" };
                shape.replace(&format!("{{{star}{}}}", own.name), &format!("{{{star}}}"))
            }),
            Self::Grpc { service, method } => format!("/{service}/{method}"),
        }
    }

    /// What other routers would read differently, while it can be meant as it stands: OData and FHIR have literals like
    /// `$metadata`.
    pub fn doubt(&self) -> Option<Fault> {
        let Self::Http { path, .. } = self else { return None };
        let segment = path.split('/').find(|segment| segment.len() > 1 && segment.starts_with('$'))?;
        let name = segment.trim_start_matches('$');
        Some((
            format!("`{segment}` in route `{self}` is a literal"),
            format!("a parameter is `{{{name}}}`; if the literal is meant, nothing is wrong"),
        ))
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http { methods, path, .. } => write!(f, "{} {path}", methods.join("|")),
            Self::Grpc { service, method } => write!(f, "grpc {service}/{method}"),
        }
    }
}

fn fault<T>(what: impl Into<String>, hint: impl Into<String>) -> Result<T, Fault> {
    Err((what.into(), hint.into()))
}

fn read(text: &str) -> Result<Pattern, Fault> {
    match text.split_once(' ') {
        None if text.starts_with('/') => fault("it has no method", format!("such as `GET {text}`")),
        None => fault("it is no method and path", LIKE),
        Some((word, rest)) if word.eq_ignore_ascii_case("grpc") => grpc(word, rest),
        Some((word, path)) => {
            let methods = methods(word)?;
            let parameters = template(path)?;
            Ok(Pattern::Http { methods, path: path.to_owned(), parameters })
        }
    }
}

// === gRPC ===

fn grpc(word: &str, rest: &str) -> Result<Pattern, Fault> {
    let is_name =
        |name: &str| name.starts_with(is_name_start) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if word != "grpc" {
        return fault(format!("`{word}` is no method"), format!("`grpc {rest}`, in lower case"));
    }
    if rest.contains('*') {
        return fault("a gRPC route is one method", "a route for each, such as `grpc bookstore.v1.Books/GetBook`");
    }
    match rest.split_once('/') {
        Some((service, method)) if service.split('.').all(is_name) && is_name(method) => {
            Ok(Pattern::Grpc { service: service.to_owned(), method: method.to_owned() })
        }
        _ => fault(
            format!("`{rest}` is no service and method"),
            "such as `grpc bookstore.v1.Books/GetBook`: no slash in front, one before the method",
        ),
    }
}

fn is_name_start(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_'
}

// === methods ===

/// The methods that HTTP itself defines (RFC 9110, 9.3; RFC 5789): each an action of the base schema.
pub(super) const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// Words that mean every method elsewhere.
const ANY: [&str; 3] = ["*", "ANY", "ALL"];

fn methods(word: &str) -> Result<Vec<String>, Fault> {
    if word.contains(',') {
        return fault("methods are separated by `|`", format!("`{}`", word.replace(',', "|")));
    }
    let mut methods: Vec<String> = Vec::new();
    for method in word.split('|') {
        let upper = method.to_ascii_uppercase();
        if ANY.contains(&upper.as_str()) {
            return fault(format!("`{method}` is no method"), "name each, such as `GET|POST|PUT|PATCH|DELETE`");
        }
        if method.is_empty() || !upper.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-') {
            return fault(format!("`{method}` is no method"), LIKE);
        }
        if upper != method {
            return fault(format!("`{method}` is no method"), format!("`{upper}`: methods are written in capitals"));
        }
        let near = METHODS.into_iter().find(|known| strsim::damerau_levenshtein(known, method) == 1);
        if let Some(near) = near.filter(|_| !METHODS.contains(&method)) {
            return fault(format!("no request has the method `{method}`"), format!("did you mean `{near}`?"));
        }
        if methods.iter().any(|known| known == method) {
            return fault(format!("`{method}` is there twice"), "name each method once");
        }
        methods.push(upper);
    }
    Ok(methods)
}

// === path templates ===

/// What stands for a parameter while the literals are looked at. No template has control characters.
const SEGMENT: char = '\u{1}';
const REST: char = '\u{2}';

const DECODED: &str = "templates are matched against the decoded path";

/// Checks a path template; gives its parameters.
fn template(path: &str) -> Result<Vec<Parameter>, Fault> {
    if path.contains("://") {
        return fault("it has a scheme and a host", "the path alone; policies read `context.host`");
    }
    if !path.starts_with('/') {
        return fault(format!("`{path}` does not begin with `/`"), LIKE);
    }
    if path.contains(char::is_control) {
        return fault("it has a control character", "remove it");
    }
    if path.contains(" HTTP/") {
        return fault("it has a version of HTTP", "method and path alone");
    }
    let mut parameters = Vec::new();
    let skeleton = without_parameters(path, &mut parameters)?;
    let mut segments = skeleton.split('/').skip(1).peekable();
    while let Some(own) = segments.next() {
        segment(own, segments.peek().is_none())?;
    }
    Ok(parameters)
}

/// The template with a mark in the place of each parameter.
fn without_parameters(path: &str, parameters: &mut Vec<Parameter>) -> Result<String, Fault> {
    let unbalanced = || ("its braces do not match".to_owned(), "`{name}`, each on its own".to_owned());
    let mut skeleton = String::new();
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('{') {
        let (inside, after) = after.split_once('}').ok_or_else(unbalanced)?;
        let parameter = parameter(inside)?;
        if parameters.iter().any(|known| known.name == parameter.name) {
            return fault(format!("`{{{}}}` is there twice", parameter.name), "give each parameter its own name");
        }
        skeleton.push_str(before);
        skeleton.push(if parameter.is_rest { REST } else { SEGMENT });
        parameters.push(parameter);
        rest = after;
    }
    skeleton.push_str(rest);
    if skeleton.contains('}') { Err(unbalanced()) } else { Ok(skeleton) }
}

/// What stands between two braces.
fn parameter(inside: &str) -> Result<Parameter, Fault> {
    let is_name = |name: &str| {
        name.starts_with(is_name_start) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
    };
    let (name, is_rest) = inside.strip_prefix('*').map_or((inside, false), |name| (name, true));
    if is_name(name) {
        return Ok(Parameter { name: name.to_owned(), is_rest });
    }
    let shown = format!("`{{{inside}}}`");
    let start = inside.trim_start_matches(|c: char| !is_name_start(c));
    let end = start.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-').unwrap_or(start.len());
    let word = start.get(..end).filter(|word| !word.is_empty());
    let word = word.unwrap_or(if is_rest { "rest" } else { "id" });
    if inside.is_empty() || inside == "*" {
        fault(format!("{shown} has no name"), "`{id}` for a segment, `{*rest}` for the rest of the path")
    } else if inside.contains("...") || (inside.contains(['*', '+']) && !inside.contains(['[', '\\'])) {
        fault(
            format!("{shown} is the rest of the path in other routers"),
            format!("`{{*{word}}}`, at the end of the path"),
        )
    } else if inside.ends_with('?') {
        fault(
            format!("{shown} is optional in other routers"),
            format!("two routes, one with `{{{word}}}` and one without"),
        )
    } else if inside.contains([':', '=', '[', '(', '\\', ',']) {
        let hint = format!("`{{{word}}}`; the schema gives its type, as `context: {{ params: {{ {word}: Long }} }}`");
        fault(format!("{shown} has a pattern, and parameters have none"), hint)
    } else {
        fault(format!("{shown} is no parameter"), format!("`{{{word}}}`: letters, digits, `_` and `-`"))
    }
}

/// Checks what stands between two slashes.
fn segment(own: &str, is_last: bool) -> Result<(), Fault> {
    let shown = own.replace(SEGMENT, "{..}").replace(REST, "{*..}");
    let name = own.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let name = if name.is_empty() { "id" } else { name };
    let never = "paths that have one are refused before they reach a route, unless `paths.allow` lets them through";
    if own.is_empty() && !is_last {
        return fault("it has an empty segment, `//`", never);
    }
    if own == "." || own == ".." {
        return fault(format!("it has a dot segment, `{own}`"), never);
    }
    if own.contains(REST) && own.chars().count() > 1 {
        return fault("`{*name}` shares its segment", "the rest of the path begins after a slash: `/{*rest}`");
    }
    if own.contains(REST) && !is_last {
        return fault("`{*name}` is not at the end", "`{name}` for one segment, `{*name}` for the rest of the path");
    }
    if own.matches(SEGMENT).count() > 1 {
        return fault(
            "a segment has two parameters, and nothing tells where the first ends",
            "one parameter for each segment, with literals around it if need be",
        );
    }
    if own.starts_with(':') || (own.starts_with('$') && own.contains(SEGMENT)) {
        return fault(
            format!("`{shown}` is a parameter in other routers, and a literal here"),
            format!("`{{{name}}}`"),
        );
    }
    if let Some(escape) = escape(own) {
        let decoded = percent_encoding::percent_decode_str(own).decode_utf8();
        return match decoded {
            Ok(decoded) if segment(&decoded, is_last).is_ok() && !decoded.contains(['/', '\0']) => {
                let decoded = decoded.replace(SEGMENT, "{..}").replace(REST, "{*..}");
                fault(format!("`{escape}` is an escape, and {DECODED}"), format!("write `{decoded}`"))
            }
            _ => fault(
                format!("`{escape}` is an escape that no path has when it is matched"),
                format!("{DECODED}; and what cannot be decoded in one way only is refused before"),
            ),
        };
    }
    literal(own, &shown, name)
}

/// Checks the characters of a literal.
fn literal(own: &str, shown: &str, name: &str) -> Result<(), Fault> {
    let patterns = "`{name}` is a segment, `{*rest}` the rest of the path; there are no regular expressions";
    let opening = own.matches('(').count();
    if opening != own.matches(')').count() || own.contains("(.") || own.contains("(:") {
        return fault(format!("`{shown}` is a part that other routers take for optional"), "two routes");
    }
    if own.starts_with(' ') || own.ends_with(' ') {
        return fault("it has a space beside a slash or at the end", LIKE);
    }
    if own.len() > 1 && own.ends_with('$') {
        return fault(format!("`{shown}` ends like a regular expression"), patterns);
    }
    // RFC 3986, 3.3, without `*` and `;`; and what stands for itself once it is decoded.
    let is_plain = |c: char| {
        c.is_ascii_alphanumeric()
            || "-._~!$&'()+,=:@% ".contains(c)
            || c == SEGMENT
            || c == REST
            || (!c.is_ascii() && !c.is_whitespace())
    };
    let Some(strange) = own.chars().find(|c| !is_plain(*c)) else { return Ok(()) };
    match strange {
        '?' => fault("a query is not matched", "the path alone; policies read `context.query`"),
        '#' => fault("it has a fragment, which is never sent", "the path alone"),
        ';' => fault("`;` begins path parameters, and paths with some are refused before", "the path without them"),
        '<' | '>' | '[' | ']' => fault(
            format!("`{shown}` is a parameter in other routers, and a literal here"),
            format!("`{{{name}}}`; there are no regular expressions"),
        ),
        '*' => fault(format!("`{shown}` is a wildcard in other routers, and a literal here"), patterns),
        other => fault(format!("no literal has `{}`", other.escape_default()), patterns),
    }
}

/// The first `%` with two hex digits behind it.
fn escape(text: &str) -> Option<&str> {
    text.match_indices('%').find_map(|(at, _)| {
        let digits = text.get(at + 1..at + 3)?;
        digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| text.get(at..at + 3))?
    })
}
