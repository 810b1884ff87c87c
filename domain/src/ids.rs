//! Small typed numbers that name things, so that a layer is never passed where an expert is meant.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// A process of the cluster, numbered by the coordinator at registration and kept across its restarts.
    NodeId(u32), "n"
);
id!(
    /// A decoder layer, counted from 0 at the embedding's side; dense layers are counted too.
    Layer(u16), "l"
);
id!(
    /// A logical expert of one layer. Its copies on nodes are replicas.
    Expert(u16), "e"
);
id!(
    /// The number of a placement plan. Epochs only grow; a node refuses an older one than it knows.
    Epoch(u64), "epoch "
);

impl Layer {
    /// The layer as an index.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl Expert {
    /// The expert as an index.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}
