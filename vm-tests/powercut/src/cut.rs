//! Where the power fails: at every flush, and somewhere between any two.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::log::{Entry, Position};
use crate::replay::Loss;

/// One power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Where in the log.
    pub at: Position,
    /// What the disks lose.
    pub loss: Loss,
    /// What the next agent finds of its catalogue.
    pub catalogue: Catalogue,
}

/// What the next agent finds of its catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Catalogue {
    /// That of the same cut.
    Same,
    /// Nothing: it is rebuilt from the inodes.
    Lost,
    /// That of an earlier cut, as from a backup.
    Older,
}

impl Catalogue {
    /// The inodes are the truth: most cuts are with the catalogue that belongs to them, some are not.
    fn of_turn(turn: usize) -> Self {
        match turn % 6 {
            3 => Self::Lost,
            5 => Self::Older,
            _ => Self::Same,
        }
    }
}

/// All cuts behind `from`, in the order of the log; at most `limit`, evenly spread.
pub fn choose(entries: &[Entry], from: Position, limit: Option<usize>, seed: u64) -> Vec<Cut> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut found = Vec::new();
    let mut begin = from;
    for at in flushes(entries, from) {
        if at > begin + 1 {
            found.push((random.random_range(begin + 1..at), Loss::Some(random.random())));
        }
        let loss = if found.len() % 4 < 2 { Loss::Everything } else { Loss::Nothing };
        found.push((at, loss));
        begin = at;
    }
    let step = limit.map_or(1.0, |limit| (found.len() as f64 / limit.max(1) as f64).max(1.0));
    // Somewhere in each step, or all of them might be flushes.
    let count = (found.len() as f64 / step) as usize;
    let place = |turn: usize| ((turn as f64 + random.random_range(0.0..1.0)) * step) as usize;
    let chosen: Vec<_> = (0..count).map(place).collect();
    let cut = |(turn, index): (usize, usize)| {
        let (at, loss) = found[index];
        Cut { at, loss, catalogue: Catalogue::of_turn(turn) }
    };
    chosen.into_iter().enumerate().map(cut).collect()
}

/// The positions right after each flush.
pub fn flushes(entries: &[Entry], from: Position) -> impl Iterator<Item = Position> {
    let flush = |at: &Position| matches!(entries[*at], Entry::Flush(_));
    (from..entries.len()).filter(flush).map(|at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Change, Write};

    fn log() -> Vec<Entry> {
        let write = || Entry::Write(0, Write { offset: 0, change: Change::Zeros(512) });
        (0..100).map(|n| if n % 10 == 9 { Entry::Flush(0) } else { write() }).collect()
    }

    #[test]
    fn every_flush_is_a_cut_and_so_is_a_place_in_each_epoch() {
        let log = log();
        let cuts = choose(&log, 20, None, 1);
        let at_flushes = cuts.iter().filter(|cut| !matches!(cut.loss, Loss::Some(_)));
        let expected: Vec<_> = (3..=10).map(|n| n * 10).collect();
        assert_eq!(at_flushes.map(|cut| cut.at).collect::<Vec<_>>(), expected);
        assert_eq!(cuts.len(), 16);
        assert!(cuts.iter().all(|cut| cut.at > 20 && cut.at <= 100));
        assert!(cuts.is_sorted_by_key(|cut| cut.at));
    }

    #[test]
    fn a_limit_spreads_them() {
        let cuts = choose(&log(), 0, Some(5), 1);
        assert_eq!(cuts.len(), 5);
        assert!(cuts[4].at > 60);
    }
}
