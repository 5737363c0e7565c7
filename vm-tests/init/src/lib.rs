//! What the host and the guest's first process say to each other.
//!
//! The host writes a [`Job`] as JSON into the job directory, which the guest mounts. The guest
//! answers with [`Event`]s, one JSON object per line, on the virtio-serial port [`CONTROL`]; the
//! job's own output goes through [`STDOUT`] and [`STDERR`]. A guest that ends without
//! [`Event::Ended`] has crashed: silence is never success.

use serde::{Deserialize, Serialize};

/// The 9p tag of the host's root, read-only.
pub const HOST_TAG: &str = "hsm-host";
/// The 9p tag of the job directory, the only thing of the host that the guest can write.
pub const JOB_TAG: &str = "hsm-job";
/// The file in the job directory that holds the [`Job`].
pub const JOB_FILE: &str = "job.json";
/// The virtio-serial port for [`Event`]s.
pub const CONTROL: &str = "hsm.control";
/// The virtio-serial port for the job's standard output.
pub const STDOUT: &str = "hsm.stdout";
/// The virtio-serial port for the job's standard error.
pub const STDERR: &str = "hsm.stderr";
/// Where the guest has the job directory.
pub const JOB_DIR: &str = "/hsm/job";
/// Where the guest has the scratch disk (ext4): images, stores, copies.
pub const SCRATCH_DIR: &str = "/hsm/scratch";

/// One command for the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The program and its arguments; the program is looked up in the job's `PATH`.
    pub command: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// The working directory.
    pub dir: String,
    /// A person's terminal, when the job is to have one instead of the output ports.
    pub terminal: Option<Terminal>,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Lines.
    pub rows: u16,
    /// Characters per line.
    pub columns: u16,
}

/// What the guest reports, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// User space runs.
    Up,
    /// Everything is mounted; the job starts now.
    Started,
    /// The guest could not be set up or the job could not be started; the guest powers off.
    Failed(String),
    /// The job has ended; the guest powers off.
    Ended {
        /// Its exit code, or 128 + signal as a shell says it.
        code: i32,
        /// How long it ran by the guest's clock, in milliseconds.
        millis: u64,
    },
}

impl Event {
    /// One line, newline included.
    pub fn to_line(&self) -> String {
        let json = serde_json::to_string(self).unwrap_or_else(|error| error.to_string());
        json + "\n"
    }

    /// Reads a line back.
    pub fn from_line(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_the_way_to_the_host() {
        for event in [
            Event::Up,
            Event::Started,
            Event::Failed("mount hsm-host:\nENODEV".to_owned()),
            Event::Ended { code: 137, millis: 1200 },
        ] {
            let line = event.to_line();
            assert_eq!(line.matches('\n').count(), 1, "one line: {line:?}");
            assert_eq!(Event::from_line(line.trim_end()).unwrap(), event);
        }
    }
}
