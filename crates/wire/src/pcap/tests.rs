//! The writer against pcap-parser as an independent reader, and the reader against files put together by
//! hand in every form, cut off anywhere, and made of anything.

use pcap_parser::pcapng::PcapNGOption;
use pcap_parser::traits::PcapNGPacketBlock;
use pcap_parser::{Block, PcapError, PcapNGReader, traits::PcapReaderIterator};
use proptest::prelude::*;

use super::reader::Described;
use super::writer::blocks;
use super::*;

/// What became of a file: its frames as time, bytes and original length, and its fault.
type Read = (Vec<(Option<i64>, Vec<u8>, u32)>, Option<Fault>);

/// Reads a file through windows that have no more than what was asked for and `slack` bytes.
fn read(file: &[u8], slack: usize) -> Read {
    let mut reader = Reader::new();
    let (mut frames, mut at, mut needed) = (Vec::new(), 0, 0);
    loop {
        let rest = &file[at..];
        let window = &rest[..rest.len().min(needed + slack)];
        match reader.step(window) {
            Ok(Step::More(more)) if window.len() == rest.len() => {
                assert!(more > window.len(), "{more} bytes are there");
                return (frames, reader.end(window, more).err());
            }
            Ok(Step::More(more)) => {
                assert!(more > window.len(), "{more} bytes are there");
                needed = more;
            }
            Ok(Step::Skip(bytes)) => {
                assert!(bytes as usize <= window.len(), "{bytes} bytes are not there");
                (at, needed) = (at + bytes as usize, 0);
            }
            Ok(Step::Frame(bytes, frame)) => {
                frames.push((frame.time, frame.bytes.to_vec(), frame.original));
                (at, needed) = (at + bytes as usize, 0);
                assert_eq!(reader.frames(), frames.len() as u64);
            }
            Err(fault) => return (frames, Some(fault)),
        }
    }
}

/// The same, whatever the windows.
#[track_caller]
fn read_whole(file: &[u8]) -> Read {
    let whole = read(file, file.len());
    for slack in [0, 1, 13] {
        assert_eq!(read(file, slack), whole, "through small windows");
    }
    whole
}

#[track_caller]
fn assert_fault(file: &[u8], frames: usize, expected: &str) {
    let (read, fault) = read_whole(file);
    let text = fault.expect("something is wrong with the file").to_string();
    assert_eq!((read.len(), text.as_str()), (frames, expected));
}

/// Numbers in one byte order.
#[derive(Clone, Copy, Debug)]
struct Order {
    is_big_endian: bool,
}

const ORDERS: [Order; 2] = [Order { is_big_endian: false }, Order { is_big_endian: true }];

impl Order {
    fn u16(self, number: u16) -> [u8; 2] {
        if self.is_big_endian { number.to_be_bytes() } else { number.to_le_bytes() }
    }

    fn u32(self, number: u32) -> [u8; 4] {
        if self.is_big_endian { number.to_be_bytes() } else { number.to_le_bytes() }
    }

    fn u64(self, number: u64) -> [u8; 8] {
        if self.is_big_endian { number.to_be_bytes() } else { number.to_le_bytes() }
    }

    fn words(self, words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| self.u32(*word)).collect()
    }

    fn pcap(self, magic: u32, link_type: u32) -> Vec<u8> {
        let mut file = self.u32(magic).to_vec();
        file.extend([self.u16(2), self.u16(4)].concat());
        file.extend(self.words(&[0, 0, 65535, link_type]));
        file
    }

    fn record(self, seconds: u32, fraction: u32, original: u32, bytes: &[u8]) -> Vec<u8> {
        let mut record = self.words(&[seconds, fraction, bytes.len() as u32, original]);
        record.extend(bytes);
        record
    }

    fn block(self, kind: u32, body: &[u8]) -> Vec<u8> {
        let length = (body.len().next_multiple_of(4) + 12) as u32;
        let mut block = self.words(&[kind, length]);
        block.extend(body);
        block.resize(length as usize - 4, 0);
        block.extend(self.u32(length));
        block
    }

    fn section(self) -> Vec<u8> {
        let mut body = self.u32(BYTE_ORDER).to_vec();
        body.extend([self.u16(1), self.u16(0)].concat());
        body.extend([0xFF; 8]);
        self.block(SECTION_HEADER, &body)
    }

    fn option(self, code: u16, value: &[u8]) -> Vec<u8> {
        let mut option = [self.u16(code), self.u16(value.len() as u16)].concat();
        option.extend(value);
        option.resize(option.len().next_multiple_of(4), 0);
        option
    }

    fn interface(self, link_type: u16, snaplen: u32, options: &[u8]) -> Vec<u8> {
        let mut body = [self.u16(link_type), [0; 2]].concat();
        body.extend(self.u32(snaplen));
        body.extend(options);
        self.block(INTERFACE_DESCRIPTION, &body)
    }

    fn packet(self, interface: u32, time: u64, original: u32, bytes: &[u8]) -> Vec<u8> {
        self.packet_with(interface, time, original, bytes, &[])
    }

    fn packet_with(
        self,
        interface: u32,
        time: u64,
        original: u32,
        bytes: &[u8],
        options: &[u8],
    ) -> Vec<u8> {
        let mut body = self.words(&[interface, (time >> 32) as u32, time as u32]);
        body.extend(self.words(&[bytes.len() as u32, original]));
        body.extend(bytes);
        body.resize(body.len().next_multiple_of(4), 0);
        body.extend(options);
        self.block(ENHANCED_PACKET, &body)
    }
}

const FRAME: &[u8] = b"\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\x01\x88\xb5seventeen bytes!!";
const LEN: u32 = FRAME.len() as u32;
const LITTLE: Order = ORDERS[0];

#[test]
fn pcap_in_both_orders_and_both_units() {
    for order in ORDERS {
        for (magic, nanoseconds) in [(0xA1B2_C3D4, 123_456_000), (0xA1B2_3C4D, 123_456)] {
            let mut file = order.pcap(magic, 1);
            file.extend(order.record(1_700_000_000, 123_456, LEN, FRAME));
            file.extend(order.record(u32::MAX, 123_456, 9000, &FRAME[..14]));
            let (frames, fault) = read_whole(&file);
            assert_eq!(fault, None);
            let time = |seconds: i64| Some(seconds * 1_000_000_000 + nanoseconds);
            let expected = [
                (time(1_700_000_000), FRAME.to_vec(), LEN),
                (time(u32::MAX.into()), FRAME[..14].to_vec(), 9000),
            ];
            assert_eq!(frames, expected);
        }
    }
}

#[test]
fn pcapng_in_all_its_blocks() {
    let mut file = Vec::new();
    let mut expected = Vec::new();
    // Each section in its own order, and with interfaces of its own.
    for order in ORDERS {
        file.extend(order.section());
        // Names of addresses, and something that nobody knows, of which only the length counts.
        file.extend(order.block(4, b"\0\0\0\0"));
        let offset = order.option(IF_TSOFFSET, &order.u64(-5i64 as u64));
        let nanoseconds = order.option(IF_TSRESOL, &[9]);
        let name = order.option(IF_NAME, b"eth0");
        file.extend(order.interface(ETHERNET, 20, &[name, nanoseconds, offset].concat()));
        file.extend(order.block(0x0BAD, &[7; 99]));
        file.extend(order.interface(ETHERNET, 0, &[]));
        file.extend(order.packet(0, 9_000_000_001, LEN, FRAME));
        expected.push((Some(4_000_000_001), FRAME.to_vec(), LEN));
        // Microseconds, if nobody says otherwise.
        file.extend(order.packet(1, u64::from(u32::MAX) + 1, 70, FRAME));
        expected.push((Some(4_294_967_296_000), FRAME.to_vec(), 70));
        // A simple packet is of the first interface, and as long as that one captures.
        let simple = [&order.u32(LEN)[..], &FRAME[..20]].concat();
        file.extend(order.block(SIMPLE_PACKET, &simple));
        expected.push((None, FRAME[..20].to_vec(), LEN));
        let mut obsolete = [order.u16(1), order.u16(u16::MAX)].concat();
        obsolete.extend(order.words(&[0, 2, LEN, LEN]));
        obsolete.extend(FRAME);
        file.extend(order.block(OBSOLETE_PACKET, &obsolete));
        expected.push((Some(2_000), FRAME.to_vec(), LEN));
        file.extend(order.block(INTERFACE_STATISTICS, &[0; 12]));
    }
    assert_eq!(read_whole(&file), (expected, None));
}

#[test]
fn times_in_every_resolution() {
    let time = |resolution, offset, units| Described { snaplen: 0, resolution, offset }.time(units);
    assert_eq!(time(0, 0, 3), 3_000_000_000);
    assert_eq!(time(6, 0, 3), 3_000);
    assert_eq!(time(9, 0, 3), 3);
    assert_eq!(time(12, 0, 3_999), 3);
    assert_eq!(time(127, 0, u64::MAX), 0);
    assert_eq!(time(0x80, 0, 3), 3_000_000_000);
    assert_eq!(time(0x80 | 1, 0, 3), 1_500_000_000);
    assert_eq!(time(0xFF, 0, u64::MAX), 0);
    assert_eq!(time(0, 0, u64::MAX), i64::MAX);
    assert_eq!(time(9, -1, 0), -1_000_000_000);
    assert_eq!(time(9, i64::MIN, u64::MAX), i64::MIN);
    assert_eq!(time(9, i64::MAX, u64::MAX), i64::MAX);
}

#[test]
fn faults_say_where_and_what() {
    let order = LITTLE;
    let pcap = |records: &[Vec<u8>]| [order.pcap(0xA1B2_C3D4, 1), records.concat()].concat();
    let pcapng = |blocks: &[Vec<u8>]| {
        [order.section(), order.interface(ETHERNET, 0, &[]), blocks.concat()].concat()
    };
    let good = order.record(1, 2, LEN, FRAME);
    let packet = order.packet(0, 1, LEN, FRAME);

    assert_fault(b"", 0, "byte 0, before frame 1: the file is empty");
    assert_fault(b"\xa1\xb2", 0, "byte 0, before frame 1: the file ends after 2 of its 4 bytes");
    let text = "byte 0, before frame 1: this is no capture file: it begins with [23, 21, 2f, 62]";
    assert_fault(b"#!/bin/sh", 0, text);
    let text = "byte 0, before frame 1: this is no capture file: it begins with [1f, 8b, 08, 00] \
                (compressed: gunzip it first)";
    assert_fault(b"\x1f\x8b\x08\x00", 0, text);
    let text = "byte 0, before frame 1: its link type is LINUX_SLL2 (of Linux's interface `any`), \
                not Ethernet";
    assert_fault(&order.pcap(0xA1B2_C3D4, 276), 0, text);
    let text = "byte 0, before frame 1: its frames end with Ethernet's checksum (FCS): capture \
                without it, or cut it off with editcap -C -4 -L";
    assert_fault(&order.pcap(0xA1B2_C3D4, 0x2400_0001), 0, text);
    let mut version = order.pcap(0xA1B2_C3D4, 1);
    version[6] = 9;
    let text = "byte 0, before frame 1: version 2.9 of pcap is not known, only 2.4 is";
    assert_fault(&version, 0, text);

    let mut long = order.record(1, 2, 300_000, FRAME);
    long[8..12].copy_from_slice(&order.u32(300_000));
    let text = "frame 2 at byte 71: its captured length 300000 is larger than 262144, the most that there \
                can be";
    assert_fault(&pcap(&[good.clone(), long]), 1, text);
    let text = "frame 2 at byte 71: its captured length 31 is larger than its original length 30";
    assert_fault(&pcap(&[good.clone(), order.record(1, 2, 30, FRAME)]), 1, text);
    let mut cut = pcap(&[good.clone(), good.clone()]);
    cut.truncate(cut.len() - 3);
    assert_fault(&cut, 1, "frame 2 at byte 71: the file ends after 44 of its 47 bytes");
    cut.truncate(73);
    assert_fault(&cut, 1, "frame 2 at byte 71: the file ends after 2 of its 16 bytes");

    let other = order.interface(127, 0, &[]);
    let text = "byte 112, before frame 2: its link type is IEEE802_11_RADIOTAP (wireless LAN), \
                not Ethernet";
    assert_fault(&pcapng(&[packet.clone(), other]), 1, text);
    let text = "frame 2 at byte 112: it is of interface 3, and 1 are described before it";
    assert_fault(&pcapng(&[packet.clone(), order.packet(3, 1, LEN, FRAME)]), 1, text);
    let mut beyond = order.packet(0, 1, 90, FRAME);
    beyond[20..24].copy_from_slice(&order.u32(90));
    let text =
        "frame 1 at byte 48: its captured length 90 is larger than its block has room for, 32";
    assert_fault(&pcapng(&[beyond]), 0, text);
    let mut lengths = packet.clone();
    lengths[60..].copy_from_slice(&order.u32(65));
    let text = "frame 1 at byte 48: the block's length is 64 before it and 65 behind it";
    assert_fault(&pcapng(std::slice::from_ref(&lengths)), 0, text);
    let mut unknown = order.block(0x0BAD, &[0; 8]);
    unknown[16..].copy_from_slice(&order.u32(8));
    let text = "byte 48, before frame 1: the block's length is 20 before it and 8 behind it";
    assert_fault(&pcapng(std::slice::from_ref(&unknown)), 0, text);
    let text = "byte 48, before frame 1: the file ends after 10 of its 20 bytes";
    assert_fault(
        &pcapng(&[unknown[..10].to_vec()]),
        0,
        "byte 48, before frame 1: the file ends after 10 of its 12 bytes",
    );
    assert_fault(&pcapng(&[unknown[..18].to_vec()]), 0, &text.replace("10 of", "18 of"));
    for length in [0, 8, 66, MAX_BLOCK + 4] {
        let mut block = packet.clone();
        block[4..8].copy_from_slice(&order.u32(length));
        let text = format!("frame 1 at byte 48: a block of type 0x6 cannot be {length} bytes long");
        assert_fault(&pcapng(&[block]), 0, &text);
    }
    let text = "frame 1 at byte 48: a block of type 0x6 cannot be 24 bytes long";
    assert_fault(&pcapng(&[order.block(ENHANCED_PACKET, &[0; 12])]), 0, text);
    let text = "byte 48, before frame 1: option 9 cannot be 400 bytes long";
    let option = [order.u16(IF_TSRESOL), order.u16(400)].concat();
    assert_fault(&pcapng(&[order.interface(ETHERNET, 0, &option)]), 0, text);
    let text = "byte 48, before frame 1: option 14 cannot be 4 bytes long";
    let option = order.option(IF_TSOFFSET, &[0; 4]);
    assert_fault(&pcapng(&[order.interface(ETHERNET, 0, &option)]), 0, text);
    let fcs = order.option(IF_FCSLEN, &[4]);
    let text = "byte 48, before frame 1: its frames end with Ethernet's checksum (FCS): capture \
                without it, or cut it off with editcap -C -4 -L";
    assert_fault(&pcapng(&[order.interface(ETHERNET, 0, &fcs)]), 0, text);
    let mut section = order.section();
    section[8] = 0;
    let text =
        "byte 0, before frame 1: the section's byte order is [00, 3c, 2b, 1a], which is none";
    assert_fault(&section, 0, text);
    let mut section = order.section();
    section[12] = 2;
    let text = "byte 0, before frame 1: version 2.0 of pcapng is not known, only 1.0 is";
    assert_fault(&section, 0, text);
}

/// The start of a pcapng file, whose frames have nanoseconds, and these blocks.
fn pcapng(order: Order, blocks: &[Vec<u8>]) -> Vec<u8> {
    let nanoseconds = order.option(IF_TSRESOL, &[9]);
    [order.section(), order.interface(ETHERNET, 0, &nanoseconds), blocks.concat()].concat()
}

/// What is behind blocks that nobody reads is where it is, and so are they when the file ends in one.
#[test]
fn blocks_that_are_passed_over_are_counted_to_the_byte() {
    for order in ORDERS {
        let packet = order.packet(0, 1, LEN, FRAME);
        let unknown = order.block(0x0BAD, &[7; 400]);
        let empty = order.block(0x8000_0001, &[]);
        let statistics = order.block(INTERFACE_STATISTICS, &[0; 12]);
        let mut blocks = vec![unknown.clone(), packet.clone(), empty, statistics, packet.clone()];
        let start = pcapng(order, &blocks).len();
        blocks.push(order.packet(3, 1, LEN, FRAME));
        let text =
            format!("frame 3 at byte {start}: it is of interface 3, and 1 are described before it");
        assert_fault(&pcapng(order, &blocks), 2, &text);
        blocks.pop();
        // Cut off anywhere in it, whatever the windows.
        for found in [12, 13, 14, 100, 407, 408, 409, 411] {
            let mut file = pcapng(order, &blocks);
            file.extend(&unknown[..found]);
            let text = format!(
                "byte {start}, before frame 3: the file ends after {found} of its 412 bytes"
            );
            assert_fault(&file, 2, &text);
        }
        // As long as a block can say that it is.
        let mut file = pcapng(order, &blocks);
        file.extend(order.words(&[0x0BAD, 0xFFFF_FFFC, 7, 7, 7]));
        let text =
            format!("byte {start}, before frame 3: the file ends after 20 of its 4294967292 bytes");
        assert_fault(&file, 2, &text);
        let mut file = pcapng(order, &blocks);
        file.extend(order.words(&[0x0BAD, 0xFFFF_FFFF, 7, 7, 7]));
        let text = format!(
            "byte {start}, before frame 3: a block of type 0xbad cannot be 4294967295 bytes long"
        );
        assert_fault(&file, 2, &text);
    }
}

/// A block of 4 GiB that is there, too: the bytes are only counted.
#[test]
fn the_longest_block_is_passed_over() {
    let order = LITTLE;
    let mut reader = Reader::new();
    let start = pcapng(order, &[]);
    let mut rest = &start[..];
    while let Step::Skip(bytes) = reader.step(rest).unwrap() {
        rest = &rest[bytes as usize..];
    }
    let length = 0xFFFF_FFFCu32;
    let mut window = order.words(&[0x0BAD, length]);
    window.resize(1 << 20, 7);
    let mut left = u64::from(length) - 4;
    while left > 0 {
        let Ok(Step::Skip(bytes)) = reader.step(&window) else { panic!("{left} bytes are left") };
        left -= bytes;
    }
    assert_eq!(reader.step(&order.u32(length)), Ok(Step::Skip(4)));
    let fault = reader.step(&order.words(&[ENHANCED_PACKET, 7, 0])).unwrap_err();
    assert_eq!(fault.place.offset, start.len() as u64 + u64::from(length));
}

/// Everything begins anew: order, interfaces, their times.
#[test]
fn a_section_in_the_middle_has_its_own_order_and_interfaces() {
    let [little, big] = ORDERS;
    let first = pcapng(little, &[little.packet(0, 7, LEN, FRAME)]);
    let seconds = big.option(IF_TSRESOL, &[0]);
    let second =
        [big.section(), big.interface(ETHERNET, 0, &seconds), big.packet(0, 7, LEN, FRAME)]
            .concat();
    let expected = [(Some(7), FRAME.to_vec(), LEN), (Some(7_000_000_000), FRAME.to_vec(), LEN)];
    let file = [first.clone(), second].concat();
    assert_eq!(read_whole(&file), (expected.to_vec(), None));
    // What the section before has described is nobody's here.
    let file = [first.clone(), big.section(), big.packet(0, 7, LEN, FRAME)].concat();
    let text = format!(
        "frame 2 at byte {}: it is of interface 0, and 0 are described before it",
        first.len() + 28
    );
    assert_fault(&file, 1, &text);
    // A section's own length, which may be unknown or wrong, is not what ends it.
    let mut file = pcapng(little, &[little.packet(0, 7, LEN, FRAME)]);
    file[16..24].copy_from_slice(&4u64.to_le_bytes());
    assert_eq!(read_whole(&file).0.len(), 1);
    // pcap has no sections.
    let file = [little.pcap(0xA1B2_C3D4, 1), little.section()].concat();
    assert!(read_whole(&file).1.is_some());
}

#[test]
fn lists_of_options_in_every_form() {
    for order in ORDERS {
        let one = |options: &[u8]| {
            let interface = order.interface(ETHERNET, 0, options);
            let file = [order.section(), interface, order.packet(0, 2, LEN, FRAME)].concat();
            let (frames, fault) = read_whole(&file);
            assert_eq!(fault, None);
            frames[0].0.unwrap()
        };
        let end = order.option(OPTION_END, &[]);
        let seconds = order.option(IF_TSRESOL, &[0]);
        let halves = order.option(IF_TSRESOL, &[0x81]);
        assert_eq!(one(&[]), 2_000);
        assert_eq!(one(&end), 2_000);
        // Without an end, and with something behind it.
        assert_eq!(one(&seconds), 2_000_000_000);
        assert_eq!(one(&[end.clone(), seconds.clone()].concat()), 2_000);
        assert_eq!(one(&[halves.clone(), end.clone()].concat()), 1_000_000_000);
        let before_1970 = order.option(IF_TSOFFSET, &order.u64(-3i64 as u64));
        assert_eq!(one(&[seconds.clone(), before_1970].concat()), -1_000_000_000);
        // Many that say nothing, and one that nobody knows.
        assert_eq!(
            one(&[order.option(1, &[]).repeat(5_000), seconds.clone()].concat()),
            2_000_000_000
        );
        assert_eq!(one(&[order.option(0x8BAD, &[1; 65535]), seconds].concat()), 2_000_000_000);
        // The longest that can be said, in a block that ends before.
        let option = [order.u16(1), order.u16(u16::MAX)].concat();
        let file = [order.section(), order.interface(ETHERNET, 0, &option)].concat();
        let text = "byte 28, before frame 1: option 1 cannot be 65535 bytes long";
        assert_fault(&file, 0, text);
    }
}

/// A packet may say of itself what is said of an interface.
#[test]
fn frames_with_a_checksum_at_their_end_are_found_by_their_flags() {
    for order in ORDERS {
        let packet = |options: &[u8]| order.packet_with(0, 1, LEN, FRAME, options);
        let flags = |flags: u32| order.option(EPB_FLAGS, &order.u32(flags));
        let comment = order.option(1, b"a comment");
        // Which way it went, how it was cast, and errors of its link.
        let plain = packet(&[comment.clone(), flags(0xFF00_001D)].concat());
        let frame = (Some(1), FRAME.to_vec(), LEN);
        assert_eq!(read_whole(&pcapng(order, std::slice::from_ref(&plain))), (vec![frame], None));
        let at = pcapng(order, std::slice::from_ref(&plain)).len();
        let fault = |options: &[u8], text: &str| {
            let file = pcapng(order, &[plain.clone(), packet(options)]);
            assert_fault(&file, 1, &format!("frame 2 at byte {at}: {text}"));
        };
        let text = "its frames end with Ethernet's checksum (FCS): capture without it, or cut it off \
                    with editcap -C -4 -L";
        fault(&[comment, flags(4 << 5)].concat(), text);
        fault(&order.option(EPB_FLAGS, &[0; 8]), "option 2 cannot be 8 bytes long");
        let beyond = [order.u16(1), order.u16(5)].concat();
        fault(&beyond, "option 1 cannot be 5 bytes long");
    }
}

/// The longest that a frame can be, in every kind of packet, and a byte more.
#[test]
fn lengths_at_their_limits() {
    for order in ORDERS {
        let long = vec![7; MAX_CAPTURED as usize];
        let frame = |time| (time, long.clone(), MAX_CAPTURED);
        let record = order.record(0, 1, MAX_CAPTURED, &long);
        let file = [order.pcap(0xA1B2_3C4D, 1), record].concat();
        assert_eq!(read_whole(&file), (vec![frame(Some(1))], None));
        let simple = [&order.u32(MAX_CAPTURED)[..], &long].concat();
        let blocks = [order.packet(0, 1, MAX_CAPTURED, &long), order.block(SIMPLE_PACKET, &simple)];
        let file = pcapng(order, &blocks);
        assert_eq!(read_whole(&file), (vec![frame(Some(1)), frame(None)], None));
        // An interface without a limit does not make a simple packet longer than its block, or than any.
        let file = pcapng(order, &[order.block(SIMPLE_PACKET, &order.words(&[90, 1, 2]))]);
        let text =
            "frame 1 at byte 56: its captured length 90 is larger than its block has room for, 8";
        assert_fault(&file, 0, text);
        let file = pcapng(order, &[order.block(SIMPLE_PACKET, &order.words(&[u32::MAX, 1, 2]))]);
        let text = "frame 1 at byte 56: its captured length 4294967295 is larger than 262144, the most \
                    that there can be";
        assert_fault(&file, 0, text);
        // In no window has there to be more than a block can have.
        let file = [order.pcap(0xA1B2_C3D4, 1), order.words(&[0, 0, u32::MAX, u32::MAX])].concat();
        assert_fault(&file, 0, &text.replace("56", "24"));
        let mut packet = order.packet(0, 1, LEN, FRAME);
        packet[4..8].copy_from_slice(&order.u32(0xFFFF_FFFC));
        let text = "frame 1 at byte 56: a block of type 0x6 cannot be 4294967292 bytes long";
        assert_fault(&pcapng(order, &[packet]), 0, text);
    }
}

/// The last frame, cut off anywhere, in every format: what is there of it, and where it begins.
#[test]
fn a_truncated_last_frame_is_named() {
    for order in ORDERS {
        let record = order.record(0, 1, LEN, FRAME);
        let packet = order.packet(0, 1, LEN, FRAME);
        let formats = [
            ([order.pcap(0xA1B2_C3D4, 1), record.clone()].concat(), record, 16),
            (pcapng(order, std::slice::from_ref(&packet)), packet, 12),
        ];
        for (start, last, header) in formats {
            for found in 1..last.len() {
                let file = [&start[..], &last[..found]].concat();
                let (frames, fault) = read_whole(&file);
                assert_eq!(frames.len(), 1);
                let needed = if found < header { header } else { last.len() } as u64;
                let problem = Problem::Truncated { needed, found: found as u64 };
                // Of a block of which not even the type is there, nobody knows what it is.
                let is_frame = header == 16 || found >= 4;
                let place = Place { offset: start.len() as u64, frame: 2, is_frame };
                assert_eq!(fault, Some(Fault { place, problem }));
            }
        }
    }
}

/// Frames as a capture port writes them.
fn written(frames: &[(u64, Vec<u8>, u32)]) -> Vec<u8> {
    let mut file = Vec::new();
    Section { hardware: "x86_64", os: "Linux", application: "ringway" }.write(&mut file);
    let description = "a port";
    Interface { name: "port-7", description, snaplen: MAX_CAPTURED }.write(&mut file);
    for (time, bytes, more) in frames {
        let mut room = vec![0xEE; packet_size(bytes.len())];
        let mut packet = Packet::new(&mut room);
        packet.bytes()[..bytes.len()].copy_from_slice(bytes);
        let captured = bytes.len() as u32;
        let original = captured + more;
        let header = PacketHeader { interface: 0, time: *time, captured, original };
        assert_eq!(packet.finish(header), Some(room.len()));
        file.extend(room);
    }
    let span = Span { start: 5, end: 1 << 40 };
    Statistics { interface: 0, span, received: 9, dropped: 3 }.write(&mut file);
    file
}

#[test]
fn a_packet_needs_its_room() {
    let header = PacketHeader { interface: 0, time: 0, captured: 5, original: 5 };
    let mut room = [0; packet_size(5)];
    assert_eq!(Packet::new(&mut room[..packet_size(5) - 1]).finish(header), None);
    assert_eq!(Packet::new(&mut room[..3]).bytes().len(), 0);
    assert_eq!(Packet::new(&mut room).finish(header), Some(packet_size(5)));
}

/// A time, bytes, and how many more there were.
fn frame() -> impl Strategy<Value = (u64, Vec<u8>, u32)> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..300);
    (0..i64::MAX as u64 / 2, bytes, 0..5u32)
}

proptest! {
    #[test]
    fn what_is_written_is_read(frames in proptest::collection::vec(frame(), 0..20), shift in 0..i64::MAX as u64 / 2) {
        let mut file = written(&frames);
        let expected = |shift| frames.iter().map(move |(time, bytes, more)| {
            (Some((time + shift) as i64), bytes.clone(), bytes.len() as u32 + more)
        });
        prop_assert_eq!(read(&file, 100), (expected(0).collect(), None));
        prop_assert_eq!(blocks(&file).map(<[u8]>::len).sum::<usize>(), file.len());
        // An independent reader sees the same, and what is behind the frames.
        let mut judge = PcapNGReader::new(65536, &file[..]).unwrap();
        let mut index = 0;
        loop {
            match judge.next() {
                Ok((length, pcap_parser::PcapBlockOwned::NG(block))) => {
                    match block {
                        Block::EnhancedPacket(packet) => {
                            let (time, bytes, more) = &frames[index];
                            let stamp = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                            prop_assert_eq!(stamp, *time);
                            prop_assert_eq!(packet.packet_data(), &bytes[..]);
                            prop_assert_eq!(packet.orig_len(), bytes.len() as u32 + more);
                            prop_assert!(packet.options.is_empty());
                            index += 1;
                        }
                        Block::InterfaceDescription(interface) => {
                            prop_assert_eq!(interface.if_tsresol, 9);
                            let name = option_of(&interface.options, IF_NAME);
                            prop_assert_eq!(name, Some(b"port-7".to_vec()));
                        }
                        Block::InterfaceStatistics(statistics) => {
                            prop_assert_eq!((statistics.ts_high, statistics.ts_low), (1 << 8, 0));
                            let count = |code| option_of(&statistics.options, code);
                            prop_assert_eq!(count(4), Some(9u64.to_le_bytes().to_vec()));
                            prop_assert_eq!(count(5), Some(3u64.to_le_bytes().to_vec()));
                        }
                        Block::SectionHeader(section) => {
                            let application = option_of(&section.options, 4);
                            prop_assert_eq!(application, Some(b"ringway".to_vec()));
                        }
                        other => prop_assert!(false, "{other:?}"),
                    }
                    judge.consume(length);
                }
                Err(PcapError::Eof) => break,
                Err(PcapError::Incomplete(_)) => judge.refill().unwrap(),
                Err(error) => prop_assert!(false, "{error:?}"),
                Ok(_) => prop_assert!(false, "this is no pcapng"),
            }
        }
        prop_assert_eq!(index, frames.len());
        retime(&mut file, shift);
        prop_assert_eq!(read(&file, 100), (expected(shift).collect(), None));
    }

    #[test]
    fn a_file_that_is_cut_off_is_read_up_to_there(
        frames in proptest::collection::vec(frame(), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let file = written(&frames);
        let (all, _) = read(&file, file.len());
        let cut = &file[..cut.index(file.len())];
        let (some, fault) = read(cut, cut.len());
        prop_assert_eq!(&all[..some.len()], &some[..]);
        let is_whole = !cut.is_empty() && blocks(cut).map(<[u8]>::len).sum::<usize>() == cut.len();
        prop_assert_eq!(fault.is_none(), is_whole);
        prop_assert_eq!(read(cut, 0), (some, fault));
    }

    #[test]
    fn whatever_is_read_windows_make_no_difference(
        order in prop::sample::select(&ORDERS[..]),
        is_pcap in any::<bool>(),
        noise in proptest::collection::vec(prop_oneof![Just(0u8), 0..32u8, any::<u8>()], 0..300),
    ) {
        let mut file = match is_pcap {
            true => order.pcap(0xA1B2_C3D4, 1),
            false => [order.section(), order.interface(ETHERNET, 0, &[])].concat(),
        };
        file.extend(noise);
        let whole = read(&file, file.len());
        prop_assert_eq!(read(&file, 0), whole.clone());
        prop_assert_eq!(read(&file, 7), whole);
    }
}

fn option_of(options: &[PcapNGOption<'_>], code: u16) -> Option<Vec<u8>> {
    let option = options.iter().find(|option| option.code.0 == code)?;
    Some(option.value[..usize::from(option.len)].to_vec())
}
