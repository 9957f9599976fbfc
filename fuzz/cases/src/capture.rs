//! Capture files: whatever is in them, the reader goes on or says why not, and windows make no difference.

use wire::pcap::{Captured, Fault, MAX_BLOCK, MAX_CAPTURED, Reader, Step};

use crate::Reached;

/// A capture file.
pub fn capture(data: &[u8]) -> Reached {
    let mut reached = Reached::default();
    let (mut frames, mut truncated) = (Vec::new(), false);
    let fault = read(data, data.len(), |frame| {
        truncated |= frame.is_truncated();
        frames.push(Some((frame.time, frame.bytes.len(), frame.original)));
    });
    // Once more, with no more in the window than was asked for.
    let mut again = frames.iter_mut();
    let other = read(data, 0, |frame| {
        let first = again.next().and_then(Option::take);
        assert_eq!(first, Some((frame.time, frame.bytes.len(), frame.original)));
    });
    assert_eq!(again.count(), 0, "fewer frames through small windows");
    assert_eq!(fault, other);
    match fault {
        None if data.is_empty() => panic!("an empty file is no capture file"),
        None => reached.note("whole"),
        Some(Fault { place, problem }) => {
            assert_eq!(place.frame, frames.len() as u64 + 1);
            assert!(place.offset <= data.len() as u64);
            reached.note_variant(&problem);
        }
    }
    if !frames.is_empty() {
        reached.note(if data[0] == 0x0A { "pcapng frame" } else { "pcap frame" });
    }
    if truncated {
        reached.note("truncated frame");
    }
    reached
}

/// Reads a file through windows of what was asked for and `slack` bytes.
fn read(file: &[u8], slack: usize, mut each: impl FnMut(&Captured<'_>)) -> Option<Fault> {
    let mut reader = Reader::new();
    let (mut at, mut needed, mut steps) = (0, 0, 0);
    loop {
        let rest = &file[at..];
        let window = &rest[..rest.len().min(needed + slack)];
        steps += 1;
        assert!(steps <= 3 * file.len() + 8, "it does not come to an end");
        match reader.step(window) {
            Err(fault) => return Some(fault),
            Ok(Step::More(more)) => {
                assert!(more > window.len(), "{more} bytes are there");
                assert!(more <= MAX_BLOCK.max(MAX_CAPTURED + 16) as usize, "{more} bytes");
                if window.len() == rest.len() {
                    return reader.end(window, more).err();
                }
                needed = more;
            }
            Ok(Step::Skip(bytes)) => {
                assert!(bytes as usize <= window.len());
                (at, needed) = (at + bytes as usize, 0);
            }
            Ok(Step::Frame(bytes, frame)) => {
                assert!(bytes as usize <= window.len());
                assert!(frame.bytes.len() <= frame.original as usize);
                each(&frame);
                (at, needed) = (at + bytes as usize, 0);
            }
        }
    }
}
