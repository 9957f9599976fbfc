use memory::Fault;
use thiserror::Error;

/// A rule of the virtqueue that the other side broke. The queue is not to be used any more; only a
/// restart of the ring mends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// More buffers outstanding than the ring has entries, or an index that went backwards.
    #[error(
        "available index is {found}, with {taken} next and a ring of {size} entries \
         (virtio 1.3, 2.7.6)"
    )]
    AvailableIndex {
        /// The index in the ring.
        found: u16,
        /// The next entry that the device would take.
        taken: u16,
        /// Entries in the ring.
        size: u16,
    },
    /// A head that is no descriptor of the table.
    #[error("descriptor {head} was made available in a ring of {size} (virtio 1.3, 2.7.6)")]
    Head {
        /// As found in the available ring.
        head: u16,
        /// Entries in the ring.
        size: u16,
    },
    /// A `next` outside of its table.
    #[error("descriptor chains to {next} in a table of {size} (virtio 1.3, 2.7.5)")]
    Next {
        /// As found in the descriptor.
        next: u16,
        /// Entries in the table.
        size: u32,
    },
    /// More descriptors than the ring has entries: a loop, or an over-long chain.
    #[error(
        "descriptor chain is longer than the ring's {size} entries, or loops \
         (virtio 1.3, 2.7.5.2 and 2.8.17)"
    )]
    ChainTooLong {
        /// Entries in the ring.
        size: u16,
    },
    /// A chain of a packed ring that goes on in descriptors which are not the driver's.
    #[error(
        "descriptor chain goes on behind {room} descriptors, into those of the ring's {size} that \
         the device holds already (virtio 1.3, 2.8.17)"
    )]
    ChainOverrun {
        /// Descriptors that the device does not hold.
        room: u16,
        /// Entries in the ring.
        size: u16,
    },
    /// A descriptor of a packed ring that was available and is not any more.
    #[error("descriptor {slot} was available and is not any more (virtio 1.3, 2.8.16)")]
    Withdrawn {
        /// Its place in the ring.
        slot: u16,
    },
    /// A chain that has more descriptors than when it was taken.
    #[error("chain {id} grew while the device had it (virtio 1.3, 2.7.13 and 2.8.21)")]
    Grown {
        /// Its id.
        id: u16,
    },
    /// A device-readable descriptor after a device-writable one.
    #[error("readable descriptor after a writable one in a chain (virtio 1.3, 2.7.4.2 and 2.8.17)")]
    ReadableAfterWritable,
    /// A device-readable descriptor where the device only writes.
    #[error("readable descriptor in a receive buffer (virtio 1.3, 5.1.6.3)")]
    ReadableReceiveBuffer,
    /// INDIRECT without the feature.
    #[error(
        "indirect descriptor, but INDIRECT_DESC was not negotiated \
         (virtio 1.3, 2.7.5.3 and 2.8.19)"
    )]
    IndirectNotNegotiated,
    /// INDIRECT with NEXT, inside an indirect table, or behind other descriptors of a packed ring.
    #[error(
        "indirect descriptor that chains on, is inside of a table, or is part of a packed ring's \
         chain (virtio 1.3, 2.7.5.3.1 and 2.8.19)"
    )]
    IndirectMisplaced,
    /// A table that is empty, not a whole number of descriptors, or longer than the ring.
    #[error(
        "indirect table of {len} bytes in a ring of {size} entries \
         (virtio 1.3, 2.7.5.3 and 2.8.7)"
    )]
    IndirectLength {
        /// Bytes, as found in the referring descriptor.
        len: u32,
        /// Entries in the ring.
        size: u16,
    },
    /// A buffer or table that is not in shared memory.
    #[error("buffer: {0} (virtio 1.3, 2.7.5 and 2.8.13)")]
    Memory(Fault),
    /// A used entry that names no outstanding chain.
    #[error("used entry names chain {id}, which is not outstanding (virtio 1.3, 2.7.8 and 2.8.6)")]
    UsedId {
        /// As found in the used entry.
        id: u32,
    },
    /// A used index further on than there are outstanding chains.
    #[error(
        "used index is {found}, with {taken} next and {outstanding} chains outstanding (virtio 1.3, 2.7.8)"
    )]
    UsedIndex {
        /// The index in the ring.
        found: u16,
        /// The next entry that the driver would take.
        taken: u16,
        /// Chains that the device holds.
        outstanding: u16,
    },
}

impl From<Fault> for Violation {
    fn from(fault: Fault) -> Self {
        Self::Memory(fault)
    }
}
