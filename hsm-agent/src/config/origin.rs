//! Where each value of the file stands.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{ConfigError, Problem};

/// The place of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    line: usize,
    /// Bytes of the value in the text.
    value: Range<usize>,
    /// The value is a table, or an array of tables.
    is_section: bool,
}

/// Every key of the file by its full path (`pool[0].store.kind`), and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origins {
    file: String,
    places: BTreeMap<String, Place>,
}

impl Origins {
    /// Reads the tree of keys. Fails on what is not TOML.
    pub(super) fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        let mut origins = Self { file: file.to_owned(), places: BTreeMap::new() };
        let tree = DeTable::parse(text).map_err(|error| {
            let line = error.span().map(|span| line_of(text, span.start));
            Problem::new(file, "", format!("not TOML: {}", error.message())).at(line)
        })?;
        origins.add_table(text, "", tree.get_ref());
        Ok(origins)
    }

    fn add_table(&mut self, text: &str, path: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let separator = if path.is_empty() { "" } else { "." };
            let path = format!("{path}{separator}{}", key.get_ref());
            self.add_value(text, &path, line_of(text, key.span().start), value);
        }
    }

    fn add_value(&mut self, text: &str, path: &str, line: usize, value: &Spanned<DeValue<'_>>) {
        let is_table = |v: &Spanned<DeValue<'_>>| matches!(v.get_ref(), DeValue::Table(_));
        let mut is_section = is_table(value);
        match value.get_ref() {
            DeValue::Table(table) => self.add_table(text, path, table),
            DeValue::Array(array) if !array.is_empty() && array.iter().all(is_table) => {
                is_section = true;
                for (index, item) in array.iter().enumerate() {
                    let line = line_of(text, item.span().start);
                    self.add_value(text, &format!("{path}[{index}]"), line, item);
                }
            }
            _ => {}
        }
        self.places.insert(path.to_owned(), Place { line, value: value.span(), is_section });
    }

    /// The file's name.
    pub(super) fn file(&self) -> &str {
        &self.file
    }

    /// The line of a key; for one that is not there, of the nearest section around it.
    pub(super) fn line(&self, key: &str) -> Option<usize> {
        let mut key = key;
        loop {
            if let Some(place) = self.places.get(key) {
                return Some(place.line);
            }
            key = &key[..key.rfind(['.', '['])?];
        }
    }

    /// The line of a key that the file sets itself.
    pub(super) fn own_line(&self, key: &str) -> Option<usize> {
        self.places.get(key).map(|place| place.line)
    }

    /// Whether the file sets a key.
    pub(super) fn sets(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    /// Each key with whether it is a section.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&str, bool)> {
        self.places.iter().map(|(key, place)| (key.as_str(), place.is_section))
    }

    /// The innermost key whose value holds a part of the text.
    pub(super) fn key_at(&self, part: &Range<usize>) -> Option<&str> {
        let holds = |place: &Place| place.value.start <= part.start && part.end <= place.value.end;
        self.places
            .iter()
            .filter(|(_, place)| holds(place))
            .min_by_key(|(_, place)| place.value.len())
            .map(|(key, _)| key.as_str())
    }

    /// A problem with a key, at its line.
    pub(super) fn problem(&self, key: &str, message: impl Into<String>) -> Problem {
        Problem::new(&self.file, key, message).at(self.line(key))
    }
}

/// The line, from 1, of a byte offset.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|b| *b == b'\n').count() + 1
}
