//! Protocol feature bits: what the two ends of the socket agree on, unseen by the guest.

use crate::bits::bit_set;

bit_set! {
    /// A set of vhost-user protocol feature bits.
    pub struct ProtocolFeatures;
    0 MQ "several queue pairs, GET_QUEUE_NUM";
    1 LOG_SHMFD "the dirty log is shared memory";
    2 RARP "SEND_RARP announces a migrated guest";
    3 REPLY_ACK "messages can ask for an acknowledgement";
    4 NET_MTU "NET_SET_MTU";
    5 BACKEND_REQ "a second socket carries requests of the back end";
    6 CROSS_ENDIAN "SET_VRING_ENDIAN";
    7 CRYPTO_SESSION "sessions of a crypto device";
    8 PAGEFAULT "postcopy migration";
    9 CONFIG "the back end keeps the configuration space";
    10 BACKEND_SEND_FD "requests of the back end carry descriptors";
    11 HOST_NOTIFIER "the guest's kicks go to hardware";
    12 INFLIGHT_SHMFD "descriptors in flight are noted in shared memory";
    13 RESET_DEVICE "RESET_DEVICE";
    14 INBAND_NOTIFICATIONS "kicks and calls can be messages";
    15 CONFIGURE_MEM_SLOTS "regions come and go one by one";
    16 STATUS "SET_STATUS and GET_STATUS";
    17 XEN_MMAP "memory of a Xen guest";
    18 SHARED_OBJECT "objects shared between devices";
    19 DEVICE_STATE "the back end's state migrates";
    20 GET_VRING_BASE_INFLIGHT "a ring can stop without draining";
    21 GPA_ADDRESSES "ring addresses are guest physical";
    22 SHMEM_MAP "memory shared with the guest";
}
