//! Benchmarks of our own code on the path of every token or row. The rest of that path is ONNX Runtime.
//!
//! ```text
//! cargo bench --bench pieces
//! ```

use std::iter::repeat_n;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::DataType;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use selfrepair_core::columns;
use selfrepair_core::config::ModelConfig;
use selfrepair_core::prompts::Stream;
use selfrepair_core::tables::ABLATIONS;
use selfrepair_engine::{Ablated, CleanEffects, WriteScales};
use selfrepair_measure::{AblatedComponent, Slots, repair};
use selfrepair_model::corpus::TextTokenizer;
use selfrepair_model::{Model, ModelSource};
use selfrepair_store::{Metadata, TableWriter};

fn main() {
    divan::main();
}

/// GPT-2 small's.
const SLOTS: Slots = Slots { layers: 12, heads: 12 };
/// Rows of a head in a shard of 64 prompts of 128 tokens.
const ROWS: usize = 64 * 127;

/// A row of `ablations` from the effects of the clean and the ablated run, of a head in the first layer: everything
/// after it counts.
#[divan::bench]
fn repair_of_a_token(bencher: Bencher) {
    let after: Vec<Vec<f32>> = (1..SLOTS.layers).map(|_| some_numbers(SLOTS.heads, 3)).collect();
    let heads: Vec<Vec<f32>> = std::iter::once(some_numbers(SLOTS.heads, 3)).chain(after.iter().cloned()).collect();
    let mlps: Vec<Vec<f32>> = (0..SLOTS.layers).map(|l| some_numbers(1, l)).collect();
    let clean = CleanEffects {
        prompts: 1,
        positions: 1,
        embed: vec![1.0],
        heads,
        attention_bias: vec![],
        mlps: mlps.clone(),
        constant: vec![0.0],
        dot: vec![10.0],
        norm_scale: vec![5.0],
        write_scales: WriteScales::default(),
    };
    // Nothing reacts, so that the causes add up: the logit falls by what the head wrote.
    let ablated = Ablated {
        head_effects: after,
        first_mlp: 0,
        mlp_effects: mlps,
        write_scales: WriteScales::default(),
        posts: vec![],
        dot: vec![9.0],
        norm_scale: vec![5.0],
        residual_final: None,
    };
    let what = AblatedComponent { layer: 0, own: 1.0, own_change: -1.0, write_scale: None };
    let mut changes = vec![0.0; SLOTS.count()];
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| repair(&clean, 0, &ablated, 0, &what, &mut changes, 1.0));
}

/// Rows of `ablations` to a file: encoded, compressed, summed up and hashed.
#[divan::bench(sample_count = 10)]
fn rows_to_parquet(bencher: Bencher) {
    let schema = ABLATIONS.schema();
    let columns = schema.fields().iter().enumerate().map(|(i, field)| -> ArrayRef {
        match field.data_type() {
            DataType::Utf8 => columns::texts(repeat_n("resample", ROWS)),
            DataType::Dictionary(..) => columns::names(repeat_n("L3H7", ROWS)),
            DataType::Boolean => columns::flags(repeat_n(true, ROWS)),
            DataType::Float64 => columns::settings(repeat_n(1.0, ROWS)),
            DataType::Int32 => columns::keys((0..ROWS).map(|r| r % 127)),
            _ if field.name().starts_with("repair_write_norm") => columns::floats(repeat_n(0.0, ROWS)),
            _ => columns::floats(some_numbers(ROWS, i)),
        }
    });
    let batch = RecordBatch::try_new(schema.clone(), columns.collect()).unwrap();
    let meta = Metadata { run_id: "timed".into(), fingerprint: "timed".into(), ledger: None };
    let folder = tempfile::tempdir().unwrap();
    bencher.counter(ItemsCount::new(ROWS)).bench_local(|| {
        let mut writer = TableWriter::create(&ABLATIONS, &folder.path().join("rows.parquet"), &meta).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
    });
}

#[divan::bench(sample_count = 10)]
fn text_to_tokens(bencher: Bencher) {
    let config = ModelConfig { source: "tests/fixtures/tiny-llama".into(), revision: String::new() };
    let model = Model::open(ModelSource::resolve(&config).unwrap()).unwrap();
    let tokenizer = TextTokenizer::of(&model).unwrap();
    let text = std::fs::read_to_string("tests/fixtures/corpus.txt").unwrap();
    bencher.counter(BytesCount::of_str(&text)).bench_local(|| tokenizer.encode(&text).unwrap());
}

/// A stream of tokens to prompts of 128.
#[divan::bench]
fn tokens_to_prompts(bencher: Bencher) {
    let tokens: Vec<u32> = (0..100_000).map(|i| i * 7919 % 50_257).collect();
    let mut stream = Stream::default();
    stream.push(0, &tokens, 50_256);
    bencher.counter(ItemsCount::new(tokens.len())).bench_local(|| stream.pack(128, Some(50_256), usize::MAX));
}

/// Numbers that compress as badly as measured ones, the same in every run.
fn some_numbers(count: usize, seed: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed as u64 + 1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| next()).collect()
}
