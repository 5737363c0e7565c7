//! What goes to the terminal: columns, colours, sizes, JSON lines.
//!
//! stdout carries results, stderr complaints and progress. Names are data from strangers: a
//! control character in one is shown, never sent to the terminal.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt::{Display, Write as _};
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::Serialize;

use crate::core::FileState;

/// A meaning that has a colour on terminals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Notice,
    Bad,
    Cold,
    Head,
    Plain,
}

/// Both streams, and how to write on them.
#[derive(Debug)]
pub(super) struct Output {
    /// Results are JSON lines.
    pub(super) json: bool,
    /// -1 quiet, 0 normal, more with each `-v`.
    pub(super) verbosity: i8,
    colour_out: bool,
    colour_err: bool,
    stdout: RefCell<BufWriter<Stdout>>,
}

impl Output {
    pub(super) fn new(json: bool, verbosity: i8) -> Self {
        let wanted = colour_wanted(|name| std::env::var_os(name));
        Self {
            json,
            verbosity,
            colour_out: wanted && !json && io::stdout().is_terminal(),
            colour_err: wanted && io::stderr().is_terminal(),
            stdout: RefCell::new(BufWriter::new(io::stdout())),
        }
    }

    /// A line on stdout.
    pub(super) fn line(&self, text: impl Display) -> io::Result<()> {
        writeln!(self.stdout.borrow_mut(), "{text}")
    }

    /// An object on a line of stdout.
    pub(super) fn json_line(&self, value: &impl Serialize) -> io::Result<()> {
        let mut stdout = self.stdout.borrow_mut();
        serde_json::to_writer(&mut *stdout, value)?;
        writeln!(stdout)
    }

    /// Hands what was written so far to the reader.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.stdout.borrow_mut().flush()
    }

    /// A complaint on stderr.
    pub(super) fn error(&self, text: impl Display) {
        self.complain(Tone::Bad, "error", text);
    }

    /// A note on stderr, unless quiet.
    pub(super) fn note(&self, text: impl Display) {
        if self.verbosity >= 0 {
            self.complain(Tone::Notice, "note", text);
        }
    }

    fn complain(&self, tone: Tone, word: &str, text: impl Display) {
        let word = paint(self.colour_err, tone, word);
        // Without stderr there is nobody to tell.
        let _ = writeln!(io::stderr(), "hsm: {word}: {text}");
    }

    /// `text` in its colour, for stdout.
    pub(super) fn paint(&self, tone: Tone, text: impl Display) -> String {
        paint(self.colour_out, tone, text)
    }
}

fn colour_wanted(var: impl Fn(&str) -> Option<std::ffi::OsString>) -> bool {
    // https://no-color.org: any value that is not empty.
    var("NO_COLOR").is_none_or(|value| value.is_empty())
        && var("TERM").is_none_or(|term| term != "dumb")
}

fn paint(on: bool, tone: Tone, text: impl Display) -> String {
    let code = match tone {
        Tone::Good => "32",
        Tone::Notice => "33",
        Tone::Bad => "1;31",
        Tone::Cold => "36",
        Tone::Head => "1",
        Tone::Plain => return text.to_string(),
    };
    if on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
}

/// The colour of a state.
pub(super) fn tone_of(state: FileState) -> Tone {
    match state {
        FileState::Resident => Tone::Plain,
        FileState::Archived => Tone::Good,
        FileState::Offline | FileState::Partial => Tone::Cold,
        FileState::Dirty => Tone::Notice,
        FileState::Lost => Tone::Bad,
    }
}

/// A size for people: three digits are enough.
pub(super) fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// A count with its unit.
pub(super) fn count(n: u64, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// A time span for people.
pub(super) fn duration(seconds: u64) -> String {
    humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string()
}

/// A path as text that is safe on a terminal and on one line. What is not plain is quoted in the
/// `$'…'` form that shells read back.
pub(super) fn path(path: &Path) -> Cow<'_, str> {
    let plain = |text: &&str| !text.chars().any(|c| c.is_control() || is_deceptive(c));
    match path.to_str().filter(plain) {
        Some(text) => Cow::Borrowed(text),
        None => Cow::Owned(quote(path.as_os_str().as_bytes())),
    }
}

/// Characters that reorder or hide text.
fn is_deceptive(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn quote(bytes: &[u8]) -> String {
    let mut text = String::from("$'");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => text.push_str("\\n"),
                '\t' => text.push_str("\\t"),
                '\'' | '\\' => text.extend(['\\', c]),
                c if c.is_control() || is_deceptive(c) => {
                    c.encode_utf8(&mut [0; 4]).bytes().for_each(|b| push_hex(&mut text, b));
                }
                c => text.push(c),
            }
        }
        chunk.invalid().iter().for_each(|b| push_hex(&mut text, *b));
    }
    text.push('\'');
    text
}

fn push_hex(text: &mut String, byte: u8) {
    // Writing into a String cannot fail. Octal: a hex escape would swallow digits behind it.
    let _ = write!(text, "\\{byte:03o}");
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_names_stay_and_others_are_quoted() {
        let shown = |bytes: &'static [u8]| path(Path::new(OsStr::from_bytes(bytes))).into_owned();
        assert_eq!(shown(b"/a b/\xc3\xa4 'x'"), "/a b/ä 'x'");
        assert_eq!(shown(b"/a\nb"), r"$'/a\nb'");
        assert_eq!(shown(b"/\xffit's1"), r"$'/\377it\'s1'");
        assert_eq!(shown(b"/\x1b[31m"), r"$'/\033[31m'");
        assert_eq!(shown("/\u{202e}gpj".as_bytes()), r"$'/\342\200\256gpj'");
    }

    proptest! {
        #[test]
        fn no_name_reaches_the_terminal_raw(bytes in proptest::collection::vec(1u8.., 0..60)) {
            let shown = path(Path::new(OsStr::from_bytes(&bytes))).into_owned();
            prop_assert!(!shown.chars().any(char::is_control), "{}", shown);
        }
    }

    #[test]
    fn quoted_names_mean_the_same_to_bash() {
        let name = b"/x\n\t\\'\xff7\x01\xe2\x80\xaezz";
        let quoted = path(Path::new(OsStr::from_bytes(name))).into_owned();
        let Ok(output) = std::process::Command::new("bash")
            .args(["-c", &format!("printf %s {quoted}")])
            .output()
        else {
            return; // no bash here
        };
        assert_eq!(output.stdout, name);
    }

    #[test]
    fn colours_only_when_wanted() {
        assert_eq!(paint(false, Tone::Bad, "x"), "x");
        assert_eq!(paint(true, Tone::Bad, "x"), "\x1b[1;31mx\x1b[0m");
        assert_eq!(paint(true, Tone::Plain, "x"), "x");
        let vars = |pairs: &'static [(&str, &str)]| {
            colour_wanted(|name| {
                pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into())
            })
        };
        assert!(vars(&[]) && vars(&[("NO_COLOR", "")]));
        assert!(!vars(&[("NO_COLOR", "1")]) && !vars(&[("TERM", "dumb")]));
    }

    #[test]
    fn sizes_and_counts() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(count(1, "file", "files"), "1 file");
        assert_eq!(count(0, "file", "files"), "0 files");
    }
}
