//! A generated prompt set: indirect object identification. "When Mary and John went to the park, John gave a ball to"
//! is continued by " Mary": the model must find the name that occurs only once.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Serialize;

/// One prompt, as a line of the file that `corpus.mode = "prompts"` reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Prompt {
    pub text: String,
    /// The name that comes once, with the space before it.
    pub answer: String,
    /// The name that comes twice.
    pub wrong: String,
    /// Whether the answer is the first name of the prompt.
    pub answer_first: bool,
    /// Which sentence, from 0.
    pub template: usize,
}

/// {A} and {B} are the two names in their first order, {S} the one that gives.
const TEMPLATES: [&str; 6] = [
    "When {A} and {B} went to the {place}, {S} gave {thing} to",
    "After {A} and {B} met at the {place}, {S} handed {thing} to",
    "While {A} and {B} were at the {place}, {S} showed {thing} to",
    "{A} and {B} had a long talk at the {place}. Then {S} passed {thing} to",
    "Yesterday {A} and {B} stayed late at the {place}, and {S} sold {thing} to",
    "At the {place}, {A} and {B} said hello before {S} brought {thing} to",
];

/// Names that are one token, with the space before them, in the vocabularies of the models of the paper.
const NAMES: [&str; 24] = [
    "Mary", "John", "Tom", "James", "Sarah", "Anna", "Peter", "Paul", "Mark", "Jack", "Alice", "Emma", "David",
    "Daniel", "Michael", "Robert", "Laura", "Jane", "Kate", "Lisa", "Martin", "George", "Henry", "Simon",
];

const PLACES: [&str; 8] = ["park", "school", "store", "station", "office", "house", "market", "hospital"];
const THINGS: [&str; 8] = ["a book", "a ball", "a letter", "a drink", "a ring", "the key", "the map", "the newspaper"];

/// `count` prompts. Half of them have the answer first and half second, so that neither place gives it away.
#[expect(clippy::indexing_slicing, reason = "`pick` gives places of the lists that it is asked for")]
pub fn prompts(count: usize, seed: u64) -> Vec<Prompt> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut pick = |n: usize| (random.next_u64() % n as u64) as usize;
    (0..count)
        .map(|i| {
            let template = pick(TEMPLATES.len());
            let first = pick(NAMES.len());
            let second = (first + 1 + pick(NAMES.len() - 1)) % NAMES.len();
            let answer_first = i % 2 == 0;
            let (answer, wrong) = if answer_first { (first, second) } else { (second, first) };
            let text = TEMPLATES[template]
                .replace("{A}", NAMES[first])
                .replace("{B}", NAMES[second])
                .replace("{S}", NAMES[wrong])
                .replace("{place}", PLACES[pick(PLACES.len())])
                .replace("{thing}", THINGS[pick(THINGS.len())]);
            let name = |i: usize| format!(" {}", NAMES[i]);
            Prompt { text, answer: name(answer), wrong: name(wrong), answer_first, template }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wrong_name_comes_twice_and_the_answer_once_in_either_place() {
        let prompts = prompts(400, 1);
        for p in &prompts {
            assert_eq!(p.text.matches(p.wrong.trim()).count(), 2, "{p:?}");
            assert_eq!(p.text.matches(p.answer.trim()).count(), 1, "{p:?}");
            let place = |name: &str| p.text.find(name.trim()).unwrap();
            assert_eq!(p.answer_first, place(&p.answer) < place(&p.wrong), "{p:?}");
            assert!(!p.text.contains('{') && !p.text.ends_with(' '), "{p:?}");
        }
        assert_eq!(prompts.iter().filter(|p| p.answer_first).count(), 200);
        assert_eq!(prompts, super::prompts(400, 1));
        assert_ne!(prompts, super::prompts(400, 2));
    }
}
