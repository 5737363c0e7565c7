//! `docs/SEMANTICS.md` says what holds; every promise has a case that proves it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Compares the `### name` headings with the names of the cases.
pub(crate) fn check(cases: &[&str]) -> Result<(), String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/SEMANTICS.md");
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    compare(&text, cases)
}

fn compare(text: &str, cases: &[&str]) -> Result<(), String> {
    let mut headings = BTreeSet::new();
    for name in text.lines().filter_map(|line| line.strip_prefix("### ")) {
        if !headings.insert(name.trim().trim_matches('`')) {
            return Err(format!("two paragraphs are called {name}"));
        }
    }
    let known: BTreeSet<&str> = cases.iter().copied().collect();
    if known.len() != cases.len() {
        return Err("two cases have one name".to_owned());
    }
    let unproven: Vec<_> = headings.difference(&known).collect();
    let untold: Vec<_> = known.difference(&headings).collect();
    if unproven.is_empty() && untold.is_empty() {
        return Ok(());
    }
    Err(format!("paragraphs without a case: {unproven:?}; cases without a paragraph: {untold:?}"))
}
