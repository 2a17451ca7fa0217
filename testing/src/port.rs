//! Chooses ports for servers that cannot bind port 0.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{LazyLock, Mutex, PoisonError};

/// Returns a free port of 127.0.0.1 that no earlier call of this process has returned.
///
/// The port is outside the range of ephemeral ports, so no client and no server on port 0 takes the port before the caller binds it.
pub fn free_port() -> u16 {
    static USED: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);
    loop {
        // The port is random, because other processes may call this function simultaneously.
        let port = 20_000 + u16::try_from(RandomState::new().hash_one(0) % 12_000).expect("the remainder is less than 12,000");
        let is_new = USED.lock().unwrap_or_else(PoisonError::into_inner).insert(port);
        if is_new && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_returns_another_port() {
        let ports: HashSet<_> = (0..1000).map(|_| free_port()).collect();
        assert_eq!(ports.len(), 1000);
    }
}
