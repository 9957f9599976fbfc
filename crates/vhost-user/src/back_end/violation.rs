//! What a front end can do wrong, in words for the operator.

use memory::{GuestAddress, MapError};
use thiserror::Error;
use wire::ethernet::MacAddress;
use wire::vhost_user::{FormFault, FrontEndRequest, ProtocolFeatures};
use wire::virtio::Features;

use super::RingFault;

/// A message that ends the connection. References are to QEMU's `docs/interop/vhost-user.rst`.
#[derive(Debug, Error)]
pub enum Violation {
    /// A reply, though the back end asked for nothing.
    #[error("message {number} is a reply, but nothing was asked (vhost-user, \"Communication\")")]
    Reply {
        /// Its number.
        number: u32,
    },
    /// A request for a reply that was not agreed on.
    #[error(
        "{request} without the feature that it needs, {gate} (vhost-user, \"Protocol features\")",
        gate = gate_of(*.request)
    )]
    NotNegotiated {
        /// The request.
        request: FrontEndRequest,
    },
    /// A wrong size or a wrong number of descriptors.
    #[error("{request} has {fault} (vhost-user, \"Front-end message types\")")]
    Form {
        /// The request.
        request: FrontEndRequest,
        /// What is wrong.
        fault: FormFault,
    },
    /// A payload of the right size that contradicts itself.
    #[error(
        "{request} has a payload that contradicts itself (vhost-user, \"Message Specification\")"
    )]
    Payload {
        /// The request.
        request: FrontEndRequest,
    },
    /// Virtio features that were not offered.
    #[error(
        "SET_FEATURES acknowledges {unoffered}, not offered (vhost-user, \"VHOST_USER_SET_FEATURES\")"
    )]
    UnofferedFeatures {
        /// The bits that are too many.
        unoffered: Features,
    },
    /// Protocol features that were not offered.
    #[error(
        "SET_PROTOCOL_FEATURES acknowledges {unoffered}, not offered \
         (vhost-user, \"VHOST_USER_SET_PROTOCOL_FEATURES\")"
    )]
    UnofferedProtocolFeatures {
        /// The bits that are too many.
        unoffered: ProtocolFeatures,
    },
    /// Other virtio features under a running ring.
    #[error(
        "SET_FEATURES changes the features from 0x{:x} to 0x{:x} while rings run (virtio 1.3, 2.2)",
        .from.0, .to.0
    )]
    FeaturesWhileRunning {
        /// As they were.
        from: Features,
        /// As they would be.
        to: Features,
    },
    /// No memory that we can map.
    #[error(
        "guest memory is not shared: add share=on to the memory backend (QEMU: -object \
         memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem)"
    )]
    NotShared,
    /// A memory table whose regions do not each have a descriptor.
    #[error(
        "SET_MEM_TABLE has {regions} regions but {descriptors} file descriptors: each region must \
         be shared, with share=on in its memory backend (vhost-user, \"VHOST_USER_SET_MEM_TABLE\")"
    )]
    RegionDescriptors {
        /// Regions in the table.
        regions: usize,
        /// Descriptors that came with it.
        descriptors: usize,
    },
    /// A region that cannot be mapped.
    #[error("{request}: {cause}")]
    Memory {
        /// The request.
        request: FrontEndRequest,
        /// What is wrong with the region.
        cause: MapError,
    },
    /// A ring that does not exist.
    #[error(
        "{request} names ring {index}, but there are {rings} (vhost-user, \"Multiple queue support\")"
    )]
    RingIndex {
        /// The request.
        request: FrontEndRequest,
        /// The ring that it names.
        index: u32,
        /// How many rings there are.
        rings: usize,
    },
    /// A ring of a size that does not exist.
    #[error(
        "SET_VRING_NUM gives ring {ring} a size of {size}, not from 1 to 32768 \
         (virtio 1.3, 2.7 and 2.8)"
    )]
    RingSize {
        /// The ring.
        ring: u32,
        /// Its size, in entries.
        size: u32,
    },
    /// Neither on nor off.
    #[error(
        "SET_VRING_ENABLE says {value} for ring {ring}, neither 0 nor 1 \
         (vhost-user, \"VHOST_USER_SET_VRING_ENABLE\")"
    )]
    RingEnable {
        /// The ring.
        ring: u32,
        /// What it says.
        value: u32,
    },
    /// A descriptor is announced and absent, or the other way round.
    #[error(
        "{request} for ring {ring} {}, in contradiction to bit 8 of its payload \
         (vhost-user, \"VHOST_USER_SET_VRING_KICK\")",
        if *.attached { "lacks its file descriptor" } else { "has a file descriptor" }
    )]
    RingDescriptor {
        /// The request.
        request: FrontEndRequest,
        /// The ring.
        ring: u32,
        /// Whether the payload announces one.
        attached: bool,
    },
    /// A descriptor that could block us.
    #[error(
        "{request} for ring {ring} carries {kind}, not an eventfd \
         (vhost-user, \"VHOST_USER_SET_VRING_KICK\")"
    )]
    NotAnEventDescriptor {
        /// The request.
        request: FrontEndRequest,
        /// The ring.
        ring: u32,
        /// What it is instead.
        kind: String,
    },
    /// A descriptor that the kernel does not let us use.
    #[error("a ring's file descriptor cannot be used: {cause}")]
    Descriptor {
        /// The kernel's reason.
        cause: std::io::Error,
    },
    /// A ring that was told to go and has no place.
    #[error("ring {ring} cannot run: {fault}")]
    Ring {
        /// The ring.
        ring: usize,
        /// What is wrong with its place.
        fault: RingFault,
    },
}

/// Something that was refused or lost, while the connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Notice {
    /// A request without a name.
    #[error("refused unknown request {number}")]
    Unknown {
        /// Its number.
        number: u32,
    },
    /// A request that was not agreed on.
    #[error("refused {request}: it needs {gate}", gate = gate_of(*.request))]
    NotNegotiated {
        /// The request.
        request: FrontEndRequest,
    },
    /// A request for something that a network back end does not do.
    #[error("refused {request}: not served")]
    NotServed {
        /// The request.
        request: FrontEndRequest,
    },
    /// An MTU that the port does not take.
    #[error("refused an MTU of {mtu}: this port takes 68 to {max}")]
    Mtu {
        /// As asked for.
        mtu: u64,
        /// The port's limit.
        max: u16,
    },
    /// An announcement that cannot be a guest's.
    #[error("refused to announce {address}: not a station's address")]
    Announcement {
        /// The address to announce.
        address: MacAddress,
    },
    /// A region to be removed that is not there.
    #[error("no memory to remove at guest address {guest}")]
    NoRegion {
        /// Where it was to be.
        guest: GuestAddress,
    },
    /// A running ring's memory was taken away.
    #[error("ring {ring} stopped: {fault}")]
    RingLost {
        /// The ring.
        ring: usize,
        /// What is missing.
        fault: RingFault,
    },
}

/// What a request needs, for people.
fn gate_of(request: FrontEndRequest) -> String {
    match request.message().gate {
        wire::vhost_user::Gate::Open => "nothing".to_string(),
        wire::vhost_user::Gate::Offered(features) => features.to_string(),
        wire::vhost_user::Gate::Protocol(features) => features.to_string(),
    }
}
