//! What people do with large and sparse files: copies of every kind of layout, readers that skip holes,
//! single reads out of something big.
//!
//! [`COPIERS`] and [`READERS`] are tables of shell lines, [`layouts`] is the table of layouts: every line is
//! tried on every layout, with all files offline. Whoever asks where the holes are, and is told what the
//! file system knows of an offline file, would see holes only.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use hsm_lab::{Content, PoolConfig, Run, Tier};

use super::cases;
use crate::fixture::{Pool, Sample};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

cases! {
    every_copier_of_sparse_files_copies_identical_bytes,
    every_reader_of_sparse_files_sees_all_of_them,
    random_reads_of_a_large_file_recall_only_their_chunks with ranges; needs Ranges,
}

/// Sizes are multiples of a sector, which is what disk images have.
fn layouts() -> Vec<(&'static str, Content)> {
    let holes = |seed, extents: &[(u64, u64)]| Content::sparse(seed, 4 * MIB, extents);
    let comb: Vec<_> = (0..32).map(|tooth| (tooth * 128 * KIB, 4 * KIB)).collect();
    vec![
        ("full", Content::new(1, 3 * MIB)),
        ("tail", holes(2, &[(4 * MIB - 4 * KIB, 4 * KIB)])),
        ("head", holes(3, &[(0, 4 * KIB)])),
        ("middle", holes(4, &[(MIB + 512, 1000), (2 * MIB, 300 * KIB)])),
        ("comb", holes(5, &comb)),
        ("hole", holes(6, &[])),
    ]
}

/// A name and a line: `$f` is the file, `$copy` where its copy goes, `$d` and `$name` its directory and name.
type Line = (&'static str, &'static str);

const COPIERS: &[Line] = &[
    ("cp", "cp --sparse=auto $f $copy"),
    ("cp --sparse=always", "cp --sparse=always $f $copy"),
    ("cp --reflink=never", "cp --reflink=never $f $copy"),
    ("dd conv=sparse", "dd if=$f of=$copy bs=64k conv=sparse status=none"),
    (
        "tar -S",
        "mkdir $copy.d && tar -C $d -Scf - $name | tar -C $copy.d -xf - && mv $copy.d/$name $copy",
    ),
    ("rsync -S", "rsync -S --whole-file $f $copy"),
    ("rsync --inplace", "rsync --inplace --no-whole-file $f $copy"),
    ("qemu-img raw", "qemu-img convert -f raw -O raw $f $copy"),
    (
        "qemu-img qcow2",
        "qemu-img convert -f raw -O qcow2 $f $copy.q && qemu-img convert -f qcow2 -O raw $copy.q $copy",
    ),
];

fn every_copier_of_sparse_files_copies_identical_bytes(pool: &mut Pool) -> Result<()> {
    let files = offline_layouts(pool)?;
    for (name, script) in COPIERS {
        for file in &files {
            let copy = pool.outside("copy");
            line(file, script, &copy).ok().with_context(|| (*name).to_owned())?;
            let what = || format!("{name} of {}", file.path.display());
            file.content.check(&copy).with_context(what)?;
            pool.sh("rm -rf \"$1\" \"$1.d\" \"$1.q\"", [&copy])?;
        }
        pool.offline_tree(&pool.path("d"))?;
    }
    files.iter().try_for_each(Sample::check)
}

/// `$copy` is a twin that was never on the managed file system; `$last` is the last word of the file.
const READERS: &[Line] = &[
    ("cmp", "cmp $f $copy"),
    ("sha256sum", "test \"$(sha256sum < $f)\" = \"$(sha256sum < $copy)\""),
    ("grep", "LC_ALL=C grep -Fqa \"$last\" $f"),
    ("grep -c", "test $(LC_ALL=C grep -c '' $f) = $(LC_ALL=C grep -c '' $copy)"),
    ("diff", "diff -q $f $copy"),
    ("qemu-img compare", "qemu-img compare -q -f raw -F raw $f $copy"),
    ("mmap", "$exe --helper mmap-grow $f | cmp - $copy"),
    ("dd", "dd if=$f bs=4k iflag=direct status=none | cmp - $copy"),
];

fn every_reader_of_sparse_files_sees_all_of_them(pool: &mut Pool) -> Result<()> {
    let files = offline_layouts(pool)?;
    for file in &files {
        file.content.write(&twin(pool, file))?;
    }
    let exe = std::env::current_exe()?;
    for (name, script) in READERS {
        for file in &files {
            let twin = twin(pool, file);
            let run =
                line(file, script, &twin).env("exe", &exe).env("last", last_word(&file.content));
            let what = || format!("{name} of {}", file.path.display());
            run.ok().with_context(what)?;
        }
        pool.offline_tree(&pool.path("d"))?;
    }
    // Who compares with something else must see that, too: one byte, behind a hole.
    let tail = files.iter().find(|file| file.path.ends_with("tail")).context("no such layout")?;
    let twin = twin(pool, tail);
    File::options().write(true).open(&twin)?.write_all_at(b"?", tail.content.size - 1)?;
    let out = Run::new("cmp").args([&tail.path, &twin]).output()?;
    ensure!(out.code() == 1, "one other byte was not seen: {}", out.describe());
    Ok(())
}

/// Something to look for that is at the file's very end, if there is anything but holes.
fn last_word(content: &Content) -> String {
    let bytes = content.range(content.size - 4 * KIB, 4 * KIB);
    let printable = |byte: &u8| byte.is_ascii_alphanumeric();
    let runs = bytes.split(|byte| !printable(byte)).filter(|run| !run.is_empty());
    runs.max_by_key(|run| run.len())
        .map_or(String::new(), |run| String::from_utf8_lossy(run).into())
}

fn offline_layouts(pool: &mut Pool) -> Result<Vec<Sample>> {
    fs::create_dir(pool.path("d"))?;
    let mut files = Vec::new();
    for (name, content) in layouts() {
        files.push(pool.file_with(Path::new("d").join(name), content)?);
    }
    pool.offline_tree(&pool.path("d"))?;
    Ok(files)
}

fn twin(pool: &Pool, file: &Sample) -> std::path::PathBuf {
    pool.outside("twin").with_extension(file.path.file_name().unwrap_or_default())
}

fn line(file: &Sample, script: &str, copy: &Path) -> Run {
    let script = format!("f=$1 copy=$2 d=${{1%/*}} name=${{1##*/}}; {script}");
    Run::shell(&script).args([file.path.as_path(), copy])
}

/// What tier mark-filter does without being told.
fn ranges(config: &mut PoolConfig) {
    if Tier::of_this_run() == Tier::UserFilter {
        config.pool.push("recall = \"range\"".into());
        config.pool.push("range_programs = [\"*\"]".into());
    }
}

/// A gibibyte whose every chunk has 64 KiB of data at another place, so that it is cheap to make.
fn random_reads_of_a_large_file_recall_only_their_chunks(pool: &mut Pool) -> Result<()> {
    const SIZE: u64 = 1 << 30;
    const PIECE: u64 = 64 * KIB;
    const READS: u64 = 40;
    /// Of a file of up to 16 GiB.
    const CHUNK: u64 = MIB;
    let at = |chunk: u64| chunk * CHUNK + random(chunk) % (CHUNK / PIECE) * PIECE;
    let extents: Vec<_> = (0..SIZE / CHUNK).map(|chunk| (at(chunk), PIECE)).collect();
    let file = pool.file_with("big", Content::sparse(8, SIZE, &extents))?;
    pool.offline(&file.path)?;
    let before = recalled(pool)?;
    for read in 0..READS {
        let place = random(1000 + read);
        // Every other one hits data for certain.
        let offset =
            if read % 2 == 0 { at(place % (SIZE / CHUNK)) } else { place % (SIZE / PIECE) * PIECE };
        // In a process of its own: this one has threads that map files, and to the agent any of them might
        // be the reader.
        let name = file.path.display().to_string();
        let out = pool.helper("pread", [name, offset.to_string(), PIECE.to_string()])?.ok()?;
        file.content.check_range(offset, &out.stdout)?;
    }
    pool.assert_state(&file.path, &["partial"])?;
    let after = recalled(pool)?;
    let (recalls, bytes) = (after.0 - before.0, after.1 - before.1);
    eprintln!("{READS} reads of 64 KiB out of 1 GiB: {recalls} recalls, {} KiB", bytes / KIB);
    // A chunk has one such piece, and a read may take the next chunk along: the kernel reads ahead.
    ensure!(bytes <= 2 * READS * PIECE, "{bytes} bytes were recalled for {READS} reads");
    ensure!(recalls <= 2 * READS, "{recalls} recalls for {READS} reads");
    ensure!(recalls > 0 && bytes > 0, "nothing was recalled: the file was not offline");
    Ok(())
}

/// How many recalls there were, and how many bytes they brought.
fn recalled(pool: &Pool) -> Result<(u64, u64)> {
    let status = pool.hsm.status()?;
    let counter = |name: &str| {
        let pointer = format!("/pools/0/counters/{name}");
        let value = status.pointer(&pointer).and_then(serde_json::Value::as_u64);
        value.with_context(|| format!("no {pointer} in {status}"))
    };
    Ok((counter("recalls")?, counter("bytes_recalled")?))
}

/// splitmix64, <https://prng.di.unimi.it/splitmix64.c>: the same numbers in every run.
fn random(index: u64) -> u64 {
    let mut z = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
