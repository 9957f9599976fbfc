//! Guest memory: the only way to touch it.
//!
//! A front end hands over files; we map them and never trust them again. This crate turns those
//! files into an immutable table of regions ([`GuestMemory`]) and gives three safe ways in:
//!
//! * [`Translator`] resolves a guest physical buffer into [`ReadSlice`]s or [`WriteSlice`]s, checked
//!   start and end, split where it crosses from one region into the next;
//! * [`Words`] is a checked array of atomics, for the fields of a ring;
//! * slices copy to and from private memory, and from one guest's memory into another's, and sum
//!   on the way, for a checksum over exactly the bytes that were written.
//!
//! # Invariants
//!
//! * A region's address range, its mapping and its length are one value, built whole and never
//!   edited. Tables are replaced, not changed.
//! * Every slice and every array of words was checked against the mapping that it points into, and
//!   keeps that mapping alive: by lifetime (slices) or by reference count ([`Words`]).
//! * No `&[u8]` or `&mut [u8]` to guest memory exists, in this crate or outside of it: the guest
//!   writes at any time. Ring fields are atomics; bytes are moved by instructions that the compiler
//!   does not reason about (see `copy.rs`).
//! * A file may shrink while it is mapped. The next touch would be SIGBUS for the whole process;
//!   `sigbus.rs` turns it into a zero page and a mark on the mapping ([`GuestMemory::is_poisoned`]).
//!
//! # Addresses
//!
//! Three kinds, never mixed: [`GuestAddress`] (what descriptors hold), [`FrontEndAddress`] (what
//! SET_VRING_ADDR holds) and our own pointers, which never leave this crate.
#![expect(
    unsafe_code,
    reason = "guest memory is raw pointers; this crate is where they are checked and hidden"
)]

mod address;
mod copy;
mod io;
mod mapping;
mod prefetch;
mod shared;
mod sigbus;
mod slice;
mod sum;
mod table;
mod words;

pub use address::{FrontEndAddress, GuestAddress};
pub use io::{WRITE_SLICES_MAX, write_vectored};
pub use prefetch::prefetch;
pub use shared::SharedMemory;
pub use sigbus::poison_epoch;
pub use slice::{ReadCursor, ReadSlice, SliceEntry, SliceList, WriteCursor, WriteSlice};
pub use table::{Fault, GuestMemory, MAX_REGIONS, MAX_SIZE, MapError, RegionRequest, Translator};
pub use words::{Word, Words};
