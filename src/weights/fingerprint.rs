//! Whether what somebody wants under a key is what the key stands for; and if not, the first difference.

use std::path::{Path, PathBuf};

use super::entry::{Draft, Entry, Settings};
use super::source::{Identity, Source};
use super::{ElementType, WeightsError};

impl Entry {
    /// How what somebody wants under the key differs from this, if that can be told without reading
    /// any file. `Ok(false)` means that it may differ.
    pub(super) fn is_same_source(
        &self,
        files: &[(PathBuf, Identity)],
        draft: &Draft,
    ) -> Result<bool, WeightsError> {
        self.agrees(draft)?;
        let (mut wanted, mut own): (Vec<_>, Vec<_>) =
            (files.iter().collect(), self.index.iter().chain(&self.sources).collect());
        wanted.sort_by(|a, b| a.0.cmp(&b.0));
        own.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(wanted.len() == own.len()
            && wanted.iter().zip(own).all(|((_, wanted), (_, own))| wanted == own))
    }

    fn agrees(&self, draft: &Draft) -> Result<(), WeightsError> {
        let find = |settings: &Settings, name: &str| {
            settings.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())
        };
        for (name, _) in self.settings.iter().chain(&draft.settings) {
            let (there, here) = (find(&self.settings, name), find(&draft.settings, name));
            if there != here {
                let told = |value: Option<String>| {
                    value.map_or_else(|| "nothing".to_owned(), |value| format!("{value:?}"))
                };
                let difference =
                    format!("its setting {name:?} is {} there, not {}", told(there), told(here));
                return Err(self.in_use(difference));
            }
        }
        if self.private != draft.private && !draft.either {
            let told = |private| if private { "a copy of its own" } else { "no copy" };
            let (there, here) = (told(self.private), told(draft.private));
            return Err(self.in_use(format!("it is {there} there, not {here}")));
        }
        Ok(())
    }

    /// Refuses tensors that are others than these.
    pub(super) fn has_same_tensors<'a>(
        &self,
        draft: &Draft,
        tensors: impl Iterator<Item = (&'a str, ElementType, &'a [usize])>,
    ) -> Result<(), WeightsError> {
        self.agrees(draft)?;
        let told = |element: ElementType, shape: &[usize]| format!("{element} {shape:?}");
        let mut count = 0;
        for (name, element, shape) in tensors {
            count += 1;
            let Some(own) = self.tensors.get(name) else {
                return Err(self.in_use(format!("{name:?} is not there")));
            };
            if (own.element, own.shape.as_slice()) != (element, shape) {
                let (there, here) = (told(own.element, &own.shape), told(element, shape));
                return Err(self.in_use(format!("{name:?} is {there} there, not {here}")));
            }
        }
        if count < self.tensors.len() {
            return Err(
                self.in_use(format!("it has {} tensors there, not {count}", self.tensors.len()))
            );
        }
        Ok(())
    }

    /// Refuses what comes from other files, with the first difference.
    pub(super) fn is_other_source(&self, wanted: &Path, draft: &Draft) -> WeightsError {
        let tensors = Source::read(wanted).map(|source| {
            let parts: Vec<_> = source.parts.into_iter().flat_map(|part| part.tensors).collect();
            let told = parts
                .iter()
                .map(|tensor| (tensor.name.as_str(), tensor.element, tensor.shape.as_slice()));
            self.has_same_tensors(draft, told)
        });
        match (tensors, &self.path) {
            (Err(error) | Ok(Err(error)), _) => error,
            (Ok(Ok(())), None) => self.in_use("it has been shared from memory".to_owned()),
            (Ok(Ok(())), Some(path)) if path == wanted => self
                .in_use(format!("it stands for {}, which has been replaced since", path.display())),
            (Ok(Ok(())), Some(path)) => self.in_use(format!("it stands for {}", path.display())),
        }
    }

    fn in_use(&self, difference: String) -> WeightsError {
        WeightsError::InUse { key: self.key.clone(), difference, open: self.path.clone() }
    }
}
