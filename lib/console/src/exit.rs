//! Exit codes of all programs.
//!
//! In: how a command ended. Out: a number that scripts may rely on; a number
//! never changes its meaning.

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// It did what it was asked to do.
    Ok = 0,
    /// It failed; the error says why.
    Failed = 1,
    /// The command line is wrong. The same number as clap's.
    Usage = 2,
    /// The host doesn't meet the requirements; nothing was changed.
    Preflight = 3,
    /// Another operation runs; nothing was changed.
    Busy = 4,
    /// The image file is damaged.
    DamagedImage = 5,
    /// The cluster works but is degraded.
    Degraded = 6,
    /// The operation stopped half-way and can be resumed.
    Resumable = 7,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

impl From<ExitCode> for i32 {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_never_change() {
        let codes = [
            ExitCode::Ok,
            ExitCode::Failed,
            ExitCode::Usage,
            ExitCode::Preflight,
            ExitCode::Busy,
            ExitCode::DamagedImage,
            ExitCode::Degraded,
            ExitCode::Resumable,
        ];
        assert_eq!(codes.map(i32::from), [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
