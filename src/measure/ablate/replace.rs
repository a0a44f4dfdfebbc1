//! The initial streams of ablated runs: the clean streams with a component's output replaced.

use std::ops::Range;

use anyhow::{Context, Result};
use ort::value::DynValue;

use super::plan::{Item, Plan, place};
use super::work::Work;
use selfrepair_core::components::Component;
use selfrepair_core::config::Kind;
use selfrepair_core::memory::try_with_capacity;
use selfrepair_engine::runtime::{int_tensor, tensor, to_host, view, view_mut};
use selfrepair_engine::{Engine, Kept, Place};
use selfrepair_model::Architecture;

pub struct Replacement {
    /// [B, S, D]
    pub stream: DynValue,
    pub own: OwnChange,
    /// Where the stream changed by the heads' z alone: what changed, [B, S, d_head], and which heads, \[B\].
    pub heads: Option<(DynValue, DynValue)>,
}

/// What the replacement did to the component itself.
pub struct OwnChange {
    /// To its own effect, unscaled; [B][S].
    pub effects: Vec<Vec<f64>>,
    /// The scale that the norm on what attention writes has with the head replaced, [B, S], if there is such a norm.
    pub write_scale: Option<Vec<f32>>,
}

const MISSING: &str = "the pass did not keep an output that an ablation needs";

impl Replacement {
    /// Runs are (prompt of the batch, item), all of one layer's components of one sort.
    pub fn of(
        work: &Work,
        engine: &mut Engine,
        component: Component,
        runs: &[(usize, Item)],
        prompts: Range<usize>,
    ) -> Result<Self> {
        match component {
            Component::Head => Self::of_heads(work, engine, runs, prompts),
            _ => Self::of_outputs(work, engine, component, runs),
        }
    }

    fn of_heads(work: &Work, engine: &mut Engine, runs: &[(usize, Item)], prompts: Range<usize>) -> Result<Self> {
        let layer = work.plan.components[runs[0].1.component].layer;
        let (mut heads, mut along, mut effects) = (vec![], vec![], vec![]);
        let mut z_changes = try_with_capacity(runs.len() * work.clean.effects.positions * engine.architecture.d_head)?;
        for &(p, item) in runs {
            let head = work.plan.components[item.component].head.context("a head has a number")?;
            let kind = work.plan.kinds[item.kind];
            let z = z_change(work, &engine.architecture, layer, head, p, item)?;
            effects.push(own_change(work, &engine.architecture, layer, head, p, kind, &z)?);
            along.push(along_u(work, Component::Head, layer, Some(head), p, kind));
            heads.push(head as i64);
            z_changes.extend(z);
        }
        let d_head = engine.architecture.d_head;
        let z_changes = tensor(&[runs.len(), z_changes.len() / (runs.len() * d_head), d_head], z_changes)?;
        let heads = int_tensor(&[runs.len()], heads)?;
        let by_z_alone = along.iter().all(Option::is_none);
        if engine.architecture.write_norms {
            let positions = work.clean.effects.positions;
            let along = along.into_iter().flat_map(|along| along.unwrap_or_else(|| vec![0.0; positions]));
            let along = tensor(&[runs.len(), positions], along.map(|along| along as f32).collect())?;
            let kept = &work.clean.layers[layer];
            let changes = [&heads, &z_changes, &along];
            let (stream, scale) = engine.replace_heads_before_norm(layer, kept, prompts, changes, &work.directions)?;
            let own = OwnChange { effects, write_scale: Some(scale) };
            return Ok(Self { stream, own, heads: by_z_alone.then_some((z_changes, heads)) });
        }
        let base = base(work, &engine.architecture, layer, Component::Head)?;
        let mut stream = engine.replace_heads(layer, base, prompts, &heads, &z_changes)?;
        if !by_z_alone {
            stream = to_host(stream)?;
            add_along_u(work, view_mut(&mut stream)?, runs, &along)?;
        }
        let own = OwnChange { effects, write_scale: None };
        Ok(Self { stream, own, heads: by_z_alone.then_some((z_changes, heads)) })
    }

    fn of_outputs(work: &Work, engine: &Engine, component: Component, runs: &[(usize, Item)]) -> Result<Self> {
        let a = &engine.architecture;
        let layer = work.plan.components[runs[0].1.component].layer;
        let (positions, d) = (work.clean.effects.positions, a.d_model);
        let base = view(base(work, a, layer, component)?)?;
        let u = view(&work.directions.u)?;
        let mut streams = try_with_capacity(runs.len() * positions * d)?;
        let (mut along, mut effects) = (vec![], vec![]);
        for &(p, item) in runs {
            let kind = work.plan.kinds[item.kind];
            let rows = p * positions * d..(p + 1) * positions * d;
            let change = output_change(work, component, layer, p, item, rows.clone())?;
            let along_u = along_u(work, component, layer, None, p, kind);
            let dots = change.chunks_exact(d).zip(u[rows.clone()].chunks_exact(d));
            let own = dots.enumerate().map(|(s, (c, u))| {
                let dot: f64 = c.iter().zip(u).map(|(&c, &u)| f64::from(c) * f64::from(u)).sum();
                dot + along_u.as_ref().map_or(0.0, |along| along[s] * work.u_squared[p * positions + s])
            });
            effects.push(own.collect());
            along.push(along_u);
            streams.extend(base[rows].iter().zip(&change).map(|(r, c)| r + c));
        }
        add_along_u(work, &mut streams, runs, &along)?;
        let own = OwnChange { effects, write_scale: None };
        Ok(Self { stream: tensor(&[runs.len(), positions, d], streams)?, own, heads: None })
    }
}

/// The clean stream that a component wrote to last before the suffix reads it, [prompts, S, D].
pub fn base<'w>(work: &'w Work, a: &Architecture, layer: usize, component: Component) -> Result<&'w DynValue> {
    let kept = &work.clean.layers[layer];
    let stream = match place(a, component) {
        Place::Mid => kept.mid.as_ref(),
        Place::Post => kept.residual_post.as_ref(),
    };
    stream.context(MISSING)
}

/// Replacement z less clean z of one head, [S, d_head]; what a projection puts back along u is added to the stream.
fn z_change(work: &Work, a: &Architecture, layer: usize, head: usize, p: usize, item: Item) -> Result<Vec<f32>> {
    let of = |value: &DynValue| head_rows(a, value, p, head, work.clean.effects.positions);
    let clean = of(work.clean.layers[layer].z.as_ref().context(MISSING)?)?;
    Ok(match work.plan.kinds[item.kind] {
        Kind::Zero => clean.iter().map(|z| -z).collect(),
        Kind::Mean => {
            let start = (layer * a.heads + head) * a.d_head;
            let mean = &work.plan.means.as_ref().context(MISSING)?.z[start..start + a.d_head];
            clean.iter().zip(mean.iter().cycle()).map(|(z, mean)| mean - z).collect()
        }
        Kind::Resample => {
            let partner = of(work.partners[item.sample][layer].z.as_ref().context(MISSING)?)?;
            clean.iter().zip(&partner).map(|(z, partner)| partner - z).collect()
        }
        Kind::ProjectOut => vec![0.0; clean.len()],
        // A position without a target has no direction to project on, and keeps its output.
        Kind::ProjectOnly => {
            let keeps = |s: usize| work.u_squared[p * work.clean.effects.positions + s] == 0.0;
            clean.iter().enumerate().map(|(i, z)| if keeps(i / a.d_head) { 0.0 } else { -z }).collect()
        }
    })
}

/// How far replacing a head moves its own effect at each position.
fn own_change(
    work: &Work,
    a: &Architecture,
    layer: usize,
    head: usize,
    p: usize,
    kind: Kind,
    z_change: &[f32],
) -> Result<Vec<f64>> {
    let positions = work.clean.effects.positions;
    match kind {
        Kind::ProjectOnly => Ok(vec![0.0; positions]),
        Kind::ProjectOut => {
            let own = |s| -work.effect(Component::Head, layer, Some(head), p * positions + s);
            Ok((0..positions).map(own).collect())
        }
        _ => {
            let v = head_rows(a, work.directions.v(layer)?, p, head, positions)?;
            let rows = z_change.chunks_exact(a.d_head).zip(v.chunks_exact(a.d_head));
            Ok(rows.map(|(z, v)| z.iter().zip(v).map(|(&z, &v)| f64::from(z) * f64::from(v)).sum()).collect())
        }
    }
}

/// What a projection adds along u at each position, in units of u; `None` for other kinds. A part c·u / ‖u‖² is taken
/// away, or put back.
///
/// Of a head whose output is normed before it is written: the dot product with γ_post ⊙ u that is added before the norm,
/// which is the head's effect times the norm's clean scale.
fn along_u(
    work: &Work,
    component: Component,
    layer: usize,
    head: Option<usize>,
    p: usize,
    kind: Kind,
) -> Option<Vec<f64>> {
    let sign = match kind {
        Kind::ProjectOut => -1.0,
        Kind::ProjectOnly => 1.0,
        _ => return None,
    };
    let positions = work.clean.effects.positions;
    let rows = p * positions..(p + 1) * positions;
    let of_head = work.directions.write_scales.attention.get(layer).filter(|_| component == Component::Head);
    let of_row = |i: usize| match (work.u_squared[i], of_head) {
        (0.0, _) => 0.0,
        (_, Some(scale)) => sign * work.effect(component, layer, head, i) * f64::from(scale[i]),
        (squared, None) => sign * work.effect(component, layer, head, i) / squared,
    };
    Some(rows.map(of_row).collect())
}

fn add_along_u(work: &Work, streams: &mut [f32], runs: &[(usize, Item)], along: &[Option<Vec<f64>>]) -> Result<()> {
    let u = view(&work.directions.u)?;
    let run = streams.len() / runs.len();
    for ((stream, along), &(p, _)) in streams.chunks_exact_mut(run).zip(along).zip(runs) {
        let Some(along) = along else { continue };
        let d = run / along.len();
        let u = u[p * run..(p + 1) * run].chunks_exact(d);
        for ((stream, &along), u) in stream.chunks_exact_mut(d).zip(along).zip(u) {
            stream.iter_mut().zip(u).for_each(|(r, &u)| *r += (along * f64::from(u)) as f32);
        }
    }
    Ok(())
}

/// Replacement less clean output of an MLP, an attention or a block, [S · D]; of a projection, without what it adds
/// along u.
fn output_change(
    work: &Work,
    component: Component,
    layer: usize,
    p: usize,
    item: Item,
    rows: Range<usize>,
) -> Result<Vec<f32>> {
    let Plan { kinds, means, .. } = work.plan;
    let own = output(&work.clean.layers[layer], component)?;
    let clean = || (rows.clone()).map(|i| own.iter().map(|part| part[i]).sum::<f32>());
    let d = rows.len() / work.clean.effects.positions;
    Ok(match kinds[item.kind] {
        Kind::Zero => clean().map(|c| -c).collect(),
        Kind::Mean => {
            let means = means.as_ref().context(MISSING)?;
            let span = layer * d..(layer + 1) * d;
            let mean: Vec<f32> = match component {
                Component::Mlp => means.mlp_out[span].to_vec(),
                Component::Block => {
                    let parts = means.attention_out[span.clone()].iter().zip(&means.mlp_out[span]);
                    parts.map(|(a, m)| a + m).collect()
                }
                _ => means.attention_out[span].to_vec(),
            };
            clean().zip(mean.iter().cycle()).map(|(c, mean)| mean - c).collect()
        }
        Kind::Resample => {
            let partner = output(&work.partners[item.sample][layer], component)?;
            let partner = rows.clone().map(|i| partner.iter().map(|part| part[i]).sum::<f32>());
            clean().zip(partner).map(|(c, partner)| partner - c).collect()
        }
        Kind::ProjectOut => vec![0.0; rows.len()],
        Kind::ProjectOnly => {
            let positions = work.clean.effects.positions;
            let keeps = |i: usize| work.u_squared[p * positions + i / d] == 0.0;
            clean().enumerate().map(|(i, c)| if keeps(i) { 0.0 } else { -c }).collect()
        }
    })
}

/// The parts of a component's output, [prompts, S, D] each.
fn output(kept: &Kept, component: Component) -> Result<Vec<&[f32]>> {
    let parts = match component {
        Component::Mlp => vec![&kept.mlp_out],
        Component::Block => vec![&kept.attention_out, &kept.mlp_out],
        Component::Attention | Component::Head => vec![&kept.attention_out],
    };
    parts.into_iter().map(|part| view(part.as_ref().context(MISSING)?)).collect()
}

/// One head's part of a tensor [B, S, H · d_head], for prompt `p`: S · d_head numbers.
fn head_rows(a: &Architecture, value: &DynValue, p: usize, head: usize, positions: usize) -> Result<Vec<f32>> {
    let (width, d_head) = (a.heads * a.d_head, a.d_head);
    let rows = &view(value)?[p * positions * width..(p + 1) * positions * width];
    Ok(rows.chunks_exact(width).flat_map(|row| row[head * d_head..(head + 1) * d_head].iter().copied()).collect())
}
