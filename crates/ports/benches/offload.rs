//! What offloads cost in software, next to a mere copy of the same bytes.
//!
//! `cargo bench -p ringway-ports --bench offload` measures; under `cargo test` all of it runs once,
//! so that it cannot rot. Times are the best of many rounds: others use this machine too.

use std::hint::black_box;
use std::os::fd::AsFd;
use std::time::Instant;

use engine::{Frame, HEAD};
use memory::{
    FrontEndAddress, GuestAddress, GuestMemory, ReadCursor, ReadSlice, RegionRequest, SharedMemory,
    WriteCursor, WriteSlice,
};
use ringway_ports::offload::Delivery;
use wire::checksum::Sum;
use wire::virtio::{Features, Offload, PartialChecksum, Segmentation, SegmentationKind};

/// TCP over IPv4 with timestamps, at an MTU of 1500.
const HEADERS: usize = 14 + 20 + 32;
const SEGMENT: usize = 1448;
/// Segments that fit into 64 KiB of IP.
const SEGMENTS: usize = (65535 - HEADERS) / SEGMENT;
const FRAME: usize = HEADERS + SEGMENTS * SEGMENT;
/// Frames that are under way: more than the first cache holds, less than the second.
const FRAMES: usize = 8;
/// Bytes of a receive buffer, and from one to the next.
const BUFFER: u32 = 1536;
const STRIDE: u64 = 2048;
/// Bytes that lie together in the sender.
const PAGE: u32 = 4096;
/// Where the receive buffers are: behind all frames.
const FIRST_TARGET: u64 = 1 << 20;

fn main() {
    let asked_for = |flag: &str| std::env::args().any(|argument| argument == flag);
    // What a test runner asks of a program without a harness.
    if asked_for("--list") {
        if !asked_for("--ignored") {
            println!("offload: test");
        }
        return;
    }
    // What cargo says when it measures.
    let measures = std::env::args().any(|argument| argument == "--bench");
    let rounds = if measures { 2000 } else { 1 };
    let cycles = Cycles::calibrate(rounds);
    println!("processor: about {:.2} cycles a nanosecond", cycles.per_nanosecond);

    let memory = guest_memory();
    let mut buffers = Buffers::new(&memory);
    let bytes = (FRAMES * SEGMENTS * (HEADERS + SEGMENT)) as f64;
    let (mut copied, mut segmented) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..rounds {
        copied = copied.min(nanoseconds(|| buffers.copy()));
        segmented = segmented.min(nanoseconds(|| buffers.segment()));
    }
    println!("copy as {}-byte frames:  {:6.2} GB/s", HEADERS + SEGMENT, bytes / copied);
    println!("segmentation, checksums:  {:6.2} GB/s", bytes / segmented);
    println!("segmentation : copy = {:.2} (at least 0.6)", copied / segmented);
    buffers.segment();
    println!("checksums: {} of {} are right", buffers.right(&memory), FRAMES * SEGMENTS);

    for len in [SEGMENT, FRAME] {
        let private = vec![0x5a; len];
        let source = buffers.sources[0].clone();
        let target = buffers.whole;
        let (mut sum, mut copy, mut both) = (f64::INFINITY, f64::INFINITY, f64::INFINITY);
        for _ in 0..rounds {
            sum = sum.min(repeated(rounds, || {
                let mut sum = Sum::new();
                sum.add(black_box(&private));
                black_box(sum.finish());
            }));
            let pieces =
                || source.iter().take(len.div_ceil(PAGE as usize)).map(|slice| slice.take(len));
            copy = copy.min(repeated(rounds, || {
                let mut cursor = WriteCursor::new(std::slice::from_ref(&target));
                pieces().for_each(|piece| _ = cursor.write(piece));
            }));
            both = both.min(repeated(rounds, || {
                let mut cursor = WriteCursor::new(std::slice::from_ref(&target));
                let mut sum = Sum::new();
                pieces().for_each(|piece| _ = cursor.write_summed(piece, &mut sum));
                black_box(sum.finish());
            }));
        }
        let rate = |time: f64| len as f64 / time / cycles.per_nanosecond;
        println!(
            "{len:5} bytes: checksum {:.1} bytes/cycle (at least 8), copy {:.1}, both in one {:.1}",
            rate(sum),
            rate(copy),
            rate(both)
        );
    }
}

fn nanoseconds(mut work: impl FnMut()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_nanos().max(1) as f64
}

/// The time of one of several runs.
fn repeated(rounds: usize, mut work: impl FnMut()) -> f64 {
    let runs = rounds.min(16);
    nanoseconds(|| (0..runs).for_each(|_| work())) / runs as f64
}

struct Cycles {
    per_nanosecond: f64,
}

impl Cycles {
    /// Each step waits for the one before: a multiplication of three cycles and an exclusive or of
    /// one, on every processor of the last ten years.
    fn calibrate(rounds: usize) -> Self {
        const STEPS: u64 = 10_000;
        const CYCLES_A_STEP: f64 = 4.0;
        let mut best = f64::INFINITY;
        for _ in 0..rounds {
            best = best.min(nanoseconds(|| {
                let mut number: u64 = black_box(1);
                for step in 0..STEPS {
                    number = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ step;
                }
                black_box(number);
            }));
        }
        Self { per_nanosecond: STEPS as f64 * CYCLES_A_STEP / best }
    }
}

fn guest_memory() -> GuestMemory {
    let size = 4 << 20;
    let file = SharedMemory::create("bench", size).expect("memory");
    let file = file.as_fd().try_clone_to_owned().expect("a descriptor");
    let request = RegionRequest {
        guest: GuestAddress(0),
        size,
        front_end: FrontEndAddress(0),
        offset: 0,
        file,
    };
    GuestMemory::map([request]).expect("a region")
}

struct Buffers<'m> {
    head: [u8; HEAD],
    /// The frames' bytes, behind their heads.
    sources: Vec<Vec<ReadSlice<'m>>>,
    /// Receive buffers, for all segments of all frames.
    targets: Vec<WriteSlice<'m>>,
    /// Room for a frame in one piece.
    whole: WriteSlice<'m>,
}

impl<'m> Buffers<'m> {
    fn new(memory: &'m GuestMemory) -> Self {
        let mut translator = memory.translator();
        let mut at = 0;
        let mut noise = 1u32;
        let noise: Vec<u8> = (0..1 << 20)
            .map(|_| {
                noise = noise.wrapping_mul(0x915F_77F5).wrapping_add(1);
                (noise >> 24) as u8
            })
            .collect();
        let mut all = Vec::new();
        translator.write(GuestAddress(0), 1 << 20, &mut all).expect("inside");
        WriteCursor::new(&all).write(noise[..].into());
        let mut sources = Vec::new();
        for _ in 0..FRAMES {
            let mut slices = Vec::new();
            let mut left = (FRAME - HEAD) as u32;
            while left > 0 {
                let len = left.min(PAGE);
                translator.read(GuestAddress(at), len, &mut slices).expect("inside");
                at += u64::from(PAGE);
                left -= len;
            }
            sources.push(slices);
        }
        assert!(at <= FIRST_TARGET);
        at = FIRST_TARGET;
        let mut targets = Vec::new();
        for _ in 0..FRAMES * SEGMENTS {
            translator.write(GuestAddress(at), BUFFER, &mut targets).expect("inside");
            at += STRIDE;
        }
        let mut whole = Vec::new();
        translator.write(GuestAddress(at), 1 << 17, &mut whole).expect("inside");
        Self { head: head(), sources, targets, whole: whole[0] }
    }

    /// Writes the bytes of all frames as frames of one segment each, and nothing else.
    fn copy(&mut self) {
        let mut targets = self.targets.iter();
        for body in &self.sources {
            let mut source = ReadCursor::new(self.head[..].into(), body);
            source.skip(HEADERS);
            for _ in 0..SEGMENTS {
                let target = targets.next().expect("as many as segments");
                let mut cursor = WriteCursor::new(std::slice::from_ref(target));
                cursor.write(self.head[..HEADERS].into());
                let mut left = SEGMENT;
                while left > 0 {
                    let piece = source.take(left);
                    left -= piece.len();
                    cursor.write(piece);
                }
            }
        }
    }

    /// Has all frames segmented.
    fn segment(&mut self) {
        let mut targets = self.targets.iter();
        for body in &self.sources {
            let frame = Frame { head: &self.head, body, len: FRAME, offload: OFFLOAD };
            let mut delivery = Delivery::new(frame, Features::NONE).expect("a good frame");
            while let Some(outgoing) = delivery.next() {
                let target = targets.next().expect("as many as segments");
                outgoing.write(WriteCursor::new(std::slice::from_ref(target)));
            }
        }
        assert!(targets.next().is_none());
    }

    /// Counts the segments whose checksum is right.
    fn right(&self, memory: &GuestMemory) -> usize {
        let mut translator = memory.translator();
        let is_right = |number: &usize| {
            let address = GuestAddress(FIRST_TARGET + *number as u64 * STRIDE);
            let mut segment = [0; HEADERS + SEGMENT];
            translator.copy_to(address, &mut segment).expect("inside");
            // Addresses, protocol and length, and then all of TCP.
            let mut sum = Sum::new();
            sum.add(&segment[26..34]);
            sum.add_number(6);
            sum.add_number((segment.len() - 34) as u16);
            sum.add(&segment[34..]);
            sum.finish() == 0
        };
        (0..FRAMES * SEGMENTS).filter(is_right).count()
    }
}

const OFFLOAD: Offload = Offload {
    checksum: Some(PartialChecksum { start: 34, offset: 16 }),
    segmentation: Some(Segmentation {
        kind: SegmentationKind::Tcp4,
        ecn: false,
        size: SEGMENT as u16,
        header_hint: HEADERS as u16,
    }),
};

/// The headers, and the first bytes behind them.
fn head() -> [u8; HEAD] {
    let mut head = [0x5a; HEAD];
    head[12..14].copy_from_slice(&[8, 0]);
    head[14..34]
        .copy_from_slice(&[69, 0, 0, 0, 0, 1, 64, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    head[16..18].copy_from_slice(&((FRAME - 14) as u16).to_be_bytes());
    head[34..66].fill(0);
    head[46] = 8 << 4;
    head[47] = 0x10;
    // The pseudo header: addresses, protocol, length.
    let mut pseudo = Sum::new();
    pseudo.add(&head[26..34]);
    pseudo.add_number(6);
    pseudo.add_number((FRAME - 34) as u16);
    head[50..52].copy_from_slice(&(!pseudo.finish()).to_be_bytes());
    head
}
