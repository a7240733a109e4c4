//! Shuffle sharding: the few queues of many that a flow may use, drawn from its hash.
//!
//! Two flows seldom share a whole hand, so one that floods its queues leaves others a way through.

/// The largest hand: what 60 bits of a hash can be drawn into at most.
pub const MAX_HAND: usize = 15;
/// Bits of a hash that are drawn from; with all 64 the last card would be uneven.
const MAX_HASH_BITS: f64 = 60.0;
const MAX_DECK: u32 = 1 << 26;

/// Whether a hand of that size can be dealt from that many queues.
pub fn is_possible(queues: u32, hand: u32) -> bool {
    let bits = f64::from(queues).log2() * f64::from(hand);
    hand > 0 && hand <= queues && queues <= MAX_DECK && bits.ceil() <= MAX_HASH_BITS
}

/// The hand that `hash` deals: different numbers below `queues`. The same numbers as upstream's dealer gives.
pub fn deal(hash: u64, queues: u32, hand: u32) -> Hand {
    let mut rest = hash;
    let mut digits = [0u32; MAX_HAND];
    let mut cards = [0u32; MAX_HAND];
    let size = (hand as usize).min(MAX_HAND);
    for at in 0..size {
        // A digit in a number system whose base shrinks with every card that is gone.
        let left = u64::from(queues) - at as u64;
        digits[at] = u32::try_from(rest % left).unwrap_or(0);
        rest /= left;
        // The digit counts the cards that are left: step over those that are gone, the latest first.
        cards[at] = digits[..at].iter().rev().fold(digits[at], |card, gone| card + u32::from(card >= *gone));
    }
    Hand { cards, size }
}

/// Numbers of queues.
#[derive(Clone, Copy, Debug)]
pub struct Hand {
    cards: [u32; MAX_HAND],
    size: usize,
}

impl Hand {
    /// The numbers in the order in which they were dealt.
    pub fn cards(&self) -> &[u32] {
        &self.cards[..self.size]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands() {
        // Values worked out by hand: 128 queues, first digits 14, 73, 117, 23 of hash
        // 14 + 128·(73 + 127·(117 + 126·23)).
        let hash = 14 + 128 * (73 + 127 * (117 + 126 * 23));
        assert_eq!(deal(hash, 128, 4).cards(), [14, 74, 119, 24]);
        assert_eq!(deal(0, 9, 3).cards(), [0, 1, 2]);
        assert_eq!(deal(u64::MAX, 1, 1).cards(), [0]);
    }

    #[test]
    fn every_hand_is_a_set_and_every_queue_is_dealt() {
        for (queues, hand) in [(1, 1), (6, 6), (64, 6), (128, 6), (15, 15), (512, 4)] {
            assert!(is_possible(queues, hand), "{queues} {hand}");
            let mut seen = vec![0u32; queues as usize];
            let mut hash = 0x9e37_79b9_7f4a_7c15u64;
            for _ in 0..20_000 {
                hash = hash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let dealt = deal(hash >> 4, queues, hand);
                let mut cards = dealt.cards().to_vec();
                cards.sort_unstable();
                cards.dedup();
                assert_eq!(cards.len(), hand as usize);
                for card in cards {
                    seen[card as usize] += 1;
                }
            }
            let mean = 20_000 * hand / queues;
            assert!(
                seen.iter().all(|n| *n > mean * 7 / 10 && *n < mean * 13 / 10),
                "{queues} {hand} {seen:?}"
            );
        }
        for (queues, hand) in [(0, 0), (1, 0), (1, 2), (1024, 7), (1 << 27, 1)] {
            assert!(!is_possible(queues, hand), "{queues} {hand}");
        }
    }
}
