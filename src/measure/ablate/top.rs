//! Each component's top tokens: those on which its clean direct effect is highest. They are known before anything is
//! ablated, so that expensive details are kept for them only.

use std::cmp::Ordering;
use std::iter::repeat_n;

use anyhow::{Result, ensure};
use arrow::array::ArrayRef;
use arrow::datatypes::{Float32Type, Int32Type};
use arrow::record_batch::RecordBatch;
use selfrepair_core::columns::{self, numbers};
use selfrepair_core::components::{Ablatable, Component};
use selfrepair_core::prompts::Prompts;
use selfrepair_core::sink::Part;
use selfrepair_core::tables::{DIRECT_EFFECTS, TOP_TOKENS};

use crate::{MeasureContext, trace};

/// A measured token and a component's direct effect there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TopToken {
    pub prompt: u32,
    pub position: u32,
    pub direct_effect: f32,
}

/// Highest direct effect first, ties in the order of the corpus.
fn order(a: &TopToken, b: &TopToken) -> Ordering {
    b.direct_effect.total_cmp(&a.direct_effect).then((a.prompt, a.position).cmp(&(b.prompt, b.position)))
}

pub struct TopTokens {
    /// By component, in the order of their rank.
    ranked: Vec<Vec<TopToken>>,
    /// By component, (prompt, position, rank) sorted.
    by_place: Vec<Vec<(u32, u32, u32)>>,
}

impl TopTokens {
    /// Reads the direct effects that `trace` wrote, a batch at a time; memory holds little more than the result.
    pub fn find(context: &MeasureContext, prompts: &Prompts) -> Result<Self> {
        let measured = prompts.measured_tokens();
        let count = ((context.config.analysis.top_fraction * measured as f64) as usize).max(1);
        let mut best = vec![Best::new(count); context.piece.components().len()];
        let seen = read_effects(context, &mut best)?;
        ensure!(seen == measured, "direct_effects has {seen} tokens, but the corpus has {measured}; run with --fresh");
        let ranked: Vec<_> = best.into_iter().map(Best::ranked).collect();
        let is_measured = |t: &TopToken| {
            let prompt = t.prompt as usize;
            prompt < prompts.count() && prompts.measured(prompt).contains(&(t.position as usize))
        };
        ensure!(
            ranked.iter().flatten().all(is_measured),
            "direct_effects has a token that the corpus does not have; run with --fresh"
        );
        Ok(Self::new(ranked))
    }

    fn new(ranked: Vec<Vec<TopToken>>) -> Self {
        let sorted = |tokens: &Vec<TopToken>| {
            let mut places: Vec<_> =
                tokens.iter().enumerate().map(|(rank, t)| (t.prompt, t.position, rank as u32)).collect();
            places.sort_unstable();
            places
        };
        Self { by_place: ranked.iter().map(sorted).collect(), ranked }
    }

    /// (position, rank) of a component's top tokens in a prompt, in order of position.
    pub fn in_prompt(&self, component: usize, prompt: usize) -> impl Iterator<Item = (usize, usize)> {
        let places = &self.by_place[component];
        let start = places.partition_point(|t| (t.0 as usize) < prompt);
        let rest = places[start..].iter().take_while(move |t| t.0 as usize == prompt);
        rest.map(|&(_, position, rank)| (position as usize, rank as usize))
    }

    /// How many top tokens each component has.
    pub fn count(&self) -> usize {
        self.ranked.first().map_or(0, Vec::len)
    }

    pub fn write(&self, context: &MeasureContext) -> Result<()> {
        if context.sink.has(&TOP_TOKENS, Part::Whole) {
            return Ok(());
        }
        let mut writer = context.sink.open(&TOP_TOKENS, Part::Whole, TOP_TOKENS.schema(), 1)?;
        for (component, tokens) in context.piece.components().iter().zip(&self.ranked) {
            let n = tokens.len();
            let columns: Vec<ArrayRef> = vec![
                columns::texts(repeat_n(component.component.name(), n)),
                columns::names(repeat_n(component.name(), n)),
                columns::keys(repeat_n(component.layer, n)),
                columns::keys_or_null(repeat_n(component.head, n)),
                columns::keys(1..=n),
                columns::keys(tokens.iter().map(|t| t.prompt as usize)),
                columns::keys(tokens.iter().map(|t| t.position as usize)),
                columns::floats(tokens.iter().map(|t| t.direct_effect)),
            ];
            writer.write(&RecordBatch::try_new(TOP_TOKENS.schema(), columns)?)?;
        }
        writer.finish()
    }
}

/// The best tokens so far; twice as many as wanted are kept before the worse half is dropped.
#[derive(Clone)]
struct Best {
    count: usize,
    tokens: Vec<TopToken>,
}

impl Best {
    fn new(count: usize) -> Self {
        Self { count, tokens: Vec::new() }
    }

    fn add(&mut self, token: TopToken) {
        self.tokens.push(token);
        if self.tokens.len() >= 2 * self.count + 64 {
            self.tokens.select_nth_unstable_by(self.count - 1, order);
            self.tokens.truncate(self.count);
        }
    }

    fn ranked(mut self) -> Vec<TopToken> {
        self.tokens.sort_unstable_by(order);
        self.tokens.truncate(self.count);
        self.tokens
    }
}

/// Adds every token of `direct_effects` and returns how many there were.
fn read_effects(context: &MeasureContext, best: &mut [Best]) -> Result<usize> {
    let a = context.architecture;
    let biases = if a.has_attention_bias() { a.layers } else { 0 };
    let components_of_token = trace::component_keys(a.layers, a.heads, biases).len();
    let columns = ["prompt", "position", "direct_effect"];
    let mut tokens = 0;
    for batch in context.sink.read(&DIRECT_EFFECTS, None, &columns, 64 * components_of_token)? {
        let batch = batch?;
        let (prompts, positions) =
            (numbers::<Int32Type>(&batch, 0)?.values(), numbers::<Int32Type>(&batch, 1)?.values());
        let effects = numbers::<Float32Type>(&batch, 2)?.values();
        ensure!(effects.len() % components_of_token == 0, "direct_effects has a token with missing components");
        for (i, effects) in effects.chunks_exact(components_of_token).enumerate() {
            let row = i * components_of_token;
            let token = |direct_effect| TopToken {
                prompt: prompts[row] as u32,
                position: positions[row] as u32,
                direct_effect,
            };
            for (best, c) in best.iter_mut().zip(context.piece.components()) {
                best.add(token(effect_of(c, effects, a.layers, a.heads, biases)));
            }
            tokens += 1;
        }
    }
    Ok(tokens)
}

/// A component's direct effect from those of a token in the order of `trace::component_keys`.
fn effect_of(c: &Ablatable, effects: &[f32], layers: usize, heads: usize, biases: usize) -> f32 {
    let (bias, rest) = effects.split_at(biases);
    let (all_heads, mlps) = rest[2..].split_at(layers * heads);
    let attention = || {
        let heads = all_heads[c.layer * heads..(c.layer + 1) * heads].iter();
        heads.chain(bias.get(c.layer)).map(|&v| f64::from(v)).sum::<f64>()
    };
    match (c.component, c.head) {
        (Component::Mlp, _) => mlps[c.layer],
        (Component::Block, _) => (attention() + f64::from(mlps[c.layer])) as f32,
        (_, Some(head)) => all_heads[c.layer * heads + head],
        (_, None) => attention() as f32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_are_kept_in_order_and_ties_go_to_the_first() {
        let mut best = Best::new(3);
        for i in 0..1000u32 {
            let direct_effect = [1.0, 5.0, 5.0, 2.0][i as usize % 4];
            best.add(TopToken { prompt: i, position: 0, direct_effect });
        }
        assert_eq!(best.ranked().iter().map(|t| t.prompt).collect::<Vec<_>>(), [1, 2, 5]);
    }

    #[test]
    fn effects_are_found_by_component() {
        // Two layers of two heads with biases: biases 1, 2; constant, embed; heads 10 to 13; MLPs 20, 21.
        let effects = [1.0, 2.0, 0.5, 0.5, 10.0, 11.0, 12.0, 13.0, 20.0, 21.0];
        let of = |component, head| effect_of(&Ablatable { component, layer: 1, head }, &effects, 2, 2, 2);
        assert_eq!(of(Component::Head, Some(1)), 13.0);
        assert_eq!(of(Component::Attention, None), 2.0 + 12.0 + 13.0);
        assert_eq!(of(Component::Mlp, None), 21.0);
        assert_eq!(of(Component::Block, None), 48.0);
    }

    #[test]
    fn a_prompt_finds_its_top_tokens() {
        let token = |prompt, position| TopToken { prompt, position, direct_effect: 0.0 };
        let top = TopTokens::new(vec![vec![token(3, 7), token(1, 2), token(3, 1)]]);
        assert_eq!(top.in_prompt(0, 3).collect::<Vec<_>>(), [(1, 2), (7, 0)]);
        assert_eq!(top.in_prompt(0, 2).count(), 0);
    }
}
