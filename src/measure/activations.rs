//! Raw activations on request (`trace.save`): Arrow IPC files with one list-typed row a prompt position.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::writer::FileWriter;
use arrow::record_batch::RecordBatch;
use ort::value::DynValue;

use super::Run;
use crate::checksums::{Hashed, Ledger};
use crate::config::Activation;
use crate::engine::CleanBatch;
use crate::engine::runtime::view;
use crate::model::Architecture;
use crate::run_folder::{Partial, temporary};

fn name(what: Activation) -> &'static str {
    match what {
        Activation::HeadZ => "head_z",
        Activation::MlpPost => "mlp_post",
        Activation::ResidualFinal => "residual_final",
    }
}

fn path(run: &Run, what: Activation, shard: usize) -> PathBuf {
    run.folder.activations().join(name(what)).join(format!("{shard:05}.arrow"))
}

/// The files of a shard.
pub fn paths(run: &Run, shard: usize) -> Vec<PathBuf> {
    run.config.trace.save.iter().map(|&what| path(run, what, shard)).collect()
}

/// One open file for each activation of `trace.save`.
pub struct Writers(Vec<Saved>);

struct Saved {
    writer: FileWriter<Hashed>,
    path: PathBuf,
    _partial: Partial,
}

impl Writers {
    pub fn create(run: &Run, a: &Architecture, shard: usize) -> Result<Self> {
        let open = |&what: &Activation| -> Result<Saved> {
            let path = path(run, what, shard);
            let folder = path.parent().unwrap_or(&path);
            std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
            let schema = schema(a, what);
            let file =
                Hashed::create(&temporary(&path)).with_context(|| format!("cannot create {}", path.display()))?;
            let (writer, _partial) = (FileWriter::try_new(file, &schema)?, Partial::of(&path));
            Ok(Saved { writer, path, _partial })
        };
        Ok(Self(run.config.trace.save.iter().map(open).collect::<Result<_>>()?))
    }

    /// A batch of each file, as [`batches`] gives them.
    pub fn write(&mut self, batches: Vec<RecordBatch>) -> Result<()> {
        for (saved, batch) in self.0.iter_mut().zip(batches) {
            saved.writer.write(&batch).with_context(|| format!("cannot write {}", saved.path.display()))?;
        }
        Ok(())
    }

    pub fn finish(self, ledger: &Ledger) -> Result<()> {
        for mut saved in self.0 {
            let place = || format!("cannot write {}", saved.path.display());
            saved.writer.finish().with_context(place)?;
            let sha256 = saved.writer.get_ref().finish().with_context(place)?;
            std::fs::rename(temporary(&saved.path), &saved.path).with_context(place)?;
            ledger.record(&saved.path, sha256)?;
        }
        Ok(())
    }
}

fn schema(a: &Architecture, what: Activation) -> SchemaRef {
    let shape = match what {
        Activation::HeadZ => vec![a.layers, a.heads, a.d_head],
        Activation::MlpPost => vec![a.layers, a.d_mlp],
        Activation::ResidualFinal => vec![a.d_model],
    };
    let width: usize = shape.iter().product();
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let metadata = [("shape".to_string(), format!("{shape:?}"))].into_iter().collect();
    let list = Field::new(name(what), DataType::FixedSizeList(item, width as i32), false).with_metadata(metadata);
    let key = |name: &str| Field::new(name, DataType::UInt32, false);
    Arc::new(Schema::new(vec![key("prompt"), key("position"), list]))
}

/// What a clean pass over the prompts `group` adds to each file of `trace.save`, in its order.
pub fn batches(run: &Run, a: &Architecture, clean: &CleanBatch, group: &[usize]) -> Result<Vec<RecordBatch>> {
    let (positions, rows) = (clean.effects.positions, clean.effects.prompts * clean.effects.positions);
    let batch = |&what: &Activation| -> Result<RecordBatch> {
        let values = match what {
            Activation::HeadZ => by_position(clean.layers.iter().filter_map(|l| l.z.as_ref()), rows)?,
            Activation::MlpPost => by_position(clean.layers.iter().filter_map(|l| l.post.as_ref()), rows)?,
            Activation::ResidualFinal => view(&clean.residual_final)?.to_vec(),
        };
        let item = Arc::new(Field::new("item", DataType::Float32, false));
        let width = (values.len() / rows) as i32;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from_iter_values((0..rows).map(|i| group[i / positions] as u32))),
            Arc::new(UInt32Array::from_iter_values((0..rows).map(|i| (i % positions) as u32))),
            Arc::new(FixedSizeListArray::try_new(item, width, Arc::new(Float32Array::from(values)), None)?),
        ];
        Ok(RecordBatch::try_new(schema(a, what), columns)?)
    };
    run.config.trace.save.iter().map(batch).collect()
}

/// Layer after layer of [rows, n] as [rows, layers · n].
fn by_position<'a>(layers: impl Iterator<Item = &'a DynValue>, rows: usize) -> Result<Vec<f32>> {
    let views: Vec<&[f32]> = layers.map(view).collect::<Result<_>>()?;
    let mut out = Vec::with_capacity(views.iter().map(|v| v.len()).sum());
    for row in 0..rows {
        for layer in &views {
            let n = layer.len() / rows;
            out.extend_from_slice(&layer[row * n..(row + 1) * n]);
        }
    }
    Ok(out)
}
