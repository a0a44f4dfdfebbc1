//! Runs every ablation of a batch of prompts.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use ort::value::DynValue;
use selfrepair_core::progress::Bar;

use super::plan::{Item, Job, Plan, place};
use super::replace::{OwnChange, Replacement, base};
use super::shard::Shard;
use super::tally::{NeuronSource, Tally};
use crate::MeasureContext;
use crate::context::balanced;
use crate::repair::{AblatedComponent, repair};
use selfrepair_core::components::{Component, Hold};
use selfrepair_core::interrupt;
use selfrepair_core::prompts::TargetRow;
use selfrepair_engine::runtime::{rows, tensor, view};
use selfrepair_engine::{Ablated, CleanBatch, Directions, Engine, HeadChange, HoldMasks, Kept, Suffix};

/// Everything that the ablations of some prompts of equal length read.
pub struct Work<'a> {
    pub plan: &'a Plan<'a>,
    /// The prompts, by their number in the corpus.
    pub batch: Vec<usize>,
    pub targets: Vec<TargetRow>,
    pub clean: CleanBatch,
    pub directions: Directions,
    /// What each prompt's partner wrote, `partners[sample][layer]`.
    pub partners: Vec<Vec<Kept>>,
    /// ‖u‖² of every row of the clean batch.
    pub u_squared: Vec<f64>,
    neurons: NeuronSource,
}

/// What several jobs of the same prompts read. The first that needs it makes it, and it goes with the last.
pub struct SharedWork<'a>(Mutex<Sharing<'a>>);

struct Sharing<'a> {
    /// Jobs that have not asked for it yet.
    jobs: usize,
    made: Option<Arc<Work<'a>>>,
}

impl<'a> SharedWork<'a> {
    pub fn of_jobs(jobs: usize) -> Self {
        Self(Mutex::new(Sharing { jobs, made: None }))
    }

    fn get(&self, make: impl FnOnce() -> Result<Work<'a>>) -> Result<Arc<Work<'a>>> {
        let mut sharing = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let work = match sharing.made.take() {
            Some(work) => work,
            None => Arc::new(make()?),
        };
        sharing.jobs = sharing.jobs.saturating_sub(1);
        sharing.made = (sharing.jobs > 0).then(|| work.clone());
        Ok(work)
    }
}

/// Components that share a batch, and what is held meanwhile.
struct Group<'a> {
    layer: usize,
    component: Component,
    hold: usize,
    masks: Option<&'a HoldMasks>,
    /// What the first readers of heads read of the clean stream, if they are to read by differences.
    clean_reads: Option<Vec<DynValue>>,
}

/// The clean pass of a job's prompts and of their partners, then its ablations of them.
pub fn ablate_prompts<'a>(
    context: &MeasureContext,
    plan: &'a Plan<'a>,
    engine: &mut Engine,
    job: &Job<'a>,
    shard: &mut Shard,
    bar: &Bar,
) -> Result<()> {
    let batch = &job.prompts[..];
    let work = match &job.shared {
        Some(shared) => shared.get(|| Work::new(plan, engine, batch))?,
        None => Arc::new(Work::new(plan, engine, batch)?),
    };
    let length = work.clean.effects.positions;
    for (hold, masks) in work.masks()?.iter().enumerate() {
        for &(layer, component) in &job.groups {
            let members = &plan.groups[&(layer, component)];
            let items = plan.items(hold, members);
            if items.is_empty() {
                continue;
            }
            let clean_reads = match (component, masks) {
                (Component::Head, None) => work.clean_reads(engine, layer)?,
                _ => None,
            };
            let group = Group { layer, component, hold, masks: masks.as_ref(), clean_reads };
            let flops = engine.architecture.suffix_flops(&plan.components[members[0]]) * length as f64;
            let mut tally = Tally::new(plan, hold, members, batch);
            for runs in batches(&items, batch.len(), context.rows_in_call() / length) {
                interrupt::check()?;
                work.run(engine, &group, &runs, shard, &mut tally)?;
                bar.inc((flops * runs.len() as f64 / 1e9) as u64);
            }
            tally.finish(plan, &work.clean, &work.neurons, shard)?;
        }
    }
    Ok(())
}

/// Runs (prompt of the batch, item) in groups of at most `most`. Many ablations of one prompt share its directions;
/// where there are few, many prompts share the ablation.
fn batches(items: &[Item], prompts: usize, most: usize) -> Vec<Vec<(usize, Item)>> {
    let everyone: Vec<usize> = (0..prompts).collect();
    let of_prompt = |p: usize| balanced(items, most).map(move |chunk| chunk.iter().map(|&i| (p, i)).collect());
    let of_item = |i: Item| balanced(&everyone, most).map(move |chunk| chunk.iter().map(|&p| (p, i)).collect());
    match 2 * items.len() >= most {
        true => everyone.iter().flat_map(|&p| of_prompt(p)).collect(),
        false => items.iter().flat_map(|&i| of_item(i)).collect(),
    }
}

impl<'a> Work<'a> {
    fn new(plan: &'a Plan<'a>, engine: &mut Engine, batch: &[usize]) -> Result<Self> {
        let tokens: Vec<&[u32]> = batch.iter().map(|&p| plan.prompts.needed(p)).collect();
        let targets: Vec<TargetRow> = batch.iter().map(|&p| plan.prompts.target_row(p, tokens[0].len())).collect();
        let mut directions = engine.directions(&targets)?;
        let clean = engine.clean(&tokens, &mut directions, &plan.keep())?;
        let mut partners = Vec::new();
        for pairing in &plan.pairings {
            let tokens: Vec<&[u32]> = batch.iter().map(|&p| plan.prompts.needed(pairing[p])).collect();
            partners.push(engine.outputs(&tokens, &plan.keep_of_partners())?);
        }
        let neurons = NeuronSource::new(engine, plan, &clean, &directions)?;
        let d_model = engine.architecture.d_model;
        let squared = |u: &[f32]| u.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        let u_squared = view(&directions.u)?.chunks_exact(d_model).map(squared).collect();
        Ok(Self { plan, batch: batch.to_vec(), targets, clean, directions, partners, u_squared, neurons })
    }

    fn clean_reads(&self, engine: &mut Engine, layer: usize) -> Result<Option<Vec<DynValue>>> {
        let reader = self.plan.first_reader(layer);
        let written = self.clean.layers[layer].attention_out.as_ref();
        engine.clean_reads(reader, base(self, self.plan.architecture, layer, Component::Head)?, written)
    }

    /// What each hold of the plan holds where.
    fn masks(&self) -> Result<Vec<Option<HoldMasks>>> {
        let effects = &self.clean.effects;
        let slots = self.plan.slots;
        let de = |i: usize, dot: f32| f64::from(dot) / f64::from(effects.norm_scale[i]);
        let masks = |&hold: &Hold| -> Result<Option<HoldMasks>> {
            if hold == Hold::None {
                return Ok(None);
            }
            let head =
                |i: usize, l: usize, h: usize| hold.holds_head(l, h, de(i, effects.heads[l][i * slots.heads + h]));
            let mlp = |i: usize, l: usize| hold.holds_mlp(l, slots.layers, de(i, effects.mlps[l][i]));
            HoldMasks::new(&self.clean, head, mlp).map(Some)
        };
        self.plan.holds.iter().map(masks).collect()
    }

    fn run(
        &self,
        engine: &mut Engine,
        group: &Group,
        runs: &[(usize, Item)],
        shard: &mut Shard,
        tally: &mut Tally,
    ) -> Result<()> {
        let first = runs.first().context("no runs")?.0;
        let shared = runs.iter().all(|&(p, _)| p == first);
        let prompts: Range<usize> = first..if shared { first + 1 } else { first + runs.len() };
        let replacement = Replacement::of(self, engine, group.component, runs, prompts.clone())?;
        let hold = self.plan.holds[group.hold];
        let measures_neurons = self.plan.measures_neurons(hold, &self.plan.components[runs[0].1.component]);
        let change = match group.clean_reads.as_ref().zip(replacement.heads) {
            None => None,
            Some((reads, (z_change, heads))) => {
                let clean = base(self, self.plan.architecture, group.layer, group.component)?;
                let write_scales = self.write_scales(group.layer, replacement.own.write_scale.as_ref())?;
                Some(HeadChange { z_change, heads, clean, reads, write_scales })
            }
        };
        let ablated = engine.suffix(Suffix {
            change,
            layer: group.layer,
            place: place(&engine.architecture, group.component),
            stream: replacement.stream,
            prompts,
            hold: group.masks,
            neurons: if measures_neurons { &self.plan.neuron_layers } else { &[] },
            residual_final: self.plan.outputs.distribution,
            clean: &self.clean,
            directions: &self.directions,
        })?;
        for (b, &(p, item)) in runs.iter().enumerate() {
            self.read(engine, group, &ablated, &replacement.own, b, p, item, shard, tally)?;
        }
        Ok(())
    }

    /// Scales of the norm on what a layer's attention writes, if there is one: clean, and with heads replaced.
    fn write_scales(&self, layer: usize, replaced: Option<&Vec<f32>>) -> Result<Option<[DynValue; 2]>> {
        let Some(replaced) = replaced else { return Ok(None) };
        let of_runs = |scale: &Vec<f32>| {
            let positions = self.clean.effects.positions;
            tensor(&[scale.len() / positions, positions], scale.clone())
        };
        Ok(Some([of_runs(&self.directions.write_scales.attention[layer])?, of_runs(replaced)?]))
    }

    /// What run `b` of a batch says about each token.
    #[allow(clippy::too_many_arguments)]
    fn read(
        &self,
        engine: &mut Engine,
        group: &Group,
        ablated: &Ablated,
        own_change: &OwnChange,
        b: usize,
        p: usize,
        item: Item,
        shard: &mut Shard,
        tally: &mut Tally,
    ) -> Result<()> {
        let (plan, prompt, positions) = (self.plan, self.batch[p], self.clean.effects.positions);
        let component = plan.components[item.component];
        let target = plan.target(item.kind, group.hold, item.component).context("a run that was not asked for")?;
        let weight = plan.weight(&item);
        let distribution = match plan.outputs.distribution {
            true => Some(self.distribution(engine, ablated, b, p)?),
            false => None,
        };
        let mut changes = vec![0.0; plan.slots.count()];
        for s in plan.prompts.measured(prompt) {
            let (i, j) = (p * positions + s, b * positions + s);
            let own = self.effect(group.component, group.layer, component.head, i);
            let what = AblatedComponent {
                layer: group.layer,
                own,
                own_change: own_change.effects[b][s],
                write_scale: own_change.write_scale.as_ref().map(|scale| f64::from(scale[j])),
            };
            let mut token = repair(&self.clean.effects, i, ablated, j, &what, &mut changes, plan.tolerance)
                .with_context(|| format!("{component}, prompt {prompt}, position {s}"))?;
            token.ablated_residual_norm = engine.architecture.residual_norm(token.ablated_norm_scale);
            let of_token = distribution.as_ref().map(|(log_prob, kl)| (log_prob[s], kl[s]));
            shard.add(target, prompt, s, &token, of_token, weight);
            tally.add(item, p, s, token.direct_effect, &changes, weight);
        }
        tally.add_neurons(item, p, b, ablated, &self.clean, &self.neurons, weight)
    }

    /// A component's clean effect at row `i`, unscaled.
    pub fn effect(&self, component: Component, layer: usize, head: Option<usize>, i: usize) -> f64 {
        let effects = &self.clean.effects;
        let slots = self.plan.slots;
        let heads = &effects.heads[layer][i * slots.heads..(i + 1) * slots.heads];
        let attention = || {
            let bias = effects.attention_bias.get(i * slots.layers + layer);
            heads.iter().chain(bias).map(|&v| f64::from(v)).sum::<f64>()
        };
        let mlp = f64::from(effects.mlps[layer][i]);
        match (component, head) {
            (Component::Mlp, _) => mlp,
            (Component::Block, _) => attention() + mlp,
            (_, Some(head)) => f64::from(heads[head]),
            (_, None) => attention(),
        }
    }

    /// Log-probability and divergence at each position of run `b`.
    fn distribution(&self, engine: &mut Engine, ablated: &Ablated, b: usize, p: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let residual = ablated.residual_final.as_ref().context("the suffix did not keep the final stream")?;
        let row = |which: &TargetRow, engine: &mut Engine| {
            engine.divergence(rows(residual, b..b + 1)?, rows(&self.clean.residual_final, p..p + 1)?, which)
        };
        let target = &self.targets[p];
        let (mut log_prob, kl) = row(target, engine)?;
        if let Some(wrong) = target.wrong {
            let wrong = TargetRow { answer: vec![wrong; target.answer.len()], ..target.clone() };
            let (wrong, _) = row(&wrong, engine)?;
            log_prob.iter_mut().zip(wrong).for_each(|(x, wrong)| *x -= wrong);
        }
        Ok((log_prob, kl))
    }
}
