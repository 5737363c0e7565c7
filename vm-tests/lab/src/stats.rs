//! Medians and percentiles of measured times.

use std::time::Duration;

/// The value below which `percent` of all lie (nearest rank); `None` of nothing.
pub fn percentile(values: &[Duration], percent: u32) -> Option<Duration> {
    let mut sorted = values.to_vec();
    sorted.sort();
    let rank = (sorted.len() * percent as usize).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// The middle one.
pub fn median(values: &[Duration]) -> Option<Duration> {
    percentile(values, 50)
}

/// `1234567` → `1.2 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, size) in UNITS {
        if n >= size {
            #[expect(
                clippy::cast_precision_loss,
                reason = "one digit after the point is printed"
            )]
            return format!("{:.1} {unit}", n as f64 / size as f64);
        }
    }
    format!("{n} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_members() {
        let values: Vec<_> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&values, 50), Some(Duration::from_millis(50)));
        assert_eq!(percentile(&values, 99), Some(Duration::from_millis(99)));
        assert_eq!(percentile(&values[..1], 99), Some(values[0]));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn bytes_are_readable() {
        assert_eq!((bytes(12), bytes(3 << 20)), ("12 B".into(), "3.0 MiB".into()));
    }
}
