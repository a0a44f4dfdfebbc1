//! Lines of a file. Long lines are read in parts.

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, anyhow};

use super::read::Part;
use selfrepair_core::untrusted::{MARK, not_utf8};

/// Bytes without the byte order mark before them.
struct WithoutMark<R> {
    inner: R,
    /// The first bytes, as many as the mark has; `None` before they were read.
    first: Option<io::Cursor<Vec<u8>>>,
}

impl<R: Read> Read for WithoutMark<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.first.is_none() {
            let mut first = Vec::new();
            (&mut self.inner).take(MARK.len() as u64).read_to_end(&mut first)?;
            if first == MARK {
                first.clear();
            }
            self.first = Some(io::Cursor::new(first));
        }
        match self.first.as_mut().map_or(Ok(0), |first| first.read(buffer))? {
            0 => self.inner.read(buffer),
            n => Ok(n),
        }
    }
}

/// Numbered lines in parts of about `most` bytes. Empty lines are counted and left out.
pub struct Lines<R> {
    reader: BufReader<WithoutMark<R>>,
    name: String,
    number: usize,
    most: usize,
    /// The last bytes read, which belong to the next part.
    kept: Vec<u8>,
    /// Whether the last part did not end its line.
    inside: bool,
    failed: bool,
}

impl<R: Read> Lines<R> {
    pub fn new(path: &Path, reader: R, most: usize) -> Self {
        let name = path.display().to_string();
        let reader = BufReader::new(WithoutMark { inner: reader, first: None });
        Self { reader, name, number: 0, most, kept: vec![], inside: false, failed: false }
    }

    fn advance(&mut self) -> Result<Option<(usize, Part)>> {
        if !self.inside {
            self.number += 1;
            self.skip_empty()?;
        }
        let mut bytes = std::mem::take(&mut self.kept);
        let read = (&mut self.reader).take(self.most as u64).read_until(b'\n', &mut bytes)?;
        if read == 0 && !self.inside {
            return Ok(None);
        }
        let newline = bytes.last() == Some(&b'\n');
        let last = newline || read < self.most;
        if newline {
            bytes.pop();
            bytes.pop_if(|b| *b == b'\r');
        } else if !last {
            // What may belong together stays together: `\r\n`, and the bytes of a character.
            let end = match std::str::from_utf8(&bytes) {
                Err(e) if e.error_len().is_none() => e.valid_up_to(),
                _ if bytes.last() == Some(&b'\r') => bytes.len() - 1,
                _ => bytes.len(),
            };
            self.kept = bytes.split_off(end);
        }
        self.inside = !last;
        let text = String::from_utf8(bytes).map_err(|e| anyhow!(not_utf8(e.as_bytes())))?;
        Ok(Some((self.number, Part { text, last })))
    }

    /// Millions of them take no time.
    fn skip_empty(&mut self) -> Result<()> {
        loop {
            let bytes = self.reader.fill_buf()?;
            let empty = bytes.iter().take_while(|&&b| b == b'\n').count();
            let all = bytes.len();
            self.reader.consume(empty);
            self.number += empty;
            if empty < all || all == 0 {
                return Ok(());
            }
        }
    }
}

impl<R: Read> Iterator for Lines<R> {
    type Item = Result<(usize, Part)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.advance().with_context(|| format!("{}, line {}: cannot be read", self.name, self.number));
        self.failed = next.is_err();
        next.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8], most: usize) -> Result<Vec<(usize, String)>> {
        let mut out: Vec<(usize, String)> = Vec::new();
        let mut inside = false;
        for line in Lines::new(Path::new("a.txt"), text, most) {
            let (number, part) = line?;
            assert!(part.text.len() <= most + 4);
            match out.last_mut() {
                Some((_, text)) if inside => text.push_str(&part.text),
                _ => out.push((number, part.text)),
            }
            inside = !part.last;
        }
        Ok(out)
    }

    #[test]
    fn parts_make_the_lines_that_the_standard_library_reads() {
        for text in ["", "\n", "a", "a\n", "\n\nab\r\n\n cd\r\ré€😀\r\n\r\n\re\r", "😀😀😀\n\n\n€€€€\r\n"]
        {
            let expected: Vec<(usize, String)> =
                (1..).zip(text.lines().map(str::to_string)).filter(|(_, line)| !line.is_empty()).collect();
            for most in 1..12 {
                let mut found = lines(text.as_bytes(), most).unwrap();
                found.retain(|(_, line)| !line.is_empty());
                assert_eq!(found, expected, "{text:?} in parts of {most}");
            }
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_line() {
        let mark = "\u{feff}";
        for text in ["", "a", "\nab\ncd", "\r\n\r\nä"] {
            for most in 1..5 {
                let plain = lines(text.as_bytes(), most).unwrap();
                assert_eq!(lines(format!("{mark}{text}").as_bytes(), most).unwrap(), plain, "{text:?}");
            }
        }
        assert_eq!(lines(format!("a\n{mark}b").as_bytes(), 9).unwrap()[1].1, format!("{mark}b"));
        let error = format!("{:#}", lines(b"\xff\xfea\0\n\0", 9).unwrap_err());
        assert!(error.contains("line 1") && error.contains("it is UTF-16"), "{error}");
    }

    #[test]
    fn a_line_that_is_no_text_is_named() {
        for text in [b"a\n\nb\xff\n".as_slice(), b"a\n\nb\xe2\x82", b"a\n\nb\xe2\n"] {
            let error = format!("{:#}", lines(text, 4).unwrap_err());
            assert!(error.contains("a.txt, line 3: cannot be read") && error.contains("UTF-8"), "{error}");
        }
    }
}
