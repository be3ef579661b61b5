//! What is where: reserved addresses, physical memory, mappings of one into the other, and pinned
//! memory of the host. Work looks here at every piece it copies, under the same lock that changes
//! it, so nothing is touched that was taken away before.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Excluded, Unbounded};
use std::ptr::with_exposed_provenance_mut;
use std::sync::Arc;

use crate::code::{Answer, Code};
use crate::device::Ledger;
use crate::foreign::DevicePtr;
use crate::pages::Region;

/// What physical memory, its addresses and its sizes are multiples of.
pub const GRANULARITY: usize = 2 << 20;
/// The pages of the host.
pub const HOST_PAGE: u64 = 4096;

#[derive(Default)]
pub struct Memory {
    /// Whether the host, too, can touch device memory.
    visible: bool,
    pub reservations: BTreeMap<DevicePtr, Region>,
    pub physical: HashMap<u64, Arc<Physical>>,
    pub mappings: BTreeMap<DevicePtr, Mapping>,
    pub pinned: BTreeMap<u64, Pinned>,
    handles: u64,
}

/// Memory of a device. It is given back when neither a handle nor a mapping holds it.
pub struct Physical {
    region: Region,
    pub device: usize,
    ledger: Arc<Ledger>,
}

/// Physical memory at an address.
pub struct Mapping {
    pub size: u64,
    pub physical: Arc<Physical>,
    /// What each device may do there.
    access: Vec<Access>,
    /// What `cuMemAlloc` was asked for, and the addresses it gave.
    pub given: Option<(u64, Region)>,
    /// No other has had or will have this number.
    pub number: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    None,
    Read,
    ReadWrite,
}

/// Host memory that stays where it is.
pub struct Pinned {
    pub size: u64,
    /// The device whose context pinned it.
    pub device: usize,
    pub kind: Kind,
    /// Other addresses that devices use for it.
    pub alias: Option<Region>,
}

pub enum Kind {
    Allocated { _memory: Region },
    Registered { read_only: bool, portable: bool },
}

/// How a copy may use a range of host memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    Pinned { read_only: bool },
    Pageable,
}

/// Who touches memory: a kernel goes by the rights of its device, a copy also reaches what
/// `cuMemAlloc` gave on another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Kernel(usize),
    Copy(usize),
}

/// A piece of memory to read or write at once.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    pub start: *mut u8,
    pub size: usize,
}

impl Physical {
    /// Takes memory of a device, if it has any left.
    pub fn new(ledger: &Arc<Ledger>, device: usize, size: usize) -> Answer<Arc<Self>> {
        ledger.debit(size as u64)?;
        let Some(region) = Region::shared(size) else {
            ledger.credit(size as u64);
            return Err(Code::OUT_OF_MEMORY);
        };
        Ok(Arc::new(Self { region, device, ledger: Arc::clone(ledger) }))
    }

    pub fn size(&self) -> usize {
        self.region.size()
    }
}

impl Drop for Physical {
    fn drop(&mut self) {
        self.ledger.credit(self.region.size() as u64);
    }
}

impl Access {
    /// The access that `CUmemAccess_flags` name.
    pub fn of(flags: u32) -> Answer<Self> {
        match flags {
            0 => Ok(Self::None),
            1 => Ok(Self::Read),
            3 => Ok(Self::ReadWrite),
            _ => Err(Code::INVALID_VALUE),
        }
    }
}

impl Mapping {
    pub fn view(&self, offset: u64, want: usize) -> Piece {
        let left = usize::try_from(self.size - offset).unwrap_or(usize::MAX);
        let offset = usize::try_from(offset).unwrap_or_default();
        let start = with_exposed_provenance_mut(self.physical.region.start() + offset);
        Piece { start, size: want.min(left) }
    }

    fn permits(&self, by: By, needed: Access) -> bool {
        match by {
            By::Copy(_) if self.given.is_some() => true,
            By::Kernel(device) | By::Copy(device) => {
                self.access.get(device).is_some_and(|&granted| granted >= needed)
            }
        }
    }
}

impl Pinned {
    /// Where devices find it.
    pub fn device_address(&self, start: u64) -> DevicePtr {
        self.alias.as_ref().map_or(start, |alias| alias.start() as u64)
    }

    pub fn read_only(&self) -> bool {
        matches!(self.kind, Kind::Registered { read_only: true, .. })
    }
}

/// The entry of the map whose range has the address in it.
fn around<T>(map: &BTreeMap<u64, T>, at: u64, size: impl Fn(&T) -> u64) -> Option<(u64, &T)> {
    let (&start, entry) = map.range(..=at).next_back()?;
    (at - start < size(entry)).then_some((start, entry))
}

impl Memory {
    pub fn new(visible: bool) -> Self {
        Self { visible, ..Self::default() }
    }

    /// A number that nothing had before.
    pub fn number(&mut self) -> u64 {
        self.handles += 1;
        0x5EED_0000 + (self.handles << 4)
    }

    /// The mapping with this address in it, and where that begins.
    pub fn mapping(&self, at: DevicePtr) -> Option<(DevicePtr, &Mapping)> {
        around(&self.mappings, at, |mapping| mapping.size)
    }

    /// The reservation with this address in it, and where that begins.
    pub fn reservation(&self, at: DevicePtr) -> Option<(DevicePtr, &Region)> {
        around(&self.reservations, at, |region| region.size() as u64)
    }

    /// The pinned memory with this host address in it, and where that begins.
    pub fn pinned(&self, at: u64) -> Option<(u64, &Pinned)> {
        around(&self.pinned, at, |pinned| pinned.size)
    }

    /// The pinned memory that devices find at this address, and its own address there.
    pub fn pinned_for_device(&self, at: DevicePtr) -> Option<(u64, &Pinned)> {
        let own = self.pinned(at).filter(|(_, pinned)| pinned.alias.is_none());
        own.map(|(_, pinned)| (at, pinned)).or_else(|| {
            self.pinned.iter().find_map(|(start, pinned)| {
                let offset = at.checked_sub(pinned.alias.as_ref()?.start() as u64)?;
                (offset < pinned.size).then_some((start + offset, pinned))
            })
        })
    }

    /// Adds a mapping of its own addresses, for `cuMemAlloc`.
    pub fn give(
        &mut self,
        devices: usize,
        physical: Arc<Physical>,
        asked: u64,
    ) -> Answer<DevicePtr> {
        let size = physical.size();
        let region = Region::reserve(size, GRANULARITY, 0).ok_or(Code::OUT_OF_MEMORY)?;
        if self.visible {
            let shown = region.show(region.start(), size, &physical.region, true);
            shown.ok_or(Code::OUT_OF_MEMORY)?;
        }
        let at = region.start() as u64;
        let mut access = vec![Access::None; devices];
        access[physical.device] = Access::ReadWrite;
        let number = self.number();
        let given = Some((asked, region));
        let mapping = Mapping { size: size as u64, physical, access, given, number };
        self.mappings.insert(at, mapping);
        Ok(at)
    }

    /// Maps physical memory into reserved addresses that have none yet.
    pub fn map(&mut self, devices: usize, at: DevicePtr, size: u64, handle: u64) -> Answer {
        let physical = self.physical.get(&handle).ok_or(Code::INVALID_VALUE)?;
        let (start, region) = self.reservation(at).ok_or(Code::INVALID_VALUE)?;
        let end = at.checked_add(size).ok_or(Code::INVALID_VALUE)?;
        let fits = size > 0 && size <= physical.size() as u64;
        let taken = self.mappings.range(at..end).next().is_some() || self.mapping(at).is_some();
        if !fits || end > start + region.size() as u64 || taken {
            return Err(Code::INVALID_VALUE);
        }
        let physical = Arc::clone(physical);
        let number = self.number();
        let access = vec![Access::None; devices];
        self.mappings.insert(at, Mapping { size, physical, access, given: None, number });
        Ok(())
    }

    /// The addresses of the mappings that make up a range without a rest or a hole.
    fn whole(&self, at: DevicePtr, size: u64) -> Answer<Vec<DevicePtr>> {
        let end = at.checked_add(size).filter(|&end| end > at).ok_or(Code::INVALID_VALUE)?;
        let mut reached = at;
        let mut starts = Vec::new();
        for (&start, mapping) in self.mappings.range(at..end) {
            if start != reached || mapping.given.is_some() {
                return Err(Code::INVALID_VALUE);
            }
            starts.push(start);
            reached += mapping.size;
        }
        if reached == end { Ok(starts) } else { Err(Code::INVALID_VALUE) }
    }

    /// Whose memory a range of whole mappings is.
    pub fn owners(&self, at: DevicePtr, size: u64) -> Answer<Vec<usize>> {
        Ok(self.whole(at, size)?.iter().map(|start| self.mappings[start].physical.device).collect())
    }

    /// What `cuMemMap` has mapped at an address.
    pub fn mapped_at(&self, at: DevicePtr) -> Option<Arc<Physical>> {
        let (_, mapping) = self.mapping(at)?;
        mapping.given.is_none().then(|| Arc::clone(&mapping.physical))
    }

    /// Takes whole mappings away.
    pub fn unmap(&mut self, at: DevicePtr, size: u64) -> Answer {
        for start in self.whole(at, size)? {
            if let Some(mapping) = self.mappings.remove(&start) {
                self.hide(start, &mapping);
            }
        }
        Ok(())
    }

    /// Lets a device do something with whole mappings, or no longer.
    pub fn grant(&mut self, at: DevicePtr, size: u64, device: usize, granted: Access) -> Answer {
        for start in self.whole(at, size)? {
            if let Some(mapping) = self.mappings.get_mut(&start) {
                mapping.access[device] = granted;
            }
            let mapping = &self.mappings[&start];
            if let Some((_, region)) = self.reservation(start).filter(|_| self.visible) {
                let (at, size) = (host(start), host(mapping.size));
                match mapping.access.iter().max() {
                    None | Some(Access::None) => region.hide(at, size),
                    Some(&most) => region
                        .show(at, size, &mapping.physical.region, most == Access::ReadWrite)
                        .ok_or(Code::OUT_OF_MEMORY)?,
                }
            }
        }
        Ok(())
    }

    /// What a device may do at an address.
    pub fn access(&self, at: DevicePtr, device: usize) -> Option<Access> {
        self.mapping(at)?.1.access.get(device).copied()
    }

    fn hide(&self, start: DevicePtr, mapping: &Mapping) {
        if let Some((_, region)) = self.reservation(start).filter(|_| self.visible) {
            region.hide(host(start), host(mapping.size));
        }
    }

    /// Whether a device pointer is one for this many bytes: all of them mapped, or pinned.
    pub fn known(&self, at: DevicePtr, size: usize) -> bool {
        let Some(end) = at.checked_add(size as u64) else { return false };
        let mut reached = at;
        while reached < end {
            if let Some((start, mapping)) = self.mapping(reached) {
                let size = mapping.given.as_ref().map_or(mapping.size, |given| given.0);
                if start + size <= reached {
                    return false;
                }
                reached = start + size;
            } else if let Some((own, pinned)) = self.pinned_for_device(reached) {
                let start = self.pinned(own).map_or(own, |found| found.0);
                reached += pinned.size - (own - start);
            } else {
                return false;
            }
        }
        true
    }

    /// How a stream of a device copies to or from this host memory.
    pub fn host(&self, at: u64, size: usize, device: usize) -> Answer<Host> {
        let end = at.checked_add(size as u64).ok_or(Code::INVALID_VALUE)?;
        let last = end.saturating_sub(1);
        let of_device = |at| self.mapping(at).is_some() || self.reservation(at).is_some();
        if at == 0 || of_device(at) || of_device(last) {
            return Err(Code::INVALID_VALUE);
        }
        match self.pinned(at) {
            Some((start, pinned)) if end <= start + pinned.size => Ok(match pinned.kind {
                Kind::Registered { portable: false, .. } if pinned.device != device => {
                    Host::Pageable
                }
                Kind::Registered { read_only, .. } => Host::Pinned { read_only },
                Kind::Allocated { .. } => Host::Pinned { read_only: false },
            }),
            Some(_) => Err(Code::INVALID_VALUE),
            None if self
                .pinned
                .range((Excluded(at), Unbounded))
                .next()
                .is_some_and(|p| *p.0 < end) =>
            {
                Err(Code::INVALID_VALUE)
            }
            None => Ok(Host::Pageable),
        }
    }

    /// The next piece of device memory from here on, for someone who may touch it.
    pub fn device_piece(
        &self,
        at: DevicePtr,
        want: usize,
        by: By,
        needed: Access,
    ) -> Answer<Piece> {
        if let Some((start, mapping)) = self.mapping(at) {
            let permitted = mapping.permits(by, needed);
            return permitted.then(|| mapping.view(at - start, want)).ok_or(Code::ILLEGAL_ADDRESS);
        }
        let (own, pinned) = self.pinned_for_device(at).ok_or(Code::ILLEGAL_ADDRESS)?;
        if pinned.read_only() && needed == Access::ReadWrite {
            return Err(Code::ILLEGAL_ADDRESS);
        }
        self.pinned_piece(own, want)
    }

    /// The next piece of pinned memory from here on.
    pub fn pinned_piece(&self, at: u64, want: usize) -> Answer<Piece> {
        let (start, pinned) = self.pinned(at).ok_or(Code::ILLEGAL_ADDRESS)?;
        let size = want.min(host(start + pinned.size - at));
        Ok(Piece { start: with_exposed_provenance_mut(host(at)), size })
    }

    /// Takes all that belongs to a context: what `cuMemAlloc` gave, and what it pinned.
    pub fn forget(&mut self, device: usize) {
        let theirs =
            |mapping: &Mapping| mapping.given.is_some() && mapping.physical.device == device;
        self.mappings.retain(|_, mapping| !theirs(mapping));
        self.pinned.retain(|_, pinned| pinned.device != device);
    }
}

fn host(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}
