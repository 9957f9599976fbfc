//! The vhost-user protocol: codec, back-end session, front-end session.
//!
//! * [`Connection`] moves whole messages, with their file descriptors, over a Unix socket. It never
//!   blocks and never reads past the message at hand.
//! * [`back_end::Session`] is what a message means to a virtio-net back end: a state machine
//!   without I/O of its own. Messages go in; out come the [`Device`] for the data plane and the
//!   answer for the peer.
//! * [`back_end::Server`] is the loop around both for a back end in one thread: what it needs of you
//!   is a [`back_end::BackEnd`], which moves frames.
//! * A [`Descriptor`] is what a peer has sent: it is closed by a [`Closer`], since closing it may mean to
//!   wait for the peer.
//! * [`FrontEnd`] is the other role: it drives a back end, for guests that live in this process.
//!
//! The form of every message is a table in [`wire::vhost_user`].

pub mod back_end;
mod closer;
mod connection;
mod descriptor;
mod front_end;

pub use back_end::{Device, RingSetup};
pub use closer::Closer;
pub use connection::{Connection, ConnectionError, Direction, Incoming, Message, Observer};
pub use descriptor::Descriptor;
pub use front_end::{
    BackEndEvent, DirtyLog, FrontEnd, FrontEndError, FrontEndListener, Negotiated, Region,
    RingConfig,
};
