//! Users and groups, by the names that the system's own name service knows, or by number.

use anyhow::Context;
use nix::unistd::{Group, User};

/// The number of a user.
pub fn user_id(user: &str) -> anyhow::Result<u32> {
    match user.parse() {
        Ok(number) => Ok(number),
        Err(_) => Ok(User::from_name(user)
            .with_context(|| format!("cannot look up the user `{user}`"))?
            .with_context(|| format!("there is no user `{user}`"))?
            .uid
            .as_raw()),
    }
}

/// The number of a group.
pub fn group_id(group: &str) -> anyhow::Result<u32> {
    match group.parse() {
        Ok(number) => Ok(number),
        Err(_) => Ok(Group::from_name(group)
            .with_context(|| format!("cannot look up the group `{group}`"))?
            .with_context(|| format!("there is no group `{group}`"))?
            .gid
            .as_raw()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        assert_eq!(user_id("root").unwrap(), 0);
        assert_eq!(group_id("root").unwrap(), 0);
        assert_eq!(user_id("1234").unwrap(), 1234);
        assert_eq!(group_id("1234").unwrap(), 1234);
        let nobody = user_id("no-such-user").unwrap_err();
        assert_eq!(nobody.to_string(), "there is no user `no-such-user`");
        let nobody = group_id("no-such-group").unwrap_err();
        assert_eq!(nobody.to_string(), "there is no group `no-such-group`");
    }
}
