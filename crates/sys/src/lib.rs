//! The few raw system interfaces that rustix lacks, and calls that would otherwise wait for ever.
#![expect(
    unsafe_code,
    reason = "ioctls take structures that only their own documentation describes, and an inherited \
              descriptor is a number"
)]

mod connect;
mod inherit;
pub mod notify;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tun;
mod unread;
pub mod uring;
pub mod vhost;

pub use connect::connect;
pub use inherit::inherited;
pub use unread::is_read;
