//! What a bench found, as a table and as JSON.

use hsm_lab::stats::bytes;
use serde::Serialize;

/// One comparison.
#[derive(Serialize)]
pub(super) struct Row {
    pub(super) what: String,
    pub(super) cache: &'static str,
    pub(super) hsm_seconds: f64,
    pub(super) cp_seconds: Option<f64>,
    /// How many times as fast as cp with its sync; more is better.
    pub(super) times_cp: Option<f64>,
    /// How many times as fast as cp without it, whose copy is not durable yet.
    pub(super) times_cp_alone: Option<f64>,
    pub(super) rate: String,
}

/// Of single 4 KiB files.
#[derive(Serialize)]
pub(super) struct Latency {
    pub(super) samples: usize,
    pub(super) recall_p50_ms: f64,
    pub(super) recall_p99_ms: f64,
    pub(super) online_cold_p50_ms: f64,
    pub(super) online_warm_p50_ms: f64,
}

/// All that was measured.
#[derive(Serialize)]
pub(super) struct Results {
    pub(super) fs: String,
    pub(super) files: u64,
    pub(super) big: u64,
    pub(super) rounds: u32,
    pub(super) rows: Vec<Row>,
    pub(super) latency: Latency,
    pub(super) holder_peak_kib: u64,
    pub(super) engine_peak_kib: u64,
}

impl Results {
    /// The table.
    pub(super) fn render(&self) -> String {
        let mut text = format!(
            "\n{} on {}: {} files of 4 KiB, one of {}, medians of {} rounds\n\n{:<28} {:<5} {:>9} {:>9} {:>8} {:>8}  {}\n",
            "hsm against cp",
            self.fs,
            self.files,
            bytes(self.big),
            self.rounds,
            "what",
            "cache",
            "hsm s",
            "cp+sync",
            "x that",
            "x cp",
            "rate of hsm"
        );
        for row in &self.rows {
            let number = |n: Option<f64>| n.map_or("-".to_owned(), |n| format!("{n:.2}"));
            let (cp, ratio) = (number(row.cp_seconds), number(row.times_cp));
            let alone = number(row.times_cp_alone);
            let Row { what, cache, hsm_seconds, rate, .. } = row;
            text += &format!(
                "{what:<28} {cache:<5} {hsm_seconds:>9.2} {cp:>9} {ratio:>8} {alone:>8}  {rate}\n"
            );
        }
        let l = &self.latency;
        text + &format!(
            "\nopen+read+close of one 4 KiB file, {} samples: recall p50 {:.3} ms, p99 {:.3} ms \
             (online: cold {:.3} ms, warm {:.3} ms)\nagent's memory at most: holder {}, engine {}\n",
            l.samples,
            l.recall_p50_ms,
            l.recall_p99_ms,
            l.online_cold_p50_ms,
            l.online_warm_p50_ms,
            bytes(self.holder_peak_kib << 10),
            bytes(self.engine_peak_kib << 10)
        )
    }
}
