//! What the guest's kernel complained about.
//!
//! A test that passes while its kernel says `WARNING:` has not passed. Complaints are found by the
//! words with which the kernel's own reports begin.

/// Words after which the guest cannot be trusted to go on: it is killed.
const FATAL: &[&str] = &[
    "Kernel panic",
    "BUG: ",
    "Oops",
    "general protection fault",
    "detected stall",
    "self-detected stall",
    "soft lockup",
    "hard LOCKUP",
];

/// Words of a mistake or a hang that the guest survives.
const SERIOUS: &[&str] = &[
    "WARNING: ",
    "INFO: task ",
    "suspicious RCU usage",
    "possible circular locking",
    "possible recursive locking",
    "inconsistent lock state",
    "bad unlock balance",
    "held lock freed",
    "lock held when returning to user space",
    "INFO: trying to register non-static key",
    "sleeping function called from invalid context",
    "UBSAN: ",
    "list_add corruption",
    "list_del corruption",
    "refcount_t: ",
    "workqueue lockup",
    "unreferenced object",
    "Dynamic Preempt: unsupported mode",
];

/// Lines of a report that are kept after its first one.
const EXCERPT_LINES: usize = 60;

/// How bad a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The run has failed; the guest may go on.
    Serious,
    /// The guest must be killed.
    Fatal,
}

/// The first complaint of a console log, with what followed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// The worst of all lines of the log.
    pub severity: Severity,
    /// The first line that is a complaint, and what the kernel said next.
    pub excerpt: Vec<String>,
}

/// Reads the console line by line.
#[derive(Debug, Default)]
pub struct Console {
    complaint: Option<Complaint>,
}

impl Console {
    /// Takes the next line.
    pub fn line(&mut self, line: &str) {
        let found = judge(line);
        match (&mut self.complaint, found) {
            (None, Some(severity)) => {
                self.complaint = Some(Complaint { severity, excerpt: vec![line.to_owned()] });
            }
            (Some(complaint), found) => {
                complaint.severity = complaint.severity.max(found.unwrap_or(complaint.severity));
                if complaint.excerpt.len() < EXCERPT_LINES {
                    complaint.excerpt.push(line.to_owned());
                }
            }
            (None, None) => {}
        }
    }

    /// Whether the guest must be killed.
    pub fn is_fatal(&self) -> bool {
        self.complaint.as_ref().is_some_and(|c| c.severity == Severity::Fatal)
    }

    /// What was found.
    pub fn complaint(&self) -> Option<&Complaint> {
        self.complaint.as_ref()
    }
}

fn judge(line: &str) -> Option<Severity> {
    let has = |words: &[&str]| words.iter().any(|word| line.contains(word));
    if has(FATAL) {
        return Some(Severity::Fatal);
    }
    has(SERIOUS).then_some(Severity::Serious)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Complaint> {
        let mut console = Console::default();
        text.lines().for_each(|line| console.line(line));
        console.complaint().cloned()
    }

    #[test]
    fn an_ordinary_boot_is_no_complaint() {
        let text = "[    0.000000] Linux version 7.3.4\n\
                    [    0.412345] loop: module loaded\n\
                    [    1.000000] XFS (loop0): Mounting V5 Filesystem\n\
                    [    1.100000] debug: unmapping init memory";
        assert_eq!(read(text), None);
    }

    #[test]
    fn each_report_of_the_kernel_is_found() {
        for line in [
            "[ 3.1] WARNING: fs/inode.c:417 at drop_nlink+0x2a/0x40, CPU#0: rm/99",
            "[ 3.1] WARNING: possible circular locking dependency detected",
            "[ 123.0] INFO: task cat:77 blocked for more than 122 seconds.",
            "[ 3.1] WARNING: suspicious RCU usage",
            "[ 3.1] Dynamic Preempt: unsupported mode: none",
        ] {
            assert_eq!(read(line).unwrap().severity, Severity::Serious, "{line}");
        }
        for line in [
            "[ 3.1] BUG: kernel NULL pointer dereference, address: 0000000000000000",
            "[ 3.1] Oops: general protection fault, 0000 [#1] SMP",
            "[ 3.1] Kernel panic - not syncing: Attempted to kill init!",
            "[ 63.1] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "[ 63.1] watchdog: BUG: soft lockup - CPU#1 stuck for 62s! [cat:77]",
        ] {
            assert_eq!(read(line).unwrap().severity, Severity::Fatal, "{line}");
        }
    }

    #[test]
    fn the_excerpt_begins_with_the_first_complaint_and_remembers_the_worst() {
        let complaint = read("boot\nWARNING: one\n trace\nBUG: two").unwrap();
        assert_eq!(complaint.severity, Severity::Fatal);
        assert_eq!(complaint.excerpt, ["WARNING: one", " trace", "BUG: two"]);
    }

    #[test]
    fn the_excerpt_is_bounded() {
        let text = format!("WARNING: one\n{}", "trace\n".repeat(1000));
        assert_eq!(read(&text).unwrap().excerpt.len(), EXCERPT_LINES);
    }
}
