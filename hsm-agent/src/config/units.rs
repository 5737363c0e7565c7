//! Exact text for sizes and durations: what is printed parses to the same value.

use std::time::Duration;

use bytesize::ByteSize;

/// In the largest unit that divides it.
pub(super) fn size(size: ByteSize) -> String {
    const UNITS: [(&str, u64); 5] =
        [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
    let bytes = size.as_u64();
    let fits = |unit: &&(&str, u64)| bytes >= unit.1 && bytes.is_multiple_of(unit.1);
    let (unit, factor) = UNITS.iter().find(fits).unwrap_or(&("B", 1));
    format!("{}{unit}", bytes / factor)
}

/// In the largest unit that divides it.
pub(super) fn duration(duration: Duration) -> String {
    const UNITS: [(&str, u128); 7] = [
        ("d", 86_400_000_000_000),
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
        ("us", 1000),
        ("ns", 1),
    ];
    let nanos = duration.as_nanos();
    let fits = |unit: &&(&str, u128)| nanos >= unit.1 && nanos.is_multiple_of(unit.1);
    let (unit, factor) = UNITS.iter().find(fits).unwrap_or(&("s", 1));
    format!("{}{unit}", nanos / factor)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_largest_exact_unit() {
        assert_eq!(size(ByteSize(0)), "0B");
        assert_eq!(size(ByteSize(1)), "1B");
        assert_eq!(size(ByteSize::mib(32)), "32MiB");
        assert_eq!(size(ByteSize((1 << 20) + 1)), "1048577B");
        assert_eq!(duration(Duration::ZERO), "0s");
        assert_eq!(duration(Duration::from_secs(300)), "5m");
        assert_eq!(duration(Duration::from_secs(30 * 86_400)), "30d");
        assert_eq!(duration(Duration::from_millis(1500)), "1500ms");
    }

    proptest! {
        #[test]
        fn sizes_parse_again(bytes: u64) {
            prop_assert_eq!(size(ByteSize(bytes)).parse(), Ok(ByteSize(bytes)));
        }

        #[test]
        fn durations_parse_again(secs in 0u64..1 << 32, nanos in 0u32..1_000_000_000) {
            let value = Duration::new(secs, nanos);
            prop_assert_eq!(humantime::parse_duration(&duration(value)).ok(), Some(value));
        }
    }
}
