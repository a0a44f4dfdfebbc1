//! Rotary positions, from the keys that transformers 5 reads them from.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use super::common::outputs;
use super::rope_scaling::{Llama3, LongRope, Yarn};
use crate::architecture::{Linear, Rotary};
use crate::checkpoint::Checkpoint;

/// Where a family's configuration has what `rope_scaling` and `rope_parameters` leave out.
pub struct RotaryKeys {
    /// The key of the base, and the base if that is missing too.
    pub base: (&'static str, f64),
    /// As `base`, of the share of a head that is rotated. `None`: whole heads.
    pub share: Option<(&'static str, f64)>,
    /// An odd number of dimensions is rounded up to pairs. The other families cannot run with one.
    pub odd: bool,
    /// `rope_parameters`, as JSON, where the configuration has none.
    pub scaling: Option<&'static str>,
}

impl RotaryKeys {
    /// Whole heads, with `rope_theta`.
    pub const fn whole(default_base: f64) -> Self {
        Self { base: ("rope_theta", default_base), share: None, odd: false, scaling: None }
    }

    /// A share of each head, with `rope_theta`.
    pub const fn partial(default_share: f64) -> Self {
        Self {
            base: ("rope_theta", 10_000.0),
            share: Some(("partial_rotary_factor", default_share)),
            odd: false,
            scaling: None,
        }
    }
}

/// Rotary positions that no key scales.
pub fn unscaled(base: f64, dims: usize) -> Rotary {
    Rotary { inverse_frequencies: plain(base, dims).collect(), attention_factor: 1.0, longest: None }
}

fn plain(base: f64, dims: usize) -> impl Iterator<Item = f64> {
    (0..dims.div_ceil(2)).map(move |i| base.powf(-2.0 * i as f64 / dims as f64))
}

pub fn rotary(c: &Checkpoint, d_head: usize, keys: &RotaryKeys) -> Result<Rotary> {
    let mut scaling = Scaling::of(c)?;
    if let Some(default) = keys.scaling.filter(|_| scaling.values.is_empty() && c.key("rope_parameters").is_null()) {
        scaling.values = serde_json::from_str(default)?;
    }
    with_scaling(c, d_head, keys, &scaling)
}

/// Of the layers of one type, `full_attention` or `sliding_attention`, with the key outside of `rope_parameters` that has
/// their base, and the base without it.
pub fn rotary_of_type(c: &Checkpoint, d_head: usize, layers: &str, base: (&'static str, f64)) -> Result<Rotary> {
    with_scaling(c, d_head, &RotaryKeys { base, share: None, odd: false, scaling: None }, &Scaling::of_type(c, layers)?)
}

fn with_scaling(c: &Checkpoint, d_head: usize, keys: &RotaryKeys, scaling: &Scaling) -> Result<Rotary> {
    let kind = scaling.kind(c)?;
    let base = match scaling.positive("rope_theta")? {
        Some(base) => base,
        None => positive(c.given(keys.base.0), keys.base.0)?.unwrap_or(keys.base.1),
    };
    let dims = rotated(c, d_head, keys, scaling, kind)?;
    let plain = plain(base, dims);
    let number = |key: &str| {
        let missing = || format!("`{}` is of type `{kind}` and has no `{key}`", scaling.key);
        scaling.positive(key)?.with_context(missing)
    };
    let (mut attention_factor, mut longest) = (1.0, None);
    let inverse_frequencies: Vec<f64> = match kind {
        "default" => plain.collect(),
        // Longer prompts than the context would have other frequencies, but are refused.
        "dynamic" => {
            number("factor")?;
            ensure!(dims != 2, "`{}` is of type `dynamic`, which cannot turn {dims} dimensions of a head", scaling.key);
            plain.collect()
        }
        "linear" => {
            let factor = number("factor")?;
            plain.map(|f| f / factor).collect()
        }
        "llama3" => {
            let scale = Llama3 {
                factor: number("factor")?,
                low: number("low_freq_factor")?,
                high: number("high_freq_factor")?,
                original_context: scaling.original_context(c)?,
            };
            plain.map(|f| scale.apply(f)).collect()
        }
        "yarn" => {
            let yarn = Yarn::of(c, scaling)?;
            attention_factor = yarn.attention_factor;
            yarn.apply(base, dims)?
        }
        "longrope" => {
            let longrope = LongRope::of(c, scaling, dims)?;
            attention_factor = longrope.attention_factor;
            longest = Some(scaling.original_context(c)? as usize);
            plain.zip(longrope.short_factors).map(|(frequency, factor)| frequency / factor).collect()
        }
        // As GGUF files have it: a divisor for each frequency.
        "by_frequency" => {
            let factors = scaling.values.get("factors").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let factors: Vec<f64> = factors.iter().filter_map(Value::as_f64).collect();
            ensure!(factors.len() == dims / 2, "{} rotary factors for {} frequencies", factors.len(), dims / 2);
            plain.zip(factors).map(|(frequency, factor)| frequency / factor).collect()
        }
        other => bail!(
            "`{}` has the rope scaling `{other}`, which is not supported yet; supported: default, dynamic, linear, \
             llama3, longrope, yarn",
            scaling.key
        ),
    };
    ensure!(
        inverse_frequencies.iter().all(|f| f.is_finite() && *f > 0.0),
        "rotary positions have a frequency that is not a positive number: base (`{}`) {base}, `{}` {}",
        keys.base.0,
        scaling.key,
        Value::Object(scaling.values.clone())
    );
    Ok(Rotary { inverse_frequencies, attention_factor, longest })
}

/// A projection to queries or keys whose first `dims` dimensions of each head are turned as pairs of neighbours, with
/// them reordered so that the first half is turned against the second. Scores are the same.
pub fn halves(of: &Linear, d_head: usize, dims: usize) -> Linear {
    let pairs = dims / 2;
    let from = |i: usize| if i < dims { i % pairs * 2 + i / pairs } else { i };
    outputs(of, (0..of.w.ncols()).map(|column| column / d_head * d_head + from(column % d_head)))
}

pub const OF_A_HEAD: &str = "`head_dim`, or `hidden_size` / `num_attention_heads`";

/// How many dimensions of a head are rotated.
fn rotated(c: &Checkpoint, d_head: usize, keys: &RotaryKeys, scaling: &Scaling, kind: &str) -> Result<usize> {
    const KEY: &str = "partial_rotary_factor";
    let (name, share) = match (keys.share, scaling.positive_or_null(KEY)?) {
        // Plain rotary positions of these families do not read it, others do, and then fail unless it is 1.
        (None, _) if ["default", "by_frequency"].contains(&kind) => return whole(d_head),
        (_, Some(share)) => (KEY, share),
        (None, None) => (KEY, positive_or_null(c.given(KEY), KEY)?.flatten().or(Some(1.0))),
        (Some((key, default)), None) => (key, positive_or_null(c.given(key), key)?.unwrap_or(Some(default))),
    };
    let share = share.with_context(|| format!("`{name}` is null; expected a number up to 1"))?;
    ensure!(share <= 1.0, "`{name}` is {share}; expected a number up to 1");
    let dims = (d_head as f64 * share) as usize;
    let fits = match keys.share {
        None => dims == d_head && dims.is_multiple_of(2),
        Some(_) => dims > 0 && dims.next_multiple_of(2) <= d_head && (keys.odd || dims.is_multiple_of(2)),
    };
    ensure!(
        fits,
        "`{name}` is {share}: rotary positions cannot turn {dims} of the {d_head} dimensions of a head ({OF_A_HEAD})"
    );
    Ok(dims)
}

fn whole(d_head: usize) -> Result<usize> {
    ensure!(
        d_head.is_multiple_of(2),
        "a head has {d_head} dimensions ({OF_A_HEAD}); rotary positions need an even number"
    );
    Ok(d_head)
}

/// `rope_scaling`, as releases before transformers 5 write it, or `rope_parameters`. Where both say something,
/// transformers takes the former alone.
pub struct Scaling {
    pub key: &'static str,
    pub values: Map<String, Value>,
    /// Of one type of layers.
    pub is_by_type: bool,
}

impl Scaling {
    fn of(c: &Checkpoint) -> Result<Self> {
        // Checked also beside `rope_scaling`, which goes before it.
        let parameters = c.key("rope_parameters");
        let is_plausible = parameters.is_null() || parameters.is_object();
        ensure!(is_plausible, "`rope_parameters` is {parameters}; expected an object with its `rope_type`");
        for key in ["rope_scaling", "rope_parameters"] {
            match c.given(key) {
                None | Some(Value::Null) => {}
                Some(Value::Object(values)) if values.is_empty() => {}
                Some(Value::Object(values)) => {
                    // Other families have such a set for each type of layer.
                    if let Some((inner, value)) = values.iter().find(|(_, v)| v.is_object()) {
                        bail!("`{key}` has `{inner}` = {value}; expected one set of numbers for all layers");
                    }
                    return Ok(Self { key, values: values.clone(), is_by_type: false });
                }
                Some(other) => bail!("`{key}` is {other}; expected an object with its `rope_type`"),
            }
        }
        Ok(Self { key: "rope_parameters", values: Map::new(), is_by_type: false })
    }

    /// Those of one type of layers, in families that have `rope_parameters` for each; `rope_scaling` beside them is about
    /// layers of full attention. transformers ignores numbers that belong to no type.
    fn of_type(c: &Checkpoint, layers: &str) -> Result<Self> {
        let object = |key: &str| match c.key(key) {
            Value::Null => Ok(None),
            Value::Object(values) => Ok(Some(values)),
            other => bail!("`{key}` is {other}; expected an object"),
        };
        let by_type = object("rope_parameters")?;
        let mut values = match by_type.and_then(|values| values.get(layers)) {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(values)) => values.clone(),
            Some(other) => bail!("`rope_parameters` has `{layers}` = {other}; expected an object"),
        };
        let Some(scaling) = object("rope_scaling")?.filter(|_| layers == "full_attention") else {
            return Ok(Self { key: "rope_parameters", values, is_by_type: true });
        };
        ensure!(
            by_type.is_none_or(|values| values.get(layers).is_some_and(Value::is_object)),
            "`rope_scaling` is {}, but `rope_parameters` has no `{layers}` that it could change",
            c.key("rope_scaling")
        );
        values.extend(scaling.clone());
        Ok(Self { key: "rope_scaling", values, is_by_type: true })
    }

    fn kind(&self, c: &Checkpoint) -> Result<&str> {
        match self.values.get("rope_type").or(self.values.get("type")) {
            None => Ok("default"),
            Some(Value::String(kind)) if c.model_type()? == "phi3" => match kind.as_str() {
                // Two earlier names.
                "su" | "yarn" | "longrope" => Ok("longrope"),
                "default" => Ok(kind),
                _ => bail!("`{}` has `rope_type` = `{kind}`; `phi3` has default and longrope only", self.key),
            },
            Some(Value::String(kind)) => Ok(kind),
            Some(other) => bail!("`{}` has `rope_type` = {other}; expected a text", self.key),
        }
    }

    pub fn positive(&self, key: &str) -> Result<Option<f64>> {
        positive(self.values.get(key), key).with_context(|| format!("in `{}`", self.key))
    }

    pub fn positive_or_null(&self, key: &str) -> Result<Option<Option<f64>>> {
        positive_or_null(self.values.get(key), key).with_context(|| format!("in `{}`", self.key))
    }

    /// The context of the training before the scaling. Beside the other keys, it goes before the one in here, but for
    /// numbers by type of layers.
    pub fn original_context(&self, c: &Checkpoint) -> Result<f64> {
        const KEY: &str = "original_max_position_embeddings";
        let outside = if self.is_by_type { None } else { positive(c.given(KEY), KEY)? };
        match outside.or(self.positive(KEY)?) {
            Some(context) => Ok(context),
            None => Ok(c.size("max_position_embeddings")? as f64),
        }
    }
}

/// A positive number; `None` if it is missing. It must not be null: transformers takes no default for a null.
fn positive(value: Option<&Value>, key: &str) -> Result<Option<f64>> {
    match positive_or_null(value, key)? {
        Some(None) => bail!("`{key}` is null; expected a positive number, or no such key"),
        other => Ok(other.flatten()),
    }
}

fn positive_or_null(value: Option<&Value>, key: &str) -> Result<Option<Option<f64>>> {
    match value {
        None => Ok(None),
        Some(Value::Null) => Ok(Some(None)),
        Some(value) => match value.as_f64() {
            Some(number) if number > 0.0 && number.is_finite() => Ok(Some(Some(number))),
            _ => bail!("`{key}` is {value}; expected a positive number"),
        },
    }
}
