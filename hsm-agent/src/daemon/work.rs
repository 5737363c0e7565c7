//! The recall workers: a fixed number of threads. Whose task one takes next is [`Fair`]'s to say.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::core::{Distance, Fair, FileKey, Line, Owner, Share, Turn};

type Task = Box<dyn FnOnce() + Send>;

/// What is recalled: the pool's number, and the file.
pub(super) type Subject = (u32, FileKey);

/// Threads that run tasks.
pub struct Workers {
    lines: Mutex<Fair<Subject, Task>>,
    wake: Condvar,
    threads: usize,
    share: Share,
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers").finish_non_exhaustive()
    }
}

impl Workers {
    /// Starts `threads` workers.
    pub fn start(threads: usize, share: Share) -> io::Result<Arc<Self>> {
        let lines = Mutex::new(Fair::new(share));
        let workers = Arc::new(Self { lines, wake: Condvar::new(), threads, share });
        for n in 0..threads {
            let workers = Arc::clone(&workers);
            std::thread::Builder::new()
                .name(format!("recall-{n}"))
                .spawn(move || workers.run_for_ever())?;
        }
        Ok(workers)
    }

    fn lines(&self) -> MutexGuard<'_, Fair<Subject, Task>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a task.
    pub fn submit(
        &self,
        subject: Subject,
        owner: Owner,
        distance: Distance,
        task: impl FnOnce() + Send + 'static,
    ) {
        self.lines().push(subject, owner, distance, Box::new(task));
        self.wake.notify_one();
    }

    /// Somebody else wants this as well. See [`Fair::join`].
    pub fn join(&self, subject: &Subject, owner: Owner) {
        self.lines().join(subject, owner);
        // A line may have become one that can be served.
        self.wake.notify_one();
    }

    /// Takes back what has not begun; whether it had not. What the task holds is dropped here.
    pub fn withdraw(&self, subject: &Subject) -> bool {
        let task = self.lines().withdraw(subject);
        task.is_some()
    }

    /// Recalls that may run at once: all, and how they are shared.
    pub fn limits(&self) -> (usize, Share) {
        (self.threads, self.share)
    }

    /// The lines now.
    pub fn report(&self) -> Vec<Line> {
        self.lines().lines()
    }

    fn run_for_ever(&self) {
        loop {
            let (turn, task) = self.next();
            // A panic in one recall must not cost a worker. (The recall itself reports it as a
            // failure, so that its waiters are answered.)
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(task)).is_err() {
                tracing::error!("a recall panicked");
            }
            self.lines().done(turn);
            // This worker looks again by itself; but more than one task may have become possible.
            self.wake.notify_one();
        }
    }

    fn next(&self) -> (Turn, Task) {
        let mut lines = self.lines();
        loop {
            if let Some(next) = lines.take() {
                return next;
            }
            lines = self.wake.wait(lines).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn subject(n: u32) -> Subject {
        (n, FileKey { kind: 0, bytes: Box::default() })
    }

    #[test]
    fn readers_come_before_bulk_and_a_panic_costs_no_worker() {
        let share = Share { per_user: 1, near_per_user: 1, bulk: 1 };
        let workers = Workers::start(1, share).unwrap();
        let (gate, opened) = mpsc::channel::<()>();
        let (tell, order) = mpsc::channel();
        let submit = |n, owner, task: Task| workers.submit(subject(n), owner, Distance::Far, task);
        submit(9, Owner::Bulk, Box::new(move || opened.recv().unwrap()));
        for n in 0..3 {
            let tell = tell.clone();
            submit(n, Owner::Bulk, Box::new(move || tell.send(("bulk", n)).unwrap()));
        }
        submit(4, Owner::User(1), Box::new(|| panic!("on purpose")));
        submit(5, Owner::User(1), Box::new(move || tell.send(("reader", 0)).unwrap()));
        workers.join(&subject(2), Owner::User(1));
        gate.send(()).unwrap();
        let got: Vec<_> = order.iter().collect();
        assert_eq!(got, [("reader", 0), ("bulk", 2), ("bulk", 0), ("bulk", 1)]);
    }
}
