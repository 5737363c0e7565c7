//! What is built on the host and run in the guest.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::process::{cargo, must, target_dir};
use crate::steps::step;

/// The guest's architecture; its init is linked statically because it runs before there are any
/// libraries.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The guest's first process.
pub(crate) fn init() -> Result<PathBuf> {
    ensure!(cfg!(target_arch = "x86_64"), "the test guest exists for x86_64 only");
    let mut command = cargo();
    command.args(["build", "--quiet", "--release", "--package", "hsm-vm-init", "--target", TARGET]);
    command.env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.env("RUSTFLAGS", "-Ctarget-feature=+crt-static -Cstrip=symbols");
    step("building the guest's init (static)", || must(&mut command))?;
    Ok(target_dir()?.join(TARGET).join("release/hsm-vm-init"))
}

/// A test program of `hsm-agent`; `hsm` is built with it. (Of the whole workspace, as on the host: otherwise it
/// would be compiled once more.)
pub(crate) fn test(name: &str) -> Result<PathBuf> {
    step(&format!("building hsm and its test {name}"), || {
        let mut command = cargo();
        command.args(["test", "--no-run", "--quiet", "--workspace", "--test", name]);
        executable(&mut command, name)
    })
}

/// An example of `hsm-agent`.
pub(crate) fn example(name: &str) -> Result<PathBuf> {
    step(&format!("building {name}"), || {
        let mut command = cargo();
        command.args(["build", "--quiet", "--workspace", "--example", name]);
        executable(&mut command, name)
    })
}

fn executable(command: &mut Command, name: &str) -> Result<PathBuf> {
    command.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let output = command.output().context("starting cargo")?;
    if !output.status.success() {
        bail!("building {name}: {}", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.lines().find_map(|line| program_of(line, name));
    let found = found.with_context(|| format!("cargo built no program called {name}"))?;
    Ok(Path::new(&found).to_path_buf())
}

/// A line of cargo's messages about this program.
fn program_of(line: &str, name: &str) -> Option<String> {
    let message: Value = serde_json::from_str(line).ok()?;
    let is = |at: &str| message.pointer(at).and_then(Value::as_str);
    (is("/reason")? == "compiler-artifact" && is("/target/name")? == name)
        .then(|| is("/executable").map(str::to_owned))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_test_itself_is_taken() {
        let line = |name: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"name":"{name}"}},"executable":"/t/{name}"}}"#
            )
        };
        assert_eq!(program_of(&line("e2e"), "e2e").as_deref(), Some("/t/e2e"));
        assert_eq!(program_of(&line("hsm"), "e2e"), None);
        assert_eq!(program_of(r#"{"reason":"build-finished"}"#, "e2e"), None);
    }
}
