//! Names as numbers, so that an event has no text.

use std::collections::HashMap;
use std::sync::Arc;

use crate::sync::Mutex;

/// A name's number in a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Label(pub u32);

impl Label {
    /// No name: the empty text.
    pub const NOTHING: Self = Self(0);
    /// What all those are called that came when there were too many.
    pub const OTHERS: Self = Self(1);
}

/// How many names a timeline knows; those that come later are all called alike.
const MOST: usize = 1 << 16;
/// How many of them are lists, so that lists leave room for names.
const LISTS: usize = 1 << 10;

/// The names that a timeline knows.
pub(super) struct Names(Mutex<Known>);

#[derive(Default)]
struct Known {
    by_text: HashMap<Arc<str>, Label>,
    texts: Vec<Arc<str>>,
    lists: usize,
}

impl Known {
    fn add(&mut self, text: &str) -> Label {
        let label = u32::try_from(self.texts.len()).map_or(Label::OTHERS, Label);
        let text: Arc<str> = text.into();
        self.by_text.insert(text.clone(), label);
        self.texts.push(text);
        label
    }
}

impl Names {
    pub(super) fn new() -> Self {
        let mut known = Known::default();
        known.add("");
        known.add("(others)");
        Self(Mutex::new(known))
    }

    pub(super) fn label(&self, text: &str) -> Label {
        let mut known = self.0.lock();
        match known.by_text.get(text) {
            Some(label) => *label,
            None if known.texts.len() < MOST => known.add(text),
            None => Label::OTHERS,
        }
    }

    /// The label of a text that is a list.
    pub(super) fn list(&self, text: &str) -> Label {
        let mut known = self.0.lock();
        match known.by_text.get(text) {
            Some(label) => *label,
            None if known.lists < LISTS && known.texts.len() < MOST => {
                known.lists += 1;
                known.add(text)
            }
            None => Label::OTHERS,
        }
    }

    pub(super) fn texts(&self) -> Vec<Arc<str>> {
        self.0.lock().texts.clone()
    }
}
