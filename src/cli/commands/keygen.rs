use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cli::output::{Error, ended};
use crate::store::{PublicKey, Role, SecretKey};
use crate::terminal::out;

/// Make a key for signing what is published.
///
/// Writes an ed25519 private key to FILE (PKCS#8 in PEM, as OpenSSL has it), which only you can read, and prints its
/// public half and what to add to the configuration of the sidecars. A file that is there is never overwritten.
///
/// Exit status: 0 if the key was written, 1 if not.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file for the private key.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// What the key is to be trusted with, for the configuration that is printed.
    #[arg(long = "role", value_name = "ROLE", default_value = "publish", value_parser = role)]
    roles: Vec<Role>,
}

fn role(text: &str) -> Result<Role, String> {
    let all = [Role::Publish, Role::Overlay, Role::Beacon];
    let found = all.into_iter().find(|role| role.as_str() == text);
    found.ok_or_else(|| "`publish`, `overlay` or `beacon`".to_owned())
}

pub(super) fn run(args: &Args) -> ExitCode {
    ended(keygen(args))
}

fn keygen(args: &Args) -> Result<ExitCode, Error> {
    let text = SecretKey::generate()?;
    let public = SecretKey::parse(&text)?.public();
    write(&args.file, &text).map_err(|source| Error::Write { path: args.file.clone(), source })?;
    out!("{}", trust(&public, &args.roles));
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// What to add to the configuration of sidecars that are to trust it.
fn trust(public: &PublicKey, roles: &[Role]) -> String {
    let roles = roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(", ");
    format!(
        "public key {public}\nkey id     {}\n\n\
         # stockade.yaml of the sidecars that are to trust it:\nstore:\n  keys:\n    - key: {public}\n      roles: [{roles}]\n",
        public.id()
    )
}
