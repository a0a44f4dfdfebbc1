//! Additions to the stream (`[iterative]`): what a request asks for, and what of it is missing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Additions on the prompts `first … prompts − 1`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Additions {
    #[serde(default)]
    pub first: usize,
    /// The prompt after the last.
    pub prompts: usize,
    /// Ascending.
    pub multiples: Vec<f64>,
    /// Heads whose output is added before every block at their top tokens (`stream_additions`), by name, in the order of the
    /// tables.
    pub heads: Vec<String>,
    /// Whether every head's output is added to its own input (`self_additions`).
    #[serde(default = "yes")]
    pub own: bool,
    /// Whether the outputs of heads are compared (`head_similarity`), on all prompts before `prompts`.
    #[serde(default = "yes")]
    pub similarity: bool,
}

fn yes() -> bool {
    true
}

impl Additions {
    /// Everything on the first prompts.
    pub fn on(prompts: usize, mut multiples: Vec<f64>, heads: Vec<String>) -> Self {
        multiples.sort_by(f64::total_cmp);
        multiples.dedup();
        Self { first: 0, prompts, multiples, heads, own: true, similarity: true }
    }

    /// The same on the prompts before.
    pub fn before(&self) -> Self {
        Self { first: 0, prompts: self.first, similarity: false, ..self.clone() }
    }

    /// Prompts whose outputs are compared; 0 if none are.
    pub fn compared_prompts(&self) -> usize {
        if self.similarity { self.prompts } else { 0 }
    }

    /// Without the comparison of outputs; nothing if there is nothing else.
    pub fn without_similarity(mut self) -> Option<Self> {
        self.similarity = false;
        (!self.multiples.is_empty() && (self.own || !self.heads.is_empty())).then_some(self)
    }

    fn has(&self, multiple: f64, target: Option<&String>) -> bool {
        let is_measured = target.map_or(self.own, |head| self.heads.contains(head));
        is_measured && self.multiples.contains(&multiple)
    }
}

/// How many prompts, from the first on, have the additions of a multiple: of one head's output to the stream, or (`None`)
/// of every head's to its own input.
fn prompts_with(have: &[Additions], multiple: f64, head: Option<&String>) -> usize {
    let mut parts: Vec<&Additions> = have.iter().filter(|part| part.has(multiple, head)).collect();
    parts.sort_by_key(|part| part.first);
    parts.iter().fold(0, |end, part| if part.first <= end { end.max(part.prompts) } else { end })
}

/// The most prompts on which outputs were compared.
pub fn compared_prompts(have: &[Additions]) -> usize {
    have.iter().map(Additions::compared_prompts).max().unwrap_or(0)
}

/// What is wanted and not there, in parts that do not overlap, by their first prompt. Outputs are compared again on all
/// prompts if there are more than before.
pub fn missing(have: &[Additions], wanted: &Additions) -> Vec<Additions> {
    // By first prompt, `own` and heads: the multiples that lack them.
    let mut lacking: BTreeMap<(usize, bool, Vec<String>), Vec<f64>> = BTreeMap::new();
    for &multiple in &wanted.multiples {
        let mut by_first: BTreeMap<usize, (bool, Vec<String>)> = BTreeMap::new();
        let targets = wanted.own.then_some(None).into_iter().chain(wanted.heads.iter().map(Some));
        for target in targets {
            let first = prompts_with(have, multiple, target).max(wanted.first);
            if first < wanted.prompts {
                let (own, heads) = by_first.entry(first).or_default();
                target.map_or_else(|| *own = true, |head| heads.push(head.clone()));
            }
        }
        for (first, (own, heads)) in by_first {
            lacking.entry((first, own, heads)).or_default().push(multiple);
        }
    }
    let part = |((first, own, heads), multiples)| Additions {
        first,
        own,
        heads,
        multiples,
        prompts: wanted.prompts,
        similarity: false,
    };
    let mut parts: Vec<Additions> = lacking.into_iter().map(part).collect();
    if wanted.compared_prompts() > compared_prompts(have) {
        match parts.first_mut().filter(|part| part.first == 0) {
            Some(part) => part.similarity = true,
            None => parts.push(Additions { similarity: true, ..Additions::on(wanted.prompts, vec![], vec![]) }),
        }
    }
    parts
}

/// In words: `additions of 1, 3 times a head's output on 4 prompts`, one line per number of prompts.
pub fn lines(parts: &[Additions]) -> Vec<String> {
    let mut by_prompts: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    let mut multiples: Vec<f64> = parts.iter().flat_map(|part| part.multiples.clone()).collect();
    multiples.sort_by(f64::total_cmp);
    multiples.dedup();
    for multiple in multiples {
        let having = || parts.iter().filter(|part| part.multiples.contains(&multiple));
        let first = having().map(|part| part.first).min().unwrap_or(0);
        let end = having().map(|part| part.prompts).max().unwrap_or(0);
        by_prompts.entry(end - first).or_default().push(multiple);
    }
    let line = |(prompts, multiples): (usize, Vec<f64>)| {
        let multiples: Vec<String> = multiples.iter().map(f64::to_string).collect();
        format!("additions of {} times a head's output on {prompts} prompts", multiples.join(", "))
    };
    let mut lines: Vec<String> = by_prompts.into_iter().map(line).collect();
    let compared = compared_prompts(parts);
    if lines.is_empty() && compared > 0 {
        lines.push(format!("outputs of heads compared on {compared} prompts"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(prompts: usize, multiples: &[f64], heads: &[&str]) -> Additions {
        Additions::on(prompts, multiples.to_vec(), heads.iter().map(|h| h.to_string()).collect())
    }

    #[test]
    fn all_of_a_first_request_is_one_part() {
        let wanted = of(4, &[3.0, 1.0, 3.0], &["L1H0"]);
        assert_eq!(wanted.multiples, [1.0, 3.0]);
        assert_eq!(missing(&[], &wanted), std::slice::from_ref(&wanted));
        assert_eq!(missing(std::slice::from_ref(&wanted), &of(2, &[3.0], &[])), []);
        // Without ablated heads and multiples, outputs are compared all the same.
        assert_eq!(missing(&[], &of(2, &[], &[])).len(), 1);
    }

    #[test]
    fn only_what_is_missing_is_asked_for() {
        let first = of(4, &[1.0], &["L1H0"]);
        let part = |first, prompts, multiples: &[f64], heads: &[&str], own, similarity| Additions {
            first,
            own,
            similarity,
            ..of(prompts, multiples, heads)
        };
        let have = [first];
        // A multiple more.
        let lacks = missing(&have, &of(4, &[1.0, 3.0], &["L1H0"]));
        assert_eq!(lacks, [part(0, 4, &[3.0], &["L1H0"], true, false)]);
        // A head more.
        let lacks = missing(&have, &of(4, &[1.0], &["L1H0", "L2H1"]));
        assert_eq!(lacks, [part(0, 4, &[1.0], &["L2H1"], false, false)]);
        // Two prompts more: outputs are compared again, on all of them.
        let lacks = missing(&have, &of(6, &[1.0], &["L1H0"]));
        assert_eq!(lacks, [part(4, 6, &[1.0], &["L1H0"], true, false), part(0, 6, &[], &[], true, true)]);
        // Everything at once, in parts that do not overlap and make up the whole.
        let wanted = of(6, &[1.0, 3.0], &["L1H0", "L2H1"]);
        let lacks = missing(&have, &wanted);
        let expected = [
            part(0, 6, &[1.0], &["L2H1"], false, true),
            part(0, 6, &[3.0], &["L1H0", "L2H1"], true, false),
            part(4, 6, &[1.0], &["L1H0"], true, false),
        ];
        assert_eq!(lacks, expected);
        let all: Vec<Additions> = have.into_iter().chain(lacks).collect();
        assert_eq!(missing(&all, &wanted), []);
        assert_eq!(missing(&all[1..], &of(4, &[1.0], &["L1H0"]))[0], part(0, 4, &[1.0], &["L1H0"], true, false));
    }

    #[test]
    fn additions_are_said_in_words() {
        let part = Additions { first: 4, ..of(6, &[0.5, 1.0], &[]) };
        let all = [of(4, &[0.5, 1.0, 3.0], &[]), part];
        let of = |multiples: &str, n: usize| format!("additions of {multiples} times a head's output on {n} prompts");
        assert_eq!(lines(&all[1..]), [of("0.5, 1", 2)]);
        assert_eq!(lines(&all), [of("3", 4), of("0.5, 1", 6)]);
        let compared = Additions { multiples: vec![], ..all[0].clone() };
        assert_eq!(lines(&[compared]), ["outputs of heads compared on 4 prompts"]);
    }

    #[test]
    fn a_record_of_an_earlier_program_has_everything() {
        let read: Additions = serde_json::from_str(r#"{"prompts": 4, "multiples": [1.0], "heads": ["L1H0"]}"#).unwrap();
        assert_eq!(read, of(4, &[1.0], &["L1H0"]));
    }
}
