//! What the bytes of a test file must be: a function of seed and position, kept nowhere.
//!
//! Word `i` of a content is splitmix64 of its seed and `i`, so any range can be made or checked
//! without the rest, no two files are alike, and no block is zero.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

const PIECE: usize = 1 << 20;

/// The content of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Tells contents apart.
    pub seed: u64,
    /// Bytes.
    pub size: u64,
    /// Ranges that hold data, for a sparse file; everything else reads as zeros.
    pub extents: Option<Vec<(u64, u64)>>,
}

impl Content {
    /// A file full of data.
    pub fn new(seed: u64, size: u64) -> Self {
        Self { seed, size, extents: None }
    }

    /// A file with data only in `extents` (offset, length).
    pub fn sparse(seed: u64, size: u64, extents: &[(u64, u64)]) -> Self {
        Self { seed, size, extents: Some(extents.to_vec()) }
    }

    /// The bytes of a range, clipped to the size.
    pub fn range(&self, offset: u64, length: u64) -> Vec<u8> {
        let end = (offset + length).min(self.size);
        let length = usize::try_from(end.saturating_sub(offset)).unwrap_or(0);
        let mut bytes = vec![0; length];
        match &self.extents {
            None => fill(self.seed, offset, &mut bytes),
            Some(extents) => {
                for &(at, len) in extents {
                    let (from, to) = (at.max(offset), (at + len).min(end));
                    if from < to {
                        let (a, b) = (from - offset, to - offset);
                        fill(self.seed, from, &mut bytes[to_usize(a)..to_usize(b)]);
                    }
                }
            }
        }
        bytes
    }

    /// All bytes; only for small contents.
    pub fn bytes(&self) -> Vec<u8> {
        self.range(0, self.size)
    }

    /// Makes (or replaces) the file and makes it durable.
    pub fn write(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        file.set_len(self.size)?;
        let whole = [(0, self.size)];
        for &(at, len) in self.extents.as_deref().unwrap_or(&whole) {
            let mut done = 0;
            while done < len {
                let n = (len - done).min(PIECE as u64);
                file.write_all_at(&self.range(at + done, n), at + done)?;
                done += n;
            }
        }
        file.sync_all()?;
        Ok(())
    }

    /// Reads the whole file and compares every byte.
    pub fn check(&self, path: &Path) -> Result<()> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        self.check_reader(file).with_context(|| format!("in {}", path.display()))
    }

    /// Compares everything that comes out of `reader`.
    pub fn check_reader(&self, mut reader: impl Read) -> Result<()> {
        let mut piece = vec![0; PIECE];
        let mut at = 0;
        loop {
            let got = reader.read(&mut piece).with_context(|| format!("reading at {at}"))?;
            if got == 0 {
                break;
            }
            self.check_range(at, &piece[..got])?;
            at += got as u64;
        }
        if at != self.size {
            bail!("{at} bytes instead of {}", self.size);
        }
        Ok(())
    }

    /// Compares bytes that were read at `offset`.
    pub fn check_range(&self, offset: u64, got: &[u8]) -> Result<()> {
        let want = self.range(offset, got.len() as u64);
        if want == got {
            return Ok(());
        }
        let at = want.iter().zip(got).position(|(w, g)| w != g).unwrap_or(want.len());
        let zeros = got[at.min(got.len())..].iter().take_while(|b| **b == 0).count();
        bail!("wrong byte at {} ({zeros} zeros from there on)", offset + at as u64);
    }

    /// Compares bytes in memory that are the whole file.
    pub fn check_bytes(&self, got: &[u8]) -> Result<()> {
        self.check_reader(got)
    }
}

fn fill(seed: u64, offset: u64, bytes: &mut [u8]) {
    let mut at = offset;
    let mut rest = bytes;
    while !rest.is_empty() {
        let word = word(seed, at / 8).to_le_bytes();
        let skip = to_usize(at % 8);
        let n = (8 - skip).min(rest.len());
        let (head, tail) = rest.split_at_mut(n);
        head.copy_from_slice(&word[skip..skip + n]);
        at += n as u64;
        rest = tail;
    }
}

/// splitmix64, <https://prng.di.unimi.it/splitmix64.c>
fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed
        .wrapping_mul(0x2545_f491_4f6c_dd1d)
        .wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// BLAKE3 of a whole file.
pub fn hash_file(path: &Path) -> Result<blake3::Hash> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE];
    loop {
        let got = file.read(&mut piece).with_context(|| format!("reading {}", path.display()))?;
        if got == 0 {
            return Ok(hasher.finalize());
        }
        hasher.update(&piece[..got]);
    }
}

/// Makes a small file with the given bytes and makes it durable.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(())
}

/// Every regular file below a directory (symlinks not followed), sorted.
pub fn files_below(dir: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                todo.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_agree_with_the_whole() {
        let content = Content::new(7, 1003);
        let whole = content.bytes();
        assert_eq!(whole.len(), 1003);
        for (at, len) in [(0, 5), (3, 17), (8, 8), (995, 100)] {
            let end = (at + len).min(1003);
            assert_eq!(content.range(at as u64, len as u64), whole[at..end]);
        }
    }

    #[test]
    fn one_wrong_byte_is_found() {
        let content = Content::new(1, 4096);
        let mut bytes = content.bytes();
        content.check_bytes(&bytes).unwrap();
        bytes[4000] ^= 1;
        assert!(content.check_bytes(&bytes).unwrap_err().to_string().contains("4000"));
        assert!(content.check_bytes(&bytes[..4000]).is_err());
    }

    #[test]
    fn holes_are_zeros_and_data_is_not() {
        let content = Content::sparse(3, 1 << 20, &[(4096, 4096), (1 << 19, 10)]);
        let bytes = content.bytes();
        assert!(bytes[..4096].iter().all(|b| *b == 0));
        assert_eq!(bytes[4096..8192], Content::new(3, 1 << 20).bytes()[4096..8192]);
        assert_eq!(bytes.iter().skip(8192).filter(|b| **b != 0).count(), 10);
    }
}
