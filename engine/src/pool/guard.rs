//! A connection in use.

use std::ops::Deref;
use std::sync::Arc;

use super::shared::{self, Shared};
use crate::client::Client;

/// A connection of a [`super::ConnectionPool`]; use it as the [`Client`] that it is. Dropping it
/// returns it to the pool; forgotten ([`std::mem::forget`]), it keeps its place for ever. Requests whose
/// answers were not collected by then are forgotten.
#[derive(Debug)]
pub struct PooledConnection {
    /// `None` only while being dropped.
    client: Option<Box<Client>>,
    reconnects_before: u64,
    shared: Arc<Shared>,
}

impl PooledConnection {
    pub(super) fn new(client: Box<Client>, shared: Arc<Shared>) -> PooledConnection {
        PooledConnection {
            reconnects_before: client.stats().reconnects,
            client: Some(client),
            shared,
        }
    }

    /// Closes the connection instead of returning it.
    pub fn discard(mut self) {
        if let Some(client) = self.client.take() {
            self.shared.discarded(client);
        }
    }
}

impl Deref for PooledConnection {
    type Target = Client;

    fn deref(&self) -> &Client {
        self.client.as_ref().expect("there until it is dropped")
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            let reconnects = client.stats().reconnects - self.reconnects_before;
            shared::give_back(&self.shared, client, reconnects);
        }
    }
}
