//! apt with a sources list of its own: a package of a newer suite without a line of that suite on
//! the system.
//!
//! The lists are kept below the cache directory and used by these calls only, so no later
//! `apt-get upgrade` of the machine sees the newer suite.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{exists, must};
use crate::setup::cache_dir;

const MIRROR: &str = "http://deb.debian.org/debian";
const SECURITY: &str = "http://deb.debian.org/debian-security";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt that knows only the given suites.
pub(crate) struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// `name` is its directory in the cache; `suites` are like `trixie-backports`.
    pub(crate) fn new(name: &str, suites: &[&str]) -> Result<Self> {
        Self::of_kinds(name, suites, &["deb"])
    }

    /// [`new`](Self::new) for source packages.
    pub(crate) fn with_sources(name: &str, suites: &[&str]) -> Result<Self> {
        Self::of_kinds(name, suites, &["deb-src"])
    }

    fn of_kinds(name: &str, suites: &[&str], kinds: &[&str]) -> Result<Self> {
        ensure!(
            exists("apt-get") && Path::new(KEYRING).exists(),
            "this needs packages of Debian ({}), and this machine has no apt with Debian's keyring \
             ({KEYRING})",
            suites.join(", ")
        );
        let dir = cache_dir()?.join("apt").join(name);
        for below in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(below)).with_context(|| dir.display().to_string())?;
        }
        fs::write(dir.join("sources.list"), sources(suites, kinds))?;
        Ok(Self { dir })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        let dir = self.dir.display();
        for option in [
            format!("Dir::Etc::SourceList={dir}/sources.list"),
            "Dir::Etc::SourceParts=-".to_owned(),
            format!("Dir::State::Lists={dir}/lists"),
            format!("Dir::Cache={dir}/cache"),
            // The cache is in somebody's home directory, which apt's own user cannot reach.
            "APT::Sandbox::User=".to_owned(),
            "DPkg::Lock::Timeout=600".to_owned(),
            "quiet=2".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }

    /// Fetches the lists.
    pub(crate) fn update(&self) -> Result<()> {
        must(self.command("apt-get").arg("update"))
    }

    /// The version that would be downloaded; [`update`](Self::update) comes first.
    pub(crate) fn candidate(&self, package: &str) -> Result<String> {
        let output = self.command("apt-cache").args(["policy", package]).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match candidate(&text) {
            Some(version) => Ok(version.to_owned()),
            None => bail!(
                "Debian has no package {package} in the suites of {}",
                self.dir.join("sources.list").display()
            ),
        }
    }

    /// Downloads one package and unpacks it into `target`; nothing is installed.
    pub(crate) fn unpack(&self, package: &str, version: &str, target: &Path) -> Result<()> {
        let deb = self.dir.join("download");
        drop(fs::remove_dir_all(&deb));
        fs::create_dir_all(&deb)?;
        let wanted = format!("{package}={version}");
        must(self.command("apt-get").args(["download", &wanted]).current_dir(&deb))?;
        let file = fs::read_dir(&deb)?.next().context("apt-get download left no file")??.path();
        must(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(target))?;
        Ok(fs::remove_dir_all(&deb)?)
    }

    /// Downloads the files of a source package into `target`; nothing is unpacked.
    pub(crate) fn source(&self, package: &str, target: &Path) -> Result<()> {
        fs::create_dir_all(target).with_context(|| target.display().to_string())?;
        let mut command = self.command("apt-get");
        must(command.args(["source", "--download-only", package]).current_dir(target))
    }

    /// Installs a package out of `suite`, and what it needs; nothing is removed.
    pub(crate) fn install(&self, suite: &str, package: &str) -> Result<()> {
        let mut command = self.command("apt-get");
        command.args(["--target-release", suite, "install", "--yes", "--no-remove"]);
        must(command.args(["--no-install-recommends", package]))
    }
}

fn sources(suites: &[&str], kinds: &[&str]) -> String {
    let mut text = String::new();
    for suite in suites {
        let mirror = if suite.ends_with("-security") { SECURITY } else { MIRROR };
        for kind in kinds {
            text += &format!("{kind} [signed-by={KEYRING}] {mirror} {suite} main\n");
        }
    }
    text
}

fn candidate(policy: &str) -> Option<&str> {
    let line = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (line != "(none)").then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn security_has_a_mirror_of_its_own() {
        let text = sources(&["bookworm", "bookworm-security"], &["deb"]);
        assert!(text.contains("debian bookworm main\n"), "{text}");
        assert!(text.contains("debian-security bookworm-security main\n"), "{text}");
    }

    #[test]
    fn the_candidate_is_read() {
        let text = "p:\n  Installed: (none)\n  Candidate: 7.3.4-1~bpo13+1\n  Version table:\n";
        assert_eq!(candidate(text), Some("7.3.4-1~bpo13+1"));
        assert_eq!(candidate("p:\n  Candidate: (none)\n"), None);
        assert_eq!(candidate(""), None);
    }
}
