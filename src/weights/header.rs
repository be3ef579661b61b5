//! What the header of a file of tensors tells.

use std::collections::HashMap;
use std::ops::Range;

use super::ElementType;

/// How a quantised tensor's numbers are packed, as GGUF has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packing {
    /// Its name: `Q4_K`.
    pub name: &'static str,
    /// Its number in GGUF files.
    pub number: u32,
}

/// A tensor as its file describes it.
#[derive(Debug, Clone)]
pub(super) struct Described {
    pub(super) name: String,
    pub(super) element: ElementType,
    /// Of a packed tensor, in bytes.
    pub(super) shape: Vec<usize>,
    pub(super) packing: Option<Packing>,
    /// Where in the file.
    pub(super) bytes: Range<usize>,
}

/// What a reader finds in a file: its tensors, and what it says of itself.
pub(super) type Header = (Vec<Described>, HashMap<String, String>);
