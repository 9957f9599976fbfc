mod arbitrary;
mod hostile_device;
mod hostile_driver;
mod in_order;
mod layout;
mod notification;
mod ring;
mod singles;
