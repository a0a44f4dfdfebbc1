//! The types of numbers in the file of weights.

use std::io::Write;

use half::{bf16, f16};
use selfrepair_core::precision::Half;

use super::onnx::FLOAT;

/// How the file of weights has a tensor's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    F32,
    /// All of its numbers are 16-bit floats.
    Half(Half),
}

impl Element {
    /// The smallest that has these numbers exactly. Small tensors stay float32.
    pub fn of(values: &[f32]) -> Self {
        const SMALL: usize = 1 << 8;
        let fits = |half: Half| values.iter().all(|&v| half.round(v).to_bits() == v.to_bits());
        match values.len() {
            0..SMALL => Self::F32,
            _ => [Half::Bf16, Half::Fp16].into_iter().find(|&half| fits(half)).map_or(Self::F32, Self::Half),
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Half(_) => 2,
        }
    }

    /// As onnx.proto numbers the type.
    pub fn data_type(self) -> i32 {
        match self {
            Self::F32 => FLOAT,
            Self::Half(Half::Fp16) => 10,
            Self::Half(Half::Bf16) => 16,
        }
    }

    pub fn of_type(data_type: i32) -> Option<Self> {
        let all = [Self::F32, Self::Half(Half::Fp16), Self::Half(Half::Bf16)];
        all.into_iter().find(|element| element.data_type() == data_type)
    }

    pub fn write(self, values: &[f32], out: &mut impl Write) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        for values in values.chunks(1 << 16) {
            bytes.clear();
            match self {
                Self::F32 => bytes.extend(values.iter().flat_map(|v| v.to_le_bytes())),
                Self::Half(Half::Bf16) => bytes.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
                Self::Half(Half::Fp16) => bytes.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())),
            }
            out.write_all(&bytes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_stored_in_the_smallest_type_that_has_them() {
        let of = |value: f32| Element::of(&vec![value; 300]);
        assert_eq!(of(1.5), Element::Half(Half::Bf16));
        // Eleven bits of mantissa.
        assert_eq!(of(1.0 + 2f32.powi(-10)), Element::Half(Half::Fp16));
        assert_eq!(of(1.0 + 2f32.powi(-11)), Element::F32);
        // Beyond float16, with eight bits.
        assert_eq!(of(2f32.powi(100)), Element::Half(Half::Bf16));
        assert_eq!(of(-0.0), Element::Half(Half::Bf16));
        assert_eq!(Element::of(&[1.5; 10]), Element::F32);
        for element in [Element::F32, Element::Half(Half::Bf16), Element::Half(Half::Fp16)] {
            let mut bytes = Vec::new();
            element.write(&[1.0; 70_000], &mut bytes).unwrap();
            assert_eq!(bytes.len(), 70_000 * element.bytes());
            assert_eq!(Element::of_type(element.data_type()), Some(element));
        }
    }
}
