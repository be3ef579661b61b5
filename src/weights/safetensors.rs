//! The headers of safetensors files, as <https://github.com/huggingface/safetensors> describes them.
//!
//! The library is the judge of what is a header and what is wrong with one. It takes a header apart
//! into several maps, though, which takes longer than everything else of an open together: a header in
//! which nothing is unusual is read in one pass, with the library's own types and rules.

use std::collections::HashMap;
use std::fmt;

use indexmap::IndexMap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use super::ElementType;
use super::header::{Described, Header};

/// The length of a header, before it.
const PREFIX: usize = size_of::<u64>();
/// The library takes none that are longer.
const LONGEST: usize = 100_000_000;

/// Reads the header at the beginning of a whole file.
pub(super) fn read(file: &[u8]) -> Result<Header, String> {
    let (data, Rows { tensors, metadata }) = match usual(file) {
        Some(read) => read,
        None => judged(file)?,
    };
    let describe = |(name, info): (String, Info)| {
        let element = ElementType::of(info.dtype)
            .ok_or_else(|| format!("{name:?} is of a type that is not known: {:?}", info.dtype))?;
        let bytes = data + info.data_offsets.0..data + info.data_offsets.1;
        Ok(Described { name, element, shape: info.shape, packing: None, bytes })
    };
    let tensors = tensors.into_iter().map(describe).collect::<Result<_, String>>()?;
    Ok((tensors, metadata))
}

/// What the library says.
fn judged(file: &[u8]) -> Result<(usize, Rows), String> {
    let (header, read) = SafeTensors::read_metadata(file)
        .map_err(|error| looks_like(file).unwrap_or_else(|| error.to_string()))?;
    let infos = read.tensors();
    let tensors = read.offset_keys().into_iter().map(|name| {
        let info = infos[&name];
        let (dtype, data_offsets) = (info.dtype, info.data_offsets);
        (name, Info { dtype, shape: info.shape.clone(), data_offsets })
    });
    let tensors = tensors.collect();
    Ok((PREFIX + header, Rows { tensors, metadata: read.metadata().clone().unwrap_or_default() }))
}

/// What a header says of a tensor. What says more is for the library to judge.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Info {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// What a header says, the tensors in the order in which they lie.
struct Rows {
    tensors: Vec<(String, Info)>,
    metadata: HashMap<String, String>,
}

/// The same, and where the data begin, for a header without a fault; `None` leaves it to the library.
fn usual(file: &[u8]) -> Option<(usize, Rows)> {
    let (prefix, rest) = file.split_first_chunk::<PREFIX>()?;
    let length = usize::try_from(u64::from_le_bytes(*prefix)).ok()?;
    if length > LONGEST {
        return None;
    }
    let header = str::from_utf8(rest.get(..length)?).ok()?;
    let mut rows: Rows = serde_json::from_str(header).ok()?;
    rows.tensors.sort_by_key(|(_, info)| info.data_offsets);
    let mut end = 0;
    for (_, info) in &rows.tensors {
        let count = info.shape.iter().try_fold(1_usize, |count, size| count.checked_mul(*size))?;
        let bits = count.checked_mul(info.dtype.bitsize()).filter(|bits| bits % 8 == 0)?;
        if info.data_offsets != (end, end.checked_add(bits / 8)?) {
            return None;
        }
        end = info.data_offsets.1;
    }
    (end == rest.len() - length).then_some((PREFIX + length, rows))
}

impl<'de> Deserialize<'de> for Rows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(OnePass)
    }
}

struct OnePass;

impl<'de> Visitor<'de> for OnePass {
    type Value = Rows;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Rows, A::Error> {
        let (mut tensors, mut metadata) = (IndexMap::new(), None);
        while let Some(name) = map.next_key::<String>()? {
            let twice = if name == "__metadata__" {
                metadata.replace(map.next_value()?).is_some()
            } else {
                tensors.insert(name, map.next_value::<Info>()?).is_some()
            };
            if twice {
                return Err(A::Error::custom("two of one name"));
            }
        }
        Ok(Rows { tensors: tensors.into_iter().collect(), metadata: metadata.unwrap_or_default() })
    }
}

/// What a file is instead, where its first bytes tell.
fn looks_like(bytes: &[u8]) -> Option<String> {
    const KNOWN: [(&[u8], &str); 4] = [
        (b"PK\x03\x04", "it looks like a PyTorch checkpoint (a zip archive): convert it first"),
        (b"\x80\x02", "it looks like a pickled PyTorch checkpoint: convert it first"),
        (b"version https://git-lfs", "it is a Git LFS pointer: fetch the file that it stands for"),
        (b"<", "it looks like a web page: the download has failed"),
    ];
    let known = KNOWN.iter().find(|(start, _)| bytes.starts_with(start));
    known.map(|(_, what)| (*what).to_owned())
}
