//! Breadth-first enumeration of all states, so that a counterexample is a shortest one.

use std::collections::HashSet;
use std::fmt::Write;
use std::hash::{BuildHasherDefault, Hasher};

use crate::setup::{Pace, Setup};
use crate::state::{Cut, Key, State};
use crate::step::{Kind, Step, Steps};
use crate::{archive, cutter, faults, net, opener, recall, release};

/// What an enumeration found.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Every reachable state is right.
    Holds {
        /// How many there are.
        states: usize,
    },
    /// A shortest way into a state that is wrong.
    Fails {
        /// What is wrong.
        violation: &'static str,
        /// The way, a step a line.
        trace: String,
        /// How long it is.
        steps: usize,
        /// States that were looked at before it was found.
        states: usize,
    },
}

/// States are many and their keys well mixed by one multiplication.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are whole words");
    }

    fn write_u64(&mut self, word: u64) {
        /// 2^64 divided by the golden ratio (Knuth's multiplicative hashing).
        const RATIO: u64 = 0x9e37_79b9_7f4a_7c15;
        self.0 = (self.0.rotate_left(29) ^ word).wrapping_mul(RATIO);
        self.0 ^= self.0 >> 32;
    }

    fn write_u128(&mut self, key: u128) {
        self.write_u64(key as u64);
        self.write_u64((key >> 64) as u64);
    }
}

/// Everything that can happen in a state.
fn successors(setup: &Setup, from: State, found: &mut Vec<Step>) {
    found.clear();
    cutter::steps(setup, &mut Steps { from, found });
    // Not asked, or answered, and with write access: one step.
    if setup.cutter == Some(Pace::Prompt) && from.cutter.at == Cut::Passed {
        return;
    }
    for who in 0..3 {
        opener::steps(setup, &mut Steps { from, found }, who);
    }
    recall::steps(setup, &mut Steps { from, found });
    release::steps(setup, &mut Steps { from, found });
    archive::steps(setup, &mut Steps { from, found });
    net::steps(setup, &mut Steps { from, found });
    faults::kernel_steps(setup, &mut Steps { from, found });
    faults::steps(setup, &mut Steps { from, found });
}

/// Looks at every state that can be reached.
pub(crate) fn explore(setup: &Setup) -> Outcome {
    let mut seen = HashSet::<Key, BuildHasherDefault<Mix>>::default();
    let first = setup.initial().canonical();
    let mut states = vec![first];
    let mut parents = vec![0u32];
    seen.insert(first.key());
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(state) = states.get(at).copied() {
        successors(setup, state, &mut found);
        let stuck = state.somebody_waits() && !found.iter().any(|s| s.kind == Kind::Progress);
        let violation =
            state.violation(!setup.both_die).or(stuck.then_some("somebody waits for ever"));
        if let Some(violation) = violation {
            let way = way_to(&states, &parents, at);
            let steps = way.len() - 1;
            return Outcome::Fails {
                violation,
                trace: tell(setup, &way),
                steps,
                states: states.len(),
            };
        }
        for step in found.drain(..) {
            if seen.insert(step.next.key()) {
                states.push(step.next);
                parents.push(at as u32);
            }
        }
        at += 1;
    }
    Outcome::Holds { states: states.len() }
}

fn way_to(states: &[State], parents: &[u32], mut at: usize) -> Vec<State> {
    let mut way = vec![states[at]];
    while at != 0 {
        at = parents[at] as usize;
        way.push(states[at]);
    }
    way.reverse();
    way
}

/// The way in words.
fn tell(setup: &Setup, way: &[State]) -> String {
    let mut text = String::new();
    let mut found = Vec::new();
    for (number, pair) in way.windows(2).enumerate() {
        successors(setup, pair[0], &mut found);
        let step = found.iter().find(|step| step.next.key() == pair[1].key());
        if let Some(Step { who, what, .. }) = step {
            let _ = writeln!(text, "{:>3}. {who}: {what}", number + 1);
        }
    }
    text
}
