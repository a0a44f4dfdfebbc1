//! Progress on a terminal: bars with rate and time left. In a pipe only lines are printed.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use selfrepair_core::progress::{BarReporter, Reporter};

/// Draws on standard error.
pub struct Terminal;

struct Drawn(ProgressBar);

impl Reporter for Terminal {
    fn bar(&self, name: &str, total: u64, unit: &str) -> Box<dyn BarReporter> {
        let style = ProgressStyle::with_template(&format!(
            "{{prefix:>8}} {{bar:32}} {{human_pos}}/{{human_len}} {unit}  {{per_sec}}  {{elapsed}} elapsed, {{eta}} left {{msg}}"
        ))
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─");
        let bar = ProgressBar::new(total).with_style(style).with_prefix(name.to_string());
        bar.enable_steady_tick(Duration::from_millis(200));
        Box::new(Drawn(bar))
    }

    fn spinner(&self, message: &str) -> Box<dyn BarReporter> {
        let bar = ProgressBar::new_spinner().with_message(message.to_string());
        bar.enable_steady_tick(Duration::from_millis(200));
        Box::new(Drawn(bar))
    }

    fn line(&self, name: &str, text: &str) {
        eprintln!("{name:>8} {text}");
    }
}

impl BarReporter for Drawn {
    fn inc(&self, n: u64) {
        self.0.inc(n);
    }

    fn set_position(&self, n: u64) {
        self.0.set_position(n);
    }

    fn set_length(&self, n: u64) {
        self.0.set_length(n);
    }

    fn set_message(&self, message: &str) {
        self.0.set_message(message.to_string());
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }
}
