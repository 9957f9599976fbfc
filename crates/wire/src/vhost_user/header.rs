//! The header in front of every message.

use thiserror::Error;

/// The largest payload that is accepted, in bytes. The largest legal one is half of it.
pub const MAX_PAYLOAD: usize = 4096;

const VERSION_MASK: u32 = 0x3;
const VERSION: u32 = 0x1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// A message header: three u32 in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The message's number. A reply repeats the number of its request.
    pub request: u32,
    /// This is a reply.
    pub reply: bool,
    /// An acknowledgement is asked for. Counts only once REPLY_ACK is negotiated.
    pub need_reply: bool,
    /// Bytes of payload that follow, at most [`MAX_PAYLOAD`] in a decoded header.
    pub size: u32,
}

/// A header that starts no message we could read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// Not the one version there is.
    #[error("message {request} has version {version}, not 1 (vhost-user, \"Header\")")]
    Version {
        /// The message's number.
        request: u32,
        /// The low two bits of its flags.
        version: u32,
    },
    /// Flag bits without a meaning.
    #[error("message {request} has reserved flag bits set: 0x{flags:08x} (vhost-user, \"Header\")")]
    Flags {
        /// The message's number.
        request: u32,
        /// Its flags.
        flags: u32,
    },
    /// A payload that no message has.
    #[error(
        "message {request} announces {size} bytes of payload, more than {MAX_PAYLOAD} \
         (vhost-user, \"Header\")"
    )]
    Size {
        /// The message's number.
        request: u32,
        /// The announced size.
        size: u32,
    },
}

impl Header {
    /// Bytes of a header.
    pub const SIZE: usize = 12;

    /// The header of a request.
    pub const fn request(request: u32, need_reply: bool, size: u32) -> Self {
        Self { request, reply: false, need_reply, size }
    }

    /// The header of a reply. It never asks for an acknowledgement itself: QEMU and DPDK drop the
    /// connection when a reply's flags are anything but version and reply bit.
    pub const fn reply_to(request: u32, size: u32) -> Self {
        Self { request, reply: true, need_reply: false, size }
    }

    /// Decodes and checks a header.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, HeaderError> {
        let [r0, r1, r2, r3, f0, f1, f2, f3, s0, s1, s2, s3] = *bytes;
        let request = u32::from_ne_bytes([r0, r1, r2, r3]);
        let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
        let size = u32::from_ne_bytes([s0, s1, s2, s3]);
        let version = flags & VERSION_MASK;
        if version != VERSION {
            return Err(HeaderError::Version { request, version });
        }
        if flags & !(VERSION_MASK | REPLY | NEED_REPLY) != 0 {
            return Err(HeaderError::Flags { request, flags });
        }
        if size as usize > MAX_PAYLOAD {
            return Err(HeaderError::Size { request, size });
        }
        let (reply, need_reply) = (flags & REPLY != 0, flags & NEED_REPLY != 0);
        Ok(Self { request, reply, need_reply, size })
    }

    /// Encodes this header.
    pub const fn encode(&self) -> [u8; Self::SIZE] {
        let mut flags = VERSION;
        if self.reply {
            flags |= REPLY;
        }
        if self.need_reply {
            flags |= NEED_REPLY;
        }
        let [r0, r1, r2, r3] = self.request.to_ne_bytes();
        let [f0, f1, f2, f3] = flags.to_ne_bytes();
        let [s0, s1, s2, s3] = self.size.to_ne_bytes();
        [r0, r1, r2, r3, f0, f1, f2, f3, s0, s1, s2, s3]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(request: u32, flags: u32, size: u32) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&request.to_ne_bytes());
        bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[8..].copy_from_slice(&size.to_ne_bytes());
        bytes
    }

    #[test]
    fn real_headers() {
        assert_eq!(Header::decode(&bytes(1, 1, 0)), Ok(Header::request(1, false, 0)));
        assert_eq!(Header::decode(&bytes(18, 9, 8)), Ok(Header::request(18, true, 8)));
        assert_eq!(Header::reply_to(1, 8).encode(), bytes(1, 5, 8));
        assert_eq!(Header::request(5, true, 72).encode(), bytes(5, 9, 72));
    }

    #[test]
    fn each_rule_has_its_error() {
        for version in [0, 2, 3] {
            let error = HeaderError::Version { request: 7, version };
            assert_eq!(Header::decode(&bytes(7, version, 0)), Err(error));
        }
        for flags in [0x11, 0x8000_0001] {
            let error = HeaderError::Flags { request: 7, flags };
            assert_eq!(Header::decode(&bytes(7, flags, 0)), Err(error));
        }
        assert!(Header::decode(&bytes(7, 1, 4096)).is_ok());
        for size in [4097, u32::MAX] {
            let error = HeaderError::Size { request: 7, size };
            assert_eq!(Header::decode(&bytes(7, 1, size)), Err(error));
        }
    }

    proptest! {
        #[test]
        fn accepted_headers_round_trip(request: u32, flags in 0u32..32, size in 0u32..5000) {
            let bytes = bytes(request, flags, size);
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }
}
