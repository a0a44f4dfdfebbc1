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
    what: Activation,
    writer: FileWriter<Hashed>,
    path: PathBuf,
    _partial: Partial,
    schema: SchemaRef,
    width: usize,
}

impl Writers {
    pub fn create(run: &Run, a: &Architecture, shard: usize) -> Result<Self> {
        let open = |&what: &Activation| -> Result<Saved> {
            let (name, path) = (name(what), path(run, what, shard));
            let shape = match what {
                Activation::HeadZ => vec![a.layers, a.heads, a.d_head],
                Activation::MlpPost => vec![a.layers, a.d_mlp],
                Activation::ResidualFinal => vec![a.d_model],
            };
            let folder = path.parent().unwrap_or(&path);
            std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
            let width: usize = shape.iter().product();
            let item = Arc::new(Field::new("item", DataType::Float32, false));
            let metadata = [("shape".to_string(), format!("{shape:?}"))].into_iter().collect();
            let list = Field::new(name, DataType::FixedSizeList(item, width as i32), false).with_metadata(metadata);
            let key = |name: &str| Field::new(name, DataType::UInt32, false);
            let schema = Arc::new(Schema::new(vec![key("prompt"), key("position"), list]));
            let file =
                Hashed::create(&temporary(&path)).with_context(|| format!("cannot create {}", path.display()))?;
            let (writer, _partial) = (FileWriter::try_new(file, &schema)?, Partial::of(&path));
            Ok(Saved { what, writer, path, _partial, schema, width })
        };
        Ok(Self(run.config.trace.save.iter().map(open).collect::<Result<_>>()?))
    }

    pub fn write(&mut self, clean: &CleanBatch, group: &[usize]) -> Result<()> {
        let rows = clean.effects.prompts * clean.effects.positions;
        let prompt = (0..rows).map(|i| group[i / clean.effects.positions] as u32);
        let position = (0..rows).map(|i| (i % clean.effects.positions) as u32);
        for saved in &mut self.0 {
            let values = match saved.what {
                Activation::HeadZ => by_position(clean.layers.iter().filter_map(|l| l.z.as_ref()), rows)?,
                Activation::MlpPost => by_position(clean.layers.iter().filter_map(|l| l.post.as_ref()), rows)?,
                Activation::ResidualFinal => view(&clean.residual_final)?.to_vec(),
            };
            let item = Arc::new(Field::new("item", DataType::Float32, false));
            let list =
                FixedSizeListArray::try_new(item, saved.width as i32, Arc::new(Float32Array::from(values)), None)?;
            let columns: Vec<ArrayRef> = vec![
                Arc::new(UInt32Array::from_iter_values(prompt.clone())),
                Arc::new(UInt32Array::from_iter_values(position.clone())),
                Arc::new(list),
            ];
            let written = saved.writer.write(&RecordBatch::try_new(saved.schema.clone(), columns)?);
            written.with_context(|| format!("cannot write {}", saved.path.display()))?;
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
