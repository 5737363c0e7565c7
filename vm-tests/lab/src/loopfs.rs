//! A file system in a sparse image, mounted over a loop device.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::run::Run;

/// 512 MiB: XFS wants at least 300, and a sparse image costs only what is written to it.
pub const IMAGE_BYTES: u64 = 512 << 20;

/// The file systems whose files can be managed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FsKind {
    /// ext4
    Ext4,
    /// XFS, with reflinks
    Xfs,
    /// btrfs
    Btrfs,
}

impl FsKind {
    /// All of them, in the order in which they are tested.
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    /// The name that mount(8) knows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// Whether two files can share data (FICLONE).
    pub fn has_reflinks(self) -> bool {
        self != Self::Ext4
    }

    /// Makes a sparse image of so many bytes with an empty file system in it.
    pub fn make(self, image: &Path, bytes: u64) -> Result<()> {
        File::create_new(image)?.set_len(bytes)?;
        let [program, options @ ..] = self.mkfs() else { bail!("no mkfs") };
        Run::new(program).args(options).args([image]).ok().context("mkfs")?;
        Ok(())
    }

    fn mkfs(self) -> &'static [&'static str] {
        match self {
            // Without lazy initialisation no kernel thread writes to the image behind a bench.
            Self::Ext4 => {
                &["mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,nodiscard"]
            }
            Self::Xfs => &["mkfs.xfs", "-q", "-f", "-K", "-m", "reflink=1"],
            Self::Btrfs => &["mkfs.btrfs", "-q", "-f", "-K"],
        }
    }
}

impl fmt::Display for FsKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FsKind {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == s)
            .ok_or_else(|| format!("'{s}' is none of ext4, xfs, btrfs"))
    }
}

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
pub struct LoopFs {
    kind: FsKind,
    image: PathBuf,
    mount: PathBuf,
    mounted: bool,
}

impl LoopFs {
    /// Makes the image `dir/NAME.img` and mounts it on `dir/NAME`.
    pub fn create(kind: FsKind, dir: &Path, name: &str, bytes: u64) -> Result<Self> {
        let image = dir.join(format!("{name}.img"));
        let mount = dir.join(name);
        kind.make(&image, bytes)?;
        fs::create_dir(&mount)?;
        let this = Self::of_image(kind, &image, &mount)?;
        rustix::fs::chmod(&this.mount, rustix::fs::Mode::from_raw_mode(0o755))?;
        Ok(this)
    }

    /// Mounts an image that has a file system already on a directory that is there already.
    pub fn of_image(kind: FsKind, image: &Path, mount: &Path) -> Result<Self> {
        let (image, mount) = (image.to_path_buf(), mount.to_path_buf());
        let mut this = Self { kind, image, mount, mounted: false };
        this.mount()?;
        Ok(this)
    }

    /// Mounts it (again).
    pub fn mount(&mut self) -> Result<()> {
        Run::new("mount")
            .args(["-t", self.kind.name(), "-o", "loop"])
            .args([&self.image, &self.mount])
            .ok()?;
        self.mounted = true;
        Ok(())
    }

    /// `mount -o remount,OPTIONS`.
    pub fn remount(&self, options: &str) -> Result<()> {
        let options = format!("remount,{options}");
        Run::new("mount").args(["-o", &options]).args([&self.mount]).ok()?;
        Ok(())
    }

    /// Unmounts it; its loop device detaches with that. Somebody who still uses it is an error,
    /// and then it is taken out of the tree all the same (`umount -l`).
    pub fn unmount(&mut self) -> Result<()> {
        if !self.mounted {
            return Ok(());
        }
        self.mounted = false;
        let mut last = String::new();
        for _ in 0..50 {
            let output = Run::new("umount").args([&self.mount]).output()?;
            if output.status.success() {
                return Ok(());
            }
            last = output.stderr;
            thread::sleep(Duration::from_millis(100));
        }
        let users = users_of(&self.mount);
        Run::new("umount").args(["-l"]).args([&self.mount]).ok()?;
        bail!("{} could not be unmounted: {last}\nused by: {users:?}", self.mount.display());
    }

    /// What a power cut would leave of it, mounted in its place: whatever the file system has not given to
    /// its device by now is gone. Nobody may have a file open.
    pub fn cut_power(&mut self) -> Result<()> {
        let rest = self.image.with_extension("cut");
        Run::new("cp").args(["--sparse=always"]).args([&self.image, &rest]).ok()?;
        self.unmount()?;
        fs::rename(rest, &self.image)?;
        self.mount()
    }

    /// What kind it is.
    pub fn kind(&self) -> FsKind {
        self.kind
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// The image file.
    pub fn image(&self) -> &Path {
        &self.image
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            eprintln!("{error:#}");
        }
    }
}

/// Processes with an open file, a working directory or a mapping below `mount`.
fn users_of(mount: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut users = Vec::new();
    for entry in entries.flatten() {
        let dir = entry.path();
        if !entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let fds = fs::read_dir(dir.join("fd")).into_iter().flatten().flatten().map(|e| e.path());
        let links = fds.chain([dir.join("cwd"), dir.join("exe"), dir.join("root")]);
        for link in links {
            if fs::read_link(&link).is_ok_and(|target| target.starts_with(mount)) {
                let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
                users.push(format!("{} ({})", link.display(), name.trim()));
            }
        }
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for kind in FsKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!("tmpfs".parse::<FsKind>().is_err());
    }
}
