//! The figures of a run, one file a theme. A figure whose table is absent or empty is left out.

mod causes;
mod graph;
mod heads;
mod hold;
mod iterative;
mod neurons;
mod norm;
mod paper;
mod tokens;

use std::path::Path;

use anyhow::Result;

pub use causes::{CAUSES, stacked};

use super::Rows;
use super::chart::{Chart, Colour, Mark, NamedPoint};
use super::settings::Settings;
use crate::analyze::{Tables, top_tokens};

/// A figure and where its numbers come from.
pub struct Figure {
    /// Its file's name without the ending.
    pub name: String,
    /// The section of the page that it belongs to.
    pub theme: &'static str,
    pub caption: String,
    /// The queries behind it.
    pub sql: Vec<String>,
    pub chart: Chart,
}

/// What a theme makes of a run.
type Theme = fn(&Study) -> Result<Vec<Figure>>;

const THEMES: [Theme; 9] = [
    heads::figures,
    causes::figures,
    tokens::figures,
    norm::figures,
    hold::figures,
    neurons::figures,
    graph::figures,
    iterative::figures,
    paper::figures,
];

/// Every figure of a run.
pub fn all(tables: &Tables, out: &Path) -> Result<Vec<Figure>> {
    let study = Study::new(tables, out)?;
    let mut figures = Vec::new();
    for theme in THEMES {
        figures.extend(theme(&study)?);
    }
    Ok(figures)
}

/// A run's tables with what every figure wants to know of it.
pub struct Study<'a> {
    pub tables: &'a Tables,
    pub settings: Settings,
    /// Ablations that heads had, nothing held.
    pub ablations: Vec<String>,
}

/// Rows of `head_summary` that are about heads with nothing held.
pub const HEADS: &str = "component = 'head' and hold = 'none'";

impl<'a> Study<'a> {
    pub fn new(tables: &'a Tables, out: &Path) -> Result<Self> {
        let query = format!("select distinct ablation from head_summary where {HEADS} order by ablation");
        let ablations = Rows::of(tables, &query)?.texts("ablation")?;
        Ok(Self { tables, settings: Settings::read(tables, out)?, ablations })
    }

    /// Whether the run has all these tables, each with a row.
    pub fn has(&self, names: &[&str]) -> Result<bool> {
        for name in names {
            if !self.tables.has(name)? || Rows::of(self.tables, &format!("select 1 from {name} limit 1"))?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub fn rows(&self, sql: &str) -> Result<Rows> {
        Rows::of(self.tables, sql)
    }

    /// A query for the top tokens of every component, as the ablation has them.
    pub fn tops(&self, ablation: &str) -> Result<String> {
        top_tokens(self.tables, ablation, "none")
    }

    /// The ablation that figures of one ablation only are about: resample, as in the paper, if the run has it.
    pub fn main_ablation(&self) -> Option<&str> {
        let resample = self.ablations.iter().find(|a| *a == "resample");
        resample.or(self.ablations.first()).map(String::as_str)
    }

    /// The heads with most self-repair on their top tokens.
    pub fn strongest(&self, ablation: &str, count: usize) -> Result<Vec<Head>> {
        let rows = self.rows(&format!(
            "select layer, head, self_repair, tokens from head_summary where {HEADS} and ablation = {} \
             and subset = 'top' order by self_repair desc, layer, head limit {count}",
            quoted(ablation)
        ))?;
        let (layer, head) = (rows.numbers("layer")?, rows.numbers("head")?);
        Ok(layer.into_iter().zip(head).map(|(layer, head)| Head { layer, head }).collect())
    }
}

/// A head of the model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Head {
    pub layer: f64,
    pub head: f64,
}

impl Head {
    pub fn name(self) -> String {
        head_name(self.layer, self.head)
    }

    /// A condition on the columns `layer` and `head`.
    pub fn sql(self) -> String {
        format!("layer = {} and head = {}", self.layer, self.head)
    }
}

pub fn head_name(layer: f64, head: f64) -> String {
    if head.is_finite() { format!("L{layer}H{head}") } else { format!("L{layer} MLP") }
}

/// A text as an SQL literal.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Part of a file's name, from text that a configuration may have chosen.
pub fn file_part(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

/// A colour a layer, from the first to the last.
pub struct LayerColours {
    pub first: f64,
    pub last: f64,
}

impl LayerColours {
    pub fn of(layers: &[f64]) -> Self {
        let (first, last) = super::chart::extent(layers.iter().copied()).unwrap_or((0.0, 0.0));
        Self { first, last }
    }

    pub fn of_layer(&self, layer: f64) -> Colour {
        Colour::Shade((layer - self.first) / (self.last - self.first).max(1.0))
    }

    pub fn key(&self) -> super::chart::Key {
        super::chart::layer_key(self.first, self.last)
    }

    /// One point a head, coloured by its layer and named.
    pub fn points(&self, layer: &[f64], head: &[f64], x: &[f64], y: &[f64]) -> Mark {
        let points = (0..layer.len()).map(|i| NamedPoint {
            at: (x[i], y[i]),
            colour: self.of_layer(layer[i]),
            name: format!("{}: {:.3}, {:.3}", head_name(layer[i], head[i]), x[i], y[i]),
        });
        Mark::Points { points: points.collect(), radius: 3.5 }
    }
}
