//! The configuration by which a command decides requests: one that it was given, or what a sidecar has without one.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::problem::{Problem, SourceFile};
use crate::yaml;

/// `--config`, for commands that decide requests as a sidecar would.
#[derive(Debug, clap::Args)]
pub(crate) struct ConfigArgs {
    /// A sidecar's configuration file, for the service's name, identity, paths and answers; its bundles are not used.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    /// The configuration that was named.
    pub(crate) fn given(&self) -> Result<Option<Config>, Vec<Problem>> {
        self.config.as_deref().map(|file: &Path| Config::load(file)).transpose()
    }
}

/// What a sidecar has by default, with a bundle that nothing reads, since the command line names them.
pub(crate) fn defaults() -> Result<Config, Vec<Problem>> {
    yaml::parse(&SourceFile::new("defaults", "bundles: [{directory: .}]"))
}

/// Which service and which identity a configuration stands for, in words.
pub(crate) fn describe(config: &Config) -> String {
    let source = |source| {
        let json = serde_json::to_value(source).unwrap_or_default();
        let word = |key: &str| json.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
        match word("type") {
            ty if ty.is_empty() => word("from"),
            ty => format!("{} ({ty})", word("from")),
        }
    };
    let sources: Vec<String> = config.identity.0.iter().map(source).collect();
    format!("service `{}`, identity {}", config.service.0, sources.join(", "))
}
