//! Progress on standard error: bars with rate and time left on a terminal, lines in a pipe.

use std::fmt;
use std::io::Write as _;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use selfrepair_core::plain::{visible, visible_paragraph};
use selfrepair_core::progress::{BarReporter, Reporter, seconds};

/// All bars, so that one that is drawn while another is has a line of its own.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Writes text to standard error, above the bars. A reader that has gone or a full disk does not end a run: nothing
/// depends on it.
pub fn say(text: &str) {
    BARS.suspend(|| writeln!(std::io::stderr(), "{}", visible_paragraph(text)).ok());
}

/// Draws on standard error.
pub struct Terminal;

struct Drawn {
    bar: ProgressBar,
    message: Arc<Mutex<String>>,
}

impl Drawn {
    fn boxed(bar: ProgressBar, message: Arc<Mutex<String>>) -> Box<dyn BarReporter> {
        let bar = BARS.add(bar);
        // The clock of a bar is a thread, which a bar that is not drawn can do without.
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Box::new(Self { bar, message })
    }
}

/// How far a bar is, in at most [`MOST_STATUS`] columns.
struct Status<'a> {
    position: u64,
    length: u64,
    unit: &'a str,
    /// Units a second since the bar began; 0 or no number where it is not known yet.
    rate: f64,
    elapsed: f64,
    message: &'a str,
}

/// What an earlier run did is counted within so many seconds, and tells nothing of the rate.
const BEGINNING: f64 = 0.5;

/// A line of 80 columns has a name of 8 and a bar of 10 besides.
const MOST_STATUS: usize = 60;

impl fmt::Display for Status<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { position, length, unit, rate, elapsed, message } = *self;
        let mut text = format!("{}/{} {unit}", HumanCount(position), HumanCount(length));
        let left = length.saturating_sub(position) as f64 / rate;
        let is_begun = elapsed >= 30.0 || position.saturating_mul(50) >= length;
        // The last step may take longer than those before it; `0.1 s left` would then be wrong for long.
        let is_known = rate > 0.0 && left >= 1.0 && is_begun;
        text.push_str(&match rate {
            _ if !is_known => format!(", {}", seconds(elapsed)),
            10.0.. => format!(", {}/s, {} left", HumanCount(rate as u64), seconds(left)),
            0.1.. => format!(", {rate:.1}/s, {} left", seconds(left)),
            _ => format!(", {} each, {} left", seconds(rate.recip()), seconds(left)),
        });
        if !message.is_empty() {
            text.push_str(&format!(", {message}"));
        }
        let cut = text.char_indices().nth(MOST_STATUS - 1).filter(|(end, c)| end + c.len_utf8() < text.len());
        match cut.and_then(|(end, _)| text.get(..end)) {
            Some(beginning) => write!(f, "{beginning}…"),
            None => f.write_str(&text),
        }
    }
}

impl Reporter for Terminal {
    fn bar(&self, name: &str, total: u64, unit: &str) -> Box<dyn BarReporter> {
        let message = Arc::<Mutex<String>>::default();
        let (unit, note) = (unit.to_string(), message.clone());
        let began = Arc::<Mutex<(u64, f64)>>::default();
        let status = move |state: &ProgressState, out: &mut dyn fmt::Write| {
            let (position, elapsed) = (state.pos(), state.elapsed().as_secs_f64());
            let mut began = began.lock().unwrap_or_else(PoisonError::into_inner);
            if elapsed < BEGINNING {
                *began = (position, elapsed);
            }
            let status = Status {
                position,
                length: state.len().unwrap_or(0),
                unit: &unit,
                // Steps are long and come in groups, so that a rate of the last seconds alone would jump.
                rate: position.saturating_sub(began.0) as f64 / (elapsed - began.1),
                elapsed,
                message: &note.lock().unwrap_or_else(PoisonError::into_inner),
            };
            write!(out, "{status}").ok();
        };
        let style = ProgressStyle::with_template("{prefix:>8} {wide_bar} {status}")
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .with_key("status", status)
            .progress_chars("━╸─");
        let bar = ProgressBar::new(total).with_style(style).with_prefix(visible(name).into_owned());
        Drawn::boxed(bar, message)
    }

    fn spinner(&self, message: &str) -> Box<dyn BarReporter> {
        Drawn::boxed(ProgressBar::new_spinner().with_message(visible(message).into_owned()), Arc::default())
    }

    fn line(&self, name: &str, text: &str) {
        say(&format!("{name:>8} {text}"));
    }
}

impl BarReporter for Drawn {
    fn inc(&self, n: u64) {
        self.bar.inc(n);
    }

    fn set_position(&self, n: u64) {
        self.bar.set_position(n);
    }

    fn set_length(&self, n: u64) {
        self.bar.set_length(n);
    }

    fn set_message(&self, message: &str) {
        *self.message.lock().unwrap_or_else(PoisonError::into_inner) = visible(message).into_owned();
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
        BARS.remove(&self.bar);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(position: u64, length: u64, rate: f64, elapsed: f64, message: &str) -> String {
        Status { position, length, unit: "tokens", rate, elapsed, message }.to_string()
    }

    #[test]
    fn a_bar_says_what_is_left_once_it_is_known_and_fits_80_columns() {
        assert_eq!(status(0, 1_000_000, 0.0, 9.5, ""), "0/1,000,000 tokens, 9.5 s");
        assert_eq!(status(1200, 1_000_000, 0.0, 9.5, ""), "1,200/1,000,000 tokens, 9.5 s");
        assert_eq!(status(1200, 1_000_000, 126.3, 9.5, ""), "1,200/1,000,000 tokens, 9.5 s");
        assert_eq!(status(1200, 1_000_000, f64::NAN, 31.0, ""), "1,200/1,000,000 tokens, 31 s");
        assert_eq!(status(1200, 1_000_000, 38.7, 31.0, ""), "1,200/1,000,000 tokens, 38/s, 7.2 h left");
        assert_eq!(status(250_000, 1_000_000, 2500.0, 100.0, ""), "250,000/1,000,000 tokens, 2,500/s, 5.0 min left");
        assert_eq!(status(3, 40, 0.25, 12.0, "head_summary"), "3/40 tokens, 0.2/s, 2.5 min left, head_summary");
        assert_eq!(status(3, 40, 0.04, 75.0, ""), "3/40 tokens, 25 s each, 15.4 min left");
        assert_eq!(status(39, 40, 3.0, 25.0, "head_summary"), "39/40 tokens, 25 s, head_summary");
        assert_eq!(status(40, 40, 3.0, 12.0, ""), "40/40 tokens, 12 s");
        let long = status(123_456_789_012, 999_999_999_999, 1_234_567.0, 1e6, "a_table_with_a_long_name");
        assert!(long.chars().count() == MOST_STATUS && long.ends_with('…'), "{long}");
    }
}
