//! One state of the modelled world, and what must hold in each.
//!
//! One file of two chunks. Its contents are small numbers: [`NOTHING`] is a hole (reads as zeros),
//! 1 is the version that is there at the beginning, 2 and 3 are those that the writer writes. The
//! object and the record of a version, and the modification time that goes with it, have its number.

/// A hole, no marker, no record, a modification time that agent's own writes have left.
pub(crate) const NOTHING: u8 = 0;
/// Versions that there can be.
pub(crate) const VERSIONS: u8 = 3;

/// Something that memory knows, and that the device knows later.
///
/// Any value that it has had since it was last synced may be what the device has: that is as if it
/// were written back at any time. Chunks are ordered by nothing but syncs, against each other and
/// against metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    /// What programs see.
    pub(crate) now: u8,
    /// Bit set of what the device may have.
    pub(crate) device: u8,
}

impl Item {
    pub(crate) const fn durable(value: u8) -> Self {
        Self { now: value, device: 1 << value }
    }

    pub(crate) fn set(&mut self, value: u8) {
        self.now = value;
        self.device |= 1 << value;
    }

    pub(crate) fn sync(&mut self) {
        *self = Self::durable(self.now);
    }

    /// What may be found after a power cut.
    pub(crate) fn survivors(self) -> impl Iterator<Item = u8> {
        (0..=VERSIONS).filter(move |value| self.device & (1 << value) != 0)
    }
}

/// The inode's attributes and times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    /// The object that the marker names.
    pub(crate) marker: u8,
    /// The object, and the modification time, that the record names.
    pub(crate) record: u8,
    pub(crate) mtime: u8,
    /// The size is what the cutter made it.
    pub(crate) cut: bool,
}

impl Meta {
    fn number(self) -> u8 {
        u8::from(self.cut) << 6 | self.marker << 4 | self.record << 2 | self.mtime
    }

    fn numbered(number: u8) -> Self {
        Self {
            marker: number >> 4 & 3,
            record: number >> 2 & 3,
            mtime: number & 3,
            cut: number >> 6 != 0,
        }
    }
}

/// The [`Meta`] that are cut, as [`File::journal`] has them.
const CUT: u128 = !(u64::MAX as u128);

/// The file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct File {
    pub(crate) chunk: [Item; 2],
    pub(crate) meta: Meta,
    /// Bit set of the [`Meta`] that the device may have: as they were at one moment since the last
    /// sync. ext4, XFS and btrfs keep the order of changes of one inode; when they commit them, is
    /// open, and so is what becomes of data meanwhile.
    pub(crate) journal: u128,
    /// The version that the cut has made; [`NOTHING`] before it.
    pub(crate) cut: u8,
    /// Bit set: what a reader of each chunk may see. One version, except after a power cut that took
    /// unsynced bytes: then whatever the device has, until somebody reads it.
    pub(crate) truth: [u8; 2],
    /// Bit set: what the chunk may be after a power cut, as far as its writer can complain.
    pub(crate) legal: [u8; 2],
}

impl File {
    /// `fdatasync`: on ext4 it commits what the data needs, which the attributes and times are not, but
    /// the size is, and what came before it.
    pub(crate) fn sync_data(&mut self) {
        self.chunk.iter_mut().for_each(Item::sync);
        if self.meta.cut {
            self.journal &= CUT;
        }
        self.legal = self.truth;
    }

    /// `fsync`, `syncfs`.
    pub(crate) fn sync(&mut self) {
        self.sync_data();
        self.sync_meta();
    }

    pub(crate) fn sync_meta(&mut self) {
        self.journal = 1 << self.meta.number();
    }

    /// Changes attributes or times.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Meta)) {
        change(&mut self.meta);
        self.journal |= 1 << self.meta.number();
    }

    /// What may be found after a power cut.
    pub(crate) fn surviving_meta(self) -> impl Iterator<Item = Meta> {
        (0..128).filter(move |number| self.journal & (1 << number) != 0).map(Meta::numbered)
    }

    /// What may be found after a power cut in chunk 1 beside `meta`: what was cut off is gone with the size,
    /// and not before it.
    pub(crate) fn surviving_tail(self, meta: Meta) -> impl Iterator<Item = u8> {
        let cut = self.cut;
        self.chunk[1].survivors().filter(move |tail| {
            if meta.cut { *tail == NOTHING || *tail >= cut } else { cut == NOTHING || *tail != cut }
        })
    }
}

/// A lease on the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lease {
    None,
    /// Nobody has the file open for writing.
    Read,
    /// Nobody has the file open.
    Write,
    /// A read lease that an opener waits for.
    ReadBreaking,
    /// A write lease that an opener waits for.
    WriteBreaking,
}

impl Lease {
    /// `Lease::intact`: held, and nobody waits for it.
    pub(crate) fn is_intact(self) -> bool {
        matches!(self, Self::Read | Self::Write)
    }

    pub(crate) fn conflicts(self, writes: bool) -> bool {
        match self {
            Self::None => false,
            Self::Read | Self::ReadBreaking => writes,
            Self::Write | Self::WriteBreaking => true,
        }
    }

    pub(crate) fn breaking(self) -> Self {
        match self {
            Self::Read => Self::ReadBreaking,
            Self::Write => Self::WriteBreaking,
            other => other,
        }
    }
}

/// A valid cached verdict of the kernel programs (one of another `seq` counts as none).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cached {
    None,
    Online,
    Marked,
}

/// `guard_post_open`, the second net.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Net {
    /// Attached, and `ARMED` says so.
    Armed,
    /// Attached, and `ARMED` does not say so.
    Cleared,
    /// Not attached.
    Gone,
}

/// Where a program is that opens the file, in the order of `do_dentry_open`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum At {
    /// Has not opened it (again) yet.
    Away,
    /// The inode's open count is raised.
    Counted,
    /// `guard_open` has read `seq`, not the marker.
    Looking,
    /// `guard_open` waits for a watch.
    WantsWatch,
    /// `guard_open` is about to look whether the second net is armed, or waits for that.
    WantsNet,
    /// Past `guard_open`.
    BeforeFanotify,
    /// In fanotify, waits for an answer.
    Asked,
    /// Allowed, or not asked.
    BeforeLease,
    /// Past `break_lease`.
    BeforePost,
    /// `guard_post_open` has read `seq`, not the marker.
    LookingAgain,
    /// Has the file open.
    Open,
    /// Tier user-filter: a content access waits for an answer.
    AskedContent,
    /// Nothing keeps it from its data any more.
    Access,
    /// Writer: has written.
    Wrote,
    /// Has closed it, or was refused.
    Gone,
}

/// A program that opens the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Opener {
    pub(crate) at: At,
    /// `seq` has changed since it was read.
    pub(crate) stale: bool,
    /// Mutants: the marker was there, or the second net armed, when that was looked at too early.
    pub(crate) saw: bool,
    /// It is in `IN_FLIGHT`.
    pub(crate) counted: bool,
    /// Guard mode: `guard_open` has let it pass a marked file, and the holder that served then lives.
    pub(crate) vouched: bool,
}

impl Opener {
    pub(crate) const AWAY: Self = Self::at(At::Away);
    pub(crate) const GONE: Self = Self::at(At::Gone);

    pub(crate) const fn at(at: At) -> Self {
        Self { at, stale: false, saw: false, counted: false, vouched: false }
    }

    /// Whether the inode's open count includes it.
    pub(crate) fn counts(self) -> bool {
        !matches!(self.at, At::Away | At::Gone)
    }

    /// Has a descriptor of the file.
    fn has_opened(self) -> bool {
        matches!(self.at, At::Open | At::AskedContent | At::Access | At::Wrote)
    }

    pub(crate) fn is_asked(self) -> bool {
        matches!(self.at, At::Asked | At::AskedContent)
    }

    /// Waits for somebody else.
    pub(crate) fn waits(self) -> bool {
        let here = self.is_asked() || self.at == At::BeforeLease;
        here || matches!(self.at, At::WantsWatch | At::WantsNet)
    }

    /// Goes on within the same open.
    pub(crate) fn on(self, at: At) -> Self {
        let opens = Self::at(at);
        let within = opens.counts() && !opens.has_opened();
        Self { counted: self.counted && within, vouched: self.vouched && within, ..opens }
    }

    /// The kernel lets it go on.
    pub(crate) fn allowed(self) -> Self {
        match self.at {
            At::Asked => self.on(At::BeforeLease),
            At::AskedContent => Self::at(At::Access),
            _ => self,
        }
    }
}

/// Where a program is that cuts the file by path, in the order of `vfs_truncate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Has not called it yet.
    Away,
    /// Before fsnotify.
    Begun,
    /// Tier mark-filter: `mark_access` has read `seq`, not the marker.
    Looking,
    /// In fanotify, waits for an answer.
    Asked,
    /// Allowed, or not asked.
    Passed,
    /// The inode's write count is raised.
    Counted,
    /// Past `break_lease`.
    Truncating,
    /// Tier lsm-filter: `guard_truncate` waits for a recall.
    AskedRecall,
    /// Before the inode is locked, `guard_setattr` asked, and the file cut.
    Unlocked,
    /// Has cut the file.
    Done,
    /// Was to be asked before, and was not.
    Met,
    /// Has dropped its write access, or was refused.
    Gone,
}

/// A program that cuts the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cutter {
    pub(crate) at: Cut,
    /// `seq` has changed since it was read.
    pub(crate) stale: bool,
    /// It came when a release had its watch in place, which has gone on since.
    pub(crate) promised: bool,
}

impl Cutter {
    pub(crate) const fn at(at: Cut) -> Self {
        Self { at, stale: false, promised: false }
    }

    /// Whether the inode's write count includes it.
    pub(crate) fn counts(self) -> bool {
        matches!(
            self.at,
            Cut::Counted | Cut::Truncating | Cut::AskedRecall | Cut::Unlocked | Cut::Done
        )
    }

    pub(crate) fn is_asked(self) -> bool {
        matches!(self.at, Cut::Asked | Cut::AskedRecall)
    }

    /// Waits for somebody else.
    fn waits(self) -> bool {
        self.is_asked() || self.at == Cut::Counted
    }

    /// Goes on within the same call.
    pub(crate) fn on(self, at: Cut) -> Self {
        Self { promised: self.promised && at != Cut::Gone, ..Self::at(at) }
    }

    /// Who asked lets it go on.
    pub(crate) fn allowed(self) -> Self {
        match self.at {
            Cut::Asked => self.on(Cut::Passed),
            Cut::AskedRecall => self.on(Cut::Unlocked),
            _ => self,
        }
    }
}

/// What the engine does with the file: the next step, named as in the module that does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    Idle,
    // dispatch.rs
    LookedOnline,
    LookedOffline,
    Answer,
    // recall/worker.rs
    RecallOpen,
    RecallWrite(u8),
    RecallTimes,
    RecallSync,
    RecallClear,
    RecallLease,
    CompleteSync,
    CompletePassOver,
    // recall/settle.rs
    SettleData,
    SettleClear,
    SettleSync,
    SettlePassOver,
    SettleUnlease,
    // release/batch.rs
    ReleasePassOver,
    ReleaseWatch,
    ReleaseLease,
    ReleaseCheck,
    TrimPassOver,
    TrimWatch,
    TrimRetake,
    ReleaseIntent,
    ReleaseMark,
    /// The marker is there, its system call has not returned: cached verdicts are still valid.
    ReleaseMarked,
    ReleaseSync,
    ReleaseRetake,
    ReleasePunch(u8),
    ReleaseTimes,
    UndoRemove,
    UndoSync,
    ReleaseUnlease,
    ReleaseUnclaim,
    // daemon/recover.rs and repunch()
    RecoverLook,
    RecoverCheck,
    RecoverRetake,
    RecoverPunch,
    RecoverTimes,
}

impl Job {
    /// For packing: a number below 42.
    fn number(self) -> u64 {
        match self {
            Self::Idle => 0,
            Self::LookedOnline => 1,
            Self::LookedOffline => 2,
            Self::Answer => 3,
            Self::RecallOpen => 4,
            Self::RecallWrite(chunk) => 5 + u64::from(chunk),
            Self::RecallTimes => 7,
            Self::RecallSync => 8,
            Self::RecallClear => 9,
            Self::RecallLease => 10,
            Self::CompleteSync => 11,
            Self::CompletePassOver => 12,
            Self::SettleData => 13,
            Self::SettleClear => 14,
            Self::SettleSync => 15,
            Self::SettlePassOver => 16,
            Self::SettleUnlease => 17,
            Self::ReleasePassOver => 18,
            Self::ReleaseWatch => 19,
            Self::ReleaseLease => 20,
            Self::ReleaseCheck => 21,
            Self::TrimPassOver => 22,
            Self::TrimWatch => 23,
            Self::TrimRetake => 24,
            Self::ReleaseIntent => 25,
            Self::ReleaseMark => 26,
            Self::ReleaseMarked => 27,
            Self::ReleaseSync => 28,
            Self::ReleaseRetake => 29,
            Self::ReleasePunch(chunk) => 30 + u64::from(chunk),
            Self::ReleaseTimes => 32,
            Self::UndoRemove => 33,
            Self::UndoSync => 34,
            Self::ReleaseUnlease => 35,
            Self::ReleaseUnclaim => 36,
            Self::RecoverLook => 37,
            Self::RecoverCheck => 38,
            Self::RecoverRetake => 39,
            Self::RecoverPunch => 40,
            Self::RecoverTimes => 41,
        }
    }

    /// `Phase::Recalling` or `Phase::Settling` of `core/inflight.rs`.
    pub(crate) fn is_recall(self) -> bool {
        (Self::RecallOpen.number()..=Self::SettleUnlease.number()).contains(&self.number())
    }

    /// `Phase::Settling`.
    pub(crate) fn is_settling(self) -> bool {
        (Self::SettleData.number()..=Self::SettleUnlease.number()).contains(&self.number())
    }

    /// `Phase::Releasing`.
    pub(crate) fn is_release(self) -> bool {
        self.number() >= Self::ReleasePassOver.number()
    }

    /// Releasing, with a watch in place.
    pub(crate) fn is_watched_release(self) -> bool {
        let before = matches!(self, Self::ReleasePassOver | Self::ReleaseWatch | Self::TrimWatch);
        self.is_release() && !before
    }
}

/// What an archive job does with the file, beside [`Job`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Archive {
    Idle,
    PassOver,
    Lease,
    Snapshot,
    Read(u8),
    Flush,
    Record,
    Check,
}

impl Archive {
    fn number(self) -> u64 {
        match self {
            Self::Idle => 0,
            Self::PassOver => 1,
            Self::Lease => 2,
            Self::Snapshot => 3,
            Self::Read(chunk) => 4 + u64::from(chunk),
            Self::Flush => 6,
            Self::Record => 7,
            Self::Check => 8,
        }
    }
}

/// The agent: its memory, and its catalogue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Agent {
    pub(crate) holder: bool,
    pub(crate) engine: bool,
    pub(crate) job: Job,
    /// The job's object.
    pub(crate) object: u8,
    /// The job's modification time to restore.
    pub(crate) times: u8,
    /// The recall is an operator's: nobody waited for it when it began.
    pub(crate) bulk: bool,
    /// The recall found a file that had no data.
    pub(crate) clean: bool,
    pub(crate) archive: Archive,
    /// The archive job's data version.
    pub(crate) snapshot: u8,
    /// What the archive job has read.
    pub(crate) copy: [u8; 2],
    /// Catalogue: 1 while a release is open.
    pub(crate) intent: Item,
    /// The release is over, its catalogue batch not committed.
    pub(crate) finished: bool,
    /// The recall's row for the catalogue has the inode's ctime.
    pub(crate) row: bool,
    /// Catalogue: the ctime that was seen last is that of the inode.
    pub(crate) vouched: bool,
}

/// What may still happen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    pub(crate) writes: u8,
    pub(crate) releases: u8,
    pub(crate) archives: u8,
    pub(crate) crashes: u8,
}

/// A state as a number.
pub(crate) type Key = (u128, u128);

/// Everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct State {
    pub(crate) file: File,
    /// The store: `None`, or what the object's two chunks hold.
    pub(crate) objects: [Option<[u8; 2]>; VERSIONS as usize],
    /// Newest version that was written.
    pub(crate) newest: u8,
    /// The inode is watched: its mark in tier lsm-filter, no ignore mark in tier user-filter.
    pub(crate) watch: bool,
    /// Tier mark-filter: the inode is in HELD.
    pub(crate) held: bool,
    pub(crate) cached: Cached,
    pub(crate) net: Net,
    /// The lease of [`Agent::job`].
    pub(crate) lease: Lease,
    /// The lease of [`Agent::archive`].
    pub(crate) archive_lease: Lease,
    pub(crate) agent: Agent,
    pub(crate) readers: [Opener; 2],
    pub(crate) writer: Opener,
    pub(crate) cutter: Cutter,
    pub(crate) left: Left,
}

impl State {
    /// An archived file, nobody has it open, an agent serves.
    pub(crate) fn initial(readers: usize, left: Left) -> Self {
        let meta = Meta { marker: NOTHING, record: 1, mtime: 1, cut: false };
        let reader = |number| if number < readers { Opener::AWAY } else { Opener::GONE };
        Self {
            file: File {
                chunk: [Item::durable(1); 2],
                meta,
                journal: 1 << meta.number(),
                cut: NOTHING,
                truth: [1 << 1; 2],
                legal: [1 << 1; 2],
            },
            objects: [Some([1; 2]), None, None],
            newest: 1,
            watch: false,
            held: false,
            cached: Cached::None,
            net: Net::Armed,
            lease: Lease::None,
            archive_lease: Lease::None,
            agent: Agent {
                holder: true,
                engine: true,
                job: Job::Idle,
                object: NOTHING,
                times: NOTHING,
                bulk: false,
                clean: false,
                archive: Archive::Idle,
                snapshot: NOTHING,
                copy: [NOTHING; 2],
                intent: Item::durable(0),
                finished: false,
                row: false,
                vouched: true,
            },
            readers: [reader(0), reader(1)],
            writer: Opener::AWAY,
            cutter: Cutter::at(Cut::Gone),
            left,
        }
    }

    pub(crate) fn openers(&self) -> [Opener; 3] {
        [self.readers[0], self.readers[1], self.writer]
    }

    pub(crate) fn openers_mut(&mut self) -> [&mut Opener; 3] {
        let [a, b] = &mut self.readers;
        [a, b, &mut self.writer]
    }

    /// Somebody but the agent has the file open, or is about to.
    pub(crate) fn is_open(&self) -> bool {
        self.openers().iter().any(|opener| opener.counts()) || self.cutter.counts()
    }

    /// The inode's write count is raised.
    pub(crate) fn is_open_for_writing(&self) -> bool {
        self.writer.counts() || self.cutter.counts()
    }

    /// The engine is to answer.
    pub(crate) fn is_asked(&self) -> bool {
        self.openers().iter().any(|opener| opener.is_asked()) || self.cutter.is_asked()
    }

    /// Then somebody must be able to go on, without crash, luck or giving up.
    pub(crate) fn somebody_waits(&self) -> bool {
        self.openers().iter().any(|opener| opener.waits()) || self.cutter.waits()
    }

    /// A descriptor of the fanotify group is open somewhere.
    pub(crate) fn group(&self) -> bool {
        self.agent.holder || self.agent.engine
    }

    /// An access raises an event.
    pub(crate) fn is_watched(&self) -> bool {
        self.watch && self.group()
    }

    pub(crate) fn is_marked(&self) -> bool {
        self.file.meta.marker != NOTHING
    }

    /// A chunk of an object; [`NOTHING`] where there is none.
    pub(crate) fn stored(&self, object: u8, chunk: usize) -> u8 {
        match object {
            NOTHING => NOTHING,
            number => self.objects[usize::from(number) - 1].map_or(NOTHING, |o| o[chunk]),
        }
    }

    /// `inode_post_setxattr`, `inode_post_removexattr`: `seq` grows.
    pub(crate) fn invalidate(&mut self) {
        self.cached = Cached::None;
        for opener in self.openers_mut() {
            if matches!(opener.at, At::Looking | At::LookingAgain) {
                opener.stale = true;
            }
        }
        self.cutter.stale |= self.cutter.at == Cut::Looking;
    }

    /// All who wait for an answer go on.
    pub(crate) fn allow(&mut self) {
        self.openers_mut().into_iter().for_each(|opener| *opener = opener.allowed());
        self.cutter = self.cutter.allowed();
    }

    /// A write of chunk 1, a change of size, and of the time. That chunk 0 stays as it is makes a file that
    /// is neither of the marker's object nor wholly new.
    pub(crate) fn cut(&mut self) {
        self.newest += 1;
        let version = self.newest;
        let file = &mut self.file;
        file.chunk[1].set(version);
        (file.truth[1], file.cut) = (1 << version, version);
        file.legal[1] |= 1 << version;
        file.change(|m| (m.mtime, m.cut) = (version, true));
        (self.agent.vouched, self.agent.row) = (false, false);
    }

    /// The same state for every state that differs only in what nobody will look at any more, or in
    /// which reader is which.
    pub(crate) fn canonical(mut self) -> Self {
        self.readers.sort_unstable();
        let agent = &mut self.agent;
        if matches!(agent.job, Job::Idle | Job::Answer | Job::LookedOnline | Job::LookedOffline) {
            (agent.object, agent.times, agent.clean) = (NOTHING, NOTHING, false);
        }
        agent.row &= agent.job.is_recall();
        agent.bulk &= agent.job.is_recall() || agent.job == Job::LookedOffline;
        if agent.archive == Archive::Idle {
            (agent.snapshot, agent.copy) = (NOTHING, [NOTHING; 2]);
        }
        self
    }

    /// The state as a number. Each digit has a base of its own, so that no two states share one.
    pub(crate) fn key(&self) -> Key {
        let mut digits = Digits::default();
        let file = &self.file;
        digits.push(file.meta.number().into(), 128);
        digits.push(file.cut.into(), 4);
        for item in file.chunk {
            digits.push(item.now.into(), 4);
            digits.push(item.device.into(), 16);
        }
        for set in [file.truth[0], file.truth[1], file.legal[0], file.legal[1]] {
            digits.push(set.into(), 16);
        }
        for object in self.objects {
            let [a, b] = object.unwrap_or([NOTHING; 2]);
            digits.push(a.into(), 4);
            digits.push(b.into(), 4);
        }
        digits.push(self.newest.into(), 4);
        digits.push(self.watch.into(), 2);
        digits.push(self.held.into(), 2);
        digits.push(self.cached as u64, 3);
        digits.push(self.net as u64, 3);
        digits.push(self.lease as u64, 5);
        digits.push(self.archive_lease as u64, 5);
        let agent = &self.agent;
        digits.push(agent.holder.into(), 2);
        digits.push(agent.engine.into(), 2);
        digits.push(agent.job.number(), 42);
        digits.push(agent.object.into(), 4);
        digits.push(agent.times.into(), 4);
        digits.push(agent.bulk.into(), 2);
        digits.push(agent.clean.into(), 2);
        digits.push(agent.archive.number(), 9);
        digits.push(agent.snapshot.into(), 4);
        digits.push(agent.copy[0].into(), 4);
        digits.push(agent.copy[1].into(), 4);
        digits.push(agent.intent.now.into(), 2);
        digits.push(agent.intent.device.into(), 4);
        digits.push(agent.finished.into(), 2);
        digits.push(agent.row.into(), 2);
        digits.push(agent.vouched.into(), 2);
        for opener in self.openers() {
            digits.push(opener.at as u64, 15);
            digits.push(opener.stale.into(), 2);
            digits.push(opener.saw.into(), 2);
            digits.push(opener.counted.into(), 2);
            digits.push(opener.vouched.into(), 2);
        }
        digits.push(self.cutter.at as u64, 12);
        digits.push(self.cutter.stale.into(), 2);
        digits.push(self.cutter.promised.into(), 2);
        let left = &self.left;
        for budget in [left.writes, left.releases, left.archives, left.crashes] {
            digits.push(budget.into(), 3);
        }
        (digits.value, self.file.journal)
    }

    /// What is wrong with this state. `strict`: data that is there and is denied for ever counts.
    pub(crate) fn violation(&self, strict: bool) -> Option<&'static str> {
        if self.cutter.at == Cut::Met {
            return Some("who came when the watch was there was not asked, and meets the marker");
        }
        for chunk in 0..2 {
            let (here, truth) = (self.file.chunk[chunk].now, self.file.truth[chunk]);
            let right = |value: u8| truth & (1 << value) != 0;
            if self.openers().iter().any(|o| o.at == At::Access) && !right(here) {
                return Some(match here {
                    NOTHING => "a program reads zeros",
                    _ => "a program reads stale bytes",
                });
            }
            if here == NOTHING && self.openers().iter().any(|o| o.has_opened()) {
                return Some("a program has an offline file open: SEEK_DATA shows its holes");
            }
            let marker = self.file.meta.marker;
            let stored = self.stored(marker, chunk);
            if !right(here) && !right(stored) {
                return Some(
                    "the data is lost: neither here nor in an object that the marker names",
                );
            }
            if marker == NOTHING && !right(here) {
                return Some("the data is not here, and no marker says so");
            }
            let recalled = self.agent.job == Job::RecallOpen && marker != NOTHING;
            if strict && recalled && here != NOTHING && here != stored {
                return Some(
                    "a program is refused its data: it is not that of the marker's object",
                );
            }
        }
        None
    }
}

/// Packs small numbers.
struct Digits {
    value: u128,
    /// One more than the largest value that there can be.
    base: u128,
}

impl Default for Digits {
    fn default() -> Self {
        Self { value: 0, base: 1 }
    }
}

impl Digits {
    fn push(&mut self, value: u64, base: u64) {
        assert!(value < base, "{value} is no digit to base {base}");
        self.value += u128::from(value) * self.base;
        self.base = self.base.checked_mul(base.into()).expect("the state is small enough");
    }
}
