//! Upper limits of a configuration. Every number is checked before memory is allocated for it, and every key before it
//! is parsed.

use anyhow::{Result, ensure};

use super::{Config, Mode};
use crate::components::Selection;

impl Config {
    /// Every number and list has a limit, which is checked before memory is taken for any.
    pub(super) fn check_limits(&self) -> Result<()> {
        let within = |key: &str, value: usize, least: usize, most: usize| {
            ensure!((least..=most).contains(&value), "{key} is {value}; expected a number from {least} to {most}");
            Ok(())
        };
        // A prompt needs at least 2 tokens. Prompts are numbered by 32 bits.
        within("corpus.prompt_len", self.corpus.prompt_len, 2, 1 << 20)?;
        within("corpus.tokens", self.corpus.tokens, 0, 100_000_000_000)?;
        if self.corpus.mode == Mode::Packed {
            let prompts = self.corpus.tokens / self.corpus.prompt_len;
            ensure!(
                prompts < 1 << 31,
                "corpus.tokens = {} in prompts of {} makes {prompts} prompts; expected fewer than {}",
                self.corpus.tokens,
                self.corpus.prompt_len,
                1u32 << 31
            );
        }
        within("ablation.resample.samples", self.ablation.resample.samples, 1, 10_000)?;
        within("neurons.top_k", self.neurons.top_k, 1, usize::from(u16::MAX))?;
        within("iterative.prompts", self.iterative.prompts, 0, 1 << 31)?;
        within("runtime.batch", self.runtime.batch, 0, 1 << 30)?;
        let most = most_threads();
        let threads = self.runtime.threads;
        ensure!(
            threads <= most,
            "runtime.threads is {threads}; expected at most {most} on this machine, or 0 for one per core"
        );
        for (key, selection) in [
            ("ablation.heads", &self.ablation.heads),
            ("ablation.mlps", &self.ablation.mlps),
            ("ablation.attention", &self.ablation.attention),
            ("ablation.blocks", &self.ablation.blocks),
            ("neurons.layers", &self.neurons.layers),
        ] {
            if let Selection::List(list) = selection {
                check_length(key, list.len(), 0, 10_000)?;
            }
        }
        check_length("ablation.hold", self.ablation.hold.len(), 0, 1000)?;
        check_length("iterative.multiples", self.iterative.multiples.len(), 1, 100)?;
        check_length("analysis.thresholds", self.analysis.thresholds.len(), 0, 100)
    }
}

fn check_length(key: &str, length: usize, least: usize, most: usize) -> Result<()> {
    ensure!((least..=most).contains(&length), "{key} has {length} entries; expected {least} to {most}");
    Ok(())
}

/// More threads than cores are of no use. Some are allowed, for a machine whose cores cannot be counted.
fn most_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get()).saturating_mul(4).max(256)
}

/// The most bytes that a configuration may have.
pub const MOST_BYTES: u64 = 1 << 20;

/// The most parts of a key: `a.b.c` has three. Every part is a table inside another, which costs stack, and inline tables
/// can have such keys inside each other.
const MOST_PARTS: usize = 8;

/// The most parts of what could be a key if it ended otherwise: a table's header, or a text with dots in it.
const MOST_DOTS: usize = 32;

/// Refuses keys of too many parts before they are parsed. `..` counts once.
pub fn check_depth(text: &str) -> Result<()> {
    for part in text.split_inclusive(['\n', '\r', '=', ',', '[', ']', '{', '}']) {
        let most = if part.ends_with('=') { MOST_PARTS } else { MOST_DOTS };
        ensure!(
            part.split('.').filter(|part| !part.is_empty()).count() <= most,
            "`{}…` is a key of more than {most} parts",
            part.trim().chars().take(40).collect::<String>()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn numbers_and_lists_have_limits() {
        let error = |set: &str| format!("{:#}", Config::load(None, &[set.to_string()]).expect_err(set));
        for (key, values) in [
            ("corpus.prompt_len", ["0", "1", "1048577", "9223372036854775807"]),
            ("corpus.tokens", ["-1", "1e10", "100000000001", "9223372036854775807"]),
            ("ablation.resample.samples", ["0", "-1", "100000000000000", "9223372036854775807"]),
            ("neurons.top_k", ["0", "65536", "1.5", "9223372036854775807"]),
            ("iterative.prompts", ["-1", "1.0", "4294967296", "9223372036854775807"]),
            ("runtime.batch", ["-1", "'x'", "10000000000", "9223372036854775807"]),
            ("runtime.threads", ["-1", "100000", "4294967296", "9223372036854775807"]),
            ("iterative.multiples", ["[]", "[nan]", "[inf]", "[1e300]"]),
            ("analysis.thresholds", ["[nan]", "[-1.0]", "[inf]", "1"]),
            ("analysis.top_fraction", ["nan", "0.0", "1.1", "-1.0"]),
        ] {
            for value in values {
                let said = error(&format!("{key}={value}"));
                assert!(
                    said.contains(key.rsplit('.').next().unwrap()) || said.contains("invalid"),
                    "{key}={value}: {said}"
                );
            }
        }
        let long = |key: &str, count: usize| format!("{key}=[{}]", vec!["'L0H0'"; count].join(","));
        assert!(error(&long("ablation.heads", 10_001)).contains("10001 entries"));
        assert!(error(&long("ablation.hold", 1001)).contains("1001 entries"));
        let many = ["corpus.tokens=99999999999", "corpus.prompt_len=2"].map(String::from);
        assert!(format!("{:#}", Config::load(None, &many).unwrap_err()).contains("49999999999 prompts"));
    }

    #[test]
    fn keys_and_values_that_nest_are_refused_without_an_overflow() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep.toml");
        let deep = |text: String| {
            std::fs::write(&path, text).unwrap();
            format!("{:#}", Config::load(Some(&path), &[]).unwrap_err())
        };
        let dots = "a.".repeat(100_000) + "a";
        let brackets = "[".repeat(100_000);
        let both = format!("{}=", "a.".repeat(7) + "a");
        let more = format!("{}=", "a.".repeat(8) + "a");
        let unfinished = "a.".repeat(31);
        for text in [
            format!("{dots} = 1"),
            format!("[{dots}]"),
            format!("[[{dots}]]"),
            format!("x = {{ {dots} = 1 }}"),
            dots.replace('.', " . ") + "= 1",
            dots.replace('a', "\"a\""),
            format!("x = {brackets}"),
            format!("x = {}", "{a=".repeat(100_000)),
            format!("x = {}", format!("{{{both}").repeat(1000)),
            format!("x = {}1{}", format!("{{{both}").repeat(70), "}".repeat(70)),
            format!("x = {}1{}", format!("{{{more}").repeat(70), "}".repeat(70)),
            format!("x = {}1{}", format!("{{{unfinished}a,b=").repeat(70), "}".repeat(70)),
            format!("x = {}1{}", format!("{{{unfinished}").repeat(70), "}".repeat(70)),
            format!("{}\n", format!("[{unfinished}a]").repeat(1000)),
            format!("[{unfinished}a]\nx = {}1{}", format!("{{{both}").repeat(70), "}".repeat(70)),
        ] {
            assert!(deep(text.clone()).contains("deep.toml"), "{}", &text[..40]);
            let set = text.replace(" = ", "=");
            Config::load(None, &[set]).unwrap_err();
        }
        assert!(deep(format!("{dots} = 1")).contains("more than 8 parts"));
        // Dots elsewhere are no parts.
        check_depth("# ............................................................\nx = \"../../a.b.c/1.2.3/../x.y\"")
            .unwrap();
        check_depth(&format!("x = [{}]", "0.5, ".repeat(1000))).unwrap();
    }

    #[test]
    fn a_configuration_that_is_no_file_is_an_error() {
        let error = |path: &str| format!("{:#}", Config::load(Some(Path::new(path)), &[]).unwrap_err());
        assert!(error("/dev/zero").contains("a device"));
        assert!(error(env!("CARGO_MANIFEST_DIR")).contains("a folder"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large.toml");
        std::fs::write(&path, vec![b'#'; 2 << 20]).unwrap();
        assert!(error(path.to_str().unwrap()).contains("more than 1048576 bytes"));
    }
}
