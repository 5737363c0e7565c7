//! The table of fail points.

/// Which of the agent's processes comes to a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// The one that does the work.
    Engine,
    /// The one that keeps the watch.
    Holder,
}

impl Process {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Holder => "holder",
        }
    }
}

macro_rules! points {
    ($($point:ident $name:literal $process:ident $what:literal),* $(,)?) => {
        /// A place between two steps, either of which a crash may find done or not.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Point {
            $(#[doc = $what] $point),*
        }

        impl Point {
            /// All of them, in the order of their protocols.
            pub const ALL: &[Self] = &[$(Self::$point),*];

            /// Its name: PROTOCOL.WHAT-IS-DONE.
            pub fn name(self) -> &'static str {
                match self { $(Self::$point => $name),* }
            }

            /// Who comes there.
            pub fn process(self) -> Process {
                match self { $(Self::$point => Process::$process),* }
            }

            /// What is done by then and, where it helps, what is not.
            pub fn what(self) -> &'static str {
                match self { $(Self::$point => $what),* }
            }
        }
    };
}

points! {
    ArchiveLeased "archive.leased" Engine "each file: read lease and version taken; no intent yet",
    ArchiveIntended "archive.intended" Engine "the intents are durable; nothing is in the store",
    ArchiveChunk "archive.chunk" Engine "each chunk of a large file: in the store's temporary file",
    ArchiveStored "archive.stored" Engine "each file: its object is in the store, not durable",
    ArchiveFlushed "archive.flushed" Engine "the objects are durable; no record names them",
    ArchiveVerified "archive.verified" Engine "each file: its object was read back",
    ArchiveRecorded "archive.recorded" Engine "each file: its record names the object; the catalogue does not know",
    ArchiveCommitted "archive.committed" Engine "the catalogue knows; nobody was told",
    ArchiveUndone "archive.undone" Engine "the object of a file that changed meanwhile is deleted; its intent is open",

    ReleaseTrimmed "release.trimmed" Engine "preallocated blocks behind the end are freed; the times are not restored",
    ReleaseLeased "release.leased" Engine "each file: claimed, watched, leased, unchanged; no intent yet",
    ReleaseIntended "release.intended" Engine "the intents are durable; no marker is set",
    ReleaseWritten "release.written" Engine "the data is on the device; no marker is set",
    ReleaseMarked "release.marked" Engine "each file: its marker is set, not durable",
    ReleaseSynced "release.synced" Engine "the markers are durable; nothing is punched",
    ReleaseRetaken "release.retaken" Engine "each file: the lease was taken again; its data is there",
    ReleasePunched "release.punched" Engine "each file: its data is gone, its mtime has moved",
    ReleaseTimed "release.timed" Engine "each file: its times are restored; the catalogue does not know",
    ReleaseCommitted "release.committed" Engine "the catalogue knows; claims are held",
    ReleaseUnmarked "release.unmarked" Engine "turned back: the marker is removed, which is not durable",
    ReleaseUndone "release.undone" Engine "turned back: the removal is durable; the intent is open",

    RecallOpened "recall.opened" Engine "the object fits the marker; nothing is written",
    RecallChunk "recall.chunk" Engine "each chunk: written, not durable, mtime has moved",
    RecallTakenBack "recall.taken-back" Engine "a failed recall has punched what it wrote; the times are not restored",
    RecallFilled "recall.filled" Engine "all chunks are written; the times are not restored",
    RecallTimed "recall.timed" Engine "the times are restored; nothing is durable",
    RecallSynced "recall.synced" Engine "the data is durable; the marker is set",
    RecallUnmarked "recall.unmarked" Engine "the marker is removed, which is not durable; the map is there",
    RecallUnmapped "recall.unmapped" Engine "marker and map are removed, which is not durable",
    RecallLeased "recall.leased" Engine "the read lease is taken, readers wait for their answer",
    RecallDurable "recall.durable" Engine "a writer waits: the removal of the marker is durable",
    SettleSynced "settle.synced" Engine "the data of a batch is durable; its markers are set",
    SettleDurable "settle.durable" Engine "the removal of a batch's markers is durable; leases are held",
    SettleUnleased "settle.unleased" Engine "each file: the lease is dropped; writers wait for their answer",
    SettleCommitted "settle.committed" Engine "the catalogue knows of a batch",
    PartialSynced "partial.synced" Engine "the chunks of a range are durable; the map does not know",
    PartialMapped "partial.mapped" Engine "the map knows; the marker says offline",
    PartialMarked "partial.marked" Engine "the marker says partial; the reader waits for his answer",
    EmptiedUnmarked "emptied.unmarked" Engine "a file that was cut to nothing: its marker is removed, the map is there",
    EmptiedUnmapped "emptied.unmapped" Engine "a file that was cut to nothing: marker and map are removed, which is not durable",

    CatalogApplied "catalog.applied" Engine "all rows of a transaction are written; it is not committed",
    CatalogCommitted "catalog.committed" Engine "a transaction is committed; whoever asked for it does not know",
    ScanEmptied "scan.emptied" Engine "a rebuild has emptied the index; nothing is read",
    ScanWritten "scan.written" Engine "the files that exist are in the index; those that are gone, too",
    ScanForgotten "scan.forgotten" Engine "those that are gone are retired; the index does not count as complete",
    PinRecorded "pin.recorded" Engine "the record says pinned; the catalogue does not vouch for the new ctime",

    RecoverWatched "recover.watched" Engine "start: the watch is in place, no pool is open",
    RecoverOpened "recover.opened" Engine "start: stores and catalogues are open, no intent was looked at",
    RecoverSynced "recover.synced" Engine "a cut-off release: its marker is durable; its data may be there",
    RecoverCompared "recover.compared" Engine "a cut-off release: what is left of its data is the object's",
    RecoverPunched "recover.punched" Engine "a cut-off release: its data is gone; the times are not restored",
    RecoverTimed "recover.timed" Engine "a cut-off release: its times are restored; the intent is open",
    RecoverCommitted "recover.committed" Engine "all intents are closed; nobody is served yet",

    EventTaken "event.taken" Engine "the engine has an event; nothing was looked at",
    EventAnswering "event.answering" Engine "the answer is decided; the holder does not know",
    EventAnswered "event.answered" Engine "the holder was told the answer",

    HolderSpawned "holder.spawned" Holder "an engine is started; it is not exempt from events",
    HolderRead "holder.read" Holder "an event is read from the group; it is in no table",
    HolderListed "holder.listed" Holder "an event is in the table; no engine knows of it",
    HolderSent "holder.sent" Holder "an event is handed to the engine",
    HolderAnswering "holder.answering" Holder "the engine's answer is taken; the kernel does not know",
    HolderAnswered "holder.answered" Holder "the kernel has the answer, or it gathers with others",
    HolderRequested "holder.requested" Holder "a kernel program's request is read (tier lsm-filter)",
    HolderMarked "holder.marked" Holder "the watch that a kernel program asked for is in place; it waits (tier lsm-filter)",
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Point;

    #[test]
    fn names_are_told_apart_and_make_good_file_names() {
        let names: BTreeSet<_> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
        for name in names {
            let (protocol, step) = name.split_once('.').expect(name);
            let plain = |word: &str| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
            assert!(plain(protocol) && plain(step), "{name}");
        }
    }
}
