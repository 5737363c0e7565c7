//! Configures and builds one kernel with kbuild and ccache.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::config;
use crate::process::must;

/// One build.
pub(crate) struct Job<'a> {
    /// The source tree.
    pub(crate) tree: &'a Path,
    /// kbuild's object directory.
    pub(crate) objects: PathBuf,
    /// ccache's directory.
    pub(crate) ccache: PathBuf,
    /// Where the stripped kernel goes; its directory tells what it was made from.
    pub(crate) result: PathBuf,
}

impl Job<'_> {
    /// Fixed names and times: otherwise each kernel has a build time in it, and ccache misses.
    fn make(&self) -> Command {
        let mut make = Command::new("make");
        make.current_dir(self.tree)
            .env("CCACHE_DIR", &self.ccache)
            .env("KBUILD_BUILD_TIMESTAMP", "1970-01-01")
            .env("KBUILD_BUILD_USER", "hsm")
            .env("KBUILD_BUILD_HOST", "hsm")
            .env("KBUILD_BUILD_VERSION", "1")
            .args(["--silent", "CC=ccache gcc", "HOSTCC=ccache gcc"])
            .arg(assignment("O", &self.objects));
        make
    }

    /// tinyconfig, the fragments, and a check that all of it came out.
    pub(crate) fn configure(&self, fragments: &str) -> Result<()> {
        fs::create_dir_all(&self.objects)?;
        let file = self.objects.join(".config");
        must(self.make().arg("tinyconfig").stdout(Stdio::null()))?;
        let tiny = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        fs::write(&file, format!("{tiny}\n{fragments}"))?;
        // Each line that replaces one of tinyconfig's is a warning; they are meant.
        let output = self.make().arg("olddefconfig").output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "make olddefconfig: {said}");
        let got = fs::read_to_string(&file)?;
        let wrong = config::differences(fragments, &got);
        ensure!(
            wrong.is_empty(),
            "the kernel's configuration did not come out as vm-tests/kernel/config asks:\n  {}\n\
             (an option that it depends on is missing, or this kernel does not know it)",
            wrong.join("\n  ")
        );
        Ok(())
    }

    /// Builds and strips it; the unstripped one stays in the object directory, for debuggers.
    pub(crate) fn build(&self) -> Result<()> {
        let jobs = std::thread::available_parallelism()?;
        // Somebody may be working on this machine meanwhile.
        let mut nice = Command::new("nice");
        let make = self.make();
        nice.args(["-n", "10"]).arg(make.get_program()).args(make.get_args());
        nice.envs(make.get_envs().filter_map(|(key, value)| Some((key, value?))));
        nice.current_dir(self.tree).arg(format!("-j{jobs}")).arg("vmlinux");
        must(&mut nice)?;
        let dir = self.result.parent().context("the result has no directory")?;
        fs::create_dir_all(dir)?;
        let part = dir.join("vmlinux.part");
        // The symbol table goes, the BTF that kernel programs are linked against stays.
        let vmlinux = self.objects.join("vmlinux");
        must(Command::new("strip").arg("-o").arg(&part).arg(&vmlinux))?;
        fs::copy(self.objects.join(".config"), dir.join("config"))?;
        Ok(fs::rename(&part, &self.result)?)
    }
}

fn assignment(name: &str, path: &Path) -> OsString {
    let mut word = OsString::from(name);
    word.push("=");
    word.push(path);
    word
}
