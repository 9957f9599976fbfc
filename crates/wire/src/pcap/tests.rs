//! The writer against pcap-parser as an independent reader, and the reader against files put together by
//! hand in every form, cut off anywhere, and made of anything.

use pcap_parser::pcapng::PcapNGOption;
use pcap_parser::traits::PcapNGPacketBlock;
use pcap_parser::{Block, PcapError, PcapNGReader, traits::PcapReaderIterator};
use proptest::prelude::*;

use super::reader::Described;
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
                (at, needed) = ((at + bytes as usize).min(file.len()), 0);
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
        let mut body = self.words(&[interface, (time >> 32) as u32, time as u32]);
        body.extend(self.words(&[bytes.len() as u32, original]));
        body.extend(bytes);
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
                without it, or cut it off with editcap -C";
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
    let text = "byte 48, before frame 1: option 9 of the interface cannot be 400 bytes long";
    let option = [order.u16(IF_TSRESOL), order.u16(400)].concat();
    assert_fault(&pcapng(&[order.interface(ETHERNET, 0, &option)]), 0, text);
    let text = "byte 48, before frame 1: option 14 of the interface cannot be 4 bytes long";
    let option = order.option(IF_TSOFFSET, &[0; 4]);
    assert_fault(&pcapng(&[order.interface(ETHERNET, 0, &option)]), 0, text);
    let fcs = order.option(IF_FCSLEN, &[4]);
    let text = "byte 48, before frame 1: its frames end with Ethernet's checksum (FCS): capture \
                without it, or cut it off with editcap -C";
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

/// Frames as a capture port writes them.
fn written(frames: &[(u64, Vec<u8>, u32, Direction)]) -> Vec<u8> {
    let mut file = Vec::new();
    Section { hardware: "x86_64", os: "Linux", application: "ringway" }.write(&mut file);
    let description = "a port";
    Interface { name: "port-7", description, snaplen: MAX_CAPTURED }.write(&mut file);
    for (time, bytes, more, direction) in frames {
        let mut room = vec![0xEE; packet_size(bytes.len())];
        let mut packet = Packet::new(&mut room);
        packet.bytes()[..bytes.len()].copy_from_slice(bytes);
        let captured = bytes.len() as u32;
        let (time, direction, original) = (*time, *direction, captured + more);
        let header = PacketHeader { interface: 0, time, captured, original, direction };
        assert_eq!(packet.finish(header), Some(room.len()));
        file.extend(room);
    }
    let times = Times { start: 5, end: 1 << 40 };
    Statistics { interface: 0, times, received: 9, dropped: 3 }.write(&mut file);
    file
}

#[test]
fn a_packet_needs_its_room() {
    let header = PacketHeader {
        interface: 0,
        time: 0,
        captured: 5,
        original: 5,
        direction: Direction::Inbound,
    };
    let mut room = [0; packet_size(5)];
    assert_eq!(Packet::new(&mut room[..packet_size(5) - 1]).finish(header), None);
    assert_eq!(Packet::new(&mut room[..3]).bytes().len(), 0);
    assert_eq!(Packet::new(&mut room).finish(header), Some(packet_size(5)));
}

/// A time, bytes, how many more there were, and which way they went.
fn frame() -> impl Strategy<Value = (u64, Vec<u8>, u32, Direction)> {
    let direction = prop_oneof![Just(Direction::Inbound), Just(Direction::Outbound)];
    let bytes = proptest::collection::vec(any::<u8>(), 0..300);
    (0..i64::MAX as u64 / 2, bytes, 0..5u32, direction)
}

proptest! {
    #[test]
    fn what_is_written_is_read(frames in proptest::collection::vec(frame(), 0..20), shift in 0..i64::MAX as u64 / 2) {
        let mut file = written(&frames);
        let expected = |shift| frames.iter().map(move |(time, bytes, more, _)| {
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
                            let (time, bytes, more, direction) = &frames[index];
                            let stamp = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                            prop_assert_eq!(stamp, *time);
                            prop_assert_eq!(packet.packet_data(), &bytes[..]);
                            prop_assert_eq!(packet.orig_len(), bytes.len() as u32 + more);
                            let flags = if *direction == Direction::Inbound { 1u8 } else { 2 };
                            let option = option_of(&packet.options, 2);
                            prop_assert_eq!(option, Some([flags, 0, 0, 0].to_vec()));
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
