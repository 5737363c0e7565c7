//! Which file system a pool lies on, remembered for the next boot: the guard must cover it before it
//! is mounted, when nobody can ask it for its UUID.

use std::fs;
use std::io;
use std::path::Path;

use super::Uuid;
use crate::sys::fsuuid;

/// Remembers it in the file `path`. Writes only what is not there already.
pub fn remember(path: &Path, uuid: &Uuid) -> io::Result<()> {
    let line = format!("{}\n", fsuuid::text(uuid));
    if fs::read(path).is_ok_and(|old| old == line.as_bytes()) {
        return Ok(());
    }
    let beside = path.with_extension("uuid.new");
    fs::write(&beside, &line)?;
    fs::File::open(&beside)?.sync_all()?;
    fs::rename(&beside, path)
}

/// What was remembered; `None`: nothing.
pub fn remembered(path: &Path) -> io::Result<Option<Uuid>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    fsuuid::parse(text.trim()).map(Some).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "this is no UUID; remove the file")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_comes_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("media.uuid");
        assert_eq!(remembered(&path).expect("absent"), None);
        remember(&path, &[7; 16]).expect("written");
        remember(&path, &[7; 16]).expect("so already");
        assert_eq!(remembered(&path).expect("there"), Some([7; 16]));
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1, "nothing is left beside");
        fs::write(&path, "garbage").expect("written");
        assert!(remembered(&path).is_err());
    }
}
