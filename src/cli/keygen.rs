use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::store::{PublicKey, Role, SecretKey};
use crate::terminal::{errln, out};

/// Make a key for signing what is published.
///
/// Writes an ed25519 private key to FILE (PKCS#8 in PEM, as OpenSSL has it), which only you can read, and prints its
/// public half and what to add to the configuration of the sidecars. A file that is there is never overwritten.
///
/// Exit status: 0 if the key was written, 1 if not.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
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
    match SecretKey::generate().and_then(|text| write(&args.file, &text)) {
        Ok(public) => {
            out!("{}", trust(&public, &args.roles));
            ExitCode::SUCCESS
        }
        Err(error) => {
            errln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn write(path: &Path, text: &str) -> Result<PublicKey, String> {
    let public = SecretKey::parse(text)?.public();
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let failed = |error| format!("`{}` cannot be written: {error}", path.display());
    let mut file = opened.map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(public)
}

/// What to tell those who are to trust it.
fn trust(public: &PublicKey, roles: &[Role]) -> String {
    let roles = roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(", ");
    format!(
        "public key {public}\nkey id     {}\n\n\
         # stockade.yaml of the sidecars that are to trust it:\nstore:\n  keys:\n    - key: {public}\n      roles: [{roles}]\n",
        public.id()
    )
}
