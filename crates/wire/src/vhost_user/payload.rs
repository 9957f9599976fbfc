//! Payloads: their shapes, and the values of those that are served or sent.
//!
//! All fields are in host order and naturally aligned, as C compilers lay them out.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::MAX_TABLE_REGIONS;

/// What a payload is made of, which fixes how long it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Nothing.
    Empty,
    /// One u64.
    U64,
    /// [`VringState`].
    VringState,
    /// [`VringAddress`].
    VringAddress,
    /// [`RingDescriptor`].
    RingDescriptor,
    /// A count and up to 8 [`MemoryRegion`]s.
    MemoryTable,
    /// Padding, then one [`MemoryRegion`].
    SingleRegion,
    /// [`LogArea`].
    Log,
    /// An IOTLB entry, with or without its tail padding.
    Iotlb,
    /// [`ConfigSpace`].
    Config,
    /// A crypto session, whose size is the crypto device's business.
    CryptoSession,
    /// Size, offset and queues of the in-flight region, with or without its tail padding.
    Inflight,
    /// A 16-byte identifier.
    Uuid,
    /// Direction and phase of a state transfer.
    DeviceState,
    /// Count and sizes of 256 shared memory regions.
    SharedMemoryConfig,
    /// A mapping into a shared memory region.
    SharedMemoryMap,
    /// A ring's notification area.
    VringArea,
}

impl Shape {
    /// The allowed sizes, in bytes: from the first to the second in steps of the third.
    pub const fn sizes(self) -> (usize, usize, usize) {
        const fn exactly(size: usize) -> (usize, usize, usize) {
            (size, size, 1)
        }
        match self {
            Self::Empty => exactly(0),
            Self::U64 | Self::VringState | Self::RingDescriptor | Self::DeviceState => exactly(8),
            Self::VringAddress | Self::SingleRegion | Self::SharedMemoryMap => exactly(40),
            Self::MemoryTable => (8, 8 + MAX_TABLE_REGIONS * 32, 32),
            Self::Log | Self::Uuid => exactly(16),
            Self::Iotlb => (26, 32, 6),
            Self::Config => (12, 12 + 256, 1),
            Self::CryptoSession => (0, super::MAX_PAYLOAD, 1),
            Self::Inflight => (20, 24, 4),
            Self::SharedMemoryConfig => exactly(8 + 256 * 8),
            Self::VringArea => exactly(24),
        }
    }

    /// Whether a payload of this shape may have this many bytes.
    pub const fn allows(self, size: usize) -> bool {
        let (least, most, step) = self.sizes();
        least <= size && size <= most && (size - least).is_multiple_of(step)
    }
}

/// A ring's index and a number: its size, its base, or whether it is enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct VringState {
    /// The ring.
    pub index: u32,
    /// The number.
    pub num: u32,
}

/// Where a ring lies, in the front end's user addresses. Used comes before available on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct VringAddress {
    /// The ring.
    pub index: u32,
    /// Bit 0: log writes to the used ring.
    pub flags: u32,
    /// The descriptor table.
    pub descriptors: u64,
    /// The used ring.
    pub used: u64,
    /// The available ring.
    pub available: u64,
    /// Guest physical address by which writes to the used ring are logged.
    pub log: u64,
}

/// One region of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct MemoryRegion {
    /// Guest physical address.
    pub guest_address: u64,
    /// Bytes.
    pub size: u64,
    /// Address in the front end's process.
    pub user_address: u64,
    /// Where the region starts in its file, in bytes.
    pub mmap_offset: u64,
}

/// Where the dirty log is in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct LogArea {
    /// Bytes.
    pub size: u64,
    /// Where it starts in the file, in bytes.
    pub offset: u64,
}

/// A part of the device's configuration space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSpace {
    /// Where it starts, in bytes.
    pub offset: u32,
    /// Who writes: 0 is the driver. Front ends differ in what else they say.
    pub flags: u32,
    /// What is in it, up to 256 bytes.
    pub bytes: Vec<u8>,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct ConfigHeader {
    offset: u32,
    size: u32,
    flags: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct SingleRegion {
    padding: u64,
    region: MemoryRegion,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct MemoryTableHeader {
    count: u32,
    padding: u32,
}

/// Which ring a kick, call or error descriptor belongs to: bits 0 to 7 of a u64, and in bit 8
/// whether there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingDescriptor {
    /// The ring.
    pub ring: u8,
    /// A descriptor rides with the message.
    pub attached: bool,
}

impl RingDescriptor {
    const NONE_ATTACHED: u64 = 1 << 8;

    /// Decodes the u64. `None` when bits without a meaning are set.
    pub const fn decode(value: u64) -> Option<Self> {
        if value > 0x1ff {
            return None;
        }
        Some(Self { ring: value as u8, attached: value & Self::NONE_ATTACHED == 0 })
    }

    /// Encodes the u64.
    pub const fn encode(self) -> u64 {
        self.ring as u64 | if self.attached { 0 } else { Self::NONE_ATTACHED }
    }
}

/// A decoded payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Nothing.
    Empty,
    /// One u64.
    U64(u64),
    /// A ring and a number.
    VringState(VringState),
    /// A ring's addresses.
    VringAddress(VringAddress),
    /// A ring's descriptor.
    RingDescriptor(RingDescriptor),
    /// The memory table.
    MemoryTable(Vec<MemoryRegion>),
    /// One region.
    SingleRegion(MemoryRegion),
    /// Where the dirty log is.
    Log(LogArea),
    /// A part of the configuration space.
    Config(ConfigSpace),
    /// The payload of a message that is known by its form only.
    Opaque,
}

impl Payload {
    /// Decodes the bytes of a payload. `None` when they do not have this shape: a wrong size, a
    /// memory table or a configuration space whose size contradicts itself, meaningless bits beside a ring index.
    pub fn decode(shape: Shape, bytes: &[u8]) -> Option<Self> {
        if !shape.allows(bytes.len()) {
            return None;
        }
        Some(match shape {
            Shape::Empty => Self::Empty,
            Shape::U64 => Self::U64(u64::read_from_bytes(bytes).ok()?),
            Shape::VringState => Self::VringState(VringState::read_from_bytes(bytes).ok()?),
            Shape::VringAddress => Self::VringAddress(VringAddress::read_from_bytes(bytes).ok()?),
            Shape::RingDescriptor => {
                Self::RingDescriptor(RingDescriptor::decode(u64::read_from_bytes(bytes).ok()?)?)
            }
            Shape::MemoryTable => Self::MemoryTable(decode_memory_table(bytes)?),
            Shape::SingleRegion => {
                Self::SingleRegion(SingleRegion::read_from_bytes(bytes).ok()?.region)
            }
            Shape::Log => Self::Log(LogArea::read_from_bytes(bytes).ok()?),
            Shape::Config => Self::Config(decode_config(bytes)?),
            _ => Self::Opaque,
        })
    }

    /// The bytes of this payload. A memory table has at most [`MAX_TABLE_REGIONS`] regions.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Empty | Self::Opaque => Vec::new(),
            Self::U64(value) => value.as_bytes().to_vec(),
            Self::VringState(state) => state.as_bytes().to_vec(),
            Self::VringAddress(address) => address.as_bytes().to_vec(),
            Self::RingDescriptor(descriptor) => descriptor.encode().as_bytes().to_vec(),
            Self::MemoryTable(regions) => {
                debug_assert!(regions.len() <= MAX_TABLE_REGIONS);
                let header = MemoryTableHeader { count: regions.len() as u32, padding: 0 };
                [header.as_bytes(), regions.as_bytes()].concat()
            }
            Self::SingleRegion(region) => {
                SingleRegion { padding: 0, region: *region }.as_bytes().to_vec()
            }
            Self::Log(area) => area.as_bytes().to_vec(),
            Self::Config(ConfigSpace { offset, flags, bytes }) => {
                let size = bytes.len() as u32;
                let header = ConfigHeader { offset: *offset, size, flags: *flags };
                [header.as_bytes(), bytes].concat()
            }
        }
    }
}

fn decode_memory_table(bytes: &[u8]) -> Option<Vec<MemoryRegion>> {
    let (header, regions) = MemoryTableHeader::read_from_prefix(bytes).ok()?;
    let (regions, rest) = regions.as_chunks::<{ size_of::<MemoryRegion>() }>();
    if !rest.is_empty() || header.count as usize != regions.len() {
        return None;
    }
    regions.iter().map(|region| MemoryRegion::read_from_bytes(region).ok()).collect()
}

fn decode_config(payload: &[u8]) -> Option<ConfigSpace> {
    let (header, bytes) = ConfigHeader::read_from_prefix(payload).ok()?;
    let ConfigHeader { offset, size, flags } = header;
    (size as usize == bytes.len()).then(|| ConfigSpace { offset, flags, bytes: bytes.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn sizes_are_those_of_the_structures() {
        for (shape, size) in [
            (Shape::VringState, size_of::<VringState>()),
            (Shape::VringAddress, size_of::<VringAddress>()),
            (Shape::SingleRegion, size_of::<SingleRegion>()),
            (Shape::Log, size_of::<LogArea>()),
        ] {
            assert_eq!(shape.sizes(), (size, size, 1), "{shape:?}");
        }
        assert_eq!(size_of::<MemoryRegion>(), 32);
        assert!(!Shape::SingleRegion.allows(36), "QEMU before 5.1 is refused");
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_ring_address_as_qemu_sends_it() {
        let bytes = words(&[1, 0, 0x1000, 0x7f00, 0x3000, 0x7f00, 0x2000, 0x7f00, 0, 0]);
        assert_eq!(
            Payload::decode(Shape::VringAddress, &bytes),
            Some(Payload::VringAddress(VringAddress {
                index: 1,
                flags: 0,
                descriptors: 0x7f00_0000_1000,
                used: 0x7f00_0000_3000,
                available: 0x7f00_0000_2000,
                log: 0,
            }))
        );
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_memory_table_as_qemu_sends_it() {
        let bytes = words(&[1, 0, 0, 0, 0x1000_0000, 0, 0, 0x7f00, 0x1000, 0]);
        let region = MemoryRegion {
            guest_address: 0,
            size: 0x1000_0000,
            user_address: 0x7f00_0000_0000,
            mmap_offset: 0x1000,
        };
        assert_eq!(
            Payload::decode(Shape::MemoryTable, &bytes),
            Some(Payload::MemoryTable(vec![region]))
        );
        assert_eq!(Payload::MemoryTable(vec![region]).encode(), bytes);
    }

    #[test]
    fn a_memory_table_must_count_right() {
        for count in [0, 2, 8, 9, u32::MAX] {
            let bytes = words(&[count, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(Payload::decode(Shape::MemoryTable, &bytes), None, "{count}");
        }
        let empty = Payload::decode(Shape::MemoryTable, &words(&[0, 0]));
        assert_eq!(empty, Some(Payload::MemoryTable(vec![])));
        let nine = words(&[9, 0]).into_iter().chain([0; 9 * 32]).collect::<Vec<u8>>();
        assert_eq!(Payload::decode(Shape::MemoryTable, &nine), None);
    }

    #[test]
    fn a_configuration_space_must_have_the_size_that_it_says() {
        let decode = |size| Payload::decode(Shape::Config, &words(&[4, size, 0, 0x01020304]));
        let bytes = 0x01020304u32.to_ne_bytes().to_vec();
        assert_eq!(decode(4), Some(Payload::Config(ConfigSpace { offset: 4, flags: 0, bytes })));
        for size in [0, 3, 5, u32::MAX] {
            assert_eq!(decode(size), None, "{size}");
        }
    }

    #[test]
    fn ring_descriptors_have_nine_bits() {
        let decode = RingDescriptor::decode;
        assert_eq!(decode(3), Some(RingDescriptor { ring: 3, attached: true }));
        assert_eq!(decode(0x1ff), Some(RingDescriptor { ring: 255, attached: false }));
        assert_eq!(decode(0x200), None);
        assert_eq!(decode(u64::MAX), None);
        for value in 0..0x200 {
            assert_eq!(decode(value).map(RingDescriptor::encode), Some(value));
        }
    }

    /// Every payload that is served, with arbitrary contents.
    fn payloads() -> impl Strategy<Value = (Shape, Payload)> {
        let state = |(index, num)| Payload::VringState(VringState { index, num });
        let address = |(index, flags, [descriptors, used, available, log]): (_, _, [u64; 4])| {
            Payload::VringAddress(VringAddress { index, flags, descriptors, used, available, log })
        };
        let region = |[guest_address, size, user_address, mmap_offset]: [u64; 4]| MemoryRegion {
            guest_address,
            size,
            user_address,
            mmap_offset,
        };
        let table = proptest::collection::vec(any::<[u64; 4]>().prop_map(region), 0..=8);
        prop_oneof![
            Just((Shape::Empty, Payload::Empty)),
            any::<u64>().prop_map(|value| (Shape::U64, Payload::U64(value))),
            any::<(u32, u32)>().prop_map(move |words| (Shape::VringState, state(words))),
            any::<(u32, u32, [u64; 4])>()
                .prop_map(move |words| (Shape::VringAddress, address(words))),
            any::<(u8, bool)>().prop_map(|(ring, attached)| (
                Shape::RingDescriptor,
                Payload::RingDescriptor(RingDescriptor { ring, attached })
            )),
            table.prop_map(|regions| (Shape::MemoryTable, Payload::MemoryTable(regions))),
            any::<(u64, u64)>()
                .prop_map(|(size, offset)| (Shape::Log, Payload::Log(LogArea { size, offset }))),
            (any::<(u32, u32)>(), proptest::collection::vec(any::<u8>(), 0..=256)).prop_map(
                |((offset, flags), bytes)| (
                    Shape::Config,
                    Payload::Config(ConfigSpace { offset, flags, bytes })
                )
            ),
            any::<[u64; 4]>()
                .prop_map(move |words| (Shape::SingleRegion, Payload::SingleRegion(region(words)))),
        ]
    }

    proptest! {
        #[test]
        fn payloads_round_trip((shape, payload) in payloads()) {
            let bytes = payload.encode();
            prop_assert!(shape.allows(bytes.len()));
            prop_assert_eq!(Payload::decode(shape, &bytes), Some(payload));
        }
    }
}
