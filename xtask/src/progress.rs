//! Shows what is going on: spinners on a terminal, plain lines elsewhere.

use std::{
    io::IsTerminal,
    sync::Arc,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Where steps are shown. Cheap to clone; steps of several threads may run at once.
#[derive(Clone)]
pub struct Progress {
    bars: Option<MultiProgress>,
    started: Instant,
    name_width: usize,
}

impl Progress {
    /// Looks at stderr once to decide between spinners and lines.
    pub fn new() -> Self {
        Self {
            bars: std::io::stderr().is_terminal().then(MultiProgress::new),
            started: Instant::now(),
            name_width: 16,
        }
    }

    /// Begins a step. It is shown as failed if it is dropped before [`Step::done`].
    pub fn step(&self, name: &str) -> Step {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new_spinner());
            bar.set_style(
                ProgressStyle::with_template("{spinner} {prefix:16} {wide_msg} {elapsed}")
                    .expect("the template is a constant"),
            );
            bar.set_prefix(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Step {
            progress: self.clone(),
            name: name.into(),
            bar,
            started: Instant::now(),
            finished: false,
        }
    }

    /// A line of its own, above any spinners.
    pub fn say(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Since the command began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn finish(&self, mark: &str, name: &str, detail: &str, took: Duration) {
        let width = self.name_width;
        let took = took.as_secs_f64();
        self.say(format!("{mark} {name:width$} {took:6.2} s  {detail}").trim_end());
    }
}

/// One thing that takes a while.
pub struct Step {
    progress: Progress,
    name: Arc<str>,
    bar: Option<ProgressBar>,
    started: Instant,
    finished: bool,
}

impl Step {
    /// Says what the step waits for just now; shown on a terminal only.
    pub fn note(&self, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(message.to_owned());
        }
    }

    /// Ends the step well.
    pub fn done(mut self, detail: &str) {
        self.end("✓", detail);
    }

    fn end(&mut self, mark: &str, detail: &str) {
        self.finished = true;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.progress
            .finish(mark, &self.name, detail, self.started.elapsed());
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.finished {
            self.end("✗", "failed");
        }
    }
}
