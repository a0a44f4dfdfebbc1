//! Ablates components of a model on prompts. Results are kept in memory or given to a sink.

use anyhow::Context;
use arrow::array::{ArrayAccessor, AsArray, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{Float32Type, Int32Type};
use selfrepair_core::components::Selection;
use selfrepair_core::config::{Config, Kind, ModelConfig};
use selfrepair_core::pieces::Piece;
use selfrepair_core::prompts::{Answer, Prompts};
use selfrepair_core::sink::{MemorySink, RowSink};
use selfrepair_core::tables::{ABLATIONS, COMPONENT_REPAIRS, Table};
use selfrepair_engine::export;
use selfrepair_measure::{MeasureContext, RowsPerCall};
use selfrepair_model::ModelSource;
use selfrepair_model::corpus::TextTokenizer;

use crate::Error;

/// A model ready to be measured: its architecture, its tokenizer, and its ONNX graphs in a temporary folder.
pub struct Model {
    inner: selfrepair_model::Model,
    tokenizer: TextTokenizer,
    graphs: tempfile::TempDir,
}

impl Model {
    /// Opens a checkpoint: a directory with `config.json` and weights, a `.gguf` file, `package:smollm2` or
    /// `hf:owner/name`. Writes its graphs and weights (4 bytes per parameter) to a temporary folder, for prompts of up to
    /// 128 tokens; see [`Model::open_for`].
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the checkpoint cannot be read or its family is not supported.
    pub fn open(source: &str) -> Result<Self, Error> {
        Self::open_for(source, 128)
    }

    /// As [`Model::open`], for prompts of up to `longest` tokens.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_for(source: &str, longest: usize) -> Result<Self, Error> {
        // Before anything here starts a thread.
        selfrepair_engine::library::send_no_usage_data();
        let open = || -> anyhow::Result<Self> {
            let config = ModelConfig { source: source.into(), ..Default::default() };
            let inner = selfrepair_model::Model::open(ModelSource::resolve(&config)?)?;
            let tokenizer = TextTokenizer::of(&inner)?;
            let graphs = tempfile::tempdir().context("cannot create a temporary folder")?;
            export::export(&inner, longest.min(inner.architecture.context), graphs.path())?;
            Ok(Self { inner, tokenizer, graphs })
        };
        open().map_err(|e| Error::or(e, Error::Checkpoint))
    }

    /// The architecture: layers, heads, widths and the kind of blocks.
    pub fn architecture(&self) -> &selfrepair_model::Architecture {
        &self.inner.architecture
    }

    /// The token ids of a text, without special tokens.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the tokenizer cannot encode the text.
    pub fn tokenize(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.tokenizer.encode(text).map_err(|e| Error::or(e, Error::Checkpoint))
    }
}

/// What to ablate, and how.
pub struct Sweep<'a> {
    model: &'a Model,
    config: Config,
}

impl<'a> Sweep<'a> {
    /// A sweep without components yet, with zero ablation, over all tokens.
    pub fn new(model: &'a Model) -> Self {
        let mut config = Config::default();
        config.ablation.kinds = vec![Kind::Zero];
        config.ablation.heads = Selection::none();
        config.analysis.top_fraction = 1.0;
        Self { model, config }
    }

    /// Ablates these heads, each on its own: `L22H11`, `L20-29`, `L3H0-5`.
    ///
    /// # Errors
    /// [`Error::Configuration`] if a name is not well formed or not in the model.
    pub fn heads(mut self, heads: &[&str]) -> Result<Self, Error> {
        self.config.ablation.heads = Selection::List(heads.iter().map(|h| h.to_string()).collect());
        let a = &self.model.inner.architecture;
        self.config.ablation.components(a.layers, a.heads).map_err(Error::Configuration)?;
        Ok(self)
    }

    /// Sets the kind of ablation. [`Kind::Resample`] needs at least two prompts of each length.
    pub fn kind(mut self, kind: Kind) -> Self {
        self.config.ablation.kinds = vec![kind];
        self
    }

    /// Measures the logit of the next token, at every position of each prompt except the last. All prompts must have the
    /// same length.
    ///
    /// # Errors
    /// [`Error::Configuration`] for prompts that cannot be measured; [`Error::OutOfMemory`]; [`Error::FailedCheck`] if
    /// the causes of a token's self-repair do not sum to it.
    pub fn run(&self, prompts: &[Vec<u32>]) -> Result<Found, Error> {
        let length = prompts.first().map_or(0, Vec::len);
        if length < 2 || prompts.iter().any(|p| p.len() != length) {
            let error =
                anyhow::anyhow!("expected prompts of one length of at least 2 tokens; use `run_answers` for others");
            return Err(Error::Configuration(error));
        }
        self.measure(&Prompts::packed(length, prompts.concat()))
    }

    /// Measures one logit per prompt, after the prompt's last token: that of `answer`, minus that of the wrong answer if
    /// there is one. Prompts may differ in length.
    ///
    /// # Errors
    /// As [`Sweep::run`].
    pub fn run_answers(&self, prompts: &[(Vec<u32>, u32, Option<u32>)]) -> Result<Found, Error> {
        if prompts.is_empty() || prompts.iter().any(|(tokens, ..)| tokens.is_empty()) {
            return Err(Error::Configuration(anyhow::anyhow!("expected at least one prompt, and no empty one")));
        }
        let answered = prompts.iter().map(|(tokens, answer, wrong)| {
            (tokens.clone(), Answer { position: tokens.len() - 1, answer: *answer, wrong: *wrong })
        });
        self.measure(&Prompts::with_answers(answered))
    }

    fn measure(&self, prompts: &Prompts) -> Result<Found, Error> {
        let sink = MemorySink::new();
        self.run_into(prompts, &sink)?;
        Ok(Found(sink))
    }

    /// As [`Sweep::run`], but the rows of every table go to `sink`.
    ///
    /// # Errors
    /// As [`Sweep::run`], and those of the sink.
    pub fn run_into(&self, prompts: &Prompts, sink: &dyn RowSink) -> Result<(), Error> {
        let a = &self.model.inner.architecture;
        let piece = Piece::of(&self.config, a.layers, a.heads).map_err(Error::Configuration)?;
        let mut config = self.config.clone();
        let rows = RowsPerCall::fitted(&mut config, a, piece.components())?;
        let context = MeasureContext {
            config: &config,
            architecture: a,
            graphs: self.model.graphs.path(),
            piece: &piece,
            sink,
            rows: &rows,
        };
        selfrepair_measure::trace(&context, prompts)?;
        Ok(selfrepair_measure::ablate::ablate(&context, prompts)?)
    }
}

/// The results of a sweep, in memory.
pub struct Found(MemorySink);

/// Self-repair of one ablated component at one token, in logits.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenRepair {
    /// The ablated component, such as `L22H11`.
    pub ablated: String,
    pub prompt: u32,
    pub position: u32,
    /// Direct effect of the component in the clean run.
    pub direct_effect: f32,
    /// Ablated minus clean logit.
    pub logit_change: f32,
    /// `logit_change − (ablated direct effect − direct effect)`.
    pub self_repair: f32,
}

/// The change of one later component's direct effect, in logits, when another is ablated.
#[derive(Debug, Clone, PartialEq)]
pub struct RepairOf {
    /// The ablated component, such as `L22H11`.
    pub ablated: String,
    pub prompt: u32,
    pub position: u32,
    /// The later component, such as `L24H3` or `MLP29`.
    pub repairer: String,
    /// Its direct effect in the clean run.
    pub direct_effect: f32,
    /// Its change under the ablation.
    pub change: f32,
}

impl Found {
    /// All rows of a measured table, with the columns that `pipeline tables NAME` lists. Empty if it was not measured.
    ///
    /// # Errors
    /// [`Error::Other`] if the rows do not fit into one batch.
    pub fn table(&self, table: &Table) -> Result<RecordBatch, Error> {
        let rows = self.0.rows(table);
        let schema = rows.first().map_or_else(|| table.schema(), RecordBatch::schema);
        concat_batches(&schema, &rows).map_err(|e| Error::Other(e.into()))
    }

    /// Self-repair by ablated component and token, in the order of the table `ablations`.
    ///
    /// # Errors
    /// As [`Found::table`].
    pub fn tokens(&self) -> Result<Vec<TokenRepair>, Error> {
        let rows = Columns(self.table(&ABLATIONS)?);
        let row = |i| TokenRepair {
            ablated: rows.name(i, "name"),
            prompt: rows.int(i, "prompt"),
            position: rows.int(i, "position"),
            direct_effect: rows.float(i, "direct_effect"),
            logit_change: rows.float(i, "logit_change"),
            self_repair: rows.float(i, "self_repair"),
        };
        Ok((0..rows.0.num_rows()).map(row).collect())
    }

    /// The repairers: for each ablated component and token, the ten later components whose direct effect changes most.
    ///
    /// # Errors
    /// As [`Found::table`].
    pub fn repairs(&self) -> Result<Vec<RepairOf>, Error> {
        let rows = Columns(self.table(&COMPONENT_REPAIRS)?);
        let row = |i| RepairOf {
            ablated: rows.name(i, "name"),
            prompt: rows.int(i, "prompt"),
            position: rows.int(i, "position"),
            repairer: rows.name(i, "repairer_name"),
            direct_effect: rows.float(i, "direct_effect"),
            change: rows.float(i, "change"),
        };
        Ok((0..rows.0.num_rows()).map(row).collect())
    }
}

/// The columns of a batch by name.
struct Columns(RecordBatch);

impl Columns {
    fn float(&self, row: usize, column: &str) -> f32 {
        self.0[column].as_primitive::<Float32Type>().value(row)
    }

    fn int(&self, row: usize, column: &str) -> u32 {
        self.0[column].as_primitive::<Int32Type>().value(row) as u32
    }

    fn name(&self, row: usize, column: &str) -> String {
        let names = self.0[column].as_dictionary::<Int32Type>().downcast_dict::<StringArray>();
        names.map_or_else(String::new, |names| names.value(row).to_string())
    }
}
