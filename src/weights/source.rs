//! Where weights come from: a safetensors or GGUF file, several with an index, or a folder.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use memmap2::Mmap;
use serde_json::Value;

use super::header::Described;
use super::{WeightsError, gguf, safetensors};

/// How a file is told from another one at the same path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    bytes: u64,
    modified: Option<SystemTime>,
    #[cfg(unix)]
    inode: (u64, u64),
}

impl Identity {
    pub(super) fn of(path: &Path) -> Result<Self, WeightsError> {
        let metadata =
            std::fs::metadata(path).map_err(|why| WeightsError::unreadable(path, why))?;
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

/// One file, mapped, and what is in it.
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) identity: Identity,
    pub(super) file: File,
    pub(super) map: Mmap,
    /// In the order in which they lie in the file.
    pub(super) tensors: Vec<Described>,
}

/// Everything that belongs to one model.
pub(super) struct Source {
    /// The index that names the parts, if there is one.
    pub(super) index: Option<(PathBuf, Identity)>,
    pub(super) parts: Vec<Part>,
    pub(super) metadata: HashMap<String, String>,
}

impl Source {
    /// Reads the headers of the files that `path` stands for, and maps the files.
    pub(super) fn read(path: &Path) -> Result<Self, WeightsError> {
        let file = file_of(path)?;
        if is_index(&file) { shards(&file) } else { single(&file) }
    }
}

/// The files that `path` stands for, without looking into those of tensors.
pub(super) fn files(path: &Path) -> Result<Vec<PathBuf>, WeightsError> {
    let file = file_of(path)?;
    if is_index(&file) {
        let folder = folder_of(&file);
        let names = index(&file)?.into_keys().map(|name| folder.join(name));
        return Ok([file].into_iter().chain(names).collect());
    }
    Ok(vec![file])
}

/// Whether a file is on another machine, or behind a program that serves it.
pub(super) fn is_remote(path: &Path) -> bool {
    #[cfg(target_os = "linux")]
    {
        /// The numbers that Linux gives the file systems of networks and of programs: AFS, NFS, SMB,
        /// Ceph, Coda, FUSE, 9P, Lustre, CIFS and SMB2.
        const REMOTE: [u32; 10] = [
            0x5346_414f,
            0x6969,
            0x517b,
            0x00c3_6400,
            0x7375_7245,
            0x6573_5546,
            0x0102_1997,
            0x0bd0_0bd0,
            0xff53_4d42,
            0xfe53_4d42,
        ];
        let kind = rustix::fs::statfs(path).map(|found| found.f_type);
        // The type's width and sign differ from machine to machine; the numbers have 32 bits.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as said")]
        kind.is_ok_and(|kind| REMOTE.contains(&(kind as u32)))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        false
    }
}

fn is_index(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

fn folder_of(file: &Path) -> PathBuf {
    file.parent().map(Path::to_owned).unwrap_or_default()
}

/// How the names of files of weights end.
const ENDINGS: [&str; 3] = [".safetensors", ".safetensors.index.json", ".gguf"];

/// The file to start from: `path` itself, or the one in the folder `path` that has the weights.
fn file_of(path: &Path) -> Result<PathBuf, WeightsError> {
    let metadata = std::fs::metadata(path).map_err(|why| WeightsError::unreadable(path, why))?;
    if metadata.is_file() {
        return Ok(path.to_owned());
    }
    if !metadata.is_dir() {
        // Opening a pipe or a device may wait for ever.
        let why = "is neither a file nor a folder".to_owned();
        return Err(WeightsError::Folder { path: path.to_owned(), why });
    }
    let wrong = |why: String| WeightsError::Folder { path: path.to_owned(), why };
    let entries = std::fs::read_dir(path).map_err(|why| WeightsError::unreadable(path, why))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| ENDINGS.iter().any(|ending| name.ends_with(ending)))
        .collect();
    names.sort();
    let indices: Vec<_> = names.iter().filter(|name| is_index(Path::new(name))).collect();
    // The usual names first, as diffusers and transformers write them; a variant must be named.
    let usual = ["diffusion_pytorch_model.safetensors", "model.safetensors"];
    let usual = usual.iter().flat_map(|name| [format!("{name}.index.json"), (*name).to_owned()]);
    if let Some(name) = usual.into_iter().find(|name| names.contains(name)) {
        return Ok(path.join(name));
    }
    match (indices.as_slice(), names.as_slice()) {
        ([only], _) => Ok(path.join(only)),
        ([], [only]) => Ok(path.join(only)),
        ([], []) if path.join("model_index.json").exists() => {
            Err(wrong("is a whole pipeline: open its parts, such as its folder 'unet'".to_owned()))
        }
        ([], []) => Err(wrong("has no weights in it: no safetensors and no GGUF file".to_owned())),
        _ => Err(wrong(format!("has several: name one of {}", names.join(", ")))),
    }
}

fn single(path: &Path) -> Result<Source, WeightsError> {
    let (part, metadata) = part(path)?;
    Ok(Source { index: None, parts: vec![part], metadata })
}

/// Opens, maps and reads one file of tensors.
fn part(path: &Path) -> Result<(Part, HashMap<String, String>), WeightsError> {
    let unreadable = |why| WeightsError::unreadable(path, why);
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(unreadable(io::Error::from(io::ErrorKind::IsADirectory)));
    }
    let identity = Identity::from(&metadata);
    if identity.bytes == 0 {
        return Err(WeightsError::malformed(path, "safetensors", "it is empty"));
    }
    // SAFETY: the map is only handed out as shared slices. That nobody shortens the file meanwhile
    // cannot be had from the system: the room's contract says so.
    #[expect(unsafe_code, reason = "a map of a file that others may change")]
    let map = unsafe { Mmap::map(&file) }.map_err(unreadable)?;
    let (tensors, metadata) = if map.starts_with(gguf::MAGIC) {
        gguf::read(&map).map_err(|why| WeightsError::malformed(path, "GGUF", why))?
    } else {
        safetensors::read(&map).map_err(|why| WeightsError::malformed(path, "safetensors", why))?
    };
    Ok((Part { path: path.to_owned(), identity, file, map, tensors }, metadata))
}

/// The files that an index names, each with the tensors that it says are there.
fn index(path: &Path) -> Result<BTreeMap<String, Vec<String>>, WeightsError> {
    let malformed = |why: String| WeightsError::malformed(path, "safetensors index", why);
    let text = std::fs::read(path).map_err(|why| WeightsError::unreadable(path, why))?;
    let read: Value = serde_json::from_slice(&text).map_err(|why| malformed(why.to_string()))?;
    let map = read.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| malformed("it has no weight_map".to_owned()))?;
    let mut files: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, file) in map {
        let file = file.as_str().filter(|file| is_plain_name(file)).ok_or_else(|| {
            malformed(format!("{tensor:?} is said to be in {file}, which is no file beside it"))
        })?;
        files.entry(file.to_owned()).or_default().push(tensor.clone());
    }
    Ok(files)
}

/// Whether it names a file in the same folder, and not somewhere else on the disk.
fn is_plain_name(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|own| own == name)
}

fn shards(path: &Path) -> Result<Source, WeightsError> {
    let folder = folder_of(path);
    let malformed = |why: String| WeightsError::malformed(path, "safetensors index", why);
    // Before it is read: one that is replaced meanwhile is found to be another one later.
    let identity = Identity::of(path)?;
    let index_file = Some((path.to_owned(), identity));
    let mut source = Source { index: index_file, parts: Vec::new(), metadata: HashMap::new() };
    for (name, wanted) in index(path)? {
        let (mut part, metadata) = part(&folder.join(&name))?;
        let known: HashSet<&str> = part.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        if let Some(tensor) = wanted.iter().find(|tensor| !known.contains(tensor.as_str())) {
            return Err(malformed(format!("{tensor:?} is not in {name:?}, where it should be")));
        }
        let wanted: HashSet<String> = wanted.into_iter().collect();
        part.tensors.retain(|described| wanted.contains(&described.name));
        source.metadata.extend(metadata);
        source.parts.push(part);
    }
    Ok(source)
}
