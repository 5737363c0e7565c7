//! What the model found in the code. Each gap has its shortest way, and what would close it. A test that
//! fails here because nothing is wrong any more tells to make the remedy the model's rule.

use crate::setup::{Remedy, Setup, Tier};
use crate::{fails, holds};

const LOST: &str = "the data is lost: neither here nor in an object that the marker names";
const REFUSED: &str = "a program is refused its data: it is not that of the marker's object";
const HOLES: &str = "a program has an offline file open: SEEK_DATA shows its holes";

/// Holder and engine die while a release takes its marker back: not durable yet. The opener that made
/// it turn back goes on, writes and syncs; on ext4 that does not sync the marker's removal, nor the
/// time. Power cut: the marker is back over newer data of the same mtime, the intent is open, and
/// recovery punches.
#[test]
fn recovery_punches_what_was_written_after_the_marker_was_taken_back() {
    let setup = Setup::new(Tier::LsmFilter).crashes(2);
    fails(&setup, LOST);
    holds(&setup.with(&[Remedy::RepunchCompares]));
}

/// A file that was written and archived but never synced is released: the journal may commit the marker
/// before the data is on the device. After a power cut there is older data under the marker. Recovery
/// punches it, which is right; but a program that opens the file before that is refused, and so is
/// everybody after him, until the next start.
#[test]
fn a_release_that_is_cut_off_leaves_older_data_under_its_marker() {
    let setup = Setup::new(Tier::LsmFilter).archives(1).an_agent_lives();
    fails(&setup, REFUSED);
    holds(&setup.with(&[Remedy::DataBeforeMarker, Remedy::NoArchiveDuringRecall]));
}

/// An archive job claims a file that is being recalled: the marker is gone, which is not durable yet. It
/// passes over the file; a writer who comes now is not asked, and does not wait for the sync. After a
/// power cut the marker is back over his data.
#[test]
fn an_archive_job_ends_the_watch_of_a_recall() {
    let setup = Setup::new(Tier::LsmFilter).writes(2).archives(1).an_agent_lives();
    let setup = setup.with(&[Remedy::DataBeforeMarker, Remedy::RepunchCompares]);
    fails(&setup, REFUSED);
    holds(&setup.with(crate::REMEDIED));
}

/// The kernel lets pass who waits in the group of a sentinel that a new agent ends. In tier user-filter
/// without programs he then has an offline file open. His reads are asked about; SEEK_DATA is not.
#[test]
fn the_end_of_a_sentinel_lets_pass_who_waits() {
    let setup = Setup::new(Tier::UserFilter);
    fails(&setup, HOLES);
    holds(&setup.with(&[Remedy::DenyAtTakeOver]));
}

/// Holder and engine die, and a new agent serves before an opener comes to `guard_post_open`: in guard mode
/// that asks whether somebody serves now, not whether it is who was asked. No remedy is modelled.
#[test]
fn a_new_agent_vouches_for_an_open_that_it_was_not_asked_about() {
    fails(&Setup::new(Tier::Guarded).with(crate::REMEDIED), HOLES);
}
