//! The headers of GGUF files, versions 2 and 3, as
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md> describes them.

use std::collections::HashMap;

use super::ElementType;
use super::header::{Described, Header, Packing};

pub(super) const MAGIC: &[u8] = b"GGUF";
/// More than any file has; what says that it has more is broken.
const MOST: u64 = 1 << 24;
const DEEPEST: usize = 4;

/// How a type's numbers lie: so many to a block of so many bytes.
enum Layout {
    Plain(ElementType),
    Packed { name: &'static str, numbers: usize, bytes: usize },
}

fn layout(number: u32) -> Option<Layout> {
    use ElementType as E;
    let packed = |name, numbers, bytes| Layout::Packed { name, numbers, bytes };
    Some(match number {
        0 => Layout::Plain(E::Float32),
        1 => Layout::Plain(E::Float16),
        2 => packed("Q4_0", 32, 18),
        3 => packed("Q4_1", 32, 20),
        6 => packed("Q5_0", 32, 22),
        7 => packed("Q5_1", 32, 24),
        8 => packed("Q8_0", 32, 34),
        9 => packed("Q8_1", 32, 40),
        10 => packed("Q2_K", 256, 84),
        11 => packed("Q3_K", 256, 110),
        12 => packed("Q4_K", 256, 144),
        13 => packed("Q5_K", 256, 176),
        14 => packed("Q6_K", 256, 210),
        15 => packed("Q8_K", 256, 292),
        16 => packed("IQ2_XXS", 256, 66),
        17 => packed("IQ2_XS", 256, 74),
        18 => packed("IQ3_XXS", 256, 98),
        19 => packed("IQ1_S", 256, 50),
        20 => packed("IQ4_NL", 32, 18),
        21 => packed("IQ3_S", 256, 110),
        22 => packed("IQ2_S", 256, 82),
        23 => packed("IQ4_XS", 256, 136),
        24 => Layout::Plain(E::Int8),
        25 => Layout::Plain(E::Int16),
        26 => Layout::Plain(E::Int32),
        27 => Layout::Plain(E::Int64),
        28 => Layout::Plain(E::Float64),
        29 => packed("IQ1_M", 256, 56),
        30 => Layout::Plain(E::BFloat16),
        34 => packed("TQ1_0", 256, 54),
        35 => packed("TQ2_0", 256, 66),
        39 => packed("MXFP4", 32, 17),
        _ => return None,
    })
}

/// Reads what comes next; every length is checked against what is left.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: u64) -> Result<&'a [u8], String> {
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| format!("its header is cut short at byte {}", self.at))?;
        self.at += taken.len();
        Ok(taken)
    }

    fn number<const BYTES: usize>(&mut self) -> Result<[u8; BYTES], String> {
        let taken = self.take(BYTES as u64)?;
        taken.try_into().map_err(|_| "its header is cut short".to_owned())
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.number()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.number()?))
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.u64()?;
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes);
        Ok(text.map_err(|_| format!("a text before byte {} is not UTF-8", self.at))?.to_owned())
    }

    /// A value of the file's metadata as text; `None` for an array.
    fn value(&mut self, kind: u32, depth: usize) -> Result<Option<String>, String> {
        Ok(Some(match kind {
            0 => self.number::<1>()?[0].to_string(),
            1 => i8::from_le_bytes(self.number()?).to_string(),
            2 => u16::from_le_bytes(self.number()?).to_string(),
            3 => i16::from_le_bytes(self.number()?).to_string(),
            4 => self.u32()?.to_string(),
            5 => i32::from_le_bytes(self.number()?).to_string(),
            6 => f32::from_le_bytes(self.number()?).to_string(),
            7 => (self.number::<1>()?[0] != 0).to_string(),
            8 => self.text()?,
            9 => {
                self.array(depth)?;
                return Ok(None);
            }
            10 => self.u64()?.to_string(),
            11 => i64::from_le_bytes(self.number()?).to_string(),
            12 => f64::from_le_bytes(self.number()?).to_string(),
            other => return Err(format!("there is no type {other} of metadata")),
        }))
    }

    fn array(&mut self, depth: usize) -> Result<(), String> {
        let (kind, count) = (self.u32()?, self.u64()?);
        if depth >= DEEPEST {
            return Err("its metadata has arrays in arrays in arrays".to_owned());
        }
        for _ in 0..count {
            self.value(kind, depth + 1)?;
        }
        Ok(())
    }

    fn count(&mut self, of: &str) -> Result<u64, String> {
        let count = self.u64()?;
        if count > MOST { Err(format!("it cannot have {count} {of}")) } else { Ok(count) }
    }
}

/// The tensors of a GGUF file and its metadata, without its arrays.
pub(super) fn read(bytes: &[u8]) -> Result<Header, String> {
    let mut reader = Reader { bytes, at: MAGIC.len() };
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("its version is {version}, and 2 and 3 can be read"));
    }
    let (tensors, entries) = (reader.count("tensors")?, reader.count("entries of metadata")?);
    let mut metadata = HashMap::new();
    for _ in 0..entries {
        let (key, kind) = (reader.text()?, reader.u32()?);
        if let Some(value) = reader.value(kind, 0)? {
            metadata.insert(key, value);
        }
    }
    let mut described = Vec::new();
    for _ in 0..tensors {
        described.push(tensor(&mut reader)?);
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(text) => text
            .parse::<usize>()
            .ok()
            .filter(|bytes| bytes.is_power_of_two())
            .ok_or_else(|| format!("its alignment cannot be {text}"))?,
    };
    let data = reader.at.next_multiple_of(alignment);
    let mut taken: Vec<(usize, usize)> = Vec::with_capacity(described.len());
    for Described { name, bytes: range, .. } in &mut described {
        let moved = range.start.checked_add(data).zip(range.end.checked_add(data));
        let (start, end) = moved
            .filter(|&(start, end)| end <= bytes.len() && start.is_multiple_of(alignment))
            .ok_or_else(|| format!("{name:?} does not lie in the file"))?;
        *range = start..end;
        taken.push((start, end));
    }
    taken.sort_unstable();
    if taken.windows(2).any(|pair| pair[0].1 > pair[1].0) {
        return Err("two of its tensors overlap".to_owned());
    }
    let mut names: Vec<&str> = described.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    if let Some([name, _]) = names.array_windows().find(|[one, other]| one == other) {
        return Err(format!("there are two tensors {name:?}"));
    }
    described.sort_by_key(|tensor| tensor.bytes.start);
    Ok((described, metadata))
}

/// One tensor, its bytes counted from where the data begins.
fn tensor(reader: &mut Reader<'_>) -> Result<Described, String> {
    let name = reader.text()?;
    let wrong = |why: String| format!("{name:?} {why}");
    let dimensions = reader.u32()?;
    if dimensions > 8 {
        return Err(wrong(format!("cannot have {dimensions} dimensions")));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        let size = usize::try_from(reader.u64()?);
        shape.push(size.map_err(|_| wrong("is larger than memory can be".to_owned()))?);
    }
    // GGUF has the fastest dimension first.
    shape.reverse();
    let number = reader.u32()?;
    let start = reader.u64()?;
    let layout = layout(number).ok_or_else(|| wrong(format!("is of the unknown type {number}")))?;
    let too_large = || wrong("is larger than memory can be".to_owned());
    let (element, packing) = match layout {
        Layout::Plain(element) => (element, None),
        Layout::Packed { name: packing, numbers, bytes } => {
            let last = shape.last_mut().filter(|last| last.is_multiple_of(numbers));
            let last = last.ok_or_else(|| {
                wrong(format!("is not made of whole blocks of {numbers}, as {packing} is"))
            })?;
            *last = (*last / numbers).checked_mul(bytes).ok_or_else(too_large)?;
            (ElementType::UInt8, Some(Packing { name: packing, number }))
        }
    };
    let count = shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size));
    let length = count.and_then(|count| element.bytes(count)).ok_or_else(too_large)?;
    let start = usize::try_from(start).map_err(|_| too_large())?;
    let end = start.checked_add(length).ok_or_else(too_large)?;
    Ok(Described { name, element, shape, packing, bytes: start..end })
}
