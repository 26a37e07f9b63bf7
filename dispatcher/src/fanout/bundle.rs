//! Deliveries of one chunk travel together: a broker's cost is per message, not per byte.

use herald_crds::RateLimit;

use crate::broker::Outgoing;
use crate::message::{self, Bundle, Delivery};

/// The rest of an envelope beside the content, generously.
const AROUND: usize = 640;

/// How many deliveries a bundle of a channel has at the most: half a second of its rate.
pub fn most(rate: Option<&RateLimit>) -> usize {
    rate.map_or(Bundle::MAX_DELIVERIES, |rate| {
        ((rate.per_second() / 2.0) as usize).clamp(1, Bundle::MAX_DELIVERIES)
    })
}

/// Puts deliveries into messages, in order.
pub fn messages(deliveries: Vec<Delivery>, most: usize) -> Vec<Outgoing> {
    let mut messages = Vec::with_capacity(deliveries.len() / most.max(1) + 1);
    let mut bundle = Bundle {
        deliveries: Vec::with_capacity(most.min(deliveries.len())),
    };
    let mut bytes = 0;
    for delivery in deliveries {
        let size = delivery.content.len() + AROUND;
        if bundle.deliveries.len() >= most || (bytes > 0 && bytes + size > Bundle::MAX_BYTES) {
            messages.push(outgoing(&bundle));
            bundle.deliveries.clear();
            bytes = 0;
        }
        bytes += size;
        bundle.deliveries.push(delivery);
    }
    if !bundle.deliveries.is_empty() {
        messages.push(outgoing(&bundle));
    }
    messages
}

fn outgoing(bundle: &Bundle) -> Outgoing {
    Outgoing::at_once(message::encode(bundle))
}
