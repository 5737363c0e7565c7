//! What a file may contain: the versions that a reader of this moment may see, byte by byte.
//!
//! A writer puts the version that he is about to make on the list before he makes it, and says afterwards
//! that it holds ([`Versions::holds`]). Until then, and for good when the write failed, each byte may be
//! that of the old version or of the new one. A reader remembers where the list began to hold when he began
//! ([`Versions::begin`]) and judges what he got by everything that came on it since: so readers need no lock
//! against writers, and one that holds the lock has exactly one version to compare with.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

/// Versions that are remembered, to tell stale bytes from foreign ones and to judge slow readers.
const REMEMBERED: usize = 8;

/// The versions of one file, oldest first.
#[derive(Debug)]
pub(super) struct Versions {
    list: VecDeque<Arc<Vec<u8>>>,
    /// The number of the first one in `list`.
    first: u64,
    /// The number of the oldest one that the file may still be.
    base: u64,
}

/// What a reader got.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    /// So many versions were made meanwhile that nobody remembers what was right.
    TooLate,
    Wrong(Wrong),
}

/// A byte that no version has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// Where in the file.
    pub(super) offset: u64,
    /// What it is instead.
    pub(super) what: &'static str,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at offset {}: {}", self.offset, self.what)
    }
}

impl Versions {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { list: VecDeque::from([Arc::new(bytes)]), first: 0, base: 0 }
    }

    /// The version that a writer starts from.
    pub(super) fn newest(&self) -> Arc<Vec<u8>> {
        Arc::clone(&self.list[self.list.len() - 1])
    }

    /// A writer is about to make this.
    pub(super) fn may_become(&mut self, bytes: Vec<u8>) {
        self.list.push_back(Arc::new(bytes));
        while self.list.len() > REMEMBERED && self.first < self.base {
            self.list.pop_front();
            self.first += 1;
        }
    }

    /// What was announced last has been made.
    pub(super) fn holds(&mut self) {
        self.base = self.first + self.list.len() as u64 - 1;
    }

    /// Whether a write failed since the last one that did not, or one is at work.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.base + 1 < self.first + self.list.len() as u64
    }

    /// For [`judge`](Self::judge): before a reader opens the file.
    pub(super) fn begin(&self) -> u64 {
        self.base
    }

    /// Judges bytes that were read at `offset`, after `wanted` were asked for by somebody who began at
    /// `begin`.
    pub(super) fn judge(&self, begin: u64, offset: usize, wanted: usize, got: &[u8]) -> Verdict {
        let Some(skip) = begin.checked_sub(self.first) else { return Verdict::TooLate };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let may: Vec<_> = self.list.iter().skip(skip).collect();
        let shortest = may.iter().map(|version| version.len()).min().unwrap_or(0);
        let longest = may.iter().map(|version| version.len()).max().unwrap_or(0);
        let end = offset + got.len();
        let wrong = |at: usize, what| Verdict::Wrong(Wrong { offset: at as u64, what });
        if end < shortest.min(offset + wanted) {
            return wrong(end, "the file ends here, too early");
        }
        if !got.is_empty() && end > longest {
            return wrong(longest, "bytes behind the end");
        }
        let is_right = |at: usize, byte: u8| {
            // Behind the end of a version, a cut that races with the read leaves zeros in the page that the
            // reader is about to copy, also without hsm.
            may.iter().any(|version| version.get(at) == Some(&byte))
                || (at >= shortest && byte == 0)
        };
        let bad = got.iter().enumerate().find(|(n, byte)| !is_right(offset + n, **byte));
        match bad {
            None => Verdict::Right,
            Some((n, _)) => wrong(offset + n, self.what_is(offset + n, &got[n..])),
        }
    }

    fn what_is(&self, at: usize, rest: &[u8]) -> &'static str {
        let some = &rest[..rest.len().min(8)];
        let has = |version: &Arc<Vec<u8>>| version.get(at..at + some.len()) == Some(some);
        if some.iter().all(|byte| *byte == 0) {
            "zeros"
        } else if self.list.iter().any(has) {
            "an older version"
        } else {
            "neither zeros nor any version that is remembered"
        }
    }
}

/// Of the model itself; run as a case, because this program has no other tests.
pub(super) fn check_itself() -> anyhow::Result<()> {
    use anyhow::ensure;
    let mut file = Versions::new(vec![1; 100]);
    let begin = file.begin();
    let judge = |file: &Versions, got: &[u8]| file.judge(begin, 0, 100, got);
    ensure!(judge(&file, &[1; 100]) == Verdict::Right);
    let wrong = |offset, what| Verdict::Wrong(Wrong { offset, what });
    ensure!(judge(&file, &[0; 100]) == wrong(0, "zeros"));
    ensure!(judge(&file, &[1; 50]) == wrong(50, "the file ends here, too early"));
    ensure!(judge(&file, &[1; 101]) == wrong(100, "bytes behind the end"));
    file.may_become(vec![2; 100]);
    ensure!(file.is_in_doubt() && judge(&file, &[1; 100]) == Verdict::Right);
    ensure!(judge(&file, &[2; 100]) == Verdict::Right);
    ensure!(judge(&file, &[0; 100]) == wrong(0, "zeros"));
    file.holds();
    let now = file.begin();
    ensure!(!file.is_in_doubt() && judge(&file, &[1; 100]) == Verdict::Right, "began before");
    ensure!(file.judge(now, 0, 100, &[1; 100]) == wrong(0, "an older version"));
    ensure!(
        file.judge(now, 0, 100, &[3; 100])
            == wrong(0, "neither zeros nor any version that is remembered")
    );
    for n in 0..20 {
        file.may_become(vec![n; 100]);
        file.holds();
    }
    ensure!(judge(&file, &[1; 100]) == Verdict::TooLate);
    Ok(())
}
