//! What tensors are made of.

use std::fmt;

use safetensors::Dtype;

/// The type of a tensor's elements, named as torch names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "they are torch's names")]
pub enum ElementType {
    Bool,
    UInt8,
    Int8,
    UInt16,
    Int16,
    UInt32,
    Int32,
    UInt64,
    Int64,
    Float16,
    BFloat16,
    Float32,
    Float64,
    Complex32,
    Complex64,
    Complex128,
    Float8E4M3Fn,
    Float8E4M3Fnuz,
    Float8E5M2,
    Float8E5M2Fnuz,
    Float8E8M0Fnu,
    Float6E2M3Fn,
    Float6E3M2Fn,
    /// Shapes count single numbers, of which a byte holds two.
    Float4E2M1Fn,
}

impl ElementType {
    /// The type that safetensors calls so; `None` for one that is newer than this library.
    pub(super) fn of(dtype: Dtype) -> Option<Self> {
        Some(match dtype {
            Dtype::BOOL => Self::Bool,
            Dtype::U8 => Self::UInt8,
            Dtype::I8 => Self::Int8,
            Dtype::U16 => Self::UInt16,
            Dtype::I16 => Self::Int16,
            Dtype::U32 => Self::UInt32,
            Dtype::I32 => Self::Int32,
            Dtype::U64 => Self::UInt64,
            Dtype::I64 => Self::Int64,
            Dtype::F16 => Self::Float16,
            Dtype::BF16 => Self::BFloat16,
            Dtype::F32 => Self::Float32,
            Dtype::F64 => Self::Float64,
            Dtype::C64 => Self::Complex64,
            Dtype::F8_E4M3 => Self::Float8E4M3Fn,
            Dtype::F8_E4M3FNUZ => Self::Float8E4M3Fnuz,
            Dtype::F8_E5M2 => Self::Float8E5M2,
            Dtype::F8_E5M2FNUZ => Self::Float8E5M2Fnuz,
            Dtype::F8_E8M0 => Self::Float8E8M0Fnu,
            Dtype::F6_E2M3 => Self::Float6E2M3Fn,
            Dtype::F6_E3M2 => Self::Float6E3M2Fn,
            Dtype::F4 => Self::Float4E2M1Fn,
            _ => return None,
        })
    }

    /// Bits of one element.
    #[must_use]
    pub fn bits(self) -> usize {
        match self {
            Self::Float4E2M1Fn => 4,
            Self::Float6E2M3Fn | Self::Float6E3M2Fn => 6,
            Self::Bool
            | Self::UInt8
            | Self::Int8
            | Self::Float8E4M3Fn
            | Self::Float8E4M3Fnuz
            | Self::Float8E5M2
            | Self::Float8E5M2Fnuz
            | Self::Float8E8M0Fnu => 8,
            Self::UInt16 | Self::Int16 | Self::Float16 | Self::BFloat16 => 16,
            Self::UInt32 | Self::Int32 | Self::Float32 | Self::Complex32 => 32,
            Self::UInt64 | Self::Int64 | Self::Float64 | Self::Complex64 => 64,
            Self::Complex128 => 128,
        }
    }

    /// The alignment in bytes that code which reads such elements expects.
    #[must_use]
    pub fn alignment(self) -> usize {
        let bits = match self {
            // Two numbers each.
            Self::Complex32 | Self::Complex64 | Self::Complex128 => self.bits() / 2,
            other => other.bits(),
        };
        (bits / 8).max(1)
    }

    /// Bytes of so many elements that lie side by side; `None` for more than there can be.
    #[must_use]
    pub fn bytes(self, count: usize) -> Option<usize> {
        Some(count.checked_mul(self.bits())?.div_ceil(8))
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bool => "bool",
            Self::UInt8 => "uint8",
            Self::Int8 => "int8",
            Self::UInt16 => "uint16",
            Self::Int16 => "int16",
            Self::UInt32 => "uint32",
            Self::Int32 => "int32",
            Self::UInt64 => "uint64",
            Self::Int64 => "int64",
            Self::Float16 => "float16",
            Self::BFloat16 => "bfloat16",
            Self::Float32 => "float32",
            Self::Float64 => "float64",
            Self::Complex32 => "complex32",
            Self::Complex64 => "complex64",
            Self::Complex128 => "complex128",
            Self::Float8E4M3Fn => "float8_e4m3fn",
            Self::Float8E4M3Fnuz => "float8_e4m3fnuz",
            Self::Float8E5M2 => "float8_e5m2",
            Self::Float8E5M2Fnuz => "float8_e5m2fnuz",
            Self::Float8E8M0Fnu => "float8_e8m0fnu",
            Self::Float6E2M3Fn => "float6_e2m3fn",
            Self::Float6E3M2Fn => "float6_e3m2fn",
            Self::Float4E2M1Fn => "float4_e2m1fn_x2",
        })
    }
}
