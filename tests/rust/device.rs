//! Names, choices, labels, `CUDA_VISIBLE_DEVICES` and numbers of bytes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coresident::device::{
    Address, ByteSize, Choice, Device, DeviceError, DeviceType, Driver, Found, Host, HostBytes,
    Inventory, Name, NameError, Piece, Pinning, Provider, Selection, Stream, VirtualMemory,
    VirtualSpec, container_memory, host_memory, virtual_devices, visible_devices,
};

use super::helpers::{Random, refusal};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Every string of up to `most` of these characters.
fn every_string(alphabet: &[char], most: usize) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut longest = all.clone();
    for _ in 0..most {
        longest = longest
            .iter()
            .flat_map(|text| alphabet.iter().map(move |sign| format!("{text}{sign}")))
            .collect();
        all.extend(longest.iter().cloned());
    }
    all
}

#[test]
fn every_short_text_is_refused_or_prints_as_a_name_that_parses_to_the_same() {
    let alphabet = ['c', 'p', 'u', 'X', 'm', 's', ':', '0', '1', ' ', '+', '٣'];
    let mut accepted = BTreeSet::new();
    for text in every_string(&alphabet, 5) {
        match text.parse::<Name>() {
            Ok(name) => {
                assert_eq!(name.to_string().parse(), Ok(name), "{text:?}");
                assert_eq!(Name::new(name.kind(), name.index()), Ok(name), "{text:?}");
                accepted.insert(name.to_string());
            }
            Err(error) => assert!(error.to_string().contains(&format!("{text:?}")), "{error}"),
        }
    }
    assert_eq!(accepted, ["cpu", "mps", "xpu:0", "xpu:1"].map(String::from).into());
}

#[test]
fn every_name_parses_from_what_it_prints() {
    let mut random = Random(1);
    for kind in DeviceType::ALL {
        for index in [0, 1, 9, 10, u32::MAX]
            .into_iter()
            .chain((0..100).map(|_| u32::try_from(random.below(1 << 32)).unwrap()))
        {
            let index = if kind.is_single() { 0 } else { index };
            let name = Name::new(kind, index).unwrap();
            assert_eq!(name.to_string().parse(), Ok(name));
        }
    }
}

#[test]
fn case_spaces_and_a_missing_index_are_forgiven() {
    for (text, normal) in [
        ("CUDA", "cuda:0"),
        (" cuda : 3\t", "cuda:3"),
        ("Virtual:10", "virtual:10"),
        ("xpu:4294967295", "xpu:4294967295"),
        ("cpu:0", "cpu"),
        ("MPS", "mps"),
    ] {
        assert_eq!(name(text).to_string(), normal);
    }
}

#[test]
fn nothing_else_is_guessed() {
    for text in ["", ":", ":0", "gpu", "cuda0", "cuda 0", "c\0pu", "cud\u{430}", "meta"] {
        let error = text.parse::<Name>().unwrap_err();
        assert!(matches!(error, NameError::UnknownType { .. }), "{error}");
    }
    for text in ["cuda:", "cuda:-1", "cuda:+1", "cuda:01", "cuda:1.0", "cuda:0:1", "cuda:1 1"] {
        let error = text.parse::<Name>().unwrap_err();
        let kind = DeviceType::Cuda;
        assert_eq!(error, NameError::BadIndex { given: text.to_owned(), kind });
    }
    assert!(matches!("xpu:4294967296".parse::<Name>(), Err(NameError::BadIndex { .. })));
    assert_eq!(
        refusal("CPU:1".parse::<Name>()),
        "there is only one 'cpu' device, so \"CPU:1\" does not exist: write 'cpu'"
    );
    assert!(Name::new(DeviceType::Mps, 1).is_err());
}

/// A card with some free memory.
struct Card(Option<u64>);

impl Driver for Card {
    fn free_memory(&self) -> Option<u64> {
        self.0
    }
}

fn found(text: &str, model: &str) -> Found {
    Found {
        name: name(text),
        model: model.to_owned(),
        memory: Some(24 << 30),
        unified: false,
        driver: Arc::new(Card(Some(8 << 30))),
    }
}

fn workstation() -> Inventory {
    Inventory::of(vec![
        found("cuda:2", "NVIDIA RTX A6000"),
        found("cuda:0", "NVIDIA GeForce RTX 3090"),
        found("cuda:1", "NVIDIA GeForce RTX 3090"),
    ])
}

fn texts(devices: &[Device]) -> Vec<String> {
    devices.iter().map(Device::to_string).collect()
}

fn chosen(inventory: &Inventory, wanted: &[&str]) -> Vec<String> {
    let choices = wanted.iter().map(|text| Choice::Named(name(text))).collect();
    texts(&inventory.select(&Selection::These(choices)).unwrap())
}

#[test]
fn an_inventory_lists_accelerators_by_name_and_then_the_cpu() {
    assert_eq!(texts(workstation().devices()), ["cuda:0", "cuda:1", "cuda:2", "cpu"]);
    assert_eq!(texts(Inventory::of(vec![]).devices()), ["cpu"]);
}

#[test]
fn the_first_to_report_a_name_is_believed() {
    let twice = vec![found("cuda:0", "NVIDIA A100"), found("cuda:0", "AMD Radeon")];
    assert_eq!(Inventory::of(twice).devices()[0].label(), "A100 (cuda:0)");
}

#[test]
fn providers_add_to_what_is_found() {
    struct Two;
    impl Provider for Two {
        fn found(&self) -> Vec<Found> {
            vec![found("xpu:1", "Intel(R) Arc(TM) B580"), found("xpu:0", "Intel(R) Arc(TM) B580")]
        }
    }
    let devices = Inventory::take(&[Arc::new(Two)]);
    let xpus = devices.devices().iter().filter(|device| device.name().kind() == DeviceType::Xpu);
    assert_eq!(
        xpus.map(Device::label).collect::<Vec<_>>(),
        ["Arc(TM) B580 #1 (xpu:0)", "Arc(TM) B580 #2 (xpu:1)"]
    );
}

#[test]
fn auto_takes_every_accelerator_of_the_best_kind_there_is() {
    let auto = |found| texts(&Inventory::of(found).select(&Selection::Auto).unwrap());
    assert_eq!(
        auto(vec![found("mps", "Apple M9"), found("xpu:0", "Arc"), found("cuda:0", "A100")]),
        ["cuda:0", "xpu:0"]
    );
    assert_eq!(auto(vec![found("mps", "Apple M9")]), ["mps"]);
    assert_eq!(auto(vec![]), ["cpu"]);
    assert!(matches!(Selection::parse(" AUTO "), Ok(Selection::Auto)));
}

#[test]
fn a_choice_keeps_its_order_and_counts_a_device_once() {
    assert_eq!(
        chosen(&workstation(), &["cuda:2", "cpu", "cuda", "cuda:2"]),
        ["cuda:2", "cpu", "cuda:0"]
    );
    assert_eq!(chosen(&workstation(), &["virtual:7"]), ["virtual:7"]);
    let given =
        virtual_devices(1, VirtualSpec { memory: Some(5), ..VirtualSpec::default() }).unwrap();
    let given = Selection::These(vec![Choice::Given(given[0].clone())]);
    assert_eq!(Inventory::of(vec![]).select(&given).unwrap()[0].memory(), Some(5));
}

#[test]
fn what_is_not_here_is_refused_with_what_is() {
    let absent = Selection::parse("cuda:9").unwrap();
    assert_eq!(
        refusal(workstation().select(&absent)),
        "there is no cuda:9 here: this machine has cuda:0, cuda:1, cuda:2, cpu"
    );
    let none = Selection::These(vec![]);
    assert_eq!(workstation().select(&none).unwrap_err(), DeviceError::Empty);
    assert!(matches!(Selection::parse("automatic"), Err(DeviceError::Name(_))));
}

#[test]
fn labels_are_numbered_where_models_repeat() {
    let labels: Vec<_> = workstation().devices()[..3].iter().map(Device::label).collect();
    assert_eq!(labels, ["RTX 3090 #1 (cuda:0)", "RTX 3090 #2 (cuda:1)", "RTX A6000 (cuda:2)"]);
    assert_eq!(
        format!("{:?}", workstation().devices()[1]),
        "Device('cuda:1', 'RTX 3090 #2', 24 GiB)"
    );
}

#[test]
fn free_memory_is_what_the_driver_says_now() {
    let mut silent = found("cuda:1", "A100");
    silent.driver = Arc::new(Card(None));
    let inventory = Inventory::of(vec![found("cuda:0", "A100"), silent]);
    let free: Vec<_> = inventory.devices()[..2].iter().map(Device::free_memory).collect();
    assert_eq!(free, [Some(8 << 30), None]);
}

#[test]
fn virtual_devices_are_unified_or_have_memory_of_their_own() {
    let unified = virtual_devices(2, VirtualSpec::default()).unwrap();
    assert_eq!(texts(&unified), ["virtual:0", "virtual:1"]);
    assert!(unified[0].is_unified() && unified[0].memory().is_none());
    let spec = VirtualSpec {
        memory: Some(3 << 29),
        bandwidth: Some(12_000_000_000),
        ..VirtualSpec::default()
    };
    let bounded = &virtual_devices(1, spec).unwrap()[0];
    assert!(!bounded.is_unified());
    assert_eq!((bounded.memory(), bounded.free_memory()), (Some(3 << 29), Some(3 << 29)));
    assert_eq!(bounded.bandwidth(), Some(12_000_000_000));
    assert_eq!(format!("{bounded:?}"), "Device('virtual:0', 'virtual GPU', 1.5 GiB)");
    assert_eq!(*bounded, unified[0], "a device is its name");
}

#[test]
fn virtual_devices_that_cannot_be_meant_are_refused() {
    let refused = |count, memory, bandwidth| {
        virtual_devices(count, VirtualSpec { memory, bandwidth, ..VirtualSpec::default() })
            .unwrap_err()
    };
    for given in [0, 1025, u64::MAX] {
        assert_eq!(refused(given, None, None), DeviceError::Count { given });
    }
    assert_eq!(virtual_devices(1024, VirtualSpec::default()).unwrap().len(), 1024);
    assert_eq!(refused(1, Some(0), None), DeviceError::Zero { what: "the memory" });
    assert_eq!(refused(1, Some(1), Some(0)), DeviceError::Zero { what: "the bandwidth" });
    assert_eq!(refused(1, None, Some(1)), DeviceError::NeedsMemory { what: "bandwidth" });
}

const CARDS: [&str; 3] = ["GPU-aa11-0", "GPU-aa22-1", "GPU-bb33-2"];

/// The places of the cards that a setting leaves visible; a MIG instance is told by its name.
fn visible(setting: Option<&str>) -> Vec<String> {
    let uuids = CARDS.map(String::from);
    let place = |uuid: &String| CARDS.iter().position(|card| card == uuid);
    visible_devices(setting, &uuids)
        .iter()
        .map(|uuid| place(uuid).map_or_else(|| uuid.clone(), |place| place.to_string()))
        .collect()
}

#[test]
fn without_cuda_visible_devices_every_card_is_visible() {
    assert_eq!(visible(None), ["0", "1", "2"]);
    assert!(visible_devices(None, &[]).is_empty());
}

#[test]
fn cuda_visible_devices_chooses_and_orders() {
    for (setting, cards) in [
        ("0,2", "02"),
        ("2,0", "20"),
        (" 1 , 0 ", "10"),
        ("1", "1"),
        ("GPU-bb33-2,GPU-aa11-0", "20"),
        ("GPU-b,GPU-aa2", "21"),
        ("1,GPU-aa11", "10"),
    ] {
        assert_eq!(visible(Some(setting)).concat(), cards, "{setting:?}");
    }
}

#[test]
fn cuda_visible_devices_ends_at_the_first_entry_that_is_not_valid() {
    for (setting, cards) in [
        ("", ""),
        (" ", ""),
        ("-1", ""),
        ("NoDevFiles", ""),
        ("3", ""),
        ("99999999999999999999", ""),
        ("0,-1,1", "0"),
        ("0,,1", "0"),
        ("0,3,1", "0"),
        ("1,two,0", "1"),
        ("0;1", ""),
        ("GPU-aa", ""),
        ("GPU-", ""),
        ("2,GPU-cc,0", "2"),
        ("gpu-aa11", ""),
    ] {
        assert_eq!(visible(Some(setting)).concat(), cards, "{setting:?}");
    }
}

#[test]
fn cuda_visible_devices_with_a_card_twice_hides_all() {
    for setting in ["0,0", "1,0,1", "0,GPU-aa11", "GPU-b,GPU-bb33-2", "MIG-1,MIG-1"] {
        assert!(visible(Some(setting)).is_empty(), "{setting:?}");
    }
    assert_eq!(visible(Some("0,-1,0")), ["0"], "what comes after the end is not looked at");
}

#[test]
fn cuda_visible_devices_passes_instances_of_a_card_on() {
    assert_eq!(visible(Some("MIG-0123,1")), ["MIG-0123", "1"]);
    assert_eq!(visible(Some("MIG-GPU-aa11-0/1/0")), ["MIG-GPU-aa11-0/1/0"]);
}

#[test]
fn bytes_print_as_people_read_them() {
    for (bytes, text) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1 MiB"),
        (24 << 30, "24 GiB"),
        ((24 << 30) - (64 << 20), "23.9 GiB"),
        (1 << 60, "1 EiB"),
        (u64::MAX, "16 EiB"),
    ] {
        assert_eq!(ByteSize(bytes).to_string(), text);
    }
}

#[test]
fn bytes_parse_as_people_write_them() {
    for (text, bytes) in [
        ("0", 0),
        ("12GiB", 12 << 30),
        (" 512 mib ", 512 << 20),
        ("1.5 GB", 1_500_000_000),
        ("1.5KiB", 1536),
        (".5 KiB", 512),
        ("2.KB", 2000),
        ("7b", 7),
        ("0.4B", 0),
        ("18446744073709551615", u64::MAX),
        ("16777215TiB", 16_777_215 << 40),
    ] {
        assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text:?}");
    }
}

#[test]
fn bytes_that_do_not_fit_or_cannot_be_meant_are_refused() {
    for text in [
        "",
        " ",
        "GiB",
        ".",
        "1.2.3",
        "-1",
        "+1",
        "1e3",
        "1_000",
        "1,5GB",
        "12G",
        "12 Gi B",
        "inf",
        "nan",
        "0x10",
        "٣",
        "12GiB!",
        "1 GiB 2",
        "18446744073709551616",
        "16777216TiB",
        "16777216.0TiB",
        "99999999999999999999999TB",
    ] {
        assert_eq!(
            refusal(text.parse::<ByteSize>()),
            format!(
                "{text:?} is not a number of bytes: write '12GiB', '1.5GB', '512MiB' or a whole number"
            )
        );
    }
}

#[test]
fn every_short_text_is_refused_or_a_number_of_bytes() {
    for text in every_string(&['1', '0', '.', 'K', 'i', 'b', ' ', '-'], 5) {
        let plain =
            text.trim().bytes().all(|byte| byte.is_ascii_digit()) && !text.trim().is_empty();
        match text.parse::<ByteSize>() {
            Ok(ByteSize(bytes)) => {
                assert!(bytes <= 111 << 10, "{text:?}");
                assert!(!plain || Ok(bytes) == text.trim().parse(), "{text:?}");
            }
            Err(_) => assert!(!plain, "{text:?}"),
        }
    }
}

#[test]
fn a_printed_size_parses_to_what_it_says() {
    let mut random = Random(7);
    for _ in 0..20_000 {
        let bits = u32::try_from(random.below(63)).unwrap();
        let bytes = random.below(1 << bits);
        let ByteSize(read) = ByteSize(bytes).to_string().parse().unwrap();
        // One decimal of at least one unit: half a tenth of it at most is lost.
        assert!(read.abs_diff(bytes) * 20 <= bytes, "{bytes} read as {read}");
        assert_eq!(ByteSize(read).to_string(), ByteSize(bytes).to_string());
    }
}

#[test]
fn whole_units_survive_printing_and_parsing() {
    for unit in [0, 10, 20, 30, 40, 50] {
        for count in [1, 2, 24, 1000, 1023] {
            let size = ByteSize(count << unit);
            assert_eq!(size.to_string().parse(), Ok(size));
        }
    }
}

/// A folder like `/sys/fs/cgroup` with these files in it, for one process and test.
struct Mount(std::path::PathBuf);

impl Mount {
    fn of(test: &str, files: &[(&str, &str)]) -> Self {
        let root = std::env::temp_dir().join(format!("coresident-{test}-{}", std::process::id()));
        for (path, content) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        Self(root)
    }

    fn limit_and_free(&self, groups: &str) -> Option<(u64, u64)> {
        container_memory(&self.0, groups).map(|memory| (memory.limit, memory.free))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn of_a_containers_levels_the_tightest_limit_holds() {
    let mount = Mount::of(
        "levels",
        &[
            ("cgroup.controllers", "cpu memory"),
            ("a/memory.max", "8000\n"),
            ("a/memory.current", "7000\n"),
            ("a/memory.stat", "anon 5000\ninactive_file 1500\n"),
            ("a/b/memory.max", "9000\n"),
            ("a/b/memory.current", "100\n"),
            ("a/b/c/memory.max", "max\n"),
        ],
    );
    assert_eq!(mount.limit_and_free("0::/a/b/c\n"), Some((8000, 2500)));
}

#[test]
fn the_first_version_of_cgroups_is_read_where_it_governs_memory() {
    let mount = Mount::of(
        "v1",
        &[
            ("memory/docker/memory.limit_in_bytes", "4096"),
            ("memory/docker/memory.usage_in_bytes", "1000"),
            ("memory/docker/memory.stat", "inactive_file 1\ntotal_inactive_file 200\n"),
        ],
    );
    let groups = "12:cpu,cpuacct:/x\n9:memory:/docker\n0::/\n";
    assert_eq!(mount.limit_and_free(groups), Some((4096, 3296)));
}

#[test]
fn a_container_that_is_named_as_its_host_sees_it_is_found_at_the_root() {
    let mount = Mount::of("root", &[("cgroup.controllers", ""), ("memory.max", "512")]);
    assert_eq!(mount.limit_and_free("0::/system.slice/docker-1a.scope\n"), Some((512, 512)));
}

#[test]
fn a_container_without_a_limit_has_none() {
    let mount = Mount::of("none", &[("cgroup.controllers", ""), ("a/memory.max", "max")]);
    assert_eq!(mount.limit_and_free("0::/a\n"), None);
    assert_eq!(mount.limit_and_free("nonsense\n"), None);
    assert_eq!(Mount::of("empty", &[]).limit_and_free("0::/\n"), None);
}

#[test]
fn a_process_may_use_no_more_than_there_is() {
    let total = host_memory().unwrap();
    assert!(Host.free_memory().unwrap() <= total);
}

/// A stream that is told to read `expected` bytes of a page once its turn comes, and whether it did.
fn read_later(
    memory: &Arc<VirtualMemory>,
    stream: Stream,
    page: Address,
    expected: u8,
) -> Arc<AtomicBool> {
    let right = Arc::new(AtomicBool::new(false));
    let outcome = right.clone();
    memory.launch(stream, move |memory| {
        let mut bytes = vec![0; 1 << 12];
        memory.read_at(page, &mut bytes)?;
        outcome.store(bytes.iter().all(|byte| *byte == expected), Ordering::SeqCst);
        Ok(())
    });
    right
}

struct All(u8);

impl HostBytes for All {
    fn copy_to(&self, _from: usize, to: &mut [u8]) {
        to.fill(self.0);
    }
}

/// In how many of forty runs, with streams late in other ways, a page is filled on one stream, read on
/// another and taken away, and read right; with events between these or without.
fn right_reads(after_the_copy: bool, before_it_leaves: bool) -> usize {
    let run = |seed: u64| {
        let spec =
            VirtualSpec { memory: Some(8 << 20), jitter: Some(seed), ..VirtualSpec::default() };
        let driver = virtual_devices(1, spec).unwrap()[0].driver();
        let (memory, pages) = (driver.virtual_memory().unwrap(), driver.memory().unwrap());
        let compute = memory.stream();
        let page = pages.reserve(pages.page()).unwrap();
        pages.commit(page, pages.page()).unwrap();
        let piece = Piece { source: Arc::new(All(7)), from: 0, to: page, length: pages.page() };
        let copied = pages.upload(&[], vec![piece], Pinning::Staging).unwrap();
        if after_the_copy {
            pages.after(compute, &copied).unwrap();
        }
        let right = read_later(&memory, compute, page, 7);
        let read = pages.record(compute).unwrap();
        if before_it_leaves {
            assert!(read.wait(None).unwrap());
        }
        // What is copied to a page that has left is seen by whoever waits for the copy.
        pages.decommit(page, pages.page());
        let _ = (copied.wait(None), read.wait(None));
        pages.release(page, pages.page());
        right.load(Ordering::SeqCst)
    };
    (0..40).filter(|seed| run(*seed)).count()
}

#[test]
fn a_virtual_devices_streams_are_late_enough_to_show_a_missing_fence() {
    assert_eq!(right_reads(true, true), 40);
    assert!(right_reads(false, true) < 40, "read before it was copied");
    assert!(right_reads(true, false) < 40, "taken away before it was read");
}

#[test]
fn a_virtual_device_is_as_full_as_its_pages_and_what_others_occupy() {
    let spec = VirtualSpec { memory: Some(8 << 20), ..VirtualSpec::default() };
    let device = &virtual_devices(1, spec).unwrap()[0];
    let (memory, pages) =
        (device.driver().virtual_memory().unwrap(), device.driver().memory().unwrap());
    let start = pages.reserve(16 << 20).unwrap();
    assert_eq!(device.free_memory(), Some(8 << 20), "addresses are no memory");
    pages.commit(start + (2 << 20), 4 << 20).unwrap();
    let others = memory.occupy(3 << 20).unwrap();
    assert_eq!((device.free_memory(), others.bytes()), (Some(1 << 20), 3 << 20));
    assert_eq!(
        refusal(pages.commit(start, 2 << 20)),
        "virtual:0 is out of memory: 2 MiB was asked for, 1 MiB is free"
    );
    assert!(others.resize(5 << 20).is_err());
    others.resize(2 << 20).unwrap();
    pages.commit(start, 2 << 20).unwrap();
    assert_eq!((device.free_memory(), memory.committed()), (Some(0), 6 << 20));
    drop(others);
    pages.decommit(start, 6 << 20);
    assert_eq!(device.free_memory(), Some(8 << 20));
    pages.release(start, 16 << 20);
}

#[test]
fn a_stream_that_touches_what_has_no_memory_says_so_from_then_on() {
    let spec = VirtualSpec { memory: Some(8 << 20), ..VirtualSpec::default() };
    let driver = virtual_devices(1, spec).unwrap()[0].driver();
    let pages = driver.memory().unwrap();
    let start = pages.reserve(4 << 20).unwrap();
    let (stream, source) = (pages.copies().unwrap(), Arc::new(All(1)));
    let piece = Piece { source, from: 0, to: start + (1 << 20), length: 5 };
    let copied = pages.upload(&[], vec![piece], Pinning::Staging).unwrap();
    for event in [copied, pages.record(stream).unwrap()] {
        let told = refusal(event.wait(None));
        assert!(told.contains("which has no memory"), "{told}");
    }
    pages.release(start, 4 << 20);
}

#[test]
fn an_imitated_bus_takes_its_time() {
    let spec =
        VirtualSpec { memory: Some(8 << 20), bandwidth: Some(100 << 20), ..VirtualSpec::default() };
    let pages = virtual_devices(1, spec).unwrap()[0].driver().memory().unwrap();
    let start = pages.reserve(4 << 20).unwrap();
    pages.commit(start, 4 << 20).unwrap();
    let began = Instant::now();
    let piece = Piece { source: Arc::new(All(1)), from: 0, to: start, length: 4 << 20 };
    let copied = pages.upload(&[], vec![piece], Pinning::Staging).unwrap();
    let at_once = Instant::now();
    assert!(!copied.wait(Some(at_once)).unwrap(), "it is not done when it was only begun");
    assert!(copied.wait(None).unwrap());
    assert!(began.elapsed() >= Duration::from_millis(40), "4 MiB at 100 MiB/s");
    pages.decommit(start, 4 << 20);
    pages.release(start, 4 << 20);
}
