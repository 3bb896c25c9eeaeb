//! How many may be connected of whom nobody knows who they are.
//!
//! In: addresses of who connects. Out: [`Guest`]s, each for one connection until
//! it is known. Always holds: one address has no more than its part, whatever it
//! does, and what waits is bounded.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections of one address that may show at a time who they are: a small part of all
/// that there may be, so that silent ones hinder those of the same address late, and those
/// of others not at all.
pub(super) const AT_A_TIME: usize = 128;
/// Connections of one address with those that wait; many nodes may be behind one
/// router.
pub(super) const WAITING: usize = 1024;
/// Proofs of one address that are looked at at a time; wrong ones stay for a while.
pub(super) const PROOFS: usize = 4;
/// Connections of all addresses.
const MAX_GUESTS: usize = 4 * WAITING;

/// Counts guests.
#[derive(Debug, Default)]
pub(super) struct Door(Mutex<Guests>);

#[derive(Debug, Default)]
struct Guests {
    all: usize,
    by_address: BTreeMap<IpAddr, OfAddress>,
}

#[derive(Debug)]
struct OfAddress {
    all: usize,
    turns: Arc<Semaphore>,
    proofs: Arc<Semaphore>,
}

impl Default for OfAddress {
    fn default() -> Self {
        Self {
            all: 0,
            turns: Arc::new(Semaphore::new(AT_A_TIME)),
            proofs: Arc::new(Semaphore::new(PROOFS)),
        }
    }
}

impl Door {
    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more of an address; none where there are too many.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Guest> {
        let mut guests = self.guests();
        if guests.all >= MAX_GUESTS {
            return None;
        }
        let of_address = guests.by_address.entry(address).or_default();
        if of_address.all >= WAITING {
            return None;
        }
        of_address.all += 1;
        let (turns, proofs) = (of_address.turns.clone(), of_address.proofs.clone());
        guests.all += 1;
        Some(Guest {
            door: self.clone(),
            address,
            turns,
            proofs,
            turn: None,
        })
    }
}

/// One connection, until it is known whose it is.
#[derive(Debug)]
pub(super) struct Guest {
    door: Arc<Door>,
    address: IpAddr,
    turns: Arc<Semaphore>,
    proofs: Arc<Semaphore>,
    turn: Option<OwnedSemaphorePermit>,
}

impl Guest {
    /// Waits until not too many of its address are before it.
    pub(super) async fn turn(&mut self) {
        // It is never closed.
        self.turn = self.turns.clone().acquire_owned().await.ok();
    }

    /// What each proof of its address takes a permit of.
    pub(super) fn proofs(&self) -> Arc<Semaphore> {
        self.proofs.clone()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut guests = self.door.guests();
        guests.all = guests.all.saturating_sub(1);
        if let Some(of_address) = guests.by_address.get_mut(&self.address) {
            of_address.all = of_address.all.saturating_sub(1);
            if of_address.all == 0 {
                guests.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_has_its_part_and_leaves_others_theirs() {
        let door = Arc::new(Door::default());
        let at = |last: u8| IpAddr::from([10, 0, 0, last]);
        let mut all: Vec<_> = (0..WAITING).map(|_| door.enter(at(1)).unwrap()).collect();
        assert!(door.enter(at(1)).is_none());
        for guest in &mut all[..AT_A_TIME] {
            guest.turn().await;
        }
        let late = std::time::Duration::from_millis(20);
        let mut waits = all.pop().unwrap();
        tokio::time::timeout(late, waits.turn()).await.unwrap_err();
        door.enter(at(2)).unwrap().turn().await;
        all.remove(0);
        waits.turn().await;
        drop((all, waits));
        assert!(door.guests().by_address.is_empty());
        assert_eq!(door.guests().all, 0);
    }
}
