//! A fake NCCL: communicators are meeting places in memory, and every trouble can be had.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use kernels::nccl::NcclError;
use proto::frame::NcclName;

use crate::link::nccl::backend::{Backend, End};

/// All devices of a test. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(in crate::link) struct World {
    state: Arc<Mutex<State>>,
}

/// Troubles, and what goes through.
#[derive(Debug, Default)]
pub(in crate::link) struct State {
    channels: HashMap<NcclName, Channel>,
    names: u64,
    /// `join` fails at once.
    pub(in crate::link) refuses: bool,
    /// Communicators are never made.
    pub(in crate::link) never_joins: bool,
    /// Transfers do not end.
    pub(in crate::link) mute: bool,
    /// An end whose peer aborted learns of it. Real ones often do not.
    pub(in crate::link) tells: bool,
    /// Breaks with this many transfers through, once.
    pub(in crate::link) breaks_after: Option<usize>,
    /// Transfers that are through, in bytes.
    pub(in crate::link) through: Vec<usize>,
    /// The most receives that were under way at once, on one device.
    pub(in crate::link) receives_max: usize,
}

/// One communicator.
#[derive(Debug, Default)]
struct Channel {
    joined: HashSet<usize>,
    aborted: HashSet<usize>,
    sent: Vec<Bytes>,
    received: Vec<usize>,
    broken: bool,
}

/// One device.
#[derive(Debug)]
pub(in crate::link) struct Fake {
    world: World,
    receiving: usize,
}

/// One end of a channel.
#[derive(Debug)]
pub(in crate::link) struct Handle {
    name: NcclName,
    end: End,
}

/// The transfer of this number through its channel.
#[derive(Debug)]
pub(in crate::link) struct Transfer {
    number: usize,
    end: End,
}

impl World {
    pub(in crate::link) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Ends of communicators that nobody aborted.
    pub(in crate::link) fn open_ends(&self) -> usize {
        let open = |channel: &Channel| channel.joined.len() - channel.aborted.len();
        self.state().channels.values().map(open).sum()
    }
}

impl Fake {
    pub(in crate::link) fn new(world: World) -> Self {
        Self { world, receiving: 0 }
    }

    fn post(
        &mut self,
        by: &Handle,
        post: impl FnOnce(&mut Channel) -> usize,
    ) -> Result<Transfer, String> {
        self.check(by)?;
        let state = &mut *self.world.state();
        let channel = state.channels.get_mut(&by.name).unwrap();
        Ok(Transfer { number: post(channel), end: by.end })
    }
}

fn rank(end: End) -> usize {
    match end {
        End::Sender => 0,
        End::Receiver => 1,
    }
}

impl Backend for Fake {
    type Channel = Handle;
    type Transfer = Transfer;

    fn major(&self) -> Result<u32, NcclError> {
        Ok(2)
    }

    fn name(&mut self) -> Result<NcclName, String> {
        let mut state = self.world.state();
        state.names += 1;
        let mut name = [0; 128];
        name[..8].copy_from_slice(&state.names.to_le_bytes());
        Ok(name)
    }

    fn join(&mut self, name: &NcclName, end: End) -> Result<Handle, String> {
        let mut state = self.world.state();
        if state.refuses {
            return Err("no network interface".to_owned());
        }
        let fresh = state.channels.entry(*name).or_default().joined.insert(rank(end));
        assert!(fresh, "one end of a communicator twice");
        Ok(Handle { name: *name, end })
    }

    fn check(&mut self, by: &Handle) -> Result<bool, String> {
        let state = self.world.state();
        let channel = &state.channels[&by.name];
        if channel.broken || (state.tells && channel.aborted.contains(&(1 - rank(by.end)))) {
            return Err("remote error".to_owned());
        }
        Ok(channel.joined.len() == 2 && !state.never_joins)
    }

    fn send(&mut self, by: &Handle, rows: &Bytes) -> Result<Transfer, String> {
        self.post(by, |channel| {
            channel.sent.push(rows.clone());
            channel.sent.len() - 1
        })
    }

    fn receive(&mut self, by: &Handle, bytes: usize) -> Result<Transfer, String> {
        let transfer = self.post(by, |channel| {
            channel.received.push(bytes);
            channel.received.len() - 1
        })?;
        self.receiving += 1;
        let mut state = self.world.state();
        state.receives_max = state.receives_max.max(self.receiving);
        Ok(transfer)
    }

    fn poll(&mut self, by: &Handle, transfer: &mut Transfer) -> Result<Option<Bytes>, String> {
        self.check(by)?;
        let state = &mut *self.world.state();
        let channel = state.channels.get_mut(&by.name).unwrap();
        let number = transfer.number;
        let (Some(rows), Some(&bytes)) = (channel.sent.get(number), channel.received.get(number))
        else {
            return Ok(None);
        };
        assert_eq!(rows.len(), bytes, "the receiver asks for what is sent");
        if state.mute || !channel.aborted.is_empty() {
            return Ok(None);
        }
        if state.breaks_after.is_some_and(|after| state.through.len() >= after) {
            state.breaks_after = None;
            channel.broken = true;
            return Err("remote error".to_owned());
        }
        if by.end == End::Receiver {
            state.through.push(bytes);
        }
        Ok(Some(rows.clone()))
    }

    fn retire(&mut self, transfer: Transfer) {
        self.receiving -= usize::from(transfer.end == End::Receiver);
    }

    fn abort(&mut self, channels: Vec<Handle>, transfers: Vec<Transfer>) {
        for Handle { name, end } in channels {
            let state = &mut *self.world.state();
            let fresh = state.channels.get_mut(&name).unwrap().aborted.insert(rank(end));
            assert!(fresh, "an end is aborted once");
        }
        transfers.into_iter().for_each(|transfer| self.retire(transfer));
    }
}
