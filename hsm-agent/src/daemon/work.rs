//! The recall workers: a fixed number of threads and two queues. A blocked reader always comes
//! before bulk work.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Where a task goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Somebody is blocked in the kernel.
    Reader,
    /// A user's job.
    Bulk,
}

type Task = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queues {
    readers: VecDeque<Task>,
    bulk: VecDeque<Task>,
    bulk_running: usize,
}

/// Threads that run tasks.
pub struct Workers {
    queues: Mutex<Queues>,
    wake: Condvar,
    /// Workers that bulk tasks may occupy together: the others stay free for readers.
    bulk_limit: usize,
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers").finish_non_exhaustive()
    }
}

impl Workers {
    /// Starts `threads` workers, of which bulk tasks get at most `bulk_limit`.
    pub fn start(threads: usize, bulk_limit: usize) -> io::Result<Arc<Self>> {
        let queues = Mutex::default();
        let workers = Arc::new(Self { queues, wake: Condvar::new(), bulk_limit });
        for n in 0..threads {
            let workers = Arc::clone(&workers);
            std::thread::Builder::new()
                .name(format!("recall-{n}"))
                .spawn(move || workers.run_for_ever())?;
        }
        Ok(workers)
    }

    /// Queues a task.
    pub fn submit(&self, priority: Priority, task: impl FnOnce() + Send + 'static) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        match priority {
            Priority::Reader => queues.readers.push_back(Box::new(task)),
            Priority::Bulk => queues.bulk.push_back(Box::new(task)),
        }
        drop(queues);
        self.wake.notify_one();
    }

    fn run_for_ever(&self) {
        loop {
            let (task, bulk) = self.next();
            // A panic in one recall must not cost a worker. (The recall itself reports it as a
            // failure, so that its waiters are answered.)
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(task)).is_err() {
                tracing::error!("a recall panicked");
            }
            if bulk {
                self.queues.lock().unwrap_or_else(PoisonError::into_inner).bulk_running -= 1;
                self.wake.notify_one();
            }
        }
    }

    fn next(&self) -> (Task, bool) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(task) = queues.readers.pop_front() {
                return (task, false);
            }
            if queues.bulk_running < self.bulk_limit
                && let Some(task) = queues.bulk.pop_front()
            {
                queues.bulk_running += 1;
                return (task, true);
            }
            queues = self.wake.wait(queues).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn readers_come_before_bulk_and_a_panic_costs_no_worker() {
        let workers = Workers::start(1, 1).unwrap();
        let (gate, opened) = mpsc::channel::<()>();
        let (tell, order) = mpsc::channel();
        workers.submit(Priority::Bulk, move || opened.recv().unwrap());
        for n in 0..3 {
            let tell = tell.clone();
            workers.submit(Priority::Bulk, move || tell.send(("bulk", n)).unwrap());
        }
        workers.submit(Priority::Reader, || panic!("on purpose"));
        workers.submit(Priority::Reader, move || tell.send(("reader", 0)).unwrap());
        gate.send(()).unwrap();
        let got: Vec<_> = order.iter().collect();
        assert_eq!(got, [("reader", 0), ("bulk", 0), ("bulk", 1), ("bulk", 2)]);
    }
}
