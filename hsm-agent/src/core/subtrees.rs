//! The directories that a pool is about, when it is not the whole file system. Pure.
//!
//! They limit what is *made* offline. What brings data back asks the marker, never the path: a file
//! that was moved out, or has another name elsewhere, keeps its marker and is recalled as before
//! (ADR 12).

use std::path::{Component, Path, PathBuf};

/// Directories, relative to the mount point. None: everything below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subtrees(Vec<PathBuf>);

impl Subtrees {
    /// The whole file system.
    pub const fn everything() -> Self {
        Self(Vec::new())
    }

    /// Of plain relative paths: names only, neither `.` nor `..`.
    pub fn new(directories: Vec<PathBuf>) -> Self {
        Self(directories)
    }

    /// Whether they are the whole file system.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// The directories.
    pub fn directories(&self) -> &[PathBuf] {
        &self.0
    }

    /// Whether a path relative to the mount point lies in one of them, or is one. A path with `..`
    /// leads somewhere that its text does not tell, and lies in none.
    pub fn cover(&self, relative: &Path) -> bool {
        self.is_everything() || is_plain(relative) && self.0.iter().any(|d| relative.starts_with(d))
    }

    /// Whether a walk has to enter that directory: it lies in one of them, or one of them in it.
    pub fn lead_through(&self, relative: &Path) -> bool {
        self.cover(relative) || is_plain(relative) && self.0.iter().any(|d| d.starts_with(relative))
    }
}

/// Names only. (`Path::components` leaves out every `.` but a leading one.)
pub fn is_plain(relative: &Path) -> bool {
    relative.components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subtrees(list: &[&str]) -> Subtrees {
        Subtrees::new(list.iter().map(PathBuf::from).collect())
    }

    #[test]
    fn whole_names_count_and_not_their_beginnings() {
        let s = subtrees(&["media", "a/b"]);
        for inside in ["media", "media/x", "media/x/y", "a/b", "a/b/c"] {
            assert!(s.cover(Path::new(inside)) && s.lead_through(Path::new(inside)), "{inside}");
        }
        for outside in ["mediax", "x/media", "a/bc", "A/b"] {
            assert!(
                !s.cover(Path::new(outside)) && !s.lead_through(Path::new(outside)),
                "{outside}"
            );
        }
        for above in ["", "a"] {
            assert!(!s.cover(Path::new(above)) && s.lead_through(Path::new(above)), "{above:?}");
        }
    }

    #[test]
    fn who_goes_up_is_outside() {
        let s = subtrees(&["media"]);
        for escape in ["media/../x", "x/../media", "..", "/media"] {
            assert!(!s.cover(Path::new(escape)) && !s.lead_through(Path::new(escape)), "{escape}");
        }
    }

    #[test]
    fn none_is_everything() {
        let s = Subtrees::default();
        assert!(["", "a", "a/../b"].iter().all(|path| s.cover(Path::new(path))));
    }

    proptest! {
        /// What is found by walking is what is covered: every directory on the way to a covered file is entered.
        #[test]
        fn a_walk_reaches_whatever_is_covered(
            directories in prop::collection::vec("[ab](/[ab]){0,2}", 1..4),
            path in "[abc](/[abc]){0,4}",
        ) {
            let s = Subtrees::new(directories.iter().map(PathBuf::from).collect());
            let path = Path::new(&path);
            if s.cover(path) {
                prop_assert!(path.ancestors().all(|above| s.lead_through(above)));
            }
            let by_text = directories
                .iter()
                .any(|d| path.to_str() == Some(d) || path.to_str().unwrap().starts_with(&format!("{d}/")));
            prop_assert_eq!(s.cover(path), by_text);
        }
    }
}
