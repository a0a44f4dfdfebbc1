//! Raw activations on request (`trace.save`): one row per prompt position, with a list column.

use std::sync::Arc;

use anyhow::Result;
use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, Int32Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use ort::value::DynValue;
use selfrepair_core::config::Activation;
use selfrepair_core::sink::RowWriter;
use selfrepair_engine::CleanBatch;
use selfrepair_engine::runtime::view;
use selfrepair_model::Architecture;

use crate::MeasureContext;

/// The name of the arrays.
pub fn name(what: Activation) -> &'static str {
    match what {
        Activation::HeadZ => "head_z",
        Activation::MlpPost => "mlp_post",
        Activation::ResidualFinal => "residual_final",
    }
}

/// Open arrays of one shard, for each activation of `trace.save`; `None` where they are there already.
pub struct Writers(Vec<Option<Box<dyn RowWriter>>>);

impl Writers {
    pub fn open(context: &MeasureContext, shard: usize) -> Result<Self> {
        let sink = context.sink;
        let open = |&what: &Activation| match sink.has_arrays(name(what), shard) {
            true => Ok(None),
            false => sink.open_arrays(name(what), shard, schema(context.architecture, what)).map(Some),
        };
        Ok(Self(context.config.trace.save.iter().map(open).collect::<Result<_>>()?))
    }

    /// A batch of each, as [`batches`] gives them.
    pub fn write(&mut self, batches: Vec<RecordBatch>) -> Result<()> {
        let writers = self.0.iter_mut().zip(batches);
        writers.filter_map(|(writer, batch)| Some((writer.as_mut()?, batch))).try_for_each(|(w, batch)| w.write(&batch))
    }

    pub fn finish(self) -> Result<()> {
        self.0.into_iter().flatten().try_for_each(|writer| writer.finish())
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
    let key = |name: &str| Field::new(name, DataType::Int32, false);
    Arc::new(Schema::new(vec![key("prompt"), key("position"), list]))
}

/// What a clean pass over the prompts `group` adds to each file of `trace.save`, in its order.
pub fn batches(context: &MeasureContext, clean: &CleanBatch, group: &[usize]) -> Result<Vec<RecordBatch>> {
    let (positions, rows) = (clean.effects.positions, clean.effects.prompts * clean.effects.positions);
    let batch = |&what: &Activation| -> Result<RecordBatch> {
        let values = match what {
            Activation::HeadZ => by_position(clean.layers.iter().filter_map(|l| l.z.as_ref()), rows)?,
            Activation::MlpPost => {
                by_position(clean.layers.iter().filter_map(|l| l.post.as_ref().map(|post| &post.neurons)), rows)?
            }
            Activation::ResidualFinal => view(&clean.residual_final)?.to_vec(),
        };
        let item = Arc::new(Field::new("item", DataType::Float32, false));
        let width = (values.len() / rows) as i32;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int32Array::from_iter_values((0..rows).map(|i| group[i / positions] as i32))),
            Arc::new(Int32Array::from_iter_values((0..rows).map(|i| (i % positions) as i32))),
            Arc::new(FixedSizeListArray::try_new(item, width, Arc::new(Float32Array::from(values)), None)?),
        ];
        Ok(RecordBatch::try_new(schema(context.architecture, what), columns)?)
    };
    context.config.trace.save.iter().map(batch).collect()
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
