//! Fail points: places between two durable steps at which a test lets the agent die.
//!
//! ```text
//! a protocol ── reach(Point::X) ── armed? ── no ──▶ goes on
//!                                    │
//!     HSM_FAILPOINTS=DIR             └─ yes ─▶ DIR/x becomes DIR/x.reached, then SIGKILL
//!     DIR/x: "kill-both 3"                     of the engine, the holder, or both
//! ```
//!
//! One table lists all points: a place can name only what is in it, the suite has to say for each how it
//! is reached, and `hsm debug failpoints` prints it. A point is armed by a file, so that a test can do it
//! while the agent runs, engine and holder alike; and it strikes once, because the file is renamed
//! first: the engine that is started next passes, and the test sees that the point *was* reached.
//!
//! The crate `fail` was looked at: its points are strings that nothing checks, its list knows only
//! those that are configured, they are configured within the process or for its whole life (the next
//! engine would die at the same place again), and it knows no other process to kill.
//!
//! Invariant: in a build without `debug_assertions` and without the feature `failpoints` a point is
//! nothing at all, whatever the environment says.

#[cfg(any(debug_assertions, feature = "failpoints"))]
mod armed;
mod points;
#[cfg(any(debug_assertions, feature = "failpoints"))]
mod strike;

pub use points::{Point, Process};

/// Whether this build has fail points.
pub const BUILT_IN: bool = cfg!(any(debug_assertions, feature = "failpoints"));

/// Names the directory in which points are armed. It must not lie on a managed file system.
pub const VARIABLE: &str = "HSM_FAILPOINTS";

/// What [`VARIABLE`]'s directory calls a point that was reached: its name and this.
pub const REACHED: &str = ".reached";

/// The protocol has come to this point.
#[inline]
pub fn reach(point: Point) {
    #[cfg(any(debug_assertions, feature = "failpoints"))]
    armed::reach(point);
    #[cfg(not(any(debug_assertions, feature = "failpoints")))]
    let _ = point;
}
