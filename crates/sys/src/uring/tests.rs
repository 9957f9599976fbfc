use std::fs::OpenOptions;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use memory::WRITE_SLICES_MAX;
use rustix::pipe::{PipeFlags, pipe_with};

use super::*;
use crate::testing::{Call, refuse};

fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap()
}

/// All that waits in a pipe.
fn text(reader: OwnedFd) -> String {
    let mut bytes = Vec::new();
    let end = std::fs::File::from(reader).read_to_end(&mut bytes);
    assert!(end.is_ok() || end.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock));
    String::from_utf8(bytes).unwrap()
}

fn slices<const N: usize>(parts: [&str; N]) -> [ReadSlice<'_>; N] {
    parts.map(|part| part.as_bytes().into())
}

fn open<const N: usize>(files: [&OwnedFd; N]) -> io::Result<Uring> {
    Uring::open(files.into_iter().map(AsFd::as_fd))
}

type Results = Vec<Result<usize, Errno>>;

#[test]
fn each_write_arrives_in_order_or_says_why_not() {
    let ((reader, writer), (other, to_other)) = (pipe(), pipe());
    let (closed, to_closed) = pipe();
    drop(closed);
    let mut uring = open([&writer, &to_other, &to_closed]).unwrap();
    let (one, two, three) = (slices(["one ", "", "and "]), slices(["two "]), slices(["three"]));
    let many = vec![ReadSlice::EMPTY; WRITE_SLICES_MAX + 1];
    for round in 0..3 {
        let writes: [(_, &[ReadSlice<'_>]); 7] = [
            (0, &one),
            // What the kernel does not even begin does not keep it from those behind.
            (0, &many),
            (1, &two),
            (2, &two),
            (0, &[]),
            (3, &two),
            (0, &three),
        ];
        let results: Results = uring.write(writes.into_iter()).collect();
        let [invalid, broken, none] = [Errno::INVAL, Errno::PIPE, Errno::BADF].map(Err);
        assert_eq!(results, [Ok(8), invalid, Ok(4), broken, Ok(0), none, Ok(5)], "{round}");
    }
    assert_eq!(uring.write([].into_iter()).count(), 0);
    assert_eq!((text(reader), text(other)), ("one and three".repeat(3), "two ".repeat(3)));
}

#[test]
fn a_write_that_would_wait_fails_and_no_more_are_done_than_fit() {
    let (reader, writer) = pipe();
    let mut uring = open([&writer]).unwrap();
    let block = "x".repeat(4096);
    let block = slices([&block]);
    let writes = || std::iter::repeat_with(|| (0, &block[..]));
    let results: Results = uring.write(writes().take(DEPTH + 1)).collect();
    // As many as a pipe holds.
    let fits = [Ok(4096); 16].into_iter();
    let expected: Results = fits.chain([Err(Errno::AGAIN); DEPTH - 16]).collect();
    assert_eq!(results, expected);
    assert_eq!(text(reader).len(), 16 * 4096);
}

#[test]
fn each_read_gets_what_is_there_in_order_or_says_why_not() {
    let ((reader, writer), (other, to_other)) = (pipe(), pipe());
    let (ended, to_ended) = pipe();
    drop(to_ended);
    let mut uring = open([&reader, &other, &ended]).unwrap();
    for round in 0..3 {
        rustix::io::write(&writer, b"one two!").unwrap();
        rustix::io::write(&to_other, b"three").unwrap();
        let mut rooms = [[0; 4]; 6];
        let files = [0, 1, 0, 2, 0, 1];
        let reads = files.into_iter().zip(rooms.iter_mut().map(|it| &mut it[..]));
        let results: Results = uring.read(reads).collect();
        let nothing = Err(Errno::AGAIN);
        assert_eq!(results, [Ok(4), Ok(4), Ok(4), Ok(0), nothing, Ok(1)], "{round}");
        assert_eq!(rooms, [*b"one ", *b"thre", *b"two!", [0; 4], [0; 4], *b"e\0\0\0"], "{round}");
    }
    assert_eq!(uring.read([].into_iter()).count(), 0);
}

#[test]
fn no_more_are_read_than_there_is_place_for() {
    let (reader, writer) = pipe();
    rustix::io::write(&writer, &[7; DEPTH + 1]).unwrap();
    let mut uring = open([&reader]).unwrap();
    let mut rooms = [[0]; DEPTH + 1];
    let reads = rooms.iter_mut().map(|room| (0, &mut room[..]));
    assert_eq!(uring.read(reads).collect::<Results>(), [Ok(1); DEPTH]);
    assert_eq!((rooms[DEPTH - 1], rooms[DEPTH]), ([7], [0]));
}

/// Nobody but this thread's.
fn refusing<R: Send>(run: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

#[test]
fn where_the_kernel_refuses_there_is_none() {
    let (_reader, writer) = pipe();
    for (call, error) in [(Call::Setup, Errno::PERM), (Call::Enter, Errno::NOSYS)] {
        let opened = refusing(|| {
            refuse(call).unwrap();
            open([&writer]).map(drop)
        });
        assert_eq!(Errno::from_io_error(&opened.unwrap_err()), Some(error), "{call:?}");
    }
    // A file that cannot say that it would have to wait.
    let file = OpenOptions::new().write(true).open("/proc/self/comm").unwrap();
    let error = open([&file.into()]).map(drop).unwrap_err();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::OPNOTSUPP));
}

#[test]
fn one_that_the_kernel_refuses_later_is_not_used_again() {
    let (reader, writer) = pipe();
    let mut uring = open([&writer]).unwrap();
    let used = &mut uring;
    refusing(|| {
        let (uring, word) = (used, slices(["word"]));
        let writes = [(0, &word[..]); 3];
        assert_eq!(uring.write(writes.into_iter()).count(), 3);
        refuse(Call::Enter).unwrap();
        assert_eq!(uring.write(writes.into_iter()).count(), 0);
    });
    // What it was given then it does not do, though now it could.
    let word = slices(["word"]);
    assert_eq!(uring.write([(0, &word[..])].into_iter()).count(), 0);
    assert_eq!(uring.read([(0, &mut [0; 4][..])].into_iter()).count(), 0);
    assert_eq!(text(reader), "word".repeat(3));
}

#[test]
fn its_files_are_closed_when_it_is_dropped() {
    let (reader, writer) = pipe();
    let uring = open([&writer]).unwrap();
    drop(writer);
    let read = || rustix::io::read(&reader, &mut [0; 1]);
    assert_eq!(read(), Err(Errno::AGAIN), "the ring has it open");
    drop(uring);
    assert_eq!(read(), Ok(0), "nobody has it open any more");
}
