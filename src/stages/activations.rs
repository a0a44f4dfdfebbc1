//! Raw activations on request (`trace.save`): Arrow IPC files with one list-typed row a prompt position.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::writer::FileWriter;
use arrow::record_batch::RecordBatch;
use ort::value::DynValue;

use super::Run;
use crate::config::Activation;
use crate::engine::CleanBatch;
use crate::engine::runtime::view;
use crate::model::Architecture;
use crate::run_folder::temporary;

/// One open file for each activation of `trace.save`.
pub struct Writers(Vec<Saved>);

struct Saved {
    what: Activation,
    writer: FileWriter<File>,
    path: PathBuf,
    schema: SchemaRef,
    width: usize,
}

impl Writers {
    pub fn create(run: &Run, a: &Architecture, shard: usize) -> Result<Self> {
        let open = |&what: &Activation| -> Result<Saved> {
            let (name, shape) = match what {
                Activation::HeadZ => ("head_z", vec![a.layers, a.heads, a.d_head]),
                Activation::MlpPost => ("mlp_post", vec![a.layers, a.d_mlp]),
                Activation::ResidualFinal => ("residual_final", vec![a.d_model]),
            };
            let folder = run.folder.activations().join(name);
            std::fs::create_dir_all(&folder)?;
            let path = folder.join(format!("{shard:05}.arrow"));
            let width: usize = shape.iter().product();
            let item = Arc::new(Field::new("item", DataType::Float32, false));
            let metadata = [("shape".to_string(), format!("{shape:?}"))].into_iter().collect();
            let list = Field::new(name, DataType::FixedSizeList(item, width as i32), false).with_metadata(metadata);
            let key = |name: &str| Field::new(name, DataType::UInt32, false);
            let schema = Arc::new(Schema::new(vec![key("prompt"), key("position"), list]));
            let file = File::create(temporary(&path)).with_context(|| format!("cannot create {}", path.display()))?;
            Ok(Saved { what, writer: FileWriter::try_new(file, &schema)?, path, schema, width })
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
            saved.writer.write(&RecordBatch::try_new(saved.schema.clone(), columns)?)?;
        }
        Ok(())
    }

    pub fn finish(self) -> Result<()> {
        for mut saved in self.0 {
            saved.writer.finish()?;
            saved.writer.get_ref().sync_all()?;
            std::fs::rename(temporary(&saved.path), &saved.path)
                .with_context(|| format!("cannot write {}", saved.path.display()))?;
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
