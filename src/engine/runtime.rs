//! ONNX Runtime: loading the library once, sessions that share one thread pool, and tensors in and out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::ep::{self, ExecutionProvider};
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{OutputSelector, RunOptions, Session, SessionInputValue};
use ort::value::{DynTensorValueType, DynValue, PrimitiveTensorElementType, Tensor, TensorRef};

use super::operators;
use super::weights::SharedWeights;
use crate::export;
use crate::hooks::{HookPoint, Outputs};
use crate::library::send_no_usage_data;
use crate::load::{self, ALIASED, Lowering, PADDING};
use selfrepair_core::config::RuntimeConfig;
use selfrepair_core::memory::{copied, try_with_capacity};
use selfrepair_core::precision::{Half, Precision};
use selfrepair_model::provision;

/// The loaded library and its environment. ONNX Runtime has one per process, so this is shared.
#[derive(Clone)]
pub struct Runtime {
    environment: Environment,
    device: Device,
    /// Where streams stay from graph to graph, if not with the host.
    pub(super) memory: Option<MemoryInfo<'static>>,
    precision: Precision,
    /// Whether graphs get operators of our own, which run on a CPU, and the multiple of columns that they pad.
    pub(super) fused: Option<usize>,
    /// Whether the device has 16-bit matrix products. ONNX Runtime's products on a CPU are float32.
    native: bool,
    /// Where each session leaves its profile, if profiling.
    profile: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Device {
    Cpu,
    Cuda(i32),
}

static RUNTIME: Mutex<Option<Environment>> = Mutex::new(None);

impl Runtime {
    /// Loads the library on the first call (its thread count is fixed from then on).
    pub fn get(config: &RuntimeConfig) -> Result<Self> {
        let device = parse_device(&config.device)?;
        let mut shared = RUNTIME.lock().unwrap_or_else(|e| e.into_inner());
        let environment = match &*shared {
            Some(environment) => environment.clone(),
            None => {
                let library = provision::locate_library()?;
                send_no_usage_data();
                // First of all ort calls: it decides which library the others go to.
                let builder = ort::init_from(&library.path).map_err(|e| anyhow!("{}: {e}", library.path.display()))?;
                // A thread has an engine of its own (see `worker_pool`), and needs no others to help.
                let threads = GlobalThreadPoolOptions::default().with_intra_threads(1)?.with_spin_control(false)?;
                let environment = builder
                    .with_name(env!("CARGO_PKG_NAME"))
                    .with_telemetry(false)
                    .with_global_thread_pool(threads)
                    .build()?;
                make_first_session(&environment)?;
                *shared = Some(environment.clone());
                environment
            }
        };
        if device != Device::Cpu {
            ensure!(
                ep::CUDA::is_available()?,
                "runtime.device = \"{}\": this ONNX Runtime has no CUDA provider; install it (pip install \
                 onnxruntime-gpu) or point ORT_DYLIB_PATH at a library that has it",
                config.device
            );
        }
        let memory = match device {
            Device::Cpu => None,
            Device::Cuda(n) => Some(memory_of(AllocationDevice::CUDA, n)?),
        };
        let is_cpu = device == Device::Cpu;
        Ok(Self {
            environment,
            device,
            memory,
            precision: config.precision,
            fused: is_cpu.then_some(ALIASED),
            native: !is_cpu,
            profile: config.profile.clone(),
        })
    }

    /// Loads one exported graph.
    pub fn load(&self, path: &Path, weights: &SharedWeights) -> Result<Graph> {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let lowering = self.precision.half().map(|to| Lowering { to, native: self.native });
        let prepared = load::prepared(path, lowering, self.fused)?;
        let shared = weights.of_graph(prepared.weights)?;
        let with_value = |(output, bias): (String, String)| -> Result<_> {
            let value = shared.iter().find(|(name, _)| *name == bias);
            let (_, value) = value.with_context(|| format!("{} has no weight {bias}", path.display()))?;
            Ok((output, value.clone()))
        };
        let unbiased = prepared.unbiased.into_iter().map(with_value).collect::<Result<_>>()?;
        let of_graph = &name;
        let level = match prepared.folds_widened {
            true => GraphOptimizationLevel::Disable,
            false => GraphOptimizationLevel::Level3,
        };
        let build = move || -> ort::Result<Session> {
            let mut builder =
                Session::builder(&self.environment)?.with_flush_to_zero()?.with_optimization_level(level)?;
            builder = match weights.prepacked() {
                Some(prepacked) => builder.with_prepacked_weights(prepacked)?,
                None => builder.with_config_entry(NO_PREPACKING, "1")?,
            };
            for (name, value) in shared {
                builder = builder.with_initializer(name, value)?;
            }
            builder = match self.device {
                // An arena a session would keep the activations of every layer apart, cold and for ever; the system's
                // allocator hands the next layer what the last one has just left.
                Device::Cpu => {
                    builder.with_execution_providers([ep::CPU::default().with_arena_allocator(false).build()])?
                }
                Device::Cuda(n) => {
                    let cuda =
                        ep::CUDA::default().with_device_id(n).with_tf32(self.precision == Precision::Tf32).build();
                    builder.with_execution_providers([cuda.error_on_failure()])?
                }
            };
            if let Some(folder) = &self.profile {
                // Engines that load the same graph at the same moment would write into one file.
                let number = PROFILES.fetch_add(1, Relaxed);
                builder = builder.with_profiling(folder.join(format!("{of_graph}_{number}")))?;
            }
            let folder = path.parent().unwrap_or(Path::new(".")).to_string_lossy();
            builder = builder.with_config_entry(WEIGHTS_FOLDER, &*folder)?.with_operators(operators::domain()?)?;
            builder.commit_from_memory(&prepared.onnx)
        };
        let session = build().with_context(|| format!("ONNX Runtime cannot load {}", path.display()))?;
        let memory = self.memory.clone().map(|memory| Allocator::new(&session, memory)).transpose()?;
        Ok(Graph { session, profiled: self.profile.is_some(), name, memory, padded: prepared.padded, unbiased })
    }
}

/// ONNX Runtime's name for where a graph's weights lie, as the graph comes from no file.
const WEIGHTS_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// ONNX Runtime's name for leaving weights in the order that they are given in.
const NO_PREPACKING: &str = "session.disable_prepacking";

/// Flushes subnormals to zero. Softmax leaves such numbers where attention is masked, and on some
/// processors products with them take a hundred times as long, which made attention twice as slow.
///
/// ONNX Runtime sets this for the thread that makes the first session of a process, and threads inherit it from the one
/// that begins them: so this session is made before any other, by the thread that begins the engines'.
///
/// It makes the domain of our operators known, too: two sessions that do so first at the same moment fail.
fn make_first_session(environment: &Environment) -> Result<()> {
    let first = || -> ort::Result<Session> {
        let mut builder = Session::builder(environment)?.with_flush_to_zero()?.with_operators(operators::domain()?)?;
        builder.commit_from_memory(&export::identity())
    };
    first().context("ONNX Runtime cannot create a session")?;
    Ok(())
}

fn parse_device(text: &str) -> Result<Device> {
    match text {
        "cpu" => Ok(Device::Cpu),
        "cuda" => Ok(Device::Cuda(0)),
        _ => match text.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
            Some(n) => Ok(Device::Cuda(n)),
            None => bail!("runtime.device = \"{text}\": expected cpu, cuda or cuda:n"),
        },
    }
}

/// A loaded graph.
pub struct Graph {
    session: Session,
    profiled: bool,
    name: String,
    /// Memory of the device, if streams stay there.
    memory: Option<Allocator>,
    /// Outputs that are given without the padding that rows have in the graph.
    padded: BTreeSet<String>,
    /// Outputs to which a bias [columns] is still to be added.
    unbiased: BTreeMap<String, Arc<DynValue>>,
}

/// Streams: the next graph reads them, and nobody else has to.
const STREAMS: [HookPoint; 3] = [HookPoint::Ablated, HookPoint::ResidMid, HookPoint::ResidPost];

/// The inputs of a call, by hook point.
pub type Inputs<'a> = Vec<(HookPoint, Input<'a>)>;

impl Graph {
    /// Runs the graph and returns what is asked for.
    ///
    /// # Errors
    /// If ONNX Runtime fails, or the graph lacks one of `outputs`.
    pub fn run(&mut self, inputs: Inputs, outputs: &[HookPoint]) -> Result<Outputs> {
        let select = outputs.iter().fold(OutputSelector::no_default(), |s, point| s.with(point.name()));
        self.run_selected(inputs, outputs, select)
    }

    /// As [`Graph::run`], but streams, of the shape given, stay on the device: they are inputs of the next graph there,
    /// and only the rest comes back. [`to_host`] copies one to the host.
    ///
    /// # Errors
    /// As [`Graph::run`].
    pub fn run_on_device(&mut self, inputs: Inputs, outputs: &[HookPoint], shape: &[i64]) -> Result<Outputs> {
        let mut select = OutputSelector::no_default();
        for point in outputs {
            select = select.with(point.name());
            if let Some(memory) = self.memory.as_ref().filter(|_| STREAMS.contains(point)) {
                select = select.preallocate(point.name(), Tensor::<f32>::new(memory, shape.to_vec())?);
            }
        }
        self.run_selected(inputs, outputs, select)
    }

    fn run_selected(&mut self, inputs: Inputs, outputs: &[HookPoint], select: OutputSelector) -> Result<Outputs> {
        let options = RunOptions::new()?.with_outputs(select);
        let inputs: Vec<_> = inputs.into_iter().map(|(point, input)| (point.name(), input)).collect();
        let start = Instant::now();
        let mut results = self
            .session
            .run_with_options(inputs, &options)
            .with_context(|| format!("running the graph {}", self.name))?;
        RUNNING.fetch_add(start.elapsed().as_nanos() as u64, Relaxed);
        let taken = outputs.iter().map(|&point| {
            let value = results.remove(point.name());
            let value = value.with_context(|| format!("the graph {} lacks {}", self.name, point.name()))?;
            Ok((point, value))
        });
        let taken: Vec<(HookPoint, DynValue)> = taken.collect::<Result<_>>()?;
        drop(results);
        let finished = taken.into_iter().map(|(point, value)| Ok((point, self.finished(&point.name(), value)?)));
        Ok(Outputs::new(finished.collect::<Result<_>>()?))
    }

    /// An output as the file of the graph says that it is.
    fn finished(&self, name: &str, mut value: DynValue) -> Result<DynValue> {
        if let Some(bias) = self.unbiased.get(name) {
            let bias = view(bias)?;
            for row in view_mut(&mut value)?.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
            }
        }
        if self.padded.contains(name) { trimmed(&value) } else { Ok(value) }
    }
}

/// A tensor without the padding behind its rows.
fn trimmed(value: &DynValue) -> Result<DynValue> {
    let (shape, values) = value.try_extract_tensor::<f32>()?;
    let mut shape: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
    let padded = shape.pop().context("a scalar has no rows")?;
    let columns = padded - PADDING;
    shape.push(columns);
    let mut kept = try_with_capacity(shape.iter().product())?;
    values.chunks_exact(padded).for_each(|row| kept.extend_from_slice(&row[..columns]));
    tensor(&shape, kept)
}

/// The memory of the n-th device of a sort.
pub(super) fn memory_of(device: AllocationDevice<'static>, number: i32) -> ort::Result<MemoryInfo<'static>> {
    MemoryInfo::new(device, number, AllocatorType::Device, MemoryType::Default)
}

/// A tensor that the program can read: as it is, or copied from the device that has it.
pub fn to_host(value: DynValue) -> Result<DynValue> {
    let tensor = value.downcast::<DynTensorValueType>()?;
    Ok(match tensor.memory_info().is_cpu_accessible() {
        true => tensor.into_dyn(),
        false => tensor.to(AllocationDevice::CPU, 0)?.into_dyn(),
    })
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.profiled {
            // A profile that cannot be written is missing from `bench`, which says so.
            let _ = self.session.end_profiling();
        }
    }
}

static PROFILES: AtomicU64 = AtomicU64::new(0);

/// Nanoseconds spent inside ONNX Runtime, and writing tables, by this process.
pub static RUNNING: AtomicU64 = AtomicU64::new(0);
pub static WRITING: AtomicU64 = AtomicU64::new(0);

/// Seconds spent so far.
pub struct Spent {
    pub running: f64,
    pub writing: f64,
}

impl Spent {
    pub fn now() -> Self {
        let seconds = |counter: &AtomicU64| counter.load(Relaxed) as f64 / 1e9;
        Self { running: seconds(&RUNNING), writing: seconds(&WRITING) }
    }

    pub fn since(&self, before: &Spent) -> Spent {
        Spent { running: self.running - before.running, writing: self.writing - before.writing }
    }
}

/// The profiles that sessions left in a folder.
pub fn profile_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let files = selfrepair_core::files::files_below(folder)?;
    ensure!(!files.is_empty(), "ONNX Runtime left no profile in {}", folder.display());
    Ok(files)
}

/// A tensor handed to a graph without a copy.
pub type Input<'a> = SessionInputValue<'a>;

/// A float tensor that owns its data.
pub fn tensor(shape: &[usize], data: Vec<f32>) -> Result<DynValue> {
    let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
    Ok(Tensor::from_array((shape, data))?.into_dyn())
}

/// Values rounded to 16-bit floats.
pub fn half_tensor(shape: &[usize], data: impl Iterator<Item = f32>, to: Half) -> Result<DynValue> {
    let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
    Ok(match to {
        Half::Bf16 => Tensor::from_array((shape, data.map(half::bf16::from_f32).collect::<Vec<_>>()))?.into_dyn(),
        Half::Fp16 => Tensor::from_array((shape, data.map(half::f16::from_f32).collect::<Vec<_>>()))?.into_dyn(),
    })
}

/// A tensor of token ids, positions or indices.
pub fn int_tensor(shape: &[usize], data: Vec<i64>) -> Result<DynValue> {
    let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
    Ok(Tensor::from_array((shape, data))?.into_dyn())
}

/// The numbers of a float tensor.
pub fn view(value: &DynValue) -> Result<&[f32]> {
    Ok(value.try_extract_tensor::<f32>()?.1)
}

/// The numbers of a float tensor, to change.
pub fn view_mut(value: &mut DynValue) -> Result<&mut [f32]> {
    Ok(value.try_extract_tensor_mut::<f32>()?.1)
}

/// A tensor of truth values.
pub fn bool_tensor(shape: &[usize], data: Vec<bool>) -> Result<DynValue> {
    let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
    Ok(Tensor::from_array((shape, data))?.into_dyn())
}

/// The same numbers in memory of their own.
pub fn copy(value: &DynValue) -> Result<DynValue> {
    let (shape, data) = value.try_extract_tensor::<f32>()?;
    Ok(Tensor::from_array((shape.to_vec(), copied(data)?))?.into_dyn())
}

/// The rows `range` of the first axis of a float tensor, not copied.
pub fn rows(value: &DynValue, range: std::ops::Range<usize>) -> Result<Input<'_>> {
    rows_of::<f32>(value, range)
}

/// As [`rows`], of any tensor.
pub fn rows_of<T: PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static>(
    value: &DynValue,
    range: std::ops::Range<usize>,
) -> Result<Input<'_>> {
    let (shape, data) = value.try_extract_tensor::<T>()?;
    let row: usize = shape[1..].iter().map(|&n| n as usize).product();
    let mut shape: Vec<i64> = shape.to_vec();
    shape[0] = range.len() as i64;
    let view = TensorRef::from_array_view((shape, &data[range.start * row..range.end * row]))?;
    Ok(Input::from(view))
}

/// Counts what writing tables takes.
pub fn count_writing<T>(write: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = write();
    WRITING.fetch_add(start.elapsed().as_nanos() as u64, Relaxed);
    result
}

#[cfg(test)]
mod tests {
    use selfrepair_core::memory::is_exhausted;

    use super::*;
    use crate::export::onnx::{Dim, GraphBuilder, Role};

    const INPUTS: usize = 24;
    const OUTPUTS: usize = 16;

    /// x W of `export::matmul`, with x, W and the product rounded, from float64 sums.
    fn expected(x: &[f32], to: Half) -> Vec<f32> {
        let w = |i: usize| f64::from(to.round((i % 89) as f32 / 89.0 - 0.5));
        let sum = |row: &[f32], j| -> f64 {
            row.iter().enumerate().map(|(i, &x)| f64::from(to.round(x)) * w(i * OUTPUTS + j)).sum()
        };
        x.chunks(INPUTS).flat_map(|row| (0..OUTPUTS).map(move |j| to.round(sum(row, j) as f32))).collect()
    }

    /// It has no error code for that, so its words must stay those that [`is_exhausted`] knows.
    #[test]
    fn memory_that_onnx_runtime_lacks_is_known_by_its_words() {
        let dir = tempfile::tempdir().unwrap();
        let mut g = GraphBuilder::new("large", Role::Exact, "Zeros.", "");
        let length = g.int_input(HookPoint::X, &[Dim::Size(1)], "how many");
        g.node("ConstantOfShape", &[&length], &HookPoint::Y.name(), vec![]);
        g.output(HookPoint::Y, &[Dim::Name("length")], "");
        g.save(dir.path()).unwrap();
        let runtime = Runtime::get(&RuntimeConfig::default()).unwrap();
        let mut graph = runtime.load(&dir.path().join("large.onnx"), &SharedWeights::new(dir.path())).unwrap();
        let length = int_tensor(&[1], vec![1 << 50]).unwrap();
        let error = graph.run(vec![(HookPoint::X, Input::from(&length))], &[HookPoint::Y]).err().unwrap();
        assert!(is_exhausted(&error), "{error:#}");
    }

    #[test]
    fn products_round_what_they_take_and_give() {
        let dir = tempfile::tempdir().unwrap();
        let path = export::matmul(INPUTS, OUTPUTS, dir.path()).unwrap();
        let x: Vec<f32> = (0..3 * INPUTS).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let product = |precision, native| {
            let config = RuntimeConfig { precision, ..Default::default() };
            let runtime = Runtime { native, ..Runtime::get(&config).unwrap() };
            let mut graph = runtime.load(&path, &SharedWeights::new(dir.path())).unwrap();
            let input = tensor(&[3, INPUTS], x.clone()).unwrap();
            let mut outputs = graph.run(vec![(HookPoint::X, Input::from(&input))], &[HookPoint::Y]).unwrap();
            let y = outputs.take(HookPoint::Y).unwrap();
            view(&y).unwrap().to_vec()
        };
        let exact = product(Precision::Fp32, false);
        for precision in [Precision::Fp16, Precision::Bf16] {
            let half = precision.half().unwrap();
            let (found, expected) = (product(precision, false), expected(&x, half));
            let neighbour = if half == Half::Bf16 { 2f32.powi(-7) } else { 2f32.powi(-10) };
            for (found, expected) in found.iter().zip(&expected) {
                // A sum in the middle of two numbers may round to either.
                assert!((found - expected).abs() <= neighbour * expected.abs(), "{found} is not {expected}");
            }
            let same = found.iter().zip(&expected).filter(|(a, b)| a == b).count();
            assert!(same * 10 > found.len() * 9, "{same} of {} are the same", found.len());
            assert!(found.iter().zip(&exact).any(|(a, b)| a != b), "nothing was rounded");
        }
        // The graph as a GPU gets it. ONNX Runtime runs it on a CPU, too, but leaves out some of the rounding.
        let native = product(Precision::Fp16, true);
        let largest = exact.iter().fold(0f32, |m, y| m.max(y.abs()));
        assert!(native.iter().zip(&exact).all(|(a, b)| (a - b).abs() < 2e-3 * largest), "{native:?} is not {exact:?}");
        assert_ne!(native, exact);
    }
}
