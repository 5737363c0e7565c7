//! Ways to a file that are not its path on the managed mount.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use hsm_lab::Run;
use rustix::io::Errno;

use super::cases;
use crate::fixture::{Pool, Sample, assert_read_fails};

const MIB: u64 = 1 << 20;

cases! {
    overlayfs_lower_layers_read_identical_bytes,
    overlayfs_copy_up_copies_identical_bytes,
    bind_mounts_read_identical_bytes,
    read_only_bind_mounts_read_identical_bytes,
    private_mount_namespaces_read_identical_bytes,
    chroots_read_identical_bytes,
    loop_devices_on_a_released_image_read_identical_bytes,
    read_only_file_systems_refuse_and_stay_offline,
}

/// A mount that goes away with it.
pub(super) struct Mount(pub(super) PathBuf);

impl Mount {
    pub(super) fn new(options: &[&str], source: &str, target: &Path) -> Result<Self> {
        fs::create_dir_all(target)?;
        Run::new("mount").args(options).args([source.as_ref(), target.as_os_str()]).ok()?;
        Ok(Self(target.to_path_buf()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if Run::new("umount").args([&self.0]).ok().is_err() {
            eprintln!("{} had to be unmounted lazily", self.0.display());
            drop(Run::new("umount").args(["-l"]).args([&self.0]).output());
        }
    }
}

fn overlay(pool: &mut Pool) -> Result<(Mount, Sample)> {
    fs::create_dir(pool.path("lower"))?;
    let file = pool.offline_file("lower/file", MIB + 1)?;
    let (upper, work) = (pool.outside("upper"), pool.outside("work"));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    let lower = pool.path("lower");
    let [lower, upper, work] = [&lower, &upper, &work].map(|p| p.display().to_string());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let mount = Mount::new(&["-t", "overlay", "-o", &options], "overlay", &pool.outside("merged"))?;
    Ok((mount, file))
}

fn overlayfs_lower_layers_read_identical_bytes(pool: &mut Pool) -> Result<()> {
    let (mount, file) = overlay(pool)?;
    file.content.check(&mount.0.join("file"))?;
    pool.hsm.must("release", [&file])?;
    pool.assert_offline(&file.path)?;
    let out = Run::new("cat").args([mount.0.join("file")]).ok()?;
    file.content.check_bytes(&out.stdout)
}

fn overlayfs_copy_up_copies_identical_bytes(pool: &mut Pool) -> Result<()> {
    let (mount, file) = overlay(pool)?;
    let merged = mount.0.join("file");
    pool.sh("printf appended >> \"$1\"", [&merged])?;
    let got = fs::read(&merged)?;
    file.content.check_bytes(&got[..got.len() - 8])?;
    ensure!(got.ends_with(b"appended"), "the append is missing");
    file.check()
}

fn bind_mounts_read_identical_bytes(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", MIB + 1)?;
    let bound = Mount::new(&["--bind"], &pool.mnt().display().to_string(), &pool.outside("bound"))?;
    file.content.check(&bound.0.join("file"))?;
    pool.offline(&file.path)?;
    pool.sh("printf appended >> \"$1\"", [bound.0.join("file")])?;
    let got = fs::read(&file.path)?;
    file.content.check_bytes(&got[..got.len() - 8])
}

fn read_only_bind_mounts_read_identical_bytes(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", MIB + 1)?;
    let source = pool.mnt().display().to_string();
    let bound = Mount::new(&["--bind"], &source, &pool.outside("bound"))?;
    Run::new("mount").args(["-o", "remount,bind,ro"]).args([&bound.0]).ok()?;
    ensure!(fs::write(bound.0.join("new"), "x").is_err(), "the bind mount is writable");
    file.content.check(&bound.0.join("file"))
}

fn private_mount_namespaces_read_identical_bytes(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", MIB + 1)?;
    let script = "mkdir \"$2\"; mount --bind \"$1\" \"$2\"; umount \"$1\"; cat \"$2/file\"";
    let out = Run::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-euc", script, "sh"])
        .args([pool.mnt(), &pool.outside("elsewhere")])
        .ok()?;
    file.content.check_bytes(&out.stdout)
}

fn chroots_read_identical_bytes(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", MIB + 1)?;
    let program = "import os, sys\nos.chroot(sys.argv[1])\nos.chdir('/')\n\
                   sys.stdout.buffer.write(open('/file', 'rb').read())";
    let out = pool.python(program, [pool.mnt()])?;
    file.content.check_bytes(&out.stdout)
}

fn loop_devices_on_a_released_image_read_identical_bytes(pool: &mut Pool) -> Result<()> {
    let image = pool.path("image");
    let script = "truncate -s 16M \"$1\"; mkfs.ext4 -q -F \"$1\"; mkdir \"$2\"; \
                  mount -o loop \"$1\" \"$2\"; seq 1 100000 > \"$2/numbers\"; umount \"$2\"; rmdir \"$2\"";
    let target = pool.outside("inner");
    pool.sh(script, [&image, &target])?;
    pool.offline(&image)?;
    let mount = Mount::new(&["-o", "loop"], &image.display().to_string(), &target)?;
    let out = Run::shell("seq 1 100000 | cmp - \"$1\"").args([mount.0.join("numbers")]).output()?;
    ensure!(out.status.success(), "{}", out.describe());
    drop(mount);
    Ok(())
}

fn read_only_file_systems_refuse_and_stay_offline(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", MIB)?;
    pool.fs().remount("ro")?;
    let errors = [Errno::ROFS, Errno::IO, Errno::AGAIN].map(Errno::raw_os_error);
    let refused = assert_read_fails(&file.path, &errors);
    pool.fs().remount("rw")?;
    refused?;
    pool.assert_offline(&file.path)?;
    file.check()
}
