//! Since when the kernel has kept what it knows of the file system.

use rusqlite::{Connection, params};

/// Identity of this boot. Where the kernel does not tell, no two calls agree: nothing is trusted.
pub(super) fn boot() -> Vec<u8> {
    std::fs::read("/proc/sys/kernel/random/boot_id")
        .unwrap_or_else(|_| rand::random::<[u8; 16]>().to_vec())
}

/// The number of an instance: that of the last one if it is the same, otherwise a new one.
/// Rows carry the number, so that forgetting all ctimes costs one small write.
pub(super) fn number(conn: &Connection, instance: &[u8]) -> rusqlite::Result<i64> {
    conn.execute(
        "UPDATE meta SET instance = ?1, instance_number = instance_number + 1
          WHERE instance IS NOT ?1",
        params![instance],
    )?;
    conn.query_row("SELECT instance_number FROM meta", [], |row| row.get(0))
}
