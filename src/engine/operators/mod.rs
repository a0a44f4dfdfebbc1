//! Custom operators for ONNX Runtime on a CPU. They replace chains of standard operators, each of which would pass over
//! memory again. `load::prepared` puts them into a graph when it is loaded; the files have standard operators only.
//!
//! Every thread has its own engine, so an operator runs on the thread that calls it.

mod attend;
mod elementwise;
mod functions;

use std::marker::PhantomData;

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput};
use ort::value::{TensorElementType, ValueRef, ValueRefMut};
use ort::{Error, Result};
use pulp::Arch;

use crate::load::{
    ACTIVATION, ADDITION, ATTENTION, HEAD_EFFECTS, NORM, NORM_SCALE, OWN_DOMAIN, READ_BY_DIFFERENCE, activation_named,
};
use attend::{Attend, Heads, MeetDirections, Projected, Rotary, Scratch};
use elementwise::{Activate, Add, MeasureNorm, NormKind, Normalize, ReadChange};
use selfrepair_model::Activation;

/// The operators, to register with a session.
pub fn domain() -> Result<OperatorDomain> {
    OperatorDomain::new(OWN_DOMAIN)?
        .add(Of::<CausalAttention>(PhantomData))?
        .add(Of::<HeadEffects>(PhantomData))?
        .add(Of::<ActivationOf>(PhantomData))?
        .add(Of::<AdditionTo>(PhantomData))?
        .add(Of::<NormOf>(PhantomData))?
        .add(Of::<NormScale>(PhantomData))?
        .add(Of::<ReadByDifference>(PhantomData))
}

const FLOATS: TensorElementType = TensorElementType::Float32;

/// Tensors of floats that an operator takes or gives, those first that there must be.
struct Counts {
    required: usize,
    optional: usize,
}

impl Counts {
    fn each<T>(&self, required: fn(TensorElementType) -> T, optional: fn(TensorElementType) -> T) -> Vec<T> {
        let kind = |i| if i < self.required { required(FLOATS) } else { optional(FLOATS) };
        (0..self.required + self.optional).map(kind).collect()
    }
}

/// A kernel that says what `ort` asks of its operator.
trait Described: Kernel + Sized + 'static {
    const NAME: &str;
    const INPUTS: Counts;
    const OUTPUTS: Counts;

    fn new(context: &KernelContext) -> Result<Self>;
}

/// The operator of a kernel.
struct Of<K>(PhantomData<fn() -> K>);

impl<K: Described> Operator for Of<K> {
    type Kernel<'a> = K;

    fn name(&self) -> &str {
        K::NAME
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        K::INPUTS.each(OperatorInput::required, OperatorInput::optional)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        K::OUTPUTS.each(OperatorOutput::required, OperatorOutput::optional)
    }

    fn create_kernel<'a>(&self, context: &KernelContext<'a>) -> Result<K> {
        K::new(context)
    }
}

/// An output that there must be.
fn output<'a>(context: &'a ComputeContext, number: usize, shape: Vec<i64>) -> Result<ValueRefMut<'a>> {
    context.output(number, shape)?.ok_or_else(|| Error::new("an output is missing"))
}

/// Zeros to leave behind each row of the first output.
fn padding(context: &KernelContext) -> usize {
    context.get::<i64>("padding").map_or(0, |padding| padding as usize)
}

/// The shape with as many columns more.
fn padded(shape: &[i64], padding: usize) -> Vec<i64> {
    let mut shape = shape.to_vec();
    if let Some(columns) = shape.last_mut() {
        *columns += padding as i64;
    }
    shape
}

fn attribute<'a, T: ort::operator::FromKernelContext<'a>>(context: &KernelContext<'a>, name: &str) -> Result<T> {
    context.get(name).ok_or_else(|| Error::new(format!("the attribute {name} is missing")))
}

/// A tensor's shape and numbers.
struct Floats<'a> {
    shape: Vec<i64>,
    data: &'a [f32],
}

impl Floats<'_> {
    /// Length of the last axis.
    fn columns(&self) -> usize {
        self.shape.last().map_or(0, |&n| n as usize)
    }
}

fn floats<'a>(value: &'a Option<ValueRef<'_>>) -> Result<Option<Floats<'a>>> {
    let Some(value) = value else { return Ok(None) };
    let (shape, data) = value.try_extract_tensor::<f32>()?;
    Ok(Some(Floats { shape: shape.to_vec(), data }))
}

fn required<'a>(value: &'a Option<ValueRef<'_>>) -> Result<Floats<'a>> {
    floats(value)?.ok_or_else(|| Error::new("an input is missing"))
}

fn ensure(holds: bool, what: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::new(format!("{what} has another shape than expected"))) }
}

/// q [B, S, heads · d_head], k and values [B, S, kv_heads · d_head], and perhaps directions [B or 1, S, heads · d_head],
/// biases of q and k, and cos and sin [S or more, pairs] of the angles that turn both → z as q, and, if there are
/// directions, its dot products with them, [B, S, heads].
struct CausalAttention {
    heads: usize,
    kv_heads: usize,
    scale: f32,
    softcap: Option<f32>,
    padding: usize,
    scratch: Scratch,
}

impl Described for CausalAttention {
    const NAME: &str = ATTENTION;
    const INPUTS: Counts = Counts { required: 3, optional: 5 };
    const OUTPUTS: Counts = Counts { required: 1, optional: 1 };

    fn new(context: &KernelContext) -> Result<Self> {
        Ok(CausalAttention {
            heads: attribute::<i64>(context, "q_num_heads")? as usize,
            kv_heads: attribute::<i64>(context, "kv_num_heads")? as usize,
            scale: attribute(context, "scale")?,
            softcap: context.get("softcap"),
            padding: padding(context),
            scratch: Scratch::default(),
        })
    }
}

impl Kernel for CausalAttention {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        let inputs = (0..8).map(|i| context.input(i)).collect::<Result<Vec<_>>>()?;
        let [q, k, v] = [required(&inputs[0])?, required(&inputs[1])?, required(&inputs[2])?];
        let [u, q_bias, k_bias] = [floats(&inputs[3])?, floats(&inputs[4])?, floats(&inputs[5])?];
        let [batch, positions, width] = q.shape[..] else { return ensure(false, "q") };
        ensure(positions > 0 && width > 0 && (width as usize).is_multiple_of(self.heads), "q")?;
        let heads = Heads {
            heads: self.heads,
            kv_heads: self.kv_heads,
            d_head: width as usize / self.heads,
            scale: self.scale,
            softcap: self.softcap,
        };
        let (rows, of_prompt) = (positions as usize, (positions * width) as usize);
        let kv_width = self.kv_heads * heads.d_head;
        ensure(k.data.len() == batch as usize * rows * kv_width && v.data.len() == k.data.len(), "k or v")?;
        let (cos, sin) = (floats(&inputs[6])?, floats(&inputs[7])?);
        let rotary = cos.zip(sin).map(|(cos, sin)| Rotary { pairs: cos.columns(), cos: cos.data, sin: sin.data });
        let turns =
            |r: &Rotary| 2 * r.pairs <= heads.d_head && r.cos.len() >= rows * r.pairs && r.sin.len() == r.cos.len();
        ensure(rotary.as_ref().is_none_or(turns), "cos or sin")?;
        let is_bias = |bias: &Option<Floats>, of: usize| bias.as_ref().is_none_or(|b| b.data.len() == of);
        ensure(is_bias(&q_bias, width as usize) && is_bias(&k_bias, kv_width), "a bias")?;
        let (q_bias, k_bias) = (q_bias.map(|b| b.data), k_bias.map(|b| b.data));
        let padding = self.padding;
        let mut z = output(context, 0, padded(&q.shape, padding))?;
        let z = z.try_extract_tensor_mut::<f32>()?.1;
        for (b, z) in z.chunks_exact_mut(of_prompt + rows * padding).enumerate() {
            let of_keys = b * rows * kv_width..(b + 1) * rows * kv_width;
            Arch::new().dispatch(Attend {
                heads,
                queries: Projected { product: &q.data[b * of_prompt..][..of_prompt], bias: q_bias, rotary },
                keys: Projected { product: &k.data[of_keys.clone()], bias: k_bias, rotary },
                values: &v.data[of_keys],
                scratch: &mut self.scratch,
                padding,
                z,
            });
        }
        let z = Z { batch, positions, heads: self.heads, padding, data: z };
        u.map_or(Ok(()), |u| dot_directions(context, 1, &z, &u))
    }
}

/// z [B, S, heads · d_head] and directions [B or 1, S, heads · d_head] → their dot products by head, [B, S, heads].
struct HeadEffects {
    heads: usize,
}

impl Described for HeadEffects {
    const NAME: &str = HEAD_EFFECTS;
    const INPUTS: Counts = Counts { required: 2, optional: 0 };
    const OUTPUTS: Counts = Counts { required: 1, optional: 0 };

    fn new(context: &KernelContext) -> Result<Self> {
        Ok(HeadEffects { heads: attribute::<i64>(context, "q_num_heads")? as usize })
    }
}

impl Kernel for HeadEffects {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        let [z, u] = [context.input(0)?, context.input(1)?];
        let (z, u) = (required(&z)?, required(&u)?);
        let [batch, positions, width] = z.shape[..] else { return ensure(false, "z") };
        ensure(width > 0 && (width as usize).is_multiple_of(self.heads), "z")?;
        dot_directions(context, 0, &Z { batch, positions, heads: self.heads, padding: 0, data: z.data }, &u)
    }
}

/// [batch, positions, heads · d_head + padding].
struct Z<'a> {
    batch: i64,
    positions: i64,
    heads: usize,
    padding: usize,
    data: &'a [f32],
}

fn dot_directions(context: &ComputeContext, number: usize, z: &Z, u: &Floats) -> Result<()> {
    let &Z { batch, positions, heads, padding, data } = z;
    let mut effects = output(context, number, vec![batch, positions, heads as i64])?;
    let effects = effects.try_extract_tensor_mut::<f32>()?.1;
    let rows = (batch * positions) as usize;
    let of_all = data.len() - rows * padding;
    let of_prompt = of_all / batch.max(1) as usize;
    ensure(!u.data.is_empty() && (u.data.len() == of_prompt || u.data.len() == of_all), "the directions")?;
    Arch::new().dispatch(MeetDirections { heads, padding, z: data, directions: u.data, effects });
    Ok(())
}

/// x, and either a bias of its columns or a tensor `up` of its shape → activation(x + bias) or activation(x) ⊙ up.
struct ActivationOf {
    activation: Activation,
    padding: usize,
}

impl Described for ActivationOf {
    const NAME: &str = ACTIVATION;
    const INPUTS: Counts = Counts { required: 1, optional: 2 };
    const OUTPUTS: Counts = Counts { required: 1, optional: 0 };

    fn new(context: &KernelContext) -> Result<Self> {
        let name: String = attribute(context, "activation")?;
        let activation = activation_named(&name).ok_or_else(|| Error::new(format!("no activation {name}")))?;
        Ok(ActivationOf { activation, padding: padding(context) })
    }
}

impl Kernel for ActivationOf {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        let [x, bias, up] = [context.input(0)?, context.input(1)?, context.input(2)?];
        let (x, bias, up) = (required(&x)?, floats(&bias)?, floats(&up)?);
        let columns = x.columns();
        ensure(columns > 0, "x")?;
        ensure(bias.as_ref().is_none_or(|b| b.data.len() == columns), "the bias")?;
        ensure(up.as_ref().is_none_or(|up| bias.is_none() && up.shape == x.shape), "what is gated")?;
        let &mut Self { activation, padding } = self;
        let mut post = output(context, 0, padded(&x.shape, padding))?;
        let post = post.try_extract_tensor_mut::<f32>()?.1;
        let (bias, up) = (bias.map(|b| b.data), up.map(|up| up.data));
        Arch::new().dispatch(Activate { activation, columns, padding, x: x.data, bias, up, post });
        Ok(())
    }
}

/// product, stream \[.., D\], and perhaps a bias \[D\] and directions \[.., D\] that broadcast over the batch → stream +
/// product + bias, and, if there are directions, the dot product of product + bias with them.
struct AdditionTo {
    /// Memory that calls share.
    written: Vec<f32>,
}

impl Described for AdditionTo {
    const NAME: &str = ADDITION;
    const INPUTS: Counts = Counts { required: 2, optional: 2 };
    const OUTPUTS: Counts = Counts { required: 1, optional: 1 };

    fn new(_: &KernelContext) -> Result<Self> {
        Ok(AdditionTo { written: vec![] })
    }
}

impl Kernel for AdditionTo {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        let [product, stream, bias, u] = [context.input(0)?, context.input(1)?, context.input(2)?, context.input(3)?];
        let (product, stream) = (required(&product)?, required(&stream)?);
        let (bias, u) = (floats(&bias)?, floats(&u)?);
        let d = stream.columns();
        ensure(d > 0 && product.shape == stream.shape, "what is added")?;
        ensure(bias.as_ref().is_none_or(|b| b.data.len() == d), "the bias")?;
        let broadcasts = |u: &Floats| !u.data.is_empty() && u.columns() == d && stream.data.len() % u.data.len() == 0;
        ensure(u.as_ref().is_none_or(|u| stream.data.is_empty() || broadcasts(u)), "the directions")?;
        let mut sum = output(context, 0, stream.shape.clone())?;
        let of_rows = stream.shape[..stream.shape.len() - 1].to_vec();
        let mut effects = u.as_ref().map(|_| context.output(1, of_rows)).transpose()?.flatten();
        let effects = effects.as_mut().map(|e| e.try_extract_tensor_mut::<f32>()).transpose()?;
        ensure(effects.is_some() == u.is_some(), "the effects")?;
        Arch::new().dispatch(Add {
            d_model: d,
            product: product.data,
            bias: bias.map(|bias| bias.data),
            stream: stream.data,
            directions: u.zip(effects).map(|(u, effects)| (u.data, effects.1)),
            sum: sum.try_extract_tensor_mut::<f32>()?.1,
            written: &mut self.written,
        });
        Ok(())
    }
}

/// x \[.., D\] and γ \[D\] → x as RMS norm or layer norm leaves it, without a bias.
struct NormOf {
    norm: NormKind,
    padding: usize,
}

impl Described for NormOf {
    const NAME: &str = NORM;
    const INPUTS: Counts = Counts { required: 2, optional: 0 };
    const OUTPUTS: Counts = Counts { required: 1, optional: 0 };

    fn new(context: &KernelContext) -> Result<Self> {
        Ok(NormOf { norm: norm_kind(context)?, padding: padding(context) })
    }
}

fn norm_kind(context: &KernelContext) -> Result<NormKind> {
    let is_centred = attribute::<i64>(context, "is_centred")? != 0;
    Ok(NormKind { epsilon: attribute(context, "epsilon")?, is_centred })
}

impl Kernel for NormOf {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        let [x, gamma] = [context.input(0)?, context.input(1)?];
        let (x, gamma) = (required(&x)?, required(&gamma)?);
        ensure(!gamma.data.is_empty() && x.columns() == gamma.data.len(), "γ")?;
        let &mut Self { norm, padding } = self;
        let mut normed = output(context, 0, padded(&x.shape, padding))?;
        let normed = normed.try_extract_tensor_mut::<f32>()?.1;
        Arch::new().dispatch(Normalize { norm, padding, x: x.data, gamma: gamma.data, normed });
        Ok(())
    }
}

/// x \[.., D\] → the norm's scale, \[.., 1\].
struct NormScale(NormKind);

impl Described for NormScale {
    const NAME: &str = NORM_SCALE;
    const INPUTS: Counts = Counts { required: 1, optional: 0 };
    const OUTPUTS: Counts = Counts { required: 1, optional: 0 };

    fn new(context: &KernelContext) -> Result<Self> {
        norm_kind(context).map(NormScale)
    }
}

impl Kernel for NormScale {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        let x = context.input(0)?;
        let x = required(&x)?;
        ensure(!x.data.is_empty(), "x")?;
        let mut shape = x.shape.clone();
        shape.pop();
        shape.push(1);
        let mut scale = output(context, 0, shape)?;
        let scale = scale.try_extract_tensor_mut::<f32>()?.1;
        Arch::new().dispatch(MeasureNorm { norm: self.0, x: x.data, scale });
        Ok(())
    }
}

/// clean \[B or 1, S, N\], ratio \[B, S, 1\] and change \[B, S, N\] → ratio ⊙ clean + change, as change.
struct ReadByDifference;

impl Described for ReadByDifference {
    const NAME: &str = READ_BY_DIFFERENCE;
    const INPUTS: Counts = Counts { required: 3, optional: 0 };
    const OUTPUTS: Counts = Counts { required: 1, optional: 0 };

    fn new(_: &KernelContext) -> Result<Self> {
        Ok(ReadByDifference)
    }
}

impl Kernel for ReadByDifference {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        let [clean, ratio, change] = [context.input(0)?, context.input(1)?, context.input(2)?];
        let (clean, ratio, change) = (required(&clean)?, required(&ratio)?, required(&change)?);
        let n = change.columns();
        ensure(n > 0 && change.data.len() == ratio.data.len() * n, "the ratio")?;
        let (runs, rows) = (change.data.len(), clean.data.len());
        ensure(rows > 0 && clean.columns() == n && runs.is_multiple_of(rows), "what was read of the clean stream")?;
        let mut read = output(context, 0, change.shape.clone())?;
        let read = read.try_extract_tensor_mut::<f32>()?.1;
        Arch::new().dispatch(ReadChange { clean: clean.data, ratio: ratio.data, change: change.data, read });
        Ok(())
    }
}
