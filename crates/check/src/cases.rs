//! The cases, topic by topic. Each file's `CASES` are numbered in order, so new ones go to the end.

pub(crate) mod connection;
pub(crate) mod descriptors;
pub(crate) mod dirty_log;
pub(crate) mod enable;
pub(crate) mod errors;
mod frames;
pub(crate) mod life_cycle;
pub(crate) mod memory;
pub(crate) mod mergeable;
pub(crate) mod multiqueue;
pub(crate) mod negotiation;
pub(crate) mod notifications;
pub(crate) mod offload;
pub(crate) mod packed;
pub(crate) mod reconnect;
pub(crate) mod split;
