//! What `PRETEND_CUDA` describes.

use std::env;
use std::time::Duration;

use crate::calls::{self, Failure};

/// All that the variable describes.
#[derive(Debug, Clone)]
pub struct Machine {
    pub cards: Vec<Card>,
    pub version: i32,
    pub delay: Duration,
    pub seed: u64,
    pub visible: bool,
    pub failures: Vec<(String, Failure)>,
}

/// One device as described.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Card {
    pub name: String,
    pub total: u64,
    pub taken: u64,
    pub context: u64,
    pub virtual_memory: bool,
    pub integrated: bool,
    pub host_pointer: bool,
    pub read_only: bool,
    pub lost: bool,
    /// Bytes per second; 0 for as many as there can be.
    pub bus: u64,
    pub compute: (i32, i32),
    pub numa: i32,
    pub pci: i32,
    pub uuid: [u8; 16],
}

impl Machine {
    /// The machine as it is described now, or the entry that makes no sense.
    pub fn described() -> Result<Self, String> {
        let text = env::var("PRETEND_CUDA").unwrap_or_default();
        let mut machine = Self {
            cards: Vec::new(),
            version: 12080,
            delay: Duration::from_micros(100),
            seed: 1,
            visible: false,
            failures: Vec::new(),
        };
        for entry in text.split(',').filter(|entry| !entry.is_empty()) {
            machine.add(entry).ok_or_else(|| entry.to_owned())?;
        }
        if let Ok(chosen) = env::var("CUDA_VISIBLE_DEVICES") {
            machine.cards = visible(&machine.cards, &chosen);
        }
        Ok(machine)
    }

    fn add(&mut self, entry: &str) -> Option<()> {
        match entry.split_once(':') {
            None if entry == "visible" => self.visible = true,
            None => return None,
            Some(("version", version)) => self.version = version.parse().ok()?,
            Some(("delay", delay)) => self.delay = duration(delay)?,
            Some(("seed", seed)) => self.seed = seed.parse().ok()?,
            Some(("fail", failure)) => self.failures.push(failure_of(failure)?),
            Some(("lost", index)) => {
                self.cards.get_mut(index.parse::<usize>().ok()?)?.lost = true;
            }
            Some((name, rest)) => {
                let card = Card::described(self.cards.len(), name, rest)?;
                self.cards.push(card);
            }
        }
        Some(())
    }
}

impl Card {
    fn described(index: usize, name: &str, rest: &str) -> Option<Self> {
        let mut parts = rest.split(':');
        let mut uuid = [0; 16];
        uuid[..4].copy_from_slice(&u32::try_from(index).ok()?.to_be_bytes());
        let mut card = Self {
            name: name.to_owned(),
            total: bytes(parts.next()?)?,
            taken: 0,
            context: 0,
            virtual_memory: true,
            integrated: false,
            host_pointer: true,
            read_only: true,
            lost: false,
            bus: 0,
            compute: (8, 6),
            numa: -1,
            pci: i32::try_from(index).ok()? + 1,
            uuid,
        };
        parts.try_for_each(|part| card.add(part))?;
        Some(card)
    }

    fn add(&mut self, part: &str) -> Option<()> {
        match part.split_once('=') {
            Some(("bus", speed)) => self.bus = bytes(speed.strip_suffix("/s")?)?,
            Some(("compute", capability)) => {
                let (major, minor) = capability.split_once('.')?;
                self.compute = (major.parse().ok()?, minor.parse().ok()?);
            }
            Some(("numa", node)) => self.numa = node.parse().ok()?,
            Some(("pci", bus)) => self.pci = bus.parse().ok()?,
            Some(("uuid", uuid)) => self.uuid = uuid_of(uuid)?,
            Some(_) => return None,
            None => match part {
                "no-vmm" => self.virtual_memory = false,
                "integrated" => self.integrated = true,
                "no-host-pointer" => self.host_pointer = false,
                "no-read-only" => self.read_only = false,
                _ => match part.split_once('-')? {
                    (taken, "used") => self.taken = bytes(taken)?,
                    (taken, "context") => self.context = bytes(taken)?,
                    _ => return None,
                },
            },
        }
        Some(())
    }

    /// The UUID as `CUDA_VISIBLE_DEVICES` writes it.
    fn uuid_text(&self) -> String {
        let hex = format!("{:032x}", u128::from_be_bytes(self.uuid));
        let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
        format!("GPU-{}", parts.join("-"))
    }
}

/// The devices that `CUDA_VISIBLE_DEVICES` chooses, in its order: by number or by how the UUID
/// begins, up to the first that is none.
fn visible(cards: &[Card], chosen: &str) -> Vec<Card> {
    let card = |name: &str| match name.parse::<usize>() {
        Ok(index) => cards.get(index).cloned(),
        Err(_) if name.starts_with("GPU-") => {
            cards.iter().find(|card| card.uuid_text().starts_with(name)).cloned()
        }
        Err(_) => None,
    };
    chosen.split(',').map_while(|name| card(name.trim())).collect()
}

fn bytes(text: &str) -> Option<u64> {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("", 0)];
    let (number, shift) =
        units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)))?;
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn duration(text: &str) -> Option<Duration> {
    let micros = match text.strip_suffix("ms") {
        Some(millis) => millis.parse::<u64>().ok()?.checked_mul(1000)?,
        None => text.strip_suffix("us")?.parse().ok()?,
    };
    Some(Duration::from_micros(micros))
}

/// `NAME=CODE`, and then perhaps `*TIMES`, and then perhaps `+AFTER`.
fn failure_of(text: &str) -> Option<(String, Failure)> {
    let (name, rest) = text.split_once('=')?;
    let (rest, after) = rest.split_once('+').unwrap_or((rest, "0"));
    let (code, times) = match rest.split_once('*') {
        Some((code, times)) => (code, times.parse().ok()?),
        None => (rest, u64::MAX),
    };
    let failure = Failure::new(code.parse().ok()?, times, after.parse().ok()?, None);
    Some((calls::base_name(name).to_owned(), failure))
}

fn uuid_of(text: &str) -> Option<[u8; 16]> {
    let text = text.strip_prefix("GPU-").unwrap_or(text);
    let hex: String = text.chars().filter(|&digit| digit != '-').collect();
    (hex.len() == 32).then_some(())?;
    Some(u128::from_str_radix(&hex, 16).ok()?.to_be_bytes())
}
