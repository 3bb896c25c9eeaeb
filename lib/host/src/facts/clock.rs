//! The kernel's own word on its clock.
//!
//! In: nothing. Out: whether it is kept right. The only unsafe code of the
//! crate: neither the standard library nor nix asks adjtimex(2).
#![expect(unsafe_code, reason = "adjtimex has no safe wrapper")]

use super::kernel::Clock;

/// `STA_UNSYNC` of linux/timex.h: nothing keeps the clock right.
const UNSYNCHRONISED: i32 = 0x40;

impl Clock {
    /// Asks the kernel; `None` when it doesn't answer.
    pub fn read() -> Option<Self> {
        // SAFETY: the structure is plain numbers, for which zero is a value; `modes`
        // of zero only asks.
        let mut time: libc::timex = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a structure of ours that outlives the call.
        let state = unsafe { libc::adjtimex(&raw mut time) };
        (state >= 0).then(|| Self {
            synchronised: time.status & UNSYNCHRONISED == 0,
            max_error_us: u64::try_from(time.maxerror).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_answers() {
        assert!(super::Clock::read().is_some());
    }
}
