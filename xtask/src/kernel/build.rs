//! Configures and builds one kernel with kbuild and ccache.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::config;
use crate::process::must;
use crate::steps::note;

/// Where a kernel is built.
pub(crate) struct Place {
    /// The source tree.
    pub(crate) tree: PathBuf,
    /// kbuild's object directory.
    pub(crate) objects: PathBuf,
    /// Where tree and objects seem to be to the compiler. Its arguments and the debug information have
    /// absolute paths, so only what was compiled under the same ones is found in ccache.
    pub(crate) seen_as: Option<(PathBuf, PathBuf)>,
}

/// One build.
pub(crate) struct Job {
    /// Where.
    pub(crate) place: Place,
    /// ccache's directory.
    pub(crate) ccache: PathBuf,
    /// Where the stripped kernel goes; its directory tells what it was made from.
    pub(crate) result: PathBuf,
}

impl Place {
    /// Seen where it is.
    pub(crate) fn own(tree: &Path, objects: PathBuf) -> Self {
        Self { tree: tree.to_owned(), objects, seen_as: None }
    }

    /// The same, seen where it is if this machine does not allow mounts in a namespace.
    pub(crate) fn or_own(mut self) -> Result<Self> {
        if let Some((_, objects)) = &self.seen_as {
            fs::create_dir_all(&self.objects)?;
            fs::create_dir_all(objects)?;
            let probe = self.enter().arg("true").stderr(Stdio::null()).status();
            if !probe.is_ok_and(|status| status.success()) {
                note("no mount namespaces here: ccache will not know what the stock kernel shares");
                self.seen_as = None;
            }
        }
        Ok(self)
    }

    /// Only when nothing else wants the processors (`SCHED_IDLE`: tests run meanwhile, or somebody works), where
    /// the kernel is seen to be; a program and its arguments are still to come.
    fn enter(&self) -> Command {
        let Some((tree, objects)) = &self.seen_as else {
            let mut command = Command::new("chrt");
            command.args(["--idle", "0"]).current_dir(&self.tree);
            return command;
        };
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        // The mounts are private to these processes and gone with them.
        let script = "mount --bind \"$1\" \"$2\" && mount --bind \"$3\" \"$4\" && \
                      cd \"$2\" && shift 4 && exec chrt --idle 0 \"$@\"";
        command.args(["--mount", "sh", "-c", script, "sh"]);
        command.arg(&self.tree).arg(tree).arg(&self.objects).arg(objects);
        command
    }

    /// The object directory as the build sees it.
    fn seen_objects(&self) -> &Path {
        self.seen_as.as_ref().map_or(&self.objects, |(_, objects)| objects)
    }
}

impl Job {
    /// Fixed names and times: otherwise each kernel has a build time in it, and ccache misses.
    fn make(&self) -> Command {
        let mut make = self.place.enter();
        make.arg("make")
            .env("CCACHE_DIR", &self.ccache)
            .env("KBUILD_BUILD_TIMESTAMP", "1970-01-01")
            .env("KBUILD_BUILD_USER", "hsm")
            .env("KBUILD_BUILD_HOST", "hsm")
            .env("KBUILD_BUILD_VERSION", "1")
            .args(["--silent", "CC=ccache gcc", "HOSTCC=ccache gcc"])
            .arg(assignment("O", self.place.seen_objects()));
        make
    }

    /// tinyconfig, the fragments, and a check that all of it came out.
    pub(crate) fn configure(&self, fragments: &str) -> Result<()> {
        fs::create_dir_all(&self.place.objects)?;
        let file = self.place.objects.join(".config");
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
        must(self.make().arg(format!("-j{jobs}")).arg("vmlinux"))?;
        let dir = self.result.parent().context("the result has no directory")?;
        fs::create_dir_all(dir)?;
        let part = dir.join("vmlinux.part");
        // The symbol table goes, the BTF that kernel programs are linked against stays.
        let vmlinux = self.place.objects.join("vmlinux");
        must(Command::new("strip").arg("-o").arg(&part).arg(&vmlinux))?;
        fs::copy(self.place.objects.join(".config"), dir.join("config"))?;
        Ok(fs::rename(&part, &self.result)?)
    }
}

fn assignment(name: &str, path: &Path) -> OsString {
    let mut word = OsString::from(name);
    word.push("=");
    word.push(path);
    word
}
