//! Puts every target's seeds where its corpus is: `write_seeds CORPORA` writes `CORPORA/TARGET/seed-N`.

use std::fs;
use std::io;
use std::path::Path;

use hsm_fuzz::TARGETS;

fn main() -> io::Result<()> {
    let Some(corpora) = std::env::args_os().nth(1) else {
        return Err(io::Error::other("write_seeds CORPORA"));
    };
    for target in TARGETS {
        let dir = Path::new(&corpora).join(target.name);
        fs::create_dir_all(&dir)?;
        for (number, seed) in (target.seeds)().iter().enumerate() {
            fs::write(dir.join(format!("seed-{number}")), seed)?;
        }
    }
    Ok(())
}
