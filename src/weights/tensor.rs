//! One tensor of a mapped file.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;

use super::file::Mapped;

/// The type of a tensor's elements, named as torch names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElementType(Dtype);

impl ElementType {
    pub(super) fn of(dtype: Dtype) -> Self {
        Self(dtype)
    }

    /// As safetensors has it.
    #[must_use]
    pub fn dtype(self) -> Dtype {
        self.0
    }

    /// The alignment in bytes that code which reads such elements expects.
    #[must_use]
    pub fn alignment(self) -> usize {
        match self.0 {
            // Two numbers of four bytes each.
            Dtype::C64 => 4,
            dtype => (dtype.bitsize() / 8).max(1).next_power_of_two(),
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Dtype::BOOL => "bool",
            Dtype::F4 => "float4_e2m1fn_x2",
            Dtype::F6_E2M3 => "float6_e2m3fn",
            Dtype::F6_E3M2 => "float6_e3m2fn",
            Dtype::U8 => "uint8",
            Dtype::I8 => "int8",
            Dtype::F8_E5M2 => "float8_e5m2",
            Dtype::F8_E4M3 => "float8_e4m3fn",
            Dtype::F8_E8M0 => "float8_e8m0fnu",
            Dtype::F8_E4M3FNUZ => "float8_e4m3fnuz",
            Dtype::F8_E5M2FNUZ => "float8_e5m2fnuz",
            Dtype::I16 => "int16",
            Dtype::U16 => "uint16",
            Dtype::F16 => "float16",
            Dtype::BF16 => "bfloat16",
            Dtype::I32 => "int32",
            Dtype::U32 => "uint32",
            Dtype::F32 => "float32",
            Dtype::C64 => "complex64",
            Dtype::F64 => "float64",
            Dtype::I64 => "int64",
            Dtype::U64 => "uint64",
            _ => "unknown",
        })
    }
}

/// One tensor: row-major, read-only, where it lies in the file. Keeps the file mapped.
#[derive(Clone)]
pub struct Tensor {
    mapped: Arc<Mapped>,
    element: ElementType,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl Tensor {
    pub(super) fn new(
        mapped: Arc<Mapped>,
        element: ElementType,
        shape: Vec<usize>,
        bytes: Range<usize>,
    ) -> Self {
        Self { mapped, element, shape, bytes }
    }

    /// The type of its elements.
    #[must_use]
    pub fn element_type(&self) -> ElementType {
        self.element
    }

    /// Its dimensions, the slowest first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its bytes.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.mapped.bytes()[self.bytes.clone()]
    }

    /// Whether it lies where code that reads its elements expects it. Old files are not padded.
    #[must_use]
    pub fn is_aligned(&self) -> bool {
        self.data().as_ptr().addr().is_multiple_of(self.element.alignment())
    }
}
