//! Whether this machine runs BPF LSM programs: found out by having the kernel load a trivial one.

use std::io;

use super::{BpfError, Btf, kernel};
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
    match types() {
        Ok(_) => Ok(Probe::Available),
        Err(BpfError::Unavailable(probe)) => Ok(probe),
        Err(error) => Err(error),
    }
}

/// Type information of a kernel that takes programs.
pub(super) fn types() -> Result<Btf<'static>, BpfError> {
    let unavailable = |probe| Err(BpfError::Unavailable(probe));
    let types = match kernel::types() {
        Ok(types) => types,
        Err(BpfError::BtfFile { path, source }) if source.kind() == io::ErrorKind::NotFound => {
            let what = format!("there is no {}", path.display());
            return unavailable(Probe::NotCompiledIn(what));
        }
        Err(e) => return Err(e),
    };
    let Some(hook) = types.function("bpf_lsm_file_open") else {
        return unavailable(Probe::NotCompiledIn("it has no hook bpf_lsm_file_open".into()));
    };
    if let Err(error) = bpf::load_trivial_lsm(hook) {
        return unavailable(Probe::Refused(error));
    }
    let active = bpf::is_lsm_active().map_err(|source| BpfError::Probe {
        doing: "listing the active security modules",
        source,
    })?;
    if active { Ok(types) } else { unavailable(Probe::Inactive) }
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
