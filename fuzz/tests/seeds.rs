//! Replays every target's seeds and mutations of them: a fixed number, or for as long as [`SECONDS`] says.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use hsm_fuzz::TARGETS;

/// At least.
const MUTATIONS: u64 = 20_000;

/// Environment variable: how long each target goes on at least.
const SECONDS: &str = "HSM_FUZZ_SECONDS";

/// xorshift64: the same inputs in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % (n.max(1) as u64)).unwrap()
    }
}

fn mutate(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(5) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.next().to_le_bytes()[0]),
            2 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            3 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            _ => bytes.extend(random.next().to_le_bytes()),
        }
    }
    bytes
}

fn replay(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let mut seeds = (target.seeds)();
    assert!(!seeds.is_empty());
    seeds.iter().for_each(|seed| (target.run)(seed));
    seeds.push(Vec::new());
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let seconds = std::env::var(SECONDS).map_or(0, |text| text.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut done = 0;
    while done < MUTATIONS || Instant::now() < end {
        for _ in 0..1000 {
            let seed = random.below(seeds.len());
            (target.run)(&mutate(&seeds[seed], &mut random));
        }
        done += 1000;
    }
    println!("{name}: {done} mutations");
}

macro_rules! replays {
    ($($name:ident),* $(,)?) => {
        $(#[test] fn $name() { replay(stringify!($name)); })*

        #[test]
        fn every_target_has_a_program_and_a_replay() {
            let names = [$(stringify!($name)),*];
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz_targets");
            let mut programs: Vec<_> = fs::read_dir(dir).unwrap()
                .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
                .collect();
            let mut known = names.map(str::to_owned);
            programs.sort();
            known.sort();
            assert_eq!(programs, known);
            assert_eq!(names.len(), TARGETS.len());
        }
    };
}

replays!(
    fanotify_events,
    marker,
    record,
    residency_map,
    config,
    object_trailer,
    object_manifest,
    btf,
    control_request,
    kfunc,
);
