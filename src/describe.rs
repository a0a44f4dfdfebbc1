//! Describes a model and the cost of a run, before anything expensive starts.

use std::collections::BTreeSet;
use std::fmt::Write;

use anyhow::Result;

use selfrepair_core::config::RuntimeConfig;
use selfrepair_core::plain::visible;
use selfrepair_core::progress;
use selfrepair_engine::Needs;
use selfrepair_engine::rate::matmul_rate;
use selfrepair_engine::residency::Residency;
use selfrepair_model::agreement::{Agreement, agreements};
use selfrepair_model::{Architecture, Experts, Model, NO_LIMIT, Norm};

/// Necessary floating-point operations of ablating every head once on `tokens` tokens in prompts of 128.
pub fn all_heads_flops(a: &Architecture, tokens: usize) -> f64 {
    let measured = (tokens / 128 * 127) as f64;
    (0..a.layers).map(|l| a.ablation_flops(l)).sum::<f64>() * a.heads as f64 * measured
}

/// Bytes of memory that a sweep over all heads takes with all layers in memory, and with one at a time.
fn memory(config: &RuntimeConfig, a: &Architecture, tokens: usize) -> [f64; 2] {
    let first_readers = (0..a.layers).collect();
    let needs = Needs { ablate: true, unembed: true, first_readers, rows: tokens, prompt_len: 128, ..Needs::default() };
    [Residency::All.bytes(config, a, &needs), Residency::least(config, a, &needs)]
}

/// What whole runs reach of the bare matrix product's rate, as measured on SmolLM2-135M.
pub const EFFICIENCY: f64 = 0.75;

/// How near the tests came to transformers on tiny checkpoints of a family.
fn agreement(family: &str) -> Result<Option<String>> {
    let of_family: Vec<Agreement> = agreements()?.into_iter().filter(|of| of.model_type == family).collect();
    if of_family.is_empty() {
        return Ok(None);
    }
    let most = |f: fn(&Agreement) -> f64| of_family.iter().map(f).fold(0.0, f64::max);
    let (logits, effects) = (most(|of| of.logits), most(|of| of.effects));
    let versions: BTreeSet<&str> = of_family.iter().map(|of| of.transformers.as_str()).collect();
    let versions = versions.into_iter().collect::<Vec<_>>().join(" and ");
    Ok(Some(format!(
        "with transformers {versions} on checkpoints of {family}: logits within {logits:.1e}, effects within {effects:.1e} \
         of their scale"
    )))
}

/// The architecture, and memory, work and time of a run of all heads on `tokens` tokens, on this machine.
pub fn describe(model: &Model, tokens: usize) -> Result<String> {
    let a = &model.architecture;
    let config = RuntimeConfig::default();
    let rate = matmul_rate(a, &config)?;
    let flops = all_heads_flops(a, tokens);
    let mut text = String::new();
    let mut row = |name: &str, value: String| writeln!(text, "{name:<14}{}", visible(&value));
    row("model", format!("{} ({})", model.source.origin().name, model.source.path().display()))?;
    let norm = match a.norm {
        Norm::Rms => "RMS norms",
        Norm::Layer => "layer norms",
    };
    let residual = if a.parallel { "parallel" } else { "serial" };
    row("architecture", format!("{}, {norm}, {residual} residual, stored as {}", a.family, a.dtype))?;
    row("layers", format!("{} of {} heads ({} for keys and values)", a.layers, a.heads, a.kv_heads))?;
    row("width", format!("{}, heads of {}, {} neurons a layer", a.d_model, a.d_head, a.d_mlp))?;
    if let Some(experts) = &a.experts {
        row("experts", experts_of_layer(experts))?;
    }
    row("vocabulary", a.vocab.to_string())?;
    let has_limit = a.context < NO_LIMIT;
    row("context", if has_limit { format!("{} positions", a.context) } else { "no limit".into() })?;
    if let Some(agreement) = agreement(&a.family)? {
        row("agreement", agreement)?;
    }
    row("parameters", format!("{:.1} M", a.parameters() as f64 / 1e6))?;
    let [all, least] = memory(&config, a, tokens).map(|bytes| progress::bytes(bytes as u64));
    row("memory", format!("about {all} for all layers at once; {least} for one at a time, which is slower"))?;
    row(
        "work",
        format!("{:.3} PFLOP for all {} heads on {tokens} tokens, one ablation", flops / 1e15, a.layers * a.heads),
    )?;
    row("this machine", format!("{:.0} GFLOP/s in matrix products on {} threads", rate / 1e9, config.thread_count()))?;
    let time = progress::seconds(flops / (EFFICIENCY * rate));
    write!(text, "{:<14}about {time}, at {EFFICIENCY} of that rate", "time")?;
    Ok(text)
}

fn experts_of_layer(experts: &Experts) -> String {
    let Experts { count, chosen, neurons, shared_neurons, .. } = experts;
    let shared = match shared_neurons {
        0 => String::new(),
        n => format!(", and one of {n} at all positions"),
    };
    format!("{count} of {neurons} neurons a layer, {chosen} at a position{shared}")
}
