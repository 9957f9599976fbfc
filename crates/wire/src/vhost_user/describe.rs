//! Messages in words, for people who watch a conversation.

use super::{Answer, FrontEndRequest, Header, MemoryRegion, Payload, ProtocolFeatures, Shape};
use crate::virtio::{DeviceStatus, Features};

/// What a message of the front end says, or the back end's reply to one: its name, and its payload
/// decoded. A message without a form that we know is described as far as it can be.
pub fn describe(header: &Header, payload: &[u8]) -> String {
    let size = payload.len();
    let Some(request) = FrontEndRequest::from_number(header.request) else {
        return format!("unknown message {}, {size} bytes of payload", header.request);
    };
    let message = request.message();
    let (title, shape) = match (header.reply, message.answer) {
        (false, _) => (message.name.to_owned(), message.payload),
        (true, Answer::Reply(shape)) => (format!("reply to {}", message.name), shape),
        (true, Answer::Acknowledgement) => (format!("reply to {}", message.name), Shape::U64),
    };
    let said = match Payload::decode(shape, payload) {
        Some(payload) if header.reply && message.answer == Answer::Acknowledgement => {
            acknowledgement(&payload)
        }
        Some(payload) => words(request, &payload, size),
        None => format!("malformed, {size} bytes of payload"),
    };
    let separator = if said.is_empty() { "" } else { ": " };
    let asks = if header.need_reply { " (asks for an acknowledgement)" } else { "" };
    format!("{title}{separator}{said}{asks}")
}

fn acknowledgement(payload: &Payload) -> String {
    match payload {
        Payload::U64(0) => "done".to_owned(),
        Payload::U64(code) => format!("refused with {code}"),
        _ => String::new(),
    }
}

fn words(request: FrontEndRequest, payload: &Payload, size: usize) -> String {
    match payload {
        Payload::Empty => String::new(),
        Payload::U64(value) => number(request, *value),
        Payload::VringState(state) => {
            let what = match (request, state.num) {
                (FrontEndRequest::SetVringNum, size) => format!("{size} entries"),
                (FrontEndRequest::SetVringEnable, 0) => "off".to_owned(),
                (FrontEndRequest::SetVringEnable, 1) => "on".to_owned(),
                // Of a packed ring it has two halves.
                (FrontEndRequest::SetVringBase | FrontEndRequest::GetVringBase, base) => {
                    format!("base {base:#x}")
                }
                (_, num) => num.to_string(),
            };
            format!("ring {}, {what}", state.index)
        }
        Payload::VringAddress(address) => {
            let log = if address.flags & 1 == 0 {
                String::new()
            } else {
                format!(", writes logged at {:#x}", address.log)
            };
            format!(
                "ring {}, descriptors at {:#x}, available at {:#x}, used at {:#x}{log}",
                address.index, address.descriptors, address.available, address.used
            )
        }
        Payload::RingDescriptor(which) if which.attached => format!("ring {}", which.ring),
        Payload::RingDescriptor(which) => format!("ring {}, none", which.ring),
        Payload::MemoryTable(regions) => {
            let list: Vec<String> = regions.iter().map(region).collect();
            list.join("; ")
        }
        Payload::SingleRegion(one) => region(one),
        Payload::Log(area) => format!("{:#x} bytes at offset {:#x}", area.size, area.offset),
        Payload::Config(space) => {
            let bytes: Vec<String> = space.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("offset {}, {} bytes: {}", space.offset, bytes.len(), bytes.join(" "))
        }
        Payload::Opaque => format!("{size} bytes of payload"),
    }
}

fn number(request: FrontEndRequest, value: u64) -> String {
    use FrontEndRequest as R;
    match request {
        R::GetFeatures | R::SetFeatures => Features(value).to_string(),
        R::GetProtocolFeatures | R::SetProtocolFeatures => ProtocolFeatures(value).to_string(),
        R::GetStatus | R::SetStatus => DeviceStatus(value).to_string(),
        R::GetQueueNum => format!("{value} queues"),
        R::GetMaxMemSlots => format!("{value} slots"),
        R::NetSetMtu => format!("{value} bytes"),
        R::SendRarp => {
            let [a, b, c, d, e, f, ..] = value.to_ne_bytes();
            crate::ethernet::MacAddress([a, b, c, d, e, f]).to_string()
        }
        _ => format!("{value:#x}"),
    }
}

fn region(region: &MemoryRegion) -> String {
    let MemoryRegion { guest_address, size, user_address, mmap_offset } = region;
    format!(
        "{size:#x} bytes at guest address {guest_address:#x}, front end's address \
         {user_address:#x}, offset {mmap_offset:#x} in the file"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vhost_user::{ConfigSpace, LogArea, RingDescriptor, VringAddress, VringState};
    use proptest::prelude::*;

    fn request(request: FrontEndRequest, need_reply: bool, payload: Payload) -> String {
        let payload = payload.encode();
        let header = Header::request(request.number(), need_reply, payload.len() as u32);
        describe(&header, &payload)
    }

    fn reply(request: FrontEndRequest, payload: Payload) -> String {
        let payload = payload.encode();
        describe(&Header::reply_to(request.number(), payload.len() as u32), &payload)
    }

    #[test]
    fn requests_are_told_by_name_with_their_payload() {
        use FrontEndRequest as R;
        let state = |index, num| Payload::VringState(VringState { index, num });
        let descriptor = |attached| Payload::RingDescriptor(RingDescriptor { ring: 1, attached });
        let region = MemoryRegion {
            guest_address: 0x1000,
            size: 0x2000,
            user_address: 0x3000,
            mmap_offset: 0x4000,
        };
        let address = VringAddress {
            index: 1,
            flags: 1,
            descriptors: 0x10,
            used: 0x20,
            available: 0x30,
            log: 0x40,
        };
        let station = u64::from_ne_bytes([0x52, 0x54, 0, 1, 2, 3, 0, 0]);
        let region_words = "0x2000 bytes at guest address 0x1000, front end's address 0x3000, \
                            offset 0x4000 in the file";
        for (number, payload, words) in [
            (R::GetFeatures, Payload::Empty, "GET_FEATURES"),
            (R::SetFeatures, Payload::U64(1 << 32 | 1), "SET_FEATURES: CSUM VERSION_1"),
            (R::SetProtocolFeatures, Payload::U64(9), "SET_PROTOCOL_FEATURES: MQ REPLY_ACK"),
            (R::SetVringNum, state(3, 256), "SET_VRING_NUM: ring 3, 256 entries"),
            (R::SetVringBase, state(0, 0x8000), "SET_VRING_BASE: ring 0, base 0x8000"),
            (R::SetVringEnable, state(2, 1), "SET_VRING_ENABLE: ring 2, on"),
            (R::SetVringEnable, state(2, 0), "SET_VRING_ENABLE: ring 2, off"),
            (R::SetVringKick, descriptor(true), "SET_VRING_KICK: ring 1"),
            (R::SetVringCall, descriptor(false), "SET_VRING_CALL: ring 1, none"),
            (
                R::SetStatus,
                Payload::U64(0xf),
                "SET_STATUS: ACKNOWLEDGE DRIVER DRIVER_OK FEATURES_OK",
            ),
            (R::SetStatus, Payload::U64(0), "SET_STATUS: none"),
            (R::NetSetMtu, Payload::U64(1500), "NET_SET_MTU: 1500 bytes"),
            (R::SendRarp, Payload::U64(station), "SEND_RARP: 52:54:00:01:02:03"),
            (
                R::SetVringAddr,
                Payload::VringAddress(address),
                "SET_VRING_ADDR: ring 1, descriptors at 0x10, available at 0x30, used at 0x20, \
                 writes logged at 0x40",
            ),
            (
                R::SetMemTable,
                Payload::MemoryTable(vec![region]),
                &format!("SET_MEM_TABLE: {region_words}"),
            ),
            (
                R::SetLogBase,
                Payload::Log(LogArea { size: 0x1000, offset: 0 }),
                "SET_LOG_BASE: 0x1000 bytes at offset 0x0",
            ),
            (
                R::SetConfig,
                Payload::Config(ConfigSpace { offset: 10, flags: 0, bytes: vec![0xdc, 5] }),
                "SET_CONFIG: offset 10, 2 bytes: dc 05",
            ),
            (R::AddMemReg, Payload::SingleRegion(region), &format!("ADD_MEM_REG: {region_words}")),
        ] {
            assert_eq!(request(number, false, payload), words);
        }
        assert_eq!(
            request(R::SetOwner, true, Payload::Empty),
            "SET_OWNER (asks for an acknowledgement)"
        );
    }

    #[test]
    fn replies_are_told_from_acknowledgements() {
        use FrontEndRequest as R;
        let state = VringState { index: 1, num: 7 };
        assert_eq!(reply(R::GetQueueNum, Payload::U64(2)), "reply to GET_QUEUE_NUM: 2 queues");
        assert_eq!(
            reply(R::GetVringBase, Payload::VringState(state)),
            "reply to GET_VRING_BASE: ring 1, base 0x7"
        );
        assert_eq!(reply(R::SetFeatures, Payload::U64(0)), "reply to SET_FEATURES: done");
        assert_eq!(
            reply(R::SetMemTable, Payload::U64(1)),
            "reply to SET_MEM_TABLE: refused with 1"
        );
    }

    #[test]
    fn what_has_no_form_is_said_to_have_none() {
        let header = |number, size| Header::request(number, false, size);
        assert_eq!(describe(&header(77, 3), &[0; 3]), "unknown message 77, 3 bytes of payload");
        let malformed = describe(&header(FrontEndRequest::SetVringNum.number(), 3), &[0; 3]);
        assert_eq!(malformed, "SET_VRING_NUM: malformed, 3 bytes of payload");
    }

    proptest! {
        #[test]
        fn every_message_has_words(
            number in 0u32..50, reply: bool, payload in proptest::collection::vec(any::<u8>(), 0..80)
        ) {
            let size = payload.len() as u32;
            let header =
                if reply { Header::reply_to(number, size) } else { Header::request(number, false, size) };
            let words = describe(&header, &payload);
            if let Some(request) = FrontEndRequest::from_number(number) {
                prop_assert!(words.contains(request.message().name));
            }
        }
    }
}
