//! Apps with an outside, one module per kind of port.

mod frame;
pub mod tap;
pub mod vhost_user;
