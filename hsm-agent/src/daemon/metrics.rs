//! Counters of one pool.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::control::types::{Latency, PoolCounters};

/// Latencies that are remembered: enough for a p99 that means something.
const REMEMBERED: usize = 4096;

/// Counts since the engine started.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Events that reached the engine.
    pub events: AtomicU64,
    /// Accesses that were denied.
    pub denials: AtomicU64,
    /// Of these, because too many readers waited.
    pub refused: AtomicU64,
    /// Recalls that succeeded.
    pub recalls: AtomicU64,
    /// Recalls that failed.
    pub recalls_failed: AtomicU64,
    /// Bytes that recalls wrote.
    pub bytes_recalled: AtomicU64,
    /// Files archived.
    pub archived: AtomicU64,
    /// Bytes archived.
    pub bytes_archived: AtomicU64,
    /// Files released.
    pub released: AtomicU64,
    /// Bytes released.
    pub bytes_released: AtomicU64,
    latencies: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    values: Vec<u64>,
    next: usize,
}

/// Adds to a counter.
pub fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Metrics {
    /// Notes how long a reader waited for a recall.
    pub fn waited(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let mut ring = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        let at = ring.next % REMEMBERED;
        match ring.values.get_mut(at) {
            Some(slot) => *slot = us,
            None => ring.values.push(us),
        }
        ring.next = at + 1;
    }

    /// Of the last recalls.
    pub fn latency(&self) -> Latency {
        let ring = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sorted = ring.values.clone();
        drop(ring);
        sorted.sort_unstable();
        let at = |percent: usize| {
            let last = sorted.len().checked_sub(1)?;
            sorted.get((sorted.len() * percent / 100).min(last)).copied()
        };
        Latency { p50_us: at(50), p99_us: at(99) }
    }

    /// All counters now.
    pub fn counters(&self, in_flight: u64) -> PoolCounters {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        PoolCounters {
            events: get(&self.events),
            denials: get(&self.denials),
            refused: get(&self.refused),
            recalls: get(&self.recalls),
            recalls_failed: get(&self.recalls_failed),
            in_flight,
            bytes_recalled: get(&self.bytes_recalled),
            archived: get(&self.archived),
            bytes_archived: get(&self.bytes_archived),
            released: get(&self.released),
            bytes_released: get(&self.bytes_released),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_the_last_values() {
        let m = Metrics::default();
        assert_eq!(m.latency(), Latency { p50_us: None, p99_us: None });
        (0..10_000).for_each(|n| m.waited(Duration::from_micros(n)));
        let Latency { p50_us: Some(p50), p99_us: Some(p99) } = m.latency() else { panic!() };
        assert!((7900..8100).contains(&p50), "{p50}");
        assert!(p99 >= 9900, "{p99}");
    }
}
