//! docs/CONFIGURATION.md says what the parser does.

use super::*;

const DOC: &str = include_str!("../../../docs/CONFIGURATION.md");

/// The text below the heading of a section.
fn chapter(section: &str) -> &'static str {
    let heading = if section == "pool" { "[[pool]]".to_owned() } else { format!("[{section}]") };
    let (_, rest) = DOC.split_once(&format!("\n## {heading}\n")).expect("the chapter");
    rest.split("\n## ").next().unwrap_or(rest)
}

#[test]
fn every_key_is_documented_with_its_default_and_a_reason() {
    for key in KEYS {
        let (section, name) = key.path.rsplit_once('.').expect("a section");
        let start = format!("| `{name}` |");
        let row = chapter(section).lines().find(|line| line.starts_with(&start));
        let row = row.unwrap_or_else(|| panic!("{} is not documented", key.path));
        let cells: Vec<_> = row.split(" | ").collect();
        let default = match key.default {
            word @ ("required" | "unset") => word.to_owned(),
            value => format!("`{value}`"),
        };
        assert_eq!(cells.len(), 4, "{row}");
        assert_eq!(cells[2], default, "{}", key.path);
        assert!(cells[3].len() > 20, "no reason: {row}");
    }
}

#[test]
fn nothing_else_is_documented() {
    for section in ["agent", "limits", "pool", "pool.store"] {
        for row in chapter(section).lines().filter(|line| line.starts_with("| `")) {
            let name = row.split('`').nth(1).expect("a name");
            let path = format!("{section}.{name}");
            assert!(KEYS.iter().any(|key| key.path == path), "{path} does not exist");
        }
    }
}

#[test]
fn the_examples_parse_without_a_warning() {
    let examples: Vec<_> = DOC.split("```toml\n").skip(1).collect();
    assert_eq!(examples.len(), 2);
    for example in examples {
        let (text, _) = example.split_once("```").expect("the end of the example");
        let config = Config::parse(text, "example").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.warnings, []);
    }
}
