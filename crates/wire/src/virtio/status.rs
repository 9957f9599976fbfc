//! The device status: how far a driver has come (virtio 1.3, section 2.1).

use crate::bits::bit_set;

bit_set! {
    /// A set of device status bits. None of them: the device is reset.
    pub struct DeviceStatus;
    0 ACKNOWLEDGE "the guest has found the device";
    1 DRIVER "the guest has a driver for it";
    2 DRIVER_OK "the driver is ready";
    3 FEATURES_OK "the features are agreed on";
    6 DEVICE_NEEDS_RESET "the device cannot go on";
    7 FAILED "the driver has given up";
}
