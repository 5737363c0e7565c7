//! Whether this machine runs BPF LSM programs: found out by having the kernel load a trivial one.

use std::io;

use super::{BpfError, kernel};
use crate::sys::bpf;

/// What became of the trial.
#[derive(Debug)]
pub enum Probe {
    /// Programs can be loaded, and their hooks are called.
    Available,
    /// The kernel has BPF LSM, and refuses to load its programs.
    Refused(io::Error),
    /// The programs load, but `bpf` is not among the active security modules: nothing would call
    /// them.
    Inactive,
    /// The kernel was built without BPF LSM, or without type information.
    NotCompiledIn(String),
}

impl std::fmt::Display for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Available => write!(f, "available"),
            Self::Refused(error) => write!(
                f,
                "the kernel refuses BPF LSM programs ({error}): a property of this host, or missing \
                 privileges (CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN)"
            ),
            Self::Inactive => write!(
                f,
                "BPF LSM is built in but not active: add `bpf` to the kernel's command line option \
                 `lsm=`"
            ),
            Self::NotCompiledIn(what) => write!(f, "this kernel has no BPF LSM: {what}"),
        }
    }
}

/// Tries it. Needs no built-in object, attaches nothing and leaves nothing behind.
pub fn probe() -> Result<Probe, BpfError> {
    let types = match kernel::types() {
        Ok(types) => types,
        Err(BpfError::BtfFile { path, source }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(Probe::NotCompiledIn(format!("there is no {}", path.display())));
        }
        Err(e) => return Err(e),
    };
    let Some(hook) = types.function("bpf_lsm_file_open") else {
        return Ok(Probe::NotCompiledIn("it has no hook bpf_lsm_file_open".into()));
    };
    if let Err(error) = bpf::load_trivial_lsm(hook) {
        return Ok(Probe::Refused(error));
    }
    let active = bpf::is_lsm_active().map_err(|source| BpfError::Probe {
        doing: "listing the active security modules",
        source,
    })?;
    Ok(if active { Probe::Available } else { Probe::Inactive })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_can_be_told_to_a_person() {
        let answer = probe().expect("an answer");
        eprintln!("BPF LSM here: {answer}");
        assert!(!answer.to_string().is_empty());
    }
}
