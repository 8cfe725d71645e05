use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cli::args::session::ReaderArgs;
use crate::cli::output::{Error, count, run as run_command};
use crate::policy::Files;
use crate::publish::history::find;
use crate::terminal::outln;

/// Write the bundle of a version into a directory.
///
/// Only what a trusted key has signed is written, and only whole: DIR is new or empty before, and complete after. What was
/// published from several directories comes back as `0`, `1` and so on below DIR.
///
/// Exit status: 0 if it was written, 1 if not.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The version, as `stockade history` shows it; its last number or `newest` will do.
    #[arg(value_name = "REV")]
    revision: String,
    /// The directory, which must not be there or be empty.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    #[command(flatten)]
    reader: ReaderArgs,
}

pub(super) fn run(args: &Args) -> ExitCode {
    run_command(pull(args))
}

async fn pull(args: &Args) -> Result<ExitCode, Error> {
    if !args.reader.has_keys() {
        return Err(Error::Arguments {
            message: "`--trust` is required: name the publisher's public key".to_owned(),
            hint: "or your own private key with `--key`",
        });
    }
    is_free(&args.directory)?;
    let session = args.reader.connect().await?;
    let entries = session.entries().await?;
    let entry = find(&entries, &args.revision)?;
    let version = entry.head.version;
    let manifest = entry.believed().map_err(|doubt| Error::Doubted { version, doubt })?;
    let files = session.files(manifest).await?;
    write(&args.directory, &files).map_err(|source| Error::Write { path: args.directory.clone(), source })?;
    let number = files.iter().map(|own| own.files.len()).sum();
    outln!("{} of {version} in {}", count(number, "file"), args.directory.display());
    Ok(ExitCode::SUCCESS)
}

fn is_free(directory: &Path) -> Result<(), Error> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Read { path: directory.to_owned(), source }),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(Error::NotEmpty(directory.to_owned())),
        },
    }
}

/// Writes everything beside the directory, then puts it in its place in one step.
fn write(directory: &Path, bundles: &[Files]) -> io::Result<()> {
    let directory = std::path::absolute(directory)?;
    let parent = directory.parent().ok_or_else(|| io::Error::other("it has no parent"))?;
    fs::create_dir_all(parent)?;
    let aside = parent.join(format!(".stockade-{:016x}", fastrand::u64(..)));
    let written = fill(&aside, bundles).and_then(|()| fs::rename(&aside, &directory));
    if written.is_err() {
        // What is left of it is of no use; the error is what counts.
        let _ = fs::remove_dir_all(&aside);
    }
    written
}

fn fill(aside: &Path, bundles: &[Files]) -> io::Result<()> {
    for (at, bundle) in bundles.iter().enumerate() {
        let root = if bundles.len() == 1 { aside.to_owned() } else { aside.join(at.to_string()) };
        for (path, text) in &bundle.files {
            // Unpacking has seen to it that no path leads out of here.
            let path = root.join(path);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(path, text)?;
        }
    }
    Ok(())
}
