//! Names of devices: `cuda:0`, `xpu:1`, `mps`, `cpu`, `virtual:0`.

use std::fmt;
use std::str::FromStr;

/// What a device is driven by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeviceType {
    /// NVIDIA through CUDA, or AMD through ROCm, which calls its devices `cuda` too.
    Cuda,
    /// Intel GPUs.
    Xpu,
    /// The GPU of an Apple computer; there is one.
    Mps,
    /// The host's processors; there is one.
    Cpu,
    /// Backed by the CPU, for laptops, CI machines and test suites.
    Virtual,
}

impl DeviceType {
    /// All of them, best first for generating images.
    pub const ALL: [Self; 5] = [Self::Cuda, Self::Xpu, Self::Mps, Self::Cpu, Self::Virtual];

    /// The part of a name before the colon.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Xpu => "xpu",
            Self::Mps => "mps",
            Self::Cpu => "cpu",
            Self::Virtual => "virtual",
        }
    }

    /// Whether there can be only one, so that the name has no index.
    #[must_use]
    pub const fn is_single(self) -> bool {
        matches!(self, Self::Mps | Self::Cpu)
    }
}

impl fmt::Display for DeviceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of a device in its one normal form. Small, copied freely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    kind: DeviceType,
    index: u32,
}

impl Name {
    /// The device of this type with this index; types that have one device know index 0 only.
    ///
    /// # Errors
    /// [`NameError::SingleDevice`].
    pub fn new(kind: DeviceType, index: u32) -> Result<Self, NameError> {
        if kind.is_single() && index != 0 {
            return Err(NameError::SingleDevice { given: format!("{kind}:{index}"), kind });
        }
        Ok(Self { kind, index })
    }

    /// What the device is driven by.
    #[must_use]
    pub const fn kind(self) -> DeviceType {
        self.kind
    }

    /// Its index among the devices of its type.
    #[must_use]
    pub const fn index(self) -> u32 {
        self.index
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind.is_single() {
            f.write_str(self.kind.as_str())
        } else {
            write!(f, "{}:{}", self.kind, self.index)
        }
    }
}

/// Why a text is not the name of a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The part before the colon is nothing we know.
    #[error(
        "unknown device type {given:?}: a device is named 'cuda:N' (NVIDIA and ROCm), 'xpu:N', 'mps', \
         'cpu' or 'virtual:N'"
    )]
    UnknownType {
        /// The text as given.
        given: String,
    },
    /// The part after the colon is not an index.
    #[error("{given:?} has no valid index: write '{kind}:0', '{kind}:1' and so on")]
    BadIndex {
        /// The text as given.
        given: String,
        /// The type that it names.
        kind: DeviceType,
    },
    /// An index above zero for a type that has one device.
    #[error("there is only one '{kind}' device, so {given:?} does not exist: write '{kind}'")]
    SingleDevice {
        /// The text as given.
        given: String,
        /// The type that it names.
        kind: DeviceType,
    },
}

impl FromStr for Name {
    type Err = NameError;

    /// Case and spaces are forgiven, a missing index means 0, and nothing else is guessed.
    fn from_str(given: &str) -> Result<Self, NameError> {
        let (kind, index) = match given.split_once(':') {
            Some((kind, index)) => (kind.trim(), Some(index.trim())),
            None => (given.trim(), None),
        };
        let kind = DeviceType::ALL
            .into_iter()
            .find(|known| known.as_str().eq_ignore_ascii_case(kind))
            .ok_or_else(|| NameError::UnknownType { given: given.to_owned() })?;
        let Some(digits) = index else { return Self::new(kind, 0) };
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        let canonical = plain && (digits == "0" || !digits.starts_with('0'));
        let parsed = digits.parse().ok().filter(|_| canonical);
        let index = parsed.ok_or_else(|| NameError::BadIndex { given: given.to_owned(), kind })?;
        Self::new(kind, index)
            .map_err(|_| NameError::SingleDevice { given: given.to_owned(), kind })
    }
}
