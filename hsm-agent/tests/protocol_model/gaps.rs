//! What the model found in the code and is still there, with its shortest way. A test that fails here because
//! nothing is wrong any more tells to make what closed it the model's rule.

use crate::fails;
use crate::setup::{Setup, Tier};

const HOLES: &str = "a program has an offline file open: SEEK_DATA shows its holes";

/// Holder and engine die, and a new agent serves before an opener comes to `guard_post_open`: in guard mode
/// that asks whether somebody serves now, not whether it is who was asked.
#[test]
fn a_new_agent_vouches_for_an_open_that_it_was_not_asked_about() {
    fails(&Setup::new(Tier::Guarded), HOLES);
}
