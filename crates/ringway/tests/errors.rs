//! Every error says its cause, and says it once: in its text, and not once more as its source, which
//! `{:#}` appends.

use std::error::Error;
use std::io;

use guest::load::LoadError;
use guest::{DriverError, GuestError};
use memory::{Fault, FrontEndAddress, GuestAddress, GuestMemory, MapError};
use ports::pcap::{ReadError, WriteError};
use vhost_user::back_end::{ServerError, Violation};
use vhost_user::{ConnectionError, FrontEndError};
use virtqueue::LayoutError;
use wire::vhost_user::FrontEndRequest;

/// What the kernel says, in all of them.
const CAUSE: &str = "No such device";

fn io() -> io::Error {
    io::Error::from_raw_os_error(19)
}

fn fault() -> Fault {
    GuestMemory::empty().translate(FrontEndAddress(0x1234), 1).unwrap_err()
}

/// Checks that `cause` is in the error's text, with all of its sources, exactly once.
#[track_caller]
fn says_once(error: impl Error + Send + Sync + 'static, cause: &str) {
    let text = format!("{:#}", anyhow::Error::from(error));
    assert_eq!(text.matches(cause).count(), 1, "{text}");
}

#[test]
fn the_kernels_reason_is_said_once() {
    let (path, request) = ("/run/vm.sock".into(), FrontEndRequest::SetVringKick);
    says_once(FrontEndError::Connect { path, cause: io() }, CAUSE);
    says_once(FrontEndError::Listen { path: "/run/vm.sock".into(), cause: io() }, CAUSE);
    says_once(FrontEndError::Connection { request, cause: io().into() }, CAUSE);
    says_once(FrontEndError::Duplicate { request, cause: io() }, CAUSE);
    says_once(ConnectionError::from(io()), CAUSE);
    says_once(ServerError::from(io()), CAUSE);
    says_once(ReadError::Io(io()), CAUSE);
    says_once(WriteError::Io(io()), CAUSE);
    says_once(ServerError::from(ConnectionError::from(io())), CAUSE);
    says_once(Violation::Descriptor { cause: io() }, CAUSE);
    says_once(Violation::Memory { request, cause: MapError::Io("mmap", io()) }, CAUSE);
    says_once(MapError::Io("mmap", io()), CAUSE);
    says_once(GuestError::from(io()), CAUSE);
    says_once(GuestError::from(MapError::Io("mmap", io())), CAUSE);
    says_once(LoadError::from(io()), CAUSE);
    says_once(LoadError::from(MapError::Io("mmap", io())), CAUSE);
    let path = || "/run/vm.sock".into();
    let cause = FrontEndError::Connection { request, cause: io().into() };
    says_once(LoadError::FrontEnd { path: path(), cause }, CAUSE);
    says_once(LoadError::Connect(FrontEndError::Connect { path: path(), cause: io() }), CAUSE);
}

#[test]
fn a_place_outside_of_memory_is_said_once() {
    let place = "at front-end address 0x1234";
    says_once(virtqueue::Violation::from(fault()), place);
    says_once(ServerError::from(virtqueue::Violation::from(fault())), place);
    says_once(DriverError::from(fault()), place);
    says_once(DriverError::from(virtqueue::Violation::from(fault())), place);
    says_once(GuestError::from(fault()), place);
    says_once(GuestError::from(DriverError::from(fault())), place);
    says_once(LoadError::from(fault()), place);
    let cause = virtqueue::Violation::from(fault());
    says_once(LoadError::Ring { path: "/run/vm.sock".into(), cause }, place);
    let overlap = MapError::GuestOverlap(GuestAddress(0x1234));
    says_once(GuestError::from(overlap), "0x1234");
}

#[test]
fn what_is_wrong_with_a_capture_file_is_said_once() {
    let fault = wire::pcap::Reader::new().end(&[], 4).unwrap_err();
    says_once(fault.clone(), "the file is empty");
    says_once(ReadError::from(fault), "the file is empty");
}

#[test]
fn a_ring_of_no_size_is_said_once() {
    let size = || LayoutError::PackedSize(0);
    let says = "ring size 0";
    says_once(size(), says);
    says_once(DriverError::from(size()), says);
    says_once(LoadError::from(size()), says);
}
