use crate::Reached;
pub fn session(_: &[u8]) -> Reached { Reached::default() }
