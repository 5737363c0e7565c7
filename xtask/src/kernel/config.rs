//! Kernel configurations: what was asked for against what came out.
//!
//! `make olddefconfig` drops an option without a word when something that it depends on is missing.
//! A guest without, say, `CONFIG_BPF_LSM` would then fail much later and far away, so every line of
//! the fragments is looked for in the result.

use std::collections::BTreeMap;

/// Options and their values; an option that is "not set" has the value `n`.
pub(crate) fn parse(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(option).collect()
}

fn option(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if let Some(rest) = line.strip_prefix("# CONFIG_") {
        let name = rest.strip_suffix(" is not set")?;
        return Some((name, "n"));
    }
    line.strip_prefix("CONFIG_")?.split_once('=')
}

/// What differs, one line per option; empty is what is wanted. A later line of `wanted` replaces an
/// earlier one of the same option.
pub(crate) fn differences(wanted: &str, got: &str) -> Vec<String> {
    let got = parse(got);
    let differs = |(name, value): (&str, &str)| {
        let is = got.get(name).copied().unwrap_or("n");
        (is != value).then(|| format!("CONFIG_{name} is {is}, not {value}"))
    };
    parse(wanted).into_iter().filter_map(differs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOT: &str = "CONFIG_SMP=y\n# CONFIG_DEBUG_FS is not set\nCONFIG_LSM=\"capability,bpf\"\n";

    #[test]
    fn what_came_out_as_asked_is_no_difference() {
        let wanted = "# a comment\nCONFIG_SMP=y\n# CONFIG_KASAN is not set\nCONFIG_DEBUG_FS=n\n\
                      CONFIG_LSM=\"capability,bpf\"\n";
        assert_eq!(differences(wanted, GOT), Vec::<String>::new());
    }

    #[test]
    fn dropped_and_forced_options_are_named() {
        let wanted = "CONFIG_BPF_LSM=y\n# CONFIG_SMP is not set\nCONFIG_DEBUG_FS=y\n";
        let expected =
            ["CONFIG_BPF_LSM is n, not y", "CONFIG_DEBUG_FS is n, not y", "CONFIG_SMP is y, not n"];
        assert_eq!(differences(wanted, GOT), expected);
    }

    #[test]
    fn a_later_fragment_wins() {
        assert_eq!(differences("CONFIG_SMP=n\nCONFIG_SMP=y\n", GOT), Vec::<String>::new());
    }

    #[test]
    fn the_fragments_of_the_project_are_read() {
        let dir = crate::process::root().join("vm-tests/kernel/config");
        for name in ["base.config", "patched.config", "debug.config"] {
            let text = std::fs::read_to_string(dir.join(name)).unwrap();
            let lines = text.lines().filter(|line| line.contains("CONFIG_")).count();
            assert_eq!(parse(&text).len(), lines, "{name}: a line is no option, or is there twice");
        }
    }
}
