//! Cutting one long stream of tokens into prompts of equal length.

/// Prompts of equal length, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompts {
    pub prompt_len: usize,
    tokens: Vec<u32>,
}

impl Prompts {
    /// `tokens.len()` must be a multiple of `prompt_len`.
    pub fn new(prompt_len: usize, tokens: Vec<u32>) -> Self {
        assert_eq!(tokens.len() % prompt_len, 0);
        Self { prompt_len, tokens }
    }

    pub fn count(&self) -> usize {
        self.tokens.len() / self.prompt_len
    }

    pub fn prompt(&self, p: usize) -> &[u32] {
        &self.tokens[p * self.prompt_len..(p + 1) * self.prompt_len]
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u32]> {
        self.tokens.chunks_exact(self.prompt_len)
    }

    /// Positions with a target in one prompt: all but the last.
    pub fn measured_positions(&self) -> usize {
        self.prompt_len - 1
    }
}

/// Cuts `stream` into at most `most` prompts of `prompt_len` tokens, each opened by `bos` if given; the rest is
/// dropped.
pub fn pack(stream: &[u32], prompt_len: usize, bos: Option<u32>, most: usize) -> Prompts {
    let run = prompt_len - usize::from(bos.is_some());
    let mut tokens = Vec::new();
    for chunk in stream.chunks_exact(run).take(most) {
        tokens.extend(bos);
        tokens.extend_from_slice(chunk);
    }
    Prompts::new(prompt_len, tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bos_opens_every_prompt_and_the_remainder_is_dropped() {
        let prompts = pack(&[1, 2, 3, 4, 5, 6, 7], 4, Some(9), 10);
        assert_eq!(prompts.iter().collect::<Vec<_>>(), [[9, 1, 2, 3], [9, 4, 5, 6]]);
        let prompts = pack(&[1, 2, 3, 4, 5, 6, 7], 3, None, 1);
        assert_eq!(prompts.iter().collect::<Vec<_>>(), [[1, 2, 3]]);
    }

    proptest! {
        #[test]
        fn packing_keeps_the_stream_in_order(
            stream in proptest::collection::vec(0u32..1000, 0..400), len in 2usize..40, bos: bool, most in 0usize..20
        ) {
            let prompts = pack(&stream, len, bos.then_some(7777), most);
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
