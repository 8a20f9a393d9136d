//! Kinds of things with a stable name each, for scripts and documents.

/// Declares an enum whose variants have names, and the list of all of them.
macro_rules! named {
    ($(#[$meta:meta])* pub enum $Kind:ident { $($(#[$doc:meta])* $Variant:ident = $name:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $Kind { $($(#[$doc])* $Variant,)+ }

        impl $Kind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$Variant),+];

            /// Its stable name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$Variant => $name,)+ }
            }
        }
    };
}
pub(crate) use named;
