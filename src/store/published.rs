//! Finished pieces among the run's tables: how they get there, and how parts of them are dropped.
//!
//! The manifest of `ablate` decides what a reader sees. It is replaced as a whole, after the new files are there and
//! before the old ones are removed. A process that ends in between leaves files that the next one removes.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use selfrepair_core::components::Ablatable;
use selfrepair_core::files::sha256_of_file;
use selfrepair_core::own_files;
use selfrepair_core::pieces::{Ablation, Piece, PieceText};
use selfrepair_core::tables::{HEAD_SIMILARITY, PAIRS, ROUNDING, TOP_TOKENS, Table};
use selfrepair_core::untrusted::without_panic;

use crate::overlap::{Leave, RowKey, There, is_of_additions, keys_of, without, without_fewer_compared};
use crate::piece_files::PieceFiles;
use crate::pieces::{self, FileRecord, OpenPiece, PieceRecord};
use crate::records;
use crate::run_folder::{Inputs, Manifest, RunFolder, Stage};
use crate::table_writer::{EMPTY_FILE, Metadata, TableWriter, is_of_table};

/// Rows in a batch while a file is written again.
const ROWS_IN_BATCH: usize = 64 * 1024;

impl RunFolder {
    /// Makes the stage ready for pieces: removes what an ended process left, and writes a manifest if there is none.
    ///
    /// # Errors
    /// If files lie in its folders that no record lists.
    pub fn begin_pieces(&self, identity: &Inputs) -> Result<()> {
        let folders: Vec<_> = pieces::tables().map(|table| self.table(table.name)).collect();
        self.refuse_foreign(Stage::Ablate, &folders)?;
        folders.iter().chain([&self.root().join("work")]).try_for_each(|folder| own_files::remove_temporary(folder))?;
        self.tidy_pieces(identity)?;
        let manifest = pieces::manifest_of(self.root(), identity)?;
        self.write_pieces(identity, manifest.pieces, manifest.files, manifest.complete)
    }

    /// Removes what ended processes left: among the tables, files that belong to no finished piece; and the folders of pieces
    /// that are finished or cannot be resumed. What an unfinished piece has among the tables goes back to its own folder.
    ///
    /// # Errors
    /// If a file cannot be read, renamed or removed.
    pub fn tidy_pieces(&self, identity: &Inputs) -> Result<()> {
        for open in pieces::open(self.root(), &identity.fingerprint)? {
            self.put_back(&open)?;
        }
        self.remove_leftovers(&identity.fingerprint)
    }

    /// Moves files of an unfinished piece, whose process ended while it gave them their names, back to its own folder.
    fn put_back(&self, open: &OpenPiece) -> Result<()> {
        let root = self.root();
        let recorded = records::recorded(root, Stage::Ablate)?;
        let files = PieceFiles::new(self, open.identity(), open)?.records();
        for table in pieces::tables() {
            for (from, _) in own_files::walk(&self.table(table.name))? {
                let file = from.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let name = format!("tables/{}/{file}", table.name);
                let is_ours = recorded.contains(&name) || is_of_table(&from, table.name);
                if pieces::piece_of_file(file) != Some(open.number) || root.join(&name) != from || !is_ours {
                    continue;
                }
                let (table, shard) = (table.name.to_string(), shard_of(&name));
                let sum = files.iter().find(|f| f.table == table && f.shard == shard).map(|f| f.sha256.clone());
                let record = FileRecord { table, shard, size: 0, sha256: String::new() };
                let to = root.join(open.folder()).join(record.work_name());
                if own_files::is_file(&to) && sum == sha256_of_file(&to).ok() {
                    own_files::remove_files(root, [&name])?;
                    continue;
                }
                crate::stage_files::create_folder_of(&to)?;
                fs::rename(&from, &to).with_context(|| format!("cannot write {}", to.display()))?;
            }
        }
        Ok(())
    }

    /// Files on record that belong to no piece, and folders of pieces that are finished or cannot be resumed.
    fn remove_leftovers(&self, identity: &str) -> Result<()> {
        let root = self.root();
        let listed = records::sound_manifest(root, Stage::Ablate)?.unwrap_or_default().files;
        let listed: BTreeSet<String> = listed.into_iter().map(|(name, _)| name).collect();
        let coverage = pieces::coverage(root)?;
        // Of a piece that others have covered meanwhile, nothing is needed any more.
        let open = pieces::open(root, identity)?.into_iter().filter(|piece| !coverage.covers(&piece.holds));
        let open: Vec<OpenPiece> = open.collect();
        let recorded = records::recorded(root, Stage::Ablate)?;
        let leftover: BTreeSet<String> = recorded.into_iter().filter(|name| !listed.contains(name)).collect();
        own_files::remove_files(root, &leftover)?;
        let finished: Vec<usize> = pieces::finished(root)?.iter().map(|(record, _)| record.number).collect();
        for number in pieces::numbers(root)?.into_iter().filter(|n| open.iter().all(|piece| piece.number != *n)) {
            match finished.contains(&number) {
                true => own_files::remove_files(root, &self.work_of(number)?.1)?,
                false => self.remove_work(number)?,
            }
        }
        Ok(())
    }

    /// Removes what a piece has in its own folder: the plan last, since without it nobody knows whose the rest is.
    fn remove_work(&self, number: usize) -> Result<()> {
        let (records, data) = self.work_of(number)?;
        let (plan, done): (Vec<String>, Vec<String>) =
            records.into_iter().partition(|name| name.ends_with("/plan.json"));
        [data, done, plan].iter().try_for_each(|names| own_files::remove_files(self.root(), names))
    }

    /// Records of a piece, and the other files in its own folder.
    fn work_of(&self, number: usize) -> Result<(Vec<String>, Vec<String>)> {
        let files = own_files::walk(&self.root().join(pieces::folder(number)))?.into_iter();
        let names = files.filter_map(|(path, _)| Some(path.strip_prefix(self.root()).ok()?.to_str()?.to_string()));
        let is_record = |name: &String| name.ends_with(".json") && !name.ends_with("/request.json");
        Ok(names.filter(|name| pieces::is_work(name)).partition(is_record))
    }

    /// Gives up a piece that was begun and not finished.
    ///
    /// # Errors
    /// If a file cannot be removed.
    pub fn give_up(&self, piece: &OpenPiece) -> Result<()> {
        self.remove_work(piece.number)
    }

    /// Puts the files of a finished piece among the tables.
    ///
    /// # Errors
    /// If a file is lost or cannot be renamed.
    pub fn publish(&self, identity: &Inputs, open: &OpenPiece, files: &PieceFiles, seconds: f64) -> Result<()> {
        let root = self.root();
        let before = pieces::manifest_of(root, identity)?;
        let finished = pieces::finished(root)?;
        let there = There::of(root, open.number)?;
        let open = &open.holding(root, there.rest(&open.holds)?)?;
        let was_finished = finished.iter().any(|(record, _)| record.number == open.number);
        let mut names = Vec::new();
        for file in files.records() {
            let leave = there.leave(table_of(&file)?, open);
            names.extend(self.place(open, &file, &leave, files, was_finished)?);
        }
        // Its own, if it was finished before and a file was lost; and comparisons of heads on fewer prompts.
        let (mut records, mut old, mut replaced, mut before_seconds) = (vec![], vec![], vec![], 0.0);
        for (record, piece) in finished {
            let mut files = pieces::files_of(&before.files, record.number);
            if record.number == open.number {
                before_seconds = record.seconds;
                old.extend(files);
            } else if let Some(rest) = without_fewer_compared(&piece, &open.holds)? {
                files.retain(|(name, _)| name.split('/').nth(1) == Some(HEAD_SIMILARITY.name));
                old.extend(files);
                let computed = record.computed.clone().or(Some(record.piece.clone()));
                match rest.is_empty() {
                    true => replaced.push(record.number),
                    false => records.push(PieceRecord { piece: PieceText::from(&rest), computed, ..record }),
                }
            } else {
                records.push(record);
            }
        }
        let kept: Vec<_> = before.files.into_iter().filter(|file| !old.contains(file)).collect();
        records.push(open.record(seconds + before_seconds));
        records.sort_by_key(|record| record.number);
        let gone: Vec<String> =
            old.into_iter().map(|file| file.0).filter(|n| names.iter().all(|new| new.0 != *n)).collect();
        // Without its plan, a piece that is not in the manifest any more is not taken for an unfinished one.
        replaced.iter().try_for_each(|&number| self.remove_work(number))?;
        self.write_pieces(identity, records, kept.into_iter().chain(names).collect(), true)?;
        own_files::remove_files(root, &gone)?;
        self.remove_leftovers(&identity.fingerprint)?;
        self.seal_pieces()
    }

    /// Gives a file its name among the tables, without the rows that the piece does not keep. A file of a piece that was
    /// finished before is there without them. Returns its name and size.
    fn place(
        &self,
        open: &OpenPiece,
        file: &FileRecord,
        leave: &Leave,
        files: &PieceFiles,
        was_finished: bool,
    ) -> Result<Option<(String, u64)>> {
        let (root, name) = (self.root(), file.name(open.number));
        let (from, to) = (root.join(open.folder()).join(file.work_name()), root.join(&name));
        let ledger = self.ledger(Stage::Ablate);
        let is_there =
            was_finished && !own_files::is_file(&from) && sha256_of_file(&to).is_ok_and(|sum| sum == file.sha256);
        crate::stage_files::create_folder_of(&to)?;
        match leave {
            Leave::Everything => return Ok(None),
            _ if is_there => ledger.record(&to, file.sha256.clone())?,
            Leave::Nothing => {
                ledger.record(&to, file.sha256.clone())?;
                fs::rename(&from, &to).with_context(|| format!("cannot write {}", to.display()))?;
            }
            Leave::Rows(keys) => {
                let meta = Metadata { ledger: Some(ledger.clone()), ..files.meta().clone() };
                let Some(sha256) = copy_without(&from, &to, table_of(file)?, keys, &meta)? else { return Ok(None) };
                let size = fs::metadata(&to)?.len();
                files.replace(FileRecord { sha256, size, ..file.clone() })?;
            }
        }
        Ok(Some((name, fs::metadata(&to)?.len())))
    }

    fn write_pieces(
        &self,
        identity: &Inputs,
        pieces: Vec<PieceRecord>,
        mut files: Vec<(String, u64)>,
        complete: bool,
    ) -> Result<()> {
        if complete {
            files.extend(self.empty_tables(identity, &files)?);
            // A table that has rows now needs no empty file.
            let of_table = |name: &str| name.split('/').nth(1).unwrap_or_default().to_string();
            let with_rows = files.iter().filter(|(name, _)| !name.ends_with(EMPTY_FILE));
            let with_rows: BTreeSet<String> = with_rows.map(|(name, _)| of_table(name)).collect();
            files.retain(|(name, _)| !name.ends_with(EMPTY_FILE) || !with_rows.contains(&of_table(name)));
        }
        files.sort();
        let folders: Vec<_> = pieces::tables().map(|table| self.table(table.name)).collect();
        let seconds = pieces.iter().map(|piece| piece.seconds).sum();
        let now = crate::run_folder::now();
        let manifest = self.new_manifest(identity, &folders);
        let began = records::any_manifest(self.root(), Stage::Ablate)?.and_then(|m| m.began).or(now);
        let finished = complete.then_some(now).flatten();
        let seconds = complete.then_some(seconds);
        let warnings = self.warnings_so_far(Stage::Ablate)?;
        let checksum = Some(records::checksum_of(&pieces, &files)?);
        let manifest = Manifest { complete, files, pieces, checksum, began, finished, seconds, warnings, ..manifest };
        self.write_manifest(Stage::Ablate, &manifest)
    }

    /// Writes the tables that have no file, so that every reader finds them. Returns their names and sizes.
    fn empty_tables(&self, identity: &Inputs, files: &[(String, u64)]) -> Result<Vec<(String, u64)>> {
        let ledger = Some(self.ledger(Stage::Ablate).clone());
        let meta = Metadata { run_id: self.run_id.clone(), fingerprint: identity.fingerprint.clone(), ledger };
        let mut empty = Vec::new();
        for table in pieces::tables() {
            let (folder, name) = (format!("tables/{}/", table.name), format!("tables/{}/{EMPTY_FILE}", table.name));
            if files.iter().any(|(name, _)| name.starts_with(&folder)) {
                continue;
            }
            let path = self.root().join(&name);
            crate::stage_files::create_folder_of(&path)?;
            TableWriter::create(table, &path, &meta)?.finish()?;
            empty.push((name, fs::metadata(&path)?.len()));
        }
        Ok(empty)
    }

    /// Makes the list of checksums that of the manifest.
    fn seal_pieces(&self) -> Result<()> {
        let files = records::any_manifest(self.root(), Stage::Ablate)?.unwrap_or_default().files;
        let files: Vec<_> = files.iter().map(|(name, _)| self.root().join(name)).collect();
        self.ledger(Stage::Ablate).seal(&files)
    }

    /// Removes the rows of some ablations, and all additions if asked. What is left of a piece gets a new number.
    /// Returns how many ablations were dropped.
    ///
    /// # Errors
    /// If a file cannot be read or written. Nothing is removed then.
    pub fn drop_ablations(
        &self,
        identity: &Inputs,
        drops: impl Fn(&Ablation) -> bool,
        additions: bool,
    ) -> Result<usize> {
        let root = self.root();
        let mut manifest = pieces::manifest_of(root, identity)?;
        let finished = pieces::finished(root)?;
        let left = |piece: &Piece| -> Result<Piece> {
            let ablations = piece.ablations().iter().filter(|a| !drops(a)).copied().collect();
            Piece::new(ablations, piece.outputs.clone(), piece.additions.clone().filter(|_| !additions))
        };
        let remaining: Vec<Piece> = finished.iter().map(|(_, piece)| left(piece)).collect::<Result<_>>()?;
        let components: BTreeSet<Ablatable> = remaining.iter().flat_map(|p| p.components().to_vec()).collect();
        let (mut records, mut old, mut changed, mut dropped) = (vec![], vec![], vec![], 0);
        for ((record, piece), rest) in finished.into_iter().zip(remaining) {
            if rest == piece {
                records.push(record);
                continue;
            }
            dropped += piece.ablations().len() - rest.ablations().len();
            let files = pieces::files_of(&manifest.files, record.number);
            manifest.files.retain(|file| !files.contains(file));
            let gone = Dropped { piece: &piece, rest: &rest, components: &components };
            let new = pieces::plan_rest(root, &identity.fingerprint, &record, rest.clone())?;
            let kept = self.copy_rest(&files, &new, &gone)?;
            match kept.is_empty() {
                true => changed.push(new.number),
                false => records.push(new.record(record.seconds)),
            }
            manifest.files.extend(kept);
            changed.push(record.number);
            old.extend(files);
        }
        records.sort_by_key(|record| record.number);
        changed.iter().try_for_each(|&number| self.remove_work(number))?;
        self.write_pieces(identity, records, manifest.files, manifest.complete)?;
        own_files::remove_files(root, old.iter().map(|(name, _)| name))?;
        self.remove_leftovers(&identity.fingerprint)?;
        self.seal_pieces()?;
        Ok(dropped)
    }

    fn copy_rest(&self, files: &[(String, u64)], new: &OpenPiece, gone: &Dropped) -> Result<Vec<(String, u64)>> {
        let sink = PieceFiles::new(self, new.identity(), new)?;
        let meta = Metadata { ledger: Some(self.ledger(Stage::Ablate).clone()), ..sink.meta().clone() };
        let mut kept = Vec::new();
        for (name, _) in files {
            let table = name.split('/').nth(1).and_then(pieces::table);
            let table = table.with_context(|| format!("stages/ablate.json lists {name}, which is of no table"))?;
            let keys = match gone.leave(table) {
                Leave::Everything => continue,
                Leave::Nothing => BTreeSet::new(),
                Leave::Rows(keys) => keys,
            };
            let from = self.root().join(name);
            ensure!(
                self.ledger(Stage::Ablate).holds(&from),
                "{} is missing or has changed since it was written; `pipeline run ablate` with the settings of the run \
                 regenerates it. Nothing was dropped",
                from.display()
            );
            let mut record =
                FileRecord { table: table.name.into(), shard: shard_of(name), size: 0, sha256: String::new() };
            let to = self.root().join(record.name(new.number));
            if let Some(sha256) = copy_without(&from, &to, table, &keys, &meta)? {
                (record.size, record.sha256) = (fs::metadata(&to)?.len(), sha256);
                kept.push((record.name(new.number), record.size));
                sink.add(record)?;
            }
        }
        sink.finish_shards()?;
        Ok(kept)
    }
}

/// The shard of a file of a table, by its name.
fn shard_of(name: &str) -> Option<usize> {
    name.rsplit('/').next()?.strip_suffix(".parquet")?.split_once('-')?.1.parse().ok()
}

/// A piece before and after some of its ablations are dropped.
struct Dropped<'a> {
    piece: &'a Piece,
    rest: &'a Piece,
    /// Those that any piece still has.
    components: &'a BTreeSet<Ablatable>,
}

impl Dropped<'_> {
    fn leave(&self, table: &Table) -> Leave {
        if is_of_additions(table) {
            return if self.rest.additions.is_none() { Leave::Everything } else { Leave::Nothing };
        }
        if table.name == PAIRS.name || table.name == ROUNDING.name {
            return Leave::Nothing;
        }
        if table.name == TOP_TOKENS.name {
            let gone = self.piece.components().iter().filter(|c| !self.components.contains(c));
            return Leave::Rows(gone.map(RowKey::of_component).collect());
        }
        if self.rest.ablations().is_empty() {
            return Leave::Everything;
        }
        let gone = self.piece.ablations().iter().filter(|a| !self.rest.ablations().contains(a));
        Leave::Rows(gone.flat_map(|a| keys_of(table, a, &self.piece.outputs)).collect())
    }
}

fn table_of(file: &FileRecord) -> Result<&'static Table> {
    pieces::table(&file.table).with_context(|| format!("a record of a piece lists an unknown table, `{}`", file.table))
}

/// Writes the rows of a file that are not about `keys` to another one. Returns its checksum, or nothing if there are none.
fn copy_without(
    from: &Path,
    to: &Path,
    table: &Table,
    keys: &BTreeSet<RowKey>,
    meta: &Metadata,
) -> Result<Option<String>> {
    without_panic(|| rewrite_without(from, to, table, keys, meta))
}

fn rewrite_without(
    from: &Path,
    to: &Path,
    table: &Table,
    keys: &BTreeSet<RowKey>,
    meta: &Metadata,
) -> Result<Option<String>> {
    let place = || format!("cannot read {}", from.display());
    let file = own_files::open_own(from, OpenOptions::new().read(true)).with_context(place)?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).with_context(place)?;
    let schema = builder.schema().clone();
    ensure!(
        schema.fields().len() == table.schema().fields().len(),
        "{} has other columns than {}",
        from.display(),
        table.name
    );
    let mut writer = TableWriter::create(table, to, meta)?;
    let mut rows = 0;
    for batch in builder.with_batch_size(ROWS_IN_BATCH).build().with_context(place)? {
        let batch = batch.with_context(place)?;
        let kept = without(&batch.with_schema(table.schema())?, keys)?;
        rows += kept.num_rows();
        writer.write(&kept)?;
    }
    (rows > 0).then(|| writer.finish_with_checksum()).transpose()
}
