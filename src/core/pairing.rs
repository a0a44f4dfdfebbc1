//! The partner of each prompt for resample ablation.

use anyhow::{Result, ensure};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// `pairings[sample][prompt]` is the partner of `prompt`.
///
/// All prompts are put in a random order on a circle, and each pairing takes the prompt a fixed number of places
/// further on, another number for each sample. So no prompt is its own partner, every prompt is a partner exactly once
/// a sample, and no prompt meets the same partner twice. The draw depends on the seed and the number of prompts only,
/// never on batches or shards.
#[expect(clippy::indexing_slicing, reason = "places on a circle of all prompts, modulo their number")]
pub fn pairings(prompts: usize, samples: usize, seed: u64) -> Result<Vec<Vec<usize>>> {
    check(prompts, samples)?;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let circle = shuffled(0..prompts, &mut random);
    let steps = shuffled(1..prompts, &mut random);
    let pairing = |step: usize| {
        let mut partner = vec![0; prompts];
        for (place, &prompt) in circle.iter().enumerate() {
            partner[prompt] = circle[(place + step) % prompts];
        }
        partner
    };
    Ok(steps.into_iter().take(samples).map(pairing).collect())
}

fn check(prompts: usize, samples: usize) -> Result<()> {
    ensure!(prompts >= 2, "resample ablation needs at least 2 prompts of equal length, not {prompts}");
    ensure!(
        samples < prompts,
        "ablation.resample.samples = {samples} needs more than {samples} prompts of equal length; there are {prompts}"
    );
    Ok(())
}

/// Pairings within each of some groups of prompts (those of equal length), as one `pairings[sample][prompt]`.
#[expect(clippy::indexing_slicing, reason = "a pairing of a group has its places, and groups share all prompts")]
pub fn pairings_within(groups: &[Vec<usize>], samples: usize, seed: u64) -> Result<Vec<Vec<usize>>> {
    ensure!(!groups.is_empty(), "resample ablation needs at least 2 prompts of equal length, not 0");
    // Before memory is taken for as many samples as were asked for.
    groups.iter().try_for_each(|group| check(group.len(), samples))?;
    let count = groups.iter().map(Vec::len).sum();
    let mut out = vec![vec![0; count]; samples];
    for group in groups {
        for (out, pairing) in out.iter_mut().zip(pairings(group.len(), samples, seed)?) {
            for (i, partner) in pairing.into_iter().enumerate() {
                out[group[i]] = group[partner];
            }
        }
    }
    Ok(out)
}

/// Sorted by a random key each: independent of how a library shuffles, so that a seed keeps its meaning.
fn shuffled(range: std::ops::Range<usize>, random: &mut ChaCha8Rng) -> Vec<usize> {
    let mut keyed: Vec<(u64, usize)> = range.map(|i| (random.next_u64(), i)).collect();
    keyed.sort_unstable();
    keyed.into_iter().map(|(_, i)| i).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_prompt_is_its_own_partner_or_meets_one_twice(prompts in 2usize..200, samples in 1usize..8, seed: u64) {
            prop_assume!(samples < prompts);
            let pairings = pairings(prompts, samples, seed).unwrap();
            prop_assert_eq!(pairings.len(), samples);
            for pairing in &pairings {
                let mut seen = pairing.clone();
                seen.sort_unstable();
                prop_assert_eq!(seen, (0..prompts).collect::<Vec<_>>(), "a pairing is a permutation");
            }
            for p in 0..prompts {
                let mut partners: Vec<usize> = pairings.iter().map(|pairing| pairing[p]).collect();
                prop_assert!(!partners.contains(&p));
                partners.sort_unstable();
                partners.dedup();
                prop_assert_eq!(partners.len(), samples);
            }
        }

        #[test]
        fn more_samples_keep_the_first_ones(prompts in 5usize..50, seed: u64) {
            let (few, many) = (pairings(prompts, 1, seed).unwrap(), pairings(prompts, 4, seed).unwrap());
            prop_assert_eq!(&few[0], &many[0]);
        }
    }

    #[test]
    fn partners_come_from_the_same_group() {
        let groups = [vec![0, 2, 4], vec![1, 3]];
        for pairing in pairings_within(&groups, 1, 3).unwrap() {
            assert!(groups.iter().all(|g| g.iter().all(|&p| g.contains(&pairing[p]) && pairing[p] != p)));
        }
        assert!(pairings_within(&[vec![0, 1], vec![2]], 1, 0).is_err());
        for samples in [1_000_000_000, usize::MAX] {
            assert!(pairings_within(&[vec![0, 1]], samples, 0).unwrap_err().to_string().contains("there are 2"));
        }
        assert!(pairings_within(&[], usize::MAX, 0).is_err());
    }

    #[test]
    fn seeds_differ_and_a_seed_keeps_its_meaning() {
        assert_ne!(pairings(50, 1, 0).unwrap(), pairings(50, 1, 1).unwrap());
        assert_eq!(pairings(50, 3, 7).unwrap(), pairings(50, 3, 7).unwrap());
        assert!(pairings(3, 3, 0).unwrap_err().to_string().contains("samples = 3"));
    }
}
