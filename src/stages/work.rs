//! The work of the stages but `ablate`, whose pieces have a file of their own.

use anyhow::{Context, Result};
use arrow::record_batch::RecordBatch;
use selfrepair_core::columns::{counts, texts};
use selfrepair_core::files::write_atomically;
use selfrepair_core::own_files;
use selfrepair_core::progress;
use selfrepair_core::prompts::Targets;
use selfrepair_core::tables::MODEL;
use selfrepair_engine::export;
use selfrepair_measure::{self as measure, MeasureContext};
use selfrepair_model::corpus::{self, TextTokenizer};
use selfrepair_query::analyze;
use selfrepair_report as report;
use selfrepair_store::run_folder::Stage;
use selfrepair_store::{TableWriter, prompt_tables};

use super::{Run, sanity_checks};

impl Run {
    pub(super) fn corpus(&self) -> Result<String> {
        let tokenizer = TextTokenizer::of(&self.model)?;
        tokenizer.warnings().into_iter().for_each(|warning| self.folder.warn(warning));
        let corpus = corpus::corpus(&self.config.corpus, &self.corpus_files, &tokenizer)?;
        corpus.warnings.iter().for_each(|warning| self.folder.warn(warning.clone()));
        let prompts = &corpus.prompts;
        let text_of = |token| tokenizer.text_of(token);
        prompt_tables::write_tokens(&corpus, text_of, &self.folder.table("tokens"), &self.meta(Stage::Corpus)?)?;
        prompt_tables::write_targets(prompts, &self.folder.table("targets"), &self.meta(Stage::Corpus)?)?;
        Ok(match prompts.targets() {
            Targets::Next => format!("{} prompts of {} tokens", prompts.count(), prompts.longest()),
            Targets::Answers(_) => format!("{} prompts of up to {} tokens", prompts.count(), prompts.longest()),
        })
    }

    pub(super) fn export(&self) -> Result<String> {
        let (folder, ledger) = (self.folder.model(), self.folder.ledger(Stage::Export));
        // A graph is renamed once it is on record.
        let scratch = own_files::scratch_in(&folder).with_context(|| format!("cannot write {}", folder.display()))?;
        export::export(&self.model, self.config.corpus.prompt_len, scratch.path())?;
        for (from, _) in own_files::walk(scratch.path())? {
            let to = folder.join(from.file_name().unwrap_or_default());
            ledger.announce(&to)?;
            std::fs::rename(&from, &to).with_context(|| format!("cannot write {}", to.display()))?;
        }
        self.write_model_table()?;
        let a = &self.model.architecture;
        Ok(format!(
            "{} ({}, {} layers of {} heads, width {}, {:.0} M parameters) as ONNX",
            self.model.source.origin().name,
            a.family,
            a.layers,
            a.heads,
            a.d_model,
            a.parameters() as f64 / 1e6
        ))
    }

    fn write_model_table(&self) -> Result<()> {
        let (a, origin) = (&self.model.architecture, self.model.source.origin());
        let columns = vec![
            texts([&origin.name]),
            texts([&a.family]),
            counts([a.layers]),
            counts([a.heads]),
            counts([a.d_model]),
            counts([a.d_mlp]),
            counts([a.vocab]),
            texts([&a.dtype]),
            texts([&origin.source]),
            texts([&origin.revision]),
            texts([&self.model_sha256]),
        ];
        let path = self.folder.table("model").join("model.parquet");
        let mut writer = TableWriter::create(&MODEL, &path, &self.meta(Stage::Export)?)?;
        writer.write(&RecordBatch::try_new(MODEL.schema(), columns)?)?;
        writer.finish()
    }

    pub(super) fn trace(&self) -> Result<String> {
        let (prompts, files, graphs) = (self.prompts()?, self.files(Stage::Trace)?, self.folder.model());
        let context = MeasureContext {
            config: &self.config,
            architecture: &self.model.architecture,
            graphs: &graphs,
            piece: &self.request,
            sink: &files,
            rows: &self.rows,
        };
        measure::trace(&context, &prompts)?;
        if let Some(warning) = sanity_checks::about_predictions(self)? {
            self.folder.warn(warning);
        }
        Ok(format!("{} tokens", prompts.tokens()))
    }

    pub(super) fn analyze(&self) -> Result<String> {
        // After a failed check, no derived table may remain.
        let discard = || {
            let tables = self.folder.root().join("tables");
            for path in self.folder.files_in(Stage::Analyze, &tables)? {
                std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
            Ok(())
        };
        let done = analyze::analyze(self.folder.root(), &self.config.analysis, &self.meta(Stage::Analyze)?, discard)?;
        self.leave_other_tables()?;
        Ok(done)
    }

    /// Tables of one's own that this analysis does not have. If it has a folder of queries, theirs are gone, and they go;
    /// else they stay as they are.
    fn leave_other_tables(&self) -> Result<()> {
        let (root, folders) = (self.folder.root(), self.folders(Stage::Analyze));
        let files = self.folder.files_in(Stage::Analyze, &root.join("tables"))?;
        let others = files.iter().filter(|path| !folders.iter().any(|folder| path.starts_with(folder)));
        let names: Vec<String> =
            others.filter_map(|path| Some(path.strip_prefix(root).ok()?.to_str()?.to_string())).collect();
        if names.is_empty() {
            return Ok(());
        }
        if self.config.analysis.sql.is_some() {
            return own_files::remove_files(root, &names);
        }
        progress::line("analyze", &format!("{} not computed again: analysis.sql is not set", names.join(", ")));
        Ok(())
    }

    pub(super) fn report(&self) -> Result<String> {
        let path = self.folder.root().join("report").join("config.toml");
        self.folder.ledger(Stage::Report).announce(&path)?;
        write_atomically(&path, toml::to_string(&self.config)?.as_bytes())?;
        report::report(self.folder.root())
    }
}
