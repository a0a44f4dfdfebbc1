//! Named tensors as float32, with every shape and value checked, from a GGUF file, safetensors or PyTorch `.bin` and `.pth`
//! files.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use candle_core::DType;
use candle_core::pickle::PthTensors;
use ndarray::{Array1, Array2, Array3};
use serde_json::{Map, Value};

use super::families::LENS;
use super::gguf::GgufFile;
use super::nested::{is_of_another_part, stored_names, text_config};
use super::pickle::check_pickle;
use super::safetensors::SafetensorsFile;
use super::source::{ModelSource, Weights, read_json, weights};
use selfrepair_core::untrusted::{open_file, without_panic};

/// An open checkpoint. Tensor names are Hugging Face's, also for a GGUF file.
pub struct Checkpoint {
    path: PathBuf,
    config: Value,
    /// Of the configuration, the keys that the family reads, with its defaults for missing ones.
    keys: Map<String, Value>,
    /// Other names of keys, and the keys they stand for.
    spellings: &'static [(&'static str, &'static str)],
    tensors: Tensors,
    /// What the names lack that families ask for, if the file is that of the base model (`LlamaModel`, `GPT2Model`).
    left_out: Option<&'static str>,
    /// Whether the text model is a part of one that reads images too.
    is_nested: bool,
    /// Whether the unembedding is the embedding.
    tied: bool,
    /// Names read so far, as they are stored.
    read: Mutex<BTreeSet<String>>,
}

/// What is in front of every name but the head's.
const PREFIXES: [&str; 3] = ["model.", "transformer.", "gpt_neox."];

/// Names of embeddings, each with that of the unembedding.
const ENDS: [(&str, &str); 5] = [
    ("model.embed_tokens.weight", "lm_head.weight"),
    ("model.decoder.embed_tokens.weight", "lm_head.weight"),
    ("transformer.wte.weight", "lm_head.weight"),
    ("transformer.word_embeddings.weight", "lm_head.weight"),
    ("gpt_neox.embed_in.weight", "embed_out.weight"),
];

/// By which a configuration in TransformerLens's own format is known: it has no `model_type`.
const LENS_KEYS: [&str; 3] = ["d_model", "n_heads", "act_fn"];

enum Tensors {
    Safetensors(Shards<SafetensorsFile>),
    /// PyTorch's own format, which is a pickle. candle reads the pickle's data and never runs what it calls.
    Pickle(Shards<PthTensors>),
    Gguf(GgufFile),
    /// A configuration without its weights, to be described and not run.
    Absent,
}

/// Files of one format, and which of them has which tensor.
struct Shards<F> {
    files: Vec<F>,
    place: BTreeMap<String, usize>,
}

impl<F> Shards<F> {
    /// Opens every file. A tensor must be in one file only, and in the one that the index names, if there is an index.
    fn open(weights: &Weights, open: impl Fn(&Path) -> Result<F>, names: impl Fn(&F) -> Vec<String>) -> Result<Self> {
        let (mut files, mut place) = (Vec::new(), BTreeMap::new());
        for (i, path) in weights.files.iter().enumerate() {
            let file = open(path)?;
            for name in names(&file) {
                if let Some(other) = place.insert(name.clone(), i).and_then(|other| weights.files.get(other)) {
                    let other = other.display();
                    bail!("the tensor `{name}` is there twice: in {other} and in {}", path.display());
                }
            }
            files.push(file);
        }
        for (name, shard) in &weights.index {
            let found = place.get(name).and_then(|&i| weights.files.get(i));
            ensure!(
                found.is_some_and(|path| path.ends_with(shard)),
                "the index of {} says that the tensor `{name}` is in {shard}, where it is not",
                weights.files.first().and_then(|file| file.parent()).unwrap_or(Path::new("")).display()
            );
        }
        Ok(Self { files, place })
    }

    fn of(&self, name: &str) -> Option<&F> {
        self.place.get(name).and_then(|&i| self.files.get(i))
    }
}

impl Checkpoint {
    pub fn open(source: &ModelSource) -> Result<Self> {
        let path = source.path().to_path_buf();
        let (config, tensors) = match source {
            ModelSource::Gguf { path, .. } => {
                let file = GgufFile::open(path)?;
                (file.config()?, Tensors::Gguf(file))
            }
            ModelSource::Directory { path, .. } => {
                let config = read_json(&path.join("config.json"))?;
                (config, open_directory(path)?)
            }
        };
        Self::new(path, config, tensors)
    }

    /// The configuration of a directory whose weights may not be there.
    pub fn open_configuration(directory: &Path) -> Result<Self> {
        let config = read_json(&directory.join("config.json"))?;
        Self::new(directory.to_path_buf(), config, Tensors::Absent)
    }

    fn new(path: PathBuf, config: Value, tensors: Tensors) -> Result<Self> {
        let text = text_config(&config).with_context(|| path.display().to_string())?;
        let (is_nested, mut config) = (text.is_some(), text.unwrap_or(config));
        let is_of_lens = LENS_KEYS.iter().all(|key| config.get(key).is_some()) && config.get("model_type").is_none();
        if let Some(config) = config.as_object_mut().filter(|_| is_of_lens) {
            config.insert("model_type".into(), LENS.into());
        }
        let names = tensors.names();
        let is_whole = names.iter().any(|name| PREFIXES.iter().any(|prefix| name.starts_with(prefix)));
        let is_absent = matches!(tensors, Tensors::Absent);
        let left_out = if is_whole || is_absent || is_nested { None } else { base_prefix(&config) };
        let (keys, read) = (Map::new(), Mutex::default());
        Ok(Self { path, config, keys, spellings: &[], tensors, left_out, is_nested, tied: false, read })
    }

    /// Says that the unembedding is the embedding: then a file may have either.
    pub fn tie(&mut self) {
        self.tied = true;
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration as it is written; of a model that reads images too, that of its text model.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// From now on, these are the keys that [`Checkpoint::given`], [`Checkpoint::size`] and the others read.
    pub fn set_keys(&mut self, keys: Map<String, Value>, spellings: &'static [(&'static str, &'static str)]) {
        (self.keys, self.spellings) = (keys, spellings);
    }

    /// The name that the configuration has for a key.
    pub fn spelling<'a>(&self, key: &'a str) -> &'a str {
        let others = self.spellings.iter().filter(|(_, own)| *own == key).map(|(other, _)| *other);
        others.chain([key]).find(|name| self.config.get(name).is_some()).unwrap_or(key)
    }

    /// A key of the configuration, or the family's default; `None` if it has neither.
    pub fn given(&self, key: &str) -> Option<&Value> {
        self.keys.get(key)
    }

    /// As [`Checkpoint::given`]; null if it is missing.
    pub fn key(&self, key: &str) -> &Value {
        self.given(key).unwrap_or(&Value::Null)
    }

    pub fn gguf(&self) -> Option<&GgufFile> {
        match &self.tensors {
            Tensors::Gguf(file) => Some(file),
            _ => None,
        }
    }

    pub fn model_type(&self) -> Result<&str> {
        let named = self.config.get("model_type").and_then(Value::as_str);
        named.with_context(|| format!("{}: the configuration has no `model_type`", self.path.display()))
    }

    /// A whole number of the configuration.
    pub fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.with_context(|| {
            format!("{}: the configuration has no `{key}`; expected a positive whole number", self.path.display())
        })
    }

    /// A whole number of the configuration that may be missing.
    pub fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        match self.key(key) {
            Value::Null => Ok(None),
            value => match value.as_u64() {
                Some(n) if n > 0 && n < u32::MAX as u64 => Ok(Some(n as usize)),
                _ => bail!("{}: `{key}` is {value}; expected a positive whole number", self.path.display()),
            },
        }
    }

    /// The ε of a norm.
    pub fn epsilon(&self, key: &str) -> Result<f32> {
        let value = self.key(key);
        let fits = |&x: &f64| (0.0..=1.0).contains(&x) && (x == 0.0 || x as f32 >= f32::MIN_POSITIVE);
        let epsilon = value.as_f64().filter(fits).with_context(|| {
            format!(
                "{}: `{key}` is {value}; expected a number from 0 to 1 that a 32-bit float can hold",
                self.path.display()
            )
        })?;
        Ok(epsilon as f32)
    }

    pub fn has(&self, name: &str) -> bool {
        self.stored(name).is_some()
    }

    /// The name that the file has for a tensor.
    fn stored<'a>(&self, name: &'a str) -> Option<Cow<'a, str>> {
        let of_base = self.left_out.and_then(|prefix| name.strip_prefix(prefix));
        let head = ENDS.iter().find(|(embedding, _)| self.tied && *embedding == name).map(|(_, head)| *head);
        let names = [Some(name), of_base, head].into_iter().flatten();
        let nested = names.clone().filter(|_| self.is_nested).flat_map(stored_names).map(Cow::Owned);
        names.map(Cow::Borrowed).chain(nested).find(|name| self.tensors.has(name))
    }

    /// Says that the tensors whose names begin so are no part of the model as it is run here, and how many they are.
    pub fn leave_out(&self, prefix: &str) -> usize {
        let names: Vec<_> = self.tensors.names().into_iter().filter(|name| name.starts_with(prefix)).collect();
        let count = names.len();
        self.read.lock().unwrap_or_else(|e| e.into_inner()).extend(names);
        count
    }

    /// The elements of a tensor of that shape.
    pub fn elements(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.read(name, shape)
    }

    /// A vector of `len` elements.
    pub fn vector(&self, name: &str, len: usize) -> Result<Array1<f32>> {
        Ok(Array1::from_vec(self.read(name, &[len])?))
    }

    /// A matrix as stored, [rows, columns].
    pub fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Array2<f32>> {
        Ok(Array2::from_shape_vec((rows, columns), self.read(name, &[rows, columns])?)?)
    }

    /// As [`Checkpoint::matrix`], of three dimensions.
    pub fn cube(&self, name: &str, shape: [usize; 3]) -> Result<Array3<f32>> {
        Ok(Array3::from_shape_vec(shape, self.read(name, &shape)?)?)
    }

    /// A linear layer's weight, stored [out, in] as PyTorch does, as a matrix that acts on rows: [in, out].
    pub fn linear(&self, name: &str, inputs: usize, outputs: usize) -> Result<Array2<f32>> {
        Ok(self.matrix(name, outputs, inputs)?.t().as_standard_layout().into_owned())
    }

    /// The element type of a tensor, for the `model` table.
    pub fn dtype(&self, name: &str) -> Result<String> {
        let missing = || self.missing(name);
        let stored = || self.stored(name).with_context(missing);
        match &self.tensors {
            Tensors::Safetensors(shards) => {
                let name = stored()?;
                let dtype = shards.of(&name).and_then(|file| file.dtype(&name));
                Ok(dtype.with_context(missing)?.to_string())
            }
            Tensors::Pickle(shards) => {
                let name = stored()?;
                let info = shards.of(&name).and_then(|f| f.tensor_infos().get(&*name));
                Ok(info.with_context(missing)?.dtype.as_str().to_uppercase())
            }
            Tensors::Gguf(file) => file.dtype(name).with_context(missing),
            Tensors::Absent => {
                let text = |key: &str| self.config.get(key).and_then(Value::as_str);
                let named = text("dtype").or(text("torch_dtype"));
                Ok(named.unwrap_or("unknown").to_string())
            }
        }
    }

    /// Whether every tensor of the checkpoint was asked for, but for those that are computed and not learned, and an
    /// unembedding that repeats the embedding.
    pub fn check_nothing_was_left_out(&self) -> Result<()> {
        if let Tensors::Gguf(file) = &self.tensors {
            return file.check_nothing_was_left_out(&self.read.lock().unwrap_or_else(|e| e.into_inner()));
        }
        let all = self.tensors.names();
        let computed = [
            "attn.bias",
            "attn.masked_bias",
            "attn.causal_mask",
            "attn.mask",
            "attn.IGNORE",
            "attention.bias",
            "attention.masked_bias",
            "rotary_emb.inv_freq",
        ];
        let read = self.read.lock().unwrap_or_else(|e| e.into_inner());
        let is_other = |n: &str| computed.iter().any(|c| n.ends_with(c)) || self.is_nested && is_of_another_part(n);
        let left: Vec<&String> = all.iter().filter(|n| !read.contains(*n) && !is_other(n)).collect();
        ensure!(
            left.is_empty(),
            "{}: the checkpoint has tensors that its configuration does not explain ({}{}); this variant is not \
            supported yet{}",
            self.path.display(),
            left.iter().take(3).map(|n| n.as_str()).collect::<Vec<_>>().join(", "),
            if left.len() > 3 { ", …" } else { "" },
            self.asked_for()
        );
        Ok(())
    }

    fn missing(&self, name: &str) -> String {
        let is_head = self.left_out.is_some() && ENDS.iter().any(|(_, head)| *head == name);
        let why = match is_head {
            true => "the file is that of the base model, without the unembedding that the logits need".to_string(),
            false => format!("is the checkpoint complete?{}", self.asked_for()),
        };
        format!("{}: the tensor `{name}` is missing; {why}", self.path.display())
    }

    /// What tensors there should be and of which shapes follows from these keys.
    fn asked_for(&self) -> String {
        let decides = |value: &Value| value.is_u64() || value.is_boolean() || value.is_null();
        let keys = self.keys.iter().filter(|(_, value)| decides(value)).map(|(key, value)| {
            let name = self.spelling(key);
            match self.config.get(name) {
                Some(_) => format!("`{name}` = {value}"),
                None => {
                    let others = self.spellings.iter().filter(|(_, own)| own == key);
                    let others: String = others.map(|(other, _)| format!(" or `{other}`")).collect();
                    format!("`{name}`{others} = {value} (default)")
                }
            }
        });
        let keys: Vec<String> = keys.collect();
        if keys.is_empty() { String::new() } else { format!(" (the configuration has {})", keys.join(", ")) }
    }

    /// The only place where weights come in: shape and finiteness are checked here.
    fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let stored = self.stored(name).with_context(|| self.missing(name))?;
        self.read.lock().unwrap_or_else(|e| e.into_inner()).insert(stored.to_string());
        let values = without_panic(|| self.values(&stored, shape)).with_context(|| {
            format!("{}: the tensor `{name}` cannot be read{}", self.path.display(), self.asked_for())
        })?;
        if let Some((i, value)) = values.iter().enumerate().find(|(_, v)| !v.is_finite()) {
            bail!("{}: the tensor `{name}` has {value} at element {i}; weights must be finite", self.path.display());
        }
        Ok(values)
    }

    /// A tensor of that shape.
    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = match &self.tensors {
            Tensors::Safetensors(shards) => return shards.of(name).context("it is missing")?.read(name, shape),
            Tensors::Pickle(shards) => {
                let file = shards.of(name).context("it is missing")?;
                // Before memory is taken for it: the sizes are what the file says.
                let found = file.tensor_infos().get(name).context("it is missing")?.layout.dims();
                ensure!(found == shape, "its shape is {found:?}; the configuration asks for {shape:?}");
                file.get(name)?.context("it vanished")?
            }
            Tensors::Gguf(file) => file.tensor(name)?,
            Tensors::Absent => bail!("there are no weights"),
        };
        ensure!(tensor.dims() == shape, "its shape is {:?}; the configuration asks for {shape:?}", tensor.dims());
        Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?)
    }
}

impl Tensors {
    fn has(&self, name: &str) -> bool {
        match self {
            Tensors::Safetensors(shards) => shards.place.contains_key(name),
            Tensors::Pickle(shards) => shards.place.contains_key(name),
            Tensors::Gguf(file) => file.has(name),
            Tensors::Absent => false,
        }
    }

    /// Names of all tensors; none of a GGUF file, which has names of its own.
    fn names(&self) -> Vec<String> {
        match self {
            Tensors::Safetensors(shards) => shards.place.keys().cloned().collect(),
            Tensors::Pickle(shards) => shards.place.keys().cloned().collect(),
            Tensors::Gguf(_) | Tensors::Absent => vec![],
        }
    }
}

/// What the class with a head puts before the names of the base model (transformers: `base_model_prefix`).
fn base_prefix(config: &Value) -> Option<&'static str> {
    Some(match config["model_type"].as_str()? {
        "bloom" | "codegen" | "falcon" | "gpt2" | "gpt_bigcode" | "gpt_neo" | "gptj" | "mpt" => "transformer.",
        "gpt_neox" => "gpt_neox.",
        _ => "model.",
    })
}

fn open_directory(directory: &Path) -> Result<Tensors> {
    let weights = weights(directory)?;
    if weights.are_pickles() {
        let names = |f: &PthTensors| f.tensor_infos().keys().cloned().collect();
        return Ok(Tensors::Pickle(Shards::open(&weights, open_pickle, names)?));
    }
    let names = |f: &SafetensorsFile| f.names().cloned().collect();
    Ok(Tensors::Safetensors(Shards::open(&weights, SafetensorsFile::open, names)?))
}

fn open_pickle(path: &Path) -> Result<PthTensors> {
    let size = open_file(path)?.metadata()?.len();
    without_panic(|| check_pickle(path)).with_context(|| format!("reading {}", path.display()))?;
    let tensors = without_panic(|| Ok(PthTensors::new(path, None)?))
        .with_context(|| format!("{} is not a complete PyTorch file of plain tensors", path.display()))?;
    // PyTorch does not compress, and candle makes room for a tensor before it reads one.
    for (name, info) in tensors.tensor_infos() {
        let bytes =
            info.layout.dims().iter().try_fold(info.dtype.size_in_bytes() as u64, |n, &d| n.checked_mul(d as u64));
        ensure!(
            bytes.is_some_and(|bytes| bytes <= size),
            "{}: the tensor `{name}` of {:?} is larger than the file",
            path.display(),
            info.layout.dims()
        );
    }
    Ok(tensors)
}
