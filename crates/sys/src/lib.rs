//! The few raw system interfaces that rustix lacks.
#![expect(
    unsafe_code,
    reason = "ioctls take structures that only their own documentation describes"
)]

pub mod notify;
pub mod tun;
