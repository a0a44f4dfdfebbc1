//! The figures of a run, one file per theme. A figure whose table is missing or empty is left out.

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

pub use causes::{causes_of, stacked};

use super::Rows;
use super::chart::{Chart, Colour, Mark, NamedPoint};
use super::escape::file_names;
use super::query::{Asked, ask};
use super::settings::Settings;
use selfrepair_query::analyze::{Tables, quantiles};

/// A figure and where its numbers come from.
pub struct Figure {
    /// What it is called; [`with_file_names`] makes of it the name of its files, without the ending.
    pub name: String,
    /// The section of the page that it belongs to.
    pub theme: &'static str,
    pub caption: String,
    /// The queries behind it.
    pub sql: Vec<Asked>,
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
        figures.extend(theme(&study)?.into_iter().filter(|f| !f.chart.panels.is_empty()));
    }
    Ok(with_file_names(figures))
}

/// Gives every figure a name that is safe as that of a file, and its own.
pub fn with_file_names(mut figures: Vec<Figure>) -> Vec<Figure> {
    let names = file_names(figures.iter().map(|f| f.name.as_str()));
    figures.iter_mut().zip(names).for_each(|(figure, name)| figure.name = name);
    figures
}

/// A run's tables with what every figure wants to know of it.
pub struct Study<'a> {
    pub tables: &'a Tables,
    pub settings: Settings,
    /// Ablations that heads had, nothing held; resample first.
    pub ablations: Vec<String>,
}

impl<'a> Study<'a> {
    pub fn new(tables: &'a Tables, out: &Path) -> Result<Self> {
        let mut ablations = Rows::ask(tables, &ask!("ablations"))?.texts("ablation")?;
        // Resample is the paper's.
        ablations.sort_by_key(|a| a != "resample");
        Ok(Self { tables, settings: Settings::read(tables, out)?, ablations })
    }

    /// Whether the run has all these tables, each with a row.
    pub fn has(&self, names: &[&'static str]) -> Result<bool> {
        for name in names {
            if !self.tables.has(name)? || Rows::of(self.tables, &format!("select 1 from {name} limit 1"))?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub fn rows(&self, asked: &Asked) -> Result<Rows> {
        Rows::ask(self.tables, asked)
    }

    /// The ablation that figures of one ablation only are about: resample if the run has it.
    pub fn main_ablation(&self) -> Option<&str> {
        self.ablations.first().map(String::as_str)
    }

    /// The heads with most self-repair on their top tokens.
    pub fn strongest(&self, ablation: &str, count: usize) -> Result<Vec<Head>> {
        let rows = self.rows(&ask!("strongest_heads", ablation = ablation))?;
        let (layer, head) = (rows.numbers("layer")?, rows.numbers("head")?);
        Ok(layer.into_iter().zip(head).take(count).map(|(layer, head)| Head { layer, head }).collect())
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

    /// The query about this head, whose parameters are `$layer` and `$head`.
    pub fn ask(self, asked: Asked) -> Asked {
        asked.with("layer", self.layer as i64).with("head", self.head as i64)
    }
}

pub fn head_name(layer: f64, head: f64) -> String {
    if head.is_finite() { format!("L{layer}H{head}") } else { format!("MLP{layer}") }
}

/// The absolute value that this share of the finite values stays below, where a few large ones would leave no colour to
/// the others; 0 if there are none.
pub fn size_at(share: f64, values: impl Iterator<Item = f64>) -> f64 {
    let sizes: Vec<f64> = values.filter(|v| v.is_finite()).map(f64::abs).collect();
    quantiles(sizes, &[share]).into_iter().find(|size| size.is_finite()).unwrap_or(0.0)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::Theme;
    use crate::test_run;
    use selfrepair_store::test_tables::table;

    fn drawn(out: &Path) -> Vec<Figure> {
        all(&Tables::open(out).unwrap(), out).unwrap()
    }

    fn named<'a>(figures: &'a [Figure], name: &str) -> Option<&'a Figure> {
        figures.iter().find(|f| f.name == name)
    }

    /// The names that show when the pointer is on a mark.
    fn marks(figure: &Figure) -> Vec<String> {
        let svg = figure.chart.svg(Theme::File);
        svg.split("<title>").skip(1).map(|t| t.split('<').next().unwrap().to_string()).collect()
    }

    #[test]
    fn a_run_without_the_measured_tables_has_the_figures_about_heads() {
        let dir = test_run("tiny", &["zero"]);
        let figures = drawn(dir.path());
        let names: Vec<&str> = figures.iter().map(|f| f.name.as_str()).collect();
        let expected = [
            "repair_by_layer_zero",
            "effect_against_change_zero",
            "loss_against_change_zero",
            "thresholds_zero",
            "fraction_by_layer_zero",
            "heads_zero",
            "causes_by_layer_zero",
            "shares_by_layer_zero",
            "tokens_zero",
            "prompts_zero",
            "quantiles_by_layer_zero",
            "outcomes_by_effect_zero",
            "norm_scale",
            "residual_norm",
        ];
        assert_eq!(names, expected);
        for figure in &figures {
            let svg = figure.chart.svg(Theme::File);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{}", figure.name);
            assert!(svg.contains("tiny") && svg.contains("4 tokens, 2 prompts"), "{}", figure.name);
            for panel in &figure.chart.panels {
                assert!(!panel.marks.is_empty(), "{}", figure.name);
            }
            assert!(!figure.sql.is_empty() && !figure.caption.is_empty(), "{}", figure.name);
        }
        let repair = named(&figures, "repair_by_layer_zero").unwrap();
        assert_eq!(marks(repair), ["L0H0: 0.750 ± 0.250 logits", "L1H0: -0.125 ± 0.125 logits"]);
    }

    #[test]
    fn every_measured_table_has_its_figures_and_an_empty_one_has_none() {
        let dir = test_run("tiny", &["zero"]);
        let out = dir.path();
        let key = "ablation hold component layer head prompt position";
        let repairs = format!("{key} rank repairer repairer_layer repairer_head direct_effect change");
        let neurons = format!("{key} neuron_layer rank neuron direct_effect change");
        let totals = format!("{key} neuron_layer total_change positive_change absolute_change top_percent_change");
        let graph = "ablation hold component layer head subset repairer repairer_layer repairer_head tokens mean_change \
                     standard_error";
        let curves = "ablation hold component layer head neuron_layer rank cumulative_share above_50 above_10 above_5 \
                      above_2_5 above_1 direct_effect";
        let effects = "prompt position component layer head direct_effect";
        let additions = "layer head added multiple prompt position direct_effect new_direct_effect";
        let stream = "layer head added_at multiple prompt position direct_effect logit_change response";
        let alike = "layer head other_layer other_head tokens cosine cosine_without_token";
        let rows: [(&str, &str, &[&str], &[&str]); 9] = [
            (
                "component_repairs",
                &repairs,
                &["zero none head 0 0 0 0 1 mlp 1 - 0.1 0.5", "zero none head 0 0 1 0 1 head 1 0 0.1 -0.25"],
                &["repairers_of_L0H0_zero"],
            ),
            (
                "repair_graph",
                graph,
                &[
                    "zero none head 0 0 top head 1 0 2 0.25 0.1",
                    "zero none head 0 0 top mlp 1 - 2 0.5 0.1",
                    "zero none block 0 - top head 1 0 2 0.125 0.1",
                    // Another kind of ablation is no skipped block.
                    "mean none block 0 - top head 1 0 2 0.5 0.1",
                ],
                &["repair_graph_zero", "skipped_blocks_zero"],
            ),
            (
                "neuron_curves",
                curves,
                &["zero none head 0 0 1 1 0.5 0.1 0.2 0.3 0.4 0.5 1", "zero none head 0 0 1 2 1 0 0 0 0.1 0.2 1"],
                &["neurons_exceeding_zero", "neurons_cumulative_zero"],
            ),
            (
                "neuron_totals",
                &totals,
                &["zero none head 0 0 0 0 1 0.5 1 1.5 0.25"],
                &["neurons_top_percent_zero", "neurons_share_of_repair_zero"],
            ),
            (
                "neuron_repairs",
                &neurons,
                &[
                    "zero none head 0 0 0 0 1 1 7 -0.5 0.25",
                    "zero none head 0 0 0 0 1 2 3 0.5 0.125",
                    "zero none head 0 0 0 0 1 3 2 0.5 0.0625",
                    "zero none head 0 0 0 0 1 4 1 0.5 -0.125",
                    "zero none head 0 0 0 0 1 5 0 0.5 -0.25",
                ],
                &["recurring_neurons_zero", "anti_erasure_zero", "neurons_top_five_zero"],
            ),
            ("direct_effects", effects, &["0 0 mlp 1 - -0.75"], &[]),
            (
                "self_additions",
                additions,
                &["1 0 own 1 0 0 0.5 1", "1 0 own 3 0 0 0.5 2", "1 0 random_head 1 0 0 0.5 0.5"],
                &["self_additions"],
            ),
            (
                "stream_additions",
                stream,
                &["0 0 0 1 0 0 0.5 0.25 -0.25", "0 0 0 3 0 0 0.5 0.5 -1", "1 0 1 1 1 0 0.5 1 0.5"],
                &["stream_additions"],
            ),
            (
                "head_similarity",
                alike,
                &["0 0 1 0 4 0.5 0.25", "0 0 1 1 4 -0.5 -0.25", "0 0 0 0 4 1 1"],
                &["head_similarity"],
            ),
        ];
        for (name, columns, _, _) in &rows {
            table(out, name, columns, &[] as &[&str]);
        }
        assert_eq!(drawn(out).len(), 14, "empty tables have no figures");
        for (name, columns, rows, _) in &rows {
            table(out, name, columns, rows);
        }
        let figures = drawn(out);
        for name in rows.iter().flat_map(|r| r.3) {
            let figure = named(&figures, name).unwrap_or_else(|| panic!("no figure {name}"));
            assert!(!figure.chart.svg(Theme::File).contains("NaN"), "{name}");
        }
        let marks = |name: &str| marks(named(&figures, name).unwrap());
        // Erased half a logit, erases a quarter less now; its MLP's direct effect is in another table.
        assert_eq!(marks("anti_erasure_zero"), ["neuron 7 of layer 1: -0.500 → -0.250 logits"]);
        assert_eq!(
            marks("repairers_of_L0H0_zero"),
            ["MLP1 on prompt 0 position 0: +0.500 logits", "L1H0 on prompt 1 position 0: -0.250 logits"]
        );
        assert_eq!(marks("repair_graph_zero"), ["layer 1 for 0: +0.250 logits", "layer 1 for 0: +0.500 logits"]);
        assert_eq!(marks("skipped_blocks_zero"), ["L1H0: 0.125, 0.250"]);
        // (1 · 0.5 + 3 · 1.5) / (1 + 9)
        assert_eq!(marks("self_additions"), ["L1H0: +0.500 logits", "L1H0: +0.000 logits"]);
        // 100 · (1 · −0.25 + 3 · −1) / ((1 + 9) · 0.5)
        let expected = ["layer 0 before block 0: -65", "layer 1 before block 1: +100"];
        let expected = expected.map(|mark| format!("{mark} % of what was added"));
        let heads = expected.clone().map(|mark| mark.replace("layer 0 ", "L0H0 ").replace("layer 1 ", "L1H0 "));
        assert_eq!(marks("stream_additions"), [expected, heads].concat());
        // 0.25 + 0.125 + 0.0625 of 1: the two that fell are not repair.
        let Mark::Boxes { boxes, .. } = &named(&figures, "neurons_top_five_zero").unwrap().chart.panels[0].marks[0]
        else {
            panic!("not a histogram")
        };
        let drawn: Vec<_> = boxes.iter().filter(|b| b.corners.0.1 != b.corners.1.1).map(|b| b.corners).collect();
        assert_eq!(drawn, [((42.5, 0.0), (45.0, 100.0))]);
        assert_eq!(marks("head_similarity"), ["layers 0 and 1: 0.500", "layers 0 and 1: 0.250"]);
    }

    /// Heads have effects of 1, 1, 1, 1 and 2, 0, 0, 0; the thresholds are 0.1, 0.5 and 1.
    #[test]
    fn tokens_count_whose_effect_is_above_a_threshold_and_not_at_it() {
        let dir = test_run("tiny", &["zero"]);
        let figures = drawn(dir.path());
        let thresholds = named(&figures, "thresholds_zero").unwrap();
        let titles: Vec<&str> = thresholds.chart.panels.iter().map(|p| p.title.as_str()).collect();
        let above = |t: &str| format!("|direct effect| > {t} logits");
        assert_eq!(titles, ["all tokens", &above("0.1"), &above("0.5"), &above("1")]);
        let (first, second) = ("L0H0: 1.000, -0.250", "L1H0: 2.000, -2.500");
        let expected = [first, "L1H0: 0.500, -0.625", first, second, first, second, second];
        assert_eq!(marks(thresholds), expected);
    }

    #[test]
    fn what_is_held_is_compared_with_nothing_held() {
        let dir = test_run("tiny", &["zero", "zero/erasers", "project_out"]);
        let figures = drawn(dir.path());
        let held = named(&figures, "hold_erasers_zero").unwrap();
        // Both subsets; the held run is the same here, so that the points lie on the line.
        assert_eq!(marks(held)[0], "L0H0: -0.250, -0.250");
        assert!(named(&figures, "project_out_against_zero").is_some());
        let mut names: Vec<&str> = figures.iter().map(|f| f.name.as_str()).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all, "files would overwrite each other");
    }

    #[test]
    fn heads_are_named() {
        assert_eq!((head_name(3.0, 7.0), head_name(3.0, f64::NAN)), ("L3H7".to_string(), "MLP3".to_string()));
    }
}
