//! What is modelled: a tier, bounds, and perhaps one rule left out.

use crate::state::{Cut, Cutter, Left, State};

/// How accesses are intercepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    /// `lsm-filter`: the programs in filter mode.
    LsmFilter,
    /// `mark-filter`, of a file that is recalled whole: opens as in `lsm-filter`.
    MarkFilter,
    /// `user-filter`, the programs in guard mode beside it.
    Guarded,
    /// `user-filter` alone. It protects nothing when holder and engine are gone, and says so.
    UserFilter,
}

/// A rule of the protocol that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// Release: the data goes before the marker comes.
    PunchBeforeMarker,
    /// Release: step 6 without its sync.
    NoSyncOfMarker,
    /// Release: without step 7.
    NoRetake,
    /// Release: the lease is not taken again after a trim.
    NoRetakeAfterTrim,
    /// Release: the watch comes after the lease, with the marker, as DESIGN.md had it first.
    WatchAfterLease,
    /// Release: the way back without its sync.
    NoSyncOfUndo,
    /// Release: a modification time that is that of the record is believed.
    NoCompareAtRelease,
    /// Recall: the marker goes before the data is durable.
    ClearBeforeSync,
    /// Recall: the data is not synced at all.
    NoSyncOfData,
    /// Recall: writers go on when the marker is gone, not when that is durable.
    AnswerBeforeDurable,
    /// Recall: what is there already is not compared with the object.
    NoCompareAtRecall,
    /// Recall, tier lsm-filter: the watch is not kept until the marker's removal is durable.
    NoKeepWatch,
    /// Archive: the data version is that after the data was read, and no lease vouches for it.
    VersionAfterRead,
    /// Archive: the record is written before the object is flushed.
    RecordBeforeFlush,
    /// Programs: no `guard_post_open`.
    NoPostOpen,
    /// Programs: `guard_post_open` passes what any server answers for, not only the one of `guard_open`.
    AnyServer,
    /// Programs: the second net is detached although somebody is in flight.
    DisarmBlindly,
    /// Programs: an opener looks whether the second net is armed, and counts himself then.
    CountAfterLook,
    /// Programs: an opener passes a marked file whether or not the second net is armed.
    PassUnarmed,
    /// Release: the second net is not armed.
    ReleaseUnarmed,
    /// Release: the second net may be detached meanwhile.
    DisarmDuringRelease,
    /// Recovery: the second net may be detached while a release is left open.
    DisarmOverOpenRelease,
    /// Programs: the marker is looked at before `seq` is.
    LookBeforeSeq,
    /// Holder: an engine that died is not started again.
    NoNewEngine,
    /// Holder: who waits is let through when the engine dies.
    AllowOnEngineDeath,
    /// Engine: answers without having synced the file system at its start.
    NoSyncAtStart,
    /// Recovery: what is there is punched, whatever it is.
    RepunchTrustsMarker,
    /// Recovery: what is there is punched if the file's time is that of the record.
    RepunchTrustsTime,
    /// Release: the marker is set over data that the device may not have yet.
    MarkerBeforeData,
    /// Release: the marker is set without a look at the lease.
    MarkerWithoutLease,
    /// Release, tier mark-filter: the file is not held.
    NotHeld,
    /// Release, tier mark-filter: the file is held, and a verdict that it is online stays cached.
    HeldBesideVerdict,
    /// An archive job may claim a file that is being recalled or settles.
    ArchiveDuringRecall,
    /// The engine of a dead holder ends without denying whoever waits in its group.
    AllowAtTakeOver,
}

/// How long the cutter takes from fsnotify to `get_write_access`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As long as it likes.
    Slow,
    /// Nothing else happens meanwhile.
    Prompt,
}

/// A run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) tier: Tier,
    pub(crate) readers: usize,
    /// A program cuts the file.
    pub(crate) cutter: Option<Pace>,
    pub(crate) left: Left,
    /// Holder and engine may die together, without the machine.
    pub(crate) both_die: bool,
    /// The second net is taken away when nobody needs it.
    pub(crate) disarms: bool,
    pub(crate) mutants: &'static [Mutant],
}

impl Setup {
    pub(crate) fn new(tier: Tier) -> Self {
        let left = Left { writes: 1, releases: 1, archives: 0, crashes: 1 };
        Self {
            tier,
            readers: 1,
            cutter: None,
            left,
            both_die: tier != Tier::UserFilter,
            disarms: false,
            mutants: &[],
        }
    }

    pub(crate) fn readers(self, readers: usize) -> Self {
        Self { readers, ..self }
    }

    pub(crate) fn cutter(self, pace: Pace) -> Self {
        Self { cutter: Some(pace), ..self }
    }

    pub(crate) fn writes(self, writes: u8) -> Self {
        Self { left: Left { writes, ..self.left }, ..self }
    }

    pub(crate) fn releases(self, releases: u8) -> Self {
        Self { left: Left { releases, ..self.left }, ..self }
    }

    pub(crate) fn archives(self, archives: u8) -> Self {
        Self { left: Left { archives, ..self.left }, ..self }
    }

    pub(crate) fn crashes(self, crashes: u8) -> Self {
        Self { left: Left { crashes, ..self.left }, ..self }
    }

    pub(crate) fn an_agent_lives(self) -> Self {
        Self { both_die: false, ..self }
    }

    pub(crate) fn disarms(self) -> Self {
        Self { disarms: true, ..self }
    }

    pub(crate) fn without(self, mutants: &'static [Mutant]) -> Self {
        Self { mutants, ..self }
    }

    pub(crate) fn is(&self, mutant: Mutant) -> bool {
        self.mutants.contains(&mutant)
    }

    pub(crate) fn programs(&self) -> bool {
        self.tier != Tier::UserFilter
    }

    /// The whole file system is watched, except for inodes that are passed over.
    pub(crate) fn watches_all(&self) -> bool {
        matches!(self.tier, Tier::Guarded | Tier::UserFilter)
    }

    pub(crate) fn initial(&self) -> State {
        let mut state = State::initial(self.readers, self.left);
        state.watch = self.watches_all();
        if self.cutter.is_some() {
            state.cutter = Cutter::at(Cut::Away);
        }
        state
    }
}
