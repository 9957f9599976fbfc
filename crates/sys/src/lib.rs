//! The few raw system interfaces that rustix lacks.
#![expect(
    unsafe_code,
    reason = "ioctls take structures that only their own documentation describes, and an inherited \
              descriptor is a number"
)]

mod inherit;
pub mod notify;
pub mod tun;
mod unread;

pub use inherit::inherited;
pub use unread::is_read;
