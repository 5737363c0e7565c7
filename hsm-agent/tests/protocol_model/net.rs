//! The second net, `guard_post_open`, attached only while it can matter: `daemon/second_net.rs`, `bpf/second_net.rs`.
//! What an opener does about it is in `opener.rs`, and what a release does in `release.rs`.

use crate::setup::{Mutant, Setup};
use crate::state::Net;
use crate::step::Steps;

const ENGINE: &str = "engine";

/// The engine's thread that takes it away.
pub(crate) fn steps(setup: &Setup, out: &mut Steps<'_>) {
    let agent = out.from.agent;
    if !setup.disarms || !agent.engine {
        return;
    }
    match out.from.net {
        // The holder serves; a release keeps the net, and so does one that is left open.
        Net::Armed if agent.holder => {
            let releases = agent.job.is_release() && !setup.is(Mutant::DisarmDuringRelease);
            let open = agent.intent.now != 0 && !setup.is(Mutant::DisarmOverOpenRelease);
            if !releases && !open {
                out.whim(ENGINE, "disarms: clears ARMED", |s| s.net = Net::Cleared);
            }
        }
        Net::Cleared => {
            let counted = out.from.openers().iter().any(|opener| opener.counted);
            let net =
                if counted && !setup.is(Mutant::DisarmBlindly) { Net::Armed } else { Net::Gone };
            let what = match net {
                Net::Gone => "disarms: nobody is in flight, detaches guard_post_open",
                _ => "disarms: somebody is in flight, sets ARMED again",
            };
            out.progress(ENGINE, what, |s| s.net = net);
        }
        _ => {}
    }
}
