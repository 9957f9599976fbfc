use std::os::fd::AsFd;

use proptest::prelude::*;
use wire::checksum::PartialChecksum;
use wire::ethernet::EtherType;
use wire::virtio::{Segmentation, SegmentationKind};

use super::*;

/// The bytes of a frame of this length, no two neighbours alike.
fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 256) as u8).collect()
}

/// Appends `pieces` to the burst and makes a frame of them, less `skip` bytes of header.
fn push<'b>(burst: &mut Burst<'b>, pieces: &[&'b [u8]], skip: usize) -> Option<usize> {
    let start = burst.segments().len();
    let segments = pieces.iter().map(|piece| ReadSlice::from(*piece));
    burst.segments().extend(segments);
    let end = burst.segments().len();
    burst.push::<()>(start..end, skip, |_, _| Ok(Offload::NONE)).unwrap()
}

fn body(frame: &Frame<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    for segment in frame.body {
        let mut piece = vec![0; segment.len()];
        assert_eq!(segment.copy_to(&mut piece), piece.len());
        body.extend(piece);
    }
    body
}

/// As [`push`], by the way for frames of one segment each.
fn push_single<'b>(burst: &mut Burst<'b>, piece: &'b [u8], skip: usize) -> Option<usize> {
    let mut index = None;
    burst.push_singles([((), piece.into())].into_iter(), skip, |(), arrival| {
        let (header, rest) = piece.split_at(skip.min(piece.len()));
        let head = &rest[..rest.len().min(HEAD)];
        assert_eq!((arrival.header, arrival.head, arrival.len), (header, head, rest.len()));
        index = Some(arrival.index);
        true
    });
    index
}

/// The frame made of `pieces` less `skip` bytes is what it has to be, by each way there is to make it.
#[track_caller]
fn check(pieces: &[&[u8]], skip: usize) {
    check_pushed(pieces, skip, false);
    if pieces.len() == 1 {
        check_pushed(pieces, skip, true);
    }
}

#[track_caller]
fn check_pushed(pieces: &[&[u8]], skip: usize, is_single: bool) {
    let whole: Vec<u8> = pieces.concat();
    let expected = &whole[skip.min(whole.len())..];
    let (head, rest) = expected.split_at(expected.len().min(HEAD));
    let mut storage = Storage::default();
    let mut burst = storage.begin(0, 0);
    // Others in front of it and behind it.
    push(&mut burst, &[&[1; 200], &[2; 3]], 0);
    let index = match pieces {
        [only] if is_single => push_single(&mut burst, only, skip),
        pieces => push(&mut burst, pieces, skip),
    };
    let index = index.unwrap();
    push(&mut burst, &[&[3; 300]], 12);
    let header = [0x77; HEADER_ROOM];
    for header_len in [0, 1, 10, 12, HEADER_ROOM] {
        let outline = burst.outline(index, header_len);
        assert_eq!((outline.len, outline.has_body), (expected.len(), !rest.is_empty()));
        outline.header.fill(0x77);
        let framed = burst.framed(index, header_len);
        assert_eq!(framed.front, [&header[..header_len], head].concat());
        assert_eq!(framed.len, expected.len());
    }
    let frame = burst.frame(index);
    assert_eq!(frame.head, head);
    assert_eq!(burst.head(index), head);
    assert_eq!(burst.head_and_len(index), (head, expected.len()));
    assert_eq!(body(&frame), rest);
    assert_eq!(frame.len, expected.len());
    let before = burst.frame(0);
    assert_eq!((before.head, before.len), (&[1; HEAD][..], 203));
    assert_eq!(body(&before), [&[1; 72][..], &[2; 3]].concat());
}

#[test]
fn a_frame_in_one_piece() {
    for len in [1, 11, 12, 13, 26, HEAD - 1, HEAD, HEAD + 1, HEAD + 12, 1514] {
        check(&[&bytes(len)], 0);
        check(&[&bytes(len)], 12);
    }
}

#[test]
fn a_frame_cut_into_single_bytes() {
    let whole = bytes(HEAD + 12 + 50);
    check(&whole.chunks(1).collect::<Vec<_>>(), 12);
}

#[test]
fn a_frame_cut_in_two_anywhere() {
    let whole = bytes(HEAD + 12 + 3);
    for at in 0..=whole.len() {
        let (first, second) = whole.split_at(at);
        check(&[first, second], 12);
    }
}

#[test]
fn an_empty_piece_anywhere() {
    let whole = bytes(HEAD + 12 + 100);
    let (first, rest) = whole.split_at(HEAD + 12);
    let (second, third) = rest.split_at(40);
    check(&[&[], first, second, third], 12);
    check(&[first, &[], second, third], 12);
    check(&[first, second, &[], third], 12);
    check(&[first, second, third, &[]], 12);
}

#[test]
fn a_frame_of_nothing() {
    check(&[], 0);
    check(&[&[]], 0);
    check(&[&[1, 2, 3]], 3);
    check(&[&[1, 2, 3]], 4);
}

proptest! {
    #[test]
    fn a_frame_cut_anyhow(
        len in 0usize..600,
        cuts in prop::collection::vec(0usize..600, 0..40),
        skip in 0..=HEADER_ROOM,
    ) {
        let whole = bytes(len);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(len)).collect();
        cuts.extend([0, len]);
        cuts.sort();
        // Cuts that are alike make empty pieces.
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|ends| &whole[ends[0]..ends[1]]).collect();
        check(&pieces, skip);
    }
}

fn guest() -> Arc<GuestMemory> {
    let memory = memory::SharedMemory::create("burst", 4096).unwrap();
    let request = memory::RegionRequest {
        guest: memory::GuestAddress(0),
        size: 4096,
        front_end: memory::FrontEndAddress(0),
        offset: 0,
        file: memory.as_fd().try_clone_to_owned().unwrap(),
    };
    Arc::new(GuestMemory::map([request]).unwrap())
}

#[test]
fn the_head_does_not_change_any_more() {
    let guest = guest();
    let write = |byte: u8| {
        let mut slices = Vec::new();
        let mut translator = guest.translator();
        translator.write(memory::GuestAddress(0), 200, &mut slices).unwrap();
        slices[0].copy_from((&[byte; 200][..]).into());
    };
    write(1);
    let mut lease = Lease::Empty;
    let mut storage = Storage::default();
    let mut burst = storage.begin(0, 0);
    let mut translator = lease.guest(guest.clone()).translator();
    let segments = burst.segments();
    translator.read(memory::GuestAddress(0), 200, segments).unwrap();
    burst.push::<()>(0..1, 0, |_, _| Ok(Offload::NONE)).unwrap();
    write(2);
    assert_eq!(burst.frame(0).head, [1; HEAD]);
    // The rest is the sender's to change.
    assert_eq!(body(&burst.frame(0)), [2; 200 - HEAD]);
}

/// The head of a frame and what was made private behind it; and what is left behind that.
fn make_private(burst: &mut Burst<'_>, index: usize) -> (Vec<u8>, Vec<u8>) {
    let before = [burst.head(index), &body(&burst.frame(index))].concat();
    let len = burst.frame(index).len;
    let more = burst.make_private(index).expect("there is room");
    let private = [burst.head(index), more].concat();
    let body = body(&burst.frame(index));
    assert_eq!([burst.head(index), &body].concat(), before);
    assert_eq!(burst.outline(index, 0).has_body, len > HEAD);
    assert_eq!(burst.frame(index).len, len);
    (private, body[more.len()..].to_vec())
}

#[test]
fn more_than_the_head_can_be_made_private() {
    for len in [0, 1, HEAD - 1, HEAD, HEAD + 1, 500, PRIVATE - 1, PRIVATE, PRIVATE + 1, 9000] {
        for cut in [1, 3, 127, 128, 129, 1000, 9000] {
            let whole = bytes(len);
            let mut storage = Storage::default();
            let mut burst = storage.begin(0, 0);
            push(&mut burst, &[&[1; 300]], 0);
            push(&mut burst, &whole.chunks(cut).collect::<Vec<_>>(), 0);
            push(&mut burst, &[&[2; 300]], 0);
            // Again, for another app.
            for _ in 0..2 {
                let (private, rest) = make_private(&mut burst, 1);
                assert_eq!(private, whole[..len.min(PRIVATE)], "{len} bytes by {cut}");
                assert_eq!(rest, whole[len.min(PRIVATE)..], "{len} bytes by {cut}");
            }
            assert_eq!(body(&burst.frame(0)), [1; 300 - HEAD]);
            assert_eq!(body(&burst.frame(2)), [2; 300 - HEAD]);
        }
    }
}

#[test]
fn what_was_made_private_does_not_change_under_us() {
    let guest = guest();
    let write = |byte: u8| {
        let mut slices = Vec::new();
        guest.translator().write(memory::GuestAddress(0), 2000, &mut slices).unwrap();
        slices[0].copy_from((&[byte; 2000][..]).into());
    };
    write(1);
    let mut lease = Lease::Empty;
    let mut storage = Storage::default();
    let mut burst = storage.begin(0, 0);
    let mut translator = lease.guest(guest.clone()).translator();
    translator.read(memory::GuestAddress(0), 2000, burst.segments()).unwrap();
    burst.push::<()>(0..1, 0, |_, _| Ok(Offload::NONE)).unwrap();
    assert_eq!(burst.make_private(0), Some(&[1; PRIVATE - HEAD][..]));
    write(2);
    let expected = [&[1; PRIVATE - HEAD][..], &[2; 2000 - PRIVATE]].concat();
    assert_eq!(body(&burst.frame(0)), expected);
    // It is from the copy that it is copied again.
    assert_eq!(burst.make_private(0), Some(&[1; PRIVATE - HEAD][..]));
    assert_eq!(body(&burst.frame(0)), expected);
}

#[test]
fn there_is_room_to_make_a_full_burst_private_twice() {
    let whole = bytes(1500);
    let mut storage = Storage::default();
    for _ in 0..2 {
        let mut burst = storage.begin(0, 0);
        for _ in 0..BURST {
            push(&mut burst, &[&whole], 0).unwrap();
        }
        for _ in 0..2 {
            (0..BURST).for_each(|index| assert!(burst.make_private(index).is_some()));
        }
        let before = body(&burst.frame(5));
        // Enough is enough.
        let more = (0..BURST).take_while(|_| burst.make_private(5).is_some()).count();
        assert!(more < BURST);
        assert_eq!(body(&burst.frame(5)), before);
        assert_eq!(burst.make_private(BURST), None, "no such frame");
        let finished = burst.finish();
        storage.outcomes(finished);
    }
}

#[test]
fn the_offload_is_worked_out_from_header_and_length() {
    let checksum = PartialChecksum { start: 34, offset: 16 };
    let offload = Offload { checksum: Some(checksum), ..Offload::NONE };
    let mut storage = Storage::default();
    let mut burst = storage.begin(0, 0);
    let whole = bytes(1526);
    burst.segments().push(whole[..].into());
    let pushed = burst.push::<()>(0..1, 12, |header, len| {
        assert_eq!((header, len), (&whole[..12], 1514));
        Ok(offload)
    });
    assert_eq!(pushed, Ok(Some(0)));
    assert_eq!(burst.frame(0).offload, offload);
}

#[test]
fn less_than_a_header_shows_nothing_of_an_earlier_one() {
    let mut storage = Storage::default();
    let mut burst = storage.begin(0, 0);
    push(&mut burst, &[&[0xaa; 100]], HEADER_ROOM);
    let finished = burst.finish();
    storage.outcomes(finished);
    let mut burst = storage.begin(0, 1);
    burst.segments().push((&[1, 2, 3][..]).into());
    let pushed = burst.push(0..1, HEADER_ROOM, |header, len| {
        assert_eq!((header, len), (&[1, 2, 3][..], 0));
        Err("no frame")
    });
    assert_eq!(pushed, Err("no frame"));
    let single = [((), ReadSlice::from(&[1, 2, 3][..]))].into_iter();
    burst.push_singles(single, HEADER_ROOM, |(), Arrival { header, head, len, .. }| {
        assert_eq!((header, head, len), (&[1, 2, 3][..], &[][..], 0));
        false
    });
    assert!(burst.is_empty());
}

#[test]
fn a_bad_offload_leaves_no_trace() {
    let (good, bad) = (bytes(300), [9; 400]);
    let mut storage = Storage::default();
    let mut burst = storage.begin(0, 0);
    push(&mut burst, &[&good], 0);
    let start = burst.segments().len();
    burst.segments().push(bad[..].into());
    burst.segments().push(bad[..].into());
    let refused = burst.push(start..start + 2, 12, |_, _| Err("no"));
    assert_eq!(refused, Err("no"));
    assert_eq!(burst.len(), 1);
    assert_eq!(push(&mut burst, &[&good], 0), Some(1));
    for frame in [burst.frame(0), burst.frame(1)] {
        assert_eq!([frame.head, &body(&frame)].concat(), good);
    }
}

#[test]
fn those_of_several_that_are_not_wanted_leave_no_trace() {
    let frames: Vec<Vec<u8>> = (0..6).map(|at| bytes(100 + 40 * at)).collect();
    let mut storage = Storage::default();
    // What was said of those that had the memory before is not said of these.
    let mut burst = storage.begin(0, 0);
    let segmentation = None;
    let left = Offload { checksum: Some(PartialChecksum { start: 34, offset: 16 }), segmentation };
    for index in 0..4 {
        let start = burst.segments().len();
        burst.segments().push((&[0xaa; 300][..]).into());
        let pushed = burst.push::<()>(start..start + 1, 0, |_, _| Ok(left));
        assert_eq!(pushed, Ok(Some(index)));
        assert!(burst.hold(index));
        burst.replicate(index);
    }
    let finished = burst.finish();
    storage.outcomes(finished);

    let mut burst = storage.begin(0, 1);
    push(&mut burst, &[&frames[0]], 0);
    let singles = frames[1..].iter().zip(1..).map(|(frame, number)| (number, (&frame[..]).into()));
    let (mut indices, mut numbers) = (Vec::new(), Vec::new());
    burst.push_singles(singles, 12, |number, arrival| {
        numbers.push(number);
        indices.push(arrival.index);
        assert_eq!(*arrival.offload, Offload::NONE);
        let is_wanted = arrival.len % 80 == 48;
        if !is_wanted {
            *arrival.offload = left;
        }
        is_wanted
    });
    // Of 128, 168, 208, 248 and 288 bytes, the first, third and fifth.
    assert_eq!(indices, [1, 2, 2, 3, 3]);
    assert_eq!(numbers, [1, 2, 3, 4, 5]);
    assert_eq!(burst.len(), 4);
    for (index, frame) in [(1, &frames[1]), (2, &frames[3]), (3, &frames[5])] {
        let found = burst.frame(index);
        assert_eq!([found.head, &body(&found)].concat(), frame[12..]);
        assert_eq!(found.offload, Offload::NONE);
        assert!(burst.hold(index), "it was held, or went to several");
    }
    let finished = burst.finish();
    assert_eq!(storage.outcomes(finished).get(0), Outcome::Done);
}

#[test]
fn a_full_burst_takes_no_more() {
    let frame = bytes(64);
    let mut storage = Storage::default();
    let mut burst = storage.begin(0, 0);
    for index in 0..BURST {
        assert_eq!(push(&mut burst, &[&frame], 0), Some(index));
    }
    assert_eq!(push(&mut burst, &[&frame], 0), None);
    assert_eq!(push_single(&mut burst, &frame, 0), None);
    assert_eq!(burst.len(), BURST);
    assert!(burst.all().iter().eq(0..BURST));
}

#[test]
fn a_frame_of_crumbs_is_all_there_behind_others() {
    let crumbs = bytes(1024);
    let pieces: Vec<&[u8]> = crumbs.chunks(1).collect();
    let mut storage = Storage::default();
    let mut burst = storage.begin(0, 0);
    for index in 0..4 {
        assert_eq!(push(&mut burst, &pieces, 0), Some(index));
    }
    assert_eq!(body(&burst.frame(3)), &crumbs[HEAD..]);
}

#[test]
fn what_is_held_is_told() {
    let frame = bytes(64);
    let mut storage = Storage::default();
    let mut burst = storage.begin(0, 0);
    for _ in 0..4 {
        push(&mut burst, &[&frame], 0);
    }
    assert!(burst.hold(1));
    burst.replicate(2);
    assert!(!burst.hold(2), "the others would get it twice");
    assert_eq!(burst.held(), 1);
    assert!((0..5).map(|index| burst.is_held(index)).eq([false, true, false, false, false]));
    // One that has it already has held it, whoever else gets it.
    burst.replicate(1);
    assert!(burst.is_held(1) && !burst.hold(1));
    assert_eq!(burst.held(), 1);
    let finished = burst.finish();
    let outcomes = storage.outcomes(finished);
    assert_eq!(outcomes.held(), 1);
    let told: Vec<Outcome> = (0..5).map(|index| outcomes.get(index)).collect();
    assert_eq!(told, [Outcome::Done, Outcome::Held, Outcome::Done, Outcome::Done, Outcome::Done]);

    // Nothing of it sticks to the next burst's frames.
    let mut burst = storage.begin(0, 0);
    assert!(!burst.is_held(1) && burst.held() == 0);
    for index in 0..4 {
        push(&mut burst, &[&frame], 0);
        assert!(index == 1 || burst.hold(index));
    }
    let finished = burst.finish();
    let outcomes = storage.outcomes(finished);
    assert_eq!(outcomes.get(1), Outcome::Done);
    assert_eq!(outcomes.get(2), Outcome::Held);
}

#[test]
fn half_a_burst_can_be_held() {
    let frame = bytes(64);
    let mut storage = Storage::default();
    for _ in 0..2 {
        let mut burst = storage.begin(0, 0);
        while push(&mut burst, &[&frame], 0).is_some() {}
        // Those that cannot be held do not count.
        burst.replicate(0);
        let held: Vec<usize> = (0..BURST).filter(|index| burst.hold(*index)).collect();
        assert!(held.iter().copied().eq(1..=HELD));
        let finished = burst.finish();
        let outcomes = storage.outcomes(finished);
        let held_by_outcome = (0..BURST).filter(|index| outcomes.get(*index) == Outcome::Held);
        assert!(held_by_outcome.eq(1..=HELD));
    }
}

#[test]
fn a_burst_knows_its_time_and_its_breath() {
    let mut storage = Storage::default();
    let burst = storage.begin(12345, 7);
    assert_eq!((burst.now(), burst.breath()), (12345, 7));
}

#[test]
fn a_selection_keeps_its_order() {
    let mut selection = Selection::default();
    assert!(selection.is_empty());
    for index in [3, 1, 63, 0] {
        selection.push(index);
    }
    assert_eq!(selection.iter().collect::<Vec<_>>(), [3, 1, 63, 0]);
    assert_eq!(selection.len(), 4);
    selection.clear();
    assert!(selection.is_empty() && selection.iter().next().is_none());
}

#[test]
fn neighbours_of_a_selection_are_taken_together() {
    let mut selection = Selection::default();
    [3, 5, 4, 6, 8, 9, 63].into_iter().for_each(|index| selection.push(index));
    let is_odd = |index| index % 2 == 1;
    let chunks: Vec<(bool, Vec<usize>)> = selection
        .chunk_by_key(is_odd)
        .map(|(is_odd, indices)| (is_odd, indices.collect()))
        .collect();
    let expected = [(true, vec![3, 5]), (false, vec![4, 6, 8]), (true, vec![9, 63])];
    assert_eq!(chunks, expected);
    assert!(Selection::default().chunk_by_key(is_odd).next().is_none());
}

/// A frame of `len` bytes with these tags behind its addresses.
fn tagged(len: usize, tags: &[VlanTag]) -> Vec<u8> {
    let plain = bytes(len);
    let (addresses, rest) = plain.split_at(12.min(len));
    let tags: Vec<u8> = tags.iter().flat_map(|tag| tag.to_bytes()).collect();
    [addresses, &tags, rest].concat()
}

/// All of a frame.
fn whole(frame: &Frame<'_>) -> Vec<u8> {
    [frame.head.to_vec(), body(frame)].concat()
}

fn burst_of(frame: &[u8], check: impl FnOnce(&mut Burst<'_>)) {
    let mut storage = Storage::default();
    let mut burst = storage.begin(0, 0);
    assert_eq!(push(&mut burst, &[frame], 0), Some(0));
    check(&mut burst);
}

#[test]
fn tags_are_put_in_and_taken_out_whatever_the_length() {
    let (inner, outer) =
        (VlanTag::customer(7), VlanTag { protocol: EtherType::SERVICE_VLAN, control: 0xe123 });
    for len in (14..40).chain(HEAD - 8..HEAD + 8).chain([1514, 9014]) {
        burst_of(&bytes(len), |burst| {
            let expect = |burst: &Burst<'_>, tags: &[VlanTag]| {
                let frame = burst.frame(0);
                assert_eq!(whole(&frame), tagged(len, tags), "{len} bytes, {} tags", tags.len());
                assert_eq!(frame.len, len + 4 * tags.len());
            };
            burst.push_tag(0, inner).unwrap();
            expect(burst, &[inner]);
            burst.push_tag(0, outer).unwrap();
            expect(burst, &[outer, inner]);
            assert_eq!(burst.pop_tag(0), Ok(outer));
            expect(burst, &[inner]);
            assert_eq!(burst.pop_tag(0), Ok(inner));
            expect(burst, &[]);
        });
        // Those that it came with.
        burst_of(&tagged(len, &[outer, inner]), |burst| {
            assert_eq!(burst.pop_tag(0), Ok(outer));
            assert_eq!(burst.pop_tag(0), Ok(inner));
            assert_eq!(whole(&burst.frame(0)), bytes(len));
        });
    }
}

#[test]
fn a_tag_takes_anothers_place_whatever_the_length() {
    let inner = VlanTag::customer(7);
    let [old, new] = [EtherType::VLAN, EtherType::SERVICE_VLAN]
        .map(|protocol| VlanTag { protocol, control: 0xe000 | protocol.0 & 0xfff });
    for len in (14..40).chain(HEAD - 8..HEAD + 8).chain([1514]) {
        burst_of(&tagged(len, &[old, inner]), |burst| {
            burst.set_tag(0, new).unwrap();
            assert_eq!(whole(&burst.frame(0)), tagged(len, &[new, inner]), "{len} bytes");
            assert_eq!(burst.frame(0).len, len + 8);
        });
    }
    for (frame, what) in [(bytes(60), "no tag"), (tagged(13, &[old]), "half a type")] {
        burst_of(&frame, |burst| {
            assert_eq!(burst.set_tag(0, new), Err(DropReason::TooShort), "{what}");
            assert_eq!(whole(&burst.frame(0)), frame, "{what}");
        });
    }
}

#[test]
fn a_frame_has_room_for_two_tags_more_than_it_came_with() {
    burst_of(&bytes(1514), |burst| {
        (0..TAGS).for_each(|id| burst.push_tag(0, VlanTag::customer(id as u16)).unwrap());
        let before = whole(&burst.frame(0));
        assert_eq!(burst.push_tag(0, VlanTag::customer(9)), Err(DropReason::TooLong));
        assert_eq!(whole(&burst.frame(0)), before);
    });
}

#[test]
fn what_is_no_whole_header_gets_no_tag_and_loses_none() {
    let tag = VlanTag::customer(7);
    for len in 0..14 {
        burst_of(&bytes(len), |burst| {
            assert_eq!(burst.push_tag(0, tag), Err(DropReason::TooShort), "{len} bytes");
            assert_eq!(burst.pop_tag(0), Err(DropReason::TooShort), "{len} bytes");
            assert_eq!(whole(&burst.frame(0)), bytes(len));
        });
    }
    for len in 12..14 {
        burst_of(&tagged(len, &[tag]), |burst| {
            assert_eq!(burst.pop_tag(0), Err(DropReason::TooShort), "{len} bytes and a tag");
        });
    }
    burst_of(&bytes(60), |burst| {
        assert_eq!(burst.pop_tag(0), Err(DropReason::TooShort), "no tag");
        assert_eq!(burst.push_tag(1, tag), Err(DropReason::TooShort), "no frame");
    });
}

#[test]
fn a_checksum_stays_where_it_is_in_the_packet() {
    let frame = bytes(100);
    let mut storage = Storage::default();
    let mut burst = storage.begin(0, 0);
    burst.segments().push(frame.as_slice().into());
    let offload = |start| {
        let checksum = Some(PartialChecksum { start, offset: 16 });
        let kind = SegmentationKind::Tcp4;
        let segmentation = Segmentation { kind, ecn: true, size: 40, header_hint: start + 20 };
        Offload { checksum, segmentation: Some(segmentation) }
    };
    burst.push::<()>(0..1, 0, |_, _| Ok(offload(34))).unwrap();
    burst.push_tag(0, VlanTag::customer(1)).unwrap();
    assert_eq!(burst.frame(0).offload, offload(38));
    burst.push_tag(0, VlanTag::customer(2)).unwrap();
    assert_eq!(burst.frame(0).offload, offload(42));
    burst.set_tag(0, VlanTag::customer(3)).unwrap();
    assert_eq!(burst.frame(0).offload, offload(42));
    burst.pop_tag(0).unwrap();
    burst.pop_tag(0).unwrap();
    assert_eq!(burst.frame(0).offload, offload(34));
    // One that would come to lie in the Ethernet header.
    let frame = tagged(100, &[VlanTag::customer(1)]);
    burst.segments().push(frame.as_slice().into());
    burst.push::<()>(1..2, 0, |_, _| Ok(offload(17))).unwrap();
    assert_eq!(burst.pop_tag(1), Err(DropReason::ChecksumInEthernetHeader));
    assert_eq!(whole(&burst.frame(1)), frame);
}

#[test]
fn traffic_is_that_of_the_frames_as_they_are() {
    let mut storage = Storage::default();
    let mut burst = storage.begin(0, 0);
    let frames = [bytes(60), bytes(1514), bytes(9014)];
    for frame in &frames {
        push(&mut burst, &[frame], 0).unwrap();
    }
    burst.count();
    let mut some = Selection::default();
    some.push(0);
    some.push(2);
    let traffic = |frames, bytes| Traffic { frames, bytes };
    let both =
        |burst: &Burst<'_>, some: &Selection| (burst.traffic(&burst.all()), burst.traffic(some));
    assert_eq!(both(&burst, &some), (traffic(3, 60 + 1514 + 9014), traffic(2, 60 + 9014)));
    burst.push_tag(2, VlanTag::customer(1)).unwrap();
    assert_eq!(both(&burst, &some), (traffic(3, 60 + 1514 + 9018), traffic(2, 60 + 9018)));
    burst.pop_tag(2).unwrap();
    assert_eq!(both(&burst, &some), (traffic(3, 60 + 1514 + 9014), traffic(2, 60 + 9014)));
    let all = burst.all();
    let first = |count| (burst.traffic_of_first(&all, count), burst.traffic_of_first(&some, count));
    assert_eq!(first(1), (traffic(1, 60), traffic(1, 60)));
    assert_eq!(first(2), (traffic(2, 60 + 1514), traffic(2, 60 + 9014)));
    assert_eq!(first(0), (Traffic::default(), Traffic::default()));
}

/// By whoever has pulled them: some of them, all, or none.
#[test]
fn what_was_not_counted_is_counted_in_the_end() {
    let frames = [bytes(60), bytes(1514), bytes(9014)];
    for counted in 0..=3 {
        let mut storage = Storage::default();
        let mut burst = storage.begin(0, 0);
        for (at, frame) in frames.iter().enumerate() {
            push(&mut burst, &[frame], 0).unwrap();
            if at < counted {
                burst.counted(Traffic { frames: 1, bytes: frame.len() as u64 });
            }
        }
        burst.count();
        let expected = Traffic { frames: 3, bytes: 60 + 1514 + 9014 };
        assert_eq!(burst.traffic(&burst.all()), expected, "{counted} counted");
    }
}
