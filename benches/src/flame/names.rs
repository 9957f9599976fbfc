//! Names of functions, as short as a reader can do with.
//!
//! A name is what stands last in its path, after the type or module that it is in: `VhostUserPort::pull`,
//! `transmit::take_singles`. What says the same twice is said once: `memory::copy` is in the module `copy`.

/// What our crates are called before their own names.
const PREFIX: &str = "ringway_";

/// Shortens the path of a function: generic arguments, closures, hashes, and all but the last two parts of it go.
pub fn shorten(path: &str) -> String {
    let (owner, path) = split_owner(path);
    let path = without_generics(path);
    let mut parts: Vec<&str> = Vec::new();
    let owner = without_generics(owner);
    // `<Type as Trait>`: what does it, and not what asked for it.
    let owner = owner.split(" as ").next().unwrap_or_default();
    for part in owner.split("::").chain(path.split("::")) {
        let part = part.trim_start_matches(['&', ' ']);
        let part = part.strip_prefix(PREFIX).unwrap_or(part);
        if !part.is_empty()
            && !part.starts_with('{')
            && !is_hash(part)
            && parts.last() != Some(&part)
        {
            parts.push(part);
        }
    }
    parts[parts.len().saturating_sub(2)..].join("::")
}

/// A path that begins with a type in angle brackets, and what is in them.
fn split_owner(path: &str) -> (&str, &str) {
    let Some(inner) = path.strip_prefix('<') else { return ("", path) };
    let mut depth = 1;
    for (at, letter) in brackets(inner) {
        depth += if letter == '<' { 1 } else { -1 };
        if depth == 0 {
            return (&inner[..at], &inner[at + 1..]);
        }
    }
    ("", path)
}

/// Angle brackets and where they are; the arrow of a function's type has none.
fn brackets(text: &str) -> impl Iterator<Item = (usize, char)> {
    let is_arrow = |at: usize| text[..at].ends_with('-');
    let all = text.char_indices().filter(|(_, letter)| matches!(letter, '<' | '>'));
    all.filter(move |&(at, letter)| letter == '<' || !is_arrow(at))
}

fn without_generics(text: &str) -> String {
    let mut kept = String::new();
    let (mut depth, mut start) = (0, 0);
    for (at, letter) in brackets(text) {
        if letter == '<' {
            if depth == 0 {
                kept.push_str(&text[start..at]);
            }
            depth += 1;
        } else if depth > 0 {
            depth -= 1;
            start = at + 1;
        }
    }
    if depth == 0 {
        kept.push_str(&text[start..]);
    }
    kept
}

/// What the compiler appends to tell functions of one name apart.
fn is_hash(part: &str) -> bool {
    let digits = part.strip_prefix('h').unwrap_or_default();
    digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The module that a file of the workspace holds, with its crate first: `memory::copy`, or nothing for other files.
pub fn module(file: &str) -> Option<String> {
    let (_, path) = file.rsplit_once("/crates/")?;
    let (name, path) = path.split_once("/src/")?;
    let path = path.strip_suffix(".rs")?;
    let module = path.strip_suffix("/mod").unwrap_or(path).replace('/', "::");
    Some(if module == "lib" { name.to_owned() } else { format!("{name}::{module}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_who_does_what() {
        let names = [
            (
                "<ringway_ports::vhost_user::VhostUserPort as ringway_engine::app::App>::pull",
                "VhostUserPort::pull",
            ),
            (
                "ringway_ports::vhost_user::transmit::take_singles<a::B<c::D>>",
                "transmit::take_singles",
            ),
            ("ringway_memory::copy::copy", "memory::copy"),
            ("a::b::Type<fn(u8) -> u8>::call::{{closure}}::h3a645cb00ea02440", "Type::call"),
            ("<alloc::vec::Vec<<A as B>::C> as core::ops::Drop>::drop", "Vec::drop"),
            ("<&mut T as x::Y>::z", "mut T::z"),
            ("push<(), ports::{impl#6}::pull::{closure_env#0}>", "push"),
            ("__memmove_avx_unaligned_erms", "__memmove_avx_unaligned_erms"),
        ];
        for (path, short) in names {
            assert_eq!(shorten(path), short, "{path}");
        }
    }

    #[test]
    fn files_are_modules() {
        let file = "/home/me/ringway/crates/virtqueue/src/split/device.rs";
        assert_eq!(module(file).as_deref(), Some("virtqueue::split::device"));
        assert_eq!(module("/x/crates/wire/src/lib.rs").as_deref(), Some("wire"));
        assert_eq!(module("/rustc/0123/library/core/src/slice/mod.rs"), None);
    }
}
