//! Embeds the kernel programs, if `cargo xtask build` has made them.
//!
//! Without them everything builds and is tested all the same; `hsm` then says that it has none.

use std::path::{Path, PathBuf};

fn main() -> std::io::Result<()> {
    let manifest = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    // The directory is watched, not the file: cargo takes a watched file that is missing for one
    // that has changed, and would build this crate again each time.
    let dir = manifest.join("../target/bpf");
    std::fs::create_dir_all(&dir)?;
    let dir = dir.canonicalize()?;
    println!("cargo:rerun-if-changed={}", dir.display());
    std::fs::write(out.join("bpf_object.rs"), code(&dir.join("hsm.bpf.o")))
}

fn code(object: &Path) -> String {
    let value = if object.is_file() {
        format!("Some(&Aligned(*include_bytes!({:?})))", object.display().to_string())
    } else {
        "None".to_owned()
    };
    format!("/// The object's bytes.\nstatic OBJECT: Option<&Aligned<[u8]>> = {value};\n")
}
