//! Commands over a serial port of a machine (`tests/vm/channel.sh`).
//!
//! In: shell commands. Out: what they say, as it comes, and their exit codes. Always
//! holds: one that does not end in time is ended in the machine, which takes the next
//! one then.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Bytes of a command's output that are kept: the last ones.
const OUTPUT_MAX: usize = 4 << 20;
/// How long the machine may take to end a command whose time is over.
const SLACK: Duration = Duration::from_secs(30);
/// What `timeout` ends with then.
const TIMED_OUT: i32 = 124;

/// The other end of the port.
#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
    /// What came after the last command's end.
    pending: Vec<u8>,
    commands: u32,
}

impl Channel {
    /// # Errors
    /// When QEMU does not listen yet.
    pub(super) fn open(socket: &Path) -> std::io::Result<Self> {
        UnixStream::connect(socket).map(Self::over)
    }

    fn over(stream: UnixStream) -> Self {
        Self {
            stream,
            pending: Vec::new(),
            commands: 0,
        }
    }

    /// Waits until the machine, which boots, takes commands.
    pub(super) fn wait_ready(&mut self, timeout: Duration) -> Result<()> {
        self.read_until("ready\n", timeout, &mut |_| {}).map(drop)
    }

    /// See [`super::Machine::run`].
    pub(super) fn run(
        &mut self,
        command: &str,
        timeout: Duration,
        show: &mut dyn FnMut(&str),
    ) -> Result<(i32, String)> {
        self.commands += 1;
        let word = format!("{}-{}", std::process::id(), self.commands);
        let (seconds, text) = (timeout.as_secs().max(1), base64(command.as_bytes()));
        self.stream
            .write_all(format!("{word} {seconds} {text}\n").as_bytes())
            .context("sending a command to the machine")?;
        let end = format!("\nend-{word} ");
        let output = self
            .read_until(&end, timeout + SLACK, show)
            .with_context(|| format!("running `{command}` in the machine"))?;
        let code = self.read_until("\n", SLACK, &mut |_| {})?;
        let code = code
            .trim()
            .parse()
            .with_context(|| format!("exit code {code:?}"))?;
        if code == TIMED_OUT {
            bail!(
                "`{command}` did not end in {timeout:?}; its last output was: {}",
                tail(output.as_bytes())
            );
        }
        Ok((code, output))
    }

    /// What comes before `end`, which is taken away too.
    fn read_until(
        &mut self,
        end: &str,
        timeout: Duration,
        show: &mut dyn FnMut(&str),
    ) -> Result<String> {
        let deadline = Instant::now() + timeout;
        let mut shown = 0;
        let mut buffer = [0; 4096];
        loop {
            if let Some(at) = find(&self.pending, end.as_bytes()) {
                show(&String::from_utf8_lossy(&self.pending[shown.min(at)..at]));
                let rest = self.pending.split_off(at + end.len());
                let mut before = std::mem::replace(&mut self.pending, rest);
                before.truncate(at);
                return Ok(String::from_utf8_lossy(&before).into_owned());
            }
            // The end may have come in part: whole lines before it are shown.
            if let Some(line) = self.pending[shown..]
                .iter()
                .rposition(|byte| *byte == b'\n')
            {
                show(&String::from_utf8_lossy(&self.pending[shown..shown + line]));
                shown += line;
            }
            if self.pending.len() > OUTPUT_MAX {
                let surplus = (self.pending.len() - OUTPUT_MAX / 2).min(shown);
                self.pending.drain(..surplus);
                shown -= surplus;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!(
                    "no end after {timeout:?}; the last output was: {}",
                    tail(&self.pending)
                );
            }
            self.stream
                .set_read_timeout(Some(left))
                .context("setting a time limit")?;
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!(
                    "the machine has ended; its last output was: {}",
                    tail(&self.pending)
                ),
                Ok(count) => self.pending.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("reading from the machine"),
            }
        }
    }
}

/// The end of what was said.
fn tail(said: &[u8]) -> String {
    let from = said.len().saturating_sub(1000);
    String::from_utf8_lossy(&said[from..]).into_owned()
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_secs(5);

    /// A channel, and its other end.
    fn channel() -> (Channel, UnixStream) {
        let (stream, other) = UnixStream::pair().unwrap();
        (Channel::over(stream), other)
    }

    #[test]
    fn output_and_exit_code_of_each_command_are_told_apart() {
        let (mut channel, mut other) = channel();
        let id = std::process::id();
        write!(other, "one\ntwo\n\nend-{id}-1 0\n\nend-{id}-2 3\n").unwrap();
        let mut shown = String::new();
        let (code, output) = channel
            .run("x", SHORT, &mut |text| shown.push_str(text))
            .unwrap();
        assert_eq!(
            (code, output.as_str(), shown.as_str()),
            (0, "one\ntwo\n", "one\ntwo\n")
        );
        assert_eq!(
            channel.run("y", SHORT, &mut |_| {}).unwrap(),
            (3, String::new())
        );
        let silent = channel.read_until("x", Duration::from_millis(10), &mut |_| {});
        assert!(silent.is_err());
    }

    #[test]
    fn a_command_that_is_ended_by_its_time_is_an_error_and_the_next_one_runs() {
        let (mut channel, mut other) = channel();
        let id = std::process::id();
        write!(other, "half\n\nend-{id}-1 124\n\nend-{id}-2 0\n").unwrap();
        let error = channel.run("x", SHORT, &mut |_| {}).unwrap_err();
        assert!(format!("{error:#}").contains("half"), "{error:#}");
        assert_eq!(
            channel.run("y", SHORT, &mut |_| {}).unwrap(),
            (0, String::new())
        );
    }

    #[test]
    fn a_machine_that_ends_ends_the_command() {
        let (mut channel, other) = channel();
        let (mut other, closing) = (other.try_clone().unwrap(), other);
        write!(other, "half").unwrap();
        closing.shutdown(std::net::Shutdown::Both).unwrap();
        let error = channel.run("x", SHORT, &mut |_| {}).unwrap_err();
        assert!(!format!("{error:#}").is_empty());
    }
}
