//! One `[[pool]]` by itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;

use super::{Findings, store};
use crate::config::raw::{RawCompression, RawPool};
use crate::config::types::DEFAULT_MARKER;
use crate::config::{PoolConfig, RangePrograms, RecallMode, TierChoice, WholePrograms};
use crate::core::{Subtrees, is_plain};
use crate::store::object::Compression;
use crate::store::{StoreConfig, StoreKind};

const DAY: Duration = Duration::from_secs(86_400);

/// Attributes that the kernel or a security module owns.
const TAKEN_MARKERS: &[&str] = &[
    "security.apparmor",
    "security.capability",
    "security.evm",
    "security.ima",
    "security.selinux",
    "security.SMACK64",
    "security.SMACK64EXEC",
    "security.SMACK64IPIN",
    "security.SMACK64IPOUT",
    "security.SMACK64MMAP",
    "security.SMACK64TRANSMUTE",
];

/// `XATTR_NAME_MAX` of the kernel.
const MAX_XATTR_NAME: usize = 255;

pub(super) fn build(index: usize, raw: RawPool, findings: &mut Findings<'_>) -> PoolConfig {
    let at = |key: &str| format!("pool[{index}].{key}");
    check_name(&at("name"), &raw.name, findings);
    check_mount(&at("mount"), &raw.mount, findings);
    check_tier(index, &raw, findings);
    let marker = raw.marker.unwrap_or_else(|| DEFAULT_MARKER.to_owned());
    check_marker(&at("marker"), &marker, findings);
    let retention = raw.retention.unwrap_or(30 * DAY);
    if retention < DAY {
        let hint =
            "backups and snapshots may still hold files that need the object: days are usual";
        findings.warning(&at("retention"), "deleted files lose their object soon", hint);
    }
    store::check(index, raw.store.as_ref(), findings);
    PoolConfig {
        range_programs: range_programs(index, raw.recall, raw.tier, raw.range_programs, findings),
        compression: compression(index, &raw.compression, raw.compression_level, findings),
        name: raw.name,
        directories: directories(&at("directories"), &raw.directories, findings),
        mount: raw.mount,
        tier: raw.tier,
        recall: raw.recall,
        whole_programs: whole_programs(index, raw.recall, raw.whole_programs, findings),
        range_min_size: raw.range_min_size.unwrap_or(ByteSize::mib(64)),
        early_answer: raw.early_answer.unwrap_or(false),
        emergency_release: raw.emergency_release.unwrap_or(true),
        min_size: raw.min_size.unwrap_or(ByteSize::b(1)),
        verify: raw.verify,
        marker,
        retention,
        // The placeholder goes nowhere: without the section there is no configuration.
        store: raw.store.unwrap_or_else(|| StoreConfig::of_kind(StoreKind::Memory)),
    }
}

/// In tier lsm-filter the kernel lets nobody but the agent have a file open whose marker is set.
fn check_tier(index: usize, raw: &RawPool, findings: &mut Findings<'_>) {
    if raw.tier != TierChoice::LsmFilter {
        return;
    }
    let hint = "tier = \"user-filter\", or remove the key";
    let key = format!("pool[{index}].recall");
    if raw.recall == RecallMode::Range {
        findings.error(&key, "tier lsm-filter always brings whole files back", hint);
    }
    let key = format!("pool[{index}].early_answer");
    if raw.early_answer == Some(true) {
        findings.error(&key, "tier lsm-filter cannot answer before the marker is gone", hint);
    }
}

fn check_name(key: &str, name: &str, findings: &mut Findings<'_>) {
    if !findings.required(key, "name = \"media\", for example") {
        return;
    }
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if name.is_empty() || name.len() > 32 || !name.bytes().all(allowed) {
        let hint = "1 to 32 characters of a-z, 0-9 and -";
        findings.error(key, format!("{name:?} is not a pool name"), hint);
    }
}

fn check_mount(key: &str, mount: &Path, findings: &mut Findings<'_>) {
    if findings.required(key, "the mount point of the file system to manage") {
        findings.absolute(key, mount);
    }
}

/// Each is a plain path below the mount point, and none lies in another.
fn directories(key: &str, list: &[PathBuf], findings: &mut Findings<'_>) -> Subtrees {
    let list: Vec<PathBuf> = list.iter().map(|path| path.components().collect()).collect();
    for (index, path) in list.iter().enumerate() {
        let shown = path.display();
        if path.as_os_str().is_empty() || !is_plain(path) {
            let hint =
                "write it relative to the mount point and without . and .., such as \"projects\"";
            findings.error(key, format!("{path:?} is no directory below it"), hint);
        } else if list[..index].contains(path) {
            findings.error(key, format!("{shown} is named twice"), "name it once");
        } else if let Some(outer) =
            list.iter().find(|outer| *outer != path && path.starts_with(outer))
        {
            let message = format!("{shown} lies in {}, which is named, too", outer.display());
            findings.error(key, message, "name the outer one");
        }
    }
    Subtrees::new(list)
}

fn check_marker(key: &str, marker: &str, findings: &mut Findings<'_>) {
    let rest = marker.strip_prefix("security.").unwrap_or_default();
    let printable = marker.bytes().all(|b| b.is_ascii_graphic());
    if rest.is_empty() || marker.len() > MAX_XATTR_NAME || !printable {
        let hint = "it must begin with security., which only the administrator can write";
        findings.error(key, format!("{marker:?} cannot be a marker"), hint);
    } else if TAKEN_MARKERS.contains(&marker) {
        findings.error(key, format!("{marker} belongs to the kernel"), DEFAULT_MARKER);
    } else if !rest.starts_with("bpf.") {
        let hint =
            "kernel programs can read security.bpf.* only; a filter in the kernel needs that";
        findings.warning(key, format!("{marker} is hidden from kernel programs"), hint);
    }
}

fn range_programs(
    index: usize,
    recall: RecallMode,
    tier: TierChoice,
    programs: Vec<PathBuf>,
    findings: &mut Findings<'_>,
) -> RangePrograms {
    let key = format!("pool[{index}].range_programs");
    let size_key = format!("pool[{index}].range_min_size");
    let hint = "add recall = \"range\", or remove the key";
    if recall != RecallMode::Range && !programs.is_empty() {
        findings.error(&key, "has a meaning with recall = \"range\" only", hint);
    }
    if recall == RecallMode::Whole && findings.origins.sets(&size_key) {
        findings.error(&size_key, "has no meaning with recall = \"whole\"", hint);
    }
    if recall == RecallMode::Range && tier != TierChoice::MarkFilter && programs.is_empty() {
        let hint = "name the programs that may read ranges in range_programs";
        let recall_key = format!("pool[{index}].recall");
        findings.warning(
            &recall_key,
            "no program may read ranges, unless the tier is mark-filter",
            hint,
        );
    }
    let all = programs.iter().any(|program| program.as_os_str() == "*");
    if all {
        let hint = "cp and tar -S ask where the holes are and copy zeros on a stock kernel: \
                    name the programs that are known to read";
        findings.warning(&key, "\"*\" lets every program read ranges", hint);
        return RangePrograms::All;
    }
    programs.iter().for_each(|program| findings.absolute(&key, program));
    RangePrograms::Only(programs)
}

fn whole_programs(
    index: usize,
    recall: RecallMode,
    programs: Option<Vec<PathBuf>>,
    findings: &mut Findings<'_>,
) -> WholePrograms {
    let key = format!("pool[{index}].whole_programs");
    let Some(programs) = programs else { return WholePrograms::default() };
    if recall == RecallMode::Whole {
        let hint = "remove the key: with recall = \"whole\" every program gets whole files";
        findings.error(&key, "has no meaning with recall = \"whole\"", hint);
    }
    for program in &programs {
        if program.components().count() != 1 || !is_plain(program) {
            findings.absolute(&key, program);
        }
    }
    WholePrograms(programs)
}

fn compression(
    index: usize,
    kind: &RawCompression,
    level: Option<i64>,
    findings: &mut Findings<'_>,
) -> Compression {
    let key = format!("pool[{index}].compression_level");
    match (kind, level) {
        (RawCompression::None, None) => Compression::None,
        (RawCompression::None, Some(_)) => {
            let hint = "add compression = \"zstd\", or remove the key";
            findings.error(&key, "has no meaning without compression", hint);
            Compression::None
        }
        (RawCompression::Zstd, level) => {
            let level = i32::try_from(level.unwrap_or(3)).unwrap_or(i32::MAX);
            if !(1..=22).contains(&level) {
                findings.error(&key, "no such level", "1 (fast) to 22 (small)");
            }
            Compression::Zstd { level }
        }
    }
}
