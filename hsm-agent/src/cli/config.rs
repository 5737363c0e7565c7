//! `hsm config`

use serde::Serialize;

use crate::config::{Config, ConfigError, Problem};

use super::context::Context;
use super::exit::{Exit, Failure};

/// Check and explain the configuration
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help!(
    "hsm config check",
    "hsm --config ./new.toml config check && mv new.toml /etc/hsm/hsm.toml",
))]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Parse the file; print what is in effect, or every mistake with its line and a hint
    #[command(after_help = super::after_help!("hsm config check", "hsm config check --json"))]
    Check,
}

/// The answer of `--json`.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    ok: bool,
    problems: Vec<Finding<'a>>,
    warnings: Vec<Finding<'a>>,
}

#[derive(Debug, Serialize)]
struct Finding<'a> {
    file: &'a str,
    line: Option<usize>,
    key: &'a str,
    message: &'a str,
    hint: Option<&'a str>,
}

impl<'a> Finding<'a> {
    fn all(problems: &'a [Problem]) -> Vec<Self> {
        let finding = |problem: &'a Problem| Self {
            file: &problem.file,
            line: problem.line,
            key: &problem.key,
            message: &problem.message,
            hint: problem.hint.as_deref(),
        };
        problems.iter().map(finding).collect()
    }
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let Verb::Check = args.verb;
    match Config::load(context.config_path()) {
        Ok(config) => good(context, &config),
        Err(ConfigError::Invalid(problems)) if context.out.json => {
            let problems = Finding::all(&problems);
            context.out.json_line(&Answer { ok: false, problems, warnings: Vec::new() })?;
            Ok(Exit::Usage)
        }
        Err(ConfigError::Invalid(problems)) => {
            problems.iter().for_each(|problem| context.out.error(problem));
            Ok(Exit::Usage)
        }
        Err(error @ ConfigError::Read { .. }) => Err(Failure::usage(error)),
    }
}

fn good(context: &Context, config: &Config) -> Result<Exit, Failure> {
    let out = &context.out;
    if out.json {
        let warnings = Finding::all(&config.warnings);
        out.json_line(&Answer { ok: true, problems: Vec::new(), warnings })?;
        return Ok(Exit::Done);
    }
    config.warnings.iter().for_each(|warning| out.note(warning));
    if out.verbosity >= 0 {
        out.line(config.explain().trim_end())?;
    }
    Ok(Exit::Done)
}
