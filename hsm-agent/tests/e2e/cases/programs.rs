//! Whole programs on released data: git, sqlite3, executables.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use hsm_lab::Run;
use hsm_lab::content::{hash_file, write_bytes};

use super::cases;
use crate::fixture::Pool;

cases! {
    git_clones_and_checks_a_released_repository,
    sqlite3_reads_a_released_database,
    sqlite3_writes_a_released_database,
    released_elf_binaries_run,
    released_scripts_run,
    released_python_modules_import,
}

const MAKE_REPOSITORY: &str = r#"
cd "$1"
git init -q -b main .
git config user.name t; git config user.email t@example.invalid
git config gc.auto 0; git config core.fsync none
for i in 1 2 3 4 5; do
    mkdir -p d$i; seq 1 3000 > d$i/f; head -c 70000 /dev/urandom > d$i/r
    git add -A; git commit -qm "commit $i"
done
git repack -q -a -d
echo later > later; git add -A; git commit -qm loose
"#;

fn git_clones_and_checks_a_released_repository(pool: &mut Pool) -> Result<()> {
    let repository = pool.path("repository");
    fs::create_dir(&repository)?;
    git(MAKE_REPOSITORY, &[&repository])?;
    let head = git("git -C \"$1\" rev-parse HEAD", &[&repository])?;
    pool.offline_tree(&repository)?;
    let clone = pool.outside("clone");
    git(
        "git clone -q --no-local \"$1\" \"$2\"; git -C \"$2\" fsck --strict",
        &[&repository, &clone],
    )?;
    ensure!(git("git -C \"$1\" rev-parse HEAD", &[&clone])? == head, "another HEAD");
    pool.offline_tree(&repository)?;
    git("git -C \"$1\" fsck --full --strict", &[&repository])?;
    pool.offline_tree(&repository)?;
    let status =
        git("git -C \"$1\" status --porcelain; git -C \"$1\" log -p | wc -l", &[&repository])?;
    ensure!(!status.contains("d1/"), "git sees changes: {status}");
    Ok(())
}

fn git(script: &str, args: &[&Path]) -> Result<String> {
    let run = Run::shell(script).args(args).env("HOME", "/nonexistent");
    let run = run.env("GIT_CONFIG_NOSYSTEM", "1").limit(Duration::from_secs(90));
    Ok(run.ok()?.text())
}

const MAKE_DATABASE: &str = "PRAGMA journal_mode=DELETE; CREATE TABLE t(i INTEGER PRIMARY KEY, x TEXT); \
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<20000) \
    INSERT INTO t SELECT i, hex(i*i)||'-'||i FROM n; CREATE INDEX x ON t(x);";

fn sqlite(pool: &Pool, database: &Path, sql: &str) -> Result<String> {
    Ok(pool.sh("sqlite3 \"$1\" \"$2\"", [database.as_os_str(), sql.as_ref()])?.text())
}

fn sqlite3_reads_a_released_database(pool: &mut Pool) -> Result<()> {
    let database = pool.path("database");
    sqlite(pool, &database, MAKE_DATABASE)?;
    let query = "PRAGMA integrity_check; SELECT count(*), sum(i), max(x) FROM t;";
    let before = sqlite(pool, &database, query)?;
    pool.offline(&database)?;
    let after = sqlite(pool, &database, query)?;
    ensure!(before == after && after.starts_with("ok"), "{before} became {after}");
    Ok(())
}

fn sqlite3_writes_a_released_database(pool: &mut Pool) -> Result<()> {
    let database = pool.path("database");
    sqlite(pool, &database, MAKE_DATABASE)?;
    for round in ["a", "b", "c"] {
        pool.offline(&database)?;
        let sql =
            format!("UPDATE t SET x=x||'{round}' WHERE i%7=0; INSERT INTO t(x) VALUES('new');");
        sqlite(pool, &database, &sql)?;
        pool.assert_state(&database, &["dirty", "resident"])?;
    }
    pool.offline(&database)?;
    let sql = "PRAGMA integrity_check; SELECT count(*) FROM t; SELECT count(*) FROM t WHERE x LIKE '%abc';";
    let after = sqlite(pool, &database, sql)?;
    ensure!(after == "ok\n20003\n2857\n", "{after}");
    Ok(())
}

fn released_elf_binaries_run(pool: &mut Pool) -> Result<()> {
    let program = pool.path("program");
    fs::copy("/bin/ls", &program)?;
    let want = Run::new("/bin/ls").args(["-d", "/"]).ok()?.stdout;
    let hash = hash_file(&program)?;
    for _ in 0..3 {
        pool.offline(&program)?;
        let got = Run::new(&program).args(["-d", "/"]).ok()?;
        ensure!(got.stdout == want, "{}", got.describe());
        ensure!(hash_file(&program)? == hash, "the program changed");
    }
    // Whoever may execute but not read gets the bytes all the same.
    pool.offline(&program)?;
    pool.sh("chmod 711 \"$1\"", [&program])?;
    let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let got = Run::new("setpriv").args(nobody).args([&program]).args(["-d", "/"]).ok()?;
    ensure!(got.stdout == want, "{}", got.describe());
    Ok(())
}

fn released_scripts_run(pool: &mut Pool) -> Result<()> {
    let script = pool.path("script");
    let text = format!("#!/bin/sh\n{}echo \"ran with $1\"\n", "# padding\n".repeat(10_000));
    write_bytes(&script, text.as_bytes())?;
    pool.sh("chmod 755 \"$1\"", [&script])?;
    pool.offline(&script)?;
    let out = Run::new(&script).args(["args"]).ok()?;
    ensure!(out.text() == "ran with args\n", "{}", out.describe());
    Ok(())
}

fn released_python_modules_import(pool: &mut Pool) -> Result<()> {
    fs::create_dir(pool.path("package"))?;
    let module = format!("{}VALUE = 42\n", "# padding\n".repeat(10_000));
    write_bytes(&pool.path("package/__init__.py"), module.as_bytes())?;
    pool.offline_tree(&pool.path("package"))?;
    let program =
        "import sys; sys.path.insert(0, sys.argv[1]); import package; print(package.VALUE)";
    let out = pool.python(program, [pool.mnt()])?;
    ensure!(out.text() == "42\n", "{}", out.describe());
    Ok(())
}
