//! Which chunks a recall needs, and where their bytes go. Pure.

use std::ops::Range;

use crate::core::Want;
use crate::marker::ResidencyMap;
use crate::store::object::Manifest;

/// The chunks to fetch, in file order; holes are left out, there is nothing to write for them.
pub(super) fn chunks(manifest: &Manifest, map: &ResidencyMap, want: &Want) -> Vec<u64> {
    let bytes = match want {
        Want::Whole => 0..manifest.size,
        Want::Range(r) => r.start.min(manifest.size)..r.end.min(manifest.size),
    };
    map.missing_chunks(bytes)
        .map(u64::from)
        .filter(|i| manifest.data_in_chunk(*i).next().is_some())
        .collect()
}

/// The chunks that are resident after such a recall.
pub(super) fn covered(size: u64, chunk_shift: u8, want: &Want) -> Range<u64> {
    let chunk = 1u64 << chunk_shift;
    match want {
        Want::Whole => 0..size,
        Want::Range(r) => {
            let start = r.start.min(size) / chunk * chunk;
            let end = r.end.min(size).div_ceil(chunk).saturating_mul(chunk);
            start..end
        }
    }
}

/// The pieces of a chunk's plain bytes that hold data: `(offset in the file, range in the chunk)`.
pub(super) fn pieces(
    manifest: &Manifest,
    index: u64,
) -> impl Iterator<Item = (u64, Range<usize>)> + '_ {
    let base = manifest.chunk_range(index).map_or(0, |r| r.start);
    manifest
        .data_in_chunk(index)
        .map(move |r| (r.start, (r.start - base) as usize..(r.end - base) as usize))
}
