//! Numbers nobody can foresee, for seeds and request ids; not for secrets.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// 64 bits: a counter hashed under a key that the system drew for this process.
pub(crate) fn draw() -> u64 {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    KEY.hash_one(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A request id for a client that gave none.
pub(crate) fn request_id() -> String {
    format!("{:016x}{:016x}", draw(), draw())
}
