//! How far several transfers are together.
//!
//! In: sizes as they become known and bytes as they arrive. Out: progress
//! events of one task, at most ten a second and a last one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::{Event, Sink, Unit};

const INTERVAL: Duration = Duration::from_millis(100);

/// Bytes of one task. Clones count together.
#[derive(Debug, Clone)]
pub struct Progress(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    task: String,
    sink: Arc<dyn Sink>,
    done: AtomicU64,
    total: AtomicU64,
    told: Mutex<Option<Instant>>,
}

impl Progress {
    /// Nothing done of nothing. `task` names it.
    pub fn new(task: &str, sink: Arc<dyn Sink>) -> Self {
        Self(Arc::new(Inner {
            task: task.into(),
            sink,
            done: 0.into(),
            total: 0.into(),
            told: Mutex::new(None),
        }))
    }

    /// More is to be transferred, in bytes.
    pub fn expect(&self, bytes: u64) {
        self.0.total.fetch_add(bytes, Ordering::Relaxed);
        self.tell();
    }

    /// More has arrived, in bytes.
    pub fn add(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
        self.tell();
    }

    /// What had arrived is worthless, in bytes.
    pub fn take_back(&self, bytes: u64) {
        self.0.done.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// How many bytes have arrived.
    pub fn done(&self) -> u64 {
        self.0.done.load(Ordering::Relaxed)
    }

    /// The last word on it.
    pub fn finish(&self) {
        self.emit();
    }

    fn tell(&self) {
        let mut told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_some_and(|at| at.elapsed() < INTERVAL) {
            return;
        }
        *told = Some(Instant::now());
        drop(told);
        self.emit();
    }

    fn emit(&self) {
        let (done, total) = (self.done(), self.0.total.load(Ordering::Relaxed));
        self.0.sink.emit(Event::Progress {
            task: self.0.task.clone(),
            done,
            total: Some(total),
            unit: Unit::Bytes,
        });
    }
}
