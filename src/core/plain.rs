//! Escapes untrusted text (names, cells, settings, server answers) for a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The text with its control characters shown instead of sent: `\u{1b}`, `\n`. It stays on one line.
pub fn visible(text: &str) -> Cow<'_, str> {
    escaped(text, is_control)
}

/// As [`visible`], for a text of several lines that this program wrote: its line breaks stay.
pub fn visible_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c != '\n' && is_control(c))
}

/// As [`visible_lines`], with every line but the first set in, so that no line break in a name can begin a line of its
/// own that looks like one of the program's.
pub fn visible_paragraph(text: &str) -> String {
    visible_lines(text.trim_end_matches('\n')).replace('\n', "\n  ")
}

/// What a terminal acts on, or what changes the order or the lines in which other characters are shown.
fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escaped(text: &str, hidden: impl Fn(char) -> bool) -> Cow<'_, str> {
    let Some(first) = text.find(&hidden) else { return Cow::Borrowed(text) };
    let mut out = String::with_capacity(text.len() + 8);
    let (as_it_is, rest) = text.split_at(first);
    out.push_str(as_it_is);
    for c in rest.chars() {
        match c {
            '\n' if hidden(c) => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            // A String takes every write.
            c if hidden(c) => write!(out, "\\u{{{:x}}}", u32::from(c)).unwrap_or_default(),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// A word of a command line: in quotes, if a shell would not take it as it is.
pub fn shell_word(word: &str) -> String {
    match !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || "/._-+:,@%".contains(c)) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// Standard output, which remembers whether its reader has gone. Libraries keep the words of an error only.
pub struct Stdout;

static READER_HAS_GONE: AtomicBool = AtomicBool::new(false);

impl Stdout {
    /// Whether a write has found that nobody reads any more.
    pub fn has_gone() -> bool {
        READER_HAS_GONE.load(Relaxed)
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        noted(io::stdout().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        noted(io::stdout().flush())
    }
}

fn noted<T>(result: io::Result<T>) -> io::Result<T> {
    if result.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
        READER_HAS_GONE.store(true, Relaxed);
    }
    result
}

/// Sends text to a terminal as [`visible_lines`] shows it. Characters may be cut into several writes.
pub struct VisibleWriter<W: Write> {
    inner: W,
    /// The first bytes of a character whose other bytes have not come yet.
    begun: Vec<u8>,
}

impl<W: Write> VisibleWriter<W> {
    pub fn new(inner: W) -> Self {
        Self { inner, begun: Vec::new() }
    }
}

impl<W: Write> Write for VisibleWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.begun.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.begun) {
            Ok(text) => text.len(),
            Err(e) if e.error_len().is_none() => e.valid_up_to(),
            Err(_) => self.begun.len(),
        };
        let text: Vec<u8> = self.begun.drain(..whole).collect();
        self.inner.write_all(visible_lines(&String::from_utf8_lossy(&text)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_other_text_is_left_alone() {
        assert!(matches!(visible("L9H6 → „Köln“ 日本"), Cow::Borrowed(_)));
        assert_eq!(visible("\u{1b}]52;c;cHduZWQ=\u{7}"), "\\u{1b}]52;c;cHduZWQ=\\u{7}");
        assert_eq!(visible("a\nerror: b\r\tc"), "a\\nerror: b\\r\\tc");
        assert_eq!(visible("\u{9b}2J\u{7f}\u{0}"), "\\u{9b}2J\\u{7f}\\u{0}");
        assert_eq!(
            visible("\u{202e}exe\u{2066}\u{2028}\u{2029}\u{61c}"),
            "\\u{202e}exe\\u{2066}\\u{2028}\\u{2029}\\u{61c}"
        );
    }

    #[test]
    fn line_breaks_of_the_programs_own_text_stay() {
        assert_eq!(visible_lines("a\n\u{1b}[2Jb"), "a\n\\u{1b}[2Jb");
        assert_eq!(visible_paragraph("no model `x\nerror: all is lost`\n"), "no model `x\n  error: all is lost`");
    }

    #[test]
    fn a_writer_shows_characters_that_come_in_parts() {
        let mut out = Vec::new();
        let mut writer = VisibleWriter::new(&mut out);
        for byte in "é\u{9b}\u{202e}\n".as_bytes() {
            writer.write_all(&[*byte]).unwrap();
        }
        writer.write_all(b"\xff\x1b").unwrap();
        drop(writer);
        assert_eq!(String::from_utf8(out).unwrap(), "é\\u{9b}\\u{202e}\n\u{fffd}\\u{1b}");
    }
}
