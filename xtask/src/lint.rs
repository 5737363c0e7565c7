//! `cargo xtask lint`: formatting, clippy, documentation, licences.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::process::{answers, cargo, must, root};
use crate::steps::{note, step};

/// Runs them all; the first failure ends it.
pub(crate) fn run() -> Result<ExitCode> {
    step("rustfmt: one format", || {
        must(cargo().args(["fmt", "--all", "--check"]))?;
        must(cargo().current_dir(root().join("hsm-ebpf")).args(["fmt", "--check"]))?;
        must(cargo().current_dir(root().join("fuzz")).args(["fmt", "--check"]))
    })?;
    step("clippy: warnings are errors", || {
        let args = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
        must(cargo().args(args))
    })?;
    step("rustdoc: every link leads somewhere", || {
        let args = ["doc", "--workspace", "--no-deps", "--document-private-items"];
        must(cargo().args(args).env("RUSTDOCFLAGS", "-Dwarnings"))
    })?;
    step("cargo deny: licences, advisories, sources", deny)?;
    Ok(ExitCode::SUCCESS)
}

fn deny() -> Result<()> {
    if !answers("cargo", &["deny", "--version"]) {
        note("NOT CHECKED: cargo-deny is not installed (cargo install --locked cargo-deny)");
        return Ok(());
    }
    let deny = |what: &[&str]| cargo().arg("deny").arg("check").args(what).status();
    if !deny(&["licenses", "bans", "sources"])?.success() {
        bail!("cargo deny check licenses bans sources");
    }
    // The advisory database comes from the network; a machine without it cannot check.
    let reached = cargo().args(["deny", "fetch", "db"]).output()?.status.success();
    if !reached {
        note("ADVISORIES NOT CHECKED: the advisory database cannot be reached from here");
        return Ok(());
    }
    if !deny(&["advisories"])?.success() {
        bail!("cargo deny check advisories");
    }
    Ok(())
}
