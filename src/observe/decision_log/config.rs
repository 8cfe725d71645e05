//! `decision_log:` of the configuration.

use std::fmt;
use std::path::PathBuf;

use deserr::Deserr;
use serde::{Serialize, Serializer};

use super::Attribute;
use crate::units::Bytes;
use crate::yaml::{Faults, Invalid, suggest};

/// `decision_log:` where records go, which of them, and what is in them.
#[derive(Debug, Clone, PartialEq, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Config {
    /// Where to: `stdout`, `stderr`, `none`, or a file as `file:///var/log/stockade.jsonl`. Default `stdout`.
    #[deserr(default)]
    pub output: Output,
    /// The size at which a file is rotated. Default `64MiB`.
    #[deserr(default = Self::default().max_file_size, try_from(Bytes) = file_size -> Invalid)]
    pub max_file_size: Bytes,
    /// How many rotated files are kept beside the current one. Default `5`.
    #[deserr(default = Self::default().max_files)]
    pub max_files: u32,
    /// How many records may wait to be written; one takes a few kilobytes. Default `8192`.
    #[deserr(default = Self::default().queue, try_from(usize) = queue_length -> Invalid)]
    pub queue: usize,
    /// What happens to a decision whose record cannot be written, or finds the queue full. Default `drop`.
    #[deserr(default)]
    pub when_full: WhenFull,
    /// The share of allows that are logged, from 0 to 1. Denials and the undecided always are. Default `1.0`.
    #[deserr(default = Self::default().sample_allow, try_from(f64) = share -> Invalid)]
    pub sample_allow: f64,
    /// The attributes that may be logged, such as `context.source.address` or `principal.department`. Default none.
    #[deserr(default)]
    pub attributes: Vec<Attribute>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            output: Output::Stdout,
            max_file_size: Bytes(64 << 20),
            max_files: 5,
            queue: 8192,
            when_full: WhenFull::Drop,
            sample_allow: 1.0,
            attributes: Vec::new(),
        }
    }
}

/// Where records go.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserr)]
#[deserr(error = Faults, try_from(String) = Output::try_from_text -> Invalid)]
pub enum Output {
    /// The standard output.
    #[default]
    Stdout,
    /// The standard error, which the program's own log shares.
    Stderr,
    /// Nowhere.
    None,
    /// A file, rotated by size.
    File(PathBuf),
}

/// What happens to a decision whose record cannot be written, or finds the queue full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserr, Serialize)]
#[deserr(error = Faults, rename_all = lowercase)]
#[serde(rename_all = "lowercase")]
pub enum WhenFull {
    /// It stands; its record is lost.
    #[default]
    Drop,
    /// It is not made: nothing is decided that is not logged. A decision then waits for the kernel to take its record.
    Undecided,
}

fn file_size(size: Bytes) -> Result<Bytes, Invalid> {
    match size.0 {
        1024.. => Ok(size),
        _ => Err(Invalid::new(format!("`{size}` is too small for a file")).hint("at least `1KiB`")),
    }
}

fn queue_length(length: usize) -> Result<usize, Invalid> {
    match length {
        1..=1_000_000 => Ok(length),
        _ => Err(Invalid::new(format!("`{length}` is not a length for the queue")).hint("from 1 to 1000000")),
    }
}

fn share(share: f64) -> Result<f64, Invalid> {
    match share {
        0.0..=1.0 => Ok(share),
        _ => Err(Invalid::new(format!("`{share}` is not a share")).hint("from 0 to 1; `0.1` logs every tenth allow")),
    }
}

impl Output {
    fn try_from_text(text: String) -> Result<Self, Invalid> {
        let hint = || suggest(&text, &["stdout", "stderr", "none", "file:///absolute/path"]);
        match (text.as_str(), text.strip_prefix("file://")) {
            ("stdout", _) => Ok(Self::Stdout),
            ("stderr", _) => Ok(Self::Stderr),
            ("none", _) => Ok(Self::None),
            (_, Some(path)) if path.starts_with('/') && !path.ends_with('/') => Ok(Self::File(path.into())),
            (_, Some(_)) => Err(Invalid::new(format!("`{text}` does not name a file by its absolute path"))
                .hint("like `file:///var/log/stockade.jsonl`, with three slashes")),
            (_, None) => Err(Invalid::new(format!("`{text}` is not an output")).hint(hint())),
        }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("stdout"),
            Self::Stderr => f.write_str("stderr"),
            Self::None => f.write_str("none"),
            Self::File(path) => write!(f, "file://{}", path.display()),
        }
    }
}

impl Serialize for Output {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
