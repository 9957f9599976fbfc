//! Feature words: sets of named bits.

use std::fmt;

/// Declares a set of named bits once: the type, a constant per bit, the table of names, the set
/// operations and `Display`.
macro_rules! bit_set {
    (
        $(#[$attribute:meta])*
        pub struct $type:ident;
        $($bit:literal $name:ident $doc:literal;)*
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct $type(pub u64);

        impl $type {
            $(
                #[doc = concat!("Bit ", $bit, ": ", $doc, ".")]
                pub const $name: Self = Self(1 << $bit);
            )*

            /// No bit.
            pub const NONE: Self = Self(0);

            /// Every named bit, lowest first.
            pub const NAMED: &[(Self, &str)] = &[$((Self::$name, stringify!($name)),)*];

            /// Whether every bit of `other` is set.
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// Whether any bit of `other` is set.
            pub const fn intersects(self, other: Self) -> bool {
                self.0 & other.0 != 0
            }

            /// Whether no bit is set.
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }

            /// These bits and those of `other`. The same as `|`, for constants.
            pub const fn union(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// The bits that are in both. The same as `&`, for constants.
            pub const fn intersection(self, other: Self) -> Self {
                Self(self.0 & other.0)
            }

            /// These bits, less those of `other`.
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }
        }

        impl std::ops::BitOr for $type {
            type Output = Self;

            fn bitor(self, other: Self) -> Self {
                self.union(other)
            }
        }

        impl std::ops::BitOrAssign for $type {
            fn bitor_assign(&mut self, other: Self) {
                *self = self.union(other);
            }
        }

        impl std::ops::BitAnd for $type {
            type Output = Self;

            fn bitand(self, other: Self) -> Self {
                self.intersection(other)
            }
        }

        impl std::fmt::Display for $type {
            /// The names, separated by blanks; unnamed bits as `bit N`; `none` for the empty set.
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                $crate::bits::write(f, self.0, |bit| {
                    let named = Self::NAMED.iter().find(|(named, _)| named.0 == bit);
                    named.map(|(_, name)| *name)
                })
            }
        }
    };
}

pub(crate) use bit_set;

/// Lists the set bits of a feature word by name.
pub(crate) fn write(
    f: &mut fmt::Formatter<'_>,
    bits: u64,
    name: impl Fn(u64) -> Option<&'static str>,
) -> fmt::Result {
    if bits == 0 {
        return f.write_str("none");
    }
    let mut separator = "";
    for bit in (0..u64::BITS).filter(|bit| bits & (1 << bit) != 0) {
        match name(1 << bit) {
            Some(name) => write!(f, "{separator}{name}")?,
            None => write!(f, "{separator}bit {bit}")?,
        }
        separator = " ";
    }
    Ok(())
}
