//! What is going on and how long it may still take, on stderr.

use std::{
    cell::RefCell,
    io::{IsTerminal, Write},
    time::Instant,
};

/// Progress of a known number of steps.
#[derive(Debug)]
pub struct Progress {
    began: Instant,
    total: usize,
    state: RefCell<(usize, String)>,
    terminal: bool,
}

impl Progress {
    /// Of so many steps.
    pub fn new(total: usize) -> Self {
        Self {
            began: Instant::now(),
            total,
            state: RefCell::default(),
            terminal: std::io::stderr().is_terminal(),
        }
    }

    /// Says what is being done now.
    pub fn note(&self, what: &str) {
        what.clone_into(&mut self.state.borrow_mut().1);
        self.show();
        if !self.terminal {
            eprintln!("{:6.1} s  {what}", self.began.elapsed().as_secs_f64());
        }
    }

    /// A step is done.
    pub fn step(&self) {
        self.state.borrow_mut().0 += 1;
        self.show();
    }

    fn show(&self) {
        if !self.terminal {
            return;
        }
        let (done, what) = &*self.state.borrow();
        let elapsed = self.began.elapsed();
        let left = match u32::try_from(*done) {
            Ok(steps) if steps > 0 && *done < self.total => {
                let rest = u32::try_from(self.total - done).unwrap_or(u32::MAX);
                format!(
                    ", about {:.0} s left",
                    (elapsed / steps * rest).as_secs_f64()
                )
            }
            _ => String::new(),
        };
        eprint!("\r\x1b[K{:.0} s{left}  {what}", elapsed.as_secs_f64());
        let _ = std::io::stderr().flush();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}
