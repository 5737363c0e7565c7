//! `hsm completions` and `hsm man`: for packagers, hidden from the help.

use std::io::Write;
use std::path::PathBuf;

use clap::CommandFactory;

use super::Cli;
use super::exit::{Exit, Failure};
use super::output;

/// Print the completions for a shell
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: clap_complete::Shell,
}

/// Print the manual page, or write one page per verb into a directory
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(super) struct ManArgs {
    /// Where the pages go
    #[arg(value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<Exit, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "hsm", &mut text);
    std::io::stdout().write_all(&text)?;
    Ok(Exit::Done)
}

pub(super) fn man(args: &ManArgs) -> Result<Exit, Failure> {
    let result = match &args.directory {
        None => clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout()),
        Some(directory) => clap_mangen::generate_to(Cli::command(), directory),
    };
    result.map_err(|error| {
        let place = args.directory.as_deref().map_or("stdout".into(), output::path);
        Failure::new(Exit::Failed, format!("{place}: {error}"))
    })?;
    Ok(Exit::Done)
}
