//! Parts of a model that can be ablated or held, and how a configuration names them: `L22H11`, `L20-29`, `MLP29`.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// What is ablated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// All heads of a layer and its `b_O'`.
    Attention,
    /// A layer's attention and MLP.
    Block,
    Head,
    Mlp,
}

impl Component {
    /// The name in the `component` column.
    pub fn name(self) -> &'static str {
        match self {
            Component::Attention => "attention",
            Component::Block => "block",
            Component::Head => "head",
            Component::Mlp => "mlp",
        }
    }
}

/// One component of a model that can be ablated. They sort as the rows of `ablations` do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Ablatable {
    #[serde(serialize_with = "component_name")]
    pub component: Component,
    pub layer: usize,
    /// `Some` if the component is a head.
    pub head: Option<usize>,
}

impl Ablatable {
    /// The name in the `name` column: `L26H2`, `MLP26`, `ATTN26` or `BLOCK26`.
    pub fn name(&self) -> String {
        let Ablatable { component, layer, head } = self;
        match (component, head) {
            (_, Some(head)) => format!("L{layer}H{head}"),
            (Component::Mlp, None) => format!("MLP{layer}"),
            (Component::Block, None) => format!("BLOCK{layer}"),
            (_, None) => format!("ATTN{layer}"),
        }
    }

    /// The inverse of [`Ablatable::name`].
    ///
    /// # Errors
    /// If it is no name of a component.
    pub fn parse(name: &str) -> Result<Self> {
        let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        let whole = |prefix: &str, component| {
            let layer = number(name.strip_prefix(prefix)?)?;
            Some(Ablatable { component, layer, head: None })
        };
        let head = || {
            let (layer, head) = name.strip_prefix('L')?.split_once('H')?;
            Some(Ablatable { component: Component::Head, layer: number(layer)?, head: Some(number(head)?) })
        };
        let parts = || whole("MLP", Component::Mlp).or_else(|| whole("ATTN", Component::Attention));
        let found = head().or_else(parts).or_else(|| whole("BLOCK", Component::Block));
        found.with_context(|| format!("`{name}` is not a component; expected L26H2, MLP26, ATTN26 or BLOCK26"))
    }
}

fn component_name<S: serde::Serializer>(component: &Component, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(component.name())
}

impl Ablatable {
    /// A head, or the MLP of a layer.
    pub fn head_or_mlp(layer: usize, head: Option<usize>) -> Self {
        let component = if head.is_some() { Component::Head } else { Component::Mlp };
        Self { component, layer, head }
    }
}

impl std::fmt::Display for Ablatable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

/// Which later components are held at their clean values while another is ablated, position by position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Hold {
    None,
    /// Components whose clean direct effect at the position is below [`ERASES_BELOW`].
    Erasers,
    Heads,
    Mlps,
    LastMlp,
    Head(usize, usize),
    Mlp(usize),
}

/// Direct effect, in logits, from which on a component counts as pushing against the token (as in the paper).
pub const ERASES_BELOW: f64 = -0.05;

impl Hold {
    /// The name in the `hold` column.
    pub fn name(self) -> String {
        match self {
            Hold::None => "none".into(),
            Hold::Erasers => "erasers".into(),
            Hold::Heads => "heads".into(),
            Hold::Mlps => "mlps".into(),
            Hold::LastMlp => "last_mlp".into(),
            Hold::Head(layer, head) => format!("L{layer}H{head}"),
            Hold::Mlp(layer) => format!("MLP{layer}"),
        }
    }

    /// `"erasers"`, `"L28H3"`, `"MLP29"`, … in a model of that many layers and heads.
    pub fn parse(text: &str, layers: usize, heads: usize) -> Result<Self> {
        let hold = match text {
            "none" => Hold::None,
            "erasers" => Hold::Erasers,
            "heads" => Hold::Heads,
            "mlps" => Hold::Mlps,
            "last_mlp" => Hold::LastMlp,
            _ => {
                let head = || {
                    let (layer, head) = text.strip_prefix('L')?.split_once('H')?;
                    Some(Hold::Head(layer.parse().ok()?, head.parse().ok()?))
                };
                let mlp = || Some(Hold::Mlp(text.strip_prefix("MLP")?.parse().ok()?));
                head().or_else(mlp).with_context(|| {
                    format!(
                        "ablation.hold: `{text}` is not understood; write \"erasers\", \"heads\", \"mlps\", \
                         \"last_mlp\", a head such as \"L28H3\" or an MLP such as \"MLP29\""
                    )
                })?
            }
        };
        match hold {
            Hold::Head(l, h) if l >= layers || h >= heads => {
                bail!("ablation.hold: there is no `{text}`; the model has {layers} layers of {heads} heads, from L0H0")
            }
            Hold::Mlp(l) if l >= layers => {
                bail!("ablation.hold: there is no `{text}`; the model's MLPs are MLP0 to MLP{}", layers - 1)
            }
            hold => Ok(hold),
        }
    }

    /// Whether a head of that clean direct effect is held.
    pub fn holds_head(self, layer: usize, head: usize, direct_effect: f64) -> bool {
        match self {
            Hold::Erasers => direct_effect < ERASES_BELOW,
            Hold::Heads => true,
            Hold::Head(l, h) => (l, h) == (layer, head),
            Hold::None | Hold::Mlps | Hold::LastMlp | Hold::Mlp(_) => false,
        }
    }

    /// Whether the MLP of a layer, of a model of that many layers, is held.
    pub fn holds_mlp(self, layer: usize, layers: usize, direct_effect: f64) -> bool {
        match self {
            Hold::Erasers => direct_effect < ERASES_BELOW,
            Hold::Mlps => true,
            Hold::LastMlp => layer + 1 == layers,
            Hold::Mlp(l) => l == layer,
            Hold::None | Hold::Heads | Hold::Head(..) => false,
        }
    }
}

/// `"all"` or a list such as `["L20-29", "L3H1"]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected \"all\" or a list such as [\"L20-29\", \"L22H11\"]")]
pub enum Selection {
    Word(String),
    List(Vec<String>),
}

impl Selection {
    pub fn none() -> Self {
        Selection::List(vec![])
    }

    fn words(&self) -> &[String] {
        match self {
            Selection::Word(w) => std::slice::from_ref(w),
            Selection::List(list) => list.as_slice(),
        }
    }

    /// The selected (layer, head) pairs, sorted. `key` names the setting in errors.
    pub fn heads(&self, key: &str, layers: usize, heads: usize) -> Result<BTreeSet<(usize, usize)>> {
        let mut out = BTreeSet::new();
        for word in self.words() {
            let (layer_span, head_span) = match word.as_str() {
                "all" => ((0, layers - 1), None),
                "last" => ((layers - 1, layers - 1), None),
                word => parse_heads(word).with_context(|| {
                    format!("{key}: `{word}` is not understood; write \"all\", \"L20\", \"L20-29\" or \"L22H11\"")
                })?,
            };
            let head_range = head_span.unwrap_or((0, heads - 1));
            ensure!(
                layer_span.1 < layers,
                "{key}: `{word}` names layer {}, but the model has layers 0 to {}; \"all\" takes every layer",
                layer_span.1,
                layers - 1
            );
            ensure!(
                head_range.1 < heads,
                "{key}: `{word}` names head {}, but a layer of this model has heads 0 to {}",
                head_range.1,
                heads - 1
            );
            for l in layer_span.0..=layer_span.1 {
                out.extend((head_range.0..=head_range.1).map(|h| (l, h)));
            }
        }
        Ok(out)
    }

    /// The selected layers, sorted.
    pub fn layers(&self, key: &str, layers: usize) -> Result<BTreeSet<usize>> {
        if let Some(word) = self.words().iter().find(|w| w.contains('H')) {
            bail!("{key}: `{word}` names a head; this setting takes layers, such as \"L20\" or \"L20-29\"");
        }
        Ok(self.heads(key, layers, 1)?.into_iter().map(|(l, _)| l).collect())
    }
}

type Span = (usize, usize);

/// `L20-29H3` → ((20, 29), Some((3, 3))).
fn parse_heads(word: &str) -> Option<(Span, Option<Span>)> {
    let rest = word.strip_prefix('L')?;
    let (layers, heads) = match rest.split_once('H') {
        Some((l, h)) => (l, Some(parse_span(h)?)),
        None => (rest, None),
    };
    Some((parse_span(layers)?, heads))
}

fn parse_span(text: &str) -> Option<Span> {
    let (a, b) = match text.split_once('-') {
        Some((a, b)) => (a.parse().ok()?, b.parse().ok()?),
        None => (text.parse().ok()?, text.parse().ok()?),
    };
    (a <= b).then_some((a, b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_name_layers_heads_and_ranges() {
        let list = |words: &[&str]| Selection::List(words.iter().map(|w| w.to_string()).collect());
        let pick = |words: &[&str]| Vec::from_iter(list(words).heads("heads", 4, 2).unwrap());
        assert_eq!(pick(&["L3H1", "L0"]), [(0, 0), (0, 1), (3, 1)]);
        assert_eq!(pick(&["L1-2H0"]), [(1, 0), (2, 0)]);
        assert_eq!(pick(&["last"]), [(3, 0), (3, 1)]);
        assert_eq!(Selection::Word("all".into()).heads("heads", 2, 2).unwrap().len(), 4);
        assert_eq!(Vec::from_iter(list(&["L1-2", "last"]).layers("mlps", 4).unwrap()), [1, 2, 3]);
        assert!(list(&["L1H0"]).layers("mlps", 4).unwrap_err().to_string().contains("names a head"));
    }

    #[test]
    fn holds_have_names() {
        for name in ["none", "erasers", "heads", "mlps", "last_mlp", "L1H0", "MLP3"] {
            assert_eq!(Hold::parse(name, 4, 2).unwrap().name(), name);
        }
        assert!(Hold::parse("L1H2", 4, 2).unwrap_err().to_string().contains("4 layers of 2 heads"));
        assert!(Hold::parse("MLP4", 4, 2).unwrap_err().to_string().contains("MLP0 to MLP3"));
        assert!(Hold::parse("eraser", 4, 2).unwrap_err().to_string().contains("not understood"));
        assert!(Hold::Erasers.holds_head(0, 0, -0.06) && !Hold::Erasers.holds_mlp(0, 4, -0.04));
        assert!(Hold::LastMlp.holds_mlp(3, 4, 1.0) && !Hold::LastMlp.holds_mlp(2, 4, -1.0));
    }

    #[test]
    fn a_head_that_does_not_exist_is_named() {
        let heads = |word: &str| Selection::Word(word.into()).heads("ablation.heads", 4, 2);
        let error = heads("L1H7").unwrap_err().to_string();
        assert!(error.contains("`L1H7` names head 7") && error.contains("heads 0 to 1"), "{error}");
        let error = heads("L9").unwrap_err().to_string();
        assert!(error.contains("layer 9") && error.contains("0 to 3"), "{error}");
        assert!(heads("H3").is_err());
        assert!(heads("L3-1").is_err());
    }
}
