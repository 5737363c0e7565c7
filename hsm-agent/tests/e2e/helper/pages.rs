//! A file that a process with a single thread keeps open and reads page by page.
//!
//! The agent recalls ranges only for who is seen not to be mapping, and of a process with other threads, as the
//! suite is one, it cannot always see that: then the whole file comes back.
//!
//! ```text
//! suite   OFFSET\n           page ──►  error number as i32 (0: none), the page
//! ```

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::fixture::Sample;

const PAGE: usize = 4096;
const READY: &[u8] = b"ready";
/// The descriptor could write, too.
const WRITE: &str = "write";

/// The helper's side.
pub(super) fn serve(path: &Path, rest: &[OsString]) -> Result<()> {
    let write = rest.first().is_some_and(|word| word == WRITE);
    let file = File::options().read(true).write(write).open(path)?;
    let mut stdout = std::io::stdout();
    stdout.write_all(READY)?;
    stdout.flush()?;
    for line in std::io::stdin().lock().lines() {
        let mut page = [0; PAGE];
        let errno = match file.read_exact_at(&mut page, line?.parse()?) {
            Ok(()) => 0,
            Err(error) => error.raw_os_error().context("the file ends")?,
        };
        stdout.write_all(&errno.to_ne_bytes())?;
        stdout.write_all(&page)?;
        stdout.flush()?;
    }
    Ok(())
}

/// The suite's side; the helper is killed when this is dropped.
pub(crate) struct Reader<'a> {
    sample: &'a Sample,
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl<'a> Reader<'a> {
    /// Opens the file.
    pub(crate) fn open(sample: &'a Sample) -> Result<Self> {
        Self::start(sample, &[])
    }

    /// Opens it with a descriptor that could write.
    pub(crate) fn open_for_writing(sample: &'a Sample) -> Result<Self> {
        Self::start(sample, &[WRITE])
    }

    fn start(sample: &'a Sample, rest: &[&str]) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--helper", "pages"])
            .arg(&sample.path)
            .args(rest)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let questions = child.stdin.take().context("no pipe")?;
        let answers = BufReader::new(child.stdout.take().context("no pipe")?);
        let mut reader = Self { sample, child, questions, answers };
        let mut ready = [0; READY.len()];
        reader.answers.read_exact(&mut ready).context("the helper did not open the file")?;
        ensure!(ready == READY, "the helper said {ready:?}");
        Ok(reader)
    }

    /// Reads a page and compares it.
    pub(crate) fn check_at(&mut self, offset: u64) -> Result<()> {
        match self.page(offset)? {
            Ok(page) => self.sample.content.check_range(offset, &page),
            Err(errno) => bail!("error {errno} at {offset}"),
        }
    }

    /// The number of the error that a page is read with. Right bytes are none; others fail.
    pub(crate) fn errno_at(&mut self, offset: u64) -> Result<Option<i32>> {
        match self.page(offset)? {
            Ok(page) => self.sample.content.check_range(offset, &page).map(|()| None),
            Err(errno) => Ok(Some(errno)),
        }
    }

    fn page(&mut self, offset: u64) -> Result<Result<[u8; PAGE], i32>> {
        writeln!(self.questions, "{offset}")?;
        let (mut errno, mut page) = ([0; 4], [0; PAGE]);
        self.answers.read_exact(&mut errno)?;
        self.answers.read_exact(&mut page)?;
        Ok(match i32::from_ne_bytes(errno) {
            0 => Ok(page),
            errno => Err(errno),
        })
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
