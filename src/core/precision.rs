//! The precision of projections: `runtime.precision`.

use serde::{Deserialize, Serialize};

/// The precision of a block's projections. Everything else (the stream, norms, attention's scores, effects) is float32,
/// and so are the ends of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    Fp32,
    /// Inputs of every product rounded to 10 bits of fraction: a mode of NVIDIA cards.
    Tf32,
    /// Inputs and outputs of projections rounded to 7 bits of fraction.
    Bf16,
    /// Inputs and outputs of projections rounded to 10 bits of fraction; above 65504 they are infinite.
    Fp16,
}

/// A 16-bit float.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Half {
    Bf16,
    Fp16,
}

impl Precision {
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
        }
    }

    /// The type in which projections are stored, if not float32.
    pub fn half(self) -> Option<Half> {
        match self {
            Self::Fp32 | Self::Tf32 => None,
            Self::Bf16 => Some(Half::Bf16),
            Self::Fp16 => Some(Half::Fp16),
        }
    }

    /// The rounding tolerance of sums, as a multiple of that in float32. A head's effect is z · v,
    /// where what it writes is z W_O with z, W_O and the product rounded: the two differ by about 2⁻¹¹ (2⁻⁸) of either.
    pub fn tolerance(self) -> f64 {
        match self {
            Self::Fp32 => 1.0,
            Self::Tf32 | Self::Fp16 => 50.0,
            Self::Bf16 => 400.0,
        }
    }
}

impl Half {
    /// The nearest 16-bit float, as float32.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::Bf16 => half::bf16::from_f32(x).to_f32(),
            Self::Fp16 => half::f16::from_f32(x).to_f32(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_to_the_nearest_of_two_bytes() {
        // 1 + 2⁻⁸ and 1 + 2⁻¹¹ lie in the middle of two neighbours, and go to the even one.
        assert_eq!(Half::Bf16.round(1.0 + 2f32.powi(-8)), 1.0);
        assert_eq!(Half::Bf16.round(1.0 + 1.01 * 2f32.powi(-8)), 1.0 + 2f32.powi(-7));
        assert_eq!(Half::Fp16.round(1.0 + 2f32.powi(-11)), 1.0);
        assert_eq!(Half::Fp16.round(1.0 + 1.01 * 2f32.powi(-11)), 1.0 + 2f32.powi(-10));
        assert_eq!((Half::Fp16.round(7e4), Half::Bf16.round(7e4)), (f32::INFINITY, 70144.0));
    }
}
