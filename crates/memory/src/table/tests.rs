use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::*;
use crate::{SharedMemory, WriteCursor, poison_epoch};

const PAGE: u64 = 4096;

fn file(size: u64) -> OwnedFd {
    let memory = SharedMemory::create("test", size).unwrap();
    memory.as_fd().try_clone_to_owned().unwrap()
}

fn request(guest: u64, size: u64, front_end: u64) -> RegionRequest {
    RegionRequest {
        guest: GuestAddress(guest),
        size,
        front_end: FrontEndAddress(front_end),
        offset: 0,
        file: file(size),
    }
}

/// Two regions, adjacent for the guest and far apart for everybody else.
fn adjacent() -> GuestMemory {
    GuestMemory::map([request(0x1_0000, PAGE, 0x700_0000), request(0x1_1000, PAGE, 0x500_0000)])
        .unwrap()
}

fn read(memory: &GuestMemory, address: u64, len: u32) -> Result<Vec<u8>, Fault> {
    let mut slices = Vec::new();
    memory.translator().read(GuestAddress(address), len, &mut slices)?;
    let mut bytes = vec![0; len as usize];
    let mut at = 0;
    for slice in slices {
        at += slice.copy_to(&mut bytes[at..]);
    }
    assert_eq!(at, len as usize);
    Ok(bytes)
}

fn write(memory: &GuestMemory, address: u64, bytes: &[u8]) -> Result<usize, Fault> {
    let mut slices = Vec::new();
    memory.translator().write(GuestAddress(address), bytes.len() as u32, &mut slices)?;
    assert_eq!(WriteCursor::new(&slices).write(bytes.into()), bytes.len());
    Ok(slices.len())
}

#[test]
fn a_buffer_across_adjacent_regions_is_split_and_whole() {
    let memory = adjacent();
    let bytes: Vec<u8> = (0..200).collect();
    assert_eq!(write(&memory, 0x1_0F9C, &bytes), Ok(2));
    assert_eq!(read(&memory, 0x1_0F9C, 200).unwrap(), bytes);
    assert_eq!(read(&memory, 0x1_1000, 100).unwrap(), bytes[100..]);
}

#[test]
fn what_is_outside_is_a_fault_start_and_end() {
    let memory = adjacent();
    for (address, len) in [
        (0xFFFF, 1),
        (0xFFFF, 2),
        (0x1_2000, 1),
        (0x1_1FFF, 2),
        (0x1_0000, 0x2001),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (0x1_0000, u32::MAX),
        (0, 1),
    ] {
        assert!(read(&memory, address, len).is_err(), "{len} bytes at {address:#x}");
    }
    assert!(read(&memory, 0x1_0000, 0x2000).is_ok());
}

#[test]
fn zero_bytes_need_no_valid_address() {
    assert_eq!(read(&adjacent(), u64::MAX, 0), Ok(vec![]));
}

/// Asks both ways whether these bytes are all in one region, and that they are the same ones then.
#[track_caller]
fn is_whole(translator: &mut Translator<'_>, address: u64, len: u32) -> bool {
    let address = GuestAddress(address);
    let what = format!("{len} bytes at {address}");
    let (read, written) =
        (translator.read_whole(address, len), translator.write_whole(address, len));
    assert_eq!(read.is_some(), written.is_some(), "{what}");
    let (Some(read), Some(written)) = (read, written) else { return false };
    assert_eq!((read.len(), written.len()), (len as usize, len as usize), "{what}");
    // From the first to the last of them.
    let bytes: Vec<u8> = (0..len).map(|at| (at * 7 + at / 251) as u8 ^ len as u8).collect();
    assert_eq!(written.copy_from(bytes.as_slice().into()), bytes.len());
    let mut copied = vec![0; bytes.len()];
    assert_eq!(read.copy_to(&mut copied), bytes.len());
    assert!(copied == bytes, "{what}");
    let mut slices = Vec::new();
    translator.clone().read(address, len, &mut slices).unwrap();
    let mut copied = vec![0; bytes.len()];
    assert_eq!(slices[0].copy_to(&mut copied), bytes.len());
    assert!(copied == bytes, "{what}: where they are for everybody");
    true
}

#[test]
fn only_what_is_all_in_one_region_is_whole() {
    const TOP: u64 = u64::MAX - PAGE;
    let starts = [0, 0x1_0000, 0x1_1000, TOP];
    let expected = |address: u64, len: u32| {
        let (first, end) = (u128::from(address), u128::from(address) + u128::from(len));
        let is_in =
            |start: u64| u128::from(start) <= first && end <= u128::from(start) + u128::from(PAGE);
        len > 0 && starts.into_iter().any(is_in)
    };
    let memory = GuestMemory::map([
        request(0, PAGE, 0x100_0000),
        request(0x1_0000, PAGE, 0x700_0000),
        request(0x1_1000, PAGE, 0x500_0000),
        request(TOP, PAGE, 0x900_0000),
    ])
    .unwrap();
    let all = PAGE as u32;
    for start in starts {
        let mut translator = memory.translator();
        let end = start + PAGE;
        translator.read(GuestAddress(start + 100), 1, &mut Vec::new()).unwrap();
        for (address, len) in [
            (start, 1),
            (start, all - 1),
            (start, all),
            (start + 1, all - 1),
            (start + 1000, 1500),
            (end - 2, 2),
            (end - 1, 1),
        ] {
            assert!(is_whole(&mut translator, address, len), "{len} bytes at {address:#x}");
        }
        let before = start.wrapping_sub(1);
        for (address, len) in [
            // Nothing is nowhere.
            (start, 0),
            (end - 1, 0),
            (end, 0),
            (before, 0),
            // In front of it, and into it from there.
            (before, 1),
            (before, 2),
            (before, all + 1),
            (before, u32::MAX),
            (start.wrapping_sub(PAGE), all),
            (start.wrapping_sub(PAGE), 2 * all),
            // Behind it, and out of it.
            (end - 1, 2),
            (end - 1, u32::MAX),
            (end, 1),
            (end, all),
            (start, all + 1),
            (start + 1, all),
            (start, u32::MAX),
            // As far away as can be, from where a sum would wrap around.
            (start.wrapping_add(1 << 63), 1),
            (u64::MAX, 1),
            (u64::MAX, 2),
            (u64::MAX, u32::MAX),
            (end.wrapping_sub(1 << 32), u32::MAX),
        ] {
            let is_whole = is_whole(&mut translator, address, len);
            assert_eq!(is_whole, expected(address, len), "{len} bytes at {address:#x}");
        }
    }
    let none = GuestMemory::empty();
    for (address, len) in [(0, 0), (0, 1), (u64::MAX, 1), (u64::MAX, u32::MAX)] {
        assert!(!is_whole(&mut none.translator(), address, len));
    }
}

#[test]
fn regions_are_checked_against_overflow_overlap_and_the_file() {
    let map = |request| GuestMemory::map([request]).err().unwrap();
    assert!(matches!(map(request(0, 0, 0)), MapError::Empty));
    assert!(matches!(map(request(u64::MAX - 10, PAGE, 0)), MapError::Overflow));
    assert!(matches!(map(request(0, PAGE, u64::MAX - 10)), MapError::Overflow));
    assert!(matches!(
        map(RegionRequest { offset: u64::MAX - 10, ..request(0, PAGE, 0) }),
        MapError::Overflow
    ));
    assert!(matches!(
        map(RegionRequest { offset: 1, ..request(0, PAGE, 0) }),
        MapError::FileTooShort { file_size: 4096, needed: 4097 }
    ));
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    assert!(matches!(
        map(RegionRequest { file: reader, ..request(0, PAGE, 0) }),
        MapError::NotMemory
    ));
    let on_disk = std::fs::File::open("/proc/self/exe").unwrap();
    assert!(matches!(
        map(RegionRequest { file: on_disk.into(), ..request(0, PAGE, 0) }),
        MapError::NotMemory
    ));
    assert!(matches!(map(request(0, MAX_SIZE + PAGE, 0)), MapError::TooLarge));
    let half = MAX_SIZE / 2;
    let halves = [request(0, half, 0), request(half, half + PAGE, half)];
    assert!(matches!(GuestMemory::map(halves).err().unwrap(), MapError::TooLarge));

    let two = |a, b| GuestMemory::map([a, b]).err().unwrap();
    assert!(matches!(
        two(request(0, 2 * PAGE, 0), request(PAGE, PAGE, 1 << 40)),
        MapError::GuestOverlap(GuestAddress(PAGE))
    ));
    assert!(matches!(
        two(request(0, 2 * PAGE, 0), request(1 << 40, PAGE, PAGE)),
        MapError::FrontEndOverlap(FrontEndAddress(PAGE))
    ));
}

#[test]
fn regions_come_and_go_one_by_one_up_to_the_limit() {
    let mut memory = GuestMemory::empty();
    for slot in 0..MAX_REGIONS as u64 {
        memory = memory.with(request(slot * PAGE, PAGE, slot * PAGE)).unwrap();
    }
    assert_eq!(memory.region_count(), MAX_REGIONS);
    assert!(matches!(memory.with(request(1 << 40, PAGE, 1 << 40)), Err(MapError::TooManyRegions)));
    let without = |memory: &GuestMemory, guest, front_end, size| {
        memory.without(GuestAddress(guest), FrontEndAddress(front_end), size)
    };
    assert!(matches!(without(&memory, 0, 0, 2 * PAGE), Err(MapError::Unknown { .. })));
    assert!(matches!(without(&memory, 0, PAGE, PAGE), Err(MapError::Unknown { .. })));
    let smaller = without(&memory, 0, 0, PAGE).unwrap();
    assert_eq!(smaller.region_count(), MAX_REGIONS - 1);
    assert!(read(&smaller, 0, 1).is_err());
    assert!(read(&smaller, PAGE, 1).is_ok());
    assert!(read(&memory, 0, 1).is_ok(), "the old table is untouched");
}

#[test]
fn an_offset_need_not_be_aligned() {
    let shared = SharedMemory::create("test", 3 * PAGE).unwrap();
    let whole = RegionRequest {
        file: shared.as_fd().try_clone_to_owned().unwrap(),
        ..request(0, 3 * PAGE, 0)
    };
    let part = RegionRequest {
        offset: PAGE + 100,
        file: shared.as_fd().try_clone_to_owned().unwrap(),
        ..request(0, PAGE, 0)
    };
    let whole = GuestMemory::map([whole]).unwrap();
    let part = GuestMemory::map([part]).unwrap();
    write(&part, 0, b"here").unwrap();
    assert_eq!(read(&whole, PAGE + 100, 4).unwrap(), b"here");
    assert!(read(&part, PAGE, 1).is_err());
}

#[test]
fn front_end_addresses_translate_within_one_region() {
    let memory = adjacent();
    let translate = |address, len| memory.translate(FrontEndAddress(address), len);
    assert_eq!(translate(0x500_0010, 16), Ok(GuestAddress(0x1_1010)));
    assert_eq!(translate(0x700_0000, PAGE), Ok(GuestAddress(0x1_0000)));
    assert!(translate(0x700_0000, PAGE + 1).is_err());
    assert!(translate(0x700_0001, PAGE).is_err());
    assert!(translate(0x1_0000, 1).is_err(), "a guest address is not a front-end address");
    assert!(translate(u64::MAX, u64::MAX).is_err());
    assert!(translate(0x700_1000, 0).is_err(), "one past the end is outside");
}

#[test]
fn words_are_aligned_inside_one_region_and_shared() {
    let memory = adjacent();
    let words = memory.words::<AtomicU16>(GuestAddress(0x1_0100), 4).unwrap();
    words[3].store(0x1234u16.to_le(), Ordering::Relaxed);
    assert_eq!(read(&memory, 0x1_0106, 2).unwrap(), [0x34, 0x12]);
    // Hints may point anywhere.
    for (at, count) in [(0, 4), (3, 9), (4, 1), (usize::MAX, usize::MAX)] {
        words.prefetch_run(at, count);
        words.prefetch(at);
    }
    assert!(memory.words::<AtomicU16>(GuestAddress(0x1_0101), 1).is_err());
    assert!(memory.words::<AtomicU64>(GuestAddress(0x1_0104), 1).is_err());
    assert!(memory.words::<AtomicU64>(GuestAddress(0x1_0FF8), 1).is_ok());
    assert!(memory.words::<AtomicU64>(GuestAddress(0x1_0FF8), 2).is_err(), "crosses a region");
    assert!(memory.words::<AtomicU64>(GuestAddress(0x1_0FF8), usize::MAX).is_err());
    drop(memory);
    assert_eq!(u16::from_le(words[3].load(Ordering::Relaxed)), 0x1234, "keeps its mapping alive");
}

#[test]
fn a_file_that_shrinks_reads_as_zeros_and_is_marked() {
    let file = memfd_create("shrinks", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, 4 * PAGE).unwrap();
    let shrinking = RegionRequest { file: file.try_clone().unwrap(), ..request(0, 4 * PAGE, 0) };
    let memory = GuestMemory::map([shrinking]).unwrap();
    let other = adjacent();
    write(&memory, 2 * PAGE, b"gone").unwrap();
    let before = poison_epoch();
    ftruncate(&file, PAGE).unwrap();
    assert!(!memory.is_poisoned());
    assert_eq!(read(&memory, 2 * PAGE, 4).unwrap(), [0; 4]);
    assert!(memory.is_poisoned());
    assert!(!other.is_poisoned(), "only the region that shrank");
    assert!(poison_epoch() > before);
    write(&memory, 3 * PAGE, b"into the void").unwrap();
}

#[test]
fn mappings_and_descriptors_are_given_back() {
    let count = || std::fs::read_to_string("/proc/self/maps").unwrap().matches("give-back").count();
    let memory = || {
        let shared = SharedMemory::create("give-back", PAGE).unwrap();
        let file = shared.as_fd().try_clone_to_owned().unwrap();
        GuestMemory::map([RegionRequest { file, ..request(0, PAGE, 0) }]).unwrap()
    };
    let kept = memory();
    for _ in 0..5000 {
        memory();
    }
    assert_eq!(count(), 1);
    drop(kept);
    assert_eq!(count(), 0);
}
