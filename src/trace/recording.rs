//! A timeline as it was at one moment.

use super::{Cause, Event, Kind, Label, Setting, Sum};

/// A timeline as it was at one moment, or as a file has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recording {
    /// How long the timeline had lasted, in nanoseconds.
    pub nanos: u64,
    /// The text of each [`Label`].
    pub names: Vec<String>,
    /// How devices were set up, and from when on, in nanoseconds.
    pub settings: Vec<(u64, Setting)>,
    /// Sums that have lost nothing.
    pub counters: Vec<Counter>,
    /// The last events, in order.
    pub events: Vec<Event>,
    /// How many others there were.
    pub lost: u64,
}

/// What was counted of one component on one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    /// The device.
    pub device: Label,
    /// The component.
    pub component: Label,
    /// What was counted.
    pub kind: Kind,
    /// Why it happened, of copies.
    pub cause: Cause,
    /// How much of it.
    pub sum: Sum,
}

impl Recording {
    /// What a label stands for.
    #[must_use]
    pub fn name(&self, label: Label) -> &str {
        let known = usize::try_from(label.0).ok().and_then(|at| self.names.get(at));
        known.map_or("", String::as_str)
    }

    /// The names in a list; `None` if it is none that is known.
    #[must_use]
    pub fn list(&self, label: Label) -> Option<Vec<String>> {
        serde_json::from_str(self.name(label)).ok()
    }

    /// The label of a text, if it is in it.
    #[must_use]
    pub fn label(&self, text: &str) -> Option<Label> {
        let at = self.names.iter().position(|name| name == text)?;
        u32::try_from(at).ok().map(Label)
    }

    /// The names of the devices, in the order in which they come.
    #[must_use]
    pub fn devices(&self) -> Vec<&str> {
        let set_up = self.settings.iter().map(|(_, setting)| setting.device.as_str());
        let counted = self.counters.iter().map(|counter| self.name(counter.device));
        let used = self.events.iter().map(|event| self.name(event.device));
        let mut devices = Vec::new();
        for device in set_up.chain(counted).chain(used) {
            if !device.is_empty() && !devices.contains(&device) {
                devices.push(device);
            }
        }
        devices
    }

    /// The names of those of which something was wanted.
    #[must_use]
    pub fn requested(&self) -> Vec<&str> {
        let is_requested = |name: &&str| {
            let label = self.label(name);
            let mut requests = self.events.iter().filter(|event| event.kind == Kind::Request);
            requests.any(|event| Some(event.device) == label)
        };
        self.devices().into_iter().filter(is_requested).collect()
    }

    /// How a device was set up in the end.
    #[must_use]
    pub fn setting(&self, device: &str) -> Option<&Setting> {
        let settings = self.settings.iter().rev().map(|(_, setting)| setting);
        settings.into_iter().find(|setting| setting.device == device)
    }
}
