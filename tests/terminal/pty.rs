//! A terminal: what a command writes to it, as it comes.

use crate::world::eventually;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

/// The side that a command gets, and what arrives on the other one.
pub struct Terminal {
    side: OwnedFd,
    seen: Arc<Mutex<Vec<u8>>>,
    reader: std::thread::JoinHandle<()>,
}

impl Terminal {
    pub fn new(columns: u16, lines: u16) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let other = openpt(flags).unwrap();
        grantpt(&other).unwrap();
        unlockpt(&other).unwrap();
        let side = ioctl_tiocgptpeer(&other, flags).unwrap();
        // As written: no line feed becomes two characters.
        let mut modes = tcgetattr(&side).unwrap();
        modes.make_raw();
        tcsetattr(&side, OptionalActions::Now, &modes).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let mut file = File::from(other);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // EIO: nobody has the other side any more.
            while let Ok(length) = file.read(&mut buffer) {
                if length == 0 {
                    break;
                }
                sink.lock().unwrap().extend(&buffer[..length]);
            }
        });
        let terminal = Self { side, seen, reader };
        terminal.resize(columns, lines);
        terminal
    }

    pub fn resize(&self, columns: u16, lines: u16) {
        let size = Winsize { ws_row: lines, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.side, size).unwrap();
    }

    /// For a command's output.
    pub fn stdio(&self) -> Stdio {
        self.side.try_clone().unwrap().into()
    }

    /// What has arrived so far.
    pub fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    /// Waits until that has arrived.
    pub fn await_text(&self, text: &str) {
        eventually(text, || self.seen().contains(text));
    }

    /// All of it, when the command has ended and is dropped.
    pub fn end(self) -> String {
        drop(self.side);
        self.reader.join().unwrap();
        let seen = self.seen.lock().unwrap();
        String::from_utf8(seen.clone()).unwrap()
    }
}
