use std::path::PathBuf;
use std::process::ExitCode;

use crate::app::App;
use crate::cli::output::{Error, show};
use crate::config::Config;
use crate::observe;
use crate::shutdown::Signals;
use crate::terminal::errln;

/// Run the sidecar.
///
/// Binds every socket of the configuration, then follows the bundles and answers checks until SIGTERM or SIGINT. It is
/// ready when a bundle is in force; until then every check is Undecided. A signal starts an orderly end; a second one
/// exits at once.
///
/// Exit status: 0 after an orderly end, 1 if it cannot start, 2 if the configuration is wrong.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The configuration file.
    #[arg(long, short, value_name = "FILE", default_value = "stockade.yaml")]
    config: PathBuf,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(problems) => {
            show(&problems);
            return ExitCode::from(2);
        }
    };
    if let Err(error) = observe::tracing::init(&config.log) {
        errln!("logging cannot be set up: {error}");
        return ExitCode::FAILURE;
    }
    for problem in config.without_effect() {
        tracing::warn!(%problem, "a part of the configuration has no effect");
    }
    // One thread needs no work stealing, and is the common size of a sidecar.
    let mut builder = match config.workers.0 {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = match builder.worker_threads(config.workers.0).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the runtime cannot be started");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        let signals = Signals::register().map_err(Error::Signals)?;
        let app = App::build(config).await?;
        app.run(signals).await?;
        Ok::<(), Error>(())
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "stockade ends");
            ExitCode::FAILURE
        }
    }
}
