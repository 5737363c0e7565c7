//! What the programs counted.

use aya::maps::{MapData, PerCpuArray};
use hsm_common::filter::{COUNTERS, Counter};

use super::BpfError;
use super::maps::failed;

/// All counters, summed over the CPUs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts(Vec<u64>);

impl Counts {
    /// One counter.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0.get(counter as usize).copied().unwrap_or(0)
    }

    /// All of them with their names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Counter::ALL.iter().map(|&counter| (counter.name(), self.get(counter)))
    }
}

pub(super) fn read(map: &PerCpuArray<MapData, u64>) -> Result<Counts, BpfError> {
    let sum = |number: u32| -> Result<u64, BpfError> {
        let values = map.get(&number, 0).map_err(failed(COUNTERS, "reading"))?;
        Ok(values.iter().fold(0, |sum, value| sum.wrapping_add(*value)))
    };
    Ok(Counts((0..Counter::COUNT).map(sum).collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_number() {
        let counts = Counts((0..u64::from(Counter::COUNT)).collect());
        assert_eq!(counts.get(Counter::PassedAbsent), 1);
        assert_eq!(counts.iter().nth(1), Some(("open_passed_absent", 1)));
        assert_eq!(Counts::default().get(Counter::ServerGone), 0);
    }
}
