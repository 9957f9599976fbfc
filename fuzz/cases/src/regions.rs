//! Guest memory against a model: tables of arbitrary regions, and accesses through them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use memory::{
    FrontEndAddress, GuestAddress, GuestMemory, MAX_REGIONS, ReadSlice, RegionRequest, WriteCursor,
    WriteSlice,
};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::Reached;
use crate::input::Input;

const GUEST: u64 = 0x4000_0000;
const FRONT_END: u64 = 0x7f00_0000_0000;
const FILE_SIZES: [usize; 3] = [4096, 10_000, 65_536];
const PAGE: usize = 4096;

/// Memory tables, and accesses through them.
pub fn memory(data: &[u8]) -> Reached {
    let mut input = Input::new(data);
    let mut world = World::new();
    let mut steps = 0;
    while let Some(step) = input.step(&mut steps, 16) {
        match step {
            0..=1 => world.map(&mut input),
            2..=3 => world.add(&mut input),
            4 => world.remove(&mut input),
            5..=6 => world.translate(&mut input),
            7..=9 => world.read(&mut input),
            10..=12 => world.write(&mut input),
            13..=14 => world.words(&mut input),
            _ => world.shrink(&mut input),
        }
        assert_eq!(world.memory.region_count(), world.regions.len());
        let size: u64 = world.regions.iter().map(|region| region.size).sum();
        assert_eq!(world.memory.size(), size);
    }
    world.reached
}

/// A file, and what is in it.
struct File {
    file: OwnedFd,
    bytes: Vec<u8>,
    /// It was cut short: what a mapping of it holds is not foreseen any more.
    shrunk: bool,
}

#[derive(Clone, Copy)]
struct Region {
    guest: u64,
    size: u64,
    front_end: u64,
    offset: u64,
    /// None: a pipe.
    file: Option<usize>,
}

struct World {
    files: Vec<File>,
    pipe: OwnedFd,
    memory: GuestMemory,
    regions: Vec<Region>,
    reached: Reached,
}

impl World {
    fn new() -> Self {
        let files = FILE_SIZES.map(|size| {
            let file = memfd_create("fuzz memory", MemfdFlags::CLOEXEC).expect("a memory file");
            ftruncate(&file, size as u64).expect("a size");
            File { file, bytes: vec![0; size], shrunk: false }
        });
        let (pipe, _) = rustix::pipe::pipe().expect("a pipe");
        Self {
            files: files.into(),
            pipe,
            memory: GuestMemory::empty(),
            regions: Vec::new(),
            reached: Reached::default(),
        }
    }

    fn region(&self, input: &mut Input<'_>) -> Region {
        let file = input.below(FILE_SIZES.len() + 1);
        let file = (file < FILE_SIZES.len()).then_some(file);
        let len = file.map_or(PAGE as u64, |file| self.files[file].bytes.len() as u64);
        let offset = match input.below(8) {
            0..=3 => 0,
            4 => PAGE as u64,
            5 => u64::from(input.u16()),
            6 => u64::MAX - u64::from(input.u8()),
            _ => input.u64(),
        };
        let size = match input.below(8) {
            0..=3 => len.saturating_sub(offset),
            4..=5 => u64::from(input.u16()),
            6 => len.wrapping_sub(offset).wrapping_add(1),
            _ => input.u64(),
        };
        // Right behind the last one, as regions that a buffer may cross into are.
        let guest_end =
            self.regions.last().map_or(GUEST, |last| last.guest.wrapping_add(last.size));
        let front_end_end =
            self.regions.last().map_or(FRONT_END, |last| last.front_end.wrapping_add(last.size));
        let mut place = |end: u64, base: u64| match input.below(8) {
            0..=3 => end,
            4 => base + u64::from(input.u16()),
            5 => end.wrapping_sub(u64::from(input.u8())),
            6 => 0u64.wrapping_sub(size).wrapping_sub(u64::from(input.u8() & 1)),
            _ => input.u64(),
        };
        let (guest, front_end) = (place(guest_end, GUEST), place(front_end_end, FRONT_END));
        Region { guest, size, front_end, offset, file }
    }

    fn request(&self, region: &Region) -> RegionRequest {
        let file = region.file.map_or(&self.pipe, |file| &self.files[file].file);
        RegionRequest {
            guest: GuestAddress(region.guest),
            size: region.size,
            front_end: FrontEndAddress(region.front_end),
            offset: region.offset,
            file: file.as_fd().try_clone_to_owned().expect("a descriptor"),
        }
    }

    /// Whether a region may be mapped, by itself.
    fn is_sound(&self, region: &Region) -> bool {
        let fits = |start: u64| start.checked_add(region.size).is_some();
        let file_size = region.file.map_or(0, |file| self.files[file].bytes.len());
        region.size > 0
            && fits(region.guest)
            && fits(region.front_end)
            && u128::from(region.offset) + u128::from(region.size) <= file_size as u128
    }

    fn map(&mut self, input: &mut Input<'_>) {
        let wanted = input.below(5);
        let before = std::mem::take(&mut self.regions);
        for _ in 0..wanted {
            let region = self.region(input);
            self.regions.push(region);
        }
        let requests: Vec<_> = self.regions.iter().map(|region| self.request(region)).collect();
        let is_allowed =
            self.regions.iter().all(|region| self.is_sound(region)) && are_apart(&self.regions);
        match GuestMemory::map(requests) {
            Ok(memory) => {
                assert!(is_allowed, "a table that may not be was mapped");
                self.memory = memory;
                self.reached.note("mapped");
            }
            Err(error) => {
                assert!(!is_allowed, "{error}");
                self.regions = before;
                self.reached.note_variant(&error);
            }
        }
    }

    fn add(&mut self, input: &mut Input<'_>) {
        let region = self.region(input);
        let mut regions = self.regions.clone();
        regions.push(region);
        let is_allowed = self.is_sound(&region) && are_apart(&regions);
        match self.memory.with(self.request(&region)) {
            Ok(memory) => {
                assert!(is_allowed, "a region that may not be was added");
                self.memory = memory;
                self.regions = regions;
                self.reached.note("added");
            }
            Err(error) => {
                assert!(!is_allowed, "{error}");
                self.reached.note_variant(&error);
            }
        }
    }

    fn remove(&mut self, input: &mut Input<'_>) {
        let index = usize::from(input.u8()) % self.regions.len().max(1);
        let Some(region) = self.regions.get(index).copied() else { return };
        let off = |input: &mut Input<'_>| u64::from(input.rarely());
        let guest = GuestAddress(region.guest.wrapping_add(off(input)));
        let front_end = FrontEndAddress(region.front_end.wrapping_add(off(input)));
        let size = region.size.wrapping_add(off(input));
        let is_known =
            (guest.0, front_end.0, size) == (region.guest, region.front_end, region.size);
        match self.memory.without(guest, front_end, size) {
            Ok(memory) => {
                assert!(is_known, "a region that is not there was removed");
                self.memory = memory;
                self.regions.remove(index);
                self.reached.note("removed");
            }
            Err(error) => {
                assert!(!is_known, "{error}");
                self.reached.note_variant(&error);
            }
        }
    }

    /// An address in or near a region, by the kind of address that `start` gives.
    fn address(&self, input: &mut Input<'_>, start: impl Fn(&Region) -> u64) -> u64 {
        let index = usize::from(input.u8()) % self.regions.len().max(1);
        let Some(region) = self.regions.get(index) else { return input.u64() };
        match input.below(8) {
            0..=3 => start(region).wrapping_add(input.u16().into()),
            4..=5 => start(region).wrapping_add(region.size).wrapping_sub(input.u8().into()),
            6 => start(region).wrapping_sub(input.u8().into()),
            _ => input.u64(),
        }
    }

    fn len(input: &mut Input<'_>) -> u32 {
        match input.below(4) {
            0..=1 => input.u8().into(),
            2 => input.u16().into(),
            _ => input.u32(),
        }
    }

    fn translate(&mut self, input: &mut Input<'_>) {
        let address = self.address(input, |region| region.front_end);
        let len = match input.below(4) {
            0..=2 => input.u16().into(),
            _ => input.u64(),
        };
        let inside = |region: &&Region| {
            let (at, start) = (u128::from(address), u128::from(region.front_end));
            let end = start + u128::from(region.size);
            start <= at && at < end && at + u128::from(len) <= end
        };
        let found = self.regions.iter().find(inside);
        let expected = found.map(|region| region.guest + (address - region.front_end));
        let translated = self.memory.translate(FrontEndAddress(address), len).ok();
        assert_eq!(translated, expected.map(GuestAddress), "{len} bytes at {address:#x}");
        if translated.is_some() {
            self.reached.note("translated");
        }
    }

    /// The pieces that a buffer consists of, up to the first byte that is nowhere: the region's
    /// index, where in it, and how many bytes. And whether all of it is somewhere.
    fn pieces(&self, address: u64, len: u32) -> (Vec<(usize, u64, usize)>, bool) {
        let mut pieces = Vec::new();
        let (mut at, mut left) = (address, u64::from(len));
        while left > 0 {
            let holds = |region: &Region| region.guest <= at && at - region.guest < region.size;
            let Some(index) = self.regions.iter().position(holds) else { return (pieces, false) };
            let region = &self.regions[index];
            let offset = at - region.guest;
            let count = left.min(region.size - offset);
            pieces.push((index, offset, count as usize));
            at += count;
            left -= count;
        }
        (pieces, true)
    }

    /// A buffer's bytes; none when it lies in a file that was cut short.
    fn expected(&self, pieces: &[(usize, u64, usize)]) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for (index, offset, count) in pieces {
            let region = &self.regions[*index];
            let file = &self.files[region.file?];
            if file.shrunk {
                return None;
            }
            let start = (region.offset + offset) as usize;
            bytes.extend_from_slice(&file.bytes[start..start + count]);
        }
        Some(bytes)
    }

    /// Whether touching these bytes meets a page that its file does not have any more.
    fn meets_a_hole(&self, pieces: &[(usize, u64, usize)]) -> bool {
        pieces.iter().any(|(index, offset, count)| {
            let region = &self.regions[*index];
            region.file.is_some_and(|file| {
                let end = self.files[file].bytes.len().next_multiple_of(PAGE) as u64;
                region.offset + offset + *count as u64 > end
            })
        })
    }

    fn read(&mut self, input: &mut Input<'_>) {
        // Two, for what a translator remembers.
        let buffers =
            [(); 2].map(|()| (self.address(input, |region| region.guest), Self::len(input)));
        let mut translator = self.memory.translator();
        for (address, len) in buffers {
            let (pieces, is_whole) = self.pieces(address, len);
            let mut slices: Vec<ReadSlice<'_>> = Vec::new();
            let result = translator.read(GuestAddress(address), len, &mut slices);
            assert_eq!(result.is_ok(), is_whole, "{len} bytes at {address:#x}");
            let lens: Vec<usize> = slices.iter().map(ReadSlice::len).collect();
            assert_eq!(lens, pieces.iter().map(|piece| piece.2).collect::<Vec<_>>());
            let mut bytes = vec![0xaa; lens.iter().sum()];
            let mut at = 0;
            for slice in &slices {
                at += slice.copy_to(&mut bytes[at..]);
            }
            if let Some(expected) = self.expected(&pieces) {
                assert!(bytes == expected, "wrong bytes at {address:#x}");
            }
            if self.meets_a_hole(&pieces) {
                assert!(self.memory.is_poisoned(), "a hole was not noticed");
                self.reached.note("poisoned");
            }
            if is_whole {
                let mut again = vec![0; bytes.len()];
                assert!(translator.copy_to(GuestAddress(address), &mut again).is_ok());
                assert!(again == bytes);
                self.reached.note(if pieces.len() > 1 { "read across" } else { "read" });
            }
        }
    }

    fn write(&mut self, input: &mut Input<'_>) {
        let address = self.address(input, |region| region.guest);
        let len = Self::len(input);
        let (pieces, is_whole) = self.pieces(address, len);
        let mut slices: Vec<WriteSlice<'_>> = Vec::new();
        let result = self.memory.translator().write(GuestAddress(address), len, &mut slices);
        assert_eq!(result.is_ok(), is_whole, "{len} bytes at {address:#x}");
        let room: usize = slices.iter().map(WriteSlice::len).sum();
        let seed = input.u8();
        let bytes: Vec<u8> = (0..room).map(|at| (at as u8).wrapping_mul(31) ^ seed).collect();
        // In two pieces, and more than there is room for.
        let (one, two) = bytes.split_at(usize::from(input.u16()).min(room));
        let mut cursor = WriteCursor::new(&slices);
        assert_eq!(cursor.write(one.into()), one.len());
        assert_eq!(cursor.write(two.into()), two.len());
        assert_eq!(cursor.write((&[1u8][..]).into()), 0);
        let mut at = 0;
        for (index, offset, count) in &pieces {
            let region = &self.regions[*index];
            let file = &mut self.files[region.file.expect("pipes are not mapped")];
            if !file.shrunk {
                let start = (region.offset + offset) as usize;
                file.bytes[start..start + count].copy_from_slice(&bytes[at..at + count]);
            }
            at += count;
        }
        assert_eq!(at, room);
        if is_whole {
            self.reached.note(if pieces.len() > 1 { "written across" } else { "written" });
        }
    }

    fn words(&mut self, input: &mut Input<'_>) {
        let address = self.address(input, |region| region.guest);
        let len = match input.below(4) {
            0..=2 => input.u8().into(),
            _ => input.u64() as usize,
        };
        let value = input.u64();
        let width = input.pick(&[2, 4, 8usize]);
        let bytes = len.saturating_mul(width);
        let found = self
            .regions
            .iter()
            .find(|region| region.guest <= address && address - region.guest < region.size);
        // What counts is the alignment in our own address space: that in the file.
        let is_allowed = found.is_some_and(|region| {
            let offset = address - region.guest;
            bytes as u64 <= region.size - offset
                && (region.offset + offset).is_multiple_of(width as u64)
        });
        let at = GuestAddress(address);
        macro_rules! access {
            ($atomic:ty, $integer:ty) => {
                self.memory.words::<$atomic>(at, len).ok().map(|words| {
                    assert_eq!(words.len(), len);
                    if let Some(last) = words.last() {
                        last.store((value as $integer).to_le(), Ordering::Relaxed);
                    }
                })
            };
        }
        let words = match width {
            2 => access!(AtomicU16, u16),
            4 => access!(AtomicU32, u32),
            _ => access!(AtomicU64, u64),
        };
        assert_eq!(words.is_some(), is_allowed, "{len} words of {width} at {address:#x}");
        if let (Some(()), Some(region), true) = (words, found, len > 0) {
            let start = (region.offset + (address - region.guest)) as usize + bytes - width;
            let file = &mut self.files[region.file.expect("pipes are not mapped")];
            if !file.shrunk {
                file.bytes[start..start + width].copy_from_slice(&value.to_le_bytes()[..width]);
            }
            self.reached.note("words");
        }
    }

    fn shrink(&mut self, input: &mut Input<'_>) {
        let file = input.below(FILE_SIZES.len());
        let file = &mut self.files[file];
        let size = usize::from(input.u16()).min(file.bytes.len());
        ftruncate(&file.file, size as u64).expect("a smaller size");
        file.bytes.truncate(size);
        file.shrunk = true;
    }
}

/// Whether no two regions share an address of either kind.
fn are_apart(regions: &[Region]) -> bool {
    let apart = |(one, one_size): (u64, u64), (other, other_size): (u64, u64)| {
        let end = |start: u64, size: u64| u128::from(start) + u128::from(size);
        end(one, one_size) <= other.into() || end(other, other_size) <= one.into()
    };
    regions.len() <= MAX_REGIONS
        && regions.iter().enumerate().all(|(index, one)| {
            regions[..index].iter().all(|other| {
                apart((one.guest, one.size), (other.guest, other.size))
                    && apart((one.front_end, one.size), (other.front_end, other.size))
            })
        })
}
