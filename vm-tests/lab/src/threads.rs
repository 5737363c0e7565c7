//! Where the threads of an agent stand: what somebody needs who asks why nobody is answered.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::census;

/// Functions of the kernel that are told of each thread, the innermost ones.
const DEPTH: usize = 6;

/// The threads of the agent's processes that name `dir`: process, names, and where in the kernel they are (root
/// sees that). Threads of one process at the same place are one line.
pub fn standing(dir: &Path) -> String {
    let mut places: BTreeMap<(i32, String), Vec<String>> = BTreeMap::new();
    for (pid, _) in census::processes(dir) {
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let place = place(&read("stack"), &read("syscall"));
            places.entry((pid, place)).or_default().push(read("comm").trim().to_owned());
        }
    }
    let line = |((pid, place), names): ((i32, String), Vec<String>)| {
        format!("{pid} {}: {place}", names.join(" "))
    };
    let lines: Vec<_> = places.into_iter().map(line).collect();
    format!("--- where the agent's threads are ---\n{}\n---", lines.join("\n"))
}

/// `[<0>] futex_wait+0x6c/0x120` and so on, innermost first; or the number of the system call, or "running".
fn place(stack: &str, syscall: &str) -> String {
    let function = |line: &str| Some(line.split_whitespace().nth(1)?.split('+').next()?.to_owned());
    let inside = |function: &String| function != "do_syscall_64";
    let functions: Vec<_> =
        stack.lines().filter_map(function).take_while(inside).take(DEPTH).collect();
    match syscall.split_whitespace().next() {
        _ if !functions.is_empty() => functions.join(" < "),
        Some("running") | None => "running".to_owned(),
        Some(number) => format!("system call {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_told_as_well_as_it_is_known() {
        let stack = "[<0>] futex_wait_queue+0x60/0x90\n[<0>] futex_wait+0x158/0x260\n[<0>] do_syscall_64+0x7b/0x160\n";
        assert_eq!(place(stack, "202 0x0 0x0\n"), "futex_wait_queue < futex_wait");
        assert_eq!(place("", "202 0x0 0x0\n"), "system call 202");
        assert_eq!(place("", "running\n"), "running");
    }

    #[test]
    fn nobody_stands_where_no_agent_is() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(standing(dir.path()), "--- where the agent's threads are ---\n\n---");
    }
}
