//! The protocols of Archive, Release, Recall and their recovery, modelled step by step, and every state
//! that can be reached looked at: `docs/PROTOCOL-MODEL.md` has what is assumed, and what was found.
//!
//! [`state`] is one state, and what must hold in each. [`opener`], [`cutter`], [`recall`], [`release`],
//! [`archive`], [`net`] and [`faults`] have the steps, one for each that the code takes; they are named as there. [`explore`] goes
//! through them, breadth first. A [`setup::Mutant`] is a rule that is left out: the model must find what
//! it is for.
//!
//! No root, no kernel, no files: `cargo test -p hsm-agent --test protocol_model`, with `-- --nocapture`
//! for the counterexamples in words.

mod archive;
mod cutter;
mod explore;
mod faults;
mod mutants;
mod net;
mod opener;
mod recall;
mod release;
mod setup;
mod state;
mod step;

use explore::{Outcome, explore};
use setup::{Pace, Setup, Tier};

/// Every state is right.
#[track_caller]
fn holds(setup: &Setup) {
    match explore(setup) {
        Outcome::Holds { states } => println!("{states} states: {setup:?}"),
        Outcome::Fails { violation, trace, steps, .. } => {
            panic!("{violation}, after {steps} steps:\n{trace}{setup:?}")
        }
    }
}

/// There is a state that is wrong, and a shortest way to it, which is printed.
#[track_caller]
fn fails(setup: &Setup, expected: &str) {
    match explore(setup) {
        Outcome::Holds { states } => {
            panic!("nothing is wrong with any of {states} states: {setup:?}")
        }
        Outcome::Fails { violation, trace, steps, states } => {
            println!(
                "{violation}, after {steps} steps ({states} states seen):\n{trace}{setup:?}\n"
            );
            assert_eq!(violation, expected);
        }
    }
}

#[test]
fn as_built_in_tier_lsm_filter() {
    holds(&Setup::new(Tier::LsmFilter).readers(2));
}

#[test]
fn as_built_in_tier_user_filter() {
    holds(&Setup::new(Tier::UserFilter).readers(2));
    holds(&Setup::new(Tier::Guarded).readers(2));
}

#[test]
fn archived_again_and_released_twice() {
    for tier in [Tier::LsmFilter, Tier::MarkFilter, Tier::UserFilter] {
        holds(&Setup::new(tier).writes(2).releases(2).archives(1).an_agent_lives());
    }
}

#[test]
fn archived_again_while_holder_and_engine_may_die() {
    holds(&Setup::new(Tier::LsmFilter).writes(2).archives(1));
}

#[test]
fn two_crashes() {
    holds(&Setup::new(Tier::LsmFilter).writes(2).crashes(2));
    holds(&Setup::new(Tier::Guarded).crashes(2));
    holds(&Setup::new(Tier::UserFilter).writes(2).crashes(2));
}

#[test]
fn two_readers_and_two_crashes() {
    holds(&Setup::new(Tier::LsmFilter).readers(2).crashes(2));
}

#[test]
fn as_built_in_tier_mark_filter() {
    holds(&Setup::new(Tier::MarkFilter).readers(2));
    holds(&Setup::new(Tier::MarkFilter).crashes(2));
}

/// `guard_post_open` comes and goes.
#[test]
fn the_second_net_is_there_when_it_matters() {
    for tier in [Tier::LsmFilter, Tier::MarkFilter, Tier::Guarded] {
        holds(&Setup::new(tier).disarms());
        holds(&Setup::new(tier).writes(0).readers(2).disarms());
        holds(&Setup::new(tier).writes(0).crashes(2).disarms());
    }
    holds(&Setup::new(Tier::LsmFilter).crashes(2).disarms());
}

/// Kernel programs stand before the cut itself, however long it has been on its way.
#[test]
fn cut_by_path_where_programs_are() {
    for tier in [Tier::LsmFilter, Tier::MarkFilter, Tier::Guarded] {
        let setup = Setup::new(tier).cutter(Pace::Slow);
        holds(&setup);
        holds(&setup.writes(0).crashes(2));
        holds(&setup.writes(0).releases(2).archives(1).an_agent_lives());
    }
}

/// `mutants.rs` has what becomes of who is slow.
#[test]
fn cut_by_path_where_no_programs_are() {
    let setup = Setup::new(Tier::UserFilter).cutter(Pace::Prompt);
    holds(&setup);
    holds(&setup.writes(0).crashes(2));
    holds(&setup.writes(0).releases(2).archives(1));
}
