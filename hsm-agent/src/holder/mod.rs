//! The holder process: owns the fanotify groups and the table of unanswered events.
//!
//! It holds no policy, no store code and no parser beyond the event header, so that there is
//! little in it that can fail. The *engine*, its child, does everything else.
//!
//! ```text
//! kernel ──event──▶ reader threads ──▶ table ──▶ socket ──▶ engine
//! kernel ◀─answer── pace ◀────── main loop ◀──── socket ◀── engine
//! ```
//!
//! - If the engine dies, the holder starts it again and hands it every event that is still
//!   unanswered: the blocked readers notice nothing but time.
//! - An engine that hangs is noticed (`watchdog`), killed, and then it is like one that died.
//! - Accesses by the engine itself are allowed by the reader threads. They are told by
//!   the process id, which cannot be forged: the engine is our child, and its id is not free for
//!   others until we reap it, before which the exemption is withdrawn.
//! - Reading an event makes the kernel open the file for us, and that open may wait for a lease
//!   that the engine holds during a release. So there are several reader threads per group, each
//!   read takes few events, and the engine lets go of a lease as soon as it is broken.
//! - Where many wait, answers are written in bursts (`pace`).
//! - If holder and engine die together, the service manager keeps the watch (`keep`).
//! - A group is closed only when nobody waits in it (`end`): the kernel would let him pass.
//! - Nothing is ever answered ALLOW because of an error: what cannot be handed over is denied.

mod end;
mod engine;
mod keep;
mod pace;
mod pending;
pub mod protocol;
mod reader;
mod requests;
mod run;
mod shared;
mod watchdog;

pub use end::{Ending, Numbers, Turn, Turns, deny_numbers};
pub use run::{HolderError, MAX_WAITING, run};
