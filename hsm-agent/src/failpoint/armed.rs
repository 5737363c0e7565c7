//! Is this point armed, and is it its turn?

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::strike::{Whom, kill};
use super::{Point, REACHED, VARIABLE};

/// How often somebody who pauses looks whether he may go on.
const LOOK: Duration = Duration::from_millis(2);

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// SIGKILL.
    Kill(Whom),
    /// Waits until the file that says "reached" is removed.
    Pause,
}

/// The content of a point's file: the action, and at which passage (1: the next one).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Order {
    action: Action,
    passage: u64,
}

impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "{text:?} is no order: kill-engine, kill-holder, kill-both or pause, and a number"
            )
        };
        let mut words = text.split_whitespace();
        let action = match words.next() {
            Some("kill-engine") => Action::Kill(Whom::Engine),
            Some("kill-holder") => Action::Kill(Whom::Holder),
            Some("kill-both") => Action::Kill(Whom::Both),
            Some("pause") => Action::Pause,
            _ => return Err(bad()),
        };
        let passage = words.next().map_or(Ok(1), str::parse).map_err(|_| bad())?;
        match (passage, words.next()) {
            (1.., None) => Ok(Self { action, passage }),
            _ => Err(bad()),
        }
    }
}

pub(super) fn reach(point: Point) {
    static DIRECTORY: OnceLock<Option<PathBuf>> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from));
    let Some(directory) = directory else { return };
    match turn(directory, point) {
        Ok(None) => {}
        Ok(Some(Action::Kill(whom))) => kill(point.process(), whom),
        Ok(Some(Action::Pause)) => {
            while reached(directory, point).exists() {
                std::thread::sleep(LOOK);
            }
        }
        Err(error) => {
            tracing::error!(%error, point = point.name(), directory = %directory.display(), "fail point not understood");
        }
    }
}

fn reached(directory: &Path, point: Point) -> PathBuf {
    directory.join(format!("{}{REACHED}", point.name()))
}

/// One thread at a time; the two processes have no point in common.
fn turn(directory: &Path, point: Point) -> io::Result<Option<Action>> {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let file = directory.join(point.name());
    let text = match std::fs::read_to_string(&file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text?,
    };
    let order: Order = text.parse().map_err(io::Error::other)?;
    if order.passage > 1 {
        let action = text.split_whitespace().next().unwrap_or_default();
        std::fs::write(&file, format!("{action} {}", order.passage - 1))?;
        return Ok(None);
    }
    std::fs::rename(&file, reached(directory, point))?;
    tracing::info!(point = point.name(), ?order, "fail point reached");
    Ok(Some(order.action))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_an_action_and_a_number() {
        let kill = |whom, passage| Ok(Order { action: Action::Kill(whom), passage });
        assert_eq!("kill-both".parse(), kill(Whom::Both, 1));
        assert_eq!(" kill-engine 3\n".parse(), kill(Whom::Engine, 3));
        assert_eq!("kill-holder 1".parse(), kill(Whom::Holder, 1));
        assert_eq!("pause".parse(), Ok(Order { action: Action::Pause, passage: 1 }));
        for bad in ["", "kill", "kill-both 0", "kill-both -1", "kill-both two", "pause 1 2"] {
            bad.parse::<Order>().expect_err(bad);
        }
    }

    #[test]
    fn a_point_strikes_at_its_passage_and_only_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let (point, other) = (Point::ArchiveChunk, Point::RecallChunk);
        let turn = |point| turn(dir.path(), point).expect("an order");
        assert_eq!(turn(point), None, "not armed");
        std::fs::write(dir.path().join(point.name()), "kill-both 3").expect("written");
        assert_eq!([turn(point), turn(other), turn(point)], [None; 3]);
        assert!(!reached(dir.path(), point).exists());
        assert_eq!(turn(point), Some(Action::Kill(Whom::Both)));
        assert!(reached(dir.path(), point).exists());
        assert_eq!(turn(point), None, "the next engine passes");
    }
}
