//! The table of messages.

use thiserror::Error;

use super::payload::Shape;
use super::protocol_features::ProtocolFeatures;
use crate::virtio::Features;

/// Everything about the form of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its number on the wire.
    pub number: u32,
    /// Its name in the specification, without the prefix.
    pub name: &'static str,
    /// What its payload is made of.
    pub payload: Shape,
    /// The fewest and the most descriptors that it carries.
    pub descriptors: (usize, usize),
    /// What must have been negotiated before it.
    pub gate: Gate,
    /// How it is answered.
    pub answer: Answer,
}

/// What must have been negotiated before a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Nothing.
    Open,
    /// These virtio bits must have been offered. They need not be acknowledged yet: front ends
    /// negotiate the protocol, and QEMU enables rings, before SET_FEATURES.
    Offered(Features),
    /// These protocol bits must have been acknowledged.
    Protocol(ProtocolFeatures),
}

/// How a message is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With a u64, 0 for success, but only when the message asks and REPLY_ACK is negotiated.
    Acknowledgement,
    /// With a payload of its own, always.
    Reply(Shape),
}

/// A message that does not have the form that the table asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FormFault {
    /// The payload has a size that this message never has.
    #[error("a payload of {size} bytes, expected {}", expected_sizes(*.expected))]
    Size {
        /// Its size.
        size: usize,
        /// The shape that was expected.
        expected: Shape,
    },
    /// Too few or too many descriptors.
    #[error("{count} file descriptors, expected {}", expected_count(*.expected))]
    Descriptors {
        /// How many there are.
        count: usize,
        /// The fewest and the most that were expected.
        expected: (usize, usize),
    },
}

/// The sizes of a shape, for people.
fn expected_sizes(shape: Shape) -> String {
    match shape.sizes() {
        (least, most, _) if least == most => least.to_string(),
        (least, most, step) if least + step == most => format!("{least} or {most}"),
        (least, most, 1) => format!("{least} to {most}"),
        (least, most, step) => format!("{least} to {most} in steps of {step}"),
    }
}

/// A count of descriptors, for people.
fn expected_count((least, most): (usize, usize)) -> String {
    match most - least {
        0 => least.to_string(),
        1 => format!("{least} or {most}"),
        _ => format!("{least} to {most}"),
    }
}

impl Message {
    /// Checks the size of the payload and the number of descriptors.
    pub fn check(&self, size: usize, descriptors: usize) -> Result<(), FormFault> {
        if !self.payload.allows(size) {
            return Err(FormFault::Size { size, expected: self.payload });
        }
        let (least, most) = self.descriptors;
        if descriptors < least || descriptors > most {
            let expected = self.descriptors;
            return Err(FormFault::Descriptors { count: descriptors, expected });
        }
        Ok(())
    }
}

/// Declares one direction's messages once: the enum and the table behind it.
macro_rules! messages {
    (
        $(#[$attribute:meta])*
        pub enum $type:ident;
        $($number:literal $variant:ident $name:literal, $payload:ident, $descriptors:expr, $gate:expr, $answer:expr;)*
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum $type {
            $(#[doc = concat!("Message ", $number, ".")] $variant = $number,)*
        }

        impl $type {
            /// Every message, in the order of the numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The message with this number.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The number of this message.
            pub const fn number(self) -> u32 {
                self as u32
            }

            /// What the table says about this message.
            pub const fn message(self) -> &'static Message {
                match self {
                    $(Self::$variant => &const { Message {
                        number: $number,
                        name: $name,
                        payload: Shape::$payload,
                        descriptors: $descriptors,
                        gate: $gate,
                        answer: $answer,
                    } },)*
                }
            }
        }

        impl std::fmt::Display for $type {
            /// The name in the specification.
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.message().name)
            }
        }
    };
}

const NONE: (usize, usize) = (0, 0);
const ONE: (usize, usize) = (1, 1);
const MAYBE_ONE: (usize, usize) = (0, 1);
const ONE_PER_REGION: (usize, usize) = (0, super::MAX_TABLE_REGIONS);

const OPEN: Gate = Gate::Open;
const BIT_30: Gate = Gate::Offered(Features::PROTOCOL_FEATURES);
const IOMMU: Gate = Gate::Offered(Features::ACCESS_PLATFORM);

const fn needs(protocol: ProtocolFeatures) -> Gate {
    Gate::Protocol(protocol)
}

const ACK: Answer = Answer::Acknowledgement;
const U64: Answer = Answer::Reply(Shape::U64);

use ProtocolFeatures as P;

messages! {
    /// A request of the front end.
    pub enum FrontEndRequest;
    1 GetFeatures "GET_FEATURES", Empty, NONE, OPEN, U64;
    2 SetFeatures "SET_FEATURES", U64, NONE, OPEN, ACK;
    3 SetOwner "SET_OWNER", Empty, NONE, OPEN, ACK;
    4 ResetOwner "RESET_OWNER", Empty, NONE, OPEN, ACK;
    5 SetMemTable "SET_MEM_TABLE", MemoryTable, ONE_PER_REGION, OPEN, ACK;
    6 SetLogBase "SET_LOG_BASE", Log, ONE, needs(P::LOG_SHMFD), U64;
    7 SetLogFd "SET_LOG_FD", Empty, ONE, OPEN, ACK;
    8 SetVringNum "SET_VRING_NUM", VringState, NONE, OPEN, ACK;
    9 SetVringAddr "SET_VRING_ADDR", VringAddress, NONE, OPEN, ACK;
    10 SetVringBase "SET_VRING_BASE", VringState, NONE, OPEN, ACK;
    11 GetVringBase "GET_VRING_BASE", VringState, NONE, OPEN, Answer::Reply(Shape::VringState);
    12 SetVringKick "SET_VRING_KICK", RingDescriptor, MAYBE_ONE, OPEN, ACK;
    13 SetVringCall "SET_VRING_CALL", RingDescriptor, MAYBE_ONE, OPEN, ACK;
    14 SetVringErr "SET_VRING_ERR", RingDescriptor, MAYBE_ONE, OPEN, ACK;
    15 GetProtocolFeatures "GET_PROTOCOL_FEATURES", Empty, NONE, BIT_30, U64;
    16 SetProtocolFeatures "SET_PROTOCOL_FEATURES", U64, NONE, BIT_30, ACK;
    17 GetQueueNum "GET_QUEUE_NUM", Empty, NONE, needs(P::MQ), U64;
    18 SetVringEnable "SET_VRING_ENABLE", VringState, NONE, BIT_30, ACK;
    19 SendRarp "SEND_RARP", U64, NONE, needs(P::RARP), ACK;
    20 NetSetMtu "NET_SET_MTU", U64, NONE, needs(P::NET_MTU), ACK;
    21 SetBackendReqFd "SET_BACKEND_REQ_FD", Empty, ONE, needs(P::BACKEND_REQ), ACK;
    22 IotlbMsg "IOTLB_MSG", Iotlb, NONE, IOMMU, ACK;
    23 SetVringEndian "SET_VRING_ENDIAN", VringState, NONE, needs(P::CROSS_ENDIAN), ACK;
    24 GetConfig "GET_CONFIG", Config, NONE, needs(P::CONFIG), Answer::Reply(Shape::Config);
    25 SetConfig "SET_CONFIG", Config, NONE, needs(P::CONFIG), ACK;
    26 CreateCryptoSession "CREATE_CRYPTO_SESSION", CryptoSession, NONE,
        needs(P::CRYPTO_SESSION), Answer::Reply(Shape::CryptoSession);
    27 CloseCryptoSession "CLOSE_CRYPTO_SESSION", U64, NONE, needs(P::CRYPTO_SESSION), ACK;
    28 PostcopyAdvise "POSTCOPY_ADVISE", Empty, NONE,
        needs(P::PAGEFAULT), Answer::Reply(Shape::Empty);
    29 PostcopyListen "POSTCOPY_LISTEN", Empty, NONE, needs(P::PAGEFAULT), ACK;
    30 PostcopyEnd "POSTCOPY_END", Empty, NONE, needs(P::PAGEFAULT), U64;
    31 GetInflightFd "GET_INFLIGHT_FD", Inflight, NONE,
        needs(P::INFLIGHT_SHMFD), Answer::Reply(Shape::Inflight);
    32 SetInflightFd "SET_INFLIGHT_FD", Inflight, ONE, needs(P::INFLIGHT_SHMFD), ACK;
    33 GpuSetSocket "GPU_SET_SOCKET", Empty, ONE, OPEN, ACK;
    34 ResetDevice "RESET_DEVICE", Empty, NONE, needs(P::RESET_DEVICE), ACK;
    35 VringKick "VRING_KICK", VringState, NONE, needs(P::INBAND_NOTIFICATIONS), ACK;
    36 GetMaxMemSlots "GET_MAX_MEM_SLOTS", Empty, NONE, needs(P::CONFIGURE_MEM_SLOTS), U64;
    37 AddMemReg "ADD_MEM_REG", SingleRegion, ONE, needs(P::CONFIGURE_MEM_SLOTS), ACK;
    38 RemMemReg "REM_MEM_REG", SingleRegion, MAYBE_ONE, needs(P::CONFIGURE_MEM_SLOTS), ACK;
    39 SetStatus "SET_STATUS", U64, NONE, needs(P::STATUS), ACK;
    40 GetStatus "GET_STATUS", Empty, NONE, needs(P::STATUS), U64;
    41 GetSharedObject "GET_SHARED_OBJECT", Uuid, NONE,
        needs(P::SHARED_OBJECT), Answer::Reply(Shape::Empty);
    42 SetDeviceStateFd "SET_DEVICE_STATE_FD", DeviceState, ONE, needs(P::DEVICE_STATE), U64;
    43 CheckDeviceState "CHECK_DEVICE_STATE", Empty, NONE, needs(P::DEVICE_STATE), U64;
    44 GetShmemConfig "GET_SHMEM_CONFIG", Empty, NONE,
        needs(P::SHMEM_MAP), Answer::Reply(Shape::SharedMemoryConfig);
}

messages! {
    /// A request of the back end, on the second socket.
    pub enum BackEndRequest;
    1 IotlbMsg "BACKEND_IOTLB_MSG", Iotlb, NONE, IOMMU, ACK;
    2 ConfigChange "BACKEND_CONFIG_CHANGE_MSG", Empty, NONE, needs(P::CONFIG), ACK;
    3 VringHostNotifier "BACKEND_VRING_HOST_NOTIFIER_MSG", VringArea, MAYBE_ONE,
        needs(P::HOST_NOTIFIER.union(P::BACKEND_SEND_FD)), ACK;
    4 VringCall "BACKEND_VRING_CALL", VringState, NONE, needs(P::INBAND_NOTIFICATIONS), ACK;
    5 VringErr "BACKEND_VRING_ERR", VringState, NONE, needs(P::INBAND_NOTIFICATIONS), ACK;
    6 SharedObjectAdd "BACKEND_SHARED_OBJECT_ADD", Uuid, NONE, needs(P::SHARED_OBJECT), ACK;
    7 SharedObjectRemove "BACKEND_SHARED_OBJECT_REMOVE", Uuid, NONE,
        needs(P::SHARED_OBJECT), ACK;
    8 SharedObjectLookup "BACKEND_SHARED_OBJECT_LOOKUP", Uuid, NONE, needs(P::SHARED_OBJECT), U64;
    9 ShmemMap "BACKEND_SHMEM_MAP", SharedMemoryMap, ONE, needs(P::SHMEM_MAP), ACK;
    10 ShmemUnmap "BACKEND_SHMEM_UNMAP", SharedMemoryMap, NONE, needs(P::SHMEM_MAP), ACK;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vhost_user::{MAX_DESCRIPTORS, MAX_PAYLOAD, Payload};

    fn every_message() -> impl Iterator<Item = &'static Message> {
        let front_end = FrontEndRequest::ALL.iter().map(|request| request.message());
        front_end.chain(BackEndRequest::ALL.iter().map(|request| request.message()))
    }

    /// The documentation, printed from the table.
    fn documentation() -> String {
        let mut text = String::new();
        let requests = FrontEndRequest::ALL.iter().map(|request| request.message());
        print("Requests of the front end", requests, &mut text);
        text.push('\n');
        let requests = BackEndRequest::ALL.iter().map(|request| request.message());
        print("Requests of the back end, on the second socket", requests, &mut text);
        text
    }

    fn print(title: &str, messages: impl Iterator<Item = &'static Message>, text: &mut String) {
        *text += &format!("# {title}\n\n");
        *text += "| no | name | payload | bytes | descriptors | needs | answer |\n";
        *text += "| ---: | --- | --- | --- | --- | --- | --- |\n";
        for message in messages {
            let gate = match message.gate {
                Gate::Open => "-".to_string(),
                Gate::Offered(features) => format!("{features} offered"),
                Gate::Protocol(features) => features.to_string(),
            };
            let answer = match message.answer {
                Answer::Acknowledgement => "acknowledgement, if asked".to_string(),
                Answer::Reply(shape) => format!("{shape:?}"),
            };
            *text += &format!(
                "| {} | {} | {:?} | {} | {} | {gate} | {answer} |\n",
                message.number,
                message.name,
                message.payload,
                expected_sizes(message.payload),
                expected_count(message.descriptors),
            );
        }
    }

    #[test]
    fn the_documentation_is_the_table() {
        let expected = documentation();
        let found = include_str!("../../MESSAGES.md");
        assert!(found == expected, "MESSAGES.md is not the table; it should read:\n\n{expected}");
    }

    #[test]
    fn numbers_run_without_a_gap() {
        for (index, request) in FrontEndRequest::ALL.iter().enumerate() {
            assert_eq!(request.number() as usize, index + 1);
            assert_eq!(FrontEndRequest::from_number(request.number()), Some(*request));
            assert_eq!(request.message().number, request.number());
        }
        for number in [0, 45, u32::MAX] {
            assert_eq!(FrontEndRequest::from_number(number), None);
        }
        for (index, request) in BackEndRequest::ALL.iter().enumerate() {
            assert_eq!(request.number() as usize, index + 1);
        }
    }

    #[test]
    fn every_wrong_size_of_every_message_is_refused() {
        for message in every_message() {
            let (least, most, step) = message.payload.sizes();
            assert!(most <= MAX_PAYLOAD, "{}", message.name);
            let allowed: Vec<usize> = (least..=most).step_by(step).collect();
            for size in 0..=MAX_PAYLOAD + 1 {
                let checked = message.check(size, message.descriptors.0);
                assert_eq!(checked.is_ok(), allowed.contains(&size), "{} {size}", message.name);
                if checked.is_err() {
                    let bytes = vec![0; size];
                    assert_eq!(Payload::decode(message.payload, &bytes), None);
                }
            }
        }
    }

    #[test]
    fn every_wrong_count_of_descriptors_is_refused() {
        for message in every_message() {
            let (least, most) = message.descriptors;
            assert!(most <= MAX_DESCRIPTORS);
            for count in 0..=253 {
                let checked = message.check(message.payload.sizes().0, count);
                let right = (least..=most).contains(&count);
                assert_eq!(checked.is_ok(), right, "{} {count}", message.name);
            }
        }
    }

    #[test]
    fn faults_speak_to_people() {
        let fault = |request: FrontEndRequest, size, descriptors| {
            request.message().check(size, descriptors).unwrap_err().to_string()
        };
        assert_eq!(fault(FrontEndRequest::SetFeatures, 4, 0), "a payload of 4 bytes, expected 8");
        assert_eq!(
            fault(FrontEndRequest::SetMemTable, 9, 0),
            "a payload of 9 bytes, expected 8 to 264 in steps of 32"
        );
        assert_eq!(
            fault(FrontEndRequest::GetInflightFd, 22, 0),
            "a payload of 22 bytes, expected 20 or 24"
        );
        assert_eq!(
            fault(FrontEndRequest::SetVringKick, 8, 2),
            "2 file descriptors, expected 0 or 1"
        );
    }
}
