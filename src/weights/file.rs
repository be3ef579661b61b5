//! One safetensors file, mapped read-only and checked as a whole.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::TensorInfo;

use super::{ElementType, Tensor, WeightsError};

/// How a file is told from another one at the same path.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity {
    bytes: u64,
    modified: Option<SystemTime>,
    #[cfg(unix)]
    inode: (u64, u64),
}

impl Identity {
    pub(super) fn of(path: &Path) -> Result<Self, WeightsError> {
        let metadata = std::fs::metadata(path).map_err(|why| unreadable(path, why))?;
        if metadata.is_dir() {
            return Err(unreadable(path, io::Error::from(io::ErrorKind::IsADirectory)));
        }
        Ok(Self::from(&metadata))
    }
}

impl From<&Metadata> for Identity {
    fn from(metadata: &Metadata) -> Self {
        Self {
            bytes: metadata.len(),
            modified: metadata.modified().ok(),
            #[cfg(unix)]
            inode: {
                use std::os::unix::fs::MetadataExt;
                (metadata.dev(), metadata.ino())
            },
        }
    }
}

fn unreadable(path: &Path, why: io::Error) -> WeightsError {
    WeightsError::Unreadable { path: path.to_owned(), why }
}

/// A mapped file, and where in it each tensor lies.
pub(super) struct Mapped {
    key: String,
    path: PathBuf,
    identity: Identity,
    map: Mmap,
    /// Where the tensors begin.
    data: usize,
    names: Vec<String>,
    tensors: HashMap<String, TensorInfo>,
    metadata: HashMap<String, String>,
}

impl Mapped {
    pub(super) fn open(key: &str, path: &Path) -> Result<Self, WeightsError> {
        let unreadable = |why| unreadable(path, why);
        let malformed = |why| WeightsError::Malformed { path: path.to_owned(), why };
        let file = File::open(path).map_err(unreadable)?;
        let identity = Identity::from(&file.metadata().map_err(unreadable)?);
        if identity.bytes == 0 {
            return Err(malformed("it is empty".to_owned()));
        }
        // SAFETY: the map is private to this type, which only hands out shared slices of it. That
        // nobody shortens the file meanwhile cannot be had from the system: the room's contract says
        // so.
        #[expect(unsafe_code, reason = "a map of a file that others may change")]
        let map = unsafe { Mmap::map(&file) }.map_err(unreadable)?;
        let (header, tensors) = SafeTensors::read_metadata(&map)
            .map_err(|error| malformed(looks_like(&map).unwrap_or_else(|| error.to_string())))?;
        let names = tensors.offset_keys();
        let known = tensors.tensors().into_iter();
        Ok(Self {
            key: key.to_owned(),
            path: path.to_owned(),
            identity,
            data: size_of::<u64>() + header,
            names,
            tensors: known.map(|(name, info)| (name, info.clone())).collect(),
            metadata: tensors.metadata().clone().unwrap_or_default(),
            map,
        })
    }

    /// The same map, for somebody who wants `path` under its key.
    pub(super) fn shared_as(
        self: Arc<Self>,
        path: &Path,
        identity: &Identity,
    ) -> Result<Arc<Self>, WeightsError> {
        if self.identity == *identity {
            return Ok(self);
        }
        let (key, open) = (self.key.clone(), self.path.clone());
        Err(WeightsError::InUse { key, replaced: open == path, open })
    }

    pub(super) fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    pub(super) fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    pub(super) fn nbytes(&self) -> u64 {
        (self.map.len() - self.data) as u64
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub(super) fn tensor(self: &Arc<Self>, name: &str) -> Result<Tensor, WeightsError> {
        let info = self.tensors.get(name).ok_or_else(|| self.no_tensor(name))?;
        let (start, end) = info.data_offsets;
        let bytes = self.data + start..self.data + end;
        Ok(Tensor::new(self.clone(), ElementType::of(info.dtype), info.shape.clone(), bytes))
    }

    fn no_tensor(&self, name: &str) -> WeightsError {
        let alike =
            |known: &String| known.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
        let mut near = self.names.clone();
        near.sort_by_key(|known| std::cmp::Reverse(alike(known)));
        near.truncate(3);
        let (name, key) = (name.to_owned(), self.key.clone());
        WeightsError::NoTensor { name, key, near, count: self.names.len() }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// What a file is instead, where its first bytes tell.
fn looks_like(bytes: &[u8]) -> Option<String> {
    const KNOWN: [(&[u8], &str); 5] = [
        (b"PK\x03\x04", "it looks like a PyTorch checkpoint (a zip archive): convert it first"),
        (b"\x80\x02", "it looks like a pickled PyTorch checkpoint: convert it first"),
        (b"GGUF", "it is a GGUF file"),
        (b"version https://git-lfs", "it is a Git LFS pointer: fetch the file that it stands for"),
        (b"<", "it looks like a web page: the download has failed"),
    ];
    let known = KNOWN.iter().find(|(start, _)| bytes.starts_with(start));
    known.map(|(_, what)| (*what).to_owned())
}
