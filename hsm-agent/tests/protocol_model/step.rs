//! A step from one state to another, and its name.

use crate::state::State;

/// Why it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Somebody goes on with what he has begun.
    Progress,
    /// Something begins, goes wrong, or is given up: nobody may rely on it.
    Whim,
}

/// One step.
pub(crate) struct Step {
    pub(crate) kind: Kind,
    pub(crate) who: &'static str,
    pub(crate) what: &'static str,
    pub(crate) next: State,
}

/// Gathers the steps that are possible in one state.
pub(crate) struct Steps<'a> {
    pub(crate) from: State,
    pub(crate) found: &'a mut Vec<Step>,
}

impl Steps<'_> {
    pub(crate) fn progress(
        &mut self,
        who: &'static str,
        what: &'static str,
        change: impl FnOnce(&mut State),
    ) {
        self.push(Kind::Progress, who, what, change);
    }

    pub(crate) fn whim(
        &mut self,
        who: &'static str,
        what: &'static str,
        change: impl FnOnce(&mut State),
    ) {
        self.push(Kind::Whim, who, what, change);
    }

    fn push(
        &mut self,
        kind: Kind,
        who: &'static str,
        what: &'static str,
        change: impl FnOnce(&mut State),
    ) {
        let mut next = self.from;
        change(&mut next);
        self.found.push(Step { kind, who, what, next: next.canonical() });
    }
}
