//! Rules that are left out, one by one: the model finds what each is for.

use crate::setup::{Mutant, Pace, Setup, Tier};
use crate::{fails, holds};

const LOST: &str = "the data is lost: neither here nor in an object that the marker names";
const REFUSED: &str = "a program is refused its data: it is not that of the marker's object";
const HOLES: &str = "a program has an offline file open: SEEK_DATA shows its holes";
const NOT_ASKED: &str = "who came when the watch was there was not asked, and meets the marker";

fn lsm_filter() -> Setup {
    Setup::new(Tier::LsmFilter)
}

fn user_filter() -> Setup {
    Setup::new(Tier::UserFilter)
}

fn with_cutter(tier: Tier) -> Setup {
    Setup::new(tier).writes(0).cutter(Pace::Slow).an_agent_lives()
}

#[test]
fn release_punches_before_it_marks() {
    fails(&lsm_filter().without(&[Mutant::PunchBeforeMarker]), LOST);
}

#[test]
fn release_punches_before_the_marker_is_durable() {
    fails(&lsm_filter().without(&[Mutant::NoSyncOfMarker]), LOST);
}

/// As `DESIGN.md` had it first, with the watch of step 6 after the lease of step 3.
#[test]
fn release_without_step_7_in_the_order_of_the_plan() {
    let mutants = &[Mutant::WatchAfterLease, Mutant::NoRetake];
    fails(&user_filter().crashes(0).without(mutants), HOLES);
}

/// As built, with its two places.
#[test]
fn release_without_taking_the_lease_again() {
    let mutants = &[Mutant::NoRetake, Mutant::NoRetakeAfterTrim];
    fails(&user_filter().crashes(0).without(mutants), HOLES);
}

/// The order of the plan is right with step 7 as long as nothing dies. When the engine does before step 7, a
/// marker is left over what somebody wrote who was not asked, unless it is set only while the lease holds.
/// As built the watch comes first as well: whoever comes waits for an answer, not for a lease.
#[test]
fn release_watches_after_it_took_the_lease() {
    let mutants = &[Mutant::WatchAfterLease, Mutant::MarkerWithoutLease];
    holds(&user_filter().crashes(0).without(mutants));
    fails(&user_filter().without(mutants), REFUSED);
    holds(&user_filter().without(&[Mutant::WatchAfterLease]));
}

/// As built no opener gets past the watch between lease and marker but in the moment of a trim, which takes
/// the lease again by itself; and the marker is set only while the lease holds. For openers each is a
/// second net for the other, and step 7 for both.
#[test]
fn one_look_at_the_lease_is_a_second_net() {
    holds(&lsm_filter().without(&[Mutant::NoRetake]));
    holds(&user_filter().without(&[Mutant::NoRetake]));
    holds(&user_filter().without(&[Mutant::NoRetakeAfterTrim]));
    let mutants = &[Mutant::NoRetakeAfterTrim, Mutant::MarkerWithoutLease];
    fails(&user_filter().without(mutants), REFUSED);
}

/// Who cuts the file raises the write count before he breaks the lease: with the marker set in between, and
/// without programs, he goes on when the engine dies.
#[test]
fn release_does_not_take_the_lease_again_after_a_trim() {
    let setup = with_cutter(Tier::UserFilter).cutter(Pace::Prompt);
    fails(&setup.without(&[Mutant::NoRetakeAfterTrim]), REFUSED);
}

#[test]
fn release_does_not_sync_its_way_back() {
    fails(&lsm_filter().an_agent_lives().without(&[Mutant::NoSyncOfUndo]), REFUSED);
}

#[test]
fn release_believes_a_modification_time_after_a_power_cut() {
    fails(&lsm_filter().without(&[Mutant::NoCompareAtRelease]), LOST);
}

#[test]
fn recall_clears_the_marker_before_it_syncs_the_data() {
    fails(&lsm_filter().without(&[Mutant::ClearBeforeSync]), LOST);
}

#[test]
fn recall_does_not_sync_the_data() {
    fails(&lsm_filter().without(&[Mutant::NoSyncOfData]), LOST);
}

#[test]
fn recall_lets_writers_go_on_before_the_removal_is_durable() {
    fails(&lsm_filter().an_agent_lives().without(&[Mutant::AnswerBeforeDurable]), REFUSED);
}

#[test]
fn recall_writes_over_what_it_did_not_compare() {
    fails(&lsm_filter().crashes(2).without(&[Mutant::NoCompareAtRecall]), LOST);
}

#[test]
fn recall_does_not_keep_the_watch() {
    let setup = lsm_filter().crashes(2).an_agent_lives();
    fails(&setup.without(&[Mutant::NoKeepWatch]), REFUSED);
}

#[test]
fn archive_takes_the_data_version_after_it_read() {
    let setup = lsm_filter().writes(2).archives(1).an_agent_lives();
    fails(&setup.without(&[Mutant::VersionAfterRead]), LOST);
}

/// A record of an object that is not there: the comparison at Release is the second net.
#[test]
fn archive_writes_the_record_before_the_object_is_durable() {
    let setup = lsm_filter().archives(1);
    holds(&setup.without(&[Mutant::RecordBeforeFlush]));
    fails(&setup.without(&[Mutant::RecordBeforeFlush, Mutant::NoCompareAtRelease]), LOST);
}

#[test]
fn no_guard_post_open() {
    fails(&lsm_filter().without(&[Mutant::NoPostOpen]), HOLES);
}

/// Who waits for fanotify's answer when holder and engine die is let pass by the kernel, and there is nobody who looks again.
#[test]
fn the_second_net_is_detached_while_somebody_is_in_flight() {
    for tier in [Tier::LsmFilter, Tier::Guarded] {
        let setup = Setup::new(tier).writes(0).disarms();
        fails(&setup.without(&[Mutant::DisarmBlindly]), HOLES);
        fails(&setup.without(&[Mutant::CountAfterLook]), HOLES);
        fails(&setup.without(&[Mutant::PassUnarmed]), HOLES);
    }
}

/// Who passed as online waits for the lease of a release; it dies with the agent, the marker stays.
#[test]
fn the_second_net_is_not_there_for_a_release() {
    let setup = lsm_filter().disarms();
    for mutant in [&[Mutant::ReleaseUnarmed], &[Mutant::DisarmDuringRelease]] {
        fails(&setup.without(mutant), LOST);
    }
}

/// Recovery cannot finish a release because of him, and leaves it open.
#[test]
fn the_second_net_is_detached_over_a_release_that_is_left_open() {
    fails(&lsm_filter().crashes(2).disarms().without(&[Mutant::DisarmOverOpenRelease]), LOST);
}

/// Holder and engine die, and a new agent serves before an opener comes to `guard_post_open`: it was not asked.
#[test]
fn guard_post_open_believes_a_server_that_was_not_asked() {
    fails(&Setup::new(Tier::Guarded).without(&[Mutant::AnyServer]), HOLES);
}

#[test]
fn a_verdict_is_cached_with_a_seq_that_was_read_too_late() {
    fails(&lsm_filter().without(&[Mutant::LookBeforeSeq]), HOLES);
}

#[test]
fn an_engine_that_died_is_not_started_again() {
    fails(&lsm_filter().without(&[Mutant::NoNewEngine]), "somebody waits for ever");
}

#[test]
fn the_death_of_the_engine_lets_pass_who_waits() {
    fails(&user_filter().without(&[Mutant::AllowOnEngineDeath]), HOLES);
}

#[test]
fn an_engine_answers_before_it_synced() {
    fails(&user_filter().crashes(2).without(&[Mutant::NoSyncAtStart]), REFUSED);
}

#[test]
fn recovery_punches_whatever_is_there() {
    fails(&lsm_filter().crashes(2).without(&[Mutant::RepunchTrustsMarker]), LOST);
}

/// Holder and engine die while a release takes its marker back: not durable yet. The opener that made
/// it turn back goes on, writes and syncs; on ext4 that does not sync the marker's removal, nor the
/// time. Power cut: the marker is back over newer data of the same mtime, and the intent is open.
#[test]
fn recovery_punches_what_was_written_after_the_marker_was_taken_back() {
    fails(&lsm_filter().crashes(2).without(&[Mutant::RepunchTrustsTime]), LOST);
}

/// The journal may commit the marker before the data of a file that was never synced is on the device:
/// after a power cut there is older data under it.
#[test]
fn release_marks_before_the_data_is_durable() {
    let setup = lsm_filter().archives(1).an_agent_lives();
    fails(&setup.without(&[Mutant::MarkerBeforeData]), REFUSED);
}

/// The job ends the watch of a file whose marker is gone, but not durably: a writer is not asked, and does
/// not wait for the sync. After a power cut the marker is back over his data.
#[test]
fn an_archive_job_ends_the_watch_of_a_recall() {
    let setup = lsm_filter().writes(2).archives(1).an_agent_lives();
    fails(&setup.without(&[Mutant::ArchiveDuringRecall]), REFUSED);
}

/// The kernel lets pass who waits in the group of a sentinel that a new agent ends. Without programs he
/// then has an offline file open. His reads are asked about; SEEK_DATA is not.
#[test]
fn the_end_of_a_sentinel_lets_pass_who_waits() {
    fails(&user_filter().without(&[Mutant::AllowAtTakeOver]), HOLES);
}

/// `truncate(2)` opens nothing, and is let through at once when it breaks the lease: the marker is set over what
/// it has cut. Step 7 notices, but not when the engine dies before that.
#[test]
fn release_marks_without_a_look_at_the_lease() {
    for tier in [Tier::MarkFilter, Tier::Guarded] {
        fails(&with_cutter(tier).without(&[Mutant::MarkerWithoutLease]), REFUSED);
    }
    // Nobody asks him there: he meets the marker even if nothing dies.
    fails(&with_cutter(Tier::LsmFilter).without(&[Mutant::MarkerWithoutLease]), NOT_ASKED);
}

/// Who cuts an online file has no marker for the filter to find: he would get EAGAIN instead of an answer.
#[test]
fn release_does_not_hold_the_file_before_the_marker() {
    let setup = with_cutter(Tier::MarkFilter).crashes(0);
    fails(&setup.without(&[Mutant::NotHeld]), NOT_ASKED);
}

/// The filter looks for HELD only where no verdict is cached, and that of an online file is.
#[test]
fn release_holds_the_file_and_leaves_a_cached_verdict() {
    let setup = with_cutter(Tier::MarkFilter).crashes(0);
    fails(&setup.without(&[Mutant::HeldBesideVerdict]), NOT_ASKED);
}

/// No rule that is left out, but what tier user-filter alone cannot promise: who passed fsnotify before the
/// watch was there, and comes for write access after step 7, cuts an offline file, which is refused then.
#[test]
fn a_cut_that_is_long_on_its_way_where_no_programs_are() {
    fails(&with_cutter(Tier::UserFilter).crashes(0), REFUSED);
}
