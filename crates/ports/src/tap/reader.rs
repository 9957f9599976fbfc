//! Frames on their way out of the queues of an interface: one by one, or those of a burst by one system call, where
//! the kernel has io_uring for us and the queue has had more than there was room for, for a while.
//!
//! Each that is asked for in vain costs as much as is saved on five, so a queue that is empty now and then is better
//! read one by one. (Measured: docs/performance.md has the figures.)

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::queues::Together;

/// Bursts for which all room was used, in a row, before frames are read together. They took some 100 us; so 5 us more, for 15
/// reads in vain when the queue is empty at last, are not much.
const FULL: u32 = 8;

/// Rooms from which on that pays.
const TOGETHER: usize = 8;

/// Reads a frame into each of these `count` rooms, from the queue that has this place, until there are no more of
/// either. Says of each read, in order, how many bytes came or why none did: the n-th is into the n-th room. Returns
/// whether there were no more frames. `full` is how often in a row there were more, for as many rooms as are worth it: a
/// few say nothing of a burst.
pub(crate) fn read<'r>(
    together: &mut Together,
    (place, queue): (usize, BorrowedFd<'_>),
    full: &mut u32,
    count: usize,
    mut rooms: impl Iterator<Item = &'r mut [u8]>,
    mut done: impl FnMut(Result<usize, Errno>),
) -> bool {
    let mut is_empty = false;
    let mut note = |result: Result<usize, Errno>| {
        is_empty |= matches!(result, Err(Errno::AGAIN | Errno::IO | Errno::BADFD));
        done(result);
        is_empty
    };
    match together {
        Some(Ok(uring)) if *full >= FULL && count >= TOGETHER => {
            let mut tried = 0;
            for result in uring.read(rooms.map(|room| (place, room))) {
                note(result);
                tried += 1;
            }
            if tried < count {
                *together = Some(Err(Errno::NOSYS.into()));
            }
        }
        _ => while rooms.next().is_some_and(|room| !note(rustix::io::read(queue, room))) {},
    }
    if is_empty {
        *full = 0;
    } else if count >= TOGETHER {
        *full = full.saturating_add(1);
    }
    is_empty
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use sys::testing::{Call, refuse};
    use sys::uring::Uring;

    use super::*;

    /// Two ends of what keeps frames apart as a queue does.
    fn pair() -> (UnixDatagram, UnixDatagram) {
        let (queue, host) = UnixDatagram::pair().unwrap();
        queue.set_nonblocking(true).unwrap();
        (queue, host)
    }

    fn together(queue: &UnixDatagram) -> Together {
        Some(Ok(Uring::open([queue.as_fd()].into_iter()).unwrap()))
    }

    /// Reads into so many rooms. Returns the frames in order, the reads that found none, and whether there were no more.
    fn read_into(
        together: &mut Together,
        queue: &UnixDatagram,
        full: &mut u32,
        count: usize,
    ) -> (Vec<Vec<u8>>, usize, bool) {
        let mut rooms = vec![[0; 8]; count];
        let (mut lens, mut nothing) = (Vec::new(), 0);
        let each = rooms.iter_mut().map(|room| &mut room[..]);
        let is_empty =
            read(together, (0, queue.as_fd()), full, count, each, |result| match result {
                Ok(len) => lens.push(len),
                Err(error) => {
                    assert_eq!(error, Errno::AGAIN);
                    nothing += 1;
                }
            });
        let frames = lens.iter().zip(&rooms).map(|(len, room)| room[..*len].to_vec());
        (frames.collect(), nothing, is_empty)
    }

    #[test]
    fn all_frames_come_in_order_into_as_many_rooms_as_there_are() {
        const ROOMS: usize = TOGETHER + 1;
        let (queue, host) = pair();
        let all = [(together(&queue), FULL), (together(&queue), 0), (None, FULL)];
        for (mut together, before) in all {
            for frames in 0..=ROOMS + 3 {
                let expected: Vec<_> = (0..frames).map(|number| vec![number as u8; 3]).collect();
                expected.iter().for_each(|frame| assert_eq!(host.send(frame).unwrap(), 3));
                let mut full = before;
                let came = read_into(&mut together, &queue, &mut full, ROOMS);
                if frames < ROOMS {
                    assert_eq!((came.0, came.2, full), (expected, true, 0));
                    continue;
                }
                assert_eq!(came, (expected[..ROOMS].to_vec(), 0, false));
                assert_eq!(full, before + 1);
                let rest = read_into(&mut together, &queue, &mut full, ROOMS);
                assert_eq!((rest.0, rest.2), (expected[ROOMS..].to_vec(), true));
            }
        }
    }

    #[test]
    fn many_are_asked_for_together_when_there_were_always_more() {
        let (queue, host) = pair();
        let (mut together, mut full) = (together(&queue), 0);
        for count in [TOGETHER, TOGETHER - 1, TOGETHER] {
            let mut in_vain = Vec::new();
            for _ in 0..FULL {
                (0..count).for_each(|_| assert_eq!(host.send(b"frame").unwrap(), 5));
                in_vain.push(read_into(&mut together, &queue, &mut full, count).1);
            }
            in_vain.push(read_into(&mut together, &queue, &mut full, count).1);
            in_vain.push(read_into(&mut together, &queue, &mut full, count).1);
            // Together they all find nothing, the first time; and then one by one again.
            let together = if count < TOGETHER { 1 } else { count };
            assert_eq!(in_vain, [vec![0; FULL as usize], vec![together, 1]].concat());
        }
        // However often there were more for a few rooms, a burst may be another thing.
        for _ in 0..FULL {
            (0..TOGETHER - 1).for_each(|_| assert_eq!(host.send(b"frame").unwrap(), 5));
            read_into(&mut together, &queue, &mut full, TOGETHER - 1);
        }
        assert_eq!(read_into(&mut together, &queue, &mut full, TOGETHER), (Vec::new(), 1, true));
    }

    #[test]
    fn without_a_ring_that_works_they_come_one_by_one() {
        let (queue, host) = pair();
        let (mut together, mut full) = (together(&queue), FULL);
        refuse(Call::Enter).unwrap();
        (0..5).for_each(|_| assert_eq!(host.send(b"frame").unwrap(), 5));
        // There may be more, so somebody has to ask again.
        assert_eq!(read_into(&mut together, &queue, &mut full, 16), (Vec::new(), 0, false));
        let frames = vec![b"frame".to_vec(); 5];
        assert_eq!(read_into(&mut together, &queue, &mut full, 16), (frames, 1, true));
    }
}
