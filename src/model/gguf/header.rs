//! Checks the header of a GGUF file before candle parses it. candle divides by the alignment, keeps the last of two
//! values with the same name, and takes 32 bytes for each number of a list.

use std::collections::BTreeSet;
use std::io::{BufRead, Read};

use anyhow::{Context, Result, bail, ensure};

/// Values of all lists together. The largest vocabularies have 262,144 tokens, with a score, a kind and two merges each.
const MOST_VALUES: u64 = 4 << 20;

/// Bytes of all texts together.
const MOST_TEXT: u64 = 256 << 20;

/// Lists inside lists, which no model has.
const MOST_DEPTH: usize = 4;

const MOST_TENSORS: u64 = 1 << 20;

/// Types of tensors that candle reads, by their numbers in the file.
const SUPPORTED: [u32; 13] = [0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 30];

/// Names of the others.
const OTHERS: [(u32, &str); 27] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

struct Header<R> {
    reader: R,
    /// Bytes of a count: four in the first version.
    count_bytes: usize,
    values: u64,
    text: u64,
    /// A tensor of a type that is not supported, and its type.
    unsupported: Option<(String, u32)>,
}

/// Reads a header to its end. Of a file that is in order but has a type of tensor that is not supported, the answer says
/// so.
pub fn check<R: BufRead>(reader: R) -> Result<Option<String>> {
    let mut header = Header { reader, count_bytes: 8, values: 0, text: 0, unsupported: None };
    let mut magic = [0; 4];
    header.reader.read_exact(&mut magic).context("it is shorter than a header")?;
    ensure!(&magic == b"GGUF", "it does not begin with GGUF");
    let version = header.u32()?;
    match version {
        1 => header.count_bytes = 4,
        2 | 3 => {}
        v if (1..=3).contains(&v.swap_bytes()) => bail!("it is for big-endian machines, which is not supported"),
        other => bail!("its version is {other}; supported: 1, 2 and 3"),
    }
    let (tensors, entries) = (header.count()?, header.count()?);
    ensure!(tensors <= MOST_TENSORS, "it is said to have {tensors} tensors; expected at most {MOST_TENSORS}");
    let mut keys = BTreeSet::new();
    for _ in 0..entries {
        let key = header.text()?;
        let kind = header.u32()?;
        if key == "general.alignment" {
            header.alignment(kind)?;
        } else {
            header.skip_value(kind, 0).with_context(|| format!("`{key}`"))?;
        }
        ensure!(keys.insert(key.clone()), "`{key}` is there twice");
    }
    let mut names = BTreeSet::new();
    for _ in 0..tensors {
        let name = header.text()?;
        header.tensor(&name).with_context(|| format!("the tensor `{name}`"))?;
        ensure!(names.insert(name.clone()), "the tensor `{name}` is there twice");
    }
    Ok(header.unsupported.map(|(name, kind)| {
        let called = OTHERS.iter().find(|(number, _)| *number == kind).map_or("unknown", |(_, called)| *called);
        format!(
            "the tensor `{name}` is of the type {called} ({kind}), which is not supported; use a file whose tensors are \
             F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or Q2_K to Q6_K, or the model's folder of safetensors"
        )
    }))
}

impl<R: BufRead> Header<R> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).context("it ends in the middle of its header")?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn count(&mut self) -> Result<u64> {
        match self.count_bytes {
            4 => self.u32().map(u64::from),
            _ => Ok(u64::from_le_bytes(self.bytes()?)),
        }
    }

    fn text(&mut self) -> Result<String> {
        let length = self.text_length()?;
        let mut bytes = Vec::new();
        (&mut self.reader).take(length).read_to_end(&mut bytes)?;
        ensure!(bytes.len() as u64 == length, "it ends in the middle of its header");
        // As candle has them, so that names are compared that are the same to it.
        Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_string())
    }

    fn text_length(&mut self) -> Result<u64> {
        let length = self.count()?;
        self.text = self.text.saturating_add(length);
        ensure!(self.text <= MOST_TEXT, "it is said to have more than {MOST_TEXT} bytes of text in its header");
        Ok(length)
    }

    fn skip(&mut self, bytes: u64) -> Result<()> {
        let skipped = std::io::copy(&mut (&mut self.reader).take(bytes), &mut std::io::sink())?;
        ensure!(skipped == bytes, "it ends in the middle of its header");
        Ok(())
    }

    fn skip_value(&mut self, kind: u32, depth: usize) -> Result<()> {
        match kind {
            0 | 1 | 7 => self.skip(1),
            2 | 3 => self.skip(2),
            4..=6 => self.skip(4),
            10..=12 => self.skip(8),
            8 => {
                let length = self.text_length()?;
                self.skip(length)
            }
            9 => {
                ensure!(depth < MOST_DEPTH, "lists nest deeper than {MOST_DEPTH} levels");
                let kind = self.u32()?;
                let count = self.count()?;
                self.values = self.values.saturating_add(count);
                ensure!(self.values <= MOST_VALUES, "lists have more than {MOST_VALUES} values in all");
                (0..count).try_for_each(|_| self.skip_value(kind, depth + 1))
            }
            other => bail!("a value of the unknown type {other}"),
        }
    }

    /// An unsigned 32-bit number, as the format says. Tensors lie at multiples of it.
    fn alignment(&mut self, kind: u32) -> Result<()> {
        ensure!(kind == 4, "`general.alignment` is not an unsigned 32-bit number (its type is {kind})");
        let alignment = self.u32()?;
        ensure!(
            alignment.is_power_of_two() && alignment <= 1 << 20,
            "`general.alignment` is {alignment}; expected a power of two up to {}",
            1 << 20
        );
        Ok(())
    }

    fn tensor(&mut self, name: &str) -> Result<()> {
        let dimensions = self.u32()?;
        ensure!(dimensions <= 4, "it has {dimensions} dimensions; expected at most 4");
        let mut elements = 1u64;
        for _ in 0..dimensions {
            let size = self.count()?;
            elements = elements.checked_mul(size).filter(|&n| n < 1 << 48).context("its size is out of range")?;
        }
        let kind = self.u32()?;
        if !SUPPORTED.contains(&kind) {
            ensure!(kind < 1000, "its type {kind} is not known");
            self.unsupported.get_or_insert((name.to_string(), kind));
        }
        self.skip(8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    fn file(entries: &[Vec<u8>], tensors: &[Vec<u8>]) -> Vec<u8> {
        let counts = [tensors.len() as u64, entries.len() as u64].map(u64::to_le_bytes).concat();
        [b"GGUF".to_vec(), 3u32.to_le_bytes().to_vec(), counts, entries.concat(), tensors.concat()].concat()
    }

    fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        [text(key), kind.to_le_bytes().to_vec(), value.to_vec()].concat()
    }

    fn tensor(name: &str, dimensions: &[u64], kind: u32) -> Vec<u8> {
        let mut out = [text(name), (dimensions.len() as u32).to_le_bytes().to_vec()].concat();
        dimensions.iter().for_each(|d| out.extend(d.to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend(0u64.to_le_bytes());
        out
    }

    #[track_caller]
    fn assert_refused(bytes: &[u8], words: &str) {
        let error = format!("{:#}", check(bytes).unwrap_err());
        assert!(error.contains(words), "`{words}` is not in: {error}");
    }

    #[test]
    fn alignments_that_are_none_are_refused() {
        let of = |value: u32| file(&[entry("general.alignment", 4, &value.to_le_bytes())], &[]);
        check(&of(32)[..]).unwrap();
        for value in [0, 24, u32::MAX] {
            assert_refused(&of(value), &format!("`general.alignment` is {value}"));
        }
        assert_refused(&file(&[entry("general.alignment", 10, &32u64.to_le_bytes())], &[]), "not an unsigned 32-bit");
        assert_refused(&file(&[entry("general.alignment", 8, &text("32"))], &[]), "not an unsigned 32-bit");
    }

    #[test]
    fn what_is_there_twice_is_refused() {
        let number = |n: u8| entry("a.b", 0, &[n]);
        assert_refused(&file(&[number(1), number(1)], &[]), "`a.b` is there twice");
        let tensor = |name: &str| tensor(name, &[4], 0);
        assert_refused(&file(&[], &[tensor("t"), tensor("u"), tensor("t\0")]), "the tensor `t` is there twice");
    }

    #[test]
    fn lists_texts_and_sizes_have_limits() {
        let list = |kind: u32, count: u64, rest: &[u8]| [&kind.to_le_bytes()[..], &count.to_le_bytes(), rest].concat();
        assert_refused(&file(&[entry("a", 9, &list(0, 1 << 30, &[]))], &[]), "more than 4194304 values");
        let mut nested = list(0, 1, &[7]);
        for _ in 0..10 {
            nested = list(9, 1, &nested);
        }
        assert_refused(&file(&[entry("a", 9, &nested)], &[]), "nest deeper");
        assert_refused(&file(&[entry("a", 8, &u64::MAX.to_le_bytes())], &[]), "bytes of text");
        assert_refused(&file(&[], &[tensor("t", &[1 << 32, 1 << 32], 0)]), "out of range");
        assert_refused(&file(&[], &[tensor("t", &[1; 5], 0)]), "5 dimensions");
    }

    #[test]
    fn a_type_that_is_not_supported_is_named() {
        let said = |kind: u32| check(&file(&[], &[tensor("blk.0.w", &[4], kind), tensor("b", &[4], 0)])[..]).unwrap();
        assert_eq!(said(30), None);
        for (kind, name) in [(20, "IQ4_NL"), (39, "MXFP4"), (15, "Q8_K"), (99, "unknown")] {
            let said = said(kind).unwrap();
            assert!(said.contains(&format!("`blk.0.w` is of the type {name} ({kind})")), "{said}");
        }
        assert_refused(&file(&[], &[tensor("t", &[4], u32::MAX)]), "is not known");
    }
}
