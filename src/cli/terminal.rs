//! Progress on standard error: bars with rate and time left on a terminal, lines in a pipe.

use std::io::Write;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use selfrepair_core::plain::{visible, visible_paragraph};
use selfrepair_core::progress::{BarReporter, Reporter};

/// Writes text to standard error. A reader that has gone or a full disk does not end a run: nothing depends on it.
pub fn say(text: &str) {
    writeln!(std::io::stderr(), "{}", visible_paragraph(text)).ok();
}

/// Draws on standard error.
pub struct Terminal;

struct Drawn(ProgressBar);

impl Drawn {
    fn boxed(bar: ProgressBar) -> Box<dyn BarReporter> {
        // The clock of a bar is a thread, which a bar that is not drawn can do without.
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Box::new(Self(bar))
    }
}

impl Reporter for Terminal {
    fn bar(&self, name: &str, total: u64, unit: &str) -> Box<dyn BarReporter> {
        let style = ProgressStyle::with_template(&format!(
            "{{prefix:>8}} {{bar:32}} {{human_pos}}/{{human_len}} {unit}  {{per_sec}}  {{elapsed}} elapsed, {{eta}} left {{msg}}"
        ))
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─");
        Drawn::boxed(ProgressBar::new(total).with_style(style).with_prefix(visible(name).into_owned()))
    }

    fn spinner(&self, message: &str) -> Box<dyn BarReporter> {
        Drawn::boxed(ProgressBar::new_spinner().with_message(visible(message).into_owned()))
    }

    fn line(&self, name: &str, text: &str) {
        say(&format!("{name:>8} {text}"));
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
        self.0.set_message(visible(message).into_owned());
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }
}
