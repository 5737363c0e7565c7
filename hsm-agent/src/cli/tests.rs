use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use clap::CommandFactory;

use super::*;

fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("hsm").chain(args.iter().copied()))
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_visible_verb_has_examples_and_exit_codes_in_its_help() {
    for verb in Cli::command().get_subcommands_mut().filter(|verb| !verb.is_hide_set()) {
        let help = verb.render_long_help().to_string();
        for part in ["Examples:", "Exit codes:", "130"] {
            assert!(help.contains(part), "hsm {} --help lacks {part}", verb.get_name());
        }
        assert!(verb.get_about().is_some(), "{}", verb.get_name());
    }
}

#[test]
fn good_and_bad_command_lines() {
    for good in [
        &["archive", "a"][..],
        &["archive", "-r", "-n", "-j", "3", "--include", "*.a", "--exclude", "b", "x", "y"],
        &["release", "-0", "--files-from", "-"],
        &["--json", "recall", "a", "--config", "/x"],
        &["pin", "-vv", "a"],
        &["waiters"],
        &["waiters", "abort", "3"],
        &["scan", "--pool", "media", "--rebuild"],
        &["agent", "--engine"],
        &["ls"],
        &["du", "-s"],
        &["doctor", "--json"],
        &["config", "check"],
        &["guard", "status", "--json"],
        &["guard", "unpin", "-n"],
        &["debug", "failpoints"],
        &["completions", "bash"],
    ] {
        parse(good).unwrap_or_else(|error| panic!("{good:?}: {error}"));
    }
    for bad in [
        &["archive"][..],
        &["archive", "-0", "a"],
        &["archive", "-j", "0", "a"],
        &["-q", "-v", "ls"],
        &["scan"],
        &["waiters", "abort", "x"],
        &["help"],
        &["explode"],
        &["config"],
    ] {
        assert_eq!(parse(bad).expect_err("bad").exit_code(), 2, "{bad:?}");
    }
}

#[test]
fn arguments_may_be_any_bytes() {
    let name = OsStr::from_bytes(b"\xff\n");
    let args = [OsStr::new("hsm"), OsStr::new("state"), name];
    assert!(Cli::try_parse_from(args).is_ok());
}

#[test]
fn manual_pages_and_completions_can_be_made() {
    let dir = tempfile::tempdir().expect("tempdir");
    clap_mangen::generate_to(Cli::command(), dir.path()).expect("pages");
    assert!(dir.path().join("hsm-archive.1").exists());
    let mut text = Vec::new();
    clap_complete::generate(clap_complete::Shell::Bash, &mut Cli::command(), "hsm", &mut text);
    assert!(String::from_utf8_lossy(&text).contains("--files-from"));
}
