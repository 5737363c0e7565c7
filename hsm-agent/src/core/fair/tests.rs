use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

const A: Owner = Owner::User(1);
const B: Owner = Owner::User(2);
const C: Owner = Owner::User(3);

const NEAR: usize = 4;

fn lines(per_user: usize) -> Fair<u32, u32> {
    Fair::new(Share { per_user, near_per_user: NEAR, bulk: 2 })
}

fn turn(owner: Owner, distance: Distance) -> Turn {
    Turn { owner, distance }
}

/// From a distant store, if nothing else is said.
impl Fair<u32, u32> {
    fn far(&mut self, key: u32, owner: Owner) {
        self.push(key, owner, Distance::Far, key);
    }

    fn near(&mut self, key: u32, owner: Owner) {
        self.push(key, owner, Distance::Near, key);
    }

    fn ended(&mut self, owner: Owner) {
        self.done(turn(owner, Distance::Far));
    }
}

/// Takes until nothing may start any more, with at most `workers` running; the owners in order.
fn take(fair: &mut Fair<u32, u32>, workers: usize) -> Vec<(Owner, u32)> {
    std::iter::from_fn(|| fair.take()).map(|(turn, n)| (turn.owner, n)).take(workers).collect()
}

#[test]
fn a_single_recall_passes_a_storm() {
    let mut fair = lines(4);
    (0..1000).for_each(|n| fair.far(n, A));
    // One user alone leaves workers free,
    assert_eq!(take(&mut fair, 9), [(A, 0), (A, 1), (A, 2), (A, 3)]);
    // which another takes at once,
    fair.far(5000, B);
    assert_eq!(take(&mut fair, 1), [(B, 5000)]);
    // but only his first one.
    fair.far(5001, B);
    assert_eq!(take(&mut fair, 1), []);
    fair.ended(A);
    fair.ended(A);
    assert_eq!(take(&mut fair, 4), [(B, 5001)], "who has fewer comes first");
}

#[test]
fn fewer_run_from_near_stores_and_fewer_still_beside_a_single_one() {
    let mut fair = lines(12);
    let near = |owner| turn(owner, Distance::Near);
    (0..1000).for_each(|n| fair.near(n, A));
    assert_eq!(take(&mut fair, 99), [(A, 0), (A, 1), (A, 2), (A, 3)]);
    // What comes from afar is not in their way,
    fair.far(5000, B);
    fair.far(5001, B);
    assert_eq!(take(&mut fair, 99), [(B, 5000), (B, 5001)]);
    // and somebody's first one is never kept waiting.
    fair.near(6000, C);
    assert_eq!(take(&mut fair, 99), [(C, 6000)]);
    for _ in 0..3 {
        fair.done(near(A));
        assert_eq!(take(&mut fair, 99), []);
    }
    fair.done(near(A));
    assert_eq!(take(&mut fair, 99), [(A, 4)], "one of each");
    // Two of his that he waits for: he is not held up any more than others.
    fair.near(6001, C);
    assert_eq!(take(&mut fair, 99), [(A, 5), (C, 6001)]);
    fair.done(near(C));
    assert_eq!(take(&mut fair, 99), []);
    fair.done(near(C));
    assert_eq!(take(&mut fair, 99), [(A, 6), (A, 7)]);
}

#[test]
fn among_equals_turns_go_round() {
    let mut fair = lines(1);
    for (n, owner) in [A, A, A, B, B, C].into_iter().enumerate() {
        fair.far(n as u32, owner);
    }
    let mut order = Vec::new();
    while let Some((turn, _)) = fair.take() {
        order.push(turn.owner);
        fair.done(turn);
    }
    assert_eq!(order, [A, B, C, A, B, A]);
}

#[test]
fn whoever_asks_as_well_lifts_it_to_his_place() {
    let mut fair = lines(1);
    (0..100).for_each(|n| fair.far(n, A));
    fair.join(&99, B);
    fair.join(&99, B);
    fair.join(&12345, B);
    // B has nothing running: his turn, and it is A's last one.
    assert_eq!(take(&mut fair, 2), [(A, 0), (B, 99)]);
    fair.ended(A);
    fair.ended(B);
    let rest = std::iter::from_fn(|| {
        let next = fair.take()?;
        fair.done(next.0);
        Some(next.1)
    });
    assert_eq!(rest.collect::<Vec<_>>(), (1..99).collect::<Vec<_>>());
    assert_eq!(fair.lines(), []);
}

#[test]
fn a_blocked_reader_lifts_what_a_job_has_queued() {
    let mut fair = lines(4);
    (0..10).for_each(|n| fair.far(n, Owner::Bulk));
    fair.join(&9, A);
    assert_eq!(take(&mut fair, 9), [(A, 9), (Owner::Bulk, 0), (Owner::Bulk, 1)], "bulk's limit");
    fair.far(20, A);
    assert_eq!(take(&mut fair, 9), [(A, 20)]);
}

#[test]
fn the_same_key_twice_is_two_tasks() {
    let mut fair = lines(4);
    fair.push(7, A, Distance::Far, 1);
    fair.push(7, B, Distance::Far, 2);
    assert_eq!(take(&mut fair, 4), [(A, 1), (B, 2)]);
}

#[derive(Debug, Clone)]
enum Step {
    Push(u32),
    Join(usize, u32),
    Withdraw(usize),
    Bulk,
    Next,
    Done(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u32..5).prop_map(Step::Push),
        2 => (any::<usize>(), 0u32..5).prop_map(|(n, u)| Step::Join(n, u)),
        1 => Just(Step::Bulk),
        1 => any::<usize>().prop_map(Step::Withdraw),
        4 => Just(Step::Next),
        3 => any::<usize>().prop_map(Step::Done),
    ]
}

proptest! {
    #[test]
    fn every_task_is_given_out_once_and_nobody_is_passed_over(
        steps in proptest::collection::vec(step(), 1..300),
        workers in 2usize..8,
        kept_free in 1usize..7,
        distance in prop_oneof![Just(Distance::Near), Just(Distance::Far)],
    ) {
        let per_user = workers.saturating_sub(kept_free).max(1);
        let mut fair = lines(per_user);
        let (mut last, mut running, mut given) = (0u32, Vec::new(), HashSet::new());
        // Who asked for each that is queued.
        let mut queued: HashMap<u32, HashSet<Owner>> = HashMap::new();
        for step in steps {
            match step {
                Step::Push(user) => {
                    last += 1;
                    fair.push(last, Owner::User(user), distance, last);
                    queued.entry(last).or_default().insert(Owner::User(user));
                }
                Step::Bulk => {
                    last += 1;
                    fair.push(last, Owner::Bulk, distance, last);
                    queued.entry(last).or_default().insert(Owner::Bulk);
                }
                Step::Join(n, user) => {
                    let key = (n % (last as usize + 1)) as u32;
                    fair.join(&key, Owner::User(user));
                    if let Some(askers) = queued.get_mut(&key) {
                        askers.insert(Owner::User(user));
                    }
                }
                Step::Withdraw(n) => {
                    let key = (n % (last as usize + 1)) as u32;
                    let task = fair.withdraw(&key);
                    prop_assert_eq!(task.is_some(), queued.remove(&key).is_some());
                    if let Some(task) = task {
                        prop_assert!(given.insert(task), "taken back and given out");
                    }
                }
                Step::Done(n) if !running.is_empty() => {
                    let owner = running.swap_remove(n % running.len());
                    fair.done(turn(owner, distance));
                }
                Step::Next if running.len() < workers => {
                    let of = |owner: &Owner| running.iter().filter(|o| *o == owner).count();
                    let waiting: HashSet<Owner> = queued.values().flatten().copied().collect();
                    let users = waiting.iter().filter(|o| **o != Owner::Bulk);
                    let least = users.clone().map(&of).min();
                    let single = running.iter().any(|owner| {
                        *owner != Owner::Bulk && of(owner) == 1 && !waiting.contains(owner)
                    });
                    let most = match distance {
                        Distance::Far => per_user,
                        Distance::Near => per_user.min(if single { NEAR / 2 } else { NEAR }),
                    };
                    match fair.take() {
                        Some((Turn { owner, .. }, task)) => {
                            prop_assert!(given.insert(task), "given out twice");
                            let askers = queued.remove(&task).expect("was queued");
                            prop_assert!(askers.contains(&owner), "on the account of who asked");
                            match owner {
                                Owner::Bulk => {
                                    prop_assert!(of(&owner) < 2);
                                    // Readers come first, if they may start at all.
                                    prop_assert!(least.is_none_or(|n| n > 0 && running.len() >= most));
                                }
                                Owner::User(_) => {
                                    prop_assert_eq!(Some(of(&owner)), least, "who has fewest");
                                    prop_assert!(of(&owner) == 0 || running.len() < most);
                                }
                            }
                            running.push(owner);
                        }
                        None => {
                            prop_assert!(users.clone().all(|owner| of(owner) > 0));
                            prop_assert!(least.is_none() || running.len() >= most);
                        }
                    }
                }
                Step::Done(_) | Step::Next => {}
            }
        }
        // With time everything is done, and nothing is kept.
        while !queued.is_empty() || !running.is_empty() {
            running.drain(..).for_each(|owner| fair.done(turn(owner, distance)));
            while let Some((Turn { owner, .. }, task)) = fair.take() {
                prop_assert!(given.insert(task), "given out twice");
                queued.remove(&task);
                running.push(owner);
            }
        }
        prop_assert_eq!(given.len(), last as usize);
        prop_assert_eq!(fair.lines(), []);
        prop_assert!(fair.tasks.is_empty() && fair.by_key.is_empty() && fair.ready.is_empty());
        prop_assert_eq!((fair.running, fair.near, fair.singles), (0, 0, 0));
    }
}
