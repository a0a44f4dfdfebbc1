//! Operators of our own for ONNX Runtime on a CPU, in place of chains of standard ones that go through memory again for
//! each (`export::prepared` puts them into a graph as it is loaded; the files have standard operators only).
//!
//! A thread has an engine of its own, so an operator runs on the thread that calls it.

mod attend;
mod elementwise;
mod functions;

use std::marker::PhantomData;

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput};
use ort::value::{TensorElementType, ValueRef};
use ort::{Error, Result};
use pulp::Arch;

use crate::export::{ACTIVATION, ADDITION, ATTENTION, HEAD_EFFECTS, NORM, OWN_DOMAIN, activation_named};
use crate::model::Activation;
use attend::{Attend, Heads, MeetDirections, Scratch};
use elementwise::{Activate, Add, Normalize};

/// The operators, to register with a session.
pub fn domain() -> Result<OperatorDomain> {
    OperatorDomain::new(OWN_DOMAIN)?
        .add(Of::<CausalAttention>(PhantomData))?
        .add(Of::<HeadEffects>(PhantomData))?
        .add(Of::<ActivationOf>(PhantomData))?
        .add(Of::<AdditionTo>(PhantomData))?
        .add(Of::<NormOf>(PhantomData))
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

/// q [B, S, heads · d_head], k and values [B, S, kv_heads · d_head], and perhaps directions [B or 1, S, heads · d_head] → z
/// as q, and, if there are directions, its dot products with them, [B, S, heads].
struct CausalAttention {
    heads: usize,
    kv_heads: usize,
    scale: f32,
    scratch: Scratch,
}

impl Described for CausalAttention {
    const NAME: &str = ATTENTION;
    const INPUTS: Counts = Counts { required: 3, optional: 1 };
    const OUTPUTS: Counts = Counts { required: 1, optional: 1 };

    fn new(context: &KernelContext) -> Result<Self> {
        Ok(CausalAttention {
            heads: attribute::<i64>(context, "q_num_heads")? as usize,
            kv_heads: attribute::<i64>(context, "kv_num_heads")? as usize,
            scale: attribute(context, "scale")?,
            scratch: Scratch::default(),
        })
    }
}

impl Kernel for CausalAttention {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        let [q, k, v, u] = [context.input(0)?, context.input(1)?, context.input(2)?, context.input(3)?];
        let ([q, k, v], u) = ([required(&q)?, required(&k)?, required(&v)?], floats(&u)?);
        let [batch, positions, width] = q.shape[..] else { return ensure(false, "q") };
        ensure(positions > 0 && width > 0 && (width as usize).is_multiple_of(self.heads), "q")?;
        let heads = Heads {
            heads: self.heads,
            kv_heads: self.kv_heads,
            d_head: width as usize / self.heads,
            scale: self.scale,
        };
        let (rows, of_prompt) = (positions as usize, (positions * width) as usize);
        let kv_width = self.kv_heads * heads.d_head;
        ensure(k.data.len() == batch as usize * rows * kv_width && v.data.len() == k.data.len(), "k or v")?;
        let mut z = context.output(0, q.shape.clone())?.ok_or_else(|| Error::new("the output is missing"))?;
        let z = z.try_extract_tensor_mut::<f32>()?.1;
        for (b, z) in z.chunks_exact_mut(of_prompt).enumerate() {
            Arch::new().dispatch(Attend {
                heads,
                queries: &q.data[b * of_prompt..][..of_prompt],
                keys: &k.data[b * rows * kv_width..][..rows * kv_width],
                values: &v.data[b * rows * kv_width..][..rows * kv_width],
                scratch: &mut self.scratch,
                z,
            });
        }
        u.map_or(Ok(()), |u| meet_directions(context, 1, [batch, positions], self.heads, z, &u))
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
        meet_directions(context, 0, [batch, positions], self.heads, z.data, &u)
    }
}

fn meet_directions(
    context: &ComputeContext,
    output: usize,
    [batch, positions]: [i64; 2],
    heads: usize,
    z: &[f32],
    u: &Floats,
) -> Result<()> {
    let of_prompt = z.len() / batch.max(1) as usize;
    ensure(!u.data.is_empty() && (u.data.len() == of_prompt || u.data.len() == z.len()), "the directions")?;
    let effects = context.output(output, vec![batch, positions, heads as i64])?;
    let mut effects = effects.ok_or_else(|| Error::new("an output is missing"))?;
    let effects = effects.try_extract_tensor_mut::<f32>()?.1;
    Arch::new().dispatch(MeetDirections { d_head: z.len() / effects.len(), z, directions: u.data, effects });
    Ok(())
}

/// x, and either a bias of its columns or a tensor `up` of its shape → activation(x + bias) or activation(x) ⊙ up.
struct ActivationOf(Activation);

impl Described for ActivationOf {
    const NAME: &str = ACTIVATION;
    const INPUTS: Counts = Counts { required: 1, optional: 2 };
    const OUTPUTS: Counts = Counts { required: 1, optional: 0 };

    fn new(context: &KernelContext) -> Result<Self> {
        let name: String = attribute(context, "activation")?;
        activation_named(&name).map(ActivationOf).ok_or_else(|| Error::new(format!("no activation {name}")))
    }
}

impl Kernel for ActivationOf {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        let [x, bias, up] = [context.input(0)?, context.input(1)?, context.input(2)?];
        let (x, bias, up) = (required(&x)?, floats(&bias)?, floats(&up)?);
        ensure(bias.as_ref().is_none_or(|b| !b.data.is_empty() && b.data.len() == x.columns()), "the bias")?;
        ensure(up.as_ref().is_none_or(|up| bias.is_none() && up.shape == x.shape), "what is gated")?;
        let mut post = context.output(0, x.shape.clone())?.ok_or_else(|| Error::new("the output is missing"))?;
        let post = post.try_extract_tensor_mut::<f32>()?.1;
        let (bias, up) = (bias.map(|b| b.data), up.map(|up| up.data));
        Arch::new().dispatch(Activate { activation: self.0, x: x.data, bias, up, post });
        Ok(())
    }
}

/// product, stream \[.., D\], and perhaps a bias \[D\] and directions \[.., D\] that broadcast over the batch → stream +
/// product + bias, product + bias if there is a bias, and its dot product with the directions if there are some.
struct AdditionTo;

impl Described for AdditionTo {
    const NAME: &str = ADDITION;
    const INPUTS: Counts = Counts { required: 2, optional: 2 };
    const OUTPUTS: Counts = Counts { required: 1, optional: 2 };

    fn new(_: &KernelContext) -> Result<Self> {
        Ok(AdditionTo)
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
        let mut sum = context.output(0, stream.shape.clone())?.ok_or_else(|| Error::new("the output is missing"))?;
        let mut written = bias.as_ref().map(|_| context.output(1, stream.shape.clone())).transpose()?.flatten();
        let of_rows = stream.shape[..stream.shape.len() - 1].to_vec();
        let mut effects = u.as_ref().map(|_| context.output(2, of_rows)).transpose()?.flatten();
        let written = written.as_mut().map(|w| w.try_extract_tensor_mut::<f32>()).transpose()?;
        let effects = effects.as_mut().map(|e| e.try_extract_tensor_mut::<f32>()).transpose()?;
        ensure(written.is_some() == bias.is_some() && effects.is_some() == u.is_some(), "an output")?;
        Arch::new().dispatch(Add {
            d_model: d,
            product: product.data,
            bias: bias.zip(written).map(|(bias, written)| (bias.data, written.1)),
            stream: stream.data,
            directions: u.zip(effects).map(|(u, effects)| (u.data, effects.1)),
            sum: sum.try_extract_tensor_mut::<f32>()?.1,
        });
        Ok(())
    }
}

/// x \[.., D\] and γ \[D\] → x as RMS norm or layer norm leaves it, without a bias.
struct NormOf {
    epsilon: f32,
    is_centred: bool,
}

impl Described for NormOf {
    const NAME: &str = NORM;
    const INPUTS: Counts = Counts { required: 2, optional: 0 };
    const OUTPUTS: Counts = Counts { required: 1, optional: 0 };

    fn new(context: &KernelContext) -> Result<Self> {
        let is_centred = attribute::<i64>(context, "is_centred")? != 0;
        Ok(NormOf { epsilon: attribute(context, "epsilon")?, is_centred })
    }
}

impl Kernel for NormOf {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        let [x, gamma] = [context.input(0)?, context.input(1)?];
        let (x, gamma) = (required(&x)?, required(&gamma)?);
        ensure(!gamma.data.is_empty() && x.columns() == gamma.data.len(), "γ")?;
        let mut normed = context.output(0, x.shape.clone())?.ok_or_else(|| Error::new("the output is missing"))?;
        let normed = normed.try_extract_tensor_mut::<f32>()?.1;
        let Self { epsilon, is_centred } = *self;
        Arch::new().dispatch(Normalize { x: x.data, gamma: gamma.data, epsilon, is_centred, normed });
        Ok(())
    }
}
