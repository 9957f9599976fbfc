//! What a front end says: messages that may well be right, and often are not quite.

use vhost_user::back_end::Offer;
use virtqueue::packed;
use wire::vhost_user::{
    FrontEndRequest as R, Header, MemoryRegion, Payload, RingDescriptor, Shape, VringAddress,
    VringState,
};
use wire::virtio::Features;

use super::{AVAILABLE, FRONT_END, GUEST, OFFER, RING_SIZE, RING_SPACE, SIZE, USED};
use crate::input::Input;

/// A message, as it goes through the socket.
pub struct Said {
    pub bytes: Vec<u8>,
    /// The descriptors that ride with its first bytes.
    pub kinds: Vec<Kind>,
    /// It comes in two pieces, of which the first has so many bytes.
    pub cut: Option<usize>,
}

impl Said {
    /// The next message.
    pub fn read(input: &mut Input<'_>) -> Self {
        let number = match input.u8() {
            number @ 0..0xf0 => u32::from(number % 46),
            _ => input.u32(),
        };
        let table = R::from_number(number).map(R::message);
        let shape = table.map_or(Shape::U64, |message| message.payload);
        let mut payload = payload(shape, input);
        match input.u8() {
            0..0xe8 => {}
            0xe8..0xf0 => _ = payload.pop(),
            0xf0..0xf8 => payload.push(0),
            _ => payload.resize(usize::from(input.u16()), 0xff),
        }
        let mut header = Header::request(number, input.bool(), payload.len() as u32);
        header.reply = input.u8() == 0xff;
        let mut bytes = header.encode().to_vec();
        if input.u8() == 0xff {
            // Any flags.
            bytes[4..8].copy_from_slice(&input.array::<4>());
        }
        bytes.extend(payload);

        let (least, most) = table.map_or((0, 2), |message| message.descriptors);
        let usual = match number {
            5 => bytes.get(12).map_or(0, |regions| usize::from(*regions).min(most)),
            _ => (least..=most).last().unwrap_or(0),
        };
        let count = match input.u8() {
            0..0xd0 => usual,
            count => usize::from(count % 10),
        };
        let is_memory = [5, 37, 38].contains(&number);
        let kinds: Vec<Kind> = (0..count)
            .map(|_| match input.u8() {
                0..0xb0 if is_memory => Kind::Main,
                0..0xb0 => Kind::Event,
                kind => Kind::ALL[usize::from(kind) % Kind::ALL.len()],
            })
            .collect();
        let cut = input.rarely().then(|| input.u8().into());
        Self { bytes, kinds, cut }
    }
}

/// What a front end may pass.
#[derive(Clone, Copy)]
pub enum Kind {
    Main,
    Other,
    Small,
    Empty,
    Event,
    /// An event whose counter is full: to write to it blocks.
    FullEvent,
    Pipe,
    PipeEnd,
    /// The front end's own end of the connection.
    Socket,
    Timer,
    Epoll,
}

impl Kind {
    pub const ALL: [Self; 11] = [
        Self::Main,
        Self::Other,
        Self::Small,
        Self::Empty,
        Self::Event,
        Self::FullEvent,
        Self::Pipe,
        Self::PipeEnd,
        Self::Socket,
        Self::Timer,
        Self::Epoll,
    ];
}

/// Where a ring lies, when the input does not say otherwise.
pub fn address(index: u32) -> VringAddress {
    let at = FRONT_END + u64::from(index) * RING_SPACE;
    VringAddress {
        index,
        flags: 0,
        descriptors: at,
        used: at + USED,
        available: at + AVAILABLE,
        log: 0,
    }
}

/// A payload that may well be right.
fn payload(shape: Shape, input: &mut Input<'_>) -> Vec<u8> {
    let index = match input.u8() {
        index @ 0..0xf0 => u32::from(index % 2),
        index => u32::from(index % 4) << 7,
    };
    let payload = match shape {
        Shape::U64 => Payload::U64(match input.below(8) {
            0 => OFFER.features.0,
            1 => OFFER.features.0 | Features::PROTOCOL_FEATURES.0,
            2 => OFFER.features.0 & input.u64(),
            3 => Offer::PROTOCOL.0 & u64::from(input.u32()),
            4 => Offer::PROTOCOL.0,
            5..=6 => input.u16().into(),
            _ => input.u64(),
        }),
        Shape::VringState => {
            let num = match input.below(8) {
                0..=1 => input.below(2) as u32,
                // Places in a packed ring, the first one among them.
                2 => packed::FIRST_POSITION ^ u32::from(input.u8()),
                3..=4 => 1 << (input.u8() % 17),
                5 => RING_SIZE.into(),
                6 => input.u16().into(),
                _ => input.u32(),
            };
            Payload::VringState(VringState { index, num })
        }
        Shape::VringAddress => {
            let mut address = address(index);
            for field in [&mut address.descriptors, &mut address.available, &mut address.used] {
                *field = match input.u8() {
                    0..0xd0 => *field,
                    0xd0..0xf0 => FRONT_END + u64::from(input.u16()),
                    _ => input.u64(),
                };
            }
            Payload::VringAddress(address)
        }
        Shape::RingDescriptor => {
            let attached = input.u8() < 0xe0;
            Payload::RingDescriptor(RingDescriptor { ring: index as u8, attached })
        }
        Shape::MemoryTable => {
            let count = match input.u8() {
                0..0xa0 => 1,
                count => usize::from(count % 9),
            };
            let region = |number| region(number, input);
            Payload::MemoryTable((0..count as u64).map(region).collect())
        }
        Shape::SingleRegion => Payload::SingleRegion(region(input.u8() as u64 % 3, input)),
        shape => return vec![0; shape.sizes().0],
    };
    payload.encode()
}

fn region(number: u64, input: &mut Input<'_>) -> MemoryRegion {
    let offset = number * SIZE;
    let mut region = MemoryRegion {
        guest_address: GUEST + offset,
        size: SIZE,
        user_address: FRONT_END + offset,
        mmap_offset: 0,
    };
    if input.u8() < 0xa0 {
        return region;
    }
    let field = match input.below(4) {
        0 => &mut region.guest_address,
        1 => &mut region.size,
        2 => &mut region.user_address,
        _ => &mut region.mmap_offset,
    };
    *field = match input.below(4) {
        0 => field.wrapping_add(input.u16().into()),
        1 => field.wrapping_sub(input.u16().into()),
        2 => input.u16().into(),
        _ => input.u64(),
    };
    region
}
