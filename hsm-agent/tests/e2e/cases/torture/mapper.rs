//! A program of its own that reads and writes files through shared mappings.
//!
//! What a mapping shows cannot be taken back, and an error while one is used is the end of the process: so
//! it is another process, which answers one request after the other. Python's, like every other program's.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};

/// One request a line: `r 0 0 PATH`, or `w OFFSET LENGTH PATH` and the bytes.
const PROGRAM: &str = r#"
import mmap, os, sys
for line in sys.stdin.buffer:
    verb, offset, length, path = line.rstrip(b"\n").split(b" ", 3)
    offset, out = int(offset), b""
    new = sys.stdin.buffer.read(int(length))
    try:
        fd = os.open(path, os.O_RDWR if verb == b"w" else os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            access = mmap.PROT_READ | (mmap.PROT_WRITE if verb == b"w" else 0)
            memory = mmap.mmap(fd, size, mmap.MAP_SHARED, access) if size else None
        finally:
            os.close(fd)
        if verb == b"w":
            memory[offset:offset + len(new)] = new
        elif memory:
            out = memory[:]
        if memory:
            memory.close()
        head = b"ok %d\n" % len(out)
    except OSError as error:
        head = b"error %d\n" % error.errno
    sys.stdout.buffer.write(head + out)
    sys.stdout.buffer.flush()
"#;

/// The running program; killed when dropped.
pub(super) struct Mapper {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Mapper {
    pub(super) fn start() -> Result<Self> {
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", PROGRAM])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("python3")?;
        let to = child.stdin.take().context("no pipe")?;
        let from = BufReader::new(child.stdout.take().context("no pipe")?);
        Ok(Self { child, to, from })
    }

    /// All bytes of a file. The inner error is the file's, the outer one the end of the program.
    pub(super) fn read(&mut self, path: &Path) -> Result<io::Result<Vec<u8>>> {
        self.ask("r", 0, &[], path)
    }

    /// Puts bytes into a file, inside its size.
    pub(super) fn write(&mut self, path: &Path, at: usize, new: &[u8]) -> Result<io::Result<()>> {
        Ok(self.ask("w", at, new, path)?.map(drop))
    }

    fn ask(
        &mut self,
        verb: &str,
        at: usize,
        new: &[u8],
        path: &Path,
    ) -> Result<io::Result<Vec<u8>>> {
        writeln!(self.to, "{verb} {at} {} {}", new.len(), path.display())?;
        self.to.write_all(new)?;
        self.to.flush()?;
        let mut head = String::new();
        self.from.read_line(&mut head)?;
        let number = |text: &str| text.trim().parse::<usize>();
        if let Some(errno) = head.strip_prefix("error ") {
            let errno = i32::try_from(number(errno)?)?;
            return Ok(Err(io::Error::from_raw_os_error(errno)));
        }
        let Some(length) = head.strip_prefix("ok ") else {
            bail!("the program with the mapping died: {:?}", self.child.wait()?)
        };
        let mut bytes = vec![0; number(length)?];
        self.from.read_exact(&mut bytes)?;
        Ok(Ok(bytes))
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
