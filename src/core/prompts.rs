//! Prompts: the token ids that a model reads, and the tokens whose logits are measured. Most are cut from one long
//! stream.

use std::ops::Range;

/// What a run reads, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corpus {
    pub prompts: Prompts,
    /// Of every token of every prompt, the number of its document; none of a BOS that was put before the prompt.
    pub documents: Vec<Option<u32>>,
    /// What may not be as it was meant.
    pub warnings: Vec<String>,
}

/// Prompts one after the other, of equal length or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompts {
    tokens: Vec<u32>,
    /// Where each prompt ends in `tokens`.
    ends: Vec<usize>,
    targets: Targets,
}

/// Which token's logit is measured where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// At every position but the last, the next token's.
    Next,
    /// One position a prompt.
    Answers(Vec<Answer>),
}

/// The token that is measured at one position of a prompt; with `wrong`, the difference of the two logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub position: usize,
    pub answer: u32,
    pub wrong: Option<u32>,
}

/// The tokens whose logits are measured in one prompt.
#[derive(Debug, Clone)]
pub struct TargetRow {
    /// At each position; what is outside `measured` does not count.
    pub answer: Vec<u32>,
    /// The token whose logit is subtracted, at every position.
    pub wrong: Option<u32>,
    pub measured: Range<usize>,
}

#[expect(
    clippy::indexing_slicing,
    reason = "prompts are counted by whoever asks for one, and have answers within them"
)]
impl Prompts {
    /// Prompts of equal length, whose every next token is measured. `tokens.len()` must be a multiple of `prompt_len`.
    pub fn packed(prompt_len: usize, tokens: Vec<u32>) -> Self {
        assert_eq!(tokens.len() % prompt_len, 0);
        let ends = (1..=tokens.len() / prompt_len).map(|p| p * prompt_len).collect();
        Self { tokens, ends, targets: Targets::Next }
    }

    /// Prompts with an answer each.
    pub fn with_answers(prompts: impl IntoIterator<Item = (Vec<u32>, Answer)>) -> Self {
        let (mut tokens, mut ends, mut answers) = (vec![], vec![], vec![]);
        for (prompt, answer) in prompts {
            assert!(answer.position < prompt.len());
            tokens.extend(prompt);
            ends.push(tokens.len());
            answers.push(answer);
        }
        Self { tokens, ends, targets: Targets::Answers(answers) }
    }

    pub fn count(&self) -> usize {
        self.ends.len()
    }

    pub fn prompt(&self, p: usize) -> &[u32] {
        &self.tokens[if p == 0 { 0 } else { self.ends[p - 1] }..self.ends[p]]
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u32]> {
        (0..self.count()).map(|p| self.prompt(p))
    }

    /// Tokens of all prompts.
    pub fn tokens(&self) -> usize {
        self.tokens.len()
    }

    pub fn longest(&self) -> usize {
        self.iter().map(<[u32]>::len).max().unwrap_or(0)
    }

    pub fn targets(&self) -> &Targets {
        &self.targets
    }

    /// The answer of a prompt, if this is a prompt set.
    pub fn answer(&self, p: usize) -> Option<&Answer> {
        match &self.targets {
            Targets::Next => None,
            Targets::Answers(answers) => Some(&answers[p]),
        }
    }

    /// Positions of a prompt whose target is measured.
    pub fn measured(&self, p: usize) -> Range<usize> {
        match &self.targets {
            Targets::Next => 0..self.prompt(p).len() - 1,
            Targets::Answers(answers) => answers[p].position..answers[p].position + 1,
        }
    }

    /// Measured positions of all prompts.
    pub fn measured_tokens(&self) -> usize {
        (0..self.count()).map(|p| self.measured(p).len()).sum()
    }

    /// The part of a prompt that an ablated run needs: nothing depends on what follows the last measured position, but
    /// prompts of a set keep their length, so that equal ones can be run together.
    pub fn needed(&self, p: usize) -> &[u32] {
        let prompt = self.prompt(p);
        match &self.targets {
            Targets::Next => &prompt[..prompt.len() - 1],
            Targets::Answers(_) => prompt,
        }
    }

    /// The targets of the first `length` positions of a prompt.
    pub fn target_row(&self, p: usize, length: usize) -> TargetRow {
        let prompt = self.prompt(p);
        let measured = self.measured(p);
        let measured = measured.start..measured.end.min(length);
        match &self.targets {
            // The last position has no next token; what stands there is not measured.
            Targets::Next => {
                let answer = prompt[1..].iter().copied().chain([0]).take(length).collect();
                TargetRow { answer, wrong: None, measured }
            }
            Targets::Answers(answers) => {
                TargetRow { answer: vec![answers[p].answer; length], wrong: answers[p].wrong, measured }
            }
        }
    }

    /// `prompts` in groups of equal length, each group in their order.
    pub fn by_length(&self, prompts: &[usize]) -> Vec<Vec<usize>> {
        let mut groups: std::collections::BTreeMap<usize, Vec<usize>> = Default::default();
        for &p in prompts {
            groups.entry(self.prompt(p).len()).or_default().push(p);
        }
        groups.into_values().collect()
    }
}

/// Documents joined into one stream of tokens.
#[derive(Default)]
pub struct Stream {
    tokens: Vec<u32>,
    /// Where each token comes from.
    documents: Vec<u32>,
}

impl Stream {
    pub fn tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Adds tokens of a document, or more of them. The separator between two documents is part of the first.
    pub fn push(&mut self, document: u32, tokens: &[u32], separator: u32) {
        if let Some(&last) = self.documents.last()
            && last != document
        {
            self.tokens.push(separator);
            self.documents.push(last);
        }
        self.tokens.extend_from_slice(tokens);
        self.documents.resize(self.tokens.len(), document);
    }

    /// Cuts the stream into at most `most` prompts of `prompt_len` tokens, each opened by `bos` if given; the rest is
    /// dropped.
    pub fn pack(&self, prompt_len: usize, bos: Option<u32>, most: usize) -> Corpus {
        let run = prompt_len - usize::from(bos.is_some());
        let (mut tokens, mut documents) = (Vec::new(), Vec::new());
        let chunks = self.tokens.chunks_exact(run).zip(self.documents.chunks_exact(run));
        for (chunk, of) in chunks.take(most) {
            tokens.extend(bos);
            documents.extend(bos.map(|_| None));
            tokens.extend_from_slice(chunk);
            documents.extend(of.iter().copied().map(Some));
        }
        Corpus { prompts: Prompts::packed(prompt_len, tokens), documents, warnings: vec![] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bos_opens_every_prompt_and_the_remainder_is_dropped() {
        let mut stream = Stream::default();
        stream.push(0, &[1, 2, 3, 4, 5, 6, 7], 0);
        let packed = stream.pack(4, Some(9), 10);
        assert_eq!(packed.prompts.iter().collect::<Vec<_>>(), [[9, 1, 2, 3], [9, 4, 5, 6]]);
        let packed = stream.pack(3, None, 1);
        assert_eq!(packed.prompts.iter().collect::<Vec<_>>(), [[1, 2, 3]]);
    }

    #[test]
    fn every_token_knows_its_document_and_a_separator_the_one_before() {
        let mut stream = Stream::default();
        stream.push(0, &[1, 2], 8);
        stream.push(3, &[4], 8);
        stream.push(4, &[5], 8);
        stream.push(4, &[6], 8);
        let packed = stream.pack(4, Some(9), 10);
        assert_eq!(packed.prompts.iter().collect::<Vec<_>>(), [[9, 1, 2, 8], [9, 4, 8, 5]]);
        let expected = [None, Some(0), Some(0), Some(0), None, Some(3), Some(3), Some(4)];
        assert_eq!(packed.documents, expected);
    }

    proptest! {
        #[test]
        fn packing_keeps_the_stream_in_order(
            stream in proptest::collection::vec(0u32..1000, 0..400), len in 2usize..40, bos: bool, most in 0usize..20
        ) {
            let mut joined = Stream::default();
            joined.push(0, &stream, 0);
            let prompts = joined.pack(len, bos.then_some(7777), most).prompts;
            let run = len - usize::from(bos);
            prop_assert_eq!(prompts.count(), (stream.len() / run).min(most));
            let mut joined = Vec::new();
            for prompt in prompts.iter() {
                prop_assert_eq!(prompt.len(), len);
                prop_assert!(!bos || prompt[0] == 7777);
                joined.extend_from_slice(&prompt[usize::from(bos)..]);
            }
            prop_assert_eq!(&joined[..], &stream[..prompts.count() * run]);
        }
    }
}
