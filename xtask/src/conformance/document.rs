//! `docs/CONFORMANCE.md`, which is also where the results of earlier runs are kept: what is rendered can
//! be read again without a loss.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hsm_lab::{FsKind, Tier};

use super::results::Outcome;

const HEAD: &str = "\
# Conformance

Written by `cargo xtask conformance`; do not edit. Each paragraph of [SEMANTICS.md](SEMANTICS.md) is a case of
the end-to-end suite, and is run on every tier and file system: `user-filter` on the host's kernel, `lsm-filter`
in the guest with the stock kernel, `mark-filter` in the guest with the patched one. A cell is run whole; a run
of some cells leaves the others as they are, with their own date and commit (`+`: with changes that were not committed).

";
const CELLS: &str =
    "| tier | file system | passed | failed | not applicable | kernel | commit | date | seconds |";
const PARAGRAPHS: &str = "| paragraph |";
const REASONS: &str = "Not applicable, because:";

/// A cell's place in the table: the indices of its tier and file system.
pub(super) type Place = (usize, usize);

pub(super) fn place((tier, fs): (Tier, FsKind)) -> Place {
    let tier = Tier::ALL.iter().position(|t| *t == tier).unwrap_or_default();
    (tier, FsKind::ALL.iter().position(|f| *f == fs).unwrap_or_default())
}

fn named((tier, fs): Place) -> (Tier, FsKind) {
    (Tier::ALL[tier], FsKind::ALL[fs])
}

/// One tier on one file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) kernel: String,
    pub(super) commit: String,
    pub(super) date: String,
    pub(super) took: Duration,
    /// By paragraph.
    pub(super) outcomes: BTreeMap<String, Outcome>,
}

impl Cell {
    fn count(&self, is: impl Fn(&Outcome) -> bool) -> usize {
        self.outcomes.values().filter(|outcome| is(outcome)).count()
    }
}

/// All cells that were ever run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Document {
    pub(super) cells: BTreeMap<Place, Cell>,
}

impl Document {
    /// Reads what [`render`](Self::render) wrote; nothing is an empty document.
    pub(super) fn read(text: &str) -> Result<Self> {
        let mut document = Self::default();
        let mut columns = Vec::new();
        let reasons = reasons(text);
        let mut table = "";
        for line in text.lines() {
            let fields = fields(line);
            match fields.as_slice() {
                [] => table = "",
                [first, ..] if first.starts_with("---") => {}
                _ if line == CELLS => table = CELLS,
                _ if line.starts_with(PARAGRAPHS) => table = PARAGRAPHS,
                _ if table == CELLS => {
                    let (place, cell) = read_cell(&fields).with_context(|| line.to_owned())?;
                    columns.push(place);
                    document.cells.insert(place, cell);
                }
                [name, outcomes @ ..] if table == PARAGRAPHS => {
                    for (place, text) in columns.iter().zip(outcomes) {
                        let outcome =
                            read_outcome(text, &reasons).with_context(|| line.to_owned())?;
                        let cell = document.cells.get_mut(place).context("no such cell")?;
                        cell.outcomes.extend(outcome.map(|outcome| ((*name).to_owned(), outcome)));
                    }
                }
                _ => {}
            }
        }
        Ok(document)
    }

    /// The table of cells.
    pub(super) fn counts(&self) -> String {
        let mut text = format!("{CELLS}\n{}\n", rule(CELLS));
        for (place, cell) in &self.cells {
            let (tier, fs) = named(*place);
            let passed = cell.count(|outcome| *outcome == Outcome::Passed);
            let failed = cell.count(|outcome| *outcome == Outcome::Failed);
            let other = cell.outcomes.len() - passed - failed;
            let Cell { kernel, commit, date, took, .. } = cell;
            let seconds = took.as_secs();
            let _ = writeln!(
                text,
                "| {tier} | {fs} | {passed} | {failed} | {other} | {kernel} | {commit} | {date} | {seconds} |"
            );
        }
        text
    }

    /// All of it; rows in the order of the paragraphs.
    pub(super) fn render(&self, paragraphs: &[&str]) -> String {
        let mut reasons: Vec<&str> = Vec::new();
        let mut head = PARAGRAPHS.to_owned();
        for place in self.cells.keys() {
            let (tier, fs) = named(*place);
            let _ = write!(head, " {tier} {fs} |");
        }
        let mut rows = format!("{head}\n{}\n", rule(&head));
        for name in paragraphs {
            let _ = write!(rows, "| {name} |");
            for cell in self.cells.values() {
                let _ = match cell.outcomes.get(*name) {
                    None => write!(rows, " |"),
                    Some(Outcome::Passed) => write!(rows, " ok |"),
                    Some(Outcome::Failed) => write!(rows, " **FAILED** |"),
                    Some(Outcome::NotApplicable(why)) => {
                        let known = reasons.iter().position(|reason| reason == why);
                        let at = known.unwrap_or_else(|| {
                            reasons.push(why);
                            reasons.len() - 1
                        });
                        write!(rows, " n/a {} |", at + 1)
                    }
                };
            }
            rows.push('\n');
        }
        let mut text = format!("{HEAD}{}\n{rows}\n{REASONS}\n\n", self.counts());
        for (i, why) in reasons.iter().enumerate() {
            let _ = writeln!(text, "{}. {why}", i + 1);
        }
        text
    }
}

fn rule(head: &str) -> String {
    format!("|{}", " --- |".repeat(fields(head).len()))
}

/// The fields of a table's row; none: it is no row.
fn fields(line: &str) -> Vec<&str> {
    let inner = line.strip_prefix('|').and_then(|line| line.strip_suffix('|'));
    inner.map(|inner| inner.split('|').map(str::trim).collect()).unwrap_or_default()
}

fn reasons(text: &str) -> Vec<&str> {
    let list = text.split_once(REASONS).map_or("", |(_, list)| list);
    list.lines().filter_map(|line| line.split_once(". ").map(|(_, why)| why)).collect()
}

fn read_cell(fields: &[&str]) -> Result<(Place, Cell)> {
    let [tier, fs, _, _, _, kernel, commit, date, seconds] = fields else {
        anyhow::bail!("{} fields instead of 9", fields.len())
    };
    let tier = tier.parse().map_err(anyhow::Error::msg)?;
    let fs = fs.parse().map_err(anyhow::Error::msg)?;
    let [kernel, commit, date] = [kernel, commit, date].map(|field| (*field).to_owned());
    let took = Duration::from_secs(seconds.parse().context("seconds")?);
    let outcomes = BTreeMap::new();
    Ok((place((tier, fs)), Cell { kernel, commit, date, took, outcomes }))
}

fn read_outcome(text: &str, reasons: &[&str]) -> Result<Option<Outcome>> {
    if let Some(number) = text.strip_prefix("n/a ") {
        let at: usize = number.parse().with_context(|| text.to_owned())?;
        let why = at.checked_sub(1).and_then(|at| reasons.get(at)).context("no such reason")?;
        return Ok(Some(Outcome::NotApplicable((*why).to_owned())));
    }
    ensure!(["", "ok", "**FAILED**"].contains(&text), "'{text}' is no outcome");
    Ok(match text {
        "ok" => Some(Outcome::Passed),
        "" => None,
        _ => Some(Outcome::Failed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(outcomes: &[(&str, Outcome)]) -> Cell {
        Cell {
            kernel: "Linux 7.3.4".into(),
            commit: "c57b03812+".into(),
            date: "2026-11-22".into(),
            took: Duration::from_secs(61),
            outcomes: outcomes.iter().map(|(n, o)| ((*n).to_owned(), o.clone())).collect(),
        }
    }

    #[test]
    fn what_was_written_is_read_again() {
        let none = Outcome::NotApplicable("recall at open: no ranges".into());
        let other = Outcome::NotApplicable("only on btrfs".into());
        let mut document = Document::default();
        let lsm = place((Tier::LsmFilter, FsKind::Xfs));
        document.cells.insert(lsm, cell(&[("a", Outcome::Passed), ("b", none), ("c", other)]));
        let user = place((Tier::UserFilter, FsKind::Ext4));
        document.cells.insert(user, cell(&[("a", Outcome::Failed), ("b", Outcome::Passed)]));
        let text = document.render(&["a", "b", "c", "new"]);
        assert!(text.contains("\n| lsm-filter | xfs | 1 | 0 | 2 | Linux 7.3.4 |"), "{text}");
        assert!(text.contains("\n| b | ok | n/a 1 |\n"), "{text}");
        assert_eq!(Document::read(&text).expect("readable"), document);
    }

    #[test]
    fn an_empty_document_and_nonsense() {
        assert_eq!(Document::read("").expect("nothing"), Document::default());
        let text = format!("{CELLS}\n{}\n| x | ext4 | 1 | 0 | 0 | k | c | d | 1 |\n", rule(CELLS));
        assert!(Document::read(&text).is_err());
    }
}
