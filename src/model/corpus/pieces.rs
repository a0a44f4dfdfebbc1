//! Splits documents into pieces that are tokenized one by one, so that the first page of a book does not need the whole
//! book.

use anyhow::{Result, bail};

use super::cuts::Cuts;
use super::read::Part;

/// From how many bytes on a document is cut, and how many are tokenized at a time.
pub const PIECE: usize = 64 << 10;

/// The most bytes that are tokenized at a time, with what the tokenizer makes of them before it splits them.
pub const MOST_AT_ONCE: usize = 16 << 20;

/// A part of a document that is tokenized by itself.
#[derive(Debug, PartialEq)]
pub struct Piece {
    pub document: u32,
    pub text: String,
}

pub struct Pieces<'a, I> {
    parts: I,
    cuts: &'a Cuts,
    document: u32,
    /// What was read of the document and is not in a piece yet, from `start` on.
    text: String,
    start: usize,
    /// Whether a document was begun, and whether `text` goes to its end.
    begun: bool,
    complete: bool,
    failed: bool,
}

impl<'a, I: Iterator<Item = Result<Part>>> Pieces<'a, I> {
    pub fn new(parts: I, cuts: &'a Cuts) -> Self {
        let text = String::new();
        Self { parts, cuts, document: 0, text, start: 0, begun: false, complete: false, failed: false }
    }

    /// Documents that were begun.
    pub fn documents(&self) -> u32 {
        self.document + u32::from(self.begun)
    }

    /// The next piece, or `None` at the end.
    fn advance(&mut self) -> Result<Option<Piece>> {
        loop {
            let text = self.text.get(self.start..).unwrap_or_default();
            if self.complete && text.len() <= PIECE {
                return Ok(Some(self.finish()));
            }
            if let Some(cut) = self.cuts.find(text, PIECE)
                && let Some(text) = text.get(..cut.end)
            {
                let text = text.to_string();
                self.start += cut.next;
                return Ok(Some(Piece { document: self.document, text }));
            }
            if text.len().saturating_mul(self.cuts.growth()) > MOST_AT_ONCE {
                bail!(
                    "document {} has {} bytes that cannot be split for this tokenizer, which takes at most {} at a \
                    time: split it into several documents",
                    self.document,
                    text.len(),
                    MOST_AT_ONCE / self.cuts.growth()
                );
            }
            if self.complete {
                return Ok(Some(self.finish()));
            }
            let Some(part) = self.parts.next().transpose()? else { return Ok(None) };
            self.text.drain(..self.start);
            self.start = 0;
            self.text.push_str(&part.text);
            (self.begun, self.complete) = (true, part.last);
        }
    }

    /// The rest of the document.
    fn finish(&mut self) -> Piece {
        let mut text = std::mem::take(&mut self.text);
        text.drain(..std::mem::take(&mut self.start));
        let piece = Piece { document: self.document, text };
        self.document += 1;
        (self.begun, self.complete) = (false, false);
        piece
    }
}

impl<I: Iterator<Item = Result<Part>>> Iterator for Pieces<'_, I> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.advance();
        self.failed = next.is_err();
        next.transpose()
    }
}
