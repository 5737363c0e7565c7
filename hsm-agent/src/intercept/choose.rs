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

/// The best tier for a pool. `programs` says why the kernel programs cannot be used for it. An error
/// says why the tier that the pool insists on cannot be had.
pub fn choose(pool: &PoolConfig, programs: Result<(), &str>) -> Result<Chosen, String> {
    let user = |why: String| Ok(Chosen { tier: Tier::UserFilter, why });
    let filter = || {
        let why = "a kernel program looks at the marker at every open".to_owned();
        Ok(Chosen { tier: Tier::LsmFilter, why })
    };
    match (pool.tier, programs) {
        (TierChoice::UserFilter, _) => user("the configuration says so".to_owned()),
        (TierChoice::LsmFilter, Ok(())) => filter(),
        (TierChoice::LsmFilter, Err(why)) => Err(format!("tier lsm-filter cannot be had: {why}")),
        (TierChoice::Auto, Err(why)) => user(format!("no lsm-filter: {why}")),
        (TierChoice::Auto, Ok(())) if pool.recall == RecallMode::Range => {
            user("recall = \"range\" needs it".to_owned())
        }
        (TierChoice::Auto, Ok(())) if pool.early_answer => user("early_answer needs it".to_owned()),
        (TierChoice::Auto, Ok(())) => filter(),
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

    fn tier(lines: &str, programs: Result<(), &str>) -> Option<Tier> {
        choose(&pool(lines), programs).ok().map(|chosen| chosen.tier)
    }

    #[test]
    fn the_best_tier_that_can_do_what_the_pool_asks_for() {
        assert_eq!(tier("", Ok(())), Some(Tier::LsmFilter));
        assert_eq!(tier("recall = \"range\"", Ok(())), Some(Tier::UserFilter));
        assert_eq!(tier("early_answer = true", Ok(())), Some(Tier::UserFilter));
        assert_eq!(tier("tier = \"user-filter\"", Ok(())), Some(Tier::UserFilter));
        assert_eq!(tier("tier = \"lsm-filter\"", Ok(())), Some(Tier::LsmFilter));
    }

    #[test]
    fn without_programs_auto_falls_back_and_says_why_and_a_named_tier_does_not() {
        let chosen = choose(&pool(""), Err("EPERM")).expect("falls back");
        assert_eq!(chosen.tier, Tier::UserFilter);
        assert!(chosen.why.contains("EPERM"));
        let error = choose(&pool("tier = \"lsm-filter\""), Err("EPERM")).expect_err("refused");
        assert!(error.contains("lsm-filter") && error.contains("EPERM"));
    }
}
