//! An embedded guest: what a virtual machine looks like to a switch, without the virtual machine.
//!
//! It is made of the same parts as its counterpart: the front end of `vhost-user`, the driver side
//! of `virtqueue`, and `memory` that it shares out itself. `ringway demo` and the tests drive the
//! switch with it, and [`load`] is what `ringway bench` runs. Whoever has other plans for a back end starts with [`Guest`] for the whole, with
//! [`vhost_user::FrontEnd`] for the messages alone, or with [`NetDriver`] for the rings alone.
//!
//! # A frame out, and one back
//!
//! The back end that listens at `path` is one that sends back what it gets.
//!
//! ```
//! # mod echo {
//! #     #![allow(dead_code)]
//! #     include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/echo/mod.rs"));
//! # }
//! use std::time::Duration;
//!
//! use ringway_guest::{Guest, Options};
//! use wire::virtio::{Features, NetHeader};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("echo.sock");
//! # let offer = vhost_user::back_end::Offer {
//! #     features: Options::default().features | Features::RING_PACKED,
//! #     protocol: vhost_user::back_end::Offer::PROTOCOL,
//! #     queue_pairs: 1,
//! #     max_mtu: 1500,
//! # };
//! # let echo = echo::Echo::listen(&path, offer);
//! // Connects, negotiates, shares memory, and sets up a packed ring for each direction.
//! let mut options = Options::default();
//! options.features |= Features::RING_PACKED;
//! let mut guest = Guest::connect(&path, &options)?;
//!
//! // To everyone, from us, of a type that is free to use, and 46 bytes of nothing.
//! let mut frame = [0; 60];
//! frame[..6].fill(0xFF);
//! frame[6..14].copy_from_slice(&[0x02, 0, 0, 0, 0, 0x01, 0x88, 0xB5]);
//! assert!(guest.driver().send(NetHeader::default(), &frame)?, "the ring is full");
//! // Until now the back end saw none of it.
//! guest.flush();
//!
//! let came = loop {
//!     if let Some(came) = guest.driver().receive(|received| received.frame.to_vec())? {
//!         break came;
//!     }
//!     if !guest.wait(Duration::from_secs(5))? {
//!         return Err("no frame came within 5 seconds".into());
//!     }
//! };
//! assert_eq!(came, frame);
//! # drop(guest);
//! # echo.join().unwrap();
//! # Ok(())
//! # }
//! ```

mod driver;
mod guest;
mod layout;
pub mod load;

pub use driver::{DriverError, NetDriver, Received};
pub use guest::{Guest, GuestError, Options};
pub use layout::{MemoryLayout, PairLayout, RingAddresses, RingLayout};
