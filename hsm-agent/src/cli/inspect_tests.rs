use super::*;

#[test]
fn the_innermost_pool_names_the_marker() {
    let name = |text: &str| CString::new(text).expect("no NUL");
    let dir = tempfile::tempdir().expect("tempdir");
    let outer = dir.path().canonicalize().expect("real");
    let inner = outer.join("inner");
    std::fs::create_dir(&inner).expect("mkdir");
    std::os::unix::fs::symlink(&inner, outer.join("link")).expect("symlink");
    let names = MarkerNames {
        pools: vec![(outer.clone(), name("security.o")), (inner.clone(), name("security.i"))],
        default: name("security.d"),
    };
    assert_eq!(names.for_path(&outer.join("f")), c"security.o");
    assert_eq!(names.for_path(&inner.join("f")), c"security.i");
    assert_eq!(names.for_path(&outer.join("link/f")), c"security.i");
    assert_eq!(names.for_path(Path::new("/f")), c"security.d");
}

#[test]
fn other_things_than_files_are_refused_unopened() {
    let dir = tempfile::tempdir().expect("tempdir");
    std::os::unix::fs::symlink("nowhere", dir.path().join("link")).expect("symlink");
    let refused = |path: &Path| look(path, c"security.bpf.hsm").expect_err("refused");
    assert_eq!(refused(dir.path()).0, Reason::NotRegular);
    assert_eq!(refused(&dir.path().join("link")).1, "is a symbolic link");
    assert_eq!(refused(&dir.path().join("none")).0, Reason::NotFound);
}
