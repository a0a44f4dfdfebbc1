//! Which shards of a run a process computes (`--shard i/n`).

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};

/// The shards that one of `count` processes takes: every `count`-th.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardSet {
    /// From 0.
    index: usize,
    count: usize,
}

impl ShardSet {
    pub const ALL: Self = Self { index: 0, count: 1 };

    pub fn contains(self, shard: usize) -> bool {
        shard % self.count == self.index
    }

    /// The set of the same division that a shard is in.
    pub fn holding(self, shard: usize) -> Self {
        Self { index: shard % self.count, ..self }
    }

    /// `2-of-4`, for file names.
    pub fn name(self) -> String {
        format!("{}-of-{}", self.index + 1, self.count)
    }
}

impl fmt::Display for ShardSet {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.count)
    }
}

impl FromStr for ShardSet {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((i, count)) if (1..=count).contains(&i) => Ok(Self { index: i - 1, count }),
            _ => bail!("`{text}` is not a shard set: expected i/n with i from 1 to n, such as 1/4"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_divide_the_shards() {
        let sets: Vec<ShardSet> = (1..=3).map(|i| format!("{i}/3").parse().unwrap()).collect();
        for shard in 0..10 {
            assert_eq!(sets.iter().filter(|s| s.contains(shard)).count(), 1);
            assert!(sets[0].holding(shard).contains(shard));
        }
        assert_eq!((sets[1].to_string(), sets[1].name()), ("2/3".into(), "2-of-3".into()));
        for wrong in ["0/3", "4/3", "1/0", "3", "a/b", "-1/2"] {
            assert!(wrong.parse::<ShardSet>().is_err(), "{wrong}");
        }
    }
}
