//! Devices that claims hold.

use std::collections::HashMap;

use yare_schema::quantity::Quantity;

use super::types::{Amounts, DeviceId};

/// A device that a claim holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Which.
    pub device: DeviceId,
    /// It is shared: this much of its capacities is taken.
    pub share: Option<Amounts>,
}

/// What all claims hold. Administrative access holds nothing.
#[derive(Debug, Default)]
pub struct Taken {
    whole: HashMap<DeviceId, usize>,
    shared: HashMap<DeviceId, Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    claims: usize,
    consumed: Amounts,
}

impl Taken {
    /// Counts what a claim holds.
    pub fn add<'h>(&mut self, holdings: impl IntoIterator<Item = &'h Holding>) {
        for Holding { device, share } in holdings {
            let Some(share) = share else {
                *self.whole.entry(device.clone()).or_default() += 1;
                continue;
            };
            let shared = self.shared.entry(device.clone()).or_default();
            shared.claims += 1;
            for (name, amount) in share {
                shared.consumed.entry(name.clone()).or_default().0 += amount.0;
            }
        }
    }

    /// Takes back what [`Self::add`] counted.
    pub fn remove<'h>(&mut self, holdings: impl IntoIterator<Item = &'h Holding>) {
        for Holding { device, share } in holdings {
            let Some(share) = share else {
                if let Some(claims) = self.whole.get_mut(device) {
                    *claims -= 1;
                    if *claims == 0 {
                        self.whole.remove(device);
                    }
                }
                continue;
            };
            let Some(shared) = self.shared.get_mut(device) else { continue };
            shared.claims -= 1;
            if shared.claims == 0 {
                self.shared.remove(device);
                continue;
            }
            for (name, amount) in share {
                if let Some(consumed) = shared.consumed.get_mut(name) {
                    consumed.0 -= amount.0;
                }
            }
        }
    }

    /// Whether a claim has the device for itself.
    pub fn has(&self, device: &DeviceId) -> bool {
        self.whole.contains_key(device)
    }

    /// Whether some claim has a share of the device.
    pub fn shares(&self, device: &DeviceId) -> bool {
        self.shared.contains_key(device)
    }

    /// How much of a shared device's capacity is taken.
    pub fn consumed(&self, device: &DeviceId, capacity: &str) -> Quantity {
        let shared = self.shared.get(device);
        shared.and_then(|s| s.consumed.get(capacity)).map_or(Quantity::ZERO, |amount| amount.0)
    }
}
