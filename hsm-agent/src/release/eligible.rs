//! May this file be released? Pure.

use crate::control::types::Reason;
use crate::core::DataVersion;
use crate::marker::{ArchivedCopy, PolicyFlags, Record};

/// What the facts allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Eligibility {
    /// The archived copy is that of this data.
    Unchanged(ArchivedCopy),
    /// Size, mtime and generation are those of the archived copy, but ctime is not the one that
    /// we saw last: chmod, rename, a lost catalogue, or a change whose mtime was set back. Only
    /// the content can tell.
    Compare(ArchivedCopy),
    /// No.
    Refused(Reason, &'static str),
}

/// `seen_ctime_ns`: the ctime right after our last own change of the inode, from the catalogue.
pub(super) fn eligible(
    now: &DataVersion,
    record: Option<&Record>,
    seen_ctime_ns: Option<i64>,
) -> Eligibility {
    let Some(record) = record else {
        return Eligibility::Refused(Reason::NotArchived, NOT_ARCHIVED);
    };
    if record.policy.contains(PolicyFlags::PINNED) {
        return Eligibility::Refused(Reason::Pinned, "pinned; `hsm unpin` first");
    }
    let Some(copy) = record.archived else {
        return Eligibility::Refused(Reason::NotArchived, NOT_ARCHIVED);
    };
    if !now.same_data_times(&copy.version) {
        return Eligibility::Refused(
            Reason::Dirty,
            "changed since it was archived; `hsm archive` it again",
        );
    }
    if now.is_vouched_by(seen_ctime_ns) {
        Eligibility::Unchanged(copy)
    } else {
        Eligibility::Compare(copy)
    }
}

const NOT_ARCHIVED: &str = "no copy in the store; `hsm archive` it first";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ObjectId;

    const V: DataVersion = DataVersion { generation: 1, size: 10, mtime_ns: 100, ctime_ns: 100 };

    fn record(policy: PolicyFlags) -> Record {
        let object = ObjectId([7; 16]);
        let archived = Some(ArchivedCopy { object, version: V, archived_at_ns: 200 });
        Record { archived, policy }
    }

    #[test]
    fn only_a_ctime_that_we_made_ourselves_spares_the_comparison() {
        let r = record(PolicyFlags::empty());
        let now = DataVersion { ctime_ns: 300, ..V };
        let copy = r.archived.unwrap();
        assert_eq!(eligible(&now, Some(&r), Some(300)), Eligibility::Unchanged(copy));
        assert_eq!(eligible(&now, Some(&r), Some(299)), Eligibility::Compare(copy));
        // Timestamps of whole seconds do not tell two changes apart.
        let coarse = DataVersion { ctime_ns: 5_000_000_000, ..V };
        assert_eq!(eligible(&coarse, Some(&r), Some(5_000_000_000)), Eligibility::Compare(copy));
        assert_eq!(eligible(&now, Some(&r), None), Eligibility::Compare(copy));
        // Equal to the version at archive time is no proof either: our own record moved ctime.
        assert_eq!(eligible(&V, Some(&r), None), Eligibility::Compare(copy));
    }

    #[test]
    fn changed_pinned_and_unarchived_files_are_refused() {
        let reason = |now: &DataVersion, r: Option<&Record>| match eligible(now, r, Some(100)) {
            Eligibility::Refused(reason, _) => Some(reason),
            _ => None,
        };
        let r = record(PolicyFlags::empty());
        for changed in [
            DataVersion { size: 11, ..V },
            DataVersion { mtime_ns: 99, ..V },
            DataVersion { generation: 2, ..V },
        ] {
            assert_eq!(reason(&changed, Some(&r)), Some(Reason::Dirty));
        }
        assert_eq!(reason(&V, None), Some(Reason::NotArchived));
        assert_eq!(reason(&V, Some(&record(PolicyFlags::PINNED))), Some(Reason::Pinned));
        let never = Record { archived: None, policy: PolicyFlags::NOARCHIVE };
        assert_eq!(reason(&V, Some(&never)), Some(Reason::NotArchived));
    }
}
