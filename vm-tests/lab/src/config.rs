//! Writes an agent's configuration for one pool in the lab.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::tier;

/// A pool called `lab`, by default with a local store. The lists hold further lines of TOML for each table.
#[derive(Debug, Clone, Default)]
pub struct PoolConfig {
    /// Below it: state, socket, log.
    pub dir: PathBuf,
    /// The managed file system.
    pub mount: PathBuf,
    /// The local store.
    pub store: PathBuf,
    /// Where the agent pins its kernel programs: each agent in the lab has its own.
    pub bpf_dir: PathBuf,
    /// The tier that the pool insists on.
    pub tier: Option<String>,
    /// Lines for `[limits]`.
    pub limits: Vec<String>,
    /// Lines for `[[pool]]`.
    pub pool: Vec<String>,
    /// Lines for `[pool.store]`.
    pub store_options: Vec<String>,
    /// Lines of another `[pool.store]` in place of the local one.
    pub other_store: Option<Vec<String>>,
    /// Environment variables for the agent.
    pub environment: Vec<(String, String)>,
    /// The agent's service manager keeps descriptors. Then killing the agent frees nobody who waits.
    pub keeps: bool,
    /// The tracing filter; `HSM_LAB_LOG` overrides it.
    pub log: String,
}

impl PoolConfig {
    /// A pool on `mount` with everything else in `dir`.
    pub fn new(dir: &Path, mount: &Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
            mount: mount.to_path_buf(),
            store: dir.join("store"),
            bpf_dir: bpf_dir(dir),
            tier: std::env::var(tier::VARIABLE).ok().filter(|tier| !tier.is_empty()),
            log: std::env::var("HSM_LAB_LOG").unwrap_or_else(|_| "info".to_owned()),
            ..Self::default()
        }
    }

    /// The file that [`write`](Self::write) writes.
    pub fn file(&self) -> PathBuf {
        self.dir.join("hsm.toml")
    }

    /// The agent's state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Removes the kernel programs that an agent left pinned, as it does on purpose.
    pub fn unpin(&self) -> Result<()> {
        match fs::remove_dir_all(&self.bpf_dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", self.bpf_dir.display()))
            }
            _ => Ok(()),
        }
    }

    /// The TOML.
    pub fn render(&self) -> String {
        let quoted = |path: &Path| format!("{:?}", path.display().to_string());
        let mut text = format!(
            "[agent]\nstate_dir = {}\nsocket = {}\nbpf_dir = {}\nlog = {:?}\n\n[limits]\n",
            quoted(&self.state_dir()),
            quoted(&self.dir.join("hsm.sock")),
            quoted(&self.bpf_dir),
            self.log,
        );
        let mut lines = |lines: &[String]| lines.iter().for_each(|l| text += &format!("{l}\n"));
        lines(&self.limits);
        lines(&[
            "\n[[pool]]\nname = \"lab\"".to_owned(),
            format!("mount = {}", quoted(&self.mount)),
        ]);
        lines(self.tier.as_ref().map(|tier| format!("tier = {tier:?}")).as_slice());
        lines(&self.pool);
        lines(&["\n[pool.store]".to_owned()]);
        let local = ["kind = \"local\"".to_owned(), format!("path = {}", quoted(&self.store))];
        lines(self.other_store.as_deref().unwrap_or(&local));
        lines(&self.store_options);
        text
    }

    /// Makes the directories and writes the file.
    pub fn write(&self) -> Result<PathBuf> {
        fs::create_dir_all(&self.store)?;
        fs::create_dir_all(self.state_dir())?;
        fs::write(self.file(), self.render())?;
        Ok(self.file())
    }
}

/// bpffs takes no dots in names.
fn bpf_dir(dir: &Path) -> PathBuf {
    let mut names: Vec<_> = dir.iter().rev().take(2).map(|n| n.to_string_lossy()).collect();
    names.reverse();
    Path::new("/sys/fs/bpf").join(format!("lab-{}", names.join("-").replace('.', "_")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_come_in_order() {
        let mut config = PoolConfig::new(Path::new("/d"), Path::new("/d/m"));
        config.tier = Some("lsm-filter".into());
        assert!(config.render().contains("\ntier = \"lsm-filter\"\n"));
        config.pool.push("recall = \"range\"".into());
        config.store_options.push("retries = 1".into());
        let text = config.render();
        let at = |needle: &str| text.find(needle).unwrap();
        assert!(at("[limits]") < at("[[pool]]"));
        assert!(at("[[pool]]") < at("recall"));
        assert!(at("recall") < at("[pool.store]"));
        assert!(at("[pool.store]") < at("retries"));
    }
}
