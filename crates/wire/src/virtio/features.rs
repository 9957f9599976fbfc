//! Feature bits of a virtio-net device as vhost-user carries them: one u64.

use crate::bits::bit_set;

bit_set! {
    /// A set of virtio feature bits.
    ///
    /// `HOST_x` is what the switch may receive from the guest; `GUEST_x` is what the switch may
    /// send to the guest. Bits from 64 up do not fit into vhost-user's u64 and cannot be
    /// negotiated.
    pub struct Features;
    0 CSUM "the guest may send partial checksums";
    1 GUEST_CSUM "the guest takes partial checksums";
    2 CTRL_GUEST_OFFLOADS "the guest may change its offloads at run time";
    3 MTU "the device advises an MTU";
    5 MAC "the device has an address";
    6 GSO "the guest may send every kind of segmentation (legacy)";
    7 GUEST_TSO4 "the guest takes TCP over IPv4 unsegmented";
    8 GUEST_TSO6 "the guest takes TCP over IPv6 unsegmented";
    9 GUEST_ECN "the guest takes unsegmented TCP with ECN";
    10 GUEST_UFO "the guest takes UDP unfragmented";
    11 HOST_TSO4 "the guest may send TCP over IPv4 unsegmented";
    12 HOST_TSO6 "the guest may send TCP over IPv6 unsegmented";
    13 HOST_ECN "the guest may send unsegmented TCP with ECN";
    14 HOST_UFO "the guest may send UDP unfragmented";
    15 MRG_RXBUF "one received frame may fill several buffers";
    16 STATUS "the configuration space has a link status";
    17 CTRL_VQ "there is a control queue";
    18 CTRL_RX "the control queue sets receive modes";
    19 CTRL_VLAN "the control queue filters VLANs";
    20 CTRL_RX_EXTRA "the control queue sets further receive modes";
    21 GUEST_ANNOUNCE "the guest can announce itself";
    22 MQ "several queue pairs";
    23 CTRL_MAC_ADDR "the control queue sets the address";
    24 NOTIFY_ON_EMPTY "call when the ring runs empty (legacy)";
    26 LOG_ALL "log every write to guest memory; between vhost peers only";
    27 ANY_LAYOUT "the header may be laid out over descriptors in any way";
    28 INDIRECT_DESC "descriptors may refer to tables";
    29 EVENT_IDX "notifications are asked for by index";
    30 PROTOCOL_FEATURES "vhost-user protocol features; between vhost peers only";
    32 VERSION_1 "virtio 1.0 or later: little-endian, 12-byte header";
    33 ACCESS_PLATFORM "addresses go through an IOMMU";
    34 RING_PACKED "packed rings";
    35 IN_ORDER "buffers are used in the order made available";
    36 ORDER_PLATFORM "the platform's ordering rules apply";
    37 SR_IOV "single-root I/O virtualisation";
    38 NOTIFICATION_DATA "kicks carry the ring's index";
    39 NOTIF_CONFIG_DATA "kicks carry a value from the device";
    40 RING_RESET "one ring can be reset";
    41 GUEST_RSC4 "receive coalescing of TCP over IPv4 (legacy)";
    42 GUEST_RSC6 "receive coalescing of TCP over IPv6 (legacy)";
    50 DEVICE_STATS "the device keeps statistics";
    51 HASH_TUNNEL "hashes look into tunnels";
    52 VQ_NOTF_COAL "calls are coalesced per ring";
    53 NOTF_COAL "calls are coalesced";
    54 GUEST_USO4 "the guest takes UDP over IPv4 unsegmented";
    55 GUEST_USO6 "the guest takes UDP over IPv6 unsegmented";
    56 HOST_USO "the guest may send UDP unsegmented";
    57 HASH_REPORT "the header carries a hash: 20 bytes";
    59 GUEST_HDRLEN "the header's length hint is exact";
    60 RSS "receive-side scaling";
    61 RSC_EXT "the header reports coalesced segments";
    62 STANDBY "this device stands by for another";
    63 SPEED_DUPLEX "the configuration space has speed and duplex";
}

impl Features {
    /// Offload bits that make sense only together with one of others (section 5.1.3.1). The bits
    /// that need CTRL_VQ are not here: the control queue stays inside the virtual machine monitor
    /// and its bit never reaches a back end.
    const DEPENDENCIES: &[(Self, Self)] = &[
        (Self::GUEST_TSO4, Self::GUEST_CSUM),
        (Self::GUEST_TSO6, Self::GUEST_CSUM),
        (Self::GUEST_UFO, Self::GUEST_CSUM),
        (Self::GUEST_USO4, Self::GUEST_CSUM),
        (Self::GUEST_USO6, Self::GUEST_CSUM),
        (Self::HOST_TSO4, Self::CSUM),
        (Self::HOST_TSO6, Self::CSUM),
        (Self::HOST_UFO, Self::CSUM),
        (Self::HOST_USO, Self::CSUM),
        // These rest on the segmentation bits above, so they come after them.
        (Self::GUEST_ECN, Self(Self::GUEST_TSO4.0 | Self::GUEST_TSO6.0)),
        (Self::HOST_ECN, Self(Self::HOST_TSO4.0 | Self::HOST_TSO6.0)),
    ];

    /// The bits that a driver from before virtio 1 can see: all that its interface has room for.
    pub const LEGACY: Self = Self(0xFFFF_FFFF);

    /// Offload bits whose prerequisite is absent, each with what it needs: one bit, or one of several.
    /// [`Self::missing_dependencies`] has those too that rest on one of these.
    pub fn unmet_dependencies(self) -> impl Iterator<Item = (Self, Self)> {
        let unmet = move |(feature, needs): &(Self, Self)| {
            self.contains(*feature) && !self.intersects(*needs)
        };
        Self::DEPENDENCIES.iter().copied().filter(unmet)
    }

    /// The offload bits whose prerequisite is absent: they have no effect and are best removed.
    pub fn missing_dependencies(self) -> Self {
        let mut rest = self;
        for (feature, needs) in Self::DEPENDENCIES {
            if rest.contains(*feature) && !rest.intersects(*needs) {
                rest = rest.without(*feature);
            }
        }
        self.without(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_listed_lowest_first() {
        let features = Features::VERSION_1 | Features::CSUM | Features(1 << 4);
        assert_eq!(features.to_string(), "CSUM bit 4 VERSION_1");
        assert_eq!(Features::NONE.to_string(), "none");
        assert!(Features::NAMED.windows(2).all(|pair| pair[0].0.0 < pair[1].0.0));
    }

    #[test]
    fn set_operations() {
        let both = Features::CSUM | Features::MQ;
        assert!(both.contains(Features::CSUM) && both.contains(both));
        assert!(!Features::CSUM.contains(both) && Features::CSUM.intersects(both));
        assert_eq!(both.without(Features::MQ), Features::CSUM);
        assert_eq!(both & Features::MQ, Features::MQ);
        assert!(both.contains(Features::NONE) && !both.intersects(Features::NONE));
    }

    #[test]
    fn offloads_without_their_prerequisite_are_found() {
        let missing = |features: Features| features.missing_dependencies();
        let tso = Features::GUEST_TSO4 | Features::GUEST_TSO6 | Features::GUEST_ECN;
        assert_eq!(missing(tso), tso);
        assert_eq!(missing(tso | Features::GUEST_CSUM), Features::NONE);
        assert_eq!(missing(tso | Features::CSUM), tso, "the wrong direction does not help");
        assert_eq!(missing(Features::HOST_ECN | Features::CSUM), Features::HOST_ECN);
        let one = Features::HOST_ECN | Features::CSUM | Features::HOST_TSO6;
        assert_eq!(missing(one), Features::NONE);
        assert_eq!(missing(Features::MQ), Features::NONE);
        let uso = Features::GUEST_USO4 | Features::GUEST_USO6;
        assert_eq!(missing(uso | Features::CSUM | Features::HOST_USO), uso);
        assert_eq!(missing(Features::HOST_USO | Features::GUEST_CSUM), Features::HOST_USO);

        let unmet = |features: Features| features.unmet_dependencies().collect::<Vec<_>>();
        let needs = [
            (Features::GUEST_TSO4, Features::GUEST_CSUM),
            (Features::GUEST_TSO6, Features::GUEST_CSUM),
        ];
        assert_eq!(unmet(tso), needs, "GUEST_ECN has what it needs itself");
        assert_eq!(unmet(one), []);
        let either = Features::HOST_TSO4 | Features::HOST_TSO6;
        assert_eq!(unmet(Features::HOST_ECN), [(Features::HOST_ECN, either)]);
    }
}
