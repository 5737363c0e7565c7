use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

const A: Owner = Owner::User(1);
const B: Owner = Owner::User(2);
const C: Owner = Owner::User(3);

fn lines(per_user: usize) -> Fair<u32, u32> {
    Fair::new(Share { per_user, bulk: 2 })
}

/// Takes until nothing may start any more, with at most `workers` running; the owners in order.
fn take(fair: &mut Fair<u32, u32>, workers: usize) -> Vec<(Owner, u32)> {
    std::iter::from_fn(|| fair.take()).take(workers).collect()
}

#[test]
fn a_single_recall_passes_a_storm() {
    let mut fair = lines(4);
    (0..1000).for_each(|n| fair.push(n, A, n));
    // One user alone leaves workers free,
    assert_eq!(take(&mut fair, 9), [(A, 0), (A, 1), (A, 2), (A, 3)]);
    // which another takes at once,
    fair.push(5000, B, 5000);
    assert_eq!(take(&mut fair, 1), [(B, 5000)]);
    // but only his first one.
    fair.push(5001, B, 5001);
    assert_eq!(take(&mut fair, 1), []);
    fair.done(A);
    fair.done(A);
    assert_eq!(take(&mut fair, 4), [(B, 5001)], "who has fewer comes first");
}

#[test]
fn among_equals_turns_go_round() {
    let mut fair = lines(1);
    for (n, owner) in [A, A, A, B, B, C].into_iter().enumerate() {
        fair.push(n as u32, owner, n as u32);
    }
    let mut order = Vec::new();
    while let Some((owner, _)) = fair.take() {
        order.push(owner);
        fair.done(owner);
    }
    assert_eq!(order, [A, B, C, A, B, A]);
}

#[test]
fn whoever_asks_as_well_lifts_it_to_his_place() {
    let mut fair = lines(1);
    (0..100).for_each(|n| fair.push(n, A, n));
    fair.join(&99, B);
    fair.join(&99, B);
    fair.join(&12345, B);
    assert_eq!(fair.take(), Some((A, 0)));
    // B has nothing running: his turn, and it is A's last one.
    assert_eq!(fair.take(), Some((B, 99)));
    fair.done(A);
    fair.done(B);
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
    (0..10).for_each(|n| fair.push(n, Owner::Bulk, n));
    fair.join(&9, A);
    assert_eq!(take(&mut fair, 9), [(A, 9), (Owner::Bulk, 0), (Owner::Bulk, 1)], "bulk's limit");
    fair.push(20, A, 20);
    assert_eq!(take(&mut fair, 9), [(A, 20)]);
}

#[test]
fn the_same_key_twice_is_two_tasks() {
    let mut fair = lines(4);
    fair.push(7, A, 1);
    fair.push(7, B, 2);
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
                    fair.push(last, Owner::User(user), last);
                    queued.entry(last).or_default().insert(Owner::User(user));
                }
                Step::Bulk => {
                    last += 1;
                    fair.push(last, Owner::Bulk, last);
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
                    fair.done(owner);
                }
                Step::Next if running.len() < workers => {
                    let of = |owner: &Owner| running.iter().filter(|o| *o == owner).count();
                    let waiting: HashSet<Owner> = queued.values().flatten().copied().collect();
                    let users = waiting.iter().filter(|o| **o != Owner::Bulk);
                    let least = users.clone().map(&of).min();
                    match fair.take() {
                        Some((owner, task)) => {
                            prop_assert!(given.insert(task), "given out twice");
                            let askers = queued.remove(&task).expect("was queued");
                            prop_assert!(askers.contains(&owner), "on the account of who asked");
                            match owner {
                                Owner::Bulk => {
                                    prop_assert!(of(&owner) < 2);
                                    // Readers come first, if they may start at all.
                                    prop_assert!(least.is_none_or(|n| n > 0 && running.len() >= per_user));
                                }
                                Owner::User(_) => {
                                    prop_assert_eq!(Some(of(&owner)), least, "who has fewest");
                                    prop_assert!(of(&owner) == 0 || running.len() < per_user);
                                }
                            }
                            running.push(owner);
                        }
                        None => {
                            prop_assert!(users.clone().all(|owner| of(owner) > 0));
                            prop_assert!(least.is_none() || running.len() >= per_user);
                        }
                    }
                }
                Step::Done(_) | Step::Next => {}
            }
        }
        // With time everything is done, and nothing is kept.
        while !queued.is_empty() || !running.is_empty() {
            running.drain(..).for_each(|owner| fair.done(owner));
            while let Some((owner, task)) = fair.take() {
                prop_assert!(given.insert(task), "given out twice");
                queued.remove(&task);
                running.push(owner);
            }
        }
        prop_assert_eq!(given.len(), last as usize);
        prop_assert_eq!(fair.lines(), []);
        prop_assert!(fair.tasks.is_empty() && fair.by_key.is_empty() && fair.ready.is_empty());
    }
}
