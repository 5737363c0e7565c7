//! What is local of a partial file, for the kernel programs.

use hsm_common::resident::Resident;

use crate::marker::ResidencyMap;

/// What [`Maps::set_resident`](super::Maps::set_resident) tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Residency(pub(super) Resident);

impl Residency {
    /// Of a file that has the size which the map says.
    pub fn of(map: &ResidencyMap) -> Self {
        let is_local = |chunk| map.contains(chunk);
        Self(Resident::of(map.size(), map.chunk_shift(), map.chunks(), is_local))
    }
}

#[cfg(test)]
mod tests {
    use hsm_common::chunk::chunk_shift_for;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Never more than the map says, and where a bit stands for one chunk, all of it.
        #[test]
        fn the_programs_pass_only_what_the_map_has(
            size in 1u64..(40 << 30),
            begins in proptest::collection::vec((0u32..16384, 1u32..2000), 0..8),
            position in 0u64..(41 << 30),
            count in 1u64..(2 << 30),
        ) {
            let shift = chunk_shift_for(size);
            let mut map = ResidencyMap::empty(7, size, shift).expect("fits");
            for (begin, length) in begins {
                map.set_range(begin..begin + length);
            }
            let told = Residency::of(&map).0;
            let is_local = map.is_resident(position..position + count);
            let passes = told.covers(size, position, count);
            prop_assert!(is_local || !passes);
            if told.shift == u32::from(shift) {
                prop_assert_eq!(passes, is_local);
            }
        }
    }
}
