//! Progress of long work.
//!
//! Every line is a `tracing` event. A program that draws progress bars installs a [`Reporter`] with [`report_to`];
//! without one, nothing is printed.

use std::sync::OnceLock;

/// Shows progress to a person.
pub trait Reporter: Send + Sync {
    /// Starts a bar over `total` units.
    fn bar(&self, name: &str, total: u64, unit: &str) -> Box<dyn BarReporter>;
    /// Starts an indicator for work of unknown length.
    fn spinner(&self, message: &str) -> Box<dyn BarReporter>;
    /// Prints one line, above any bar that is drawn.
    fn line(&self, name: &str, text: &str);
}

/// One bar or spinner of a [`Reporter`].
pub trait BarReporter: Send + Sync {
    fn inc(&self, n: u64);
    fn set_position(&self, n: u64);
    fn set_length(&self, n: u64);
    fn set_message(&self, message: &str);
    /// Removes the bar.
    fn finish(&self);
}

static REPORTER: OnceLock<Box<dyn Reporter>> = OnceLock::new();

/// Sends all progress of this process to `reporter`. The first call wins.
pub fn report_to(reporter: impl Reporter + 'static) {
    REPORTER.set(Box::new(reporter)).ok();
}

/// A bar that may or may not be drawn.
pub struct Bar(Option<Box<dyn BarReporter>>);

impl Bar {
    /// A bar that is never drawn.
    pub fn hidden() -> Self {
        Self(None)
    }

    fn with(&self, f: impl FnOnce(&dyn BarReporter)) {
        if let Some(bar) = &self.0 {
            f(bar.as_ref());
        }
    }

    pub fn inc(&self, n: u64) {
        self.with(|bar| bar.inc(n));
    }

    pub fn set_position(&self, n: u64) {
        self.with(|bar| bar.set_position(n));
    }

    pub fn set_length(&self, n: u64) {
        self.with(|bar| bar.set_length(n));
    }

    pub fn set_message(&self, message: &str) {
        self.with(|bar| bar.set_message(message));
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.with(|bar| bar.finish());
    }
}

/// A bar over `total` units, with rate and time left.
pub fn bar(name: &str, total: u64, unit: &str) -> Bar {
    Bar(REPORTER.get().map(|reporter| reporter.bar(name, total, unit)))
}

/// An indicator for work of unknown length.
pub fn spinner(message: &str) -> Bar {
    Bar(REPORTER.get().map(|reporter| reporter.spinner(message)))
}

/// One line about something finished.
pub fn line(name: &str, text: &str) {
    tracing::info!(target: "selfrepair", stage = name, "{text}");
    if let Some(reporter) = REPORTER.get() {
        reporter.line(name, text);
    }
}

/// `93 s`, `4.2 min`.
pub fn seconds(s: f64) -> String {
    match s {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// `1.2 GB`.
pub fn bytes(n: u64) -> String {
    match n as f64 {
        n if n < 1e6 => format!("{:.0} kB", n / 1e3),
        n if n < 1e9 => format!("{:.1} MB", n / 1e6),
        n => format!("{:.2} GB", n / 1e9),
    }
}
