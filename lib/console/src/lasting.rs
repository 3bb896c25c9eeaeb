//! A terminal whose loss is no error.
//!
//! In: what bars draw. Out: the same on a terminal, as long as it is there. indicatif
//! panics where a terminal can't be written to while bars are suspended.

use std::io::Result;

use indicatif::TermLike;

/// A terminal that takes whatever it can't show.
#[derive(Debug)]
pub(crate) struct Lasting<T>(pub(crate) T);

/// Drops an error, the only sense of which is that nobody looks any more.
fn taken(_: Result<()>) -> Result<()> {
    Ok(())
}

impl<T: TermLike> TermLike for Lasting<T> {
    fn width(&self) -> u16 {
        self.0.width()
    }
    fn height(&self) -> u16 {
        self.0.height()
    }
    fn move_cursor_up(&self, n: usize) -> Result<()> {
        taken(self.0.move_cursor_up(n))
    }
    fn move_cursor_down(&self, n: usize) -> Result<()> {
        taken(self.0.move_cursor_down(n))
    }
    fn move_cursor_right(&self, n: usize) -> Result<()> {
        taken(self.0.move_cursor_right(n))
    }
    fn move_cursor_left(&self, n: usize) -> Result<()> {
        taken(self.0.move_cursor_left(n))
    }
    fn write_line(&self, text: &str) -> Result<()> {
        taken(self.0.write_line(text))
    }
    fn write_str(&self, text: &str) -> Result<()> {
        taken(self.0.write_str(text))
    }
    fn clear_line(&self) -> Result<()> {
        taken(self.0.clear_line())
    }
    fn flush(&self) -> Result<()> {
        taken(self.0.flush())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A terminal that is gone.
    #[derive(Debug)]
    pub(crate) struct Lost;

    fn lost() -> Result<()> {
        Err(std::io::Error::other("the window was closed"))
    }

    impl TermLike for Lost {
        fn width(&self) -> u16 {
            80
        }
        fn move_cursor_up(&self, _: usize) -> Result<()> {
            lost()
        }
        fn move_cursor_down(&self, _: usize) -> Result<()> {
            lost()
        }
        fn move_cursor_right(&self, _: usize) -> Result<()> {
            lost()
        }
        fn move_cursor_left(&self, _: usize) -> Result<()> {
            lost()
        }
        fn write_line(&self, _: &str) -> Result<()> {
            lost()
        }
        fn write_str(&self, _: &str) -> Result<()> {
            lost()
        }
        fn clear_line(&self) -> Result<()> {
            lost()
        }
        fn flush(&self) -> Result<()> {
            lost()
        }
    }
}
