//! What is on this machine, and the choice of some of it.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;

use super::{
    Description, Device, DeviceError, DeviceType, Driver, Name, host, nvml, virtual_device,
};

/// An accelerator as a provider reports it.
pub struct Found {
    /// Its name.
    pub name: Name,
    /// The product as its maker writes it.
    pub model: String,
    /// Its memory in bytes, where it is known.
    pub memory: Option<u64>,
    /// Whether it shares the host's memory.
    pub unified: bool,
    /// How to ask it.
    pub driver: Arc<dyn Driver>,
}

/// A source of accelerators beside NVML: torch for ROCm, XPU and MPS.
pub trait Provider: Send + Sync {
    /// What it sees now. Must not create a context on any device.
    fn found(&self) -> Vec<Found>;
}

/// Which devices somebody wants.
#[derive(Debug, Clone)]
pub enum Selection {
    /// Every accelerator, best type first; the CPU if there is none.
    Auto,
    /// These, in this order; one named twice counts once.
    These(Vec<Choice>),
}

/// One chosen device: by name, or one that is at hand already.
#[derive(Debug, Clone)]
pub enum Choice {
    /// To be looked up.
    Named(Name),
    /// As it is.
    Given(Device),
}

impl Selection {
    /// `auto`, or the name of one device.
    ///
    /// # Errors
    /// [`DeviceError::Name`].
    pub fn parse(text: &str) -> Result<Self, DeviceError> {
        if text.trim().eq_ignore_ascii_case("auto") {
            return Ok(Self::Auto);
        }
        Ok(Self::These(vec![Choice::Named(Name::from_str(text)?)]))
    }
}

/// Every device of this machine.
pub struct Inventory {
    devices: Vec<Device>,
}

impl Inventory {
    /// What NVML and `providers` see now, and the CPU. Takes milliseconds; creates no context.
    #[must_use]
    pub fn take(providers: &[Arc<dyn Provider>]) -> Self {
        let provided = providers.iter().flat_map(|provider| provider.found());
        Self::of(nvml::found().into_iter().chain(provided).collect())
    }

    /// These accelerators, and the CPU. The first to report a name is believed.
    #[must_use]
    pub fn of(found: Vec<Found>) -> Self {
        let mut accelerators: Vec<Found> = Vec::new();
        for found in found {
            if !accelerators.iter().any(|known| known.name == found.name) {
                accelerators.push(found);
            }
        }
        accelerators.sort_by_key(|found| found.name);
        let models = accelerators.iter().map(|found| short_model(&found.model)).collect::<Vec<_>>();
        let mut count: HashMap<&str, u32> = HashMap::new();
        for model in &models {
            *count.entry(model).or_default() += 1;
        }
        let mut seen: HashMap<&str, u32> = HashMap::new();
        let devices = accelerators.into_iter().zip(&models).map(|(found, model)| {
            let number = seen.entry(model).or_default();
            *number += 1;
            Device::new(Description {
                name: found.name,
                model: model.clone(),
                number: (count[model.as_str()] > 1).then_some(*number),
                memory: found.memory,
                unified: found.unified,
                bandwidth: None,
                driver: found.driver,
            })
        });
        Self { devices: devices.chain(host::cpu()).collect() }
    }

    /// All of them, accelerators first.
    #[must_use]
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Those that are wanted.
    ///
    /// # Errors
    /// [`DeviceError::Empty`] for a list of none, [`DeviceError::Absent`] for one that is not here.
    pub fn select(&self, selection: &Selection) -> Result<Vec<Device>, DeviceError> {
        let choices = match selection {
            Selection::Auto => return Ok(self.best()),
            Selection::These(choices) => choices,
        };
        let mut chosen: Vec<Device> = Vec::with_capacity(choices.len());
        for choice in choices {
            let device = match choice {
                Choice::Given(device) => device.clone(),
                Choice::Named(name) => self.get(*name)?,
            };
            if !chosen.contains(&device) {
                chosen.push(device);
            }
        }
        if chosen.is_empty() { Err(DeviceError::Empty) } else { Ok(chosen) }
    }

    fn get(&self, name: Name) -> Result<Device, DeviceError> {
        if name.kind() == DeviceType::Virtual {
            return virtual_device::named(name);
        }
        let found = self.devices.iter().find(|device| device.name() == name);
        found.cloned().ok_or_else(|| DeviceError::Absent {
            name,
            present: self.devices.iter().map(Device::name).collect(),
        })
    }

    /// Every CUDA, ROCm and XPU device, else MPS, else the CPU.
    fn best(&self) -> Vec<Device> {
        let tiers: [&[DeviceType]; 3] =
            [&[DeviceType::Cuda, DeviceType::Xpu], &[DeviceType::Mps], &[DeviceType::Cpu]];
        let of_tier = |tier: &[DeviceType]| -> Vec<Device> {
            self.devices
                .iter()
                .filter(|device| tier.contains(&device.name().kind()))
                .cloned()
                .collect()
        };
        tiers.into_iter().map(of_tier).find(|devices| !devices.is_empty()).unwrap_or_default()
    }
}

/// A product's name without its maker's: `NVIDIA GeForce RTX 3090` is `RTX 3090`.
fn short_model(full: &str) -> String {
    let mut short = full.trim();
    for maker in ["NVIDIA ", "GeForce ", "AMD ", "Intel(R) ", "Apple "] {
        short = short.strip_prefix(maker).unwrap_or(short);
    }
    short.to_owned()
}
