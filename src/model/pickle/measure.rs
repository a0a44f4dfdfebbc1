//! The memory and the nesting depth that a pickle would need, computed without building its objects.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

/// Objects inside objects. A state dict has about eight levels, and each costs stack when the object is dropped.
const MOST_DEPTH: usize = 64;

/// Objects that are built or copied in all, also those that were dropped since.
const MOST_OBJECTS: usize = 4 << 20;

/// Bytes of text that are read or copied in all.
const MOST_TEXT: usize = 256 << 20;

/// Operations: a large model's pickle has a hundred thousand.
const MOST_OPERATIONS: usize = 16 << 20;

/// What matters of an object.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Object {
    kind: Kind,
    depth: usize,
    objects: usize,
    text: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Mark,
    List,
    Dict,
    /// The class of dictionaries: candle makes an empty one of a call of it.
    DictClass,
    Other,
}

impl Object {
    fn plain(text: usize) -> Self {
        Self { kind: Kind::Other, depth: 1, objects: 1, text }
    }

    fn of(kind: Kind, parts: &[Object]) -> Self {
        let mut whole = Self { kind, depth: 1, objects: 1, text: 0 };
        parts.iter().for_each(|part| whole.take_in(part));
        whole
    }

    fn take_in(&mut self, part: &Object) {
        self.depth = self.depth.max(part.depth + 1);
        self.objects = self.objects.saturating_add(part.objects);
        self.text = self.text.saturating_add(part.text);
    }
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    stack: Vec<Object>,
    memo: HashMap<u32, Object>,
    objects: usize,
    text: usize,
}

/// Refuses a pickle that would nest too deep, or take more memory or time than any model's.
pub fn measure(bytes: &[u8]) -> Result<()> {
    let mut machine = Machine { bytes, ..Machine::default() };
    for _ in 0..MOST_OPERATIONS {
        if machine.step()? {
            return Ok(());
        }
    }
    bail!("it has more operations than that of any model")
}

impl<'a> Machine<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count).context("it ends in the middle")?;
        self.bytes = rest;
        Ok(taken)
    }

    /// A number of up to four bytes, little-endian.
    fn number(&mut self, bytes: usize) -> Result<u32> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |n, &b| n << 8 | u32::from(b)))
    }

    fn line(&mut self) -> Result<&'a [u8]> {
        let end = self.bytes.iter().position(|&b| b == b'\n').context("it ends in the middle")?;
        let line = self.take(end + 1)?.trim_ascii_end();
        Ok(line)
    }

    /// Counts what is built or copied.
    fn count(&mut self, object: &Object, new: usize) -> Result<()> {
        self.objects = self.objects.saturating_add(new);
        self.text = self.text.saturating_add(if new > 0 { object.text } else { 0 });
        ensure!(object.depth <= MOST_DEPTH, "its objects nest deeper than {MOST_DEPTH} levels");
        ensure!(self.objects <= MOST_OBJECTS, "it expands to more than {MOST_OBJECTS} objects");
        ensure!(self.text <= MOST_TEXT, "it expands to more than {MOST_TEXT} bytes of text");
        Ok(())
    }

    /// An object that has no parts.
    fn push(&mut self, object: Object) -> Result<()> {
        self.count(&object, 1)?;
        self.stack.push(object);
        Ok(())
    }

    /// The last `count` objects become one.
    fn join(&mut self, kind: Kind, count: usize) -> Result<()> {
        let first = self.stack.len().checked_sub(count).context("it takes what is not there")?;
        let whole = Object::of(kind, &self.stack.split_off(first));
        self.count(&Object { text: 0, ..whole }, 1)?;
        self.stack.push(whole);
        Ok(())
    }

    /// The objects after the last mark, which goes too.
    fn after_mark(&mut self) -> Result<Vec<Object>> {
        let mark = self.stack.iter().rposition(|o| o.kind == Kind::Mark).context("it lacks a mark")?;
        let parts = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(parts)
    }

    /// The parts go into the list or dictionary on top of the stack.
    fn put_in(&mut self, kind: Kind, parts: &[Object]) -> Result<()> {
        let top = self.stack.last_mut().filter(|o| o.kind == kind).context("it fills what is no list or dictionary")?;
        parts.iter().for_each(|part| top.take_in(part));
        let top = Object { text: 0, ..*top };
        self.count(&top, 0)
    }

    fn remember(&mut self, key: u32) -> Result<()> {
        let top = *self.stack.last().context("it remembers what is not there")?;
        self.count(&top, top.objects)?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<()> {
        let object = *self.memo.get(&key).context("it recalls what it never remembered")?;
        self.count(&object, object.objects)?;
        self.stack.push(object);
        Ok(())
    }

    /// One operation; whether it was the last.
    fn step(&mut self) -> Result<bool> {
        let operation = self.number(1)? as u8;
        match operation {
            b'.' => return Ok(true),
            0x80 => self.take(1).map(drop)?,
            b'c' => {
                let (module, class) = (self.line()?, self.line()?);
                let is_dict = module == b"collections" && (class == b"OrderedDict" || class == b"defaultdict");
                let kind = if is_dict { Kind::DictClass } else { Kind::Other };
                self.push(Object { kind, ..Object::plain(module.len() + class.len()) })?;
            }
            b'X' => {
                let length = self.number(4)? as usize;
                ensure!(length <= self.bytes.len(), "a text in it ends after it does");
                self.take(length)?;
                self.push(Object::plain(length))?;
            }
            b'J' => self.plain_of(4)?,
            b'K' => self.plain_of(1)?,
            b'M' => self.plain_of(2)?,
            b'G' => self.plain_of(8)?,
            0x8a => {
                let length = self.number(1)? as usize;
                ensure!(length <= 8, "an integer in it has {length} bytes; expected at most 8");
                self.plain_of(length)?;
            }
            0x88 | 0x89 | b'N' | b')' => self.plain_of(0)?,
            b']' => self.join(Kind::List, 0)?,
            b'}' => self.join(Kind::Dict, 0)?,
            b'(' => self.push(Object { kind: Kind::Mark, ..Object::plain(0) })?,
            b't' => {
                let parts = self.after_mark()?;
                let whole = Object::of(Kind::Other, &parts);
                self.count(&Object { text: 0, ..whole }, 1)?;
                self.stack.push(whole);
            }
            0x85 => self.join(Kind::Other, 1)?,
            0x86 => self.join(Kind::Other, 2)?,
            0x87 => self.join(Kind::Other, 3)?,
            b'Q' => self.join(Kind::Other, 1)?,
            0x81 => self.join(Kind::Other, 2)?,
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            b'a' => {
                let value = self.stack.pop().context("it takes what is not there")?;
                self.put_in(Kind::List, &[value])?;
            }
            b'e' => {
                let parts = self.after_mark()?;
                self.put_in(Kind::List, &parts)?;
            }
            b's' => {
                let at = self.stack.len().checked_sub(2).context("it takes what is not there")?;
                let pair = self.stack.split_off(at);
                self.put_in(Kind::Dict, &pair)?;
            }
            b'u' => {
                let parts = self.after_mark()?;
                self.put_in(Kind::Dict, &parts)?;
            }
            b'q' => {
                let key = self.number(1)?;
                self.remember(key)?;
            }
            b'r' => {
                let key = self.number(4)?;
                self.remember(key)?;
            }
            b'h' => {
                let key = self.number(1)?;
                self.recall(key)?;
            }
            b'j' => {
                let key = self.number(4)?;
                self.recall(key)?;
            }
            other => bail!("the operation {other:#04x} in it is not known"),
        }
        Ok(false)
    }

    fn plain_of(&mut self, bytes: usize) -> Result<()> {
        self.take(bytes)?;
        self.push(Object::plain(0))
    }

    fn reduce(&mut self) -> Result<()> {
        let callable = self.last_two().map(|[callable, _]| callable.kind);
        self.join(Kind::Other, 2)?;
        if callable == Some(Kind::DictClass) {
            self.stack.pop();
            self.join(Kind::Dict, 0)?;
        }
        Ok(())
    }

    /// A dictionary takes in another; anything else becomes a pair.
    fn build(&mut self) -> Result<()> {
        let both = self.last_two().is_some_and(|objects| objects.iter().all(|o| o.kind == Kind::Dict));
        self.join(if both { Kind::Dict } else { Kind::Other }, 2)
    }

    fn last_two(&self) -> Option<&[Object; 2]> {
        self.stack.last_chunk()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(pickle: &[u8]) -> String {
        format!("{:#}", measure(pickle).unwrap_err())
    }

    #[test]
    fn nesting_of_every_kind_is_refused() {
        let nested = |open: &[u8], each: &[u8]| error(&[open, &each.repeat(100_000), b"."].concat());
        // TUPLE1, BINPERSID, REDUCE, NEWOBJ, BUILD, APPEND, SETITEM, and a tuple up to a mark.
        for (open, each) in [
            (b")".as_slice(), b"\x85".as_slice()),
            (b")", b"Q"),
            (b")", b")R"),
            (b")", b")\x81"),
            (b")", b")b"),
            (b")", b"q\0(h\0t"),
            (b"]", b"q\0]h\0a"),
            (b"}", b"q\0}Nh\0s"),
        ] {
            assert!(nested(open, each).contains("nest deeper"), "{}", each.escape_ascii());
        }
    }

    #[test]
    fn objects_and_texts_that_are_copied_without_end_are_refused() {
        let tuple = [b"(".as_slice(), &b"N".repeat(4000), b"tq\0"].concat();
        assert!(error(&[&tuple[..], &b"h\0".repeat(10_000), b"."].concat()).contains("objects"));
        assert!(error(&[&tuple[..], &b"q\0".repeat(10_000), b"."].concat()).contains("objects"));
        let text = [b"X".as_slice(), &(1u32 << 20).to_le_bytes(), &vec![b'a'; 1 << 20], b"q\0"].concat();
        assert!(error(&[&text[..], &b"h\0".repeat(300), b"."].concat()).contains("bytes of text"));
        assert!(error(&[b"N".as_slice(), &b"q\0".repeat(9 << 20), b"."].concat()).contains("objects"));
        assert!(error(&b"\x80\x02".repeat(17 << 20)).contains("operations"));
    }

    #[test]
    fn what_is_cut_or_wrong_is_an_error_and_no_panic() {
        for pickle in
            [&b""[..], b"X", b"X\xff\xff\xff\xff", b"ctorch", b"t", b"\x85", b"s", b"Ns", b"NNs", b"e", b"a", b"h\0"]
        {
            error(pickle);
        }
        assert!(error(b"\x8a\x09123456789.").contains("9 bytes"));
        assert!(error(b"I1\n.").contains("not known"));
    }
}
