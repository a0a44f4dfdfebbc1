//! The `ablate` stage: which pieces a request still needs, and computing them.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use selfrepair_core::pieces::{Coverage, Piece, counted};
use selfrepair_core::progress;
use selfrepair_core::prompts::Prompts;
use selfrepair_engine::library::rounding_of;
use selfrepair_measure::{self as measure, MeasureContext, RowsPerCall};
use selfrepair_store::PieceFiles;
use selfrepair_store::pieces::{self, OpenPiece, Rounding};
use selfrepair_store::run_folder::{Parts, Stage, has_size, manifest};

use super::Run;

impl Run {
    /// Computes what the request needs and no piece has.
    pub(super) fn ablate(&self) -> Result<String> {
        let prompts = self.prompts()?;
        self.mend(&prompts)?;
        for piece in self.pieces_to_compute(&Parts::new())? {
            self.compute(&piece, &prompts)?;
        }
        Ok(format!("{} × {} tokens", counted(self.request.components()), prompts.measured_tokens()))
    }

    /// Calls `work` with the context of a piece.
    pub(super) fn measure<T>(
        &self,
        piece: &OpenPiece,
        files: &PieceFiles,
        work: impl FnOnce(&MeasureContext) -> Result<T>,
    ) -> Result<T> {
        // Layers in turn leave more room than all of them.
        let is_otherwise = piece.rounding.all_layers != (self.config.runtime.all_layers != Some(false));
        let fit = if is_otherwise { usize::MAX } else { self.rows.fit() };
        let rows = RowsPerCall::of(piece.rounding.rows.min(fit).max(1));
        let graphs = self.folder.model();
        // As they were begun, unless there is no room for that now.
        let mut config = self.config.clone();
        if !piece.rounding.all_layers {
            config.runtime.all_layers = Some(false);
        }
        config.runtime.batch = rows.count();
        work(&MeasureContext {
            config: &config,
            architecture: &self.model.architecture,
            graphs: &graphs,
            piece: &piece.piece,
            sink: files,
            rows: &rows,
        })
    }

    /// Whether finished pieces have everything that was asked for, with all their files.
    pub(super) fn has_all_pieces(&self) -> Result<bool> {
        let whole = self.folder.is_current(Stage::Ablate, &self.identity.fingerprint);
        Ok(whole && pieces::coverage(self.folder.root())?.covers(&self.request))
    }

    /// Pieces that were begun and fit the request, and new ones for the rest.
    ///
    /// # Errors
    /// If a piece was begun where numbers are rounded otherwise.
    pub(super) fn pieces_to_compute(&self, request: &Parts) -> Result<Vec<OpenPiece>> {
        let root = self.folder.root();
        let (mut todo, left) = self.pieces_to_resume()?;
        for piece in left {
            todo.push(pieces::plan(root, &self.identity.fingerprint, piece, self.rounding()?, request)?);
        }
        Ok(todo)
    }

    /// Pieces that were begun and fit the request, and what is missing besides.
    pub(super) fn pieces_to_resume(&self) -> Result<(Vec<OpenPiece>, Vec<Piece>)> {
        let root = self.folder.root();
        let finished = pieces::finished(root)?;
        let mut all: Vec<Piece> = finished.into_iter().map(|(_, piece)| piece).collect();
        let mut todo = Vec::new();
        for mut open in pieces::open(root, &self.identity.fingerprint)? {
            let coverage = Coverage::of(&all);
            if coverage.can_finish(&open.holds, &self.request) {
                let done = pieces::done_shards(root, &open)?;
                match done {
                    // Nothing of it is rounded yet.
                    0 if open.request.is_empty() => open = open.rounded(root, self.rounding()?)?,
                    0 => self.refuse_other_rounding(
                        &open,
                        "its shards, which other processes compute, are",
                        "give them up with `pipeline drop unfinished`",
                    )?,
                    _ => self.refuse_other_rounding(
                        &open,
                        &format!("its {done} finished shards are"),
                        "give them up with `pipeline drop unfinished`",
                    )?,
                }
                all.push(open.holds.clone());
                todo.push(open);
            }
        }
        Ok((todo, Coverage::of(&all).missing(&self.request)?))
    }

    fn rounding(&self) -> Result<Rounding> {
        let (onnxruntime, instructions) = rounding_of()?;
        let device = self.config.runtime.device.clone();
        let all_layers = self.config.runtime.all_layers != Some(false);
        Ok(Rounding { onnxruntime, device, instructions, rows: self.rows.count(), all_layers })
    }

    /// # Errors
    /// If a part of a piece was computed where numbers are rounded otherwise.
    fn refuse_other_rounding(&self, open: &OpenPiece, what: &str, else_do: &str) -> Result<()> {
        let (was, now) = (&open.rounding, self.rounding()?);
        let mut differ = was.differences(&now);
        if was.all_layers == now.all_layers && was.rows > self.rows.fit() {
            differ.push(format!("{} rows in a call → {}, for which there is memory", was.rows, self.rows.fit()));
        }
        if was.all_layers && !now.all_layers {
            differ.push("all layers in memory → in turn".into());
        }
        if differ.is_empty() {
            return Ok(());
        }
        let out = self.folder.root().display();
        bail!(
            "{} of {out} was begun elsewhere ({}), and {what} rounded as there: continue it as there, or {else_do} --out {out}",
            open.folder(),
            differ.join(", "),
        )
    }

    /// Computes what is left of a piece, and puts it among the tables.
    fn compute(&self, piece: &OpenPiece, prompts: &Prompts) -> Result<()> {
        let started = Instant::now();
        let files = self.files_of(piece)?;
        // Of a piece whose ablations were dropped, what they shared with others may be left.
        let is_shared_only = piece.holds.ablations().is_empty() && !piece.piece.ablations().is_empty();
        self.measure(piece, &files, |context| match is_shared_only {
            true => measure::ablate::begin(context, prompts).map(|_| ()),
            false => measure::ablate::ablate(context, prompts),
        })?;
        self.folder.publish(&self.identity, piece, &files, started.elapsed().as_secs_f64())
    }

    pub(super) fn files_of(&self, piece: &OpenPiece) -> Result<PieceFiles<'_>> {
        PieceFiles::new(&self.folder, &self.identity.fingerprint, piece)
    }

    /// Computes files of finished pieces again that were lost or are corrupt.
    fn mend(&self, prompts: &Prompts) -> Result<()> {
        let root = self.folder.root();
        let files = manifest(root, Stage::Ablate).map(|m| m.files).unwrap_or_default();
        for (record, piece) in pieces::finished(root)? {
            if pieces::files_of(&files, record.number).iter().all(|file| has_size(root, file)) {
                continue;
            }
            progress::line("ablate", &format!("files of piece {} are lost and are computed again", record.number));
            let piece = pieces::again(&self.identity.fingerprint, record, piece)?;
            self.refuse_other_rounding(&piece, "its other files are", "remove what it measured with `pipeline drop`")?;
            self.compute(&piece, prompts).with_context(|| format!("computing piece {} again", piece.number))?;
        }
        Ok(())
    }

    /// The folders of the tables of pieces.
    pub(super) fn folders_of_pieces(&self) -> Vec<PathBuf> {
        pieces::tables().map(|table| self.folder.table(table.name)).collect()
    }
}
