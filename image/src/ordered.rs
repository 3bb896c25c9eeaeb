//! Work on several threads whose results come in order.
//!
//! In: a number of jobs and a function. Out: the results of job 0, 1, 2 ...
//! At most `window` results exist at a time, so memory is bounded however slow
//! the consumer is. Dropping it stops the threads.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

struct State<T> {
    /// The next job that nobody has begun.
    next_job: usize,
    /// The next result that the consumer takes.
    next_result: usize,
    done: BTreeMap<usize, T>,
    stop: bool,
    /// Workers that have not ended: if none is left, no result will come.
    alive: usize,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    jobs: usize,
    window: usize,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Running work.
pub(crate) struct Ordered<T> {
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
}

impl<T> fmt::Debug for Ordered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ordered")
            .field("jobs", &self.shared.jobs)
            .finish_non_exhaustive()
    }
}

/// How many threads are of use for `jobs` pieces of work.
pub(crate) fn threads_for(jobs: usize) -> usize {
    std::thread::available_parallelism()
        .map_or(2, usize::from)
        .clamp(1, 8)
        .min(jobs.max(1))
}

impl<T: Send + 'static> Ordered<T> {
    /// Starts `threads` threads. `worker` makes the function of each one, which
    /// may keep buffers from job to job.
    pub(crate) fn start<F, W>(jobs: usize, threads: usize, mut worker: F) -> Self
    where
        F: FnMut() -> W,
        W: FnMut(usize) -> T + Send + 'static,
    {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                next_job: 0,
                next_result: 0,
                done: BTreeMap::new(),
                stop: false,
                alive: threads,
            }),
            changed: Condvar::new(),
            jobs,
            window: threads + 2,
        });
        let threads = (0..threads)
            .map(|_| {
                let shared = Arc::clone(&shared);
                let work = worker();
                std::thread::spawn(move || {
                    // Counts down also when `work` panics.
                    let end = End(&shared);
                    run(end.0, work);
                })
            })
            .collect();
        Self { shared, threads }
    }
}

struct End<'a, T>(&'a Shared<T>);

impl<T> Drop for End<'_, T> {
    fn drop(&mut self) {
        self.0.lock().alive -= 1;
        self.0.changed.notify_all();
    }
}

fn run<T>(shared: &Shared<T>, mut work: impl FnMut(usize) -> T) {
    loop {
        let job = {
            let mut state = shared.lock();
            // The window counts from the consumer, so the job that it waits
            // for is always allowed to run.
            while !state.stop
                && state.next_job < shared.jobs
                && state.next_job >= state.next_result + shared.window
            {
                state = shared
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if state.stop || state.next_job >= shared.jobs {
                return;
            }
            state.next_job += 1;
            state.next_job - 1
        };
        let result = work(job);
        shared.lock().done.insert(job, result);
        shared.changed.notify_all();
    }
}

impl<T> Iterator for Ordered<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let mut state = self.shared.lock();
        loop {
            let wanted = state.next_result;
            if let Some(result) = state.done.remove(&wanted) {
                state.next_result += 1;
                drop(state);
                self.shared.changed.notify_all();
                return Some(result);
            }
            if wanted >= self.shared.jobs || state.alive == 0 {
                return None;
            }
            state = self
                .shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<T> Drop for Ordered<T> {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A panic was printed by its thread already.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn results_come_in_order_and_the_window_holds() {
        let ordered = Ordered::start(100, 4, || {
            |job: usize| {
                std::thread::sleep(Duration::from_micros((job as u64 * 7919) % 300));
                job
            }
        });
        let shared = Arc::clone(&ordered.shared);
        let mut results = Vec::new();
        for job in ordered {
            assert!(shared.lock().done.len() <= shared.window);
            results.push(job);
        }
        assert_eq!(results, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn dropping_it_early_ends_the_threads() {
        let mut ordered = Ordered::start(1_000_000, 2, || |job| vec![0u8; job % 10]);
        assert_eq!(ordered.next().unwrap().len(), 0);
        drop(ordered);
    }

    #[test]
    fn a_worker_that_panics_ends_the_stream() {
        let ordered = Ordered::start(10, 1, || |job: usize| assert_ne!(job, 3));
        assert_eq!(ordered.count(), 3);
    }
}
