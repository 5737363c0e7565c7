//! Which tier a pool gets. Pure: what the kernel can do was found out before.

use super::Tier;
use crate::config::{PoolConfig, RecallMode, TierChoice};

/// A tier, and why it is no better one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The tier.
    pub tier: Tier,
    /// For people.
    pub why: String,
}

/// Why the parts of the kernel's side cannot be used for a pool, if they cannot.
#[derive(Debug, Clone, Copy)]
pub struct Able<'a> {
    /// The LSM programs.
    pub programs: Result<(), &'a str>,
    /// Our kernel patches.
    pub patches: Result<(), &'a str>,
}

/// The best tier for a pool. An error says why the tier that the pool insists on cannot be had.
pub fn choose(pool: &PoolConfig, able: Able<'_>) -> Result<Chosen, String> {
    let chosen = |tier, why: &str| Ok(Chosen { tier, why: why.to_owned() });
    let refused = |tier: Tier, why: &str| Err(format!("tier {tier} cannot be had: {why}"));
    let filter = "a kernel program looks at the marker at every open";
    match (pool.tier, able.programs, able.patches) {
        (TierChoice::UserFilter, ..) => chosen(Tier::UserFilter, "the configuration says so"),
        (TierChoice::LsmFilter, Ok(()), _) => chosen(Tier::LsmFilter, filter),
        (TierChoice::LsmFilter, Err(why), _) => refused(Tier::LsmFilter, why),
        // The programs keep what the filter remembers about a file right, and guard its attributes.
        (TierChoice::MarkFilter, Err(why), _) | (TierChoice::MarkFilter, _, Err(why)) => {
            refused(Tier::MarkFilter, why)
        }
        (TierChoice::MarkFilter | TierChoice::Auto, Ok(()), Ok(())) => {
            chosen(Tier::MarkFilter, "the mark of the file system has a filter in the kernel")
        }
        (TierChoice::Auto, Err(why), _) => {
            chosen(Tier::UserFilter, &format!("no lsm-filter: {why}"))
        }
        (TierChoice::Auto, Ok(()), _) if pool.recall == RecallMode::Range => {
            chosen(Tier::UserFilter, "recall = \"range\" needs it")
        }
        (TierChoice::Auto, Ok(()), _) if pool.early_answer => {
            chosen(Tier::UserFilter, "early_answer needs it")
        }
        (TierChoice::Auto, Ok(()), Err(_)) => chosen(Tier::LsmFilter, filter),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn pool(lines: &str) -> PoolConfig {
        let text = format!(
            "[[pool]]\nname = \"a\"\nmount = \"/a\"\n{lines}\n[pool.store]\nkind = \"local\"\npath = \"/s\"\n"
        );
        let mut config = Config::parse(&text, "test.toml").expect("valid");
        config.pools.remove(0)
    }

    const ALL: Able<'_> = Able { programs: Ok(()), patches: Ok(()) };
    const STOCK: Able<'_> = Able { programs: Ok(()), patches: Err("EINVAL") };
    const NONE: Able<'_> = Able { programs: Err("EPERM"), patches: Err("EINVAL") };

    fn tier(lines: &str, able: Able<'_>) -> Option<Tier> {
        choose(&pool(lines), able).ok().map(|chosen| chosen.tier)
    }

    #[test]
    fn the_best_tier_that_can_do_what_the_pool_asks_for() {
        assert_eq!(tier("", STOCK), Some(Tier::LsmFilter));
        assert_eq!(tier("recall = \"range\"", STOCK), Some(Tier::UserFilter));
        assert_eq!(tier("early_answer = true", STOCK), Some(Tier::UserFilter));
        for lines in ["", "recall = \"range\"", "early_answer = true", "recall = \"whole\""] {
            assert_eq!(tier(lines, ALL), Some(Tier::MarkFilter), "{lines}");
        }
        for able in [ALL, STOCK] {
            assert_eq!(tier("tier = \"user-filter\"", able), Some(Tier::UserFilter));
            assert_eq!(tier("tier = \"lsm-filter\"", able), Some(Tier::LsmFilter));
        }
        assert_eq!(tier("tier = \"mark-filter\"", ALL), Some(Tier::MarkFilter));
    }

    #[test]
    fn without_programs_auto_falls_back_and_says_why_and_a_named_tier_does_not() {
        let chosen = choose(&pool(""), NONE).expect("falls back");
        assert_eq!(chosen.tier, Tier::UserFilter);
        assert!(chosen.why.contains("EPERM"));
        let error = choose(&pool("tier = \"lsm-filter\""), NONE).expect_err("refused");
        assert!(error.contains("lsm-filter") && error.contains("EPERM"));
        let error = choose(&pool("tier = \"mark-filter\""), STOCK).expect_err("refused");
        assert!(error.contains("mark-filter") && error.contains("EINVAL"));
        let unguarded = Able { programs: Err("EPERM"), patches: Ok(()) };
        assert_eq!(tier("tier = \"mark-filter\"", unguarded), None);
        assert_eq!(tier("", unguarded), Some(Tier::UserFilter));
    }
}
