//! Copies bytes between files inside the kernel, which shares blocks instead
//! where the filesystem can.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// How much one call copies: a signal is noticed between calls.
const STEP: u64 = 64 << 20;

/// Copies at most `length` bytes at `from` of `source` to `to` of `target`;
/// returns how many there were.
pub(super) fn copy(
    source: &File,
    mut from: u64,
    target: &File,
    mut to: u64,
    length: u64,
) -> io::Result<u64> {
    use rustix::io::Errno;
    let mut left = length;
    while left > 0 {
        let step = left.min(STEP) as usize;
        let copied =
            rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), step);
        let copied = match copied {
            Ok(copied) => copied,
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                by_hand(source, &mut from, target, &mut to, step)?
            }
            Err(error) => return Err(error.into()),
        };
        if copied == 0 {
            break;
        }
        left -= copied as u64;
    }
    Ok(length - left)
}

/// For filesystems between which the kernel can't copy.
fn by_hand(
    source: &File,
    from: &mut u64,
    target: &File,
    to: &mut u64,
    length: usize,
) -> io::Result<usize> {
    let mut buffer = vec![0; length.min(1 << 20)];
    let n = source.read_at(&mut buffer, *from)?;
    target.write_all_at(buffer.get(..n).unwrap_or_default(), *to)?;
    *from += n as u64;
    *to += n as u64;
    Ok(n)
}
