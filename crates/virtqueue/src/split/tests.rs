mod arbitrary;
mod hostile_device;
mod hostile_driver;
mod layout;
mod notification;
mod ring;
