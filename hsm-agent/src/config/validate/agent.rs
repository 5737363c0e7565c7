//! `[agent]` and `[limits]`, each by itself.

use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::Findings;
use crate::config::{AgentConfig, Limits};
use crate::holder::MAX_WAITING;

/// `sun_path` of a Unix socket address has 108 bytes, one of them for the final NUL.
const MAX_SOCKET_PATH: usize = 107;

pub(super) fn check_agent(agent: &AgentConfig, findings: &mut Findings<'_>) {
    findings.absolute("agent.state_dir", &agent.state_dir);
    findings.absolute("agent.socket", &agent.socket);
    findings.absolute("agent.bpf_dir", &agent.bpf_dir);
    let length = agent.socket.as_os_str().as_bytes().len();
    if length > MAX_SOCKET_PATH {
        let message = format!("{length} bytes are too long for the path of a socket");
        findings.error("agent.socket", message, format!("{MAX_SOCKET_PATH} bytes is the most"));
    }
    if let Err(error) = EnvFilter::builder().parse(&agent.log) {
        let hint = "a level (error, warn, info, debug, trace) or a list such as \
                    \"info,hsm_agent::recall=debug\"";
        findings.error("agent.log", error.to_string(), hint);
    }
}

pub(super) fn check_limits(limits: &Limits, findings: &mut Findings<'_>) {
    if limits.recall_memory.as_u64() < 1 << 20 {
        let hint = "the smallest chunk is 1MiB, and one must fit";
        findings.error("limits.recall_memory", "too small for a single chunk", hint);
    }
    findings.within("limits.recall_parallel", limits.recall_parallel.into(), 1..=256);
    findings.within("limits.recalls", limits.recalls.into(), 1..=256);
    findings.within("limits.recalls_per_user", limits.recalls_per_user.into(), 1..=256);
    if let Some(most) = limits.local_recalls_per_user {
        findings.within("limits.local_recalls_per_user", most.into(), 1..=256);
    }
    findings.within("limits.waiting", limits.waiting.into(), 1..=MAX_WAITING);
    findings.within("limits.waiting_per_user", limits.waiting_per_user.into(), 1..=MAX_WAITING);
    if limits.recalls_per_user >= limits.recalls && limits.recalls > 1 {
        let hint = "below limits.recalls it leaves workers free for other users";
        findings.warning("limits.recalls_per_user", "one user can occupy all recalls", hint);
    }
    findings.within("limits.bulk_jobs", limits.bulk_jobs.into(), 1..=256);
    findings.within("limits.release_batch", limits.release_batch.into(), 1..=65_536);
    if limits.recall_deadline < Duration::from_secs(1) {
        let hint = "a reader is blocked that long at most; 1s is the least";
        findings.error("limits.recall_deadline", "too short for any recall", hint);
    }
}
